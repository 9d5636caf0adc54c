"""The bench `pruning`: pruning by alpha and by magnitude, at the same sparsity and for the same number of epochs."""

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
from pyrostoch.guides import Additive, Guide, prune, refresh_batch_norm
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.models import MLP
from pyrostoch.prediction.compare import compare
from pyrostoch.prediction.readouts import seeded
from pyrostoch.priors import LogUniform

__all__ = ["PRUNING"]

# Weights with a larger log alpha are removed, as published.
_THRESHOLD = 3.0

# As published, sigma starts at exp(-5), that is log sigma^2 at -10, and in the full recipe the KL's weight rises from 0
# after 5 epochs to 1 after 20. Rates and epochs of the CPU preset were chosen on 10,000 held-out training images.
_RECIPES = {
    "quick": Recipe(epochs=4, lr=2e-3, init_scale=math.exp(-5), kl_warmup=(1.0, 2.0), examples=2000),
    "cpu": Recipe(epochs=30, lr=2e-3, lr_alpha=1e-2, init_scale=math.exp(-5), kl_warmup=(1.0, 10.0)),
    "full": Recipe(epochs=200, batch_size=100, lr=1e-3, init_scale=math.exp(-5), kl_warmup=(5.0, 20.0)),
}
# Weights before batch normalization tolerate a learning rate that would be far too high for others, and are pruned
# further with it: after 12 epochs, compression is 40 at a rate of 0.02 and 91 at 0.05, with the same held-out error.
_CONV = {**_RECIPES, "cpu": replace(_RECIPES["cpu"], epochs=30, lr=5e-2, lr_alpha=5e-2, kl_warmup=(1.0, 6.0))}
# Learning rate of the plain network that is pruned by magnitude, the same as for plain networks in other benches.
_PLAIN_LR = 2e-3


def _lenet_300_100(split: DataSplit) -> nn.Module:
    return MLP(math.prod(split.input_shape), (300, 100), split.num_classes or 1)


def _guide(model: BayesianModel, recipe: Recipe, origin: Guide | None) -> Guide:
    """N(mu, sigma^2) parametrized by sigma, which has less gradient noise than alpha mu^2 (Molchanov et al. 2017)."""
    guide = Additive(model, init_scale=recipe.init_scale)
    # The scales use the learning rate of log alpha, so that they can get far enough within the epochs.
    guide.alpha_parameters = ("log_scale",)
    return guide


def _measure(make_network: Callable[[DataSplit], nn.Module]) -> Callable[[Trained], dict[str, float]]:
    """A function that scores the pruned network, and a plain one pruned by magnitude to the same numbers of weights."""

    def measure(trained: Trained) -> dict[str, float]:
        pruning = prune(trained.guide, _THRESHOLD)
        scores = {"compression": pruning.compression}
        scores |= {f"sparsity/{row.site.removesuffix('.weight')}": row.sparsity for row in pruning.sites}
        scores["error/before"] = _error(trained, trained.model, trained.guide)
        exported = pruning.export(trained.model)
        scores["error/alpha-as-it-is"] = _plain_error(trained, exported)
        refresh_batch_norm(exported, trained.train[0])
        scores["error/alpha"] = _plain_error(trained, exported)
        device, recipe = trained.train[0].device, trained.recipe
        with seeded(trained.seed, device):
            plain = make_network(trained.split).to(device)
        plain = train_and_prune(
            plain,
            pruning,
            trained.train,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            lr=_PLAIN_LR,
            seed=trained.seed,
        )
        scores["error/magnitude"] = _plain_error(trained, plain)
        return scores

    return measure


def _error(trained: Trained, model: BayesianModel, guide: Guide) -> float:
    """The error rate on the test data with mean weights."""
    return 1.0 - float(compare(model, guide, trained.test, modes=("mean",))["mean"].accuracy or 0.0)


def _plain_error(trained: Trained, net: nn.Module) -> float:
    """The error rate of a network without random weights."""
    model = BayesianModel(net, prior={}, likelihood=Categorical(), num_data=trained.model.num_data)
    return _error(trained, model, Additive(model))


def _case(
    name: str,
    title: str,
    make_network: Callable[[DataSplit], nn.Module],
    layers: tuple[str, ...],
    recipes: dict[str, Recipe],
) -> Case:
    return Case(
        name=f"{name}/{'+'.join(layers)}/alpha",
        title=f"{title} on MNIST, random: {', '.join(layers)}",
        data="mnist",
        network=make_network,
        guide=_guide,
        recipes=recipes,
        random={f"{layer}.weight": LogUniform() for layer in layers},
        modes=("mean", "mc:20"),
        elbo_draws=2,
        measure=_measure(make_network),
    )


#: The bench.
PRUNING = Bench(
    name="pruning",
    title="Pruning by alpha and by magnitude",
    cases=(
        _case("lenet5", "LeNet5", lenet5, ("conv1", "conv2", "dense1", "dense2"), _CONV),
        _case("lenet-300-100", "MLP 784-300-100-10", _lenet_300_100, ("fc1", "fc2", "fc3"), _RECIPES),
    ),
    columns=(
        ("compression", "compression factor"),
        ("error/before", "error before pruning, mean weights, %"),
        ("error/alpha-as-it-is", "error, pruned by alpha, batch normalization as trained, %"),
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
        "Weights with log alpha above 3 are removed and the others keep their means; nothing is trained afterwards. "
        "The statistics of batch normalization were collected with drawn weights and are estimated again on training "
        "images. Compression counts the weights of the named layers; batch normalization and biases are kept and not "
        "counted.",
        "By magnitude: a plain network of the same architecture, pruned gradually to the same number of weights in "
        "each layer, in the same number of epochs. The published networks have no batch normalization.",
        "The published recipe clips log alpha to ±8; here the standard deviation is the parameter, and nothing is "
        "clipped.",
    ),
    source="Molchanov et al. 2017",
)
