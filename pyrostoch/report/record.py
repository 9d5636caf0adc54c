"""Reading the record of a run, the content of `results.json`, for the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["SCHEMA", "check", "floats", "is_regression", "mode_title", "modes", "number", "row_of"]

SCHEMA = 1
KINDS = ("compare", "train", "python")


def check(results: Mapping[str, Any]) -> None:
    """Raise an error if the report cannot read a record.

    Args:
        results: The record.

    Raises:
        TypeError: The record is not a dictionary.
        ValueError: Its schema or kind is unknown, or it has no guides, or a guide has no name.
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"record: expected the dictionary read from results.json, got {type(results).__name__}")
    if results.get("schema") != SCHEMA:
        raise ValueError(
            f"the record has schema {results.get('schema')!r}, this version of pyrostoch reads schema {SCHEMA}: "
            "run the command again, or use the version that wrote it"
        )
    if results.get("kind") not in KINDS:
        raise ValueError(f"the record is of kind {results.get('kind')!r}, expected one of {', '.join(KINDS)}")
    guides = results.get("guides")
    if not isinstance(guides, list) or not guides:
        raise ValueError("the record holds no guides: expected a list 'guides' of at least one")
    for index, guide in enumerate(guides):
        if not isinstance(guide, Mapping) or not isinstance(guide.get("name"), str):
            raise ValueError(f"guide {index} of the record has no name: expected a dictionary with a string 'name'")


def number(value: float | str | None) -> float | None:
    """A number of the record as a float; in JSON, NaN and infinite numbers are strings or null.

    Args:
        value: A number, a string such as `"nan"` or `"-inf"`, or `None`.

    Returns:
        The float, or `None` if the value is not a number.
    """
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def floats(values: Iterable[Any]) -> list[float]:
    """The values of a line to draw; every value that is not a finite number becomes NaN, which matplotlib leaves out.

    Args:
        values: Numbers, strings and `None`.

    Returns:
        One float per value.
    """
    numbers = (number(value) for value in values)
    return [x if x is not None and math.isfinite(x) else math.nan for x in numbers]


def is_regression(results: Mapping[str, Any]) -> bool:
    """Whether the run is a regression rather than a classification."""
    task = (results.get("data") or {}).get("task")
    if task is not None:
        return str(task) == "regression"
    return any("rmse" in row for guide in results["guides"] for row in guide.get("rows") or [])


def modes(results: Mapping[str, Any]) -> list[str]:
    """The predictive modes of the record, in order of first appearance."""
    rows = (row for guide in results["guides"] for row in guide.get("rows") or [])
    return list(dict.fromkeys(str(row.get("mode")) for row in rows))


def mode_title(mode: str) -> str:
    """The display name of a predictive mode: `mc:20` is `20 samples`."""
    name, _, count = mode.partition(":")
    if name == "mc" and count:
        return "1 sample" if count == "1" else f"{count} samples"
    return mode


def row_of(guide: Mapping[str, Any], mode: str) -> Mapping[str, Any]:
    """The scores of one guide in one mode; empty if there are none."""
    return next((row for row in guide.get("rows") or [] if str(row.get("mode")) == mode), {})
