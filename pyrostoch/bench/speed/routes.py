"""The routes that are measured side by side, the networks they go through, and the ratios with their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["AVERAGING", "MEMORY", "NETWORKS", "RATIOS", "ROUTES", "TARGETS", "Network", "Way"]


@dataclass(frozen=True)
class Way:
    """A way to make a step.

    Args:
        name: The route's name.
        title: What stands in the table.
        peer: The other library it needs, as `make peers` installs it; none where pyrostoch's environment will do.
        compiles: Whether it needs a compiler.
        on_gpu: Whether it can use a GPU as `make peers` installs it.
    """

    name: str
    title: str
    peer: str | None = None
    compiles: bool = False
    on_gpu: bool = True


#: All routes, in the table's order.
ROUTES: tuple[Way, ...] = (
    Way("torch", "torch, nothing random"),
    Way("hand", "torch, local reparameterization by hand"),
    Way("hand-compiled", "torch, local reparameterization by hand, torch.compile", compiles=True),
    Way("pyro", "Pyro, AutoNormal, validation off: shared sample"),
    Way("pyro-validated", "Pyro, AutoNormal, validation on: shared sample"),
    Way("bayesian-torch", "bayesian-torch, shared sample", "bayesian-torch==0.5.0"),
    Way("bayesian-torch-flipout", "bayesian-torch, flipout", "bayesian-torch==0.5.0"),
    Way("torchbnn", "torchbnn, shared sample", "torchbnn==1.2"),
    Way("numpyro", "NumPyro, jitted, shared sample", "numpyro==0.22.0", on_gpu=False),
    Way("tyxe", "TyXe, local", "tyxe==0.0.2"),
    Way("pyrostoch-local", "pyrostoch, eager, local"),
    Way("pyrostoch-shared", "pyrostoch, eager, shared sample"),
    Way("pyrostoch-compiled-local", "pyrostoch, compiled, local", compiles=True),
    Way("pyrostoch-compiled-shared", "pyrostoch, compiled, shared sample", compiles=True),
)


@dataclass(frozen=True)
class Network:
    """A network that steps are made through.

    Args:
        title: What stands in the table.
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

#: Ratios in the table.
RATIOS: tuple[tuple[str, str], ...] = (
    ("pyrostoch-compiled-local", "hand"),
    ("pyrostoch-compiled-local", "numpyro"),
    ("pyrostoch-compiled-shared", "numpyro"),
    ("pyrostoch-compiled-shared", "pyro"),
    ("pyrostoch-shared", "pyro"),
)

#: The two ways to average, and the numbers of draws whose memory is compared.
AVERAGING, MEMORY = ("averaged", "calls"), ("mc:100", "mc:10")

#: What is aimed at, at most, by case and metric, on two cores of a CPU.
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
    "memory": {"ratio/mc:100/mc:10": 1.1},
    "import": {"seconds/added": 0.3},
}
