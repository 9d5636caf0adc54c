"""Staged steps against eager steps: what cannot be staged is reported, and changes between steps are followed.

The compiler runs only in tests with `compiled` in their name; elsewhere the traced graph runs operation by operation.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.staging import StagedStep, missing

STEPS = 6
NO_COMPILER = missing(torch.device("cpu"))
compiles = pytest.mark.skipif(NO_COMPILER is not None, reason=f"nothing to compile with: {NO_COMPILER}")
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.staging.step.lower", lambda module, inputs: module)
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: None)


class Net(nn.Module):
    """Batch normalization and dropout; `twist` is applied to the hidden values."""

    def __init__(self, twist: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.inner, self.norm, self.drop = nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), nn.Dropout(0.3)
        self.outer = nn.Linear(6, 1)
        self.register_buffer("factor", torch.ones(6))
        self.plain, self.count, self.rate = torch.ones(6), 0, 1.0
        self.generator = torch.Generator().manual_seed(3)
        self.twist = twist

    def forward(self, x: Any) -> Tensor:
        hidden = self.drop(torch.tanh(self.norm(self.inner(x))))
        return self.outer(hidden if self.twist is None else self.twist(self, hidden))


def loss_of(net: nn.Module) -> Callable[..., tuple[Tensor]]:
    return lambda x, y, *_: ((net(x) - y).square().mean(),)


Change = Callable[[int, Any, torch.optim.Optimizer], None]


def batches(count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(count)]


def run_steps(
    staged: bool, *, twist: str = "", change: Change | None = None, feed: Any = None, kind: Any = torch.optim.Adam
) -> tuple[Any, Any]:
    """Losses, tensors and counter after some steps, and the step."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    net = Net(TWISTS.get(twist))
    optimizer = kind(net.parameters(), lr=0.02)
    step = StagedStep(loss_of(net), optimizer, [net], staged=staged)
    torch.manual_seed(1)
    losses = []
    for index, (x, y) in enumerate(batches()):
        if change is not None:
            change(index, net, optimizer)
        losses.append(step(*(feed(index, x, y) if feed is not None else (x, y)))[0])
    tensors = [t.detach() for t in (*net.parameters(), *net.buffers(), net.plain)]
    return ([loss.double() for loss in losses], tensors, net.count), step


def assert_same(one: Any, other: Any) -> None:
    assert one[2] == other[2]
    torch.testing.assert_close(one[:2], other[:2], rtol=1e-10, atol=1e-10)


def assert_staged(stagings: int = 1, **options: Any) -> StagedStep:
    """Expect that steps are staged without a warning, and give the results of eager steps."""
    expected, _ = run_steps(False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual, step = run_steps(True, **options)
    assert step.reason is None
    assert_same(actual, expected)
    assert step.stagings == stagings
    return step


def assert_eager(reason: str, *, exactly: bool = True, stagings: int = 0, **options: Any) -> StagedStep:
    """Expect one warning with the reason why steps run eagerly, and the results of eager steps."""
    expected, _ = run_steps(False, **options)
    with pytest.warns(UserWarning) as caught:
        actual, step = run_steps(True, **options)
    assert [str(warning.message) for warning in caught] == [f"compile_step: the step runs eagerly: {step.reason}"]
    assert reason in step.reason and caught[0].filename == __file__ and step.stagings == stagings
    if exactly:
        assert_same(actual, expected)
    return step


def dropout_and_tanh(t: Tensor) -> Tensor:
    return F.dropout(t, 0.5).tanh()


def replace(net: Any, name: str, value: Any) -> Any:
    setattr(net, name, value)
    return value


TWISTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "item": lambda net, h: h * h.mean().item(),
    "branch": lambda net, h: h if h.sum() > 0 else 2 * h,
    "tolist": lambda net, h: h * h.detach().abs().mean(0).tolist()[0],
    "numpy": lambda net, h: h * float(h.detach().numpy().mean()),
    "checkpoint": lambda net, h: ps.effects.checkpoint(dropout_and_tanh, h),
    "small checkpoint": lambda net, h: h + 1e-5 * ps.effects.checkpoint(dropout_and_tanh, h),
    "own generator": lambda net, h: h * torch.rand(6, generator=net.generator),
    "python random": lambda net, h: h * (1 + random.random()),
    "numpy random": lambda net, h: h * (1 + np.random.rand()),
    "rare branch": lambda net, h: h * 3 if random.random() < 0.3 else h,
    "counter": lambda net, h: h * (1 + 0.1 * replace(net, "count", net.count + 1)),
    "slow counter": lambda net, h: h * (1 - 1e-4 * replace(net, "count", net.count + 1)),
    "replaced buffer": lambda net, h: h * replace(net, "factor", 0.9 * net.factor + 0.1 * h.detach().mean(0)),
    "written plain": lambda net, h: h * net.plain.mul_(0.9).add_(h.detach().mean(0), alpha=0.1),
    "written view": lambda net, h: h * net.plain[0].add_(0.5),
    "replaced plain": lambda net, h: h * replace(net, "plain", net.plain * 1.5),
}
VALUE, NOISE = "it reads a tensor's value", "on the same batch and noise"


@pytest.mark.parametrize("twist", ["item", "branch", "tolist", "numpy"])
def test_reading_a_value_is_reported(twist, interpreted):
    assert_eager(VALUE if twist in ("item", "branch") else "", twist=twist)


@pytest.mark.parametrize("twist", ["checkpoint", "small checkpoint"])
def test_recomputed_noise_is_reported(twist, interpreted):
    assert_eager(NOISE, twist=twist)


CHANGING = {
    "python random": "random generator of Python or NumPy",
    "numpy random": "random generator of Python or NumPy",
    "counter": "it changes the Python value",
    "replaced buffer": "it replaces the parameter or buffer",
    "written plain": "neither a parameter nor a buffer",
    "written view": "",
    "replaced plain": "",
    "own generator": "",
}


@pytest.mark.parametrize("twist", CHANGING)
def test_changes_outside_the_graph_are_reported(twist, interpreted):
    assert_eager(CHANGING[twist], exactly=False, twist=twist)


@pytest.mark.parametrize("twist", CHANGING)
def test_steps_with_changes_outside_the_graph_are_the_eager_ones(twist, interpreted):
    assert_eager("", twist=twist)


@pytest.mark.parametrize("twist", ["slow counter", "rare branch"])
def test_small_or_rare_changes_are_reported(twist, interpreted):
    assert_eager("", twist=twist)


def test_a_missing_compiler_is_reported(monkeypatch):
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: "no compiler here")
    assert assert_eager("no compiler here").seconds >= 0


def test_a_compiler_that_fails_is_reported(monkeypatch):
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise OSError("disk full\nand more")

    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: None)
    monkeypatch.setattr("torch._inductor.compile", broken)
    assert assert_eager("the compiler failed: OSError: disk full").reason.endswith("full")


def test_wrong_values_of_a_compiled_step_are_reported(monkeypatch, interpreted):
    monkeypatch.setattr("pyrostoch.staging.step.lower", lambda module, inputs: lambda *a: [1.1 * module(*a)[0]])
    assert_eager("the compiled step differs from the eager one by 1.0e-01")


def test_wrong_updates_of_a_compiled_step_are_reported(monkeypatch, interpreted):
    def lower(module: Any, inputs: Any) -> Any:
        def run(*args: Tensor) -> Any:
            results = module(*args)
            args[0].add_(0.3)
            return results

        return run

    monkeypatch.setattr("pyrostoch.staging.step.lower", lower)
    assert_eager("the update of the compiled step differs")


def test_an_exception_in_a_compiled_step_is_reported(monkeypatch, interpreted):
    def broken(*args: Tensor) -> Any:
        raise RuntimeError("cannot run")

    monkeypatch.setattr("pyrostoch.staging.step.lower", lambda module, inputs: broken)
    assert_eager("cannot run")


TWISTS["masked"] = lambda net, h: h * net.factor * net.plain * net.rate


def written(index: int, net: Any, optimizer: Any) -> None:
    with torch.no_grad():
        net.factor.fill_(1 + index)
        net.outer.weight.mul_(0.5)


def hooked_gradient(index: int, net: Any, optimizer: Any) -> None:
    def halve(parameter: Tensor) -> None:
        parameter.grad *= 0.5

    if index == 0:
        net.outer.weight.register_post_accumulate_grad_hook(halve)


def at(when: int, change: Callable[[Any], Any]) -> Change:
    return lambda index, net, optimizer: change(net) if index == when else None


def modes(index: int, net: Any, optimizer: Any) -> None:
    net.train(index % 2 == 0)


CHANGES: dict[str, Change] = {
    "frozen": lambda index, net, optimizer: net.inner.weight.requires_grad_(not 2 <= index < 4),
    "written": written,
    "plain written": lambda index, net, optimizer: net.plain.fill_(1 + index),
    "loaded": at(3, lambda net: net.load_state_dict({k: torch.ones_like(v) for k, v in net.state_dict().items()})),
    "tensor hook": at(0, lambda net: net.outer.weight.register_hook(lambda gradient: gradient * 0.5)),
    "buffer replaced": at(3, lambda net: setattr(net, "factor", torch.full((6,), 2.0))),
    "plain replaced": at(3, lambda net: setattr(net, "plain", torch.full((6,), 2.0))),
    "there and back": at(3, lambda net: net.float().double()),
    "number": lambda index, net, optimizer: setattr(net, "rate", 1.0 + index),
    "dropout": lambda index, net, optimizer: setattr(net.drop, "p", 0.1 * index),
    "module hook": at(3, lambda net: net.norm.register_forward_hook(lambda module, args, output: 2 * output)),
    "gradient hook": hooked_gradient,
}


ONCE = ("buffer replaced", "plain replaced", "there and back", "module hook")


@pytest.mark.parametrize(
    "change", [change for change in CHANGES if change not in ("number", "dropout", "gradient hook")]
)
def test_changes_between_steps_are_followed(change, interpreted):
    assert_staged(stagings=2 if change in ONCE else 1, twist="masked", change=CHANGES[change])


@pytest.mark.parametrize("change", ["number", "dropout"])
def test_a_number_that_keeps_changing_ends_staging(change, interpreted, monkeypatch):
    monkeypatch.setattr("pyrostoch.staging.step._MAX_OUTDATED", 1)
    assert_eager("of a module keeps changing", exactly=False, stagings=2, twist="masked", change=CHANGES[change])


def test_hooks_on_accumulated_gradients_are_reported(interpreted):
    assert_eager("hooks on its accumulated gradient", twist="masked", change=CHANGES["gradient hook"])


def test_modes_may_change_between_steps(interpreted, monkeypatch):
    assert_staged(change=modes)
    monkeypatch.setattr("pyrostoch.staging.step._MIN_OCCURRENCES", 1)
    assert_staged(stagings=2, change=modes)


def doubled(index: int, net: Any, optimizer: Any) -> None:
    net.to(torch.float64 if index >= 3 else torch.float32)


def cast(index: int, x: Tensor, y: Tensor) -> Any:
    return (x, y) if index >= 3 else (x.float(), y.float())


@pytest.mark.parametrize(("often", "stagings"), [(1000, 1), (1, 2)])
def test_the_dtype_may_change_between_steps(often, stagings, interpreted, monkeypatch):
    monkeypatch.setattr("pyrostoch.staging.step._MIN_OCCURRENCES", often)
    # Adam's own step refuses a state of another dtype.
    options = {"change": doubled, "feed": cast, "kind": torch.optim.SGD}
    expected, _ = run_steps(False, **options)
    actual, step = run_steps(True, **options)
    assert (step.reason, step.stagings) == (None, stagings)
    torch.testing.assert_close(actual[:2], expected[:2], rtol=1e-5, atol=1e-6)


def test_a_further_shape_is_staged_after_many_occurrences(interpreted, monkeypatch):
    feed = lambda index, x, y: (x[:5], y[:5]) if index % 2 else (x, y)  # noqa: E731
    assert_staged(feed=feed)
    monkeypatch.setattr("pyrostoch.staging.step._MIN_OCCURRENCES", 2)
    assert_staged(stagings=2, feed=feed)


def test_shapes_that_keep_changing_are_not_staged(interpreted, monkeypatch):
    monkeypatch.setattr("pyrostoch.staging.step._MIN_OCCURRENCES", 0)
    monkeypatch.setattr("pyrostoch.staging.step._MAX_STAGED", 2)
    assert_staged(stagings=2, feed=lambda index, x, y: (x[: 8 - index], y[: 8 - index]))


FEEDS: dict[str, Callable[[int, Tensor, Tensor], Any]] = {
    "more arguments": lambda index, x, y: (x, y, [1, 2], "text", {"k": None}),
    "aliases": lambda index, x, y: (x, x[:, :1]),
    "slices": lambda index, x, y: torch.cat([x, y], 1).split([3, 1], 1),
    "expanded": lambda index, x, y: (x, y[:1].expand(8, 1)),
    "conjugate": lambda index, x, y: (torch.complex(x, x).conj().imag, y),
}


@pytest.mark.parametrize("feed", FEEDS)
def test_batches_of_any_structure_give_the_eager_step(feed, interpreted):
    assert_staged(feed=FEEDS[feed])


@compiles
def test_a_compiled_step_takes_slices(monkeypatch):
    assert_staged(feed=FEEDS["slices"])


def test_an_argument_without_hash_is_accepted(interpreted):
    arrays = [np.full(1, float(index)) for index in range(STEPS)]
    assert_eager("an argument of type ndarray", feed=lambda index, x, y: (x, y, arrays[index]))


def test_an_object_as_batch_is_read_at_each_step(interpreted):
    def losses(staged: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer, batch, values = nn.Linear(3, 1), SimpleNamespace(x=torch.zeros(8, 3)), []
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        step = StagedStep(lambda b: (layer(b.x).square().mean(),), optimizer, [layer], staged=staged)
        for x, _ in batches():
            batch.x = x  # a new object at each step would be the same test: it often has the id of the last one
            values.append(step(batch)[0])
        return values

    with pytest.warns(UserWarning, match="an argument of type SimpleNamespace"):
        staged = losses(True)
    torch.testing.assert_close(staged, losses(False), rtol=1e-10, atol=1e-10)


def test_a_batch_written_in_place_is_read_at_each_step(interpreted):
    """The same tensors hold the batch of every step."""
    x, y = torch.zeros(8, 3), torch.zeros(8, 1)
    assert_staged(feed=lambda index, *parts: (x.copy_(parts[0]), y.copy_(parts[1])))


@pytest.mark.filterwarnings("ignore:compile_step. the step runs eagerly. an argument of type Tensor")
def test_a_batch_that_requires_a_gradient_gets_it(interpreted):
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    gradients = []
    for staged in (False, True):
        step = StagedStep(loss_of(layer), torch.optim.SGD(layer.parameters(), lr=0.0), [layer], staged=staged)
        for x, y in batches(3):
            x.requires_grad_()
            step(x, y)
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.filterwarnings("ignore:compile_step. the step runs eagerly. an argument of type Tensor")
def test_a_penalty_on_the_gradient_with_respect_to_the_batch(interpreted):
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)

    def compute(x: Tensor) -> tuple[Tensor]:
        return (torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)[0].square().sum(),)

    step = StagedStep(compute, torch.optim.SGD(layer.parameters(), lr=0.1), [layer])
    assert [step(x.requires_grad_())[0] > 0 for x, _ in batches(3)] == [True] * 3
