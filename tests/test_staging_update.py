"""The staged update against torch's optimizers: parameters, optimizer state, and changes between steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pyrostoch.staging import StagedStep, Update

STEPS = 6
ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD

pytestmark = pytest.mark.usefixtures("float64", "interpreted")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.staging.step.lower", lambda module, inputs: module)
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: None)


class Net(nn.Module):
    """Two layers, a parameter that the loss does not depend on, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        self.idle = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.full((4,), 0.3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)) + self.frozen).square().mean() + 0.1 * torch.randn(()) * x.mean()


def batches(count: int = STEPS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 3, generator=generator) for _ in range(count)]


def groups(net: Net) -> list[dict[str, Any]]:
    return [
        {"params": [*net.first.parameters(), net.idle], "lr": 0.05},
        {"params": [net.frozen, *net.second.parameters()], "lr": 0.01, "weight_decay": 0.2},
    ]


def make(kind: type, options: dict[str, Any]) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    return net, kind(groups(net), **options)


def train(net: Net, optimizer: torch.optim.Optimizer, step: Any, xs: list[Tensor], change: Any = None) -> list[Tensor]:
    """Losses of some steps: of a `StagedStep`, or of a plain training loop if `step` is `None`."""
    losses = []
    torch.manual_seed(1)
    for index, x in enumerate(xs):
        if change is not None:
            change(index, optimizer)
        if step is None:
            optimizer.zero_grad()
            loss = net(x)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        else:
            losses.append(step(x)[0])
    return losses


def assert_same(kind: type, options: dict[str, Any], change: Any = None, stagings: int = 1) -> StagedStep:
    """Expect that staged steps give losses, parameters and optimizer state of a plain training loop."""
    net, optimizer = make(kind, options)
    expected = train(net, optimizer, None, batches(), change)
    staged_net, staged_optimizer = make(kind, options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = StagedStep(lambda x: (staged_net(x),), staged_optimizer, [staged_net])
        actual = train(staged_net, staged_optimizer, step, batches(), change)
    assert (step.reason, step.stagings) == (None, stagings)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(list(staged_net.parameters()), list(net.parameters()), rtol=1e-12, atol=1e-12)
    plain, staged = optimizer.state_dict(), staged_optimizer.state_dict()
    states = {index: state for index, state in staged["state"].items() if state}
    assert plain["param_groups"] == staged["param_groups"] and states.keys() == plain["state"].keys()
    torch.testing.assert_close(states, plain["state"], rtol=1e-12, atol=1e-12)
    return step


OPTIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "adam": (ADAM, {}),
    "adam, other betas": (ADAM, {"betas": (0.5, 0.7), "eps": 1e-3}),
    "adam, beta1 0": (ADAM, {"betas": (0.0, 0.9)}),
    "adam, decay": (ADAM, {"weight_decay": 0.1}),
    "adam, decoupled": (ADAM, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adam, amsgrad": (ADAM, {"amsgrad": True, "betas": (0.3, 0.5)}),
    "adam, maximize": (ADAM, {"maximize": True, "weight_decay": 0.1}),
    "adam, foreach": (ADAM, {"foreach": True}),
    "adam, fused": (ADAM, {"fused": True}),
    "adam, tensor rate": (ADAM, {"lr": torch.tensor(0.02)}),
    "adamw": (ADAMW, {}),
    "adamw, everything": (ADAMW, {"weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    "sgd": (SGD, {}),
    "sgd, decay": (SGD, {"weight_decay": 0.1}),
    "sgd, maximize": (SGD, {"maximize": True, "weight_decay": 0.1}),
    "sgd, momentum": (SGD, {"momentum": 0.8}),
    "sgd, dampening": (SGD, {"momentum": 0.8, "dampening": 0.4}),
    "sgd, nesterov": (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "sgd, fused": (SGD, {"momentum": 0.8, "fused": True}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_the_update_is_torchs(case):
    assert_same(*OPTIONS[case])


def rates(index: int, optimizer: torch.optim.Optimizer) -> None:
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = 0.01 * (1 + index) / (1 + number)
        if "betas" in group:
            group["betas"] = (0.9 - 0.1 * index, 0.99 - 0.02 * index)
        else:
            group["momentum"], group["dampening"] = 0.9 - 0.1 * index, 0.05 * index


@pytest.mark.parametrize("kind", [ADAM, ADAMW])
def test_rates_and_betas_may_change_between_steps(kind):
    assert_same(kind, {}, rates)


def test_rate_momentum_and_dampening_may_change_between_steps():
    assert_same(SGD, {"momentum": 0.9}, rates)


@pytest.mark.parametrize("start", [0, 2])
def test_a_learning_rate_scheduler_of_torch_is_followed(start):
    schedules: dict[int, Any] = {}

    def change(index: int, optimizer: torch.optim.Optimizer) -> None:
        if index == start:
            schedules[id(optimizer)] = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        elif index > start:
            schedules[id(optimizer)].step()

    assert_same(ADAM, {}, change)


@pytest.mark.parametrize("option", [{"weight_decay": 0.5}, {"maximize": True}, {"eps": 0.1}])
def test_an_option_that_changes_leaves_the_staged_step(option):
    def change(index: int, optimizer: torch.optim.Optimizer) -> None:
        if index == 3:
            optimizer.param_groups[0].update(option)

    assert_same(ADAM, {}, change)


@pytest.mark.parametrize("case", ["adam", "adam, amsgrad", "sgd, momentum"])
def test_a_state_may_be_loaded_between_steps(case):
    kind, options = OPTIONS[case]
    states: dict[int, Any] = {}

    def change(index: int, optimizer: torch.optim.Optimizer) -> None:
        if index == 1:
            states[id(optimizer)] = copy.deepcopy(optimizer.state_dict())
        if index == 4:
            optimizer.load_state_dict(states[id(optimizer)])

    assert_same(kind, options, change)


def clear_state(index: int, optimizer: torch.optim.Optimizer) -> None:
    if index == 3:
        optimizer.state.clear()


@pytest.mark.parametrize("case", ["adam", "sgd, momentum"])
def test_a_state_may_be_cleared_between_steps(case):
    assert_same(*OPTIONS[case], clear_state)


def test_a_group_may_be_added_and_staged(monkeypatch):
    monkeypatch.setattr("pyrostoch.staging.step._MIN_OCCURRENCES", 1)

    def change(index: int, optimizer: torch.optim.Optimizer) -> None:
        if index == 2:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.3})

    assert_same(ADAM, {}, change, stagings=2)


def test_an_unsupported_optimizer_makes_its_own_step():
    with pytest.raises(ValueError, match="expected Adam, AdamW or SGD without hooks, got RMSprop"):
        Update(torch.optim.RMSprop([torch.zeros(1)]))
    assert_same(
        torch.optim.RMSprop, {"momentum": 0.5}, lambda index, o: o.param_groups[0].update(lr=0.01 * (1 + index))
    )


def test_a_subclass_makes_its_own_step():
    class Halved(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            with torch.no_grad():
                self.param_groups[0]["params"][0].mul_(0.5)

    assert_same(Halved, {})


def halve(optimizer: Any, args: Any, kwargs: Any) -> None:
    with torch.no_grad():
        optimizer.param_groups[0]["params"][0].mul_(0.5)


def test_hooks_of_the_optimizer_run():
    def build(params: Any, **options: Any) -> torch.optim.Optimizer:
        optimizer = SGD(params, **options)
        optimizer.register_step_post_hook(halve)
        return optimizer

    assert_same(build, {})  # type: ignore[arg-type]


def test_hooks_of_the_optimizer_that_are_added_later_run():
    assert_same(SGD, {}, lambda index, o: o.register_step_post_hook(halve) if index == 3 else None)


def test_hooks_of_all_optimizers_run():
    handle = register_optimizer_step_post_hook(halve)
    try:
        assert_same(SGD, {})
    finally:
        handle.remove()


def test_plain_sgd_keeps_no_state():
    net, optimizer = make(SGD, {})
    train(net, optimizer, StagedStep(lambda x: (net(x),), optimizer, [net]), batches())
    assert not optimizer.state


def test_a_complex_parameter_is_moved_as_torch_moves_it():
    def trained(staged: bool) -> Tensor:
        weight = nn.Parameter(torch.tensor([1.0 + 2.0j]))
        optimizer = ADAM([weight], lr=0.1)
        step = StagedStep(lambda: ((weight - 1j).abs().square().sum(),), optimizer, [nn.ParameterList([weight])])
        for _ in range(4):
            step() if staged else step.eager()
        return weight.detach()

    with pytest.warns(UserWarning, match="a parameter is complex"):
        staged = trained(True)
    torch.testing.assert_close(staged, trained(False), rtol=1e-12, atol=1e-12)


def test_frozen_and_unused_parameters_have_no_optimizer_state():
    net, optimizer = make(ADAM, {"weight_decay": 0.1})
    before = net.idle.detach().clone(), net.frozen.detach().clone()
    train(net, optimizer, StagedStep(lambda x: (net(x),), optimizer, [net]), batches())
    assert torch.equal(net.idle, before[0]) and torch.equal(net.frozen, before[1])
    assert net.idle not in optimizer.state and net.frozen not in optimizer.state


class TwoLayers(nn.Module):
    """Two layers and a buffer, used by a given function."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], factor: Tensor | None = None) -> None:
        super().__init__()
        self.layer, self.other, self.function = nn.Linear(3, 3), nn.Linear(3, 3), function
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x).square().mean()


def tie(net: Any) -> None:
    net.other.weight = net.layer.weight


def tie_storage(net: Any) -> None:
    net.other.weight = nn.Parameter(net.layer.weight.data)


def leave(net: Any) -> None:
    pass


def replace_parameter(index: int, net: Any, optimizer: Any) -> None:
    if index == 3:
        net.layer.weight = nn.Parameter(torch.ones(3, 3))
        optimizer.param_groups[0]["params"][0] = net.layer.weight


def change_mode(index: int, net: Any, optimizer: Any) -> None:
    net.train(index != 3)


def one_or_both(net: Any, x: Tensor) -> Tensor:
    return net.layer(x) if net.training else net.layer(x) + net.other(x)


def both(net: Any, x: Tensor) -> Tensor:
    return net.other(torch.tanh(net.layer(x)))


# The forward pass, a preparation of the network, its buffer, and a change between steps.
NETWORKS = [
    (both, tie, None, None),
    (both, tie_storage, None, None),
    (lambda net, x: net.layer(x) * net.layer.weight.data.sum(), leave, None, None),
    (one_or_both, leave, None, change_mode),
    (both, leave, None, replace_parameter),
    (lambda net, x: net.layer(x) * net.factor, leave, torch.ones(1).expand(3), None),
]


def train_network(make: Callable[[], nn.Module], change: Any, staged: bool) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    step = StagedStep(lambda x: (net(x),), optimizer, [net], staged=staged)
    losses = []
    for index, x in enumerate(batches()):
        if change is not None:
            change(index, net, optimizer)
        losses.append(step(x)[0])
    assert step.stagings == staged * (2 if change is replace_parameter else 1)
    return losses, [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize(("function", "prepare", "factor", "change"), NETWORKS)
def test_networks_of_many_kinds_give_the_eager_step(function, prepare, factor, change):
    def make() -> nn.Module:
        net = TwoLayers(function, factor)
        prepare(net)
        return net

    staged, eager = (train_network(make, change, staged) for staged in (True, False))
    torch.testing.assert_close(staged, eager, rtol=1e-10, atol=1e-10)


def test_sparse_gradients_run_eagerly():
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    step = StagedStep(lambda i: (embedding(i).square().mean(),), optimizer, [embedding])
    with pytest.warns(UserWarning, match="the step runs eagerly"):
        for _ in range(3):
            step(torch.tensor([1, 2]))


def test_no_gradient_of_an_earlier_step_remains():
    net, optimizer = make(SGD, {})
    step = StagedStep(lambda x: (net(x),), optimizer, [net])
    before, now = [(step(x), net.first.weight.grad)[1] for x in batches(3)][::2]
    assert now is None or not torch.equal(now, before)


def test_a_first_call_that_fails_does_not_count():
    layer, wrong = nn.Linear(3, 1), [True]

    def compute(x: Tensor) -> tuple[Tensor]:
        if wrong:
            raise LookupError(wrong.pop())
        return (layer(x).square().mean(),)

    step = StagedStep(compute, torch.optim.Adam(layer.parameters()), [layer])
    with pytest.raises(LookupError):
        step(torch.ones(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            step(torch.ones(2, 3))
    assert step.stagings == 1
