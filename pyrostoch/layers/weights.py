"""What makes a torch layer random: priors for its parameters, drawn by whoever calls it in a Pyro model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch.effects import call_network, inside_network
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel, Site, announce_parameters, draw_weight
from pyrostoch.priors import Prior, PriorSpec, assign

__all__ = ["RandomWeights"]


class RandomWeights(nn.Module):
    """Mixin: a torch layer whose parameters have priors. Put it before the layer among the bases.

    Inside a `BayesianModel` the model draws the weights and the sites are named by the parameters' paths. Used alone in
    a Pyro model, the layer draws its own weights when it is called, as sites `<name>.<parameter>` (`<parameter>`
    without a name), and calls itself under the interpretation in force, as a network of one layer. Call it
    outside plates.

    Parameters with a prior are frozen: draws stand in for them, and their values tell guides where to start. The
    `state_dict` is that of torch's own layer; the priors are rebuilt by the constructor. A layer without a prior is
    torch's own layer.

    Args:
        args: What torch's layer takes.
        prior: A prior, a distribution, rules by pattern of parameter name such as `{"weight*": Normal(), "bias*":
            Normal()}`, or a callable; a single prior goes to the weights, not to the biases.
        name: Prefix of the site names where the layer is used alone.
        kwargs: What torch's layer takes.

    Attributes:
        priors: The prior of each random parameter, by its name in the layer.

    Raises:
        ValueError: A rule matches no parameter, or a parameter cannot be made random.

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
        # Plain dictionaries: as submodules, the priors' numbers would pass for parameters of the network.
        self.priors: dict[str, Prior] = {}
        self.priors = assign(self, prior)
        self._usage_cache: dict[Any, Any] = {}
        for parameter, own in self.priors.items():
            self.get_parameter(parameter).requires_grad_(False)
            holder, _, last = parameter.rpartition(".")
            if holder:  # a model asks the module that holds the parameter, as attention's `out_proj` does
                submodule: Any = self.get_submodule(holder)
                submodule.priors = {**getattr(submodule, "priors", {}), last: own}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the constructor of torch's layer with the two arguments that are added to it."""
        super().__init_subclass__(**kwargs)
        layer = next((base for base in cls.__bases__ if not issubclass(base, RandomWeights)), None)
        if layer is None:
            return
        taken = list(inspect.signature(layer).parameters.values())
        at = len(taken) - (bool(taken) and taken[-1].kind is inspect.Parameter.VAR_KEYWORD)
        added = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in ("prior", "name")]
        cls.__signature__ = inspect.Signature([*taken[:at], *added, *taken[at:]])  # type: ignore[attr-defined]

    @property
    def sites(self) -> dict[str, Site]:
        """The layer's latent variables where it is used alone, by name, starting from its present values."""
        if not self.priors:
            return {}
        # A model of this one layer knows them; its likelihood, which draws nothing, adds none.
        described = BayesianModel(self, likelihood=Categorical(), num_data=1).sites
        return {self._site(name): replace(site, name=self._site(name)) for name, site in described.items()}

    def draw(self) -> dict[str, Tensor]:
        """Draw the layer's random weights from their priors as Pyro sites, by parameter name."""
        weights: dict[str, Tensor] = {}
        for parameter, prior in self.priors.items():
            site, shape = self._site(parameter), self.get_parameter(parameter).shape
            weights[parameter] = draw_weight(site, prior.distribution(site, shape), shape)
        return weights

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Torch's layer with drawn weights: those of the model around it, or draws of its own."""
        if not self.priors or inside_network():
            return super().forward(*args, **kwargs)
        learned = [name for name, prior in self.priors.items() if next(prior.parameters(), None) is not None]
        if learned:
            raise ValueError(
                f"layer {self.name or type(self).__name__!r}: the prior of {name_list(learned)} has a number to be "
                "fitted, which a model owns; put the layer into a BayesianModel, or give it a fixed prior or a "
                "Hierarchical one"
            )
        announce_parameters(self, self.name or "layer")
        sites = {parameter: self._site(parameter) for parameter in self.priors}
        return call_network(self, self.draw(), args, kwargs, sites=sites, usage_cache=self._usage_cache)

    def extra_repr(self) -> str:
        """What torch's layer shows, and the priors."""
        priors = ", ".join(f"{name} ~ {prior!r}" for name, prior in self.priors.items())
        return ", ".join(part for part in (super().extra_repr(), priors) if part)

    def _site(self, parameter: str) -> str:
        return f"{self.name}.{parameter}" if self.name else parameter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for prior in self.priors.values():
            prior._apply(fn)
        return super()._apply(fn, recurse)
