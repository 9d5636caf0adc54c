"""Stochastic layers of torch's kinds: linear layers and convolutions, whose kernels are one call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyrostoch.layers.activations import ActivationDistribution, Gradient, PriorOfActivations
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.moments import Moments

__all__ = [
    "StochasticConv1d",
    "StochasticConv2d",
    "StochasticConv3d",
    "StochasticConvTranspose1d",
    "StochasticConvTranspose2d",
    "StochasticConvTranspose3d",
    "StochasticLinear",
]


class _FusedLayer(StochasticLayer):
    """Kernels of one kind as one call: a layer with as many times the outputs, in the order of the parameters."""

    _kind: type[nn.Module]
    #: The axis of the outputs among the channels, and the name of their number in the kind's constructor.
    _axis = 1
    #: The number of axes of positions.
    _positions = 0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *args: Any,
        distribution: ActivationDistribution | str = "gaussian",
        prior: PriorOfActivations = None,
        gradient: Gradient | None = None,
        temperature: float = 0.5,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        self._set_distribution(distribution, prior, gradient, temperature, self._axis, (out_features,), self._positions)
        self.kernel = self._kind(in_features, len(self.family.links) * out_features, *args, **kwargs)

    def outputs(self, x: Tensor | Moments) -> tuple[Any, ...]:
        """The kernels' outputs, one for each parameter, by one call.

        Args:
            x: Inputs, or their moments.
        """
        if (size := getattr(self.kernel, "kernel_size", None)) is not None and len(x.shape) != len(size) + 2:
            # Torch takes one example without its batch, too; its channels would be another axis.
            raise ValueError(
                f"{type(self).__name__}: expected inputs with {len(size) + 2} axes, (batch, channels, ...), got shape "
                f"{tuple(x.shape)}"
            )
        count, groups = len(self.family.links), int(getattr(self.kernel, "groups", 1))
        found = self.kernel(x)
        if count == 1:
            return (found,)
        if groups == 1:
            return tuple(found.chunk(count, self._axis))
        # The outputs of a group lie together: those of all parameters in turn.
        parts = found.unflatten(self._axis, (groups, count, -1))
        return tuple(parts.select(2, i).flatten(1, 2) for i in range(count))


class StochasticLinear(_FusedLayer):
    r"""A fully connected stochastic layer: $h \sim N(W_\mu x + b_\mu,\ \mathrm{softplus}(W_\sigma x + b_\sigma)^2)$.

    Inputs are `(batch, ..., in_features)`, activations `(batch, ..., out_features)`. Both kernels are one matrix.

    Args:
        in_features: Number of inputs.
        out_features: Number of activations.
        bias: Whether the kernels have biases.
        distribution: The distribution of the activations; see `StochasticLayer`.
        prior: The prior of the activations; see `StochasticLayer`.
        gradient: How draws are differentiated; see `StochasticLayer`.
        temperature: See `StochasticLayer`.

    Example:
        >>> import torch
        >>> layer = StochasticLinear(3, 2)
        >>> layer(torch.zeros(4, 3)).shape, layer.kernel.out_features
        (torch.Size([4, 2]), 4)
    """

    _kind = nn.Linear
    _axis = -1


class StochasticConv1d(_FusedLayer):
    """A convolution over one axis whose outputs are drawn; arguments of `torch.nn.Conv1d` and `StochasticLinear`.

    Example:
        >>> import torch
        >>> StochasticConv1d(2, 3, 3)(torch.zeros(4, 2, 8)).shape
        torch.Size([4, 3, 6])
    """

    _kind = nn.Conv1d
    _positions = 1


class StochasticConv2d(_FusedLayer):
    r"""A convolution whose outputs are drawn: $h \sim N(k_\mu * x,\ \mathrm{softplus}(k_\sigma * x)^2)$ everywhere.

    Inputs are `(batch, channels, height, width)`; arguments of `torch.nn.Conv2d` and of `StochasticLinear`. The two
    kernels are one convolution with twice the channels: those of the mean, then those of the scale before the softplus
    (with `groups`, both of each group in turn).

    Example:
        >>> import torch
        >>> StochasticConv2d(1, 3, 3, padding=1)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 3, 8, 8])
    """

    _kind = nn.Conv2d
    _positions = 2


class StochasticConv3d(_FusedLayer):
    """A convolution over three axes whose outputs are drawn; arguments of `torch.nn.Conv3d` and `StochasticLinear`.

    Example:
        >>> import torch
        >>> StochasticConv3d(1, 3, 2)(torch.zeros(4, 1, 3, 3, 3)).shape
        torch.Size([4, 3, 2, 2, 2])
    """

    _kind = nn.Conv3d
    _positions = 3


class StochasticConvTranspose1d(_FusedLayer):
    """A transposed convolution over one axis whose outputs are drawn; see `StochasticConv1d`.

    Example:
        >>> import torch
        >>> StochasticConvTranspose1d(2, 3, 3)(torch.zeros(4, 2, 6)).shape
        torch.Size([4, 3, 8])
    """

    _kind = nn.ConvTranspose1d
    _positions = 1


class StochasticConvTranspose2d(_FusedLayer):
    """A transposed convolution whose outputs are drawn; see `StochasticConv2d`.

    Example:
        >>> import torch
        >>> StochasticConvTranspose2d(2, 3, 2, stride=2)(torch.zeros(4, 2, 3, 3)).shape
        torch.Size([4, 3, 6, 6])
    """

    _kind = nn.ConvTranspose2d
    _positions = 2


class StochasticConvTranspose3d(_FusedLayer):
    """A transposed convolution over three axes whose outputs are drawn; see `StochasticConv3d`.

    Example:
        >>> import torch
        >>> StochasticConvTranspose3d(2, 1, 2)(torch.zeros(4, 2, 2, 2, 2)).shape
        torch.Size([4, 1, 3, 3, 3])
    """

    _kind = nn.ConvTranspose3d
    _positions = 3
