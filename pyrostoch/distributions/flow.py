"""Standard normal numbers through invertible transforms: a weight of a distribution of any form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Transform
from torch.types import _size

from pyrostoch.distributions.joint import JointWeights

__all__ = ["FlowWeights"]


class FlowWeights(JointWeights):
    r"""$w = \mu + \sigma \circ T(z)$ with standard normal z: T is a chain of invertible transforms of all entries.

    $$ \log q(w) = \log N(z; 0, I) - \sum_t \log |\det J_t| - \sum_i \log \sigma_i. $$

    The density of the last draw is known from the draw itself; that of other values needs the transforms' inverses,
    which some lack. Mean and variance have no closed form.

    Args:
        loc: $\mu$, in the shape of the weight.
        scale: $\sigma$, in the same shape.
        transforms: Transforms of vectors with as many entries as the weight.

    References:
        Rezende, Mohamed, "Variational inference with normalizing flows", 2015.

    Example:
        >>> from torch.distributions.transforms import TanhTransform
        >>> weight = FlowWeights(torch.zeros(1, 2), torch.full((1, 2), 0.1), [TanhTransform()])
        >>> bool((weight.rsample((100,)).abs() < 0.1).all())
        True
    """

    has_density = False
    has_mean = False

    def __init__(self, loc: Tensor, scale: Tensor, transforms: Sequence[Transform]) -> None:
        self.loc, self.scale, self.steps = loc, scale, tuple(transforms)
        self._last: tuple[Tensor, Tensor] | None = None
        super().__init__(loc.shape)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *shape)."""
        shape = Size(sample_shape)
        z = torch.randn((*shape, self.loc.numel()), dtype=self.loc.dtype, device=self.loc.device)
        x, log_density = z, _standard(z) - self.scale.log().sum()
        for transform in self.steps:
            y = transform(x)
            log_density = log_density - _log_det(transform, x, y)
            x = y
        value = self.loc + self.scale * x.reshape((*shape, *self.event_shape))
        self._last = (value, log_density)
        for transform in self.steps:
            _forget(transform)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of a draw, (*sample shape).

        Raises:
            ValueError: The value is not the last draw, and a transform has no inverse.
        """
        if self._last is not None and value is self._last[0]:
            return self._last[1]
        lead = value.shape[: value.dim() - len(self.event_shape)]
        y = ((value - self.loc) / self.scale).reshape((*lead, -1))
        total = -self.scale.log().sum()
        for transform in reversed(self.steps):
            inverse: Any = transform.inv
            try:
                x = inverse(y)
            except (KeyError, NotImplementedError) as error:  # what Pyro's transforms without an inverse raise
                raise ValueError(
                    f"FlowWeights: {type(transform).__name__} has no inverse, so that the density is known only of "
                    "what the flow has drawn last; take a transform with an inverse, such as affine_autoregressive"
                ) from error
            total = total - _log_det(transform, x, y)
            y = x
        return total + _standard(y)


def _standard(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def _forget(transform: Any) -> None:
    """Empty the caches of Pyro's transforms, which hold the graph of the last call, so that they can be copied."""
    for name in [name for name in vars(transform) if name.startswith("_cache") and name != "_cache_size"]:
        setattr(transform, name, (None, None) if name == "_cached_x_y" else None)


def _log_det(transform: Any, x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = transform.log_abs_det_jacobian(x, y)
    return found.sum(-1) if transform.codomain.event_dim == 0 else found
