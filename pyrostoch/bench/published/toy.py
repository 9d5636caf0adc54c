"""The toy problem of variance networks: four classes that differ in the variance of two activations, not the mean."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyrostoch._checks import check_choice
from pyrostoch.data import DataSplit
from pyrostoch.guides import Guide, VarianceOnly
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction import Comparison, compare, predict
from pyrostoch.priors import LogUniform
from pyrostoch.records import Record
from pyrostoch.training import fit

__all__ = ["CENTERS", "PRESETS", "Preset", "Regions", "ToyResult", "activations", "network", "problem", "train"]

#: Centers of the four classes, in the order of their labels.
CENTERS = ((3.0, 3.0), (3.0, 10.0), (10.0, 3.0), (10.0, 10.0))

# Range of both axes of the decision regions: the centers and four standard deviations beyond.
_RANGE = (-1.0, 14.0)
# Draws of the activations that are shown for each point.
_DRAWS = 4


@dataclass(frozen=True)
class Preset(Record):
    """Settings of training and of the picture's resolution.

    Args:
        steps: Steps of Adam, each on all points.
        lr: Initial learning rate.
        schedule: How it falls over the steps.
        points: Points of each class, for training and again for testing.
        samples: Number of draws that are averaged.
        grid: Points of the decision regions along each axis.
    """

    steps: int
    lr: float
    schedule: Literal["linear", "constant"]
    points: int = 500
    samples: int = 100
    grid: int = 121


#: `full` is the published recipe, with 100 samples instead of 101. The learning rate of `cpu` is the better one of 1e-3
#: and 3e-3 by the data term on the training points over three seeds.
PRESETS: dict[str, Preset] = {
    "quick": Preset(steps=400, lr=3e-3, schedule="linear", points=125, samples=100, grid=31),
    "cpu": Preset(steps=4_000, lr=1e-3, schedule="linear"),
    "full": Preset(steps=21_000, lr=1e-4, schedule="constant"),
}


@dataclass(frozen=True, eq=False)
class Regions(Record):
    """Decisions of a network over a grid in the plane.

    Args:
        label: Most probable class, (n, n), laid out like an image: rows are the second coordinate.
        confidence: Its probability, (n, n).
    """

    label: NDArray[np.int64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ToyResult(Record):
    """Results of a variance network trained on the toy problem, with the data of its picture.

    Args:
        seed: Seed of the points, the network's initialization and the noise.
        preset: The settings.
        seconds: Time of training.
        data_term: Data term of the last step, nats per training point.
        scores: Scores on test points with mean weights, one sample, and averaging over samples.
        x: The test points, (n, 2).
        y: Their classes, (n,).
        axis: Coordinates of the decision regions, the same along both axes.
        by_mean: Decision regions with mean weights.
        by_averaging: Decision regions of the averaged probabilities.
        activations: Output of the variance layer for each test point and draw, (draws, n, 2).
    """

    seed: int
    preset: Preset
    seconds: float
    data_term: float
    scores: Comparison
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    axis: NDArray[np.float32]
    by_mean: Regions
    by_averaging: Regions
    activations: NDArray[np.float32]

    @property
    def accuracy(self) -> dict[str, float]:
        """Accuracy on test points, by mode."""
        return {row.mode: row.accuracy or 0.0 for row in self.scores.rows}

    def __str__(self) -> str:
        steps = f"{self.preset.steps} steps in {self.seconds:.1f} s, data term {self.data_term:.4f} nats per point"
        return f"Toy problem, seed {self.seed}: {steps}\n{self.scores}"


def problem(seed: int = 0, points: int = 500) -> DataSplit:
    """Draw the data set: four Gaussian classes of unit variance, centered at the corners of a square.

    Args:
        seed: Seed of the draws; torch's random state is not changed.
        points: Points of each class, for training and again for testing.

    Returns:
        Training and test points, (4 * points, 2), with labels 0 to 3 in order.

    Example:
        >>> toy = problem(seed=0)
        >>> toy.x_train.shape, toy.y_train.bincount().tolist()
        (torch.Size([2000, 2]), [500, 500, 500, 500])
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(len(CENTERS)).repeat_interleave(points)
    x_train, x_test = (torch.tensor(CENTERS)[y] + torch.randn(len(y), 2, generator=generator) for _ in range(2))
    title = "Four unit Gaussians around {3, 10} x {3, 10}"
    return DataSplit("toy", title, "classification", x_train, y, x_test, y.clone(), len(CENTERS), (2,), "generated")


def network() -> nn.Sequential:
    """The network 2-100-100-100-100, the layer `variance` with two outputs, then 100-4; leaky ReLUs between layers.

    The outputs of `variance` must have mean zero, so it has no bias. The network returns logits: the published code
    applies a softmax before a cross-entropy that contains one already, a mistake that is not repeated here.

    Example:
        >>> network().variance
        Linear(in_features=100, out_features=2, bias=False)
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    widths = (2, 100, 100, 100, 100)
    for i, (before, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
        layers |= {f"fc{i}": nn.Linear(before, width), f"act{i}": nn.LeakyReLU()}
    layers |= {"variance": nn.Linear(100, 2, bias=False), "act5": nn.LeakyReLU()}
    layers |= {"fc6": nn.Linear(2, 100), "act6": nn.LeakyReLU(), "fc7": nn.Linear(100, len(CENTERS))}
    return nn.Sequential(layers)


def activations(model: BayesianModel, guide: Guide, x: Tensor, *, layer: str, draws: int) -> Tensor:
    """Outputs of one layer of a Bayesian network, for several draws of its weights.

    Args:
        model: The model.
        guide: Its guide.
        x: Inputs, (n, ...).
        layer: Name of the layer in the network.
        draws: Number of draws; they differ between examples where the layers allow it.

    Returns:
        The layer's outputs, (draws, n, ...).

    Example:
        >>> toy, net = problem(points=5), network()
        >>> model = BayesianModel(net, prior={"variance.weight": LogUniform()}, likelihood=Categorical(), num_data=20)
        >>> activations(model, VarianceOnly(model), toy.x_train, layer="variance", draws=3).shape
        torch.Size([3, 20, 2])
    """
    last: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        last["output"] = output

    handle = model.net.get_submodule(layer).register_forward_hook(keep)
    outputs = []
    try:
        for _ in range(draws):
            # The first prediction also runs the network to see how it uses its weights; the last output is the draw's.
            predict(model, guide, x, mode="mc:1", batch_size=len(x))
            outputs.append(last["output"])
    finally:
        handle.remove()
    return torch.stack(outputs)


def train(preset: str | Preset = "cpu", *, seed: int = 0, progress: bool = False) -> ToyResult:
    """Train a variance network on the toy problem and predict with mean weights and by averaging over samples.

    In the layer `variance`, the activations of every class have mean zero; only their variances differ. So the network
    with mean weights gives the same answer everywhere, which is right for one class of four, while the average over
    samples separates the classes. The KL from the log-uniform prior is constant for distributions of mean zero, so
    training maximizes the data term alone.

    Args:
        preset: A name in `PRESETS`, or other settings.
        seed: Seed of the points, the network's initialization and the noise; torch's random state is unchanged
            afterwards.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Scores on test points, decision regions and activations; `pyrostoch.report.figures.toy` draws them.

    Raises:
        ValueError: There is no such preset.

    Example:
        >>> settings = Preset(steps=2, lr=1e-3, schedule="linear", points=5, samples=3, grid=4)
        >>> result = train(settings)
        >>> result.accuracy["mean"], result.by_averaging.label.shape, result.activations.shape
        (0.25, (4, 4), (4, 20, 2))

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations",
        2018 (arXiv 1803.03764).
    """
    settings = preset if isinstance(preset, Preset) else PRESETS[check_choice("toy preset", preset, PRESETS)]
    averaging = f"mc:{settings.samples}"
    toy = problem(seed, settings.points)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = BayesianModel(
            network(),
            prior={"variance.weight": LogUniform()},
            likelihood=Categorical(),
            num_data=len(toy.y_train),
        )
        guide = VarianceOnly(model)
        # A step uses all points, so an epoch is one step.
        run = fit(
            model,
            guide,
            (toy.x_train, toy.y_train),
            epochs=settings.steps,
            batch_size=len(toy.y_train),
            lr=settings.lr,
            schedule=settings.schedule,
            seed=seed,
            progress=progress,
        )
        axis = torch.linspace(*_RANGE, settings.grid)
        plane = _plane(axis)
        return ToyResult(
            seed=seed,
            preset=settings,
            seconds=run.seconds,
            data_term=run.history["data"][-1] / model.num_data,
            scores=compare(model, guide, (toy.x_test, toy.y_test), modes=("mean", "mc:1", averaging)),
            x=toy.x_test.numpy(),
            y=toy.y_test.numpy(),
            axis=axis.numpy(),
            by_mean=_regions(model, guide, plane, "mean"),
            by_averaging=_regions(model, guide, plane, averaging),
            activations=activations(model, guide, toy.x_test, layer="variance", draws=_DRAWS).numpy(),
        )


def _plane(axis: Tensor) -> Tensor:
    """The grid points of a square, (n * n, 2); the first coordinate varies fastest."""
    return torch.cartesian_prod(axis, axis).flip(1)


def _regions(model: BayesianModel, guide: Guide, plane: Tensor, mode: str) -> Regions:
    side = round(len(plane) ** 0.5)
    confidence, label = predict(model, guide, plane, mode=mode).probs.max(-1)
    return Regions(label.reshape(side, side).numpy(), confidence.reshape(side, side).numpy())
