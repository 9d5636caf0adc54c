"""The types of this library's arguments: models, guides, inputs and data sets, described by what they must provide.

A `BayesianModel` is a `Model`, and every guide in `pyrostoch.guides` is a `SiteGuide`. So is any class with the same
methods; it need not inherit from anything here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import DataLoader, Dataset

__all__ = ["Data", "FlatInputs", "Guide", "InDims", "Inputs", "Model", "Output", "PyroCallable", "SiteGuide"]

#: A batch of inputs: a tensor; a tuple or list, a network's positional inputs; or a dictionary, its keywords. They may
#: be nested, and hold dataclasses, and options that are no tensors. The first axis of each tensor counts the examples,
#: unless the model's `in_dims` says otherwise.
Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

#: Inputs as this library hands them on: a tensor, or a flat tuple, which ends with what its parts were.
FlatInputs = Tensor | tuple[Any, ...]

#: For each input the axis that counts the examples, as in `torch.vmap`; `None` for one that belongs to all of them. A
#: dictionary may leave out keys, whose inputs have axis 0.
InDims = int | None | tuple[Any, ...] | Mapping[str, Any]

#: The key of the targets in items that are dictionaries, or the keys of several.
TargetKeys = str | tuple[str, ...] | None

#: What a user gives as targets: a tensor, or a dictionary of several.
GivenTargets = Tensor | Mapping[str, Tensor]

#: A data set: inputs and targets as tensors; a dictionary of both; a data set or `DataLoader` of such items.
Data = tuple[Inputs, GivenTargets] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]

#: What a network returns: a tensor, or tensors in tuples, lists and dictionaries.
Output = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class PyroCallable(Protocol):
    """A function or module with Pyro statements: a model or a guide, as `pyro.infer` takes them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; its sample and param statements are seen by the active Pyro handlers."""


#: A Pyro guide: draws every latent variable of its model.
Guide = PyroCallable


class Model(PyroCallable, Protocol):
    """A Pyro model that can also return the distribution of its observations.

    Called as `model(x, y)` it observes the targets `y`.
    """

    def observation(self, x: Inputs) -> Distribution:
        """Draw the latent variables and return the distribution of the observations given them.

        The distribution has one batch axis, which counts the examples.

        Args:
            x: Inputs.
        """


class SiteGuide(PyroCallable, Protocol):
    """A guide that can return the distribution and the variational parameters of each of its sites."""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The sites that are weights of the network; random scales of priors and likelihoods are not among them."""

    def site_distribution(self, site: str) -> Distribution:
        """The distribution of one site at the current parameters.

        Args:
            site: The site's name.
        """

    def parameters_for(self, site: str) -> dict[str, nn.Parameter]:
        """The variational parameters of one site, by name.

        Args:
            site: The site's name.
        """
