"""How large the noise of random activations is beside what it covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrostoch.effects.active import active_call
from pyrostoch.infer.known_labels import GivenLabels, KnownLabels, check_labels_around, known_labels, marked
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.head_averages import average_for
from pyrostoch.prediction.readouts import (
    batches_for,
    batches_on_device,
    check_guide,
    device_of,
    evaluating,
    seeded,
)
from pyrostoch.protocols import Data, Guide, Model
from pyrostoch.records import Record, number, table

__all__ = ["NoiseRow", "NoiseSummary", "activation_noise"]

# A channel whose signal is smaller than this, beside the mean over all units, is taken for dead.
_LIVE = 1e-3


@dataclass(frozen=True)
class NoiseRow(Record):
    """The noise of one layer of random activations.

    Args:
        layer: Name of the layer; one that is called several times has a row for each call.
        noise: Mean over units and examples of the noise's standard deviation.
        signal: Mean over units of the standard deviation, over examples, of the activation without its noise.
        ratio: `noise / signal`.
        lowest: The lowest such ratio of a live channel.
        covered: Share of the signal's variance that is in units whose noise is at least as large as their signal: noise
            elsewhere, such as on the margin of an image, covers nothing.
        units: Number of activations of an example.
    """

    layer: str
    noise: float
    signal: float
    ratio: float
    lowest: float
    covered: float
    units: int


@dataclass(frozen=True)
class NoiseSummary(Record):
    """The noise of every layer of random activations.

    Args:
        num_examples: Number of examples.
        rows: One row for each layer.
        labels: `"known"` where layers that are conditional on the class were given the targets.

    Example:
        >>> print(NoiseSummary(100, (NoiseRow("fc1", 1.0, 0.5, 2.0, 2.0, 0.9, 20),)))
        100 examples; standard deviations, means over units
        layer  units   noise  signal  noise / signal  quietest channel  covered %
        fc1       20  1.0000  0.5000          2.0000            2.0000       90.0
    """

    num_examples: int
    rows: tuple[NoiseRow, ...]
    labels: KnownLabels = None

    def __str__(self) -> str:
        head = ("layer", "units", "noise", "signal", "noise / signal", "quietest channel", "covered %")
        cells = [
            (
                row.layer,
                row.units,
                *(number(value) for value in (row.noise, row.signal, row.ratio, row.lowest)),
                number(100.0 * row.covered, 1),
            )
            for row in self.rows
        ]
        known = ", labels known" if self.labels else ""
        return f"{self.num_examples} examples{known}; standard deviations, means over units\n" + table(head, cells)


class _Sums(Messenger):
    """Sums over examples, for each unit, of mean, squared mean and standard deviation of random activations."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.layers = names, dict[str, StochasticLayer]()
        self.sums: dict[str, list[Tensor]] = {}
        self.counts: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._examples = 0

    def start(self, examples: int) -> None:
        self._calls, self._examples = {}, examples

    def _pyro_activation(self, msg: Any) -> None:
        layer, x = msg["kwargs"]["layer"], msg["args"][0]
        if active_call() is None or not isinstance(layer, StochasticLayer):
            return
        name = self.names.get(id(layer)) or type(layer).__name__
        call = self._calls[name] = self._calls.get(name, 0) + 1
        name = name if call == 1 else f"{name}:{call}"
        distribution = layer._distribution(x)
        mean, spread = (
            layer.restored(part, x).double() for part in (distribution.mean, distribution.variance.clamp_min(0).sqrt())
        )
        if len(mean) != self._examples and self._examples in mean.shape:  # time first
            axis = mean.shape.index(self._examples)
            mean, spread = mean.movedim(axis, 0), spread.movedim(axis, 0)
        found = [mean.sum(0), mean.square().sum(0), spread.sum(0)]
        known = self.sums.get(name)
        self.sums[name] = found if known is None else [a + b for a, b in zip(known, found, strict=True)]
        self.counts[name] = self.counts.get(name, 0) + len(mean)
        self.layers[name] = layer

    def row(self, name: str) -> NoiseRow:
        mean, square, spread = (total / self.counts[name] for total in self.sums[name])
        signal = (square - mean.square()).clamp_min(0.0).sqrt()
        layer = self.layers[name]
        axis = layer.channel_axis - 1 if layer.channel_axis > 0 else layer.channel_axis  # without the batch
        parts = [part.reshape(part.shape or (1,)).movedim(axis, 0) for part in (spread, signal)]
        by_channel = [part.reshape(len(part), -1).mean(1) for part in parts]
        live = by_channel[1] > _LIVE * signal.mean()
        lowest = (by_channel[0][live] / by_channel[1][live]).min().item() if bool(live.any()) else float("inf")
        noise, size = spread.mean().item(), signal.mean().item()
        variance = signal.square()
        total = variance.sum().item()
        covered = variance[spread >= signal].sum().item() / total if total else 1.0
        return NoiseRow(name, noise, size, noise / size if size else float("inf"), lowest, covered, signal.numel())


def activation_noise(
    model: Model,
    guide: Guide,
    data: Data,
    *,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = 0,
    labels: GivenLabels = None,
) -> NoiseSummary:
    r"""The standard deviation of the noise of every layer of random activations, beside that of the clean activation.

    Of each unit the noise is $E_x\,\mathrm{sd}(h \mid x)$ and the signal $\mathrm{sd}_x\,E(h \mid x)$, in one drawing
    pass over the data. Noise that has died proves nothing about what a network can do under it.

    Args:
        model: A `BayesianModel`.
        guide: Its guide.
        data: The examples, `(x, y)`, a `Dataset` or a `DataLoader`.
        batch_size: Number of examples that run through the network at a time.
        device: The model's device; found by default.
        seed: Seed of the draws; torch's random state is restored afterwards.
        labels: `"known"` hands the targets to layers that are conditional on the class, a function of the targets what
            it makes of them.

    Returns:
        A row for each layer.

    Raises:
        ValueError: The network draws no activations.

    Example:
        >>> import pyrostoch as ps
        >>> layer = ps.layers.StochasticAdditive(2, scale=0.5)
        >>> model = ps.BayesianModel(torch.nn.Sequential(layer, torch.nn.Linear(2, 2)),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> row, = activation_noise(model, ps.guides.Additive(model), (x, torch.tensor([0, 0, 1, 1]))).rows
        >>> row.layer, round(row.noise, 3), round(row.ratio, 3)
        ('0', 0.5, 0.707)
    """
    check_guide(guide)
    device = device_of(model, guide, device)
    net: Any = getattr(model, "net", model)
    sums = _Sums({id(part): name for name, part in net.named_modules()})
    count, known = 0, None
    with known_labels(model, labels), seeded(seed, device), evaluating(model, guide):
        sampler = PosteriorSampler(model, guide, "mc", 1)
        batches = batches_for(model, data, batch_size)
        check_labels_around(model, batches.num_data)
        for x, y in batches_on_device(batches, device):
            sums.start(len(y))
            known = marked(model, x)
            with sums:
                for _ in sampler.run(x, average_for(model, y).statistics):
                    pass
            count += len(y)
    if not sums.sums:
        raise ValueError(f"activation_noise: {type(net).__name__} draws no activations")
    return NoiseSummary(count, tuple(sums.row(name) for name in sums.sums), known)
