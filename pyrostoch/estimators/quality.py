"""How good an estimator's gradients are: bias, variance and direction, against the exact gradient."""

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

_GROUPS = 8


@dataclass(frozen=True)
class GradientQuality(Record):
    """Gradients of one estimator beside the exact one.

    Args:
        estimator: Its name.
        samples: Draws an estimate.
        repeats: Estimates that were looked at.
        bias: Norm of the bias over the norm of the exact gradient, the noise of the estimates taken off; 0 where the
            noise is larger.
        bias_stderr: Standard error of the squared bias, relative to the squared norm.
        deviation: Root of the total variance of one estimate over the norm of the exact gradient.
        cosine: Mean cosine of an estimate with the exact gradient.
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
    """Compare an estimator's gradients with the exact one by enumeration.

    `"log-mean-exp"` is compared with the exact gradient of the loss it aims at for very many draws, the negative log
    of the mean probability.

    Args:
        net: A small network.
        x: Inputs.
        loss: Loss of each example.
        estimator: Name of the estimator.
        samples: Draws an estimate.
        repeats: Estimates, a multiple of 8.
        seed: Seed of the draws; torch's random state is left as it was.

    Returns:
        The quality.

    Example:
        >>> from pyrostoch.layers import Binary
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), Binary(noise=1.0), nn.Linear(3, 1))
        >>> found = gradient_quality(net, torch.randn(4, 2), lambda out: out.square().sum(1), repeats=80)
        >>> found.bias > 0.0 and 0.5 < found.cosine < 1.0
        True
    """
    check_count("gradient_quality repeats", repeats)
    if repeats % _GROUPS:
        raise ValueError(f"gradient_quality: expected repeats to be a multiple of {_GROUPS}, got {repeats}")
    parameters = _behind_neurons(net, x)

    def gradient(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        return torch.cat([part.detach().double().flatten() for part in parts])

    exact = gradient(enumerated(net, x, loss, log_mean_exp=estimator == "log-mean-exp"))
    size = exact.norm()
    with forked(x.device, seed):
        drawn = torch.stack(
            [gradient(surrogate(net, x, loss, estimator=estimator, samples=samples)) for _ in range(repeats)]
        )
    # Products of independent groups' mean errors have no noise of their own.
    errors = (drawn - exact).unflatten(0, (_GROUPS, -1)).mean(1)
    products = (errors @ errors.T) / size.square()
    off = products[~torch.eye(_GROUPS, dtype=torch.bool)]
    without = torch.stack([_without(products, group) for group in range(_GROUPS)])
    return GradientQuality(
        estimator,
        samples,
        repeats,
        off.mean().clamp_min(0.0).sqrt().item(),
        (without.std(correction=0) * (_GROUPS - 1) ** 0.5).item(),
        (drawn.var(0).sum().sqrt() / size).item(),
        torch.cosine_similarity(drawn, exact.unsqueeze(0)).mean().item(),
    )


class _Inputs(States):
    """What each layer of neurons is given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def states(self, layer: KState, x: Tensor) -> Tensor:
        self.found.append(x)
        return torch.zeros_like(x)


def _behind_neurons(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The parameters that act on the input of some neuron, or on its thresholds and noise."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with _Inputs() as inputs:
        net(x)
    found = torch.autograd.grad(sum(part.sum() for part in inputs.found), parameters, allow_unused=True)
    own = {id(part) for layer in net.modules() if isinstance(layer, KState) for part in layer.parameters()}
    return [part for part, g in zip(parameters, found, strict=True) if g is not None or id(part) in own]


def _without(products: Tensor, group: int) -> Tensor:
    """The mean of the products of different groups, one left out."""
    rest = [index for index in range(len(products)) if index != group]
    kept = products[rest][:, rest]
    return (kept.sum() - kept.diagonal().sum()) / (len(rest) * (len(rest) - 1))
