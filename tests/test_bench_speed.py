"""The workers of the bench `speed`: what their implementations compute, and how they answer."""

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
from pyrostoch.bench.speed.workers import common, pyro_worker, pyrostoch_worker, torch_worker
from pyrostoch.bench.speed.workers.task import NUM_DATA, Task, TimedStep
from pyrostoch.infer import ELBO
from pyrostoch.prediction import predict

TINY = (5, 4, 3)


@pytest.fixture
def restored_validation() -> Iterator[None]:
    """Restores Pyro's validation, which workers switch in their own processes."""
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
def test_local_reparameterization_by_hand_equals_the_local_estimator(task: Task) -> None:
    """On the same noise: the value and the gradient of every mean and standard deviation."""
    hand = torch_worker.by_hand(task).double()
    model, guide = pyrostoch_worker.model_and_guide(task)
    loss = ELBO("local")(model.double(), guide.double())
    x, y = common.batches(task)[0]
    # The first call draws once more, to see how the network uses its weights.
    loss(x.double(), y)
    values = []
    for module in (hand, loss):
        torch.manual_seed(1)
        values.append(module(x.double(), y))
        values[-1].backward()
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    ours = [guide.parameters_for(site) for site in guide.site_names]
    theirs: list[dict[str, Any]] = []
    for layer in hand.net:
        if isinstance(layer, torch_worker.Local):
            theirs.append({"loc": layer.loc, "log_scale": layer.log_scale})
            if layer.bias_log_scale is not None:
                theirs.append({"loc": layer.bias, "log_scale": layer.bias_log_scale})
    assert len(ours) == len(theirs) == {"weights": 2, "all": 4}[task.random] * (1 if task.widths else 2)
    for one, other in zip(ours, theirs, strict=True):
        for name, parameter in one.items():
            torch.testing.assert_close(parameter.grad, other[name].grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("random", "parts"), [("weights", {"weight"}), ("all", {"weight", "bias"})])
def test_pyro_draws_the_same_tensors(restored_validation: None, random: Any, parts: set[str]) -> None:
    pyro.clear_param_store()
    timed = pyro_worker.build(Task("pyro", TINY, random, examples=4))
    assert timed.step(0) > 0
    drawn = {name.rpartition(".")[2] for name in pyro.get_param_store() if ".locs." in name}
    assert drawn == parts
    assert not pyro.settings.get("validate_infer")


def test_loss_is_that_of_the_whole_data_set() -> None:
    y = torch.tensor([0, 2])
    found = common.data_term(torch.zeros(2, 3), y)
    assert found.item() == pytest.approx(NUM_DATA * torch.log(torch.tensor(3.0)).item(), rel=1e-6)


def test_calls_average_to_what_predict_does(restored_validation: None) -> None:
    task = Task("calls", TINY, examples=6, draws=400)
    model, guide = pyrostoch_worker.model_and_guide(task)
    with torch.no_grad():
        for site in guide.site_names:
            guide.parameters_for(site)["log_scale"].fill_(-0.5)
    x = common.batches(task)[0][0]
    torch.manual_seed(0)
    calls = pyrostoch_worker._average_of_calls(model, guide, x, task.draws)(0)
    probs = predict(model, guide, x, mode=f"mc:{task.draws}").probs
    # The standard error of a mean of 400 probabilities is at most 0.025, on either side.
    assert (calls - probs).abs().max() < 5 * 0.025 * 2**0.5 and not calls.requires_grad
    assert calls.sum(-1).sub(1).abs().max() < 1e-5 and calls.shape == (6, 3)
    assert (calls - predict(model, guide, x, mode="mean").probs).abs().max() > 0.01
    # Every example has a draw of its pyrostoch_worker.
    one = pyrostoch_worker._average_of_calls(model, guide, x[:1].expand(3, -1), 1)(0)
    assert (one[0] - one[1]).abs().max() > 1e-3


def answers(task: Task, *requests: dict[str, int]) -> list[dict[str, Any]]:
    out = io.StringIO()
    worker.serve(task, io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_worker_answers_each_request() -> None:
    found = answers(Task("torch", TINY, examples=4), {"blocks": 3, "steps": 2}, {"blocks": 1, "steps": 1})
    assert found[0] == {"ready": True} and [len(answer["seconds"]) for answer in found[1:]] == [3, 1]
    assert all(seconds > 0 for answer in found[1:] for seconds in answer["seconds"])
    assert all(answer["peak"] > 2**20 for answer in found[1:])


def test_worker_makes_the_requested_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    timed = TimedStep(lambda number: seen.append(number) or number, lambda last: seen.append(("waited", last)))
    monkeypatch.setattr(torch_worker, "build", lambda task: timed)
    answers(Task("torch", TINY, warmup=1), {"blocks": 2, "steps": 3})
    assert seen == [0, ("waited", 0), 1, 2, 3, ("waited", 3), 4, 5, 6, ("waited", 6)]


def test_worker_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    (found,) = answers(Task("numpyro", TINY), {"blocks": 1, "steps": 1})
    assert "jax" in found["missing"] or "module" in found["missing"]
    timed = TimedStep(lambda number: None, lambda last: None, lambda: "no compiler")
    monkeypatch.setattr(torch_worker, "build", lambda task: timed)
    assert answers(Task("torch", TINY), {"blocks": 1, "steps": 1}) == [{"missing": "no compiler"}]


@pytest.mark.parametrize("name", ["pyrostoch-shared", "averaged", "calls"])
def test_implementations_of_pyrostoch_run(restored_validation: None, name: str) -> None:
    found = answers(Task(name, TINY, examples=4, draws=2), {"blocks": 1, "steps": 1})
    assert found[0] == {"ready": True} and len(found) == 2


def test_failed_compilation_is_reported(restored_validation: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: "no compiler here")
    with pytest.warns(UserWarning):
        (found,) = answers(Task("pyrostoch-compiled-local", TINY, examples=4), {"blocks": 1, "steps": 1})
    assert "no compiler here" in found["missing"]
