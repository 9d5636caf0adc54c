"""The horseshoe prior, plain and regularized, with a local scale for each group of weights."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch.distributions import Distribution

from pyrostoch._checks import check_positive
from pyrostoch.priors.groups import GroupedPrior, Groups, positive_scale

__all__ = ["Horseshoe"]


class Horseshoe(GroupedPrior):
    r"""A normal prior whose scale has a global and, for each group of weights, a local factor, both half-Cauchy.

    $$ w_{gj} \mid \tau, \lambda_g \sim N(0, \tau^2 \tilde\lambda_g^2), \qquad \tau \sim C^+(0, \tau_0), \qquad
       \lambda_g \sim C^+(0, 1), $$

    with $\tilde\lambda_g = \lambda_g$, or with a slab of width c $\tilde\lambda_g^2 = c^2 \lambda_g^2 / (c^2 + \tau^2
    \lambda_g^2)$, which bounds every scale by c: the regularized horseshoe. The density of $\lambda_g$ at 0 is
    positive, so that groups can be shrunk to nothing, and its tail is heavy, so that others are hardly shrunk. With
    groups of whole neurons, `guides.prune_groups` removes those with a small scale.

    $\tau$ is the Pyro site `<site>_prior_scale`, and $\lambda$ the site `<site>_prior_local`, in the shape of the
    weight with 1 for each axis along which it is shared. Guides of this library give both log-normal distributions. The
    KL of the weights is in closed form given a draw of the scales. The KL of a log-normal to a half-Cauchy distribution
    has none, and is estimated from the same draw, without bias; its gradient has a small variance, since $\log C^+$ is
    smooth in $\log\lambda$. Decomposing each half-Cauchy into two inverse-gamma variables would make that KL exact, but
    factorized posteriors of the pairs give a looser bound.

    Args:
        global_scale: $\tau_0$, or the prior of $\tau$, a distribution on the positive numbers. A small number says that
            most groups do not matter.
        local: Prior of $\lambda_g$, a distribution on the positive numbers; $C^+(0, 1)$ by default.
        slab: Width c of the slab; `None` for the plain horseshoe.
        groups: Weights that share a $\lambda_g$: `"out"` those of one output neuron or channel, `"in"` those of one
            input, `"weight"` none, or the number of an axis of the weight.

    Raises:
        ValueError: A scale is not positive, or a prior not one of positive numbers; when a network's parameter gets the
            prior, that it is not known which of its axes counts the groups.
        TypeError: `groups` is of another kind.

    References:
        Carvalho, Polson, Scott, "The horseshoe estimator for sparse signals", 2010; Louizos, Ullrich, Welling,
        "Bayesian compression for deep learning", 2017; Ghosh, Yao, Doshi-Velez, "Structured variational learning of
        Bayesian neural networks with horseshoe priors", 2018, both with inverse-gamma pairs; Piironen, Vehtari,
        "Sparsity information and regularization in the horseshoe and other shrinkage priors", 2017, on the slab.

    Example:
        >>> import pyrostoch as ps
        >>> from torch import nn
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=Horseshoe(0.1, groups="in"),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> {name: tuple(site.init.shape) for name, site in model.sites.items()}
        {'weight_prior_scale': (), 'weight_prior_local': (1, 3), 'weight': (2, 3)}
    """

    def __init__(
        self,
        global_scale: float | Distribution = 1.0,
        local: Distribution | None = None,
        slab: float | None = None,
        groups: Groups = "out",
    ) -> None:
        super().__init__(groups)
        of_tau: Any = global_scale
        if not isinstance(global_scale, Distribution):
            of_tau = _half_cauchy(check_positive("Horseshoe global_scale", global_scale))
        self.global_scale = positive_scale("Horseshoe global_scale", of_tau)
        self.local = positive_scale("Horseshoe local", _half_cauchy(1.0) if local is None else local)
        self.slab = None if slab is None else check_positive("Horseshoe slab", slab)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The normal distribution given a draw of the scales, expanded to the shape of the weights."""
        groups = self.scale_shape(name, shape)
        scale = pyro.sample(f"{name}_prior_scale", self.global_scale.distribution(name, torch.Size()))
        local: Any = self.local.distribution(name, groups)
        scale = scale * pyro.sample(f"{name}_prior_local", local.to_event(len(groups)))
        if self.slab is not None:
            scale = scale * self.slab / torch.hypot(scale, torch.full_like(scale, self.slab))
        return dist.Normal(torch.zeros_like(scale), scale).expand(shape)

    def extra_repr(self) -> str:
        """The priors of the scales, the slab and the groups."""
        slab = "" if self.slab is None else f", slab={self.slab:g}"
        return f"global_scale={self.global_scale!r}, local={self.local!r}{slab}, groups={self.groups!r}"


def _half_cauchy(scale: float) -> Distribution:
    # Double precision here; the copy for a network's parameter takes that parameter's dtype.
    half_cauchy: Distribution = dist.HalfCauchy(torch.tensor(scale, dtype=torch.float64))
    return half_cauchy
