"""Every stochastic layer, distribution, kind of kernel and embodiment, in small: `make cells` writes the table.

A cell is a network with one stochastic layer. It is built, drawn twice and differentiated by the ELBO. A cell that is
refused counts with its reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import layers
from pyrostoch.layers import activations, embody

TABLE = Path(__file__).resolve().parent.parent / "benchmarks" / "CELLS.md"
BATCH = 3

#: The distributions of activations.
DISTRIBUTIONS: dict[str, activations.ActivationDistribution] = {
    "Gaussian": activations.Gaussian(),
    "Gaussian, raw": activations.Gaussian("raw"),
    "Laplace": activations.Laplace(),
    "StudentT": activations.StudentT(),
    "LogNormal": activations.LogNormal(),
    "Bernoulli": activations.Bernoulli(),
    "Binomial": activations.Binomial(3),
    "Categorical": activations.Categorical(),
    "Multinomial": activations.Multinomial(3),
    "Poisson": activations.Poisson(),
    "Gamma": activations.FromPyro(dist.Gamma),
}

#: The guides of random kernels: their distributions, with the prior that each needs.
KERNELS: dict[str, tuple[Callable[..., nn.Module], ps.priors.Prior]] = {
    "Gaussian": (ps.guides.Additive, ps.priors.Normal()),
    "categorical": (ps.guides.CategoricalWeights, ps.priors.Grid()),
    "binomial": (partial(ps.guides.BinomialWeights, n=4), ps.priors.SymmetricBinomial()),
    "multinomial": (partial(ps.guides.MultinomialWeights, n=20), ps.priors.UniformMultinomial()),
}

EMBODIMENTS = ("alone", "prepend", "merge_then_sample", "sample_then_merge")


@dataclass(frozen=True)
class Architecture:
    """A layer that keeps the shape of its input, and its plain counterpart.

    Args:
        shape: Shape of an example.
        stochastic: Makes the layer for a size of channels, and options of the activations; `None` for one that has no
            choice of distribution.
        plain: Makes the layer of torch whose weights may be random, for a size of channels.
        axis: The axis of the channels in an example.
    """

    shape: tuple[int, ...]
    stochastic: Callable[..., nn.Module]
    plain: Callable[[int], nn.Module] | None
    axis: int = -1


def convolution(kind: str) -> Callable[..., nn.Module]:
    return lambda size, **options: getattr(layers, f"Stochastic{kind}")(size, size, 3, padding=1, **options)


def plain_convolution(kind: str) -> Callable[[int], nn.Module]:
    return lambda size: getattr(nn, kind)(size, size, 3, padding=1)


def recurrent(kind: str, sample: str) -> Callable[..., nn.Module]:
    return lambda size, **options: getattr(layers, kind)(size, size, batch_first=True, sample=sample, **options)


def deep(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, size))


class First(nn.Module):
    """A recurrent network's output, without its states."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)[0]
        return found


ARCHITECTURES: dict[str, Architecture] = {
    "StochasticLinear": Architecture(
        (4,), lambda size, **o: layers.StochasticLinear(size, size, **o), lambda size: nn.Linear(size, size)
    ),
    **{
        f"Stochastic{kind}": Architecture((2, *(4,) * int(kind[-2])), convolution(kind), plain_convolution(kind), 0)
        for kind in ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
    },
    "StochasticSVM": Architecture((4,), lambda size, **o: layers.StochasticSVM(size, size, **o), None),
    **{
        f"Stochastic{kind}, {sample}": Architecture(
            (2, 4),
            recurrent(f"Stochastic{kind}", sample),
            (lambda size, kind=kind: First(getattr(nn, kind)(size, size, batch_first=True)))
            if sample == "output"
            else None,
        )
        for kind in ("LSTM", "GRU")
        for sample in ("output", "state")
    },
    "StochasticTransformerEncoderLayer": Architecture(
        (3, 4),
        lambda size, **o: layers.StochasticTransformerEncoderLayer(size, 2, 6, batch_first=True, **o),
        lambda size: nn.TransformerEncoderLayer(size, 2, 6, batch_first=True),
    ),
    "StochasticLayer": Architecture(
        (4,), lambda size, **o: layers.StochasticLayer(partial(deep, size), **o), lambda size: deep(size)
    ),
    "StochasticAdditive": Architecture((4,), lambda size, **o: additive(size, **o), None),
}


def additive(size: int, distribution: activations.ActivationDistribution, **options: Any) -> nn.Module:
    if not isinstance(distribution, activations.Gaussian) or distribution.scale == "raw":
        raise ValueError("StochasticAdditive: its noise is Gaussian")
    return layers.StochasticAdditive(size, **options)


class Channels(nn.Module):
    """A linear map of the channels, the same at each position."""

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        self.map, self.axis = nn.Linear(size, size), axis if axis < 0 else axis + 1

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.tanh(self.map(x.movedim(self.axis, -1))).movedim(-1, self.axis)
        return found


def network(architecture: Architecture) -> nn.Module:
    size = architecture.shape[architecture.axis]
    outputs = nn.Linear(torch.Size(architecture.shape).numel(), 2)
    named = {"first": Channels(size, architecture.axis), "rest": nn.Sequential(nn.Flatten(), outputs)}
    net = nn.Sequential()
    for name, part in named.items():
        net.add_module(name, part)
    return net


def embodied(architecture: Architecture, layer: nn.Module, embodiment: str) -> nn.Module:
    size, example = architecture.shape[architecture.axis], torch.randn(BATCH, *architecture.shape)
    if embodiment == "alone":
        return embody.prepend(network(architecture)[1], layer)  # type: ignore[index]
    if embodiment == "prepend":
        return embody.prepend(network(architecture), layer, Channels(size, architecture.axis))
    join = getattr(embody, embodiment)
    branch = Channels(size, architecture.axis)
    result: nn.Module = join(network(architecture), "first", layer, branch, merge="multiply", example=example)
    return result


def try_cell(architecture: Architecture, layer: Callable[[], nn.Module], embodiment: str, kernel: str | None) -> None:
    """Build, draw and differentiate a cell.

    Raises:
        ValueError: It is refused.
        AssertionError: It draws nothing, or a parameter of the layer has no finite gradient.
    """
    made = layer()
    with torch.no_grad():  # so that exponentials, of states that feed back, stay small under any seed
        for parameter in made.parameters():
            parameter.mul_(0.3)
    net = embodied(architecture, made, embodiment).double()
    prior, guide = None, ps.guides.Additive
    if kernel is not None:
        guide, weights = KERNELS[kernel]
        prior = {
            name: weights
            for name, parameter in net.named_parameters()
            if name.startswith("stochastic.") and parameter.dim() > 1 and ".prior." not in name
        }
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=2 * BATCH)
    x, y = torch.randn(BATCH, *architecture.shape, dtype=torch.float64), torch.arange(BATCH) % 2
    posterior = guide(model).double()
    # Not "local", which would analyze every network first.
    terms = ps.ELBO("shared").terms(model, posterior, x, y)
    torch.as_tensor(terms.loss()).backward()
    # A few discrete draws may be equal.
    again = (ps.ELBO("shared").terms(model, posterior, x, y).data for _ in range(20))
    assert any(not torch.equal(torch.as_tensor(terms.data), torch.as_tensor(data)) for data in again), (
        "nothing is drawn"
    )
    trained = [*made.named_parameters(), *posterior.named_parameters()]
    lost = [name for name, p in trained if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())]
    assert not lost, f"no finite gradient: {lost}"


@dataclass(frozen=True)
class Cell:
    """A cell: what its layer is, and how it is made."""

    architecture: str
    kind: str
    distribution: str
    embodiment: str
    layer: Callable[[], nn.Module]
    kernel: str | None = None

    def outcome(self) -> str:
        """`""` where it is drawn and differentiated, else the reason of its refusal."""
        try:
            try_cell(ARCHITECTURES[self.architecture], self.layer, self.embodiment, self.kernel)
        except (ValueError, TypeError) as error:
            return str(error).split(" (documentation")[0]
        return ""


def cells(architecture: str) -> Iterator[Cell]:
    """All cells of an architecture."""
    kind = ARCHITECTURES[architecture]
    size = kind.shape[kind.axis]
    for embodiment in EMBODIMENTS:
        for name, family in DISTRIBUTIONS.items():
            options: dict[str, Any] = {"distribution": family, "prior": "standard"}
            if family.event and kind.axis == -1 and architecture == "StochasticLayer":
                options["channels"] = -1
            make = partial(kind.stochastic, size, **options)
            yield Cell(architecture, "activations", name, embodiment, make)
            if architecture != "StochasticAdditive":  # it has no weights
                yield Cell(architecture, "both", name, embodiment, make, "Gaussian")
        for kernel in KERNELS:
            if kind.plain is not None:
                yield Cell(architecture, "kernels", kernel, embodiment, partial(kind.plain, size), kernel)


def table() -> str:
    """The table of all cells, in Markdown."""
    torch.manual_seed(0)
    rows: list[str] = []
    reasons: dict[str, list[str]] = {}
    count = 0
    for architecture in ARCHITECTURES:
        found: dict[tuple[str, str], list[bool]] = {}
        for cell in cells(architecture):
            outcome = cell.outcome()
            count += 1
            found.setdefault((cell.kind, cell.embodiment), []).append(not outcome)
            if outcome:
                refused = reasons.setdefault(f"{outcome} (random {cell.kind})", [])
                refused += [] if cell.distribution in refused else [cell.distribution]
        for kind in ("activations", "kernels", "both"):
            entries = [found.get((kind, embodiment), []) for embodiment in EMBODIMENTS]
            if any(entries):
                texts = [f"{sum(entry)} of {len(entry)}" for entry in entries]
                rows.append(f"| {architecture} | {kind} | {' | '.join(texts)} |")
    head = ["layer", "random", *(name.replace("_", " ") for name in EMBODIMENTS)]
    return "\n".join(
        [
            "# Cells of stochastic layers",
            "",
            "Made by `make cells`; do not edit. Each cell is a small network with one stochastic layer.",
            "It was built, drawn, and differentiated by the ELBO; an entry counts the distributions for which this",
            "worked.",
            "",
            f"- Activations: {', '.join(DISTRIBUTIONS)}.",
            f"- Kernels, random weights by their guide: {', '.join(KERNELS)}.",
            "- Both: random activations and Gaussian weights.",
            "",
            f"| {' | '.join(head)} |",
            f"|{' --- |' * len(head)}",
            *rows,
            "",
            f"{count} cells. Refused:",
            "",
            *(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()),
            "",
        ]
    )


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    sys.stdout.write(f"wrote {TABLE}\n")
