"""Looking at a model without changing it: its modes, and its loss on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrostoch._seeds import forked
from pyrostoch.infer.batches import Batches, to_device
from pyrostoch.infer.elbo import interpretation
from pyrostoch.model import BayesianModel

__all__ = ["training_mode", "predictive_loss"]


@contextmanager
def training_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Put modules into training or evaluation mode, and every part of them back into its own afterwards.

    Args:
        training: Whether to train.
        modules: The modules.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5))
        >>> with training_mode(False, net):
        ...     net[0].training
        False
        >>> net[0].training
        True
    """
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for part, was in before:
            part.training = was


@torch.no_grad()
def predictive_loss(
    model: BayesianModel, guide: nn.Module, held_out: Batches, device: torch.device, *, estimator: str, draws: int = 8
) -> float:
    r"""The mean negative log predictive density on held-out data, in nats an example.

    $$ -\frac{1}{n} \sum_i \log \frac{1}{K} \sum_{k=1}^{K} p(y_i \mid x_i, w_k), \qquad w_k \sim q. $$

    The network is in evaluation mode meanwhile. The noise is the same at every call and leaves torch's generators as
    they were, so that epochs are compared on equal terms and looking does not change the run.

    Args:
        model: The model.
        guide: Its guide.
        held_out: The data.
        device: Where the model lives.
        estimator: That of the training: where it is `"shared"`, one draw serves a batch; else the output of a layer is
            drawn wherever this keeps the distribution of each example's prediction exact.
        draws: Number K of posterior draws; one where the model has no random sites.

    Returns:
        The loss.

    Example:
        >>> import pyrostoch as ps
        >>> from pyrostoch.infer.batches import as_batches
        >>> model = BayesianModel(nn.Linear(1, 1), likelihood=ps.likelihoods.Gaussian(1.0), num_data=3)
        >>> _ = nn.init.zeros_(model.net.weight), nn.init.zeros_(model.net.bias)
        >>> held_out = as_batches((torch.ones(3, 1), torch.zeros(3, 1)), 2)
        >>> loss = predictive_loss(model, ps.guides.Additive(model), held_out, torch.device("cpu"), estimator="local")
        >>> round(loss, 4) == round(0.5 * math.log(2 * math.pi), 4)
        True
    """
    name = "shared" if estimator == "shared" else "marginal"
    draws = draws if model.sites else 1
    total, count = torch.zeros((), device=device), 0
    # The same order at every call, as the same noise, also where the loader has a generator of its own.
    generators = [(generator, generator.get_state()) for generator in held_out.generators()]
    with training_mode(False, model, guide), forked(device, seed=0):
        for x, y in held_out.epoch(None, 0):
            x, y = to_device(x, device), to_device(y, device)
            log_probs = torch.stack([_log_prob(model, guide, x, y, name) for _ in range(draws)])
            total = total - (log_probs.logsumexp(0) - math.log(draws)).sum()
            count += len(y)
    for generator, state in generators:
        generator.set_state(state)
    return total.item() / count


def _log_prob(model: BayesianModel, guide: nn.Module, x: object, y: Tensor, name: str) -> Tensor:
    """The log density of each example under one draw of the weights."""
    with interpretation(name, model):
        trace = poutine.trace(guide).get_trace(x)
        distribution = poutine.replay(model.observation, trace=trace)(x)
    log_prob: Tensor = distribution.log_prob(y)
    return log_prob.float()
