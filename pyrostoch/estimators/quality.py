"""The quality of a gradient estimator: bias, variance and direction, measured against the exact gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count
from pyrostoch._seeds import forked
from pyrostoch.estimators.enumeration import enumerated
from pyrostoch.estimators.states import Loss, States
from pyrostoch.estimators.surrogate import surrogate
from pyrostoch.layers import KState
from pyrostoch.records import Record, table

__all__ = ["GradientQuality", "gradient_quality"]

# Estimates are divided into this many groups, for the bias and its standard error.
_GROUPS = 8


@dataclass(frozen=True)
class GradientQuality(Record):
    """An estimator's gradients compared with the exact gradient.

    Args:
        estimator: Name of the estimator.
        samples: Number of draws per estimate.
        repeats: Number of estimates.
        bias: Norm of the bias over the norm of the exact gradient. The contribution of the estimates' noise to the
            squared norm is removed; 0 where this makes it negative.
        bias_stderr: Standard error of the squared bias, relative to the squared norm of the exact gradient.
        deviation: Square root of the total variance of one estimate, over the norm of the exact gradient.
        cosine: Mean cosine similarity of an estimate and the exact gradient.
    """

    estimator: str
    samples: int
    repeats: int
    bias: float
    bias_stderr: float
    deviation: float
    cosine: float

    def __str__(self) -> str:
        """The numbers as a table of one row."""
        headings = ("estimator", "draws", "estimates", "bias / exact", "deviation / exact", "mean cosine")
        return table(headings, [(self.estimator, self.samples, self.repeats, self.bias, self.deviation, self.cosine)])


def gradient_quality(
    net: nn.Module,
    x: Tensor,
    loss: Loss,
    *,
    estimator: str = "straight-through",
    samples: int = 1,
    repeats: int = 400,
    seed: int = 0,
) -> GradientQuality:
    """Compare an estimator's gradients with the exact gradient, which is found by enumeration.

    The gradient is taken with respect to the parameters that influence some neuron's state. `"log-mean-exp"` is
    compared with the exact gradient of its limit for many draws, the negative log of the mean likelihood.

    Args:
        net: A network small enough for `enumerated`.
        x: Inputs, (B, ...).
        loss: Loss of each example, (B,), from the network's output, (B, ...).
        estimator: Name of the estimator; see `surrogate`.
        samples: Number of draws per estimate.
        repeats: Number of estimates, a multiple of 8.
        seed: Seed of the draws; torch's random state is restored afterwards.

    Returns:
        Bias, deviation and cosine similarity.

    Raises:
        ValueError: `repeats` is not a positive multiple of 8, or the network has too many configurations.

    Example:
        >>> from pyrostoch.layers import Binary
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), Binary(noise=1.0), nn.Linear(3, 1))
        >>> quality = gradient_quality(net, torch.randn(4, 2), lambda out: out.square().sum(1), repeats=80)
        >>> quality.bias > 0.0 and 0.5 < quality.cosine < 1.0
        True
    """
    check_count("gradient_quality repeats", repeats)
    if repeats % _GROUPS:
        raise ValueError(f"gradient_quality: expected repeats to be a multiple of {_GROUPS}, got {repeats}")
    parameters = _parameters_of_states(net, x)

    def gradient(value: Tensor) -> Tensor:
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        return torch.cat([part.detach().double().flatten() for part in parts])

    exact = gradient(enumerated(net, x, loss, log_mean_exp=estimator == "log-mean-exp"))
    norm = exact.norm()
    with forked(x.device, seed):
        drawn = torch.stack(
            [gradient(surrogate(net, x, loss, estimator=estimator, samples=samples)) for _ in range(repeats)]
        )
    # The product of the mean errors of two independent groups is an unbiased estimate of the squared bias. Its standard
    # error is that of the jackknife over groups.
    errors = (drawn - exact).unflatten(0, (_GROUPS, -1)).mean(1)
    products = (errors @ errors.T) / norm.square()
    squared_bias = products[~torch.eye(_GROUPS, dtype=torch.bool)].mean()
    jackknife = torch.stack([_squared_bias_without(products, group) for group in range(_GROUPS)])
    return GradientQuality(
        estimator,
        samples,
        repeats,
        squared_bias.clamp_min(0.0).sqrt().item(),
        (jackknife.std(correction=0) * (_GROUPS - 1) ** 0.5).item(),
        (drawn.var(0).sum().sqrt() / norm).item(),
        torch.cosine_similarity(drawn, exact.unsqueeze(0)).mean().item(),
    )


class _Inputs(States):
    """Records the input of each layer of neurons; all states are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def states(self, layer: KState, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return torch.zeros_like(x)


def _parameters_of_states(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The parameters that influence the input of some neuron, or its thresholds and noise."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with _Inputs() as recorded:
        net(x)
    total = torch.as_tensor(sum(each.sum() for each in recorded.inputs))
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    of_neurons = {id(p) for layer in net.modules() if isinstance(layer, KState) for p in layer.parameters()}
    return [p for p, g in zip(parameters, gradients, strict=True) if g is not None or id(p) in of_neurons]


def _squared_bias_without(products: Tensor, group: int) -> Tensor:
    """The mean product of two different groups, over all groups but one."""
    rest = [index for index in range(len(products)) if index != group]
    kept = products[rest][:, rest]
    return (kept.sum() - kept.diagonal().sum()) / (len(rest) * (len(rest) - 1))
