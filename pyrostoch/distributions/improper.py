"""Priors with infinite mass: they can be used in an ELBO, but cannot be sampled."""

from __future__ import annotations

from typing import NoReturn

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size


class ImproperPrior(TorchDistribution):
    """A prior with infinite mass, so no probability distribution: it can be used in an ELBO, but cannot be sampled.

    Samples, mean and variance raise a `ValueError` that names the distribution. The ELBO with such a prior is defined
    up to one constant per weight. A subclass defines `log_prob`, or registers a KL divergence with torch.

    Args:
        batch_shape: As in torch.
        validate_args: Check the values given to `log_prob`; torch's default when None.

    Example:
        >>> import torch
        >>> class Flat(ImproperPrior):
        ...     def log_prob(self, value):
        ...         return torch.zeros_like(value)
        >>> Flat().log_prob(torch.tensor([1.0, -3.0]))
        tensor([0., 0.])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real
    has_rsample = False
    improper = True

    def __init__(self, batch_shape: _size = (), validate_args: bool | None = None) -> None:
        super().__init__(Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: ImproperPrior | None = None) -> ImproperPrior:
        """The same prior with a larger batch shape."""
        # Such a prior has no tensors to expand: all attributes but the shape are copied.
        new = self.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        super(ImproperPrior, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _refuse(self, requested: str) -> NoReturn:
        raise ValueError(
            f"{type(self).__name__} is an improper prior and has no {requested}. Use a proper prior (Normal, Laplace, "
            "StudentT, ScaleMixture), or draw the weight from its guide."
        )

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Raises `ValueError`: the prior cannot be sampled."""
        self._refuse("samples")

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Raises `ValueError`: the prior cannot be sampled."""
        self._refuse("samples")

    @property
    def mean(self) -> Tensor:
        """Raises `ValueError`: the integral does not exist."""
        self._refuse("mean")

    @property
    def variance(self) -> Tensor:
        """Raises `ValueError`: the integral does not exist."""
        self._refuse("variance")
