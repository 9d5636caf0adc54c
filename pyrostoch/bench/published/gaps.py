"""Trials of the bench `moments`: errors of moments in random networks, and covariances of pairs of units."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor, nn

from pyrostoch.bench.case import TrialContext
from pyrostoch.guides import Additive
from pyrostoch.likelihoods import Gaussian
from pyrostoch.model import BayesianModel
from pyrostoch.models import MLP
from pyrostoch.moments import Knot, Piecewise
from pyrostoch.moments.bivariate import normal_cdf
from pyrostoch.prediction.moments_error import moments_error
from pyrostoch.prediction.predict import predict
from pyrostoch.priors import Normal
from pyrostoch.protocols import Guide, Model

__all__ = ["random_network", "moments_time_ratio", "unit_covariances", "wu_ramp", "wu_step"]

# Rounds of timing.
_ROUNDS = 5


def moments_time_ratio(model: Model, guide: Guide, x: Tensor, mode: str = "moments") -> float:
    """Time of a pass by moments divided by the time of a pass with one sample, the median over alternating rounds.

    Args:
        model: A model.
        guide: Its guide.
        x: Inputs.
        mode: How moments are propagated, `"moments"` or `"moments:full"`.
    """
    times: dict[str, list[float]] = {"mc:1": [], mode: []}
    for _ in range(_ROUNDS + 1):
        for name, seconds in times.items():
            start = time.perf_counter()
            predict(model, guide, x, mode=name)  # looks for NaN, for which it waits for the device
            seconds.append(time.perf_counter() - start)
    # Without the first round, which warms up.
    return median(moments / sample for moments, sample in zip(times[mode][1:], times["mc:1"][1:], strict=True))


def random_network(depth: int, width: int, full: bool) -> Callable[[TrialContext], Mapping[str, float]]:
    """Make a trial: errors of the output's moments against Monte Carlo, in a ReLU network with a random first layer.

    Args:
        depth: Number of hidden layers.
        width: Their width.
        full: Whether covariances are propagated.

    Returns:
        The trial; `gap/draws` is NaN if the error of the mean is not above the noise of Monte Carlo.
    """

    def trial(context: TrialContext) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(context.seed)
            net = MLP(width, (width,) * depth, 10)
            for layer in net.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, 0.0, (2.0 / layer.in_features) ** 0.5)
            # The weights of the first layer are random: half of their second moment is variance. The layers after it
            # are fixed; they mix its outputs, which makes their inputs correlated.
            with torch.no_grad():
                net.fc1.weight.mul_(0.5**0.5)  # type: ignore[union-attr, operator]
            model = BayesianModel(net, prior={"fc1.weight": Normal()}, likelihood=Gaussian(), num_data=1)
            guide = Additive(model, init_scale=width**-0.5)
            mode = "moments:full" if full else "moments"
            draws = 64 * context.recipe.epochs
            x = torch.randn(20, width)
            errors = moments_error(model, guide, x, mode=mode, num_samples=draws, seed=context.seed)
            time_ratio = moments_time_ratio(model, guide, torch.randn(200, width), mode)
        last = errors.layers[-1]
        # With K draws, Monte Carlo's squared error of the mean is 1/K of the variance. So the number of draws with an
        # equal error is known only if the error of the moments is above the noise of its estimate.
        significant = last.mean > 2.0 * last.mean_stderr
        return {
            "gap/variance": last.variance,
            "gap/mean": math.sqrt(max(last.mean, 0.0)),
            "gap/draws": 1.0 / last.mean if significant else math.nan,
            "time/moments": time_ratio,
        }

    return trial


def unit_covariances(kind: str) -> Callable[[TrialContext], Mapping[str, float]]:
    """Make a trial: errors of the covariance of two units, by pyrostoch's formula and by two approximations.

    Args:
        kind: `"threshold"` or `"relu"`.
    """

    def trial(context: TrialContext) -> dict[str, float]:
        generator = torch.Generator().manual_seed(context.seed)
        count = 2000
        a, b = (5.0 * torch.rand(count, generator=generator, dtype=torch.float64) - 2.5 for _ in range(2))
        rho = 0.98 * (2.0 * torch.rand(count, generator=generator, dtype=torch.float64) - 1.0)
        variance = torch.ones_like(a)
        unit = Piecewise((Knot(jump=1.0) if kind == "threshold" else Knot(kink=1.0),))
        exact = unit.covariance((a, b), (variance, variance), rho)
        reference = _covariance_by_quadrature(unit, a, b, rho)
        wu = wu_step(a, b, rho) if kind == "threshold" else wu_ramp(a, b, rho)
        linear = unit.slope(a, variance) * unit.slope(b, variance) * rho
        return {
            "covariance/exact": (exact - reference).abs().max().item(),
            "covariance/wu": ((wu - reference) / reference).abs().median().item(),
            "covariance/linear": ((linear - reference) / reference).abs().median().item(),
        }

    return trial


def _covariance_by_quadrature(unit: Piecewise, a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """The covariance as E[f(x) E[f(y) | x]] - E f(x) E f(y), by quadrature over x above its knot."""
    q = (1.0 - rho.square()).sqrt()
    total = torch.zeros_like(a)
    nodes, weights = (torch.tensor(part) for part in _legendre(200))
    # x = a + z is above the knot at 0 for z > -a; below it f(x) is 0.
    low = (-a).clamp(-9.0, 9.0)
    for node, weight in zip(nodes, weights, strict=True):
        z = low + (9.0 - low) * node
        value, _ = unit.mean_variance(a + z, torch.zeros_like(a))
        given, _ = unit.mean_variance(b + rho * z, q.square())
        total = total + weight * (9.0 - low) * value * given * torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    one = torch.ones_like(a)
    return total - unit.mean_variance(a, one)[0] * unit.mean_variance(b, one)[0]


def _legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(count)
    return list(0.5 * (nodes + 1.0)), list(0.5 * weights)


def wu_step(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    r"""A closed approximation of the covariance of two threshold units: $\log I_0$ to second order in a and b.

    Args:
        a: Mean of the first input, in standard deviations.
        b: Mean of the second input, in standard deviations.
        rho: Correlation, not 0.

    References:
        Wu et al., "Deterministic variational inference for robust Bayesian neural networks", 2019.
    """
    angle, rest = torch.asin(rho), (1.0 - rho.square()).sqrt()
    square = rho / (2.0 * angle * rest)
    mixed = (1.0 - rest) / (angle * rest)
    return angle / (2.0 * math.pi) * torch.exp(-square * (a.square() + b.square()) + mixed * a * b)


def wu_ramp(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    r"""A closed approximation of the covariance of two ReLUs, inputs of variance 1: $\log I_1$ to second order in a, b.

    Args:
        a: Mean of the first input, in standard deviations.
        b: Mean of the second input, in standard deviations.
        rho: Correlation, not 0.

    References:
        Wu et al., as in `wu_step`.
    """
    angle, rest = torch.asin(rho), (1.0 - rho.square()).sqrt()
    size = rho * angle + rest - 1.0
    exponent = -(1.0 - rest) / (2.0 * size) * (a.square() + b.square()) + (angle - rho) / size * a * b
    return rho * normal_cdf(a) * normal_cdf(b) + size / (2.0 * math.pi) * torch.exp(exponent)
