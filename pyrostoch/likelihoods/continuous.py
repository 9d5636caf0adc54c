"""Likelihoods of real targets: regression."""

from __future__ import annotations

from typing import Any

from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._checks import check_positive
from pyrostoch.likelihoods.base import Likelihood, Noise, like, per_example, positive
from pyrostoch.moments import Moments
from pyrostoch.moments.predictive import Closed, noisy_gaussian

__all__ = ["Gaussian", "HeteroscedasticGaussian", "StudentT"]


class Gaussian(Likelihood):
    """Real targets with Gaussian noise of one standard deviation; the network's output is the mean.

    Args:
        scale: Standard deviation of the noise, in the targets' units; or a distribution on the positive numbers, which
            makes it the random site `likelihood.scale`.
        learn: Whether a number is only the start of a fitted value.

    Example:
        >>> import torch
        >>> Gaussian(0.1, learn=True)(torch.zeros(5, 1)).event_shape
        torch.Size([1])
    """

    def __init__(self, scale: float | Distribution = 1.0, *, learn: bool = False) -> None:
        super().__init__()
        self.scale = Noise(scale, learn=learn, site="likelihood.scale")

    def distribution(self, output: Any, **quantities: Tensor | float) -> Distribution:
        """N(output, scale^2)."""
        return per_example(dist.Normal(output, like(quantities["scale"], output)))

    def closed(self, output: Moments, **quantities: Tensor | float) -> Closed | None:
        """N(mean, covariance + scale^2), exact."""
        return noisy_gaussian(output, like(quantities["scale"], output.loc))


class HeteroscedasticGaussian(Likelihood):
    """Real targets with noise that depends on the input; the output `(batch, 2 d)` holds d means, then d raw scales.

    The standard deviation is the softplus of the raw scale.

    Example:
        >>> import torch
        >>> HeteroscedasticGaussian()(torch.zeros(5, 2)).event_shape
        torch.Size([1])
    """

    def distribution(self, output: Any, **quantities: Tensor | float) -> Distribution:
        """N(mean, softplus(raw)^2)."""
        if output.dim() < 2 or output.shape[-1] % 2:
            raise ValueError(
                "likelihood HeteroscedasticGaussian: expected a network output of shape (batch, 2 d), means then raw "
                f"scales, got {tuple(output.shape)}"
            )
        mean, raw = output.chunk(2, dim=-1)
        return per_example(dist.Normal(mean, positive(raw)))


class StudentT(Likelihood):
    """Real targets with heavy-tailed noise; the network's output is the center.

    Args:
        df: Degrees of freedom.
        scale: Scale of the noise; a number, or a distribution on the positive numbers.
        learn: Whether a number is only the start of a fitted value.

    Example:
        >>> import torch
        >>> StudentT(df=4.0, scale=0.5)(torch.zeros(5, 1)).variance.squeeze()
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(self, df: float = 4.0, scale: float | Distribution = 1.0, *, learn: bool = False) -> None:
        super().__init__()
        self.df = check_positive("likelihood StudentT df", df)
        self.scale = Noise(scale, learn=learn, site="likelihood.scale")

    def distribution(self, output: Any, **quantities: Tensor | float) -> Distribution:
        """StudentT(df, output, scale)."""
        return per_example(dist.StudentT(self.df, output, like(quantities["scale"], output)))

    def extra_repr(self) -> str:
        """The degrees of freedom."""
        return f"df={self.df:g}"
