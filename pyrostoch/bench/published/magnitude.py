"""The usual baseline of pruning: a plain network, pruned gradually by the magnitude of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pyrostoch._checks import name_list
from pyrostoch.guides import Additive, Pruning
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.training.fit import fit

__all__ = ["train_and_prune"]

# Shares of the epochs: dense training, then gradual pruning; in the rest the remaining weights are trained further.
_DENSE, _PRUNING = 0.3, 0.3


def train_and_prune(
    net: nn.Module,
    like: Pruning,
    train: tuple[Tensor, Tensor],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> nn.Module:
    r"""Train a plain network and prune it gradually by magnitude to the sparsity of another pruning, layer by layer.

    The network is dense for three tenths of the epochs. Over the next three tenths, the fraction of weights removed
    after an epoch rises from 0 to its final value as $1 - (1 - t)^3$. Then the masks are fixed, and the learning rate
    falls to zero. Removed weights never come back.

    Args:
        net: The network, trained in place.
        like: The pruning whose number of remaining weights is matched in each layer.
        train: Training inputs and targets.
        epochs: Passes through the training data, at least two.
        batch_size: Examples in a step.
        lr: Learning rate of Adam, before it falls.
        seed: Seed of the order of the examples.

    Returns:
        The network, with zeros in place of the removed weights.

    Raises:
        ValueError: There are too few epochs, or a site of `like` is not a parameter of that shape in the network.

    References:
        Zhu, Gupta, "To prune, or not to prune", 2017; Gale, Elsen, Hooker, "The state of sparsity in deep neural
        networks", 2019 (arXiv 1902.09574).

    Example:
        >>> from pyrostoch.guides import WeightwiseAlpha, prune
        >>> from pyrostoch.priors import LogUniform
        >>> x, y = torch.randn(40, 6), torch.randint(0, 2, (40,))
        >>> model = BayesianModel(nn.Linear(6, 2), prior=LogUniform(), likelihood=Categorical(), num_data=40)
        >>> noisy = torch.tensor([0.0, 0.0, 9.0, 9.0, 9.0, 9.0])
        >>> like = prune(WeightwiseAlpha(model, init_log_alpha=lambda site: noisy))
        >>> net = train_and_prune(nn.Linear(6, 2), like, (x, y), epochs=4, batch_size=20, lr=0.1, seed=0)
        >>> int((net.weight != 0).sum())
        4
    """
    if epochs < 2:
        raise ValueError(f"train_and_prune: expected at least 2 epochs, one dense and one pruned, got {epochs}")
    shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    for site, kept in like.masks.items():
        if shapes.get(site) != tuple(kept.shape):
            raise ValueError(
                f"train_and_prune: expected a parameter {site!r} of shape {tuple(kept.shape)} in the network, got "
                f"{name_list(f'{name} {shape}' for name, shape in shapes.items())}"
            )
    masks = {site: _Mask(net, site) for site in like.masks}
    model = BayesianModel(net, prior={}, likelihood=Categorical(), num_data=len(train[0]))
    guide = Additive(model)

    dense, pruning = max(1, round(_DENSE * epochs)), max(1, round(_PRUNING * epochs))

    def remove(row: dict[str, Any]) -> None:
        if row["epoch"] < dense:
            return
        fraction = 1 - (1 - (row["epoch"] - dense + 1) / pruning) ** 3
        for site in like.sites:
            masks[site.site].keep(site.weights - round(fraction * (site.weights - site.kept)))

    first = dense + pruning - 1
    settings: dict[str, Any] = {"batch_size": batch_size, "lr": lr, "progress": False}
    fit(model, guide, train, epochs=first, schedule="constant", seed=seed, callback=remove, **settings)
    fit(model, guide, train, epochs=max(1, epochs - first), seed=seed + 1, **settings)
    for mask in masks.values():
        mask.remove()
    return net


class _Mask(nn.Module):
    """A parametrization that keeps some elements of a weight at zero during training."""

    mask: Tensor

    def __init__(self, net: nn.Module, site: str) -> None:
        super().__init__()
        module, _, name = site.rpartition(".")
        # In a tuple, since as a submodule it would contain itself.
        self._parameter = (net.get_submodule(module), name)
        self.register_buffer("mask", torch.ones_like(net.get_parameter(site)))
        parametrize.register_parametrization(*self._parameter, self)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def keep(self, count: int) -> None:
        """Keep the given number of weights, the largest of those that remain, and set the others to zero."""
        sizes = getattr(*self._parameter).detach().abs().flatten()
        order = torch.sort(sizes, descending=True, stable=True).indices
        mask = torch.zeros_like(sizes)
        mask[order[:count]] = 1.0
        self.mask.copy_(mask.reshape(self.mask.shape))

    def remove(self) -> None:
        """Make the zeros part of the weight and remove the parametrization."""
        parametrize.remove_parametrizations(*self._parameter)
