"""How long a training step of a guide takes beside the additive one's, on a network of half a million weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pyrostoch import priors
from pyrostoch.bench.case import TrialContext
from pyrostoch.guides import Additive
from pyrostoch.infer import ELBO, compile_step
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import seeded
from pyrostoch.priors import Prior

__all__ = ["steps_trial"]

_WIDTHS = (784, 400, 400, 10)
# Steps between two readings of the clock.
_BLOCK = 3


def steps_trial(
    context: TrialContext, *, make: Callable[[BayesianModel], Any], prior: Callable[[], Prior] = priors.Normal
) -> Mapping[str, float]:
    """The ratio of times, eager and compiled: medians of blocks of steps, taken in turns in one process.

    Args:
        context: The trial; its recipe tells the number of examples, and the blocks by its epochs.
        make: Makes the guide.
        prior: Makes its prior.
    """
    found = {}
    for name in ("eager", "compiled"):
        ours = _stepper(context, make, prior, compiled=name == "compiled")
        theirs = _stepper(context, Additive, priors.Normal, compiled=name == "compiled")
        for block in (ours, theirs):  # compiles, and leaves the cache warm
            block()
        times = [(ours(), theirs()) for _ in range(context.recipe.epochs)]
        found[f"step/{name}"] = statistics.median(own / additive for own, additive in times)
        found[f"milliseconds/{name}"] = 1000.0 * statistics.median(own for own, _ in times)
    return found


def _stepper(
    context: TrialContext, make: Callable[[BayesianModel], Any], prior: Callable[[], Prior], *, compiled: bool
) -> Callable[[], float]:
    """A function that takes a block of steps, and returns the seconds of one."""
    count, device = context.recipe.batch_size, torch.device("cpu")
    with seeded(context.seed, device):
        layers = [layer for pair in zip(_WIDTHS, _WIDTHS[1:], strict=False) for layer in (nn.Linear(*pair), nn.ReLU())]
        net = nn.Sequential(*layers[:-1])
        x, y = torch.randn(count, _WIDTHS[0]), torch.randint(_WIDTHS[-1], (count,))
        model = BayesianModel(net, prior=prior(), likelihood=Categorical(), num_data=60_000)
        loss: Any = ELBO()(model, make(model))
    optimizer = torch.optim.Adam([part for part in loss.parameters() if part.requires_grad], lr=context.recipe.lr)
    step: Any = compile_step(loss, optimizer) if compiled else None

    def once() -> None:
        if step is not None:
            step(x, y)
            return
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    def block() -> float:
        begin = time.perf_counter()
        for _ in range(_BLOCK):
            once()
        return (time.perf_counter() - begin) / _BLOCK

    return block
