"""Priors with fixed numbers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pyro import distributions as dist
from torch import Tensor

from pyrostoch import distributions
from pyrostoch.priors.base import Prior

__all__ = ["ARD", "Grid", "Laplace", "LogUniform", "Normal", "ScaleMixture", "StudentT"]


class _Fixed(Prior):
    """A prior whose numbers are buffers, checked once by its distribution's own constraints."""

    df: Tensor
    loc: Tensor
    scale: Tensor
    mix: Tensor
    scale1: Tensor
    scale2: Tensor

    def __init__(self, **numbers: float | Tensor) -> None:
        super().__init__()
        for name, value in numbers.items():
            # Full precision here; each site's copy takes its parameter's dtype.
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64))
        self.distribution("", torch.broadcast_shapes(*(b.shape for b in self.buffers())))


class Normal(_Fixed):
    """Gaussian prior N(loc, scale^2) on every weight.

    Args:
        loc: Mean; a number, or a tensor that broadcasts to the weights.
        scale: Standard deviation, positive.

    Example:
        >>> Normal(0.0, 0.1)
        Normal(loc=0, scale=0.1)
    """

    def __init__(self, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> None:
        super().__init__(loc=loc, scale=scale)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """N(loc, scale^2), expanded."""
        return dist.Normal(self.loc, self.scale).expand(shape)


class Laplace(_Fixed):
    """Laplace prior, exp(-|w - loc| / scale) / (2 scale).

    Args:
        loc: Center.
        scale: Mean absolute deviation, positive.

    Example:
        >>> Laplace()
        Laplace(loc=0, scale=1)
    """

    def __init__(self, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> None:
        super().__init__(loc=loc, scale=scale)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """Laplace(loc, scale), expanded."""
        return dist.Laplace(self.loc, self.scale).expand(shape)


class StudentT(_Fixed):
    """Student's t prior: heavier tails than a Gaussian. Its KL to a Gaussian guide is estimated by Monte Carlo.

    Args:
        df: Degrees of freedom, positive.
        loc: Center.
        scale: Scale, positive.

    Example:
        >>> StudentT(df=4.0)
        StudentT(df=4, loc=0, scale=1)
    """

    def __init__(self, df: float | Tensor, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0) -> None:
        super().__init__(df=df, loc=loc, scale=scale)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """StudentT(df, loc, scale), expanded."""
        return dist.StudentT(self.df, self.loc, self.scale).expand(shape)


class ScaleMixture(_Fixed):
    """Mixture of two Gaussians of mean zero, a soft spike and slab. Its KL is estimated by Monte Carlo.

    Args:
        mix: Weight of the first Gaussian, in (0, 1).
        scale1: Standard deviation of the first.
        scale2: Standard deviation of the second.

    References:
        Blundell, Cornebise, Kavukcuoglu, Wierstra, "Weight uncertainty in neural networks", 2015.

    Example:
        >>> ScaleMixture(0.5, 1.0, 0.01)
        ScaleMixture(mix=0.5, scale1=1, scale2=0.01)
    """

    def __init__(
        self, mix: float | Tensor = 0.5, scale1: float | Tensor = 1.0, scale2: float | Tensor = 0.0025
    ) -> None:
        super().__init__(mix=mix, scale1=scale1, scale2=scale2)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The mixture, expanded."""
        return distributions.ScaleMixture(self.mix, self.scale1, self.scale2).expand(shape)


class LogUniform(Prior):
    """The improper prior p(|w|) ~ 1/|w| of variational dropout: it favors no scale.

    With a Gaussian guide N(mu, alpha mu^2) its KL depends on alpha alone, and is exact here. It cannot be sampled, and
    has no proper posterior: NUTS is refused.

    Args:
        approximation: `None` for the exact KL, or `"molchanov"` for the sigmoid fit of Molchanov et al. (2017).

    References:
        Kingma, Salimans, Welling 2015; Molchanov, Ashukha, Vetrov 2017; Hron, Matthews, Ghahramani 2018.

    Example:
        >>> LogUniform().improper
        True
    """

    improper = True

    def __init__(self, approximation: Literal["molchanov"] | None = None) -> None:
        super().__init__()
        self.approximation = approximation
        self.distribution("", torch.Size())

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The log-uniform distribution, expanded."""
        return distributions.LogUniform(approximation=self.approximation).expand(shape)

    def extra_repr(self) -> str:
        """The approximation, where the KL is not exact."""
        return "" if self.approximation is None else f"approximation={self.approximation!r}"


class Grid(Prior):
    """No level of a weight on a grid is favored, whatever the grid's scale: KL = log k - H, for `CategoricalWeights`.

    Example:
        >>> Grid().improper
        True
    """

    improper = True

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The distribution, expanded."""
        return distributions.Grid().expand(shape)


class ARD(Prior):
    """Automatic relevance determination: N(0, tau^2), each weight's tau at its optimum, KL = log(1 + 1/alpha) / 2.

    Only the closed KL to a Gaussian guide is defined, so it serves with `pyrostoch.ELBO` and not with `Trace_ELBO` or
    NUTS.

    References:
        MacKay 1994; Tipping 2001; Kharitonov, Molchanov, Vetrov, "Variational dropout via empirical Bayes", 2018.

    Example:
        >>> ARD()
        ARD()
    """

    improper = True

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The ARD distribution, expanded."""
        return distributions.ARD().expand(shape)
