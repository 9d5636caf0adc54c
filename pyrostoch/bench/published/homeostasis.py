"""The bench `homeostasis`: transfer functions and accuracy of binary neurons when the noise changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrostoch.bench.case import Bench, Case, TrialContext
from pyrostoch.bench.files import save_figure
from pyrostoch.bench.published.binary import NOISE, binary_mlp
from pyrostoch.bench.recipe import Recipe
from pyrostoch.guides import Additive
from pyrostoch.layers import ThresholdNeuron
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction import compare
from pyrostoch.prediction.homeostasis import Homeostasis, noise_scaled
from pyrostoch.prediction.readouts import evaluating, seeded
from pyrostoch.report.homeostasis import transfer_functions
from pyrostoch.training import fit

__all__ = ["COMPENSATIONS", "FACTORS", "HOMEOSTASIS", "TransferFunctions", "homeostasis_trial", "transfer_function"]

#: Noise levels, as factors of the level in training.
FACTORS = (0.5, 1.0, 2.0, 4.0)
#: What compensates for a changed noise level: nothing, homeostasis of the bias or of gain and bias, or exact rescaling.
COMPENSATIONS = ("off", "bias", "gain-and-bias", "oracle")

# Training images that the neurons adapt to, and test images.
_ADAPTED, _TESTED = 10_000, 10_000
# Factor that practically removes the noise.
_NO_NOISE = 1e-3
# Points of a transfer function, from -3 to 3 standard deviations of a neuron's input.
_GRID = 41
_RECIPES = {
    "quick": Recipe(epochs=2, lr=4e-3, estimator="moments:closed", examples=2000),
    "cpu": Recipe(epochs=10, lr=4e-3, estimator="moments:closed"),
}


@dataclass(frozen=True, eq=False)
class TransferFunctions:
    """Transfer functions of a layer, averaged over its neurons: the mean state as a function of the input.

    Args:
        axis: Inputs, (n,).
        reference: Mean states at the noise level of training, (n,).
        states: Mean states by noise level and compensation, (n,) each.
    """

    axis: Tensor
    reference: Tensor
    states: dict[tuple[float, str], Tensor]

    def error(self, factor: float, compensation: str) -> float:
        """Largest absolute difference from the reference.

        Args:
            factor: The noise level.
            compensation: One of `COMPENSATIONS`.
        """
        return (self.states[factor, compensation] - self.reference).abs().max().item()


def transfer_function(neurons: ThresholdNeuron) -> Tensor:
    """Mean state of a layer's neurons at inputs from -3 to 3, averaged over neurons.

    Args:
        neurons: The layer; its current noise, gain and bias are used.

    Returns:
        Mean states, (n,).
    """
    axis = torch.linspace(-3.0, 3.0, _GRID)
    count = max(neurons.gain.numel(), 1)
    mean_state: Tensor = neurons.expected(axis.unsqueeze(1).expand(-1, count)).mean(1)
    return mean_state


def _train(x: Tensor, y: Tensor, net: nn.Module, recipe: Recipe, seed: int) -> BayesianModel:
    model = BayesianModel(net, prior={}, likelihood=Categorical(), num_data=len(x))
    fit(
        model,
        Additive(model),
        (x, y),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        estimator=recipe.estimator,
        seed=seed,
        progress=False,
    )
    return model


def _accuracy(model: BayesianModel, data: tuple[Tensor, Tensor], seed: int, samples: int = 20) -> float:
    mode = f"mc:{samples}"
    return float(compare(model, Additive(model), data, modes=(mode,), seed=seed)[mode].accuracy or 0.0)


def _compensate(homeostasis: Homeostasis, compensation: str, factor: float, x: Tensor, seed: int) -> None:
    """Set gains and biases for the current noise level by one of `COMPENSATIONS`."""
    homeostasis.reset()
    if compensation == "oracle":
        homeostasis.oracle(factor)
    elif compensation != "off":
        homeostasis.learning_rate = (1.0, 0.0 if compensation == "bias" else 10.0)
        homeostasis.adapt(x, epochs=5, seed=seed)


def homeostasis_trial(context: TrialContext) -> dict[str, float]:
    """Train a network, change its noise, and measure what each compensation restores; seed 0 draws the figure.

    Args:
        context: The trial.

    Returns:
        Scores by metric.
    """
    split = context.require_split()
    limit = context.recipe.examples or len(split.x_train)
    x, y = split.x_train[:limit], split.y_train[:limit]
    test = (split.x_test[: min(limit, _TESTED)], split.y_test[: min(limit, _TESTED)])
    adapted = x[:_ADAPTED]
    scores: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context.seed)
        net = binary_mlp(split)
        noise_before = _noise_of_scores(net, adapted, context.seed)
        model = _train(x, y, net, context.recipe, context.seed)
        context.progress({"epoch": context.recipe.epochs, "note": "trained"})
        # Training with noise reduces the noise of the class scores.
        scores["scores/noise-before"] = noise_before
        scores["scores/noise-after"] = _noise_of_scores(net, adapted, context.seed)
        homeostasis = Homeostasis(net)
        homeostasis.calibrate(adapted, seed=context.seed)
        neurons = homeostasis.neurons["neurons1"]
        states: dict[tuple[float, str], Tensor] = {}
        for factor in FACTORS:
            for compensation in COMPENSATIONS:
                with noise_scaled(net, factor):
                    _compensate(homeostasis, compensation, factor, adapted, context.seed)
                    states[factor, compensation] = transfer_function(neurons)
                    suffix = f"{compensation}/noise-{factor:g}"
                    scores[f"accuracy/{suffix}"] = _accuracy(model, test, context.seed)
                    scores[f"distance/{suffix}"] = homeostasis.distance(adapted, seed=context.seed)
                context.progress({"epoch": context.recipe.epochs, "note": f"noise x {factor:g}, {compensation}"})
        homeostasis.reset()
        functions = TransferFunctions(torch.linspace(-3.0, 3.0, _GRID), transfer_function(neurons), states)
        for factor, compensation in states:
            scores[f"transfer/{compensation}/noise-{factor:g}"] = functions.error(factor, compensation)
        trained = scores["accuracy/off/noise-1"]
        lost = trained - scores["accuracy/off/noise-4"]
        scores["accuracy/lost/noise-4"] = lost
        scores["accuracy/recovered/noise-4"] = (
            1.0 - (trained - scores["accuracy/gain-and-bias/noise-4"]) / lost if lost else 0.0
        )
        with noise_scaled(net, _NO_NOISE):
            scores["accuracy/noise-removed"] = _accuracy(model, test, context.seed)
        # A few neurons transmit more by their probability of being 1 than by a single state, so they need their noise.
        torch.default_generator.manual_seed(context.seed)
        few_net = binary_mlp(split, widths=(5,), noise=4.0 * NOISE)
        few_model = _train(x, y, few_net, context.recipe, context.seed)
        scores["accuracy/few"] = _accuracy(few_model, test, context.seed, 100)
        with noise_scaled(few_net, _NO_NOISE):
            scores["accuracy/few/noise-removed"] = _accuracy(few_model, test, context.seed, 100)
        # A network trained with hardly any noise, by the gradient of a soft threshold.
        torch.default_generator.manual_seed(context.seed)
        quiet_net = binary_mlp(split, noise=0.1 * NOISE)
        quiet_model = _train(x, y, quiet_net, context.recipe.changed({"estimator": "local"}), context.seed)
        scores["accuracy/trained-without"] = _accuracy(quiet_model, test, context.seed)
        for factor in FACTORS:
            with noise_scaled(quiet_net, 10.0 * factor):
                scores[f"accuracy/trained-without/noise-{factor:g}"] = _accuracy(quiet_model, test, context.seed)
    if context.seed == 0:
        path = context.setting.out / "figures" / f"homeostasis-{context.setting.preset}.png"
        save_figure(transfer_functions(functions.axis, functions.reference, functions.states, scores), path)
    return scores


def _noise_of_scores(net: nn.Module, x: Tensor, seed: int) -> float:
    """Variance of the class scores due to noise, divided by their variance across images."""
    with evaluating(net), seeded(seed, x.device):
        draws = torch.stack([net(x[:1000]) for _ in range(20)])
    return (draws.var(0).mean() / draws.mean(0).var(0).mean()).item()


#: The bench.
HOMEOSTASIS = Bench(
    name="homeostasis",
    title="Homeostasis of binary neurons",
    cases=(Case("mnist/dense", "784-500-500-10", "mnist", _RECIPES, custom_trial=homeostasis_trial),),
    columns=(
        *(
            (f"accuracy/{one}/noise-{factor:g}", f"accuracy, noise x {factor:g}, {one.replace('-', ' ')}, %")
            for factor in FACTORS
            for one in COMPENSATIONS
        ),
        ("accuracy/lost/noise-4", "accuracy lost, noise x 4, off, percentage points"),
        ("accuracy/recovered/noise-4", "share of the loss recovered by gain and bias, %"),
        *(
            (f"transfer/{one}/noise-4", f"transfer function, largest error, noise x 4, {one.replace('-', ' ')}")
            for one in COMPENSATIONS
        ),
        ("accuracy/noise-removed", "accuracy, noise removed, %"),
        ("accuracy/few", "accuracy of 5 neurons trained at noise x 4, 100 samples, %"),
        ("accuracy/few/noise-removed", "accuracy of 5 neurons trained at noise x 4, noise removed, %"),
        ("accuracy/trained-without", "accuracy trained at noise x 0.1, tested at noise x 0.1, %"),
        ("accuracy/trained-without/noise-1", "accuracy trained at noise x 0.1, tested at noise x 1, %"),
        ("accuracy/trained-without/noise-4", "accuracy trained at noise x 0.1, tested at noise x 4, %"),
        ("scores/noise-before", "class scores before training, variance due to noise / variance across images"),
        ("scores/noise-after", "class scores after training, variance due to noise / variance across images"),
    ),
    published={},
    notes=(
        "Accuracy on the test images with 20 samples. The network is trained by moments at noise x 1. Gain and bias of "
        "each neuron adapt to 10,000 training images without labels, so that its mean state and the variance of that "
        "state across images return to their values at noise x 1. The oracle scales weights and thresholds by the same "
        "factor as the noise.",
        "The transfer function is the mean state of the first layer's neurons as a function of their input, averaged "
        "over neurons.",
    ),
    source="",
    transposed=True,
)
