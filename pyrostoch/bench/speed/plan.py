"""The benchmark of speed: its cases, presets, table and notes."""

from __future__ import annotations

from pyrostoch.bench.case import Bench, Case
from pyrostoch.bench.speed.measures import Timing, averages, imports, memory, steps
from pyrostoch.bench.speed.routes import NETWORKS, RATIOS, ROUTES, TARGETS

__all__ = ["SPEED"]

_STEPS = {
    "quick": Timing(epochs=2, batch_size=100, blocks=2, steps=2, peers=False),
    "cpu": Timing(epochs=15, batch_size=100, blocks=5, steps=4),
    "full": Timing(epochs=31, batch_size=100, blocks=5, steps=10),
}
_AVERAGES = {
    "quick": Timing(epochs=1, batch_size=200),
    "cpu": Timing(epochs=5, batch_size=10_000),
    "full": Timing(epochs=15, batch_size=10_000),
}
_MEMORY = {
    "quick": Timing(epochs=1, batch_size=100),
    "cpu": Timing(epochs=3, batch_size=1000),
    "full": Timing(epochs=7, batch_size=1000),
}
_IMPORT = {"quick": Timing(epochs=1), "cpu": Timing(epochs=11), "full": Timing(epochs=31)}

_PINNED = ", ".join(dict.fromkeys(way.peer.replace("==", " ") for way in ROUTES if way.peer))

#: The benchmark.
SPEED = Bench(
    name="speed",
    title="Speed",
    cases=(
        *(Case(f"step/{name}", net.title, None, _STEPS, alone=steps) for name, net in NETWORKS.items()),
        Case("averaging/lenet5/dense", "dense layers random", None, _AVERAGES, alone=averages),
        Case("averaging/lenet5/all", "all layers random", None, _AVERAGES, alone=averages),
        Case("memory", "LeNet5, 1,000 images", None, _MEMORY, alone=memory, cpu_only=True),
        Case("import", "in a fresh process", None, _IMPORT, alone=imports, cpu_only=True),
    ),
    columns=(
        *((f"ms/{way.name}", f"{way.title}, ms") for way in ROUTES),
        *((f"ratio/{one}/{other}", f"{one} / {other}") for one, other in RATIOS),
        ("ms/averaged", "average of 20 draws by `predict`, ms"),
        ("ms/calls", "20 calls of the network, ms"),
        ("ratio/averaged/calls", "averaged / calls"),
        ("mib/mc:100", "peak memory of mc:100, MiB"),
        ("mib/mc:10", "peak memory of mc:10, MiB"),
        ("ratio/mc:100/mc:10", "mc:100 / mc:10"),
        ("seconds/pyro", "`import pyro`, s"),
        ("seconds/both", "`import pyro, pyrostoch`, s"),
        ("seconds/added", "what pyrostoch adds, s"),
    ),
    published={},
    notes=(
        "One SVI step, batch 100: loss, gradients, Adam's update. Every route has a process of its own; one works at a "
        "time, in rounds whose order changes. A time is the median over rounds of each round's median over blocks of "
        "steps; a ratio is formed within each round, and its median stands with the lowest and highest round in "
        "brackets. Targets are those of two CPU cores.",
        "Everywhere: prior N(0, 1), mean-field Gaussian posterior, Adam at 0.001, cross-entropy of 60,000 examples, "
        "random images, float32, batch normalization behind LeNet5's layers. Random are the weights of dense and "
        "convolutional layers, and in the 31-layer network the biases too. bayesian-torch, torchbnn and TyXe's local "
        "estimator draw the biases of the first network as well; LeNet5 has none.",
        "The divergence from the prior is a closed form, with these exceptions: Pyro's AutoNormal hides its "
        "distribution in a Delta, so that TraceMeanField_ELBO samples it; bayesian-torch takes a mean over a tensor's "
        "weights and not their sum, which costs the same. TyXe is given a helper that Pyro has dropped. NumPyro's "
        "pooling is a maximum over a reshaped axis, with channels last: faster there than its window reduction. "
        "Images, networks and batches are the same; layouts are each library's own.",
        f"Other libraries are in the environment of `make peers` ({_PINNED}); where one is not installed, or there is "
        "no compiler, its routes are not run. NumPyro is run on CPUs only.",
        "Averages are those of LeNet5 in evaluation mode, 10,000 random images in batches of 1,000 (preset quick: 200 "
        "images), against one call of the network a draw under the marginal interpretation, summed up by hand. Memory "
        "is the most that a fresh process holds.",
    ),
    source="",
    across=True,
    targets=TARGETS,
)
