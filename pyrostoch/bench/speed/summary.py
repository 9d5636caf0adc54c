"""Summaries of times: medians over rounds, and ratios of times measured in the same round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

__all__ = ["milliseconds", "ratios", "spread"]


def milliseconds(seconds: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Median over rounds of each round's median, for each implementation.

    Args:
        seconds: For each implementation and round, the seconds per step of each block.

    Returns:
        Milliseconds by metric, `ms/<implementation>`.

    Example:
        >>> milliseconds({"a": [[0.001, 0.002, 0.009], [0.004], [0.003]]})
        {'ms/a': 3.0}
    """
    return {f"ms/{name}": 1e3 * median(map(median, rounds)) for name, rounds in seconds.items()}


def ratios(seconds: Mapping[str, Sequence[Sequence[float]]], pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Ratios of times, each formed within a round, so that a slow round slows both sides.

    Args:
        seconds: For each implementation and round, the seconds per step of each block.
        pairs: Names of two implementations each; pairs that were not both measured are left out.

    Returns:
        For each pair `ratio/<a>/<b>`, the median over rounds, and its spread (see `spread`).

    Example:
        >>> ratios({"a": [[1.0], [2.0], [8.0]], "b": [[2.0], [2.0], [2.0]]}, [("a", "b"), ("a", "c")])
        {'ratio/a/b': 1.0, 'ratio/a/b/low': 0.5, 'ratio/a/b/high': 4.0}
    """
    metrics: dict[str, float] = {}
    for one, other in pairs:
        if one in seconds and other in seconds:
            rounds = zip(seconds[one], seconds[other], strict=True)
            metrics |= spread(f"ratio/{one}/{other}", [median(a) / median(b) for a, b in rounds])
    return metrics


def spread(metric: str, values: Sequence[float]) -> dict[str, float]:
    """The median of some values, with the lowest and the highest.

    Args:
        metric: The metric's name.
        values: One value for each round.

    Returns:
        `<metric>`, `<metric>/low` and `<metric>/high`.
    """
    return {metric: median(values), f"{metric}/low": min(values), f"{metric}/high": max(values)}
