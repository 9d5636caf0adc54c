"""The rate of random activations over a data set, and whether it bounds the information that the network lets through.

The rate of a layer is an upper bound of the mutual information of the input and this layer's activations. It is one of
the information in the network's output only if every path from the input crosses drawn activations. This is tried: with
the draws of a layer put back, other inputs must leave the output as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrostoch._inputs import count_examples, device_of_inputs, example_axes, have_common_part, take_examples
from pyrostoch._seeds import generator_states, set_generator_states
from pyrostoch.effects import SharedSample
from pyrostoch.effects.activation_sites import activation_of
from pyrostoch.effects.meeting import MOST_EXAMPLES
from pyrostoch.effects.statistics import drawn_buffers, holding_buffers
from pyrostoch.effects.trees import tensors_in
from pyrostoch.infer.rates import rate_term
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import FlatInputs, Guide, Model
from pyrostoch.records import Record, number, table
from pyrostoch.sites import latent_sites, trace_of

__all__ = ["InformationCuts", "RateRecorder", "RateRow", "RateTotals", "find_cuts", "rate_lines"]


@dataclass(frozen=True)
class RateRow(Record):
    """The rate of one layer of random activations.

    Args:
        layer: Name of the layer; one that is called several times has a row for each call.
        rate: KL(q(h | x) || p(h)) in nats, summed over all examples.
        stderr: Standard error of `rate` over the draws; `None` with a single one, 0 where it is exact.
        nats: The same for an example, on average: an upper bound of the information that h has of x.
        bits: The same in bits.
        method: `"exact"`, or `"monte carlo"` where there is no closed form or the rate depends on other draws.
        activations: Number of activations of an example.
        cuts: Whether the layer was found to lie on every path from the input to the output.
    """

    layer: str
    rate: float
    stderr: float | None
    nats: float
    bits: float
    method: str
    activations: int
    cuts: bool


@dataclass(frozen=True)
class InformationCuts:
    """What was found of the paths from the input to the output.

    Args:
        alone: The layers that lie on every path.
        together: Whether every path crosses one of the layers.
    """

    alone: frozenset[str] = frozenset()
    together: bool = False


class RateRecorder(Messenger):
    """Records the rates of the random activations of a pass, by layer.

    Attributes:
        totals: Sum over the examples, in nats.
        by_example: For each example.
        closed: Whether it was computed in closed form.
        sizes: Number of activations of an example.
    """

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, float] = {}
        self.by_example: dict[str, Tensor] = {}
        self.closed: dict[str, bool] = {}
        self.sizes: dict[str, int] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        site = activation_of(msg)
        if site is None or msg["is_observed"] or site.layer.prior is None:
            return
        term = rate_term(msg["name"], msg)
        self.by_example[msg["name"]] = term.by_example
        self.totals[msg["name"]] = term.by_example.sum(dtype=torch.float64).item()
        self.closed[msg["name"]], self.sizes[msg["name"]] = term.exact, term.size


class RateTotals:
    """The rates of a data set, added up batch by batch.

    Args:
        num_samples: Number of draws.

    Attributes:
        by_draw: For each draw the rate of each layer, in nats.
        counts: Number of examples for which each layer was called.
        passes: What was recorded in the draws on the first batch.
    """

    def __init__(self, num_samples: int) -> None:
        self.by_draw: list[dict[str, float]] = [{} for _ in range(num_samples)]
        self.counts: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.passes: list[RateRecorder] = []
        self._first = True

    def add(self, batch: Sequence[RateRecorder], count: int) -> None:
        """Add a batch.

        Args:
            batch: What was recorded in each draw.
            count: Number of examples.
        """
        for total, rates in zip(self.by_draw, batch, strict=False):
            for layer, value in rates.totals.items():
                total[layer] = total.get(layer, 0.0) + value
        for layer, size in batch[0].sizes.items():
            self.counts[layer] = self.counts.get(layer, 0) + count
            self.sizes[layer] = size
        if self._first:
            self._first, self.passes = False, list(batch)

    def of_draw(self, draw: int) -> float:
        """The rate of all layers in one draw.

        Args:
            draw: Its number.
        """
        return math.fsum(self.by_draw[draw].values())

    def rows(self, passes: Sequence[RateRecorder], count: int, cuts: InformationCuts) -> tuple[RateRow, ...]:
        """A row for each layer.

        Args:
            passes: Two passes on one batch: a rate in closed form that is the same in both is exact.
            count: Number of examples.
            cuts: What was found of the paths. Nothing is claimed of layers that some batches do not call.
        """
        first, again = passes
        rows = []
        for layer, called in self.counts.items():
            values = [total.get(layer, 0.0) for total in self.by_draw]
            rate = math.fsum(values) / len(values)
            pair = first.by_example.get(layer), again.by_example.get(layer)
            same = pair[0] is not None and pair[1] is not None and torch.equal(pair[0], pair[1])
            exact = same and first.closed[layer]
            stderr: float | None = 0.0 if exact else None
            if len(values) > 1 and not exact:
                squares = math.fsum((value - rate) ** 2 for value in values)
                stderr = math.sqrt(squares / (len(values) * (len(values) - 1)))
            nats, method = rate / called, "exact" if exact else "monte carlo"
            cut = called == count and layer in cuts.alone
            rows.append(RateRow(layer, rate, stderr, nats, nats / math.log(2), method, self.sizes[layer], cut))
        return tuple(rows)


def rate_lines(rows: Sequence[RateRow], information_bound: float | None) -> list[str]:
    """The rates as lines of text.

    Args:
        rows: The rate of each layer.
        information_bound: The bound of the information let through, in nats for an example.
    """
    if not rows:
        return []
    cells = [
        (row.layer, row.activations, row.nats, row.bits, row.method, "output" if row.cuts else "h alone")
        for row in rows
    ]
    lines = ["", table(("layer", "activations", "rate, nats/example", "bits", "rate by", "bounds"), cells)]
    if information_bound is None:
        return [
            *lines,
            "The rate of h alone: a path from the input to the output crosses no drawn activations, or none was shown "
            "to,\nso the rate bounds the information in these activations, not in the output.",
        ]
    return [*lines, f"Information that the network lets through: at most {number(information_bound)} nats an example."]


class _PutBack(Messenger):
    """Records the activations of a pass, or puts those of another pass back; noise is drawn in any case."""

    def __init__(self, values: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.values, self.found = values or {}, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        site = activation_of(msg)
        if site is not None and msg["name"] in self.values:
            site.draw()  # so that what is drawn later gets the same random numbers
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if activation_of(msg) is not None:
            self.found[msg["name"]] = msg["value"]


def find_cuts(model: Model, guide: Guide, x: FlatInputs) -> InformationCuts:
    """Find out by experiment which layers of random activations lie on every path from the input to the output.

    The network runs on up to 64 examples with one draw of its weights. A layer lies on every path if other inputs, with
    its draws put back, give the same output.

    Args:
        model: The model.
        guide: Its guide.
        x: Inputs of a batch.
    """
    if not isinstance(model, BayesianModel):
        return InformationCuts()
    if not have_common_part(x, model.in_dims):
        # From everywhere in the batch, since neighbors may be equal in a sorted data set.
        count = count_examples(x, model.in_dims) or 1
        rows = torch.linspace(0, count - 1, min(count, MOST_EXAMPLES)).round().long()
        x = take_examples(x, rows, model.in_dims)
    with SharedSample():
        trace = trace_of(guide, x)
        weights, buffers = {name: node["value"] for name, node in latent_sites(trace)}, drawn_buffers(trace)
    states = generator_states(device_of_inputs(x))

    def run(inputs: FlatInputs, values: dict[str, Tensor] | None = None) -> tuple[list[Tensor], dict[str, Tensor]]:
        set_generator_states(device_of_inputs(x), states)
        with SharedSample(), _PutBack(values) as handler, holding_buffers(model.net, buffers):
            output = list(tensors_in(model.outputs(inputs, dict(weights))))
        return output, handler.found

    output, drawn = run(x)
    others = _other_inputs(x, model)
    parts = zip(tensors_in(x), tensors_in(others), strict=True)
    # An input that is the same for all of these examples shows nothing, nor does an output that no input moves.
    if any(torch.equal(one, other) for one, other in parts) or _equal(run(others)[0], output):
        return InformationCuts()
    alone = frozenset(name for name, value in drawn.items() if _equal(run(others, {name: value})[0], output))
    return InformationCuts(alone, bool(alone) or (bool(drawn) and _equal(run(others, drawn)[0], output)))


def _other_inputs(x: FlatInputs, model: BayesianModel) -> FlatInputs:
    """The inputs of other examples, with noise where they are real."""

    def change(part: Any, axis: int | None) -> Any:
        if not isinstance(part, Tensor) or part.layout is not torch.strided:
            return part
        moved = part if axis is None else part.roll(1, axis)
        if not moved.is_floating_point():
            return moved
        return moved + (part.std(correction=0) + 1.0) * torch.randn_like(moved)

    axes = example_axes(x, model.in_dims)
    if isinstance(x, tuple):
        return tuple(change(part, axis) for part, axis in zip(x, axes, strict=True))
    return change(x, axes[0])


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=0.0) for a, b in zip(one, other, strict=True)
    )
