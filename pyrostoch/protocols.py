"""What functions of this library take: models, guides, inputs and data sets, by what is asked of them.

A `BayesianModel` is a `Model`, every guide of `pyrostoch.guides` a `SiteGuide`; so is any class of your own with the
same methods, which need not inherit from anything here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import DataLoader, Dataset

__all__ = ["Data", "Guide", "Inputs", "Model", "Output", "PyroCallable", "SiteGuide"]

#: A batch of inputs: a tensor, or a tuple of them where a network takes several. The first axis counts the examples.
Inputs = Tensor | tuple[Tensor, ...]

#: A data set: inputs and targets as tensors, or a data set or loader that gives such pairs.
Data = tuple[Inputs, Tensor] | Dataset[Any] | DataLoader[Any]

#: What a network returns: a tensor, or tensors in tuples, lists and dictionaries.
Output = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class PyroCallable(Protocol):
    """A function or module with Pyro statements: a model or a guide, as `pyro.infer` takes them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; sample and param statements go to the handlers in force."""


#: A Pyro guide: draws every latent variable of its model.
Guide = PyroCallable


class Model(Protocol):
    """A Pyro model that can be asked for its predictions.

    Called as `model(x, y)` it observes the targets `y`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; sample statements go to the handlers in force."""

    def observation(self, x: Inputs) -> Distribution:
        """Draw the latent variables and return the distribution of the observations, one batch axis for the examples.

        Args:
            x: Inputs.
        """


class SiteGuide(Protocol):
    """A guide that tells each site's distribution and its parameters."""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The sites that are weights of the network, without random scales of priors and likelihoods."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw every site, by name."""

    def site_distribution(self, site: str) -> Any:
        """The distribution of one site as it stands now.

        Args:
            site: The site's name.
        """

    def parameters_for(self, site: str) -> dict[str, nn.Parameter]:
        """The variational parameters of one site, by name.

        Args:
            site: The site's name.
        """
