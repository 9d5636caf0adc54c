"""Many draws of what a client sends for the same examples, without running the network for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrostoch._inputs import count_examples, take_examples
from pyrostoch._seeds import mixed_seed
from pyrostoch.obfuscate.channel import DrawnActivations, is_normal
from pyrostoch.obfuscate.client import Client, on_rows
from pyrostoch.obfuscate.weights import weights_before
from pyrostoch.prediction.readouts import seeded
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import FlatInputs

__all__ = ["Sender"]

_PIECE = 1000
# Examples on which it is looked which weights what is sent may depend on.
_TRIED = 8
#: Largest number of bytes that are kept of the distributions.
_MOST_BYTES = 2**30


class Sender:
    """Sends the same examples again and again.

    Where what is sent is the draw of one layer, whose inputs are not random, nor weights on the way to it, the
    parameters of its distribution are computed once and each query draws from it; the mean of K draws of a normal
    distribution is one draw with its scale divided by the root of K. Else the client runs for each query.

    Args:
        client: The client.
        x: The examples.
        labels: Classes known to its conditional layers.

    Attributes:
        draws_alone: Whether queries draw without running the network.

    Example:
        >>> import pyrostoch as ps
        >>> net = torch.nn.Sequential(ps.layers.StochasticAdditive(3, scale=0.5), torch.nn.Linear(3, 2))
        >>> model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> sender = Sender(Client(model, ps.guides.Additive(model), at="0"), torch.zeros(4, 3))
        >>> sender.draws_alone, sender.send(100, seed=0)[0].shape
        (True, torch.Size([4, 3]))
    """

    def __init__(self, client: Client, x: FlatInputs, labels: Tensor | None = None) -> None:
        self._client, self._x, self._labels = client, x, labels
        self._kept: list[tuple[Any, Any]] = []  # layer and inputs of its activations, or location and scale
        given = client.read(x, labels)
        with client.knowing(labels):
            few = on_rows(given, torch.arange(min(_TRIED, count_examples(x, 0) or 1)), client.device)
            random = bool(client.model.sites) and bool(weights_before(client, few))
        self.draws_alone = not random and not client.model.examples_meet(given) and self._keep()

    def _keep(self) -> bool:
        """Keep the distributions of all examples; false if what is sent is something else."""
        client, count = self._client, count_examples(self._x, self._client.model.in_dims) or 1
        total = 0
        for rows in torch.arange(count).split(_PIECE):
            part = take_examples(self._x, rows, client.model.in_dims)
            labels = None if self._labels is None else self._labels[rows]
            first, second = (self._drawn(part, labels, number) for number in (0, 1))
            if first is None or second is None or not all(map(torch.equal, first.inputs[0], second.inputs[0])):
                return False
            drawn = first
            layer, inputs = drawn.layers[0], drawn.inputs[0]
            distribution: Any = layer._distribution(inputs)
            if is_normal(distribution):
                self._kept.append((distribution.loc, distribution.scale.expand_as(distribution.loc)))
                total += 2 * distribution.loc.numel() * distribution.loc.element_size()
            else:
                self._kept.append((layer, inputs))
                total += sum(each.numel() * each.element_size() for each in inputs)
            if total * count / len(rows) > _MOST_BYTES * max(len(self._kept), 1):
                self._kept.clear()
                return False
        return True

    def _drawn(self, part: FlatInputs, labels: Tensor | None, seed: int) -> DrawnActivations | None:
        """What is drawn of a part; `None` if it is not the very output of the module at the cut."""
        client, drawn = self._client, DrawnActivations(any_family=True)
        with (
            client.knowing(labels),
            training_mode(False, *client.modules),
            torch.no_grad(),
            seeded(seed, client.device),
            drawn,
        ):
            ((cut, _),) = client.run([client.read(part, labels)], "mc", done=drawn.close)
        sent = list(cut.outputs.values())
        if len(drawn.layers) != 1 or len(sent) != 1 or not isinstance(sent[0], Tensor):
            return None
        module: Any = client.model.net.get_submodule(client.at[0])
        layer, value = drawn.layers[0], drawn.values[0]
        is_layer = module is layer or getattr(module, "activation", None) is layer
        absent = getattr(drawn.inputs[0], "absent", None) is not None
        return drawn if is_layer and not absent and torch.equal(sent[0], value) else None

    def send(self, queries: int = 1, *, seed: int) -> tuple[Tensor, ...]:
        """The mean of some queries with fresh draws.

        Args:
            queries: Their number.
            seed: Seed of the draws.
        """
        if not self.draws_alone:
            return self._client.send(self._x, labels=self._labels, mode=f"mc:{queries}", seed=seed)
        with torch.no_grad(), seeded(mixed_seed(seed), self._client.device):
            return (torch.cat([_mean_draw(first, second, queries) for first, second in self._kept]),)

    def normal_parameters(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of what is sent; `None` where it is no draw of normal activations alone."""
        if not self.draws_alone or not isinstance(self._kept[0][0], Tensor):
            return None
        return torch.cat([first for first, _ in self._kept]), torch.cat([second for _, second in self._kept])

    def noise_free(self) -> tuple[Tensor, ...]:
        """What would be sent without noise."""
        return self._client.send(self._x, labels=self._labels, mode="noise-free")


def _mean_draw(first: Any, second: Any, queries: int) -> Tensor:
    if isinstance(first, Tensor):
        return torch.normal(first, second / queries**0.5)
    draws: Sequence[Tensor] = [first.draw(second) for _ in range(queries)]
    return draws[0] if queries == 1 else torch.stack(list(draws)).mean(0)
