"""Priors without parameters to fit and without random variables of their own, proper and improper."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pyro import distributions as dist
from torch import Tensor

from pyrostoch import distributions
from pyrostoch._checks import check_positive
from pyrostoch.priors.base import Prior

__all__ = [
    "ARD",
    "Grid",
    "Laplace",
    "LogUniform",
    "Normal",
    "RankOne",
    "ScaleMixture",
    "StudentT",
    "SymmetricBinomial",
    "UniformMultinomial",
]


class _Fixed(Prior):
    """A prior whose parameters are buffers; creating its distribution once checks their values."""

    df: Tensor
    loc: Tensor
    scale: Tensor
    mix: Tensor
    scale1: Tensor
    scale2: Tensor
    weight_scale: Tensor

    def __init__(self, **values: float | Tensor) -> None:
        super().__init__()
        for name, value in values.items():
            # Double precision here; the copy for a network's parameter takes that parameter's dtype. Values only: no
            # gradient reaches a tensor given here, and its later changes do not reach the prior.
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64).detach().clone())
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
        """N(loc, scale^2), expanded to the shape of the weights."""
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
        """Laplace(loc, scale), expanded to the shape of the weights."""
        return dist.Laplace(self.loc, self.scale).expand(shape)


class StudentT(_Fixed):
    """Student's t prior, with heavier tails than a Gaussian. The KL of a guide to it is estimated by Monte Carlo.

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
        """StudentT(df, loc, scale), expanded to the shape of the weights."""
        return dist.StudentT(self.df, self.loc, self.scale).expand(shape)


class ScaleMixture(_Fixed):
    """Mixture of two Gaussians of mean zero, a smooth spike and slab. The KL to it is estimated by Monte Carlo.

    Args:
        mix: Probability of the first Gaussian, in (0, 1).
        scale1: Standard deviation of the first Gaussian.
        scale2: Standard deviation of the second Gaussian.

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
        """The mixture, expanded to the shape of the weights."""
        return distributions.ScaleMixture(self.mix, self.scale1, self.scale2).expand(shape)


class RankOne(_Fixed):
    r"""The prior of the guide `RankOne`: factors r and s are N(1, scale^2), and the fixed W has that of N(0, v^2).

    The ELBO is that of the model whose random variables are the factors; it contains the log density of W, which is
    fitted, not random, so that it is not to be compared with the ELBO of random weights.

    Args:
        scale: Standard deviation of the factors, positive.
        weight_scale: Standard deviation v, positive.

    References:
        Dusenberry, Jerfel, Wen, Ma, Snoek, Heller, Lakshminarayanan, Tran, "Efficient and scalable Bayesian neural nets
        with rank-1 factors", 2020.

    Example:
        >>> RankOne(0.1).improper
        True
    """

    improper = True

    def __init__(self, scale: float | Tensor = 0.1, weight_scale: float | Tensor = 1.0) -> None:
        check_positive("RankOne scale", float(scale))
        check_positive("RankOne weight_scale", float(weight_scale))
        super().__init__(scale=scale, weight_scale=weight_scale)

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The distribution, expanded to the shape of the weights."""
        return distributions.RankOne(self.scale, self.weight_scale).expand(shape)


class LogUniform(Prior):
    """The improper prior p(|w|) ~ 1/|w| of variational dropout: uniform in log |w|, so it favors no scale.

    The KL of a Gaussian guide N(mu, alpha mu^2) to it depends on alpha alone and is exact here. The prior cannot be
    sampled, and it has no proper posterior, so NUTS raises an error.

    Args:
        approximation: `None` for the exact KL, or `"molchanov"` for the sigmoid fit of Molchanov et al. (2017).

    References:
        Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", 2015; Molchanov,
        Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", 2017; Hron, Matthews, Ghahramani,
        "Variational Bayesian dropout: pitfalls and fixes", 2018.

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
        """The log-uniform distribution, expanded to the shape of the weights."""
        return distributions.LogUniform(approximation=self.approximation).expand(shape)

    def extra_repr(self) -> str:
        """The approximation, if there is one."""
        return "" if self.approximation is None else f"approximation={self.approximation!r}"


class Grid(Prior):
    """Uniform over the k levels of a weight on a grid, at any scale of the grid.

    For the guides `CategoricalWeights` and `BinomialWeights`, whose KL to it is log k minus the entropy of the
    distribution over levels.

    Example:
        >>> Grid().improper
        True
    """

    improper = True

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The distribution, expanded to the shape of the weights."""
        return distributions.Grid().expand(shape)


class SymmetricBinomial(Prior):
    r"""The number of a weight's level is Binomial(n, 1/2) for n + 1 levels, at any scale of the levels.

    For the guide `BinomialWeights`, whose KL to it is that of n coins to fair coins, and for `CategoricalWeights`,
    where it favors the levels in the middle: with three levels their probabilities are 1/4, 1/2, 1/4.

    Example:
        >>> SymmetricBinomial().improper
        True
    """

    improper = True

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The distribution, expanded to the shape of the weights."""
        return distributions.SymmetricBinomial().expand(shape)


class UniformMultinomial(Prior):
    r"""Each trial of a kernel of counts falls on all entries and both signs alike, at any scale of the weights.

    For the guide `MultinomialWeights`; the KL is that of the counts, n log(2 F) minus n times the entropy of a trial
    for a kernel of F weights.

    Example:
        >>> UniformMultinomial().improper
        True
    """

    improper = True

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The distribution, expanded to the shape of the weights."""
        return distributions.UniformMultinomial().expand(shape)


class ARD(Prior):
    """Automatic relevance determination: N(0, tau^2), with each weight's tau at the optimum of the ELBO.

    The KL of a Gaussian guide N(mu, alpha mu^2) to it is log(1 + 1/alpha) / 2. The prior has no density, only
    closed-form KLs of Gaussian and uniform guides, so it works with `pyrostoch.ELBO`, but not with `Trace_ELBO` or
    NUTS.

    References:
        MacKay, "Bayesian non-linear modeling for the prediction competition", 1994; Tipping, "Sparse Bayesian learning
        and the relevance vector machine", 2001; Kharitonov, Molchanov, Vetrov, "Variational dropout via empirical
        Bayes", 2018.

    Example:
        >>> ARD()
        ARD()
    """

    improper = True

    def distribution(self, name: str, shape: torch.Size) -> Any:
        """The ARD distribution, expanded to the shape of the weights."""
        return distributions.ARD().expand(shape)
