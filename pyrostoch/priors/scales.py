"""Gaussian priors whose scale is learned from the data: fitted by maximum likelihood, or a random variable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_positive
from pyrostoch.priors.base import Prior
from pyrostoch.priors.groups import GroupedPrior, Groups, positive_scale

__all__ = ["EmpiricalBayes", "GroupScale", "Hierarchical"]


class EmpiricalBayes(GroupedPrior):
    """N(0, s^2) with one s per site or group, fitted together with the guide (type-II maximum likelihood).

    Args:
        scale: Initial value of s.
        groups: Weights that share an s: all of a site by default, `"out"` those of one output neuron or channel, `"in"`
            those of one input, or the number of an axis of the weight. For one of each weight there is `ARD`.

    Raises:
        ValueError: `scale` is not positive, or `groups` is `"weight"`; when a network's parameter gets the prior, that
            it is not known which of its axes counts the groups.
        TypeError: `groups` is of another kind.

    References:
        MacKay, "A practical Bayesian framework for backpropagation networks", 1992; Wu et al., "Deterministic
        variational inference for robust Bayesian neural networks", 2019.

    Example:
        >>> EmpiricalBayes(0.5)
        EmpiricalBayes(scale=0.5)
    """

    def __init__(self, scale: float = 1.0, groups: Groups | None = None) -> None:
        super().__init__(groups)
        if groups == "weight":
            raise ValueError(
                "EmpiricalBayes groups: the prior with a fitted scale for each weight is ARD(); use that one"
            )
        self.log_scale = nn.Parameter(torch.tensor(math.log(check_positive("EmpiricalBayes scale", scale))))

    def for_layer(self, name: str, parameter: Tensor, layers: Sequence[nn.Module]) -> Prior:
        """A copy for one parameter, with a scale for each of its groups.

        Args:
            name: The parameter's name.
            parameter: The parameter.
            layers: The modules that hold it.

        Raises:
            ValueError: It is not known which of its axes counts the groups.
        """
        prior = super().for_layer(name, parameter, layers)
        if isinstance(prior, EmpiricalBayes) and self.groups is not None:
            start = prior.log_scale.detach().expand(prior.scale_shape(name, parameter.shape))
            prior.log_scale = nn.Parameter(start.clone(memory_format=torch.contiguous_format))
        return prior

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """N(0, s^2), expanded to the shape of the weights."""
        return dist.Normal(torch.zeros_like(self.log_scale), self.log_scale.exp()).expand(shape)

    def extra_repr(self) -> str:
        """The current scale, or scales."""
        scale = self.log_scale.detach().exp()
        if self.groups is None:
            return f"scale={scale.item():.6g}"
        low, high = f"{scale.min().item():.6g}", f"{scale.max().item():.6g}"
        return f"scale={low if low == high else f'{low} to {high}'}, groups={self.groups!r}"


class Hierarchical(Prior):
    """N(0, s^2) with one random s per site, which is the Pyro site `<site>_prior_scale`.

    Args:
        scale: Prior of s, a distribution on the positive numbers; half-Cauchy(1) by default.

    Raises:
        ValueError: `scale` is not a distribution on the positive numbers.

    References:
        Gelman, "Prior distributions for variance parameters in hierarchical models", 2006.

    Example:
        >>> Hierarchical(dist.HalfNormal(1.0))
        Hierarchical(HalfNormal(scale=1))
    """

    def __init__(self, scale: Distribution | None = None) -> None:
        super().__init__()
        self.scale = positive_scale("Hierarchical scale", dist.HalfCauchy(1.0) if scale is None else scale)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """N(0, s^2) given a draw of s, expanded to the shape of the weights."""
        scale = pyro.sample(f"{name}_prior_scale", self.scale.distribution(name, torch.Size()))
        return dist.Normal(torch.zeros_like(scale), scale).expand(shape)

    def extra_repr(self) -> str:
        """The prior of the scale."""
        return repr(self.scale)


class GroupScale(GroupedPrior):
    r"""$N(0, s_g^2)$ with a random $s_g$ for each group of weights, such as those of one neuron.

    The scales are the Pyro site `<site>_prior_scale`, in the shape of the weight with 1 for each axis along which a
    scale is shared. With one group for each output, a neuron that the data do not need shrinks as a whole, and
    `guides.prune_groups` removes it; with one for each input, so does an input (automatic relevance determination).
    `Horseshoe` has a global scale besides.

    Args:
        groups: Weights that share a scale: `"out"` those of one output neuron or channel, `"in"` those of one input,
            `"weight"` none, or the number of an axis of the weight.
        scale: Prior of each $s_g$, a distribution on the positive numbers; half-Cauchy(1) by default.

    Raises:
        ValueError: `scale` is not a distribution on the positive numbers; when a network's parameter gets the prior,
            that it is not known which of its axes counts the groups.
        TypeError: `groups` is of another kind.

    References:
        Neal, "Bayesian learning for neural networks", 1996, with a scale for each input; Gelman, "Prior distributions
        for variance parameters in hierarchical models", 2006.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=GroupScale("in", dist.HalfNormal(1.0)),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> model.prior("weight"), tuple(model.sites["weight_prior_scale"].init.shape)
        (GroupScale(HalfNormal(scale=1), groups='in'), (1, 3))
    """

    def __init__(self, groups: Groups = "out", scale: Distribution | None = None) -> None:
        super().__init__(groups)
        self.scale = positive_scale("GroupScale scale", dist.HalfCauchy(1.0) if scale is None else scale)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The normal distribution given a draw of the scales, expanded to the shape of the weights."""
        groups = self.scale_shape(name, shape)
        scales: Any = self.scale.distribution(name, groups)
        scale = pyro.sample(f"{name}_prior_scale", scales.to_event(len(groups)))
        return dist.Normal(torch.zeros_like(scale), scale).expand(shape)

    def extra_repr(self) -> str:
        """The prior of the scales, and the groups."""
        return f"{self.scale!r}, groups={self.groups!r}"
