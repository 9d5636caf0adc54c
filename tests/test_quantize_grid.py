"""Weights on a grid: they stay there, follow the optimizer in the mean, and keep their grid in a continued run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrostoch.quantize import GridUpdates, TernaryGradient

F64 = {"dtype": torch.float64}


def scaled(values, scale=0.5):
    return torch.tensor(values, **F64) * scale


def test_a_step_is_the_optimizers_in_the_mean_and_moves_by_whole_levels():
    torch.manual_seed(0)
    # Steps of SGD with learning rate 1 are minus the gradient: less than a level, more, beyond the end, and none.
    start, gradient = scaled([[-1.0, 0.0, 1.0, 0.0, 0.0, 1.0]]), scaled([[-0.3, 0.7, 1.4, 0.0, -0.6, -2.0]])
    weight = nn.Parameter(start.repeat(20_000, 1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    GridUpdates(scale=0.5).attach(optimizer, [weight])
    assert torch.equal(weight, start.expand_as(weight))
    weight.grad = gradient.expand_as(weight).clone()
    optimizer.step()
    states = weight.detach() / 0.5
    assert set(states.flatten().tolist()) == {-1.0, 0.0, 1.0}
    error = states.std(0) / len(states) ** 0.5
    assert (
        (states.mean(0) - torch.tensor([-0.7, -0.7, -0.4, 0.0, 0.6, 1.0], **F64)).abs() <= 4.5 * error + 1e-12
    ).all()
    # 1 - 1.4 = -0.4 lies between -1 and 0: from 1 one or two levels down, never none.
    assert set(states[:, 2].tolist()) == {-1.0, 0.0}


@pytest.mark.parametrize("levels", [(-1.0, 1.0), (-1.0, 0.0, 1.0), (-3.0, -1.0, 1.0, 3.0), (0.0, 1.0, 2.0)])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_weights_stay_on_their_grid_and_other_parameters_are_free(levels, kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = kind(net.parameters(), lr=0.05 if kind is torch.optim.Adam else 1.0)
    TernaryGradient().attach(net)
    handle = GridUpdates(levels).attach(optimizer, [net[0].weight, net[2].weight])
    grids = [set(layer.weight.flatten().tolist()) for layer in (net[0], net[2])]
    before = net[0].weight.detach().clone()
    x, y = torch.randn(50, 6), torch.randint(0, 2, (50,))
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        for grid, layer in zip(grids, (net[0], net[2]), strict=True):
            grid |= set(layer.weight.flatten().tolist())
            assert len(grid) <= len(levels)
    assert not torch.equal(net[0].weight, before)
    assert len(set(net[0].bias.tolist())) == 5
    handle.remove()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    assert len(net[0].weight.unique()) > len(levels)


def test_scale_is_the_weights_size_and_is_kept_in_a_continued_run():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(200, 50, **F64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    GridUpdates().attach(optimizer, [weight]).remove()
    scale = weight.detach().abs().max().item()
    assert scale == pytest.approx(1.5**0.5, rel=0.02)  # levels of mean square 2/3
    kept = weight.detach().clone()
    # A continued run: the same grid, and no weight moves.
    GridUpdates().attach(optimizer, [weight])
    assert torch.equal(weight, kept)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"evenly spaced numbers, got \(-1.0, 0.0, 2.0\)"):
        GridUpdates((-1.0, 0.0, 2.0))
    with pytest.raises(ValueError, match="GridUpdates levels"):
        GridUpdates((1.0,))
    with pytest.raises(ValueError, match="GridUpdates scale"):
        GridUpdates(scale=0.0)
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"shape \[\(2,\)\] are not among the optimizer's"):
        GridUpdates().attach(torch.optim.SGD([layer.weight], lr=0.1), layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("levels", [(-1.0, 0.0, 1.0), tuple(float(level) for level in range(-7, 8))])
def test_weights_with_zero_gradient_stay_in_every_precision(dtype, levels):
    torch.manual_seed(0)
    weight = nn.Parameter(0.3 * torch.randint(-int(levels[-1]), int(levels[-1]) + 1, (100_000,)).to(dtype))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    GridUpdates(levels, scale=0.3).attach(optimizer, [weight])
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    for _ in range(5):
        optimizer.step()
    assert torch.equal(weight, before)


def test_the_present_scale_is_kept_only_if_levels_of_every_size_are_used():
    for values, scale in ((0.1 * torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.1), (torch.tensor([0.1, -0.3, 0.3]), None)):
        weight = nn.Parameter(values)
        optimizer = torch.optim.SGD([weight], lr=1.0)
        GridUpdates((-3.0, -1.0, 1.0, 3.0), scale=scale).attach(optimizer, [weight])
        assert torch.allclose(weight, values)
        weight.grad = torch.full_like(weight, -5.0)
        optimizer.step()
        assert torch.allclose(weight, torch.full_like(weight, 0.3))
    zero = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(3,\) are 0, .* give scale="):
        GridUpdates().attach(torch.optim.SGD([zero], lr=0.1), [zero])
    with pytest.raises(TypeError, match="expected a list of parameters or a module, got a tensor"):
        GridUpdates().attach(torch.optim.SGD([zero], lr=0.1), zero)
