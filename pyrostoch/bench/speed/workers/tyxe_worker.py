"""TyXe: a torch network turned into a Pyro model, with local reparameterization."""

from __future__ import annotations

import importlib
import operator
from typing import Any

from .common import batches, network, waiter
from .task import LR, NUM_DATA, SCALE, Task, TimedStep

__all__ = ["build"]


def build(task: Task) -> TimedStep:
    """The implementation `tyxe`; all weights and biases are random, as TyXe requires for this estimator."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, TraceMeanField_ELBO

    # TyXe uses this helper, which Pyro has removed.
    helpers: Any = importlib.import_module("pyro.util")
    if not hasattr(helpers, "deep_getattr"):
        helpers.deep_getattr = lambda thing, name: operator.attrgetter(name)(thing)
    tyxe: Any = importlib.import_module("tyxe")
    pyro.enable_validation(False)
    net = network(task)
    zero, one = torch.zeros((), device=task.device), torch.ones((), device=task.device)
    batch_norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    prior = tyxe.priors.IIDPrior(dist.Normal(zero, one), expose_all=False, hide_module_types=batch_norms)
    start = tyxe.guides.PretrainedInitializer.from_net(net)
    bayesian = tyxe.VariationalBNN(
        net,
        prior,
        tyxe.likelihoods.Categorical(dataset_size=NUM_DATA),
        lambda model: tyxe.guides.AutoNormal(model, init_loc_fn=start, init_scale=SCALE),
    )
    optimizer: Any = importlib.import_module("pyro.optim").Adam({"lr": LR})
    svi, data = SVI(bayesian.model, bayesian.guide, optimizer, TraceMeanField_ELBO()), batches(task)

    def step(number: int) -> float:
        x, y = data[number % len(data)]
        with tyxe.poutine.local_reparameterization():
            value: float = svi.step((x,), y)
        return value

    return TimedStep(step, waiter(task.device))
