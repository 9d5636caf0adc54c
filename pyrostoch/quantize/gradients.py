"""Quantized gradients: ternary, binary or k-bit, stochastically rounded so that their mean is the gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.hooks import RemovableHandle

from pyrostoch._checks import check_choice, check_count, check_positive
from pyrostoch._precision import at_least_single

__all__ = ["BinaryGradient", "DiscreteGradient", "KBitGradient", "TernaryGradient", "rounded"]

Per = Literal["tensor", "neuron"]


def rounded(values: Tensor, step: Tensor | float, start: Tensor | float = 0.0) -> Tensor:
    r"""Stochastic rounding to a grid: each value moves to one of its two neighbors, and its mean is the value.

    $$ \mathrm{start} + \mathrm{step}\,(\lfloor r \rfloor + [u < r - \lfloor r \rfloor]), \qquad
    r = (g - \mathrm{start}) / \mathrm{step},\; u \sim U[0, 1), $$

    A value on the grid does not move.

    Args:
        values: Values g.
        step: Spacing of the grid; where it is 0, values do not move.
        start: A point of the grid.

    Returns:
        The rounded values, in the shape of `values`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> values = rounded(torch.full((10000,), 0.3), 1.0)
        >>> sorted(set(values.tolist())), round(values.mean().item(), 1)
        ([0.0, 1.0], 0.3)
    """
    scaled = (values - start) / step
    below = scaled.floor()
    above = torch.rand_like(scaled) < scaled - below
    return torch.where(torch.as_tensor(step) > 0, start + step * (below + above), values)


class DiscreteGradient(nn.Module, ABC):
    """A module that returns its input unchanged, and quantizes the gradient in the backward pass.

    Between two layers it quantizes the backpropagated gradient of the activations; `attach` quantizes the gradients of
    parameters. Subclasses implement `discrete`.

    Args:
        per: The scale of the grid is the largest absolute gradient of the whole `"tensor"`, or of each `"neuron"`: axis
            1 of an activation, axis 0 of a parameter.
        clip: Gradients are first clipped to this number of standard deviations, which makes scale and noise smaller but
            introduces a bias. Without it, the mean of the quantized gradient is the gradient.
    """

    def __init__(self, per: Per = "tensor", clip: float | None = None) -> None:
        super().__init__()
        check_choice(f"{type(self).__name__} per", per, ("tensor", "neuron"))
        if clip is not None:
            check_positive(f"{type(self).__name__} clip", clip)
        self.per, self.clip = per, clip

    @abstractmethod
    def discrete(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """Quantize a gradient.

        Args:
            gradient: The gradient.
            scale: The scale s, which broadcasts with the gradient and bounds its absolute values.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, with a gradient that is quantized in the backward pass."""
        out: Tensor = _ChangeGradient.apply(x, lambda gradient: self.quantized(gradient, 1))
        return out

    def attach(self, parameters: Iterable[Tensor] | nn.Module) -> list[RemovableHandle]:
        """Quantize the gradients of parameters in every backward pass from now on.

        Args:
            parameters: Parameters, or a module with all its parameters; those without `requires_grad` are skipped.

        Returns:
            Handles, one for each parameter, whose `remove()` ends the quantization.

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
        """Clip a gradient if `clip` is given, and quantize it.

        Args:
            gradient: The gradient.
            axis: The axis of the neurons.
        """
        wide = at_least_single(gradient)
        axis = min(axis, wide.dim() - 1)
        others = [other for other in range(wide.dim()) if self.per == "tensor" or other != axis]
        if self.clip is not None:
            bound = self.clip * _standard_deviation(wide, others)
            wide = torch.minimum(torch.maximum(wide, -bound), bound)
        scale = wide.abs().amax(others, keepdim=True) if others else wide.abs()
        return self.discrete(wide, scale).to(gradient.dtype)

    def extra_repr(self) -> str:
        """The settings."""
        return f"per={self.per!r}" + ("" if self.clip is None else f", clip={self.clip:g}")


class TernaryGradient(DiscreteGradient):
    r"""Gradients of -s, 0 and s: $s\,\mathrm{sign}(g)$ with probability $|g| / s$, else 0, with $s = \max |g|$.

    Unbiased, unless `clip` is given. A gradient of zero stays zero.

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
    r"""Gradients rounded stochastically to $2^b$ evenly spaced values from -s to s, with $s = \max |g|$.

    Unbiased, unless `clip` is given. `BinaryGradient` is the case of one bit.

    Args:
        bits: Number b of bits.
        per: As in `DiscreteGradient`.
        clip: As in `DiscreteGradient`.

    References:
        Zhou et al., "DoReFa-Net: training low bitwidth convolutional neural networks with low bitwidth gradients",
        2016; Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", 2017.

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
        """The nearest value above or below, chosen at random."""
        step = 2.0 * scale / (2**self.bits - 1)
        return torch.minimum(torch.maximum(rounded(gradient, step, -scale), -scale), scale)

    def extra_repr(self) -> str:
        """The settings."""
        return f"bits={self.bits}, {super().extra_repr()}"


class BinaryGradient(KBitGradient):
    r"""Gradients of -s and s: $\pm s$ with probability $(1 \pm g / s) / 2$, with $s = \max |g|$.

    Unlike the sign of g, this is unbiased, unless `clip` is given. It is noisier than `TernaryGradient`: a gradient of
    zero becomes -s or s.

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


def _standard_deviation(values: Tensor, axes: list[int]) -> Tensor:
    """Standard deviation over the given axes; without any, the absolute values."""
    if not axes:
        return values.abs()
    return values.std(axes, correction=0, keepdim=True)


class _ChangeGradient(torch.autograd.Function):
    """The identity, whose backward pass applies a function to the gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None  # type: ignore[attr-defined]
