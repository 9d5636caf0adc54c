"""States of neurons as Pyro sites: traced, conditioned, scored, enumerated."""

from __future__ import annotations

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn

from pyrostoch.estimators.states import States, log_probabilities
from pyrostoch.layers import KState
from pyrostoch.model import BayesianModel

__all__ = ["StateSites"]


class StateSites(States):
    """Makes the states of a network's neurons sample sites: numbers of states, categorical, one site a layer.

    Around a Pyro model, `poutine.trace`, `poutine.condition`, log probabilities and guides then see the neurons as they
    see any latent variable. With `enumerate=True` every neuron is a site of its own, `<layer>/<neuron>`, marked for
    parallel enumeration: `TraceEnum_ELBO(max_plate_nesting=1)` with a guide that has none of them sums over all
    configurations, which is exact and for small networks only.

    A `BayesianModel` calls its network in front of the plate of the examples: where it is given, that plate, `data`, is
    opened for the sites too, and scales them as it scales the observations; a guide of theirs draws inside
    `pyro.plate("data", model.num_data, subsample=torch.arange(len(x)))`. In a model that calls the network inside its
    own plate, give the network; enumeration wants such a model, and layers that act on the last axis.

    Args:
        net: The network whose neurons are meant, or a `BayesianModel` of it. Its names of layers are those of the
            sites; each layer has one place.
        enumerate: Whether each neuron is a site, to be enumerated.

    Raises:
        ValueError: Enumeration is asked for in a `BayesianModel`, or a layer is met that the network does not have.

    Example:
        >>> from pyrostoch.layers import Ternary
        >>> net = nn.Sequential(nn.Linear(2, 3), Ternary(), nn.Linear(3, 1))
        >>> def model(x):
        ...     with pyro.plate("data", len(x)), StateSites(net):
        ...         return net(x)
        >>> trace = poutine.trace(model).get_trace(torch.zeros(5, 2))
        >>> trace.nodes["1"]["value"].shape, trace.log_prob_sum() < 0
        (torch.Size([5, 3]), tensor(True))
    """

    def __init__(self, net: nn.Module, *, enumerate: bool = False) -> None:
        super().__init__()
        self.num_data: int | None = None
        if isinstance(net, BayesianModel):
            if enumerate:
                raise ValueError(
                    "StateSites: enumeration adds axes in front of the examples, which a BayesianModel's likelihood "
                    "does not expect; call the network inside a plate of your own model, and give the network"
                )
            self.num_data, net = int(net.num_data), net.net
        self.enumerate = enumerate
        self._names = {id(module): name for name, module in net.named_modules() if isinstance(module, KState)}

    def states(self, layer: KState, x: Tensor) -> Tensor:
        """The states of a layer, from its site or its neurons'.

        Args:
            layer: The layer.
            x: Its input, with the examples in front of the neurons; enumerated neurons before them add axes in front.
        """
        name = self._names.get(id(layer))
        if name is None:
            raise ValueError(f"StateSites: met a {type(layer).__name__} that is not in the network it was given")
        if self.num_data is None:
            return self._site(name or "states", layer, x)
        # The very frame of the plate that the model opens for its observations, which may be opened once only.
        with IndepMessenger("data", size=len(x), dim=-1), poutine.scale(scale=self.num_data / len(x)):
            return self._site(name or "states", layer, x)

    def _site(self, name: str, layer: KState, x: Tensor) -> Tensor:
        if self.enumerate:
            # Enumerated neurons stand in front of the examples, where a layer with values of its own for each neuron
            # does not look for them.
            logs = log_probabilities(layer, x.reshape(-1, x.shape[-1])).reshape(*x.shape, -1)
            every = [
                pyro.sample(f"{name}/{neuron}", dist.Categorical(logits=each), infer={"enumerate": "parallel"})
                for neuron, each in enumerate(logs.unbind(-2))
            ]
            drawn = torch.stack(torch.broadcast_tensors(*every), dim=-1)
        else:
            distribution = dist.Categorical(logits=log_probabilities(layer, x)).to_event(1)
            drawn = pyro.sample(name, distribution).reshape(x.shape)
        values = torch.tensor(layer.states, dtype=x.dtype, device=x.device)
        return values[drawn]
