"""States of neurons behind thresholds, with the exact derivative of the expected state as the backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrostoch.layers.noise import NoiseDistribution

__all__ = ["noisy_states", "states_at"]


def states_at(x: Tensor, states: Sequence[float], thresholds: Sequence[float | Tensor]) -> Tensor:
    """The state at each input: the first where no threshold is below it, the next where one is, and so on.

    Args:
        x: Inputs.
        states: The states, rising.
        thresholds: The thresholds, rising, one fewer than states; numbers, or tensors that broadcast with `x`.

    Example:
        >>> states_at(torch.tensor([-1.0, 0.0, 1.0]), (-1.0, 0.0, 1.0), (-0.5, 0.5))
        tensor([-1.,  0.,  1.])
    """
    first, *steps = [high - low for low, high in itertools.pairwise(states)]
    total = _above(x, thresholds[0])
    if first != 1.0:
        total.mul_(first)
    for step, at in zip(steps, thresholds[1:], strict=True):
        total.add_(_above(x, at), alpha=step)
    return total if states[0] == 0.0 else total.add_(states[0])


def noisy_states(
    x: Tensor,
    unit_noise: Tensor,
    distribution: NoiseDistribution,
    states: tuple[float, ...],
    noise: float | Tensor,
    thresholds: Sequence[float | Tensor],
) -> Tensor:
    """The states at `x + noise * unit_noise`; the backward pass is the derivative of the expected state at `x`.

    Args:
        x: Inputs.
        unit_noise: Draws from the noise's distribution, in the shape of `x`.
        distribution: Distribution of the noise.
        states: The states, rising.
        noise: Standard deviation of the noise.
        thresholds: The thresholds, rising.
    """
    drawn: Tensor = _NoisyStates.apply(x, unit_noise, distribution, states, noise, *thresholds)
    return drawn


def _above(x: Tensor, at: float | Tensor) -> Tensor:
    """1 where `x` is above a threshold and 0 elsewhere, in the dtype of `x`."""
    # This takes a quarter of the time of a comparison whose booleans are converted to numbers.
    return (x - at).sign_().clamp_min_(0.0)


class _NoisyStates(torch.autograd.Function):
    """The function behind `noisy_states`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        unit_noise: Tensor,
        distribution: NoiseDistribution,
        states: tuple[float, ...],
        noise: Any,
        *thresholds: Any,
    ) -> Tensor:
        if isinstance(noise, Tensor):
            noisy = torch.addcmul(x, unit_noise, noise)
        else:
            noisy = torch.add(x, unit_noise, alpha=noise)
        return states_at(noisy, states, thresholds)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, distribution, states, noise, *thresholds = inputs
        tensors = [x, *(value for value in (noise, *thresholds) if isinstance(value, Tensor))]
        ctx.save_for_backward(*tensors)
        ctx.distribution, ctx.states = distribution, states
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in (noise, *thresholds)]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        saved = iter(tensors)
        noise, *thresholds = [next(saved) if number is None else number for number in ctx.numbers]
        # Gradients by x, unit_noise, distribution, states, noise, and each threshold.
        grads: list[Any] = [None] * (5 + len(thresholds))
        by_x: Any = 0.0
        for index, (low, high, at) in enumerate(zip(ctx.states[:-1], ctx.states[1:], thresholds, strict=True), 5):
            z = (at - x) / noise
            part = ctx.distribution.pdf(z) * ((high - low) / noise)
            by_x = by_x + part
            if ctx.needs_input_grad[4]:
                by_noise = (grad * part * z).sum_to_size(noise.shape)
                grads[4] = by_noise if grads[4] is None else grads[4] + by_noise
            if ctx.needs_input_grad[index]:
                grads[index] = -(grad * part).sum_to_size(at.shape)
        grads[0] = grad * by_x
        return tuple(grads)
