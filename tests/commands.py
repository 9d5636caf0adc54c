"""Commands of the command line inside this process, for its tests."""

from __future__ import annotations

from typer.testing import CliRunner

from pyrostoch.cli import app


def call(*args: str, code: int = 0) -> str:
    """Run a command, and return its output with all white space replaced by single spaces."""
    result = CliRunner().invoke(app, args)
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return " ".join(result.output.split())
