"""`PyroNetwork`: wraps a user's Pyro module with random layers, so that guides can be built for it."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.effects.activation_sites import site_names
from pyrostoch.layers.weights import RandomWeights
from pyrostoch.sites import Site, announce_parameters

__all__ = ["PyroNetwork"]


class PyroNetwork(nn.Module):
    """Wraps a module that contains random layers and is a Pyro model, or a part of one.

    It collects the layers' sites, from which guides are built, and names each layer without a name by its path in the
    module. Calling it calls the module; `pyro.infer.SVI` then also trains the parameters without a prior.

    Args:
        module: A module with layers from `pyrostoch.layers`, each called once in its forward pass.

    Raises:
        ValueError: The module has no layer with a prior, two layers have the same name, or activations have a prior.

    Example:
        >>> import pyro, torch, pyrostoch as ps
        >>> import pyro.distributions as dist
        >>> class Regression(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc1 = ps.layers.Linear(2, 8, prior=ps.priors.Normal())
        ...         self.fc2 = ps.layers.Linear(8, 1, prior=ps.priors.Normal())
        ...     def forward(self, x, y=None):
        ...         mean = self.fc2(torch.tanh(self.fc1(x)))
        ...         with pyro.plate("data", 100, subsample=torch.arange(len(x))):
        ...             return pyro.sample("obs", dist.Normal(mean, 0.1).to_event(1), obs=y)
        >>> model = PyroNetwork(Regression())
        >>> guide = ps.guides.Additive(model)
        >>> list(model.sites)
        ['fc1.weight', 'fc2.weight']
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ps.ELBO("local"))
        >>> loss = svi.step(torch.ones(4, 2), torch.ones(4, 1))
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        layers = self._layers()
        if drawn := site_names(module):
            raise ValueError(
                f"PyroNetwork: the activations of layer(s) {name_list(drawn)} have a prior, or a gradient by the score "
                "function, whose terms of the ELBO only a BayesianModel adds; use one, or prior=None"
                f"{see('how-to/stochastic_layers')}"
            )
        if not layers:
            raise ValueError(
                f"PyroNetwork: {type(module).__name__} has no layer with a prior; build it from pyrostoch.layers with "
                "prior=..., or pass the whole network to BayesianModel"
            )
        for path, layer in layers.items():
            layer.name = layer.name or path or None
        names = [layer.name for layer in layers.values()]
        repeated = sorted({str(name) for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"PyroNetwork: layers of {type(module).__name__} share the name(s) {name_list(repeated)}; give them "
                "different names, or none"
            )

    @property
    def sites(self) -> dict[str, Site]:
        """The latent variables of all random layers, by name."""
        return {name: site for layer in self._layers().values() for name, site in layer.sites.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        announce_parameters(self.module, "model")
        return self.module(*args, **kwargs)

    def _layers(self) -> dict[str, RandomWeights]:
        modules = self.module.named_modules()
        return {path: layer for path, layer in modules if isinstance(layer, RandomWeights) and layer.priors}
