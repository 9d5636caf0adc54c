"""Targets outside the support of their distribution: refused by name, since they would train to nonsense."""

from __future__ import annotations

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrostoch._manual import see

__all__ = ["check_support"]

_TEXTS = {
    constraints.boolean: "targets 0 or 1",
    constraints.nonnegative_integer: "counts 0, 1, 2, ...",
    constraints.positive: "positive targets",
    constraints.nonnegative: "targets from 0 up",
    constraints.unit_interval: "targets from 0 to 1",
    constraints.simplex: "targets that are probabilities, from 0 up with the sum 1",
}


def check_support(name: str, distribution: Distribution, target: Tensor) -> None:
    """Raise a `ValueError` for targets outside a distribution's support, except where a mask leaves them out.

    A support that depends on the distribution's own parameters is not checked: another draw of the weights may give
    another one. Nor are the targets of another batch than that of the distribution, if it has a mask.

    Args:
        name: Name of the likelihood, for the message.
        distribution: The distribution of the observations.
        target: The targets, of its shape.

    Raises:
        ValueError: There are targets outside.

    Example:
        >>> import pyro.distributions as dist
        >>> check_support("function", dist.Poisson(torch.ones(2)), torch.tensor([1.0, 0.5]))
        Traceback (most recent call last):
        ...
        ValueError: likelihood function: expected counts 0, 1, 2, ..., got 1 others, among them 0.5
    """
    observed: Tensor | None = None
    while isinstance(distribution, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(distribution, MaskedDistribution):
            mask = torch.as_tensor(distribution._mask, device=target.device)
            observed = mask if observed is None else _align(observed, mask) & _align(mask, observed)
        distribution = distribution.base_dist
    support = getattr(type(distribution), "support", None)
    if not isinstance(support, constraints.Constraint) or constraints.is_dependent(support):
        return
    if support is constraints.simplex:  # torch's own bound of 1e-6 is less than the rounding of many classes
        inside = (target >= 0).all(-1) & ((target.sum(-1) - 1).abs() < 1e-3)
    else:
        inside = support.check(target)
    if observed is not None and observed.dim() and len(observed) != len(target):
        return  # the mask of one batch does not say which targets of the whole data set are observed
    if observed is not None:
        inside = inside | ~_align(observed, inside)
    if bool(inside.all()):
        return
    wrong = target[~inside]
    expected = _TEXTS.get(support, f"targets in the support {support}")
    advice = see("how-to/write_a_likelihood") if support not in _TEXTS else ""
    raise ValueError(
        f"likelihood {name}: expected {expected}, got {len(wrong)} others, among them {_shown(wrong[0])}{advice}"
    )


def _align(mask: Tensor, other: Tensor) -> Tensor:
    """A mask of the first axes, with axes of size 1 for the further ones of another tensor."""
    return mask.reshape(mask.shape + (1,) * (other.dim() - mask.dim()))


def _shown(value: Tensor) -> str:
    return f"{value.item():g}" if value.dim() == 0 else str(value.tolist())
