"""Dropout that interpretations control: on while sampling, off under mean propagation."""

from __future__ import annotations

from collections.abc import Callable

from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MCDropout", "MCDropout2d"]


class MCDropout(nn.Module):
    r"""Dropout as part of the model: $h = x \circ m / (1 - p)$ with masks $m \sim \mathrm{Bernoulli}(1 - p)$.

    Unlike `torch.nn.Dropout` it does not depend on `train()` and `eval()`. Every call draws new masks, another one for
    each example, also under `SharedSample`, which shares weights only. Under mean propagation the layer returns its
    mean, which is the input.

    Args:
        p: Probability that an entry is dropped, from 0 up to but not including 1.

    Raises:
        ValueError: `p` is outside [0, 1).

    References:
        Gal, Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep learning", 2016.

    Example:
        >>> import torch
        >>> from pyrostoch.effects import MeanPropagation
        >>> layer = MCDropout(0.5).eval()
        >>> sorted(layer(torch.ones(100)).unique().tolist())
        [0.0, 2.0]
        >>> with MeanPropagation():
        ...     layer(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    mask: Callable[..., Tensor] = staticmethod(F.dropout)

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"{type(self).__name__}: expected a probability p in [0, 1), got {p!r}")
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        """Set random entries of `x` to zero and scale the others by 1 / (1 - p).

        Args:
            x: Inputs, (batch, ...).
        """
        return _dropout(x, p=self.p, mask=self.mask)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class MCDropout2d(MCDropout):
    """`MCDropout` of whole channels, for inputs `(batch, channels, height, width)`.

    Example:
        >>> import torch
        >>> MCDropout2d(0.5)(torch.ones(1, 4, 2, 2)).flatten(2).std(-1)
        tensor([[0., 0., 0., 0.]])
    """

    mask = staticmethod(F.dropout2d)


@effectful(type="dropout")
def _dropout(x: Tensor, *, p: float, mask: Callable[..., Tensor]) -> Tensor:
    return mask(x, p, training=True)
