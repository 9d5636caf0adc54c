"""Counts in a time, an area or a population that differs between examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._manual import see

__all__ = ["WithExposure"]


class WithExposure(nn.Module):
    r"""A network whose last input is an exposure t, whose logarithm is added to its log means: $\log\mu + \log t$.

    For `likelihoods.Poisson`, `NegativeBinomial` and `ZeroInflatedPoisson`: a count in twice the time is twice as
    large. Inputs are then a tuple, `fit(model, guide, ((x, t), y))`.

    Args:
        net: The network, which returns log means, `(batch,)` or `(batch, outputs)`.
        outputs: How many of the outputs, the first ones, are log means; all by default. For d targets of
            `ZeroInflatedPoisson` they are the first d.

    Raises:
        ValueError: When called: exposures are no real numbers of shape `(batch,)` or `(batch, 1)`.

    Example:
        >>> net = WithExposure(nn.Flatten(0))
        >>> net(torch.zeros(2, 1), torch.tensor([1.0, 2.0])).exp()
        tensor([1., 2.])

    References:
        McCullagh, Nelder, "Generalized linear models", 1989, on offsets.
    """

    def __init__(self, net: nn.Module, *, outputs: int | None = None) -> None:
        super().__init__()
        self.net, self.outputs = net, outputs

    def forward(self, *inputs: Any) -> Any:
        """The network's output for all inputs but the last, plus the logarithm of the last one.

        Args:
            inputs: The network's inputs, and the exposure.
        """
        *own, exposure = inputs
        is_real = isinstance(exposure, Tensor) and exposure.is_floating_point()
        if not own or not is_real or exposure.shape[1:].numel() != 1:
            got = f"shape {tuple(exposure.shape)}, {exposure.dtype}" if isinstance(exposure, Tensor) else type(exposure)
            raise ValueError(
                f"WithExposure: expected the network's inputs and an exposure, real numbers of shape (batch,), got "
                f"{len(own)} input(s) and {got}{see('how-to/several_heads')}"
            )
        output = self.net(*own)
        if isinstance(output, Mapping):
            raise TypeError(
                "WithExposure: expected a network that returns log means as a tensor, got a dictionary; add "
                f"exposure.log() in the network itself{see('how-to/several_heads')}"
            )
        # What is negative becomes NaN, which no loss, prediction or score accepts.
        offset = exposure.log().reshape((-1,) + (1,) * (output.dim() - 1))
        if self.outputs is None:
            return output + offset
        is_mean = torch.arange(output.shape[-1], device=offset.device) < self.outputs
        return output + torch.where(is_mean, offset, 0.0)
