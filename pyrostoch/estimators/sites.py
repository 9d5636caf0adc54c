"""States of neurons as Pyro sample sites, which can be traced, conditioned, scored and enumerated."""

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
    """A handler that makes the states of a network's neurons Pyro sample sites, one categorical site for each layer.

    The value of a site is the index of the state. For a Pyro model run inside the handler, `poutine.trace`,
    `poutine.condition`, log probabilities and guides see the neurons like any latent variable.

    With `enumerate=True` every neuron is a site `<layer>/<neuron>`, marked for parallel enumeration. Then
    `TraceEnum_ELBO(max_plate_nesting=1)`, with a guide that does not draw these sites, sums over all configurations:
    exact, but for small networks only. It needs a model that calls the network inside its plate of the examples, and
    layers that act on the last axis.

    A `BayesianModel` calls its network outside of its plate of the examples, `data`. If `net` is a `BayesianModel`, the
    handler opens this plate for the sites too, which scales them like the observations. A guide of these sites draws
    them inside `pyro.plate("data", model.num_data, subsample=torch.arange(len(x)))`. For a model that calls the network
    inside its own plate, give the network.

    Args:
        net: The network with the neurons, or a `BayesianModel` of it. Sites are named like the layers in the network;
            a layer may occur only once.
        enumerate: Whether each neuron is a site of its own, marked for enumeration.

    Raises:
        ValueError: Enumeration is requested for a `BayesianModel`, or the handler meets a layer that is not in `net`.

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
                    "StateSites: enumeration adds axes in front of the examples, which the likelihood of a "
                    "BayesianModel does not expect; write a model that calls the network inside its own plate, and "
                    "give the network"
                )
            self.num_data, net = int(net.num_data), net.net
        self.enumerate = enumerate
        self._names = {id(module): name for name, module in net.named_modules() if isinstance(module, KState)}

    def states(self, layer: KState, x: Tensor) -> Tensor:
        """Draw the states of a layer from its site, or from the sites of its neurons.

        Args:
            layer: The layer.
            x: Its input, the examples on the first axis; enumerated neurons of earlier layers add axes in front.
        """
        name = self._names.get(id(layer))
        if name is None:
            raise ValueError(f"StateSites: met a {type(layer).__name__} that is not in the given network")
        if self.num_data is None:
            return self._site(name or "states", layer, x)
        # The same frame as the plate that the model opens later; `pyro.plate` may open a name only once.
        with IndepMessenger("data", size=len(x), dim=-1), poutine.scale(scale=self.num_data / len(x)):
            return self._site(name or "states", layer, x)

    def _site(self, name: str, layer: KState, x: Tensor) -> Tensor:
        if self.enumerate:
            # Enumeration adds axes in front of the examples. They are flattened into the batch, since a layer with
            # parameters for each neuron expects the neurons on axis 1.
            logs = log_probabilities(layer, x.reshape(-1, x.shape[-1])).reshape(*x.shape, -1)
            indices = [
                pyro.sample(f"{name}/{neuron}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                for neuron, logits in enumerate(logs.unbind(-2))
            ]
            index = torch.stack(torch.broadcast_tensors(*indices), dim=-1)
        else:
            distribution = dist.Categorical(logits=log_probabilities(layer, x)).to_event(1)
            index = pyro.sample(name, distribution).reshape(x.shape)
        values = torch.tensor(layer.states, dtype=x.dtype, device=x.device)
        return values[index]
