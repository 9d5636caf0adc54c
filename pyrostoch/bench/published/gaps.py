"""How far moments are from the truth: random networks by depth and width, and covariances of single units."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.bench.case import Own
from pyrostoch.guides import Additive
from pyrostoch.likelihoods import Gaussian
from pyrostoch.model import BayesianModel
from pyrostoch.models import MLP
from pyrostoch.moments import Knot, Piecewise
from pyrostoch.moments.bivariate import normal_cdf
from pyrostoch.prediction.moments_error import moments_error
from pyrostoch.prediction.predict import predict
from pyrostoch.priors import Normal

__all__ = ["random_network", "time_of_moments", "unit_covariances", "wu_ramp", "wu_step"]

_ROUNDS = 5


def time_of_moments(model: Any, guide: Any, x: Tensor, mode: str = "moments") -> float:
    """Time of a pass by moments over that of one stochastic pass: median over rounds in which they take turns.

    Args:
        model: A model.
        guide: Its guide.
        x: Inputs.
        mode: The way to propagate moments.
    """
    taken: dict[str, list[float]] = {"mc:1": [], mode: []}
    for _ in range(_ROUNDS + 1):
        for name, seconds in taken.items():
            start = time.perf_counter()
            predict(model, guide, x, mode=name).total.sum().item()  # a value read: the device is done
            seconds.append(time.perf_counter() - start)
    # The first round warms up.
    return median(ours / one for ours, one in zip(taken[mode][1:], taken["mc:1"][1:], strict=True))


def random_network(depth: int, width: int, full: bool) -> Callable[[Own], Mapping[str, float]]:
    """A trial on a ReLU network whose first layer is random: error of the output's moments against Monte Carlo.

    Args:
        depth: Hidden layers.
        width: Their width.
        full: Whether covariances are carried.
    """

    def trial(own: Own) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(own.seed)
            net = MLP(width, (width,) * depth, 10)
            for layer in net.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, 0.0, (2.0 / layer.in_features) ** 0.5)
            # The first layer's weights are random, half of their second moment is variance; what follows is fixed, and
            # makes what it mixes correlated.
            with torch.no_grad():
                net.fc1.weight.mul_(0.5**0.5)  # type: ignore[union-attr, operator]
            model = BayesianModel(net, prior={"fc1.weight": Normal()}, likelihood=Gaussian(), num_data=1)
            guide = Additive(model, init_scale=width**-0.5)
            mode = "moments:full" if full else "moments"
            draws = 64 * own.recipe.epochs
            found = moments_error(model, guide, torch.randn(20, width), mode=mode, num_samples=draws, seed=own.seed)
            cost = time_of_moments(model, guide, torch.randn(200, width), mode)
        last = found.layers[-1]
        # Monte Carlo's squared error is one in K; below its own noise no number can be named.
        known = last.mean > 2.0 * last.mean_stderr
        return {
            "gap/variance": last.variance,
            "gap/mean": math.sqrt(max(last.mean, 0.0)),
            "gap/draws": 1.0 / last.mean if known else math.nan,
            "time/moments": cost,
        }

    return trial


def unit_covariances(kind: str) -> Callable[[Own], Mapping[str, float]]:
    """A trial on pairs of units with random inputs: error of their covariance, exact and by approximations.

    Args:
        kind: `"threshold"` or `"relu"`.
    """

    def trial(own: Own) -> dict[str, float]:
        generator = torch.Generator().manual_seed(own.seed)
        count = 2000
        a, b = (5.0 * torch.rand(count, generator=generator, dtype=torch.float64) - 2.5 for _ in range(2))
        rho = 0.98 * (2.0 * torch.rand(count, generator=generator, dtype=torch.float64) - 1.0)
        one = torch.ones_like(a)
        unit = Piecewise((Knot(jump=1.0) if kind == "threshold" else Knot(kink=1.0),))
        exact = unit.covariance((a, b), (one, one), rho)
        truth = _by_conditioning(unit, a, b, rho)
        wu = wu_step(a, b, rho) if kind == "threshold" else wu_ramp(a, b, rho)
        linear = unit.slope(a, one) * unit.slope(b, one) * rho
        return {
            "covariance/exact": (exact - truth).abs().max().item(),
            "covariance/wu": ((wu - truth) / truth).abs().median().item(),
            "covariance/linear": ((linear - truth) / truth).abs().median().item(),
        }

    return trial


def _by_conditioning(unit: Piecewise, a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """The covariance in another way: E[f(x) E[f(y) | x]] by quadrature over x above its knot."""
    q = (1.0 - rho.square()).sqrt()
    total = torch.zeros_like(a)
    nodes, weights = (torch.tensor(part) for part in _legendre(200))
    # x = a + z is above 0 for z above -a; below, f(x) is 0.
    low = (-a).clamp(-9.0, 9.0)
    for node, weight in zip(nodes, weights, strict=True):
        z = low + (9.0 - low) * node
        value, _ = unit.mean_variance(a + z, torch.zeros_like(a))
        given, _ = unit.mean_variance(b + rho * z, q.square())
        total = total + weight * (9.0 - low) * value * given * torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    one = torch.ones_like(a)
    return total - unit.mean_variance(a, one)[0] * unit.mean_variance(b, one)[0]


def _legendre(count: int) -> tuple[list[float], list[float]]:
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(count)
    return list(0.5 * (nodes + 1.0)), list(0.5 * weights)


def wu_step(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    r"""The closed approximation of two thresholds' covariance: $\log I_0$ to second order in a and b.

    Args:
        a: First mean in deviations.
        b: Second mean.
        rho: Correlation, not 0.

    References:
        Wu et al., "Deterministic variational inference for robust Bayesian neural networks", 2019.
    """
    angle, rest = torch.asin(rho), (1.0 - rho.square()).sqrt()
    square = rho / (2.0 * angle * rest)
    mixed = (1.0 - rest) / (angle * rest)
    return angle / (2.0 * math.pi) * torch.exp(-square * (a.square() + b.square()) + mixed * a * b)


def wu_ramp(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    r"""The closed approximation of two ReLUs' covariance, unit variances: $\log I_1$ to second order in a and b.

    Args:
        a: First mean in deviations.
        b: Second mean.
        rho: Correlation, not 0.

    References:
        Wu et al. 2019.
    """
    angle, rest = torch.asin(rho), (1.0 - rho.square()).sqrt()
    size = rho * angle + rest - 1.0
    exponent = -(1.0 - rest) / (2.0 * size) * (a.square() + b.square()) + (angle - rho) / size * a * b
    return rho * normal_cdf(a) * normal_cdf(b) + size / (2.0 * math.pi) * torch.exp(exponent)
