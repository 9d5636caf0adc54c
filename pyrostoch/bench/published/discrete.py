"""TriDeNT with weights that never leave their grid, and what a network of integers costs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrostoch.bench.case import Own, Trained
from pyrostoch.bench.published.ternary import TERNARY, ternary_mlp
from pyrostoch.bench.trial import parts_of, score
from pyrostoch.guides import Additive, CategoricalWeights, refresh_batch_norm
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import seeded
from pyrostoch.quantize import GridUpdates, export_integer
from pyrostoch.training.schedule import rate_factor

__all__ = ["discrete_updates", "integers"]

# Pixels are whole multiples of it.
_PIXEL = 1.0 / 255.0
_CHECKED = 2000
# Scores of a fresh layer are too close together for a scale that cannot grow; of 0.016, 0.1 and 0.3 on held-out images.
_SCORES = 0.1


def discrete_updates(own: Own) -> dict[str, float]:
    """A trial of 784-2000-10: weights of three states, moved by draws of whole states, by ternary gradients.

    Args:
        own: What the trial is given.
    """
    split, recipe = own.split, own.recipe
    if split is None:
        raise ValueError(f"bench trident: {own.case.name} needs a data set")
    device = torch.device(own.setting.device)
    train, test = parts_of(split, recipe, device)
    with seeded(own.seed, device):
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
            own.tell({"epoch": epoch + 1, "note": f"loss {loss.item():.3f}"})
        net.eval()
    guide = Additive(model)
    return score(Trained(own.case, model, guide, train, test, recipe, own.seed, split))


def integers(trained: Trained) -> dict[str, float]:
    """Accuracy of the network of integers without noise, and what it costs.

    Args:
        trained: A network whose weights are on a grid, or have distributions over one.
    """
    net = trained.model.net
    if isinstance(trained.guide, CategoricalWeights):
        net = trained.guide.export(trained.model)
        refresh_batch_norm(net, trained.train[0])
    x, y = trained.test
    exported = export_integer(net, x[:_CHECKED], input_step=_PIXEL)
    right = [_right(exported, *part) for part in zip(x.split(_CHECKED), y.split(_CHECKED), strict=True)]
    cost = exported.costs(x[:_CHECKED]).total
    found = {"accuracy/integers": sum(right) / len(y)}
    for name in ("weight_bits", "float_bits", "additions", "active", "multiplications", "comparisons"):
        found[f"cost/{name.replace('_', '-')}"] = float(getattr(cost, name))
    return found


def _right(net: nn.Module, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((net(x).argmax(-1) == y).sum())
