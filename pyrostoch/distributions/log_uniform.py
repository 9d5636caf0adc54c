"""The log-uniform prior of sparse variational dropout."""

from __future__ import annotations

import math
from typing import Literal

from torch import Size, Tensor, broadcast_shapes

from pyrostoch.distributions.improper import ImproperPrior

_EULER_GAMMA = 0.5772156649015328606

#: $-\log p(w) - \log|w|$ of the log-uniform prior, chosen so that its KL tends to 0 as alpha grows: 2.0541199559...
LOG_UNIFORM_CONSTANT = (math.log(2 * math.pi) + 1 + _EULER_GAMMA + math.log(2)) / 2


class LogUniform(ImproperPrior):
    r"""The improper log-uniform prior, $p(|w|) \propto 1/|w|$: all orders of magnitude of a weight are equally likely.

    $$\log p(w) = -\log|w| - \tfrac{1}{2}\left(\log(2\pi e) + \gamma + \log 2\right)$$

    The constant of an improper prior is arbitrary; this one makes the KL divergence of a zero-mean Gaussian 0, so that
    Monte Carlo with `log_prob` agrees with the closed form `kl_log_uniform`. The KL of $N(\mu, \alpha\mu^2)$
    depends on $\alpha$ alone, so multiplicative Gaussian noise ("variational dropout") is independent of the scale of
    the weights.

    The prior has infinite mass, so it cannot be sampled, has no moments, and gives no proper posterior: with NUTS use a
    proper prior. Its log density is infinite at exactly zero.

    Args:
        approximation: None for the exact KL, or `"molchanov"` for the fit of Molchanov et al. 2017, which is off by
            up to 0.0094 nats per weight; use it to compare with published figures.
        validate_args: Check the values given to `log_prob`; torch's default when None.

    Raises:
        ValueError: The approximation is unknown; or later, on sampling, mean or variance.

    Example:
        >>> import torch
        >>> LogUniform().log_prob(torch.tensor([1.0, -2.0]))
        tensor([-2.0541, -2.7473])

    References:
        Kingma, Salimans, Welling 2015, "Variational Dropout and the Local Reparameterization Trick";
        Molchanov, Ashukha, Vetrov 2017, "Variational Dropout Sparsifies Deep Neural Networks";
        Hron, Matthews, Ghahramani 2018, "Variational Bayesian Dropout: Pitfalls and Fixes", on the improper posterior.
    """

    def __init__(self, approximation: Literal["molchanov"] | None = None, *, validate_args: bool | None = None) -> None:
        if approximation not in (None, "molchanov"):
            raise ValueError(
                f"LogUniform: unknown approximation {approximation!r}: expected None (exact) or 'molchanov'"
            )
        self.approximation = approximation
        super().__init__(Size(), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, of the broadcast shape of the value and the batch; infinite at zero."""
        if self._validate_args:
            self._validate_sample(value)
        shape = broadcast_shapes(value.shape, self.batch_shape)
        return (-value.abs().log() - LOG_UNIFORM_CONSTANT).expand(shape)
