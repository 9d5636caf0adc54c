"""Binary neurons: a threshold behind noise, drawn, averaged, or carried by moments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrostoch.layers.kstate import KState
from pyrostoch.moments import Moments
from pyrostoch.moments.affine import scaled

__all__ = ["ThresholdNeuron"]


class ThresholdNeuron(KState):
    r"""Neurons that are 1 where their noisy input is above a threshold, else 0.

    $$ s_i = [\,g_i x_i + b_i + \sigma \xi_i > \theta\,], \qquad \xi \sim N(0, (1 - c) I + c\,\mathbf{1}
    \mathbf{1}^\top), \qquad E\,s_i = \Phi\Bigl(\frac{g_i x_i + b_i - \theta}{\sigma}\Bigr). $$

    Works on any shape `(batch, ...)`. `train()` and `eval()` make no difference; the interpretation does:

    | interpretation | output |
    | --- | --- |
    | none, or any that samples | a draw, fresh at every call |
    | `MeanPropagation` | the mean for the given input |
    | `MomentPropagation` | mean and (co)variance for the input's: exact for a Gaussian input |

    A draw's backward pass uses the derivative of its mean for the given input, a soft threshold in place of the hard
    one. This pseudogradient is the baseline; training with `ELBO(estimator="moments")` differentiates the network's
    moments instead, which is exact up to the Gaussian assumption.

    Args:
        noise: Standard deviation $\sigma$ of the noise.
        threshold: $\theta$.
        correlation: Correlation c of the noise of any two neurons of an example, from 0 up to but not including 1.

    Attributes:
        gain: Factor $g$ of the input, 1 unless homeostasis has set it; a number, or one for each neuron or channel.
        bias: Shift $b$, 0 unless homeostasis has set it.

    Raises:
        ValueError: The noise is not positive, or the correlation outside [0, 1).

    References:
        Macke, Berens, Ecker, Tolias, Bethge 2009, for the moments (dichotomized Gaussian); Bengio, Leonard, Courville,
        "Estimating or propagating gradients through stochastic neurons", 2013, for the pseudogradient.

    Example:
        >>> from pyrostoch.effects import MeanPropagation, MomentPropagation
        >>> layer, x = ThresholdNeuron(), torch.tensor([[0.0, 40.0, -40.0]])
        >>> sorted(set(layer(x.expand(50, 3)).flatten().tolist()))
        [0.0, 1.0]
        >>> with MeanPropagation():
        ...     layer(x)
        tensor([[0.5000, 1.0000, 0.0000]])
        >>> with MomentPropagation():
        ...     layer(x).var
        tensor([[0.2500, 0.0000, 0.0000]])
    """

    gain: Tensor
    bias: Tensor

    def __init__(self, noise: float = 1.0, threshold: float = 0.0, correlation: float = 0.0) -> None:
        super().__init__((0.0, 1.0), (threshold,), noise)
        if not 0.0 <= correlation < 1.0:
            raise ValueError(
                f"ThresholdNeuron: expected a correlation from 0 up to but not including 1, got {correlation}"
            )
        self.threshold = float(threshold)
        self.correlation = float(correlation)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def propagate(self, x: Moments) -> Moments:
        """Moments of the states: the noise adds to the input's covariance, the threshold is exact for a Gaussian."""
        return super().propagate(scaled(x, self._given(x.loc), self._each(self.gain, x.loc)))

    def _given(self, x: Tensor) -> Tensor:
        x = super()._given(x)
        return self._each(self.gain, x) * x + self._each(self.bias, x)

    def _fresh_noise(self, x: Tensor) -> Tensor:
        noise = super()._fresh_noise(x)
        if self.correlation:
            common = torch.randn(x.shape[:1], dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
            noise = math.sqrt(1.0 - self.correlation) * noise + math.sqrt(self.correlation) * common
        return noise

    def _noise_covariance(self, own: Tensor) -> Tensor:
        alone = super()._noise_covariance(own)
        shared = own.sqrt()
        return (1.0 - self.correlation) * alone + self.correlation * shared.unsqueeze(1) * shared.unsqueeze(2)

    def _each(self, values: Tensor, x: Tensor) -> Tensor:
        """One value for each neuron or channel, in a shape that broadcasts."""
        return values.reshape(1, -1, *[1] * (x.dim() - 2)) if values.dim() else values

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Homeostasis gives each neuron values of its own: a file's shapes hold, not those of a fresh layer.
        for name in ("gain", "bias"):
            given = state_dict.get(prefix + name)
            if given is not None and given.shape != getattr(self, name).shape:
                setattr(self, name, getattr(self, name).new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The settings."""
        correlated = f", correlation={self.correlation:g}" if self.correlation else ""
        return f"noise={self.noise:g}, threshold={self.threshold:g}{correlated}"
