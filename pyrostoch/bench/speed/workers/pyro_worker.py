"""Pyro: a PyroModule, AutoNormal, TraceMeanField_ELBO and SVI."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from .common import batches, network, waiter
from .task import LR, NUM_DATA, SCALE, Task, TimedStep

__all__ = ["build"]


def build(task: Task) -> TimedStep:
    """The implementations `pyro` and `pyro-validated`."""
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, TraceMeanField_ELBO
    from pyro.infer.autoguide import AutoNormal, init_to_value
    from pyro.nn import PyroModule, PyroSample
    from pyro.nn.module import to_pyro_module_

    pyro.enable_validation(task.implementation == "pyro-validated")
    net: Any = network(task)
    means: dict[str, Tensor] = {}
    zero, one = torch.zeros((), device=task.device), torch.ones((), device=task.device)
    to_pyro_module_(net)
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            for part in ("weight", "bias") if task.random == "all" else ("weight",):
                value = getattr(layer, part)
                means[f"net.{name}.{part}"] = value.detach().clone()
                setattr(layer, part, PyroSample(dist.Normal(zero, one).expand(value.shape).to_event(value.dim())))

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, y: Tensor) -> None:
            logits = self.net(x)
            # With explicit indices, since Pyro would otherwise draw a permutation of all examples.
            with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x), device=x.device)):
                pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    model = Model()
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=means), init_scale=SCALE)
    optimizer: Any = importlib.import_module("pyro.optim").Adam({"lr": LR})
    svi, data = SVI(model, guide, optimizer, TraceMeanField_ELBO()), batches(task)
    return TimedStep(lambda number: svi.step(*data[number % len(data)]), waiter(task.device))
