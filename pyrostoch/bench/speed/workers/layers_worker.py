"""Two libraries of Bayesian torch layers: bayesian-torch and torchbnn."""

from __future__ import annotations

import importlib
import math
from typing import Any

from .common import data_term, network, training
from .task import SCALE, Task, TimedStep

__all__ = ["build"]


def build(task: Task) -> TimedStep:
    """The implementations `bayesian-torch`, `bayesian-torch-flipout` and `torchbnn`; biases are random too."""
    if task.implementation == "torchbnn":
        return _torchbnn(task)
    net = network(task)
    convert: Any = importlib.import_module("bayesian_torch.models.dnn_to_bnn")
    settings = {
        **{"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "moped_enable": False},
        "posterior_rho_init": math.log(math.expm1(SCALE)),
        "type": "Flipout" if task.implementation == "bayesian-torch-flipout" else "Reparameterization",
    }
    convert.dnn_to_bnn(net, settings)
    net.to(task.device)
    return training(task, lambda x, y: data_term(net(x), y) + convert.get_kl_loss(net), net.parameters())


def _torchbnn(task: Task) -> TimedStep:
    bnn: Any = importlib.import_module("torchbnn")
    net = network(
        task,
        lambda before, width, bias: bnn.BayesLinear(0.0, 1.0, before, width, bias=bias),
        lambda before, width, kernel, bias: bnn.BayesConv2d(0.0, 1.0, before, width, kernel, bias=bias),
    )
    kl = bnn.BKLLoss(reduction="sum")

    def loss(x: Any, y: Any) -> Any:
        # The KL has an axis of length 1.
        return data_term(net(x), y) + kl(net).sum()

    return training(task, loss, net.parameters())
