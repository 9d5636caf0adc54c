"""The command line, as `python -m pyrostoch`."""

from __future__ import annotations

from pyrostoch.cli import main

if __name__ == "__main__":
    main()
