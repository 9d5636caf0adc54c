"""Every guide, a line each; the rules of `test_contract_guides.py` run over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_autoregressive, planar
from torch import Tensor

from pyrostoch import guides, priors


@dataclass(frozen=True)
class GuideMember:
    """A guide, and a prior under which its KL is finite."""

    make: Callable[..., Any]
    prior: Callable[[], priors.Prior] = partial(priors.Normal, 0.1, 0.8)
    local: bool = True  # local reparameterization replaces its weights; False for a distribution it has no rule for
    closed_form: bool = True  # of the KL to that prior
    by_convention: bool = False  # the KL is no expectation of log densities: a convention, or that of hidden counts
    constants: bool = True  # entries that torch holds constant can be mixed with its own; False where it refuses them
    straight_through: bool = False  # a shared draw's gradient is that of its mean, not of the draw
    log_prior: float | None = None  # of one weight, where the prior has no density of its own
    amortised: bool = False  # it draws random activations too: it is called with inputs, and copied with its model
    moments: bool = True  # its distributions have a mean and a variance
    collected: bool = False  # its posterior is made of iterates, and has no gradient
    source: bool = True  # its docstring names a publication


def _mixed(model: Any) -> guides.PerSite:
    return guides.PerSite(model, {"*": partial(guides.Additive, init_scale=0.3), "0.*": guides.VarianceOnly})


def _amortised(model: Any) -> guides.Amortised:
    return guides.Amortised(model, weights=guides.Additive(model, init_scale=0.3))


def _autoregressive(size: int) -> Any:
    """Pyro's network is for vectors of at least two entries; a single weight stays normal."""
    return affine_autoregressive(size) if size > 1 else []


def _last_layer(model: Any) -> Any:
    """A guide whose last matrix is a Bayesian last layer."""
    matrices = [name for name, site in model.sites.items() if site.init.dim() == 2]
    last = partial(guides.LastLayer, init_scale=0.3)
    others = [name for name in model.sites if name != matrices[-1]]
    rules = {"*": partial(guides.Additive, init_scale=0.3), matrices[-1]: last}
    return guides.PerSite(model, rules) if others else last(model)


def _swag(model: Any) -> guides.Swag:
    """SWAG after a few iterates."""
    guide = guides.Swag(model, rank=2)
    with torch.no_grad():
        for _ in range(5):
            for parameter in guide.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            guide.collect()
    return guide


def _laplace_layer(model: Any) -> Any:
    """A guide whose last matrix has one covariance."""
    matrices = [name for name, site in model.sites.items() if site.init.dim() == 2]
    last = partial(guides.Laplace, structure="last_layer", init_scale=0.3)
    others = [name for name in model.sites if name != matrices[-1]]
    rules = {"*": partial(guides.Additive, init_scale=0.3), matrices[-1]: last}
    return guides.PerSite(model, rules) if others else last(model)


class LaplaceGuide(guides.Guide):
    """A guide of a user's own, as the documentation of `Guide` writes it."""

    def initial_parameters(self, site: Any) -> dict[str, Tensor]:
        return {"loc": site.init, "log_scale": torch.full_like(site.init, -1.0)}

    def distribution(self, site: str, **parameters: Tensor) -> Any:
        return dist.Laplace(parameters["loc"], parameters["log_scale"].exp())


GUIDES = {
    "Guide": GuideMember(LaplaceGuide, local=False, source=False),
    "Guide, without a closed form": GuideMember(
        LaplaceGuide, partial(priors.StudentT, 4.0), local=False, closed_form=False, source=False
    ),
    "Additive": GuideMember(partial(guides.Additive, init_scale=0.3)),
    "WeightwiseAlpha": GuideMember(partial(guides.WeightwiseAlpha, init_log_alpha=-1.0)),
    "NeuronwiseAlpha": GuideMember(partial(guides.NeuronwiseAlpha, init_log_alpha=-1.0)),
    "LayerwiseAlpha": GuideMember(partial(guides.LayerwiseAlpha, init_log_alpha=-1.0)),
    "LayerwiseAlpha, log-uniform": GuideMember(partial(guides.LayerwiseAlpha, init_log_alpha=-1.0), priors.LogUniform),
    "LowRank": GuideMember(partial(guides.LowRank, rank=2, init_scale=0.3), constants=False),
    "LowRank, by site": GuideMember(partial(guides.LowRank, rank=1, scope="site", init_scale=0.3), constants=False),
    "MatrixNormal": GuideMember(partial(guides.MatrixNormal, init_scale=0.3), constants=False),
    "FullCovariance": GuideMember(partial(guides.FullCovariance, init_scale=0.3), constants=False),
    "RankOne": GuideMember(guides.RankOne, priors.RankOne, by_convention=True, constants=False),
    "RankOne, components": GuideMember(
        partial(guides.RankOne, components=3), priors.RankOne, by_convention=True, constants=False
    ),
    "Flow": GuideMember(
        partial(guides.Flow, transform=_autoregressive), closed_form=False, constants=False, moments=False
    ),
    "Flow, planar": GuideMember(
        partial(guides.Flow, transform=planar), closed_form=False, constants=False, moments=False
    ),
    "LastLayer": GuideMember(_last_layer),
    "Delta": GuideMember(guides.Delta, local=False, closed_form=False, by_convention=True),
    "Swag": GuideMember(_swag, constants=False, collected=True),
    "Laplace": GuideMember(partial(guides.Laplace, init_scale=0.3)),
    "Laplace, last layer": GuideMember(_laplace_layer),
    "Laplace, kronecker": GuideMember(partial(guides.Laplace, structure="kronecker", init_scale=0.3), constants=False),
    "Laplace, full": GuideMember(partial(guides.Laplace, structure="full", init_scale=0.3), constants=False),
    "VarianceOnly": GuideMember(guides.VarianceOnly),
    "VarianceOnly, uniform": GuideMember(partial(guides.VarianceOnly, family="uniform")),
    "VarianceOnly, bernoulli": GuideMember(
        partial(guides.VarianceOnly, family="bernoulli"), priors.LogUniform, by_convention=True
    ),
    "CategoricalWeights": GuideMember(guides.CategoricalWeights, priors.Grid, log_prior=-math.log(3.0)),
    "BinomialWeights": GuideMember(guides.BinomialWeights, priors.Grid, log_prior=-math.log(9.0)),
    "BinomialWeights, binomial": GuideMember(
        partial(guides.BinomialWeights, n=1), priors.SymmetricBinomial, log_prior=-math.log(2.0)
    ),
    "MultinomialWeights": GuideMember(
        guides.MultinomialWeights,
        priors.UniformMultinomial,
        local=False,
        by_convention=True,
        constants=False,
        straight_through=True,
    ),
    "PerSite": GuideMember(_mixed, source=False),
    "Amortised": GuideMember(_amortised, amortised=True),
}
