"""The workers of the benchmark of speed: what their routes compute, and how they answer."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch

from pyrostoch.bench.speed.workers import __main__ as worker
from pyrostoch.bench.speed.workers import own, plain, stock, torches
from pyrostoch.bench.speed.workers.task import NUM_DATA, Route, Task
from pyrostoch.infer import ELBO
from pyrostoch.prediction import predict

TINY = (5, 4, 3)


@pytest.fixture
def settings() -> Iterator[None]:
    """Routes switch Pyro's validation in processes of their own; here it is put back."""
    before = pyro.settings.get("validate_poutine"), pyro.settings.get("validate_distributions_pyro")
    torch_before = torch.distributions.Distribution._validate_args
    infer_before = pyro.settings.get("validate_infer")
    yield
    pyro.settings.set(validate_poutine=before[0], validate_distributions_pyro=before[1], validate_infer=infer_before)
    torch.distributions.Distribution.set_default_validate_args(torch_before)
    pyro.clear_param_store()


NETWORKS = [
    Task("hand", TINY, examples=7),
    Task("hand", TINY, "all", examples=7),
    Task("hand", examples=4),
]


@pytest.mark.parametrize("task", NETWORKS, ids=["weights", "biases too", "lenet5"])
def test_by_hand_is_what_our_local_estimator_computes(task: Task) -> None:
    """On the same noise: value and gradient of every mean and deviation."""
    hand = plain.by_hand(task).double()
    model, guide = own.model_and_guide(task)
    loss = ELBO("local")(model.double(), guide.double())
    x, y = torches.batches(task)[0]
    # The first call draws once more, to see how the network uses its weights.
    loss(x.double(), y)
    values = []
    for route in (hand, loss):
        torch.manual_seed(1)
        values.append(route(x.double(), y))
        values[-1].backward()
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    ours = [dict(part.items()) for part in guide.parameters_of.values()]
    theirs: list[dict[str, Any]] = []
    for layer in hand.net:
        if isinstance(layer, plain.Local):
            theirs.append({"loc": layer.loc, "log_scale": layer.log_scale})
            if layer.bias_log_scale is not None:
                theirs.append({"loc": layer.bias, "log_scale": layer.bias_log_scale})
    assert len(ours) == len(theirs) == {"weights": 2, "all": 4}[task.random] * (1 if task.widths else 2)
    for one, other in zip(ours, theirs, strict=True):
        for name, parameter in one.items():
            torch.testing.assert_close(parameter.grad, other[name].grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("random", "parts"), [("weights", {"weight"}), ("all", {"weight", "bias"})])
def test_stock_pyro_draws_the_same_tensors(settings: None, random: Any, parts: set[str]) -> None:
    pyro.clear_param_store()
    route = stock.build(Task("pyro", TINY, random, examples=4))
    assert route.step(0) > 0
    drawn = {name.rpartition(".")[2] for name in pyro.get_param_store() if ".locs." in name}
    assert drawn == parts
    assert not pyro.settings.get("validate_infer")


def test_loss_is_that_of_the_whole_data_set() -> None:
    y = torch.tensor([0, 2])
    found = torches.data_term(torch.zeros(2, 3), y)
    assert found.item() == pytest.approx(NUM_DATA * torch.log(torch.tensor(3.0)).item(), rel=1e-6)


def test_calls_average_to_what_predict_does(settings: None) -> None:
    task = Task("calls", TINY, examples=6, draws=400)
    model, guide = own.model_and_guide(task)
    with torch.no_grad():
        for part in guide.parameters_of.values():
            part["log_scale"].fill_(-0.5)  # type: ignore[index]
    x = torches.batches(task)[0][0]
    torch.manual_seed(0)
    calls = own._calls(model, guide, x, task.draws)(0)
    probs = predict(model, guide, x, mode=f"mc:{task.draws}").probs
    # A standard error of a mean of 400 shares is at most 0.025 on either side.
    assert (calls - probs).abs().max() < 5 * 0.025 * 2**0.5 and not calls.requires_grad
    assert calls.sum(-1).sub(1).abs().max() < 1e-5 and calls.shape == (6, 3)
    assert (calls - predict(model, guide, x, mode="mean").probs).abs().max() > 0.01
    # Every example has a draw of its own.
    one = own._calls(model, guide, x[:1].expand(3, -1), 1)(0)
    assert (one[0] - one[1]).abs().max() > 1e-3


def answers(task: Task, *orders: dict[str, int]) -> list[dict[str, Any]]:
    out = io.StringIO()
    worker.serve(task, io.StringIO("".join(json.dumps(order) + "\n" for order in orders)), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_worker_answers_each_order() -> None:
    found = answers(Task("torch", TINY, examples=4), {"blocks": 3, "steps": 2}, {"blocks": 1, "steps": 1})
    assert found[0] == {"ready": True} and [len(answer["seconds"]) for answer in found[1:]] == [3, 1]
    assert all(seconds > 0 for answer in found[1:] for seconds in answer["seconds"])
    assert all(answer["peak"] > 2**20 for answer in found[1:])


def test_worker_makes_the_steps_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    route = Route(lambda number: seen.append(number) or number, lambda last: seen.append(("waited", last)))
    monkeypatch.setattr(plain, "build", lambda task: route)
    answers(Task("torch", TINY, warmup=1), {"blocks": 2, "steps": 3})
    assert seen == [0, ("waited", 0), 1, 2, 3, ("waited", 3), 4, 5, 6, ("waited", 6)]


def test_worker_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    (found,) = answers(Task("numpyro", TINY), {"blocks": 1, "steps": 1})
    assert "jax" in found["missing"] or "module" in found["missing"]
    route = Route(lambda number: None, lambda last: None, lambda: "no compiler")
    monkeypatch.setattr(plain, "build", lambda task: route)
    assert answers(Task("torch", TINY), {"blocks": 1, "steps": 1}) == [{"missing": "no compiler"}]


@pytest.mark.parametrize("name", ["pyrostoch-shared", "averaged", "calls"])
def test_own_routes_run(settings: None, name: str) -> None:
    found = answers(Task(name, TINY, examples=4, draws=2), {"blocks": 1, "steps": 1})
    assert found[0] == {"ready": True} and len(found) == 2


def test_compiled_route_tells_why_it_is_not(settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: "no compiler here")
    with pytest.warns(UserWarning):
        (found,) = answers(Task("pyrostoch-compiled-local", TINY, examples=4), {"blocks": 1, "steps": 1})
    assert "no compiler here" in found["missing"]
