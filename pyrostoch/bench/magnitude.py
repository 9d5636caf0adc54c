"""The baseline of every pruning method: a plain network, pruned gradually by the size of its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pyrostoch.guides import Additive, Pruning
from pyrostoch.infer.fit import fit
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel

__all__ = ["train_and_prune"]

# Of the epochs: dense at first, then removing more and more; in the rest what is left is trained on.
_DENSE, _REMOVING = 0.3, 0.3


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

    It is trained dense for three tenths of the epochs; over the next three tenths the share of weights that is removed
    rises after every epoch, from 0 to its end by $1 - (1 - t)^3$; then the masks stay, and the learning rate falls to
    zero. What is removed never comes back.

    Args:
        net: The network, trained in place.
        like: The pruning whose counts are reached.
        train: Training data.
        epochs: Passes through them, at least three.
        batch_size: Examples a step.
        lr: Learning rate of Adam, until it falls.
        seed: Seed of the order of the examples.

    Returns:
        The network, dense, with zeros in it.

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
    masks = {}
    for site, kept in like.masks.items():
        owner, _, last = site.rpartition(".")
        masks[site] = _Mask(net.get_submodule(owner), last, kept)
    model = BayesianModel(net, prior={}, likelihood=Categorical(), num_data=len(train[0]))
    guide = Additive(model)

    def go(phase: int, count: int, schedule: str) -> None:
        fit(
            model,
            guide,
            train,
            epochs=count,
            batch_size=batch_size,
            lr=lr,
            schedule=schedule,  # type: ignore[arg-type]
            seed=seed + phase,  # another order in every phase
            progress=False,
        )

    dense, removing = max(1, round(_DENSE * epochs)), max(1, round(_REMOVING * epochs))
    go(0, dense, "constant")
    for step in range(1, removing + 1):
        share = 1 - (1 - step / removing) ** 3
        for row in like.sites:
            masks[row.site].keep(row.weights - round(share * (row.weights - row.kept)))
        if step < removing:
            go(step, 1, "constant")
    go(removing, max(1, epochs - dense - removing + 1), "linear")
    for mask in masks.values():
        mask.remove()
    return net


class _Mask(nn.Module):
    """Sets weights of a module to zero, by a parametrization, while it trains."""

    mask: Tensor

    def __init__(self, owner: nn.Module, name: str, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(like.shape, device=like.device))
        # Not as a submodule, which would make a circle.
        self._place = (owner, name)
        parametrize.register_parametrization(owner, name, self)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def keep(self, count: int) -> None:
        """Keep so many of the weights that are not zero yet: the largest."""
        owner, name = self._place
        sizes = getattr(owner, name).detach().abs().flatten()
        order = torch.sort(sizes, descending=True, stable=True).indices
        mask = torch.zeros_like(sizes)
        mask[order[:count]] = 1.0
        self.mask.copy_(mask.reshape(self.mask.shape))

    def remove(self) -> None:
        """Write the zeros into the weight and take the parametrization off."""
        owner, name = self._place
        parametrize.remove_parametrizations(owner, name)
