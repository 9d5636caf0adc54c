"""Likelihoods of real targets, for regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._checks import check_choice, check_positive
from pyrostoch.likelihoods.base import Likelihood, like, per_example, positive
from pyrostoch.likelihoods.quantities import Noise
from pyrostoch.moments import Moments
from pyrostoch.moments.bounds import log_scale_mean
from pyrostoch.moments.predictive import Closed, noisy_gaussian

__all__ = ["Gaussian", "HeteroscedasticGaussian", "StudentT"]


class Gaussian(Likelihood):
    """Real targets with Gaussian noise of the same standard deviation everywhere; the network's output is the mean.

    Args:
        scale: Standard deviation of the noise, in the targets' units: a number, or a tensor with one for each output;
            or its prior, a distribution on the positive numbers, which makes it the random site `likelihood.scale`.
        learn: Whether to fit the standard deviation, starting from the number.
        output: Which part of the network's output is the mean; see `Likelihood`.
        nan_is_missing: Whether targets that are NaN are missing, and left out.

    Example:
        >>> import torch
        >>> Gaussian(0.1, learn=True)(torch.zeros(5, 1)).event_shape
        torch.Size([1])
    """

    def __init__(
        self,
        scale: float | Tensor | Distribution = 1.0,
        *,
        learn: bool = False,
        output: str | int | None = None,
        nan_is_missing: bool = False,
    ) -> None:
        super().__init__(output=output, nan_is_missing=nan_is_missing)
        self.scale = Noise(scale, learn=learn, site="likelihood.scale")

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """N(output, scale^2)."""
        return per_example(dist.Normal(output, like(quantities["scale"], output)))

    def closed(self, output: Moments, **quantities: Tensor | float) -> Closed | None:
        """N(mean, covariance + scale^2 I), exact for a Gaussian output."""
        return noisy_gaussian(output, like(quantities["scale"], output.loc))


class HeteroscedasticGaussian(Likelihood):
    """Real targets with Gaussian noise that depends on the input.

    The network's output `(batch, 2 d)` holds d means, then d raw scales, whose softplus is the standard deviation.

    Args:
        link: `"softplus"`, or `"exp"`: the raw scale is then the log of the standard deviation, and the mean
            log-likelihood under moments of the output is known in closed form (`fit(estimator="moments:bound")`).
        output: Which part of the network's output it reads; see `Likelihood`.
        nan_is_missing: Whether targets that are NaN are missing, and left out.

    Example:
        >>> import torch
        >>> HeteroscedasticGaussian()(torch.zeros(5, 2)).event_shape
        torch.Size([1])
    """

    def __init__(
        self,
        *,
        link: Literal["softplus", "exp"] = "softplus",
        output: str | int | None = None,
        nan_is_missing: bool = False,
    ) -> None:
        super().__init__(output=output, nan_is_missing=nan_is_missing)
        self.link = check_choice("likelihood HeteroscedasticGaussian link", link, ("softplus", "exp"))

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """N(mean, (softplus(raw) + 1e-6)^2), or N(mean, exp(raw)^2)."""
        if output.dim() < 2 or output.shape[-1] % 2:
            raise ValueError(
                "likelihood HeteroscedasticGaussian: expected a network output of shape (batch, 2 d), means then raw "
                f"scales, got {tuple(output.shape)}"
            )
        mean, raw = output.chunk(2, dim=-1)
        return per_example(dist.Normal(mean, raw.exp() if self.link == "exp" else positive(raw)))

    def bound(self, output: Moments, **quantities: Tensor | float) -> Callable[[Tensor], Tensor] | None:
        """The mean log density itself, for `link="exp"` and outputs of shape (batch, 2 d)."""
        return log_scale_mean(output) if self.link == "exp" and output.loc.dim() == 2 else None

    def extra_repr(self) -> str:
        """The link, where it is not the default."""
        return "" if self.link == "softplus" else f"link={self.link!r}"


class StudentT(Likelihood):
    """Real targets with heavy-tailed noise; the network's output is the center.

    Args:
        df: Degrees of freedom.
        scale: Scale of the noise: a number, a tensor with one for each output, or its prior, a distribution on the
            positive numbers.
        learn: Whether to fit the scale, starting from the number.
        output: Which part of the network's output is the center; see `Likelihood`.
        nan_is_missing: Whether targets that are NaN are missing, and left out.

    Example:
        >>> import torch
        >>> StudentT(df=4.0, scale=0.5)(torch.zeros(5, 1)).variance.squeeze()
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        df: float = 4.0,
        scale: float | Tensor | Distribution = 1.0,
        *,
        learn: bool = False,
        output: str | int | None = None,
        nan_is_missing: bool = False,
    ) -> None:
        super().__init__(output=output, nan_is_missing=nan_is_missing)
        self.df = check_positive("likelihood StudentT df", df)
        self.scale = Noise(scale, learn=learn, site="likelihood.scale")

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """StudentT(df, output, scale)."""
        return per_example(dist.StudentT(self.df, output, like(quantities["scale"], output)))

    def extra_repr(self) -> str:
        """The degrees of freedom."""
        return f"df={self.df:g}"
