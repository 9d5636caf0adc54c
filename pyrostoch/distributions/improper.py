"""Priors with infinite mass: they weigh a posterior, but cannot be sampled."""

from __future__ import annotations

from typing import NoReturn

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size


class ImproperPrior(TorchDistribution):
    """A prior that is no probability distribution: it enters an ELBO, and cannot be sampled.

    Anything that would need a draw or a moment raises a ``ValueError`` that names the distribution. The ELBO under such
    a prior is defined up to one constant per weight.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real
    has_rsample = False
    improper = True

    def __init__(self, batch_shape: _size = (), validate_args: bool | None = None) -> None:
        super().__init__(Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: ImproperPrior | None = None) -> ImproperPrior:
        """The same prior over a larger batch shape."""
        # Such a prior has no tensors, so all it knows besides its shape is carried over as it is.
        new = self.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        super(ImproperPrior, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _refuse(self, wanted: str) -> NoReturn:
        raise ValueError(
            f"{type(self).__name__} is an improper prior and has no {wanted}. Use a proper prior (Normal, Laplace, "
            "StudentT, ScaleMixture), or draw the weight from its guide."
        )

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Refused: there is nothing to draw from."""
        self._refuse("samples")

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Refused: there is nothing to draw from."""
        self._refuse("samples")

    @property
    def mean(self) -> Tensor:
        """Refused: the integral does not exist."""
        self._refuse("mean")

    @property
    def variance(self) -> Tensor:
        """Refused: the integral does not exist."""
        self._refuse("variance")
