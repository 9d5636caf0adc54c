"""The command line: `pyrostoch compare`, `train`, `evaluate`, `decompose`, `report`, `info`, `download`, `bench`."""

from __future__ import annotations

from pyrostoch.cli.app import app, main

__all__ = ["app", "main"]
