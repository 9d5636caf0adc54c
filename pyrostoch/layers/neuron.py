"""Stochastic neurons with states 0 and 1, and with correlated noise."""

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
    r"""Neurons with state 1 where their noisy input is above a threshold, and state 0 elsewhere.

    $$ s_i = [\,g_i x_i + b_i + \sigma \xi_i > \theta\,], \qquad \xi \sim N(0, (1 - c) I + c\,\mathbf{1}
    \mathbf{1}^\top), \qquad E\,s_i = \Phi\Bigl(\frac{g_i x_i + b_i - \theta}{\sigma}\Bigr). $$

    Inputs have any shape `(batch, neurons or channels, ...)`. The output does not depend on `train()` and `eval()`, but
    on the interpretation:

    | interpretation | output |
    | --- | --- |
    | none, or one that samples weights | a new draw at every call |
    | `MeanPropagation` | the expected state for the given input |
    | `NoiseFree` | the state without noise |
    | `MomentPropagation` | mean and (co)variance, from those of the input; exact for a Gaussian input |

    The backward pass of a draw is the derivative of the expected state for the given input. This pseudogradient is the
    simplest estimator; training with `ELBO(estimator="moments")` differentiates the network's moments instead, which is
    exact up to the Gaussian approximation.

    Args:
        noise: Standard deviation $\sigma$ of the noise.
        threshold: Threshold $\theta$.
        correlation: Correlation c of the noise of any two neurons of an example, from 0 up to but not including 1.

    Attributes:
        gain: Factor $g$ of the input, one for all or one for each neuron or channel; 1 unless it has been set, for
            example by `pyrostoch.Homeostasis`.
        bias: Shift $b$ of the input, of the same shape; 0 unless it has been set.

    Raises:
        ValueError: The noise is not positive, or the correlation outside [0, 1).

    References:
        Macke, Berens, Ecker, Tolias, Bethge, "Generating spike trains with specified correlation coefficients", 2009,
        for the moments (dichotomized Gaussian); Bengio, Leonard, Courville, "Estimating or propagating gradients
        through stochastic neurons", 2013, for the pseudogradient.

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
        """Moments of the states, exact for Gaussian inputs: the noise's covariance is added to that of the input."""
        return super().propagate(scaled(x, self._threshold_input(x.loc), self._broadcast(self.gain, x.loc)))

    def _threshold_input(self, x: Tensor) -> Tensor:
        x = super()._threshold_input(x)
        return self._broadcast(self.gain, x) * x + self._broadcast(self.bias, x)

    def _draw_noise(self, x: Tensor) -> Tensor:
        noise = super()._draw_noise(x)
        if self.correlation:
            common = torch.randn(x.shape[:1], dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
            noise = math.sqrt(1.0 - self.correlation) * noise + math.sqrt(self.correlation) * common
        return noise

    def _noise_covariance(self, var: Tensor) -> Tensor:
        diagonal = super()._noise_covariance(var)
        stddev = var.sqrt()
        return (1.0 - self.correlation) * diagonal + self.correlation * stddev.unsqueeze(1) * stddev.unsqueeze(2)

    def _broadcast(self, values: Tensor, x: Tensor) -> Tensor:
        """Values without axes, or one for each neuron or channel, in a shape that broadcasts with `x`."""
        return values.reshape(1, -1, *[1] * (x.dim() - 2)) if values.dim() else values

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Homeostasis sets values for each neuron, so the loaded shapes may differ from those of a new layer.
        for name in ("gain", "bias"):
            given = state_dict.get(prefix + name)
            if given is not None and given.shape != getattr(self, name).shape:
                setattr(self, name, getattr(self, name).new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The settings."""
        correlated = f", correlation={self.correlation:g}" if self.correlation else ""
        return f"noise={self.noise:g}, threshold={self.threshold:g}{correlated}"
