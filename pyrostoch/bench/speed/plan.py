"""The bench `speed`: its cases, presets, table and notes."""

from __future__ import annotations

from pyrostoch.bench.case import Bench, Case
from pyrostoch.bench.recipe import Timing
from pyrostoch.bench.speed.implementations import IMPLEMENTATIONS, NETWORKS, RATIOS, TARGETS
from pyrostoch.bench.speed.measures import adapters, averages, imports, memory, steps

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
_ADAPTERS = {
    "quick": Timing(epochs=1, batch_size=4),
    "cpu": Timing(epochs=15, batch_size=16, blocks=2),
    "full": Timing(epochs=31, batch_size=16, blocks=5),
}
_MEMORY = {
    "quick": Timing(epochs=1, batch_size=100),
    "cpu": Timing(epochs=3, batch_size=1000),
    "full": Timing(epochs=7, batch_size=1000),
}
_IMPORT = {"quick": Timing(epochs=1), "cpu": Timing(epochs=11), "full": Timing(epochs=31)}

_PINNED = ", ".join(dict.fromkeys(one.peer.replace("==", " ") for one in IMPLEMENTATIONS if one.peer))

#: The bench.
SPEED = Bench(
    name="speed",
    title="Speed",
    cases=(
        *(Case(f"step/{name}", net.title, None, _STEPS, custom_trial=steps) for name, net in NETWORKS.items()),
        Case("averaging/lenet5/dense", "dense layers random", None, _AVERAGES, custom_trial=averages),
        Case("averaging/lenet5/all", "all layers random", None, _AVERAGES, custom_trial=averages),
        Case("adapters", "adapters of a 6-layer encoder", None, _ADAPTERS, custom_trial=adapters),
        Case("memory", "LeNet5, 1,000 images", None, _MEMORY, custom_trial=memory, cpu_only=True),
        Case("import", "in a new process", None, _IMPORT, custom_trial=imports, cpu_only=True),
    ),
    columns=(
        *((f"ms/{one.name}", f"{one.title}, ms") for one in IMPLEMENTATIONS),
        *((f"ratio/{one}/{other}", f"{one} / {other}") for one, other in RATIOS),
        ("ms/averaged", "average of 20 draws by `predict`, ms"),
        ("ms/calls", "20 calls of the network, ms"),
        ("ratio/averaged/calls", "averaged / calls"),
        ("ms/adapters-random", "random adapters, ms"),
        ("ms/adapters-plain", "ordinary adapters, ms"),
        ("ratio/adapters-random/adapters-plain", "random / ordinary"),
        ("mib/adapters-random", "peak memory with random adapters, MiB"),
        ("mib/adapters-plain", "peak memory with ordinary adapters, MiB"),
        ("mib/mc:100", "peak memory of mc:100, MiB"),
        ("mib/mc:10", "peak memory of mc:10, MiB"),
        ("ratio/mc:100/mc:10", "mc:100 / mc:10"),
        ("seconds/pyro", "`import pyro`, s"),
        ("seconds/both", "`import pyro, pyrostoch`, s"),
        ("seconds/added", "added by pyrostoch, s"),
    ),
    published={},
    notes=(
        "One SVI step, batch 100: loss, gradients, Adam's update. Every implementation runs in its own process; one "
        "works at a time, in rounds whose order changes. A time is the median over rounds of each round's median over "
        "blocks of steps. A ratio is computed within each round; the table shows the median over rounds, with the "
        "lowest and the highest in parentheses. Targets are for two CPU cores.",
        "Common to all: prior N(0, 1), mean-field Gaussian posterior, Adam at 0.001, cross-entropy of 60,000 examples, "
        "random images, float32, batch normalization after LeNet5's layers. The weights of dense and convolutional "
        "layers are random, and in the 31-layer network the biases too. bayesian-torch, torchbnn and TyXe's local "
        "estimator draw the biases of the first network as well; LeNet5 has none.",
        "The KL divergence from the prior is computed in closed form, with these exceptions: Pyro's AutoNormal hides "
        "its distribution in a Delta, so that TraceMeanField_ELBO samples it; bayesian-torch takes the mean over a "
        "tensor's weights instead of the sum, which costs the same. TyXe is given a helper that Pyro has removed. In "
        "NumPyro, pooling is a maximum over a reshaped axis, with channels last, which is faster there than its window "
        "reduction. Images, networks and batches are the same; memory layouts are those of each library.",
        f"The other libraries are installed by `make peers` ({_PINNED}); if one is missing, or there is no compiler, "
        "the implementations that need it are not run. NumPyro is run on CPUs only.",
        "Averages are predictions of LeNet5 in evaluation mode on 10,000 random images in batches of 1,000 (preset "
        "quick: 200 images), compared with one call of the network for each draw under the marginal interpretation, "
        "summed up by hand. Memory is the peak memory of a new process.",
        "Adapters are low-rank ones (rank 8) of queries and values in an encoder of 6 layers of width 256, 4 heads, on "
        "16 sequences of 64 words (preset quick: 4); the rest is fixed, but for the head. Random, their prior is "
        "N(0, 0.1^2) and their posterior mean-field Gaussian; the step is eager. The two take turns as above.",
    ),
    source="",
    transposed=True,
    targets=TARGETS,
)
