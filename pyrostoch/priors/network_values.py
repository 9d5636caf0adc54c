"""Priors around the weights that a network has now, such as those of a trained one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pyrostoch._checks import check_positive
from pyrostoch.priors.base import Prior
from pyrostoch.priors.by_name import PriorsByName
from pyrostoch.priors.fixed import Normal
from pyrostoch.priors.rules import clean_name

__all__ = ["around"]

# With scales in proportion to the weights, the least one, in units of the root mean square of a parameter's entries:
# a weight that happens to be 0 would otherwise never move.
_LEAST = 0.01


def around(net: nn.Module, scale: float, *, relative: bool = False) -> PriorsByName:
    r"""Normal priors around the network's own present weights, $w \sim N(w_0, s^2)$ (MOPED).

    With `relative=True`, $s_i = \text{scale} \cdot \max(|w_{0,i}|, m / 100)$, where m is the root mean square of the
    parameter's entries, so that a weight of 0 is not fixed at 0. The values are copied now: the network may be trained
    further.

    Given alone it is for what a single prior is for: no biases, and no parameters of normalization layers. With
    `{"*": priors.around(net, 0.1)}` it is for the biases, too.

    Args:
        net: The network, whose weights are the means; usually the one that the model is made of, already trained.
        scale: The standard deviation of every weight, or of each in units of its size.
        relative: Whether standard deviations are in proportion to the weights.

    Returns:
        A rule for `BayesianModel(prior=)`, alone or in a dictionary.

    Raises:
        TypeError: `net` is no module.
        ValueError: `scale` is not positive. Where a parameter is not finite, has no shape yet or, with `relative`, is 0
            everywhere, the error comes when the model is made, and only for a parameter that the rule is for.

    Example:
        >>> import pyrostoch as ps
        >>> net = nn.Linear(3, 1)
        >>> model = ps.BayesianModel(net, prior=around(net, 0.1), likelihood=ps.likelihoods.Gaussian(), num_data=9)
        >>> bool(torch.equal(model.prior("weight").loc, net.weight)), list(model.sites)
        (True, ['weight'])

    References:
        Krishnan, Subedar, Tickoo, "Specifying weight priors in Bayesian deep neural networks with empirical Bayes",
        2020.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"priors.around: expected a torch.nn.Module, got {type(net).__name__}")
    check_positive("priors.around scale", scale)
    priors: dict[str, Prior | str] = {}
    shapes: dict[str, torch.Size] = {}
    for name, value in net.named_parameters():
        fault = _fault(value, relative)
        shapes[clean_name(name)] = torch.Size() if isinstance(value, UninitializedParameter) else value.shape
        priors[clean_name(name)] = fault or Normal(value, _scales(value.detach(), scale) if relative else scale)
    return PriorsByName(f"network {type(net).__name__}", priors, shapes, all_named=False)


def _fault(value: Tensor, relative: bool) -> str | None:
    """Why there is no prior around a parameter, and what to do; `None` if there is one."""
    if isinstance(value, UninitializedParameter):
        return "has no shape yet: run the network once on an example first"
    if not value.is_floating_point():
        return f"has dtype {value.dtype}; only real floating-point parameters can be random"
    if not bool(torch.isfinite(value).all()):
        return "has values that are not finite: train the network again, or load its weights"
    if relative and not bool((value != 0).any()):
        return "is 0 everywhere, so that relative=True gives no scale; use relative=False, or a prior of its own"
    return None


def _scales(value: Tensor, scale: float) -> Tensor:
    sizes = value.double().abs()
    return scale * sizes.clamp_min(_LEAST * sizes.square().mean().sqrt())
