"""Gradients of few values: ternary, binary or of some bits, drawn so that their mean is the gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyrostoch._checks import check_choice, check_count, check_positive
from pyrostoch._precision import at_least_single

__all__ = ["BinaryGradient", "DiscreteGradient", "KBitGradient", "TernaryGradient", "rounded"]

Per = Literal["tensor", "neuron"]


def rounded(values: Tensor, step: Tensor | float, start: Tensor | float = 0.0) -> Tensor:
    r"""Values on a grid, each on one of its two neighbors with the chance that keeps its mean.

    $$ \mathrm{start} + \mathrm{step}\,(\lfloor r \rfloor + [u < r - \lfloor r \rfloor]), \qquad
    r = (g - \mathrm{start}) / \mathrm{step},\; u \sim U[0, 1), $$

    so that what is on the grid stays there.

    Args:
        values: Values g.
        step: Distance of neighbors; where it is 0 the values stay.
        start: A point of the grid.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> found = rounded(torch.full((10000,), 0.3), 1.0)
        >>> sorted(set(found.tolist())), round(found.mean().item(), 1)
        ([0.0, 1.0], 0.3)
    """
    scaled = (values - start) / step
    below = scaled.floor()
    above = torch.rand_like(scaled) < scaled - below
    return torch.where(torch.as_tensor(step) > 0, start + step * (below + above), values)


class DiscreteGradient(nn.Module, ABC):
    """Puts gradients on a grid: a module that leaves what passes through it, and changes what comes back.

    Between two layers it makes the error signal discrete; `attach` does the same to the gradients of parameters.

    Args:
        per: The scale is the largest absolute gradient of the whole `"tensor"`, or of each `"neuron"`: each output of a
            layer (axis 1 of an error signal, axis 0 of a parameter).
        clip: Gradients are first limited to so many standard deviations, which makes scale and noise smaller and
            brings a bias; without it the mean is exact.
    """

    def __init__(self, per: Per = "tensor", clip: float | None = None) -> None:
        super().__init__()
        check_choice(f"{type(self).__name__} per", per, ("tensor", "neuron"))
        if clip is not None:
            check_positive(f"{type(self).__name__} clip", clip)
        self.per, self.clip = per, clip

    @abstractmethod
    def discrete(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """A gradient's discrete values.

        Args:
            gradient: The gradient.
            scale: The scale s, which broadcasts with it; no gradient is larger.
        """

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        found: Tensor = _Passed.apply(x, lambda gradient: self.quantized(gradient, 1))
        return found

    def attach(self, parameters: Iterable[Tensor] | nn.Module) -> list[RemovableHandle]:
        """Make the gradients of parameters discrete, from now on.

        Args:
            parameters: Parameters, or a module whose parameters are meant; those that take no gradient are passed over.

        Returns:
            Handles whose `remove()` ends it.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> layer = nn.Linear(3, 2)
            >>> handles = TernaryGradient().attach(layer)
            >>> layer(torch.randn(5, 3)).square().sum().backward()
            >>> len(layer.weight.grad.abs().unique()) <= 2
            True
        """
        chosen = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        return [
            parameter.register_hook(lambda gradient: self.quantized(gradient, 0))
            for parameter in chosen
            if parameter.requires_grad
        ]

    def quantized(self, gradient: Tensor, axis: int) -> Tensor:
        """A gradient on its grid.

        Args:
            gradient: The gradient.
            axis: Its axis of neurons.
        """
        wide = at_least_single(gradient)
        axis = min(axis, wide.dim() - 1)
        others = [other for other in range(wide.dim()) if self.per == "tensor" or other != axis]
        if self.clip is not None:
            most = self.clip * _spread(wide, others)
            wide = torch.minimum(torch.maximum(wide, -most), most)
        scale = wide.abs().amax(others, keepdim=True) if others else wide.abs()
        return self.discrete(wide, scale).to(gradient.dtype)

    def extra_repr(self) -> str:
        """The settings."""
        return f"per={self.per!r}" + ("" if self.clip is None else f", clip={self.clip:g}")


class TernaryGradient(DiscreteGradient):
    r"""Gradients of -s, 0 and s: $s\,\mathrm{sign}(g)$ with probability $|g| / s$, else 0, with $s = \max |g|$.

    Unbiased, unless `clip` is given. A zero stays zero.

    Args:
        per: As in `DiscreteGradient`.
        clip: As in `DiscreteGradient`; 2.5 in the paper.

    References:
        Wen et al., "TernGrad: ternary gradients to reduce communication in distributed deep learning", 2017.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.zeros(4, requires_grad=True)
        >>> (TernaryGradient()(x) * torch.tensor([1.0, 0.5, 0.0, -0.25])).sum().backward()
        >>> set(x.grad.tolist()) <= {-1.0, 0.0, 1.0}
        True
    """

    def discrete(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """-s, 0 or s."""
        return rounded(gradient, scale)


class KBitGradient(DiscreteGradient):
    r"""Gradients on $2^b$ values between -s and s, evenly spaced, each on a neighbor of its own; $s = \max |g|$.

    Unbiased, unless `clip` is given. One bit is `BinaryGradient`.

    Args:
        bits: b.
        per: As in `DiscreteGradient`.
        clip: As in `DiscreteGradient`.

    References:
        Zhou et al., "DoReFa-Net: training low bitwidth convolutional neural networks with low bitwidth gradients",
        2016; Alistarh et al., "QSGD", 2017.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.zeros(100, requires_grad=True)
        >>> (KBitGradient(2)(x) * torch.linspace(-3.0, 3.0, 100)).sum().backward()
        >>> sorted(set(x.grad.tolist()))
        [-3.0, -1.0, 1.0, 3.0]
    """

    def __init__(self, bits: int, per: Per = "tensor", clip: float | None = None) -> None:
        super().__init__(per, clip)
        self.bits = check_count("KBitGradient bits", bits)

    def discrete(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """One of the values."""
        step = 2.0 * scale / (2**self.bits - 1)
        return torch.minimum(torch.maximum(rounded(gradient, step, -scale), -scale), scale)

    def extra_repr(self) -> str:
        """The settings."""
        return f"bits={self.bits}, {super().extra_repr()}"


class BinaryGradient(KBitGradient):
    r"""Gradients of -s and s, with probability $(1 \pm g / s) / 2$, and $s = \max |g|$: never the plain sign of g.

    Unbiased, unless `clip` is given, and noisier than three values: a zero becomes -s or s.

    Args:
        per: As in `DiscreteGradient`.
        clip: As in `DiscreteGradient`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.zeros(4, requires_grad=True)
        >>> (BinaryGradient()(x) * torch.tensor([1.0, 0.5, 0.0, -0.25])).sum().backward()
        >>> set(x.grad.tolist())
        {1.0, -1.0}
    """

    def __init__(self, per: Per = "tensor", clip: float | None = None) -> None:
        super().__init__(1, per, clip)


def _spread(values: Tensor, axes: list[int]) -> Tensor:
    """Standard deviation over some axes."""
    if not axes:
        return values.abs()
    return values.std(axes, correction=0, keepdim=True)


class _Passed(torch.autograd.Function):
    """The input; what comes back is changed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.change(gradient), None
