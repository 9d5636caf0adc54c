"""pyrostoch: training steps, eager and compiled, and predictions averaged over draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrostoch.guides import Additive
from pyrostoch.infer import ELBO, compile_step
from pyrostoch.infer.elbo import interpretation
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.models import MLP, LeNet5
from pyrostoch.prediction import predict
from pyrostoch.priors import Normal

from .common import batches, training, waiter
from .task import LR, NUM_DATA, SCALE, Task, TimedStep

__all__ = ["build", "model_and_guide"]


def model_and_guide(task: Task) -> tuple[BayesianModel, Additive]:
    """The task's network as a Bayesian model, and an additive Gaussian guide for it."""
    torch.manual_seed(task.seed)
    widths, patterns = task.widths, {"weights": ["*.weight"], "all": ["*"], "dense": ["dense*.weight"]}[task.random]
    net: nn.Module = MLP(widths[0], widths[1:-1], widths[-1]) if widths else LeNet5()
    if not widths and task.random != "dense":
        # LeNet5 has no biases, and the parameters of batch normalization are not random.
        patterns = ["conv*.weight", "dense*.weight"]
    model = BayesianModel(
        net,
        prior={pattern: Normal(0.0, 1.0) for pattern in patterns},
        likelihood=Categorical(),
        num_data=NUM_DATA,
    ).to(task.device)
    return model, Additive(model, init_scale=SCALE).to(task.device)


def build(task: Task) -> TimedStep:
    """The implementations `pyrostoch-...`, and `averaged` and `calls` for averaged predictions."""
    pyro.enable_validation(False)
    model, guide = model_and_guide(task)
    data, wait = batches(task), waiter(task.device)
    if task.implementation == "averaged":
        return TimedStep(lambda number: predict(model, guide, data[0][0], mode=f"mc:{task.draws}"), wait)
    if task.implementation == "calls":
        return TimedStep(_average_of_calls(model, guide, data[0][0], task.draws), wait)
    loss = ELBO(task.implementation.rpartition("-")[2])(model, guide)
    parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    if "compiled" not in task.implementation:
        return training(task, loss, parameters)
    step = compile_step(loss, torch.optim.Adam(parameters, lr=LR))
    return TimedStep(lambda number: step(*data[number % len(data)]), wait, lambda: step.reason)


def _average_of_calls(model: Any, guide: Any, x: Tensor, draws: int) -> Callable[[int], Tensor]:
    """A step that averages predictions over draws, with one call of the network for each draw."""
    model.eval()

    def average(number: int) -> Tensor:
        means = []
        with torch.no_grad():
            for part in x.split(1000):
                total: Any = 0.0
                for _ in range(draws):
                    with interpretation("marginal", model):
                        trace = poutine.trace(guide).get_trace(part)
                        distribution = poutine.replay(model.observation, trace=trace)(part)
                    total = total + distribution.probs
                means.append(total / draws)
        return torch.cat(means)

    return average
