"""Gradual pruning by magnitude against a training loop with masks, and which weights are removed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pyrostoch.bench.published import magnitude
from pyrostoch.bench.published.magnitude import train_and_prune
from pyrostoch.guides import Additive, Pruning
from pyrostoch.guides.prune import PruningRow
from pyrostoch.infer.batches import epoch_order
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.training import fit

COUNT, BATCH, LR = 40, 16, 0.02


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(1, 3, 2, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 5, bias=False),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Linear(5, 2)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, 1, 3, 3, dtype=torch.float64, generator=generator)
    return x, (x[:, 0, 0, 0] + x[:, 0, 2, 1] > 0).long()


def pruning_with(**kept: int) -> Pruning:
    """A pruning that keeps these numbers of weights; which ones does not matter."""
    net, rows, masks = network(), [], {}
    for name, count in kept.items():
        site = f"{name[1:]}.weight"
        size = net.get_parameter(site).numel()
        rows.append(PruningRow(site, size, count))
        masks[site] = (torch.arange(size) < count).reshape(net.get_parameter(site).shape)
    return Pruning("", tuple(rows), masks, {})


def removed_fraction(epoch: int, epochs: int) -> float:
    """Fraction of the weights to remove that have been removed when an epoch, counted from 1, is trained."""
    dense, removing = max(1, round(0.3 * epochs)), max(1, round(0.3 * epochs))
    return 1 - (1 - min(max(epoch - dense, 0) / removing, 1)) ** 3


def reference(pruning: Pruning, epochs: int, seed: int) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """The same by an independent loop: the network, and the masks of each epoch."""
    net, (x, y) = network(), data()
    parameters = dict(net.named_parameters())
    masks = {row.site: torch.ones_like(parameters[row.site]) for row in pruning.sites}
    dense, removing = max(1, round(0.3 * epochs)), max(1, round(0.3 * epochs))
    # Phases as (first epoch, number of epochs, whether the rate falls), each with a new optimizer and a new order.
    last = max(1, epochs - dense - removing + 1)
    phases = [(1, dense + removing - 1, False), (dense + removing, last, True)]
    seen = []
    for phase, (first, count, falls) in enumerate(phases):
        adam = torch.optim.Adam(parameters.values(), lr=LR)
        steps = count * -(-COUNT // BATCH)
        step = 0
        for epoch in range(count):
            for row in pruning.sites:
                left = row.weights - round(removed_fraction(first + epoch, epochs) * (row.weights - row.kept))
                sizes = (parameters[row.site] * masks[row.site]).detach().abs().flatten()
                if left < masks[row.site].sum():
                    bound = sorted(sizes.tolist(), reverse=True)[left - 1] if left else float("inf")
                    masks[row.site] = (sizes >= bound).double().reshape(masks[row.site].shape)
            seen.append({site: mask.clone() for site, mask in masks.items()})
            for index in epoch_order(seed + phase, epoch + 1, COUNT).split(BATCH):
                adam.param_groups[0]["lr"] = LR * (1 - step / steps if falls else 1)
                used = {name: parameter * masks.get(name, 1.0) for name, parameter in parameters.items()}
                output = functional_call(net, used, (x[index],))
                adam.zero_grad()
                (COUNT * F.cross_entropy(output, y[index])).backward()
                adam.step()
                step += 1
    with torch.no_grad():
        for site, mask in masks.items():
            parameters[site] *= mask
    return net, seen


@pytest.fixture
def masks_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """Every mask that is set, with the identity of its `_Mask`."""
    seen: list[tuple[int, Tensor]] = []
    keep = magnitude._Mask.keep

    def record(self: Any, count: int) -> None:
        keep(self, count)
        seen.append((id(self), self.mask.clone()))

    monkeypatch.setattr(magnitude._Mask, "keep", record)
    return seen


@pytest.mark.parametrize(
    ("kept", "epochs", "seed"),
    [
        ({"_0": 5, "_4": 7, "_6": 3}, 10, 0),
        ({"_4": 1}, 7, 5),
        ({"_0": 12, "_4": 0}, 5, 1),
        ({"_4": 20, "_6": 10}, 3, 2),
        ({"_4": 20}, 2, 2),
    ],
)
def test_against_an_independent_loop(kept: dict[str, int], epochs: int, seed: int, masks_seen: Any) -> None:
    pruning = pruning_with(**kept)
    net = network()
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH, "lr": LR}
    found = train_and_prune(net, pruning, data(), seed=seed, **settings)
    expected, masks = reference(pruning, epochs, seed)
    assert found is net and len(masks) == epochs
    assert not any("parametriz" in name for name, _ in net.named_modules())
    assert net.state_dict().keys() == network().state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-8, atol=1e-10)
    for row in pruning.sites:
        assert int((net.get_parameter(row.site) != 0).sum()) == row.kept
        assert net.get_parameter(row.site).requires_grad
    assert masks_seen
    torch.testing.assert_close(masks_seen[-1][1], masks[-1][pruning.sites[-1].site])


def test_nothing_removed_comes_back(masks_seen: Any) -> None:
    # Inputs that are always zero and weights that start at zero: many equal magnitudes.
    net, (x, y) = nn.Sequential(nn.Linear(12, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).double(), data()
    x = torch.cat([torch.zeros(COUNT, 6), x.flatten(1)[:, :6]], 1).double()
    with torch.no_grad():
        net[0].weight[:, 3:6] = 0.0
        net[0].weight[2:] = 0.0
    pruning = Pruning("", (PruningRow("0.weight", 48, 4),), {"0.weight": torch.ones(4, 12) > 0}, {})
    train_and_prune(net, pruning, (x, y), epochs=20, batch_size=BATCH, lr=0.5, seed=0)
    masks = [mask for _, mask in masks_seen]
    counts = [int(mask.sum()) for mask in masks]
    assert counts == [48 - round((1 - (1 - k / 6) ** 3) * 44) for k in range(1, 7)] and counts[-1] == 4
    for before, after in zip(masks, masks[1:], strict=False):
        assert bool((after <= before).all())


def test_without_removal_it_is_plain_training() -> None:
    net, other = network(), network()
    train_and_prune(net, pruning_with(_0=12, _4=60), data(), epochs=5, batch_size=BATCH, lr=LR, seed=4)
    model = BayesianModel(other, prior={}, likelihood=Categorical(), num_data=COUNT)
    for phase, (count, schedule) in enumerate([(3, "constant"), (2, "linear")]):
        options: dict[str, Any] = {"epochs": count, "schedule": schedule, "seed": 4 + phase}
        fit(model, Additive(model), data(), batch_size=BATCH, lr=LR, progress=False, **options)
    for name, value in other.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_random_state_and_the_pruning_are_unchanged() -> None:
    pruning, nets = pruning_with(_4=6), [network(), network()]
    before = copy.deepcopy(pruning.masks)
    for net in nets:
        torch.rand(1)
        state = torch.get_rng_state()
        train_and_prune(net, pruning, data(), epochs=3, batch_size=BATCH, lr=LR, seed=0)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(nets[0][4].weight, nets[1][4].weight)
    assert torch.equal(pruning.masks["4.weight"], before["4.weight"])


@pytest.mark.parametrize(
    ("kept", "epochs", "message"),
    [
        ({"_4": 3}, 1, "expected at least 2 epochs, one dense and one pruned, got 1"),
        (
            {"_1": 3},
            5,
            r"expected a parameter '1.weight' of shape \(2, 2\) in the network, got '0.weight \(3, 1, 2, 2\)'",
        ),
        ({"_9": 3}, 5, "expected a parameter '9.weight' of shape"),
    ],
)
def test_wrong_arguments_are_named(kept: dict[str, int], epochs: int, message: str) -> None:
    site = f"{next(iter(kept))[1:]}.weight"
    pruning = Pruning("", (PruningRow(site, 4, 3),), {site: torch.ones(2, 2) > 0}, {})
    net = network()
    with pytest.raises(ValueError, match=message):
        train_and_prune(net, pruning, data(), epochs=epochs, batch_size=BATCH, lr=LR, seed=0)
    assert list(net.state_dict()) == list(network().state_dict())
