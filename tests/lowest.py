"""Prints the lowest version of each dependency that pyproject.toml allows, as pip's constraints.

`make lowest` runs tests with them. Torch stays as constraints.txt pins it: its older wheels bring gigabytes of CUDA.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lowest() -> list[str]:
    """One line `name==version` for each dependency but torch, which keeps its pin."""
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    lines = []
    for bound in bounds:
        match = re.fullmatch(r"([A-Za-z0-9-]+)>=([0-9.]+)", bound)
        if match is None:
            raise ValueError(f"dependency {bound!r}: expected NAME>=VERSION")
        name, version = match.groups()
        lines.append(f"{name}=={version}")
    pin = next(
        line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line.startswith("torch==")
    )
    return [pin if line.startswith("torch==") else line for line in lines]


if __name__ == "__main__":
    print("\n".join(lowest()))
