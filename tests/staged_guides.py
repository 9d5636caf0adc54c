"""The guides whose compiled steps are compared with eager ones, with a prior under which their KL is finite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pyro.distributions.transforms import affine_autoregressive

import pyrostoch as ps

NORMAL, LOG_UNIFORM = ps.priors.Normal(0.0, 0.7), ps.priors.LogUniform()
FLOWS = {"*": ps.guides.Additive, "0.weight": functools.partial(ps.guides.Flow, transform=affine_autoregressive)}
LAST = {"*": ps.guides.Additive, "5.weight": ps.guides.LastLayer}
HALF = {"*": ps.guides.Additive, "5.weight": functools.partial(ps.guides.VarianceOnly, family="uniform")}
GUIDES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "additive": (ps.guides.Additive, NORMAL),
    "weightwise": (ps.guides.WeightwiseAlpha, LOG_UNIFORM),
    "neuronwise": (ps.guides.NeuronwiseAlpha, LOG_UNIFORM),
    "layerwise": (ps.guides.LayerwiseAlpha, LOG_UNIFORM),
    "gaussian": (ps.guides.VarianceOnly, NORMAL),
    "bernoulli": (functools.partial(ps.guides.VarianceOnly, family="bernoulli"), LOG_UNIFORM),
    "uniform": (functools.partial(ps.guides.VarianceOnly, family="uniform"), LOG_UNIFORM),
    "per-site": (lambda m: ps.guides.PerSite(m, HALF), LOG_UNIFORM),
    "low rank": (ps.guides.LowRank, NORMAL),
    "low rank, by site": (functools.partial(ps.guides.LowRank, scope="site"), NORMAL),
    "matrix": (ps.guides.MatrixNormal, NORMAL),
    "full": (ps.guides.FullCovariance, NORMAL),
    "rank one": (functools.partial(ps.guides.RankOne, components=2), ps.priors.RankOne()),
    "flow": (lambda m: ps.guides.PerSite(m, FLOWS), NORMAL),
    "last layer": (lambda m: ps.guides.PerSite(m, LAST), NORMAL),
}
