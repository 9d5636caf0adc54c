"""Random activations with a prior as Pyro sites: p(h) in the model, q(h | x) in the guide.

`BayesianModel` enters `ActivationSites` around its network. A layer whose activations have a prior then becomes a Pyro
site with the name of its module. Under Pyro's own ELBOs the model draws it from the prior, or takes the guide's draw.
Under an interpretation of this library, the model's single pass draws it from q(h | x), and the site keeps both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._manual import see
from pyrostoch.effects.activation import wants_site
from pyrostoch.effects.active import active_call

__all__ = [
    "ActivationSite",
    "ActivationSites",
    "ExamplePlate",
    "StochasticActivation",
    "activation_of",
    "guide_draws_activations",
    "needs_score",
    "site_names",
]

_KEY = "pyrostoch.activation"


class StochasticActivation(Protocol):
    """What a layer must provide besides `RandomActivation` so that its activations can be Pyro sites.

    Attributes:
        prior: Whatever makes the prior p(h); `None` where the prior is q itself.
        gradient: How draws are differentiated.
    """

    prior: object | None
    gradient: str

    def posterior(self, x: Any) -> Distribution:
        """q(h | x), whose batch shape is that of the first axis."""

    def prior_of(self, x: Any, posterior: Distribution) -> Distribution:
        """p(h) in the shape of q(h | x), which it is itself where there is no prior."""

    def draw_arranged(self, x: Any) -> Tensor:
        """A draw from q(h | x), in the shape of its distribution, differentiated by the layer's `gradient`."""

    def restored(self, value: Tensor, x: Any) -> Tensor:
        """The activations in the shape and the dtype of the layer's output."""


@dataclass(frozen=True)
class ActivationSite:
    """A random activation as a Pyro site; it is kept in the site's `infer` dictionary.

    Args:
        layer: The layer.
        x: What the activations depend on.
        posterior: q(h | x).
        prior: p(h); the posterior where the layer has none.
        separate: Whether the cost of an example depends on its own activations only.
    """

    layer: StochasticActivation
    x: Any
    posterior: Distribution
    prior: Distribution
    separate: bool

    def draw(self) -> Tensor:
        """A draw from the posterior, differentiated by the layer's gradient."""
        return self.layer.draw_arranged(self.x)


def activation_of(site: Any) -> ActivationSite | None:
    """The random activation that a Pyro message or a trace's node is, if it is one.

    Args:
        site: The message.
    """
    infer = site["infer"]
    found: ActivationSite | None = infer.get(_KEY) if infer else None
    return found


class ExamplePlate:
    """The plate of a model's examples, which is made when it is first needed.

    Args:
        size: Number of examples of the whole data set.
        count: Number of examples of the batch; `None` where no input has an axis that counts them.
        device: The device of the plate's indices.
        shares_inputs: Whether an input belongs to all examples.

    Example:
        >>> import torch
        >>> ExamplePlate(100, 10, torch.device("cpu")).plate.size
        100
    """

    def __init__(self, size: int, count: int | None, device: torch.device, *, shares_inputs: bool = False) -> None:
        self.size, self.count, self.device, self.shares_inputs = size, count, device, shares_inputs

    @functools.cached_property
    def plate(self) -> Any:
        """The plate, the same one each time."""
        return pyro.plate("data", size=self.size, subsample=torch.arange(self.count or 0, device=self.device))

    @contextlib.contextmanager
    def around(self, name: str, distribution: Any) -> Iterator[Any]:
        """The context in which an activation is drawn, and its distribution there.

        Args:
            name: Name of the activation's site.
            distribution: A distribution whose batch axis is the first one of the activations.

        Raises:
            ValueError: No input has an axis that counts the examples.
        """
        if self.count is None:
            raise ValueError(
                f"layer {name!r}: activations with a prior need an input with an axis that counts the examples "
                "(in_dims), since their rate is scaled to the whole data set; use prior=None"
                f"{see('how-to/stochastic_layers')}"
            )
        if distribution.batch_shape[0] == self.count:
            with self.plate:
                yield distribution
        else:  # time first, or all tokens of the batch on one axis: the sum over all of them is scaled
            shape = (*distribution.batch_shape, *distribution.event_shape)
            known = shape[0] % self.count == 0 or (len(shape) > 2 and shape[1] == self.count)
            if self.shares_inputs or not shape[0] or not known:
                raise ValueError(
                    f"layer {name!r}: its activations of shape {tuple(shape)} are not those of the {self.count} "
                    "examples of the batch, so that it is not known how often their rate counts in the whole data set; "
                    f"put the examples on the first axis, or use prior=None{see('how-to/stochastic_layers')}"
                )
            with poutine.scale(scale=self.size / self.count):
                yield distribution.to_event(1)


class ActivationSites(Messenger):
    """Makes Pyro sites of the random activations of one network call.

    Args:
        net: The network.
        plate: The plate of the examples; `None` where nothing is scaled to a data set.
        from_posterior: Whether sites are drawn from q(h | x), as in a guide, not from the prior.
        separate: Whether examples are separate in the network, where a gradient depends on it.
    """

    def __init__(
        self,
        net: nn.Module,
        plate: ExamplePlate | None,
        *,
        from_posterior: bool,
        separate: bool,
    ) -> None:
        super().__init__()
        self.net, self.plate, self.from_posterior, self.separate = net, plate, from_posterior, separate
        self._names: dict[int, str] = {}
        self._calls: dict[str, int] = {}
        self._layers: dict[str, object] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        site = activation_of(msg)  # of the guide, where its draw is taken
        if site is not None and self._layers.get(msg["name"]) is not site.layer:
            raise ValueError(
                f"layer {msg['name']!r}: the guide drew its activations from another model's layer; build "
                "guides.Amortised from this model, or copy both together by copy.deepcopy((model, guide))"
                f"{see('how-to/stochastic_layers')}"
            )

    def _pyro_activation(self, msg: Any) -> None:
        # No call is active where a pass only analyzes the network.
        if active_call() is not None and wants_site(msg["kwargs"]["layer"]):
            msg["kwargs"]["sites"] = self

    def name_of(self, layer: object) -> str:
        """The name of the layer's module, or of the network's only one.

        Args:
            layer: The layer.
        """
        if not self._names:
            self._names = {id(module): name for name, module in self.net.named_modules()}
        return self._names.get(id(layer), "") or "activation"

    def sample(self, layer: Any, x: Any) -> Tensor:
        """The activations of a layer as a Pyro site; a layer called again in a pass has a site for each call.

        Args:
            layer: The layer.
            x: What its activations depend on.
        """
        name = self.name_of(layer)
        count = self._calls[name] = self._calls.get(name, 0) + 1
        name = name if count == 1 else f"{name}:{count}"
        posterior = layer.posterior(x)
        prior = layer.prior_of(x, posterior)
        infer: dict[str, Any] = {}
        if layer.gradient == "score" and layer.pyro_baseline is not None:
            infer["baseline"] = dict(layer.pyro_baseline)
        infer[_KEY] = ActivationSite(layer, x, posterior, prior, self.separate)
        self._layers[name] = layer
        fn: Any = posterior if self.from_posterior else prior
        if self.plate is None:
            value = pyro.sample(name, fn, infer=cast(Any, infer))
        else:
            with self.plate.around(name, fn) as scaled:
                value = pyro.sample(name, scaled, infer=cast(Any, infer))
        if value.shape != fn.shape():
            raise ValueError(
                f"layer {name!r}: expected activations of shape {tuple(fn.shape())}, got {tuple(value.shape)}. They "
                "are drawn inside a pyro.plate (vectorize_particles and Predictive(parallel=True) open one), which "
                f"draws them once for each of its entries; draw in a loop{see('how-to/stochastic_layers')}"
            )
        return layer.restored(value, x)


def site_names(net: nn.Module) -> list[str]:
    """The names of the layers whose activations are Pyro sites.

    Args:
        net: The network.
    """
    return [name for name, part in net.named_modules() if wants_site(part) and hasattr(part, "posterior")]


def needs_score(net: nn.Module) -> bool:
    """Whether gradients by the score function are computed.

    Args:
        net: The network.
    """
    return torch.is_grad_enabled() and any(getattr(part, "gradient", "") == "score" for part in net.modules())


@effectful(type="guide_activations")
def guide_draws_activations() -> bool:
    """Whether a guide must draw the random activations itself: not under an interpretation, where the model does."""
    return True
