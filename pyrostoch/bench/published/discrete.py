"""Trials of the bench `trident`: weights that stay on their grid during training, and the costs of integer networks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrostoch.bench.case import Trained, TrialContext
from pyrostoch.bench.published.ternary import TERNARY, ternary_mlp
from pyrostoch.bench.trial import score, train_test_data
from pyrostoch.guides import Additive, CategoricalWeights, refresh_batch_norm
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import seeded
from pyrostoch.quantize import GridUpdates, export_integer
from pyrostoch.training.schedule import rate_factor

__all__ = ["discrete_updates", "integers"]

# Pixels are integer multiples of this step.
_PIXEL = 1.0 / 255.0
# Images of a batch of the integer network, and images that its costs are averaged over.
_CHECKED = 2000
# Scale of the weights of the scores, the best of 0.016, 0.1 and 0.3 on held-out images. The scale is fixed in training,
# and at that of a newly initialized layer the scores stay too close together.
_SCORES = 0.1


def discrete_updates(context: TrialContext) -> dict[str, float]:
    """Train 784-2000-10 with ternary gradients and weights of three states, updated by random whole states.

    Args:
        context: The trial.

    Returns:
        Scores by metric.
    """
    split, recipe = context.require_split(), context.recipe
    device = torch.device(context.setting.device)
    train, test = train_test_data(split, recipe, device)
    with seeded(context.seed, device):
        net = ternary_mlp(split, gradient=TERNARY)
        model = BayesianModel(net, likelihood=Categorical(), num_data=len(train[0])).to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
        GridUpdates().attach(optimizer, [net.get_parameter("net.fc1.weight")])
        GridUpdates(scale=_SCORES).attach(optimizer, [net.get_parameter("net.scores.weight")])
        net.train()
        steps = recipe.epochs * math.ceil(len(train[0]) / recipe.batch_size)
        step = 0
        for epoch in range(recipe.epochs):
            for index in torch.randperm(len(train[0]), device=device).split(recipe.batch_size):
                optimizer.param_groups[0]["lr"] = recipe.lr * rate_factor(recipe.schedule, step, steps)
                loss = F.cross_entropy(net(train[0][index]), train[1][index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
            context.progress({"epoch": epoch + 1, "note": f"loss {loss.item():.3f}"})
        net.eval()
    guide = Additive(model)
    return score(Trained(context.case, model, guide, train, test, recipe, context.seed, split))


def integers(trained: Trained) -> dict[str, float]:
    """Accuracy without noise of a network exported to integers, and its costs.

    Args:
        trained: A network whose weights are on a grid, or have distributions over a grid.
    """
    net = trained.model.net
    if isinstance(trained.guide, CategoricalWeights):
        net = trained.guide.export(trained.model)
        refresh_batch_norm(net, trained.train[0])
    x, y = trained.test
    exported = export_integer(net, x[:_CHECKED], input_step=_PIXEL)
    correct = [_count_correct(exported, *part) for part in zip(x.split(_CHECKED), y.split(_CHECKED), strict=True)]
    cost = exported.costs(x[:_CHECKED]).total
    scores = {"accuracy/integers": sum(correct) / len(y)}
    for name in ("weight_bits", "float_bits", "additions", "active", "multiplications", "comparisons"):
        scores[f"cost/{name.replace('_', '-')}"] = float(getattr(cost, name))
    return scores


def _count_correct(net: nn.Module, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((net(x).argmax(-1) == y).sum())
