"""Which examples each data holder has: drawn at random, alike for all or skewed by label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrostoch._checks import check_count, check_positive
from pyrostoch._manual import see

__all__ = ["partition"]


def partition(
    labels: Tensor, holders: int, *, concentration: float | None = None, least: int = 1, seed: int = 0
) -> list[Tensor]:
    r"""Divide examples among data holders: every example goes to exactly one, and nobody is left without any.

    Without a concentration, the examples are shuffled and dealt out, so that all holders have the same distribution and
    numbers that differ by at most one. With a concentration $\alpha$, labels are skewed: of each class $c$ the holders
    get the shares $p_c \sim \mathrm{Dirichlet}(\alpha, \ldots, \alpha)$, drawn for each class. With a small $\alpha$
    most of a class lies with one holder, with a large one all have the same. A holder left with fewer than `least`
    examples gets single ones from whoever has the most.

    Args:
        labels: The class of each example, one whole number each.
        holders: Number of data holders.
        concentration: The concentration $\alpha$ of the skew; `None` for none.
        least: The fewest examples of a holder.
        seed: Seed of the drawing.

    Returns:
        For each holder the numbers of its examples, in rising order.

    Raises:
        TypeError: The labels are no whole numbers.
        ValueError: A setting does not fit, or there are too few examples.

    Example:
        >>> labels = torch.arange(100) % 10
        >>> [len(part) for part in partition(labels, 3)]
        [34, 33, 33]
        >>> parts = partition(labels, 5, concentration=0.3)
        >>> len(parts), torch.equal(torch.cat(parts).sort().values, torch.arange(100))
        (5, True)

    References:
        Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", 2019, for the Dirichlet shares
        of every class.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"partition labels: expected a tensor of whole numbers, the class of each example, got {got}")
    if labels.dim() != 1:
        raise ValueError(f"partition labels: expected one class for each example, got shape {tuple(labels.shape)}")
    check_count("partition holders", holders)
    check_count("partition least", least)
    check_count("partition seed", seed, 0)
    if concentration is not None:
        check_positive("partition concentration", concentration)
    if holders * least > len(labels):
        raise ValueError(
            f"partition holders: {holders} holders cannot have {least} of {len(labels)} examples each; give fewer "
            f"holders{see('how-to/federated')}"
        )
    random = np.random.default_rng(seed)
    if concentration is None:
        order = random.permutation(len(labels))
        return [_rising(order[number::holders]) for number in range(holders)]
    owners = _skewed(labels.cpu().numpy(), holders, float(concentration), random)
    _fill(owners, holders, least, random)
    return [_rising(np.flatnonzero(owners == number)) for number in range(holders)]


def _skewed(labels: np.ndarray, holders: int, concentration: float, random: np.random.Generator) -> np.ndarray:
    """The holder of each example."""
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(random.dirichlet(np.full(holders, concentration)))
        cuts = np.round(ends[:-1] * len(rows)).astype(np.int64)
        for number, part in enumerate(np.split(rows, cuts)):
            owners[part] = number
    return owners


def _fill(owners: np.ndarray, holders: int, least: int, random: np.random.Generator) -> None:
    """Give those who have too few examples some of those who have the most."""
    counts = np.bincount(owners, minlength=holders)
    while counts.min() < least:
        poor, rich = int(counts.argmin()), int(counts.argmax())
        owners[random.choice(np.flatnonzero(owners == rich))] = poor
        counts[poor] += 1
        counts[rich] -= 1


def _rising(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.sort(rows))
