"""Training and evaluation mode of modules, and a model's predictive loss on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrostoch._inputs import to_device
from pyrostoch._seeds import forked
from pyrostoch._targets import Target
from pyrostoch.guides import GuideSet
from pyrostoch.infer.batches import Batches
from pyrostoch.infer.elbo import interpretation
from pyrostoch.likelihoods.pseudo import normalized
from pyrostoch.likelihoods.several import observations, without_weights
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.observed import observed_mask
from pyrostoch.protocols import FlatInputs
from pyrostoch.sites import trace_of

__all__ = ["training_mode", "predictive_loss"]


@contextmanager
def training_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Put modules into training or evaluation mode, and every submodule back into its own mode afterwards.

    Args:
        training: `True` for training mode, `False` for evaluation mode.
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
        for part, mode in before:
            part.training = mode


@torch.no_grad()
def predictive_loss(
    model: BayesianModel, guide: nn.Module, held_out: Batches, device: torch.device, *, estimator: str, draws: int = 8
) -> float:
    r"""The mean negative log predictive density on held-out data, in nats per example.

    $$ -\frac{1}{n} \sum_i \log \frac{1}{K} \sum_{k=1}^{K} p(y_i \mid x_i, w_k), \qquad w_k \sim q. $$

    Examples whose targets a mask leaves out are not counted, and a pseudo-likelihood is normalized, as in `compare`.
    The network is in evaluation mode. The noise is the same at every call, so that epochs can be compared, and torch's
    generators are left as they were, so that the evaluation does not change the training run.

    Args:
        model: The model.
        guide: Its guide.
        held_out: The data.
        device: The device of model and guide.
        estimator: The estimator of the training. With `"shared"`, all examples of a batch share each draw; with any
            other, the outputs of a layer are drawn instead of its weights wherever this keeps the distribution of each
            example's prediction exact (`"marginal"`).
        draws: Number K of posterior draws; one where the model has no random sites.

    Returns:
        The loss, in nats.

    Example:
        >>> import pyrostoch as ps
        >>> from pyrostoch.infer.data_sets import as_batches
        >>> model = BayesianModel(nn.Linear(1, 1), likelihood=ps.likelihoods.Gaussian(1.0), num_data=3)
        >>> _ = nn.init.zeros_(model.net.weight), nn.init.zeros_(model.net.bias)
        >>> held_out = as_batches((torch.ones(3, 1), torch.zeros(3, 1)), 2)
        >>> loss = predictive_loss(model, ps.guides.Additive(model), held_out, torch.device("cpu"), estimator="local")
        >>> round(loss, 4) == round(0.5 * math.log(2 * math.pi), 4)
        True
    """
    name = "shared" if estimator == "shared" else "marginal"
    draws = draws if model.sites else 1
    members = max(len(guide), 1) if isinstance(guide, GuideSet) else 1  # a chain has none before its first draw
    draws = -(-draws // members) * members  # each of them as often as the others
    total, count = torch.zeros((), device=device), 0
    # A loader's own generator is restored, so that the order of the examples is the same at every call, too.
    generators = [(generator, generator.get_state()) for generator in held_out.generators()]
    turns = guide.in_turn() if isinstance(guide, GuideSet) else nullcontext()
    with training_mode(False, model, guide), forked(device, seed=0), turns:
        for x, y in held_out.epoch(None, 0):
            x, y = to_device(x, device), to_device(y, device)
            log_probs, observed = zip(*(_log_prob(model, guide, x, y, name) for _ in range(draws)), strict=True)
            total = total - (torch.stack(log_probs).logsumexp(0) - math.log(draws)).sum()
            count += observed[0]
    for generator, state in generators:
        generator.set_state(state)
    if not count:
        raise ValueError("validation: the likelihood's mask leaves out every target, or the loader gave no batch")
    return total.item() / count


def _log_prob(model: BayesianModel, guide: nn.Module, x: FlatInputs, y: Target, name: str) -> tuple[Tensor, int]:
    """The log density of each example's target under one draw of the weights; the number of those observed at all."""
    with interpretation(name, model):
        trace = trace_of(guide, x)
        distribution = poutine.replay(model.observation, trace=trace)(x)
    plain, targets = without_weights(distribution, y)
    log_prob: Tensor = normalized(plain).log_prob(targets)
    masks = [observed_mask(part.distribution, part.value) for part in observations(plain, targets)]
    if any(mask is None for mask in masks):
        return log_prob.float(), len(y)
    observed = torch.stack([mask.reshape(len(y), -1).any(1) for mask in masks if mask is not None]).any(0)
    return log_prob.float(), int(observed.sum())
