"""What times are summed up to: medians, and ratios of what was measured in the same rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

__all__ = ["milliseconds", "ratios", "spread"]


def milliseconds(seconds: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Median over rounds of each round's median, for each route.

    Args:
        seconds: For each route and round, the seconds a step of each block.

    Returns:
        Milliseconds by metric, `ms/<route>`.

    Example:
        >>> milliseconds({"a": [[0.001, 0.002, 0.009], [0.004], [0.003]]})
        {'ms/a': 3.0}
    """
    return {f"ms/{name}": 1e3 * median(map(median, rounds)) for name, rounds in seconds.items()}


def ratios(seconds: Mapping[str, Sequence[Sequence[float]]], pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Ratios of routes, each formed within a round: so that what slows a whole round slows both sides.

    Args:
        seconds: For each route and round, the seconds a step of each block.
        pairs: Names of two routes each; those that were not both measured are passed over.

    Returns:
        For each pair `ratio/<a>/<b>`, the median over rounds, and its spread (see `spread`).

    Example:
        >>> ratios({"a": [[1.0], [2.0], [8.0]], "b": [[2.0], [2.0], [2.0]]}, [("a", "b"), ("a", "c")])
        {'ratio/a/b': 1.0, 'ratio/a/b/low': 0.5, 'ratio/a/b/high': 4.0}
    """
    found: dict[str, float] = {}
    for one, other in pairs:
        if one in seconds and other in seconds:
            rounds = zip(seconds[one], seconds[other], strict=True)
            found |= spread(f"ratio/{one}/{other}", [median(a) / median(b) for a, b in rounds])
    return found


def spread(metric: str, values: Sequence[float]) -> dict[str, float]:
    """The median of some values with the lowest and the highest of them.

    Args:
        metric: The metric's name.
        values: One a round.

    Returns:
        `<metric>`, `<metric>/low` and `<metric>/high`.
    """
    return {metric: median(values), f"{metric}/low": min(values), f"{metric}/high": max(values)}
