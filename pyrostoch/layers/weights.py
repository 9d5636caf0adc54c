"""`RandomWeights`: the mixin that gives a torch layer priors on its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._fixed_entries import fixed_entries, partly_fixed
from pyrostoch.effects import call_network, inside_network
from pyrostoch.effects.usage import UsageCache
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Prior, PriorSpec, assign
from pyrostoch.sites import Site, announce_parameters, draw_weight

__all__ = ["RandomWeights"]


class RandomWeights(nn.Module):
    """Mixin for a torch layer whose parameters have priors; list it before the torch layer among the base classes.

    In a `BayesianModel` the model draws the weights, and the sites are named by the parameters' paths. Used alone in a
    Pyro model, the layer draws its own weights at each call, as sites `<name>.<parameter>` (or `<parameter>` without a
    name), and the active interpretation treats it as a network of one layer. Call it outside plates.

    Parameters with a prior are frozen: draws replace them, and their values are the initial values of guides. The
    `state_dict` is that of torch's layer; the constructor creates the priors again. Without a prior, the layer behaves
    as torch's layer.

    Args:
        args: Arguments of torch's layer.
        prior: A prior, a distribution, a dictionary from patterns of parameter names to priors such as
            `{"weight*": Normal(), "bias*": Normal()}`, or a callable; a single prior applies to the weights, not to the
            biases.
        name: Prefix of the site names where the layer is used alone.
        kwargs: Keyword arguments of torch's layer.

    Attributes:
        priors: The prior of each random parameter, by its name in the layer.

    Raises:
        ValueError: A pattern matches no parameter, or a parameter cannot be made random.

    Example:
        >>> import torch, pyrostoch as ps
        >>> class Bilinear(RandomWeights, nn.Bilinear):
        ...     '''A bilinear layer with random weights.'''
        >>> layer = Bilinear(2, 3, 4, prior=ps.priors.Normal(), name="pair")
        >>> list(layer.sites), layer(torch.ones(5, 2), torch.ones(5, 3)).shape
        (['pair.weight'], torch.Size([5, 4]))
    """

    def __init__(self, *args: Any, prior: PriorSpec = None, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if name is not None and not (isinstance(name, str) and name):
            raise ValueError(f"{type(self).__name__}: name: expected the prefix of the site names, got {name!r}")
        self.name = name
        # A plain dictionary, not submodules, so that the parameters of priors do not become those of the network.
        self.priors: dict[str, Prior] = {}
        self.priors = assign(self, prior)
        self._usage_cache: UsageCache = {}
        for parameter, parameter_prior in self.priors.items():
            self.get_parameter(parameter).requires_grad_(False)
            path, _, last = parameter.rpartition(".")
            if path:  # `assign` looks for priors at the module that holds the parameter, such as attention's `out_proj`
                submodule: Any = self.get_submodule(path)
                submodule.priors = {**getattr(submodule, "priors", {}), last: parameter_prior}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Set the signature of the class to that of torch's layer plus `prior` and `name`."""
        super().__init_subclass__(**kwargs)
        layer = next((base for base in cls.__bases__ if not issubclass(base, RandomWeights)), None)
        if layer is None:
            return
        parameters = list(inspect.signature(layer).parameters.values())
        at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
        added = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in ("prior", "name")]
        signature = inspect.Signature([*parameters[:at], *added, *parameters[at:]])
        cls.__signature__ = signature  # type: ignore[attr-defined]

    @property
    def sites(self) -> dict[str, Site]:
        """The layer's latent variables where it is used alone, by name; their `init` are its current values."""
        if not self.priors:
            return {}
        # A model of this one layer describes them; its likelihood has no latent variables.
        described = BayesianModel(self, likelihood=Categorical(), num_data=1).sites
        return {self._site(name): replace(site, name=self._site(name)) for name, site in described.items()}

    def draw(self) -> dict[str, Tensor]:
        """Draw the layer's random weights from their priors as Pyro sites; the result is by parameter name."""
        weights: dict[str, Tensor] = {}
        for parameter, prior in self.priors.items():
            site, shape = self._site(parameter), self.get_parameter(parameter).shape
            constants = fixed_entries(self, parameter) if parameter in partly_fixed(self) else None
            weights[parameter] = draw_weight(site, prior.distribution(site, shape), shape, constants)
        return weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call torch's layer with weights that the enclosing model has drawn, or that are drawn now.

        Args:
            args: Inputs of torch's layer.
            kwargs: Keyword inputs of torch's layer.
        """
        if not self.priors or inside_network():
            return super().forward(*args, **kwargs)
        fitted = [name for name, prior in self.priors.items() if next(prior.parameters(), None) is not None]
        if fitted:
            raise ValueError(
                f"layer {self.name or type(self).__name__!r}: the prior of {name_list(fitted)} has a parameter to be "
                "fitted, which needs a model; put the layer into a BayesianModel, or use a fixed or Hierarchical prior"
            )
        announce_parameters(self, self.name or "layer")
        sites = {parameter: self._site(parameter) for parameter in self.priors}
        constants = {name: fixed_entries(self, name) for name in partly_fixed(self)}
        return call_network(
            self, self.draw(), args, kwargs, sites=sites, usage_cache=self._usage_cache, fixed=constants
        )

    def extra_repr(self) -> str:
        """The text of torch's layer, and the priors."""
        priors = ", ".join(f"{name} ~ {prior!r}" for name, prior in self.priors.items())
        return ", ".join(part for part in (super().extra_repr(), priors) if part)

    def _site(self, parameter: str) -> str:
        return f"{self.name}.{parameter}" if self.name else parameter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for prior in self.priors.values():
            prior._apply(fn)
        return super()._apply(fn, recurse)
