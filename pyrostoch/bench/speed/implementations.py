"""The implementations of a training step that are compared, their networks, and the ratios with their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ADAPTERS",
    "AVERAGING",
    "IMPLEMENTATIONS",
    "MEMORY",
    "NETWORKS",
    "RATIOS",
    "TARGETS",
    "Implementation",
    "Network",
]


@dataclass(frozen=True)
class Implementation:
    """A way to make a training step with one library.

    Args:
        name: Its name in metrics and tasks.
        title: Its title in the table.
        peer: The other library that it needs, as `make peers` installs it; `None` if pyrostoch's environment suffices.
        compiles: Whether it needs a compiler.
        on_gpu: Whether it can use a GPU as `make peers` installs it.
    """

    name: str
    title: str
    peer: str | None = None
    compiles: bool = False
    on_gpu: bool = True


#: All implementations, in the table's order.
IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Implementation("torch", "torch, nothing random"),
    Implementation("hand", "torch, local reparameterization by hand"),
    Implementation("hand-compiled", "torch, local reparameterization by hand, torch.compile", compiles=True),
    Implementation("pyro", "Pyro, AutoNormal, validation off: shared sample"),
    Implementation("pyro-validated", "Pyro, AutoNormal, validation on: shared sample"),
    Implementation("bayesian-torch", "bayesian-torch, shared sample", "bayesian-torch==0.5.0"),
    Implementation("bayesian-torch-flipout", "bayesian-torch, flipout", "bayesian-torch==0.5.0"),
    Implementation("torchbnn", "torchbnn, shared sample", "torchbnn==1.2"),
    Implementation("numpyro", "NumPyro, jitted, shared sample", "numpyro==0.22.0", on_gpu=False),
    Implementation("tyxe", "TyXe, local", "tyxe==0.0.2"),
    Implementation("pyrostoch-local", "pyrostoch, eager, local"),
    Implementation("pyrostoch-shared", "pyrostoch, eager, shared sample"),
    Implementation("pyrostoch-compiled-local", "pyrostoch, compiled, local", compiles=True),
    Implementation("pyrostoch-compiled-shared", "pyrostoch, compiled, shared sample", compiles=True),
)


@dataclass(frozen=True)
class Network:
    """A network that is trained.

    Args:
        title: Its title in the table.
        widths: Widths of a multilayer perceptron; empty for LeNet5.
        random: Which tensors are random.
    """

    title: str
    widths: tuple[int, ...] = ()
    random: Literal["weights", "all"] = "weights"


#: The networks by name.
NETWORKS: dict[str, Network] = {
    "mlp": Network("784-400-400-10", (784, 400, 400, 10)),
    "lenet5": Network("LeNet5"),
    "deep": Network("31 layers, 62 random tensors", (784, *[50] * 30, 10), "all"),
}

#: Pairs of implementations whose ratio of times is in the table.
RATIOS: tuple[tuple[str, str], ...] = (
    ("pyrostoch-compiled-local", "hand"),
    ("pyrostoch-compiled-local", "numpyro"),
    ("pyrostoch-compiled-shared", "numpyro"),
    ("pyrostoch-compiled-shared", "pyro"),
    ("pyrostoch-shared", "pyro"),
)

#: The two ways to average predictions, and the modes whose peak memory is compared.
AVERAGING, MEMORY = ("averaged", "calls"), ("mc:100", "mc:10")

#: The two kinds of adapters.
ADAPTERS = ("adapters-random", "adapters-plain")

#: Upper limits that are aimed at, by case and metric, on two CPU cores.
TARGETS: dict[str, dict[str, float]] = {
    "step/mlp": {
        "ratio/pyrostoch-compiled-local/hand": 0.65,
        "ratio/pyrostoch-compiled-local/numpyro": 1.05,
        "ratio/pyrostoch-compiled-shared/numpyro": 0.9,
        "ratio/pyrostoch-compiled-shared/pyro": 0.25,
        "ratio/pyrostoch-shared/pyro": 0.6,
    },
    "step/lenet5": {
        "ratio/pyrostoch-compiled-local/hand": 0.65,
        "ratio/pyrostoch-compiled-local/numpyro": 0.65,
        "ratio/pyrostoch-compiled-shared/numpyro": 0.9,
        "ratio/pyrostoch-shared/pyro": 0.6,
    },
    "step/deep": {"ratio/pyrostoch-compiled-shared/pyro": 0.12, "ratio/pyrostoch-shared/pyro": 0.6},
    "averaging/lenet5/dense": {"ratio/averaged/calls": 0.15},
    "averaging/lenet5/all": {"ratio/averaged/calls": 0.8},
    "adapters": {"ratio/adapters-random/adapters-plain": 1.15},
    "memory": {"ratio/mc:100/mc:10": 1.1},
    "import": {"seconds/added": 0.3},
}
