"""The bench `conditional`: noise for each class, trained with known labels, under selections that replace them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrostoch.bench.case import Bench, Case, TrialContext
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.published.conditional_cost import COST_CASES
from pyrostoch.bench.published.conditional_networks import Build, conditional_network, gate
from pyrostoch.bench.published.detection import DETECTION_CASES
from pyrostoch.bench.recipe import Recipe
from pyrostoch.bench.trial import train_test_data
from pyrostoch.guides import Additive
from pyrostoch.layers import Conditional, GatedSelection
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.compare import compare
from pyrostoch.prediction.noise import activation_noise
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import seeded
from pyrostoch.training.two_steps import fit_two_steps

__all__ = ["CONDITIONAL"]

_NOISE_EXAMPLES = 5000
# Weight of the mean log standard deviation in the first step, chosen on held-out images: of .03, .1 and .3 the largest
# with which more than 98.5 % of the digits are told (98.73 %; 98.06 % with .3, whose noise covers all of the signal).
_NOISE_WEIGHT = 0.1
_RECIPES = {
    "quick": Recipe(epochs=1, batch_size=100, lr=2e-3, schedule="cosine", noise_weight=_NOISE_WEIGHT, examples=1000),
    "cpu": Recipe(epochs=6, batch_size=100, lr=2e-3, schedule="cosine", noise_weight=_NOISE_WEIGHT),
    "full": Recipe(epochs=40, batch_size=100, lr=2e-3, schedule="cosine", noise_weight=_NOISE_WEIGHT),
}

Pair = tuple[Tensor, Tensor]


def _trial(embodiment: str, kernel: str, selection: str) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial of one network; `"hard"` as the selection ends after the first step, with labels given at inference."""

    def run(context: TrialContext) -> Mapping[str, float]:
        split, recipe = context.require_split(), context.recipe
        device = torch.device(context.setting.device)
        train, test = train_test_data(split, recipe, device)
        with seeded(context.seed, device):
            build = conditional_network(split, embodiment, kernel, selection)
            chosen = None if selection == "hard" else build.selection()
            alone = gate(train[0].shape[1], train[0].shape[2]).to(device)
            model = BayesianModel(build.network, likelihood=Categorical(), num_data=len(train[0])).to(device)
        guide = Additive(model)
        fit_two_steps(
            model,
            guide,
            train,
            selection=chosen,
            epochs=(recipe.epochs, recipe.epochs),
            first={"noise_weight": recipe.noise_weight or 0.0},
            **context.settings(),
        )
        if chosen is None:
            return _with_labels(model, guide, train, test, context.seed)
        metrics = _without_labels(model, guide, train, test, context.seed)
        if isinstance(chosen, GatedSelection):
            inputs = _layer_inputs(model, build.layer, test[0])
            metrics["accuracy/gate"] = _accuracy(torch.cat([chosen.logits(x) for x in inputs.split(1000)]), test[1])
            metrics["accuracy/gate-alone"] = _gate_alone(alone, train, test, recipe, context.seed)
        if context.seed == 0 and embodiment == "prepend" and not context.setting.holdout:
            name = f"conditional-{context.case.name.replace('/', '-')}-{context.setting.preset}.png"
            picture = context.setting.out / "figures" / name
            _draw(build, test, picture)
        return metrics

    return run


def _scores(row: Any, prefix: str = "") -> dict[str, float]:
    return {f"{name}/{prefix}{row.mode}": float(getattr(row, name)) for name in ("accuracy", "nll", "ece")}


def _noise(model: BayesianModel, guide: Any, train: Pair, **settings: Any) -> dict[str, float]:
    """The noise beside the clean activation on training images, and 1 where it is as large as is required."""
    some = train[0][:_NOISE_EXAMPLES], train[1][:_NOISE_EXAMPLES]
    (row,) = activation_noise(model, guide, some, **settings).rows
    enough = row.ratio >= 1.0 and row.lowest >= 0.5
    return {
        "noise/ratio": row.ratio,
        "noise/lowest": row.lowest,
        "noise/covered": row.covered,
        "noise/enough": float(enough),
    }


def _without_labels(model: BayesianModel, guide: Any, train: Pair, test: Pair, seed: int) -> dict[str, float]:
    modes = ("mean", "noise-free", "mc:1", "mc:20")
    metrics = _noise(model, guide, train)
    for row in compare(model, guide, test, modes=modes, seed=seed).rows:
        metrics |= _scores(row)
    return metrics


def _with_labels(model: BayesianModel, guide: Any, train: Pair, test: Pair, seed: int) -> dict[str, float]:
    """Scores with the label given, which are no result, and with another label drawn uniformly."""
    metrics = _noise(model, guide, train, labels="known")
    metrics |= _scores(compare(model, guide, test, modes=("mc:20",), seed=seed, labels="known").rows[0], "known/")
    x, y = test
    shift = torch.randint(1, 10, y.shape, generator=torch.Generator().manual_seed(seed)).to(y.device)
    wrong = (y + shift) % 10
    answers = predict(model, guide, x, labels=wrong, mode="mc:20", seed=seed).probs.argmax(-1)
    agree = {"accuracy/wrong": answers == y, "accuracy/answers-wrong": answers == wrong}
    return metrics | {name: value.double().mean().item() for name, value in agree.items()}


@torch.no_grad()
def _layer_inputs(model: BayesianModel, layer: Conditional, x: Tensor) -> Tensor:
    """What the conditional layer reads."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    model.net.eval()
    try:
        for part in x.split(1000):
            model.net(part)
    finally:
        handle.remove()
    return torch.cat(found)


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(-1) == y).double().mean().item()


def _gate_alone(network: Any, train: Pair, test: Pair, recipe: Recipe, seed: int) -> float:
    """The accuracy of the same gate on images, trained by itself to classify them for both steps' epochs."""
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2 * recipe.epochs):
        for rows in torch.randperm(len(train[0]), generator=generator).split(recipe.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return _accuracy(network(test[0]), test[1])


@torch.no_grad()
def _draw(build: Build, test: Pair, path: Path) -> None:
    """The selection tensors of some images, and these images before and after the layer."""
    from matplotlib.figure import Figure

    layer, (x, y) = build.layer.eval(), test
    rows = torch.stack([(y == c).nonzero()[0, 0] for c in range(10)]).cpu()
    images, some = x[rows].cpu(), x[rows]
    selection = torch.as_tensor(layer.selection(some)).cpu()  # type: ignore[misc]
    drawn = layer(some).cpu()
    static = selection.dim() > 2
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    axes = figure.subplots(3, 10)
    for c in range(10):
        for row, (image, low, high) in enumerate(((images[c], 0.0, 1.0), (drawn[c], -1.0, 2.0))):
            # Noise where there is no image is far outside of the range of grays.
            axes[row, c].imshow(image.mean(0).numpy(), cmap="gray", vmin=low, vmax=high)
        if static:
            axes[2, c].imshow(selection[0, c].mean(0).numpy(), cmap="viridis", vmin=0.0, vmax=1.0)
        else:
            axes[2, c].bar(range(10), selection[c].flatten().numpy())
            axes[2, c].set_ylim(0.0, 1.0)
        for row in range(3):
            axes[row, c].set_xticks([])
            axes[row, c].set_yticks([])
        axes[0, c].set_title(str(int(y[rows[c]])))
    titles = ("image", "drawn", "selection of class" if static else "selection by class")
    for row, title in enumerate(titles):
        axes[row, 0].set_ylabel(title)
    save_figure(figure, path)


def _case(
    name: str, title: str, data: str, embodiment: str, kernel: str, selection: str, data_title: str | None = None
) -> Case:
    trial = _trial(embodiment, kernel, selection)
    return Case(name, title, data, _RECIPES, custom_trial=trial, data_title=data_title)


# Title of the data set that is CIFAR-10 re-encoded.
_JPEG = "CIFAR-10 (JPEG q75)"


CONDITIONAL = Bench(
    name="conditional",
    title="Conditional layers",
    cases=(
        _case("mnist/gate", "MNIST, soft by input", "mnist", "prepend", "additive", "gate"),
        _case("mnist/static", "MNIST, soft static", "mnist", "prepend", "additive", "static"),
        _case("mnist/hard", "MNIST, label given", "mnist", "prepend", "additive", "hard"),
        _case(
            "mnist/gate/convolution", "MNIST, convolutions, soft by input", "mnist", "prepend", "convolution", "gate"
        ),
        _case(
            "mnist/gate/merge_then_sample", "MNIST, merge then sample", "mnist", "merge_then_sample", "additive", "gate"
        ),
        _case(
            "mnist/gate/sample_then_merge", "MNIST, sample then merge", "mnist", "sample_then_merge", "additive", "gate"
        ),
        _case("fashion-mnist/gate", "Fashion-MNIST, soft by input", "fashion-mnist", "prepend", "additive", "gate"),
        _case("fashion-mnist/hard", "Fashion-MNIST, label given", "fashion-mnist", "prepend", "additive", "hard"),
        _case("additive/cifar10-jpeg/gate", f"{_JPEG}, soft by input", "cifar10", "prepend", "additive", "gate", _JPEG),
        _case("additive/cifar10-jpeg/hard", f"{_JPEG}, label given", "cifar10", "prepend", "additive", "hard", _JPEG),
        *DETECTION_CASES,
        *COST_CASES,
    ),
    columns=(
        ("accuracy/mc:1", "1 sample, %"),
        ("accuracy/mc:20", "20 samples, %"),
        ("accuracy/mean", "mean, %"),
        ("ece/mc:20", "ECE, 20 samples"),
        ("accuracy/gate", "its gate's choice, %"),
        ("accuracy/gate-alone", "a gate trained alone, %"),
        ("noise/ratio", "noise / signal"),
        ("noise/lowest", "in the quietest channel"),
        ("noise/covered", "signal covered, share"),
        ("noise/enough", "noise as required"),
        ("accuracy/known/mc:20", "label given, 20 samples, %"),
        ("accuracy/wrong", "wrong label given, %"),
        ("accuracy/answers-wrong", "answers the wrong label, %"),
        ("objects/ap50", "boxes, AP50, %"),
        ("objects/ap", "boxes, AP50:95, %"),
        ("objects/mask-ap50", "masks, AP50, %"),
        ("objects/mask-ap", "masks, AP50:95, %"),
        ("objects/miou", "pixels, mIoU, %"),
        ("objects/mota", "clips, MOTA, %"),
        ("objects/idf1", "clips, IDF1, %"),
        ("objects/gate-miou", "its gate's choice, mIoU, %"),
        ("objects/noise-ratio", "noise / signal"),
        ("objects/noise-lowest", "in the quietest channel"),
        ("objects/noise-covered", "signal covered, share"),
        ("objects/noise-enough", "noise as required"),
        ("ratio/classes", "100 classes / 2, two present"),
        ("ratio/present-10", "10 present / 1"),
        ("ratio/present-100", "100 present / 1"),
        ("ratio/soft", "selection of 10 / 10 layers"),
        ("ratio/batched", "10 batched / 10 calls"),
    ),
    published={},
    notes=(
        "A layer adds noise with a mean and a standard deviation of its own for each class and pixel (or of kernels of "
        "its own), in front of a small convolutional network or inside it. In the first step it is trained with the "
        "label known, by the loss less 0.1 times the mean of log sigma; then it is fixed, and a selection for unknown "
        "labels is trained with the network.",
        "Rows with the label given are no result: a kernel of class c could put a code for c into the image. What it "
        "does is shown by giving a wrong label instead, drawn uniformly.",
        "Noise and signal are means over units of standard deviations, on training images: of the noise, and of the "
        "activation without it. A row counts only where the ratio is at least 1, and at least 0.5 in every live "
        "channel. The signal that is covered is the share of its variance in units whose noise is as large as their "
        "signal; noise grows where it costs nothing, such as on the margin of the images.",
        "The gate is linear, on averages over squares of 4 x 4. Its choice is the class with the largest number; "
        "trained alone, the same gate classifies images.",
        "CIFAR-10 images were re-encoded as JPEG.",
        "Objects: scenes of 2 to 5 MNIST digits on 96 x 96 pixels, 1,000 for training, 200 of test digits for the "
        "scores, and 20 clips of 20 frames of these; fewer and smaller ones in the preset quick, a check and no "
        "result. The noise has kernels for each digit and for the background, 5 x 5 in front of a small detector, or "
        "1 x 1 behind its second convolution. In the first step the pixels in true boxes are known to be of their "
        "classes; in the second one a gate of four convolutions takes their place, trained with the detector by its "
        "loss alone; a gate that is taught is trained by itself before, to tell the "
        "classes of pixels. Scores are of one draw, by a detector that finds, segments and follows with the same "
        "output. The clean detector is trained for the epochs of both steps.",
        "With true boxes given at inference the row is an oracle's, and no result. Where the input is selected, the "
        "noise of all classes is added, whatever the selection is, so that it starts at an eleventh. The choice of a "
        "gate is the class with the largest number at a pixel, its mean IoU that with the true boxes.",
        "Rows of cost are ratios of the seconds of a forward pass on 100 examples: by label, of 100 classes to 2, with "
        "the same two classes present, and with more classes present; under a selection of ten classes, to ten times "
        "one layer. The last column has gradients, too: a batched program for the kernels of ten classes "
        "beside calls one after another, which is how the layer runs recurrent layers and transformers.",
    ),
    source="",
)
