"""Pruning by alpha beside pruning by magnitude, at the same sparsity and for the same number of epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from pyrostoch.bench.case import Bench, Case, Trained
from pyrostoch.bench.published.magnitude import train_and_prune
from pyrostoch.bench.published.variance import lenet5
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.guides import Additive, prune, refresh_batch_norm
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.models import MLP
from pyrostoch.prediction.compare import compare
from pyrostoch.prediction.readouts import seeded
from pyrostoch.priors import LogUniform

__all__ = ["PRUNING"]

_THRESHOLD = 3.0

# sigma starts at exp(-5), log sigma^2 at -10, and the KL waits 5 epochs and has its full weight after 20, as published.
# Rates and epochs of the CPU preset were chosen on 10,000 held-out training images.
_RECIPES = {
    "quick": Recipe(epochs=4, lr=2e-3, init_scale=math.exp(-5), kl_warmup=(1.0, 2.0), examples=2000),
    "cpu": Recipe(epochs=30, lr=2e-3, lr_alpha=1e-2, init_scale=math.exp(-5), kl_warmup=(1.0, 10.0)),
    "full": Recipe(epochs=200, batch_size=100, lr=1e-3, init_scale=math.exp(-5), kl_warmup=(5.0, 20.0)),
}
# Weights whose layer is normalized take a rate that would be far too high for others, and are pruned the further by it:
# after 12 epochs 40 times at 0.02, 91 times at 0.05, the error held out the same.
_CONV = {**_RECIPES, "cpu": replace(_RECIPES["cpu"], epochs=30, lr=5e-2, lr_alpha=5e-2, kl_warmup=(1.0, 6.0))}
# Rate of the plain network that is pruned by magnitude: that of the plain networks in the other benchmarks.
_PLAIN_LR = 2e-3


def _lenet_300_100(split: DataSplit) -> nn.Module:
    return MLP(math.prod(split.input_shape), (300, 100), split.num_classes or 1)


def _guide(model: BayesianModel, recipe: Recipe, origin: nn.Module | None) -> nn.Module:
    """N(mu, sigma^2) in sigma's own parameter, which has less gradient noise than alpha mu^2."""
    guide = Additive(model, init_scale=recipe.init_scale)
    # The spreads take the rate of log alpha, to get where they have to go within the epochs there are.
    guide.alpha_parameters = ("log_scale",)
    return guide


def _measure(make: Callable[[DataSplit], nn.Module]) -> Callable[[Trained], dict[str, float]]:
    """Scores of the pruned network, and of a plain one pruned by magnitude to the same counts."""

    def measure(trained: Trained) -> dict[str, float]:
        pruning = prune(trained.guide, _THRESHOLD)
        found = {"compression": pruning.compression}
        found |= {f"sparsity/{row.site.removesuffix('.weight')}": row.sparsity for row in pruning.sites}
        found["error/before"] = _error(trained, trained.model, trained.guide)
        exported = pruning.export(trained.model)
        found["error/alpha-as-it-is"] = _plain_error(trained, exported)
        refresh_batch_norm(exported, trained.train[0])
        found["error/alpha"] = _plain_error(trained, exported)
        device, recipe = trained.train[0].device, trained.recipe
        with seeded(trained.seed, device):
            plain = make(trained.split).to(device)
        plain = train_and_prune(
            plain,
            pruning,
            trained.train,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            lr=_PLAIN_LR,
            seed=trained.seed,
        )
        found["error/magnitude"] = _plain_error(trained, plain)
        return found

    return measure


def _error(trained: Trained, model: BayesianModel, guide: nn.Module) -> float:
    """The share of the test data that a network of mean weights gets wrong."""
    return 1.0 - float(compare(model, guide, trained.test, modes=("mean",))["mean"].accuracy or 0.0)


def _plain_error(trained: Trained, net: nn.Module) -> float:
    """The same of a network without random weights."""
    model = BayesianModel(net, prior={}, likelihood=Categorical(), num_data=trained.model.num_data)
    return _error(trained, model, Additive(model))


def _case(
    name: str,
    title: str,
    make: Callable[[DataSplit], nn.Module],
    layers: tuple[str, ...],
    recipes: dict[str, Recipe],
) -> Case:
    return Case(
        name=f"{name}/{'+'.join(layers)}/alpha",
        title=f"{title} on MNIST, random: {', '.join(layers)}",
        data="mnist",
        network=make,
        guide=_guide,
        recipes=recipes,
        random={f"{layer}.weight": LogUniform() for layer in layers},
        modes=("mean", "mc:20"),
        draws=2,
        measure=_measure(make),
    )


#: The benchmark.
PRUNING = Bench(
    name="pruning",
    title="Pruning by alpha, and by magnitude",
    cases=(
        _case("lenet5", "LeNet5", lenet5, ("conv1", "conv2", "dense1", "dense2"), _CONV),
        _case("lenet-300-100", "MLP 784-300-100-10", _lenet_300_100, ("fc1", "fc2", "fc3"), _RECIPES),
    ),
    columns=(
        ("compression", "compression, times"),
        ("error/before", "error before, mean weights, %"),
        ("error/alpha-as-it-is", "error, pruned by alpha, normalization as trained, %"),
        ("error/alpha", "error, pruned by alpha, %"),
        ("error/magnitude", "error, pruned by magnitude, %"),
        *((f"sparsity/{layer}", f"{layer}, % zero") for layer in ("conv1", "conv2", "dense1", "dense2")),
    ),
    published={
        "lenet5/conv1+conv2+dense1+dense2/alpha": {
            "compression": 280.0,
            "error/alpha": 0.0075,
            "sparsity/conv1": 0.67,
            "sparsity/conv2": 0.98,
            "sparsity/dense1": 0.998,
            "sparsity/dense2": 0.95,
        },
        "lenet-300-100/fc1+fc2+fc3/alpha": {"compression": 68.0, "error/alpha": 0.0192},
    },
    notes=(
        "Weights with log alpha above 3 are removed and the rest keep their means; nothing is trained afterwards. The "
        "statistics of batch normalization, gathered with drawn weights, are estimated again on training images. "
        "Counts are over the weights of the layers named; batch normalization and biases are kept and not counted.",
        "By magnitude: a plain network of the same shape, pruned gradually to the same number of weights in each "
        "layer, in the same number of epochs. The published networks have no batch normalization.",
        "The published recipe clips log alpha to ±8; here the spread is a parameter of its own, without a clip.",
    ),
    source="Molchanov et al. 2017",
)
