"""Graphs for any number of examples, and their part that depends on parameters only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrostoch.metrics import MomentAverage, PredictiveAverage
from pyrostoch.staging import SettledGraph, StagingError, trace, trace_any_count


def traced(function: Any) -> Any:
    return trace_any_count(lambda inputs: [function(inputs[0])], [torch.randn(3, 4)], [torch.randn(5, 4)], [0])


FUNCTIONS = {
    "reshape": lambda x: x.reshape(2 * len(x), 2),
    "plus": lambda x: torch.cat([x, torch.zeros(1, 4)]).reshape(len(x) + 1, 2, 2),
    "python": lambda x: x.expand(int(x.shape[0]) * [1] and (3, *x.shape)).sum(0),
    "slice": lambda x: x[: len(x) - 1],
    "made": lambda x: torch.arange(len(x), dtype=x.dtype).unsqueeze(1) + x,
    "vectorized": lambda x: torch.vmap(lambda scale: (x * scale).reshape(-1, 2))(torch.arange(3.0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sizes_are_generalized(name: str) -> None:
    graph = traced(FUNCTIONS[name])
    for count in (1, 2, 3, 8, 33):
        x = torch.randn(count, 4)
        torch.testing.assert_close(graph(x)[0], FUNCTIONS[name](x))


def test_random_numbers_are_those_of_the_function() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape) * torch.rand(len(x), 1)

    graph = traced(noisy)
    for count in (1, 4, 20):
        x = torch.randn(count, 4)
        torch.manual_seed(count)
        expected = noisy(x)
        torch.manual_seed(count)
        torch.testing.assert_close(graph(x)[0], expected, rtol=0, atol=0)


REFUSED = {
    "mean": lambda x: x * (1.0 / len(x)),
    "halved": lambda x: x[: len(x) // 2],
    "branch": lambda x: x.exp() if len(x) > 4 else x.sin(),
    "loop": lambda x: sum((x * k for k in range(len(x))), x),
    "list": lambda x: x + torch.tensor([float(k) for k in range(len(x))]).unsqueeze(1),
    "value": lambda x: x * float(x.sum()),
    "numpy": lambda x: x * float(x.numpy().sum()),
    "tolist": lambda x: x * x.flatten().tolist()[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_linear_in_the_count_is_refused(name: str) -> None:
    with pytest.raises(StagingError):
        traced(REFUSED[name])


def live_operations(settled: SettledGraph) -> list[str]:
    return [node.target.__name__ for node in settled.live.graph.nodes if node.op == "call_function"]


def test_parameters_are_settled_once_and_again() -> None:
    weight, x = torch.full((4,), 2.0), torch.ones(3, 4)
    settled = SettledGraph(trace(lambda: [x * weight.exp().square() + torch.randn(3, 4)], [x]), 1)
    assert live_operations(settled) == ["mul.Tensor", "randn.default", "add.Tensor"] and settled.random
    weight.fill_(0.0)
    torch.manual_seed(0)
    noise = torch.randn(3, 4)
    torch.manual_seed(0)
    torch.testing.assert_close(settled.live(x, *settled.settle())[0], x + noise)
    other = {id(weight): torch.full((4,), 1.0)}
    torch.manual_seed(0)
    torch.testing.assert_close(settled.live(x, *settled.settle(other))[0], x * torch.ones(4).exp().square() + noise)


def test_what_is_written_into_is_not_settled() -> None:
    weight, x = torch.arange(4.0), torch.ones(3, 4)

    def function() -> Sequence[Tensor]:
        total = weight.exp()
        view = total[:2]
        view.add_(x[0, :2])  # depends on the input, and writes into what depends on the parameter
        return [total * 1.0, weight.sin() + x]

    settled = SettledGraph(trace(function, [x]), 1)
    kept = settled.settle()
    before = [value.clone() for value in kept]
    for _ in range(3):
        found = settled.live(x, *kept)
        torch.testing.assert_close(found[0], weight.exp() + torch.tensor([1.0, 1.0, 0.0, 0.0]))
        torch.testing.assert_close(found[1], weight.sin() + x)
    assert all(map(torch.equal, kept, before))
    assert "sin.default" not in live_operations(settled)


def test_what_is_computed_twice_is_computed_once() -> None:
    x = torch.ones(3, 4)

    def function() -> Sequence[Tensor]:
        return [x.exp() + 1, x.exp() + 1.0, x.exp() * torch.rand(3, 4), x.exp() * torch.rand(3, 4)]

    settled = SettledGraph(trace(function, [x]), 1)
    assert live_operations(settled).count("exp.default") == 1
    assert live_operations(settled).count("rand.default") == 2
    one, _, two, three = settled.live(x, *settled.settle())
    torch.testing.assert_close(one, x.exp() + 1)
    assert not torch.equal(two, three)


def test_random_numbers_nobody_needs_are_drawn() -> None:
    x = torch.ones(3, 4)

    def function() -> Sequence[Tensor]:
        torch.rand(7)
        return [x + torch.rand(3, 4)]

    torch.manual_seed(0)
    (expected,) = function()
    settled = SettledGraph(trace(function, [x]), 1)
    torch.manual_seed(0)
    torch.testing.assert_close(settled.live(x, *settled.settle())[0], expected, rtol=0, atol=0)


def test_several_draws_at_once_are_one_after_another() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 5, 3).double().log_softmax(-1)
    logits[0, 0] = torch.tensor([0.0, -torch.inf, -torch.inf])
    one, other, mixed = PredictiveAverage(), PredictiveAverage(), PredictiveAverage()
    for draw in logits:
        one.update(draw)
    other.update_all(logits)
    mixed.update_all(logits[:3])
    mixed.update(logits[3])
    mixed.update_all(logits[4:])
    for found in (other, mixed):
        assert found.draws == 7
        for name in ("log_probs", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(found, name), getattr(one, name), rtol=1e-12, atol=1e-14)
    assert one.aleatoric.isfinite().all()
    means, variances = torch.randn(7, 5, 2) + 1e4, torch.rand(7, 5, 2)
    first, second = MomentAverage(), MomentAverage()
    for mean, variance in zip(means, variances, strict=True):
        first.update(mean, variance)
    second.update_all(means[:2], variances[:2])
    second.update(means[2], variances[2])
    second.update_all(means[3:], variances[3:])
    for name in ("mean", "variance", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(second, name), getattr(first, name), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"\(K, n, C\)"):
        one.update_all(logits[0])
    with pytest.raises(ValueError, match=r"\(K, n"):
        first.update_all(means[0, :, 0], variances[0, :, 0])
