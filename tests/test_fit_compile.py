"""`fit(compile=)`: the compiled run equals the eager run, can be resumed, and still finds a NaN."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.infer.compile import worth_compiling
from pyrostoch.safefile import read_file
from pyrostoch.staging import missing
from pyrostoch.training.fit import fit
from pyrostoch.training.trainer import NonFiniteLossError

CPU = torch.device("cpu")
NO_COMPILER = missing(CPU)
compiles = pytest.mark.skipif(NO_COMPILER is not None, reason=f"nothing to compile with: {NO_COMPILER}")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.staging.step.lower", lambda module, inputs: module)
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: None)
    monkeypatch.setattr("pyrostoch.infer.compile.missing", lambda device: None)


def data(count: int = 45) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=generator)).argmax(-1)


def build() -> tuple[ps.BayesianModel, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3))
    prior = {"0.*": ps.priors.EmpiricalBayes(0.5), "4.weight": ps.priors.LogUniform()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=45)
    return model, ps.guides.PerSite(model, {"*": ps.guides.Additive, "4.*": ps.guides.LayerwiseAlpha})


def train(built: Any = None, source: Any = None, **options: Any) -> Any:
    """Run with a smaller last batch; return its result, model and guide."""
    model, guide = build() if built is None else built
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 10, "lr": 0.03, "lr_alpha": 0.1, "seed": 4}
    settings |= {"progress": False} | options
    if "validation" in settings:
        settings["validation"] = data(settings["validation"])
    return fit(model, guide, data() if source is None else source, **settings), model, guide


def states(model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    both = {f"model.{k}": v for k, v in model.state_dict().items()}
    return both | {f"guide.{k}": v for k, v in guide.state_dict().items()}


def agree(tolerance: float = 1e-8, **options: Any) -> Any:
    """Compare the compiled run with the eager one, and return the result of the compiled one."""
    expected, model, guide = train(compile=False, **options)
    assert expected.compile_seconds is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, twin, other = train(compile=True, **options)
    assert found.compile_seconds > 0 and found.seconds >= found.compile_seconds
    for name in ("loss", "elbo", "data", "kl", "penalty", "kl_weight", "lr"):
        assert found.history[name] == pytest.approx(expected.history[name], rel=tolerance, abs=tolerance), name
    close = {"rtol": 100 * tolerance, "atol": 100 * tolerance}
    torch.testing.assert_close(states(twin, other), states(model, guide), **close)
    return found


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": 1.5},
    "a clip never met": {"clip": 1e9},
    "particles": {"num_particles": 3},
    "warm-up": {"kl_warmup": 2.0},
    "cosine and shared": {"schedule": "cosine", "estimator": "shared"},
    "flipout": {"estimator": "flipout"},
    "validation": {"validation": 20, "patience": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_run_is_the_eager_run(case, float64, interpreted):
    assert "to compile the step" in str(agree(**CASES[case]))


def test_a_compiled_run_in_float32(interpreted):
    agree(1e-4)


def test_a_compiled_run_in_bf16(interpreted):
    agree(1e-3, precision="bf16")


@compiles
def test_a_truly_compiled_run_is_the_eager_run(float64):
    agree(clip=1.5, kl_warmup=2.0)


def test_a_run_that_cannot_be_compiled_warns_once(monkeypatch):
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: "no compiler here")
    expected, model, guide = train(compile=False)
    with pytest.warns(UserWarning, match="fit: the step runs eagerly: no compiler here") as caught:
        found, twin, other = train(compile=True)
    assert len(caught) == 1 and found.compile_seconds is None
    assert found.history["loss"] == expected.history["loss"]
    torch.testing.assert_close(states(twin, other), states(model, guide), rtol=0, atol=0)


class CutShortError(Exception):
    pass


def resumed(path: Path, after: int, **options: Any) -> Any:
    """A run that stops after some epochs and is resumed with a new model and guide."""

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == after:
            raise CutShortError

    with pytest.raises(CutShortError):
        train(checkpoint=path, callback=stop, **options)
    return train(checkpoint=path, resume=True, **{**options, "compile": "auto"})


@pytest.mark.parametrize("after", [1])
def test_a_resumed_compiled_run_ends_in_the_same_bits(after, tmp_path, interpreted):
    whole, model, guide = train(compile=True, checkpoint=tmp_path / "whole.safetensors")
    found, twin, other = resumed(tmp_path / "cut.safetensors", after, compile=True)
    assert found.history["loss"] == whole.history["loss"]
    one, two = (read_file(tmp_path / f"{name}.safetensors")[0] for name in ("whole", "cut"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_resumed_compiled_run_ends_where_the_whole_one_does(tmp_path, float64, interpreted):
    whole, model, guide = train(compile=True)
    found, twin, other = resumed(tmp_path / "cut.safetensors", 2, compile=True)
    assert found.compile_seconds > 0  # "auto" keeps the choice of the first start
    assert found.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-10)
    torch.testing.assert_close(states(twin, other), states(model, guide), rtol=1e-8, atol=1e-8)


def test_a_resumed_eager_run_stays_eager(tmp_path, interpreted, monkeypatch):
    whole, model, guide = train(compile=False)
    # Although the rule would now choose to compile.
    monkeypatch.setattr("pyrostoch.infer.compile._COMPILE_SECONDS", -1e9)
    found, twin, other = resumed(tmp_path / "cut.safetensors", 2, compile=False)
    assert found.compile_seconds is None and found.history["loss"] == whole.history["loss"]
    torch.testing.assert_close(states(twin, other), states(model, guide), rtol=0, atol=0)


def test_auto_compiles_where_the_rule_says_so(interpreted, monkeypatch):
    assert train()[0].compile_seconds is None  # 20 steps are too few
    monkeypatch.setattr("pyrostoch.infer.compile._COMPILE_SECONDS", -1e9)
    assert train()[0].compile_seconds > 0
    monkeypatch.setattr("pyrostoch.infer.compile.missing", lambda device: "nothing")
    assert train()[0].compile_seconds is None


def test_the_rule(monkeypatch):
    monkeypatch.setattr("pyrostoch.infer.compile.missing", lambda device: None)
    guide = build()[1]
    assert worth_compiling(True, guide, 1, CPU) is True and worth_compiling(False, guide, 10**9, CPU) is False
    answers = [worth_compiling("auto", guide, 10**power, CPU) for power in range(8)]
    assert answers == sorted(answers) and answers[0] is False and answers[-1] is True
    # The same numbers in more tensors take longer to compile; more numbers save more.
    deep, shallow = nn.ModuleList(nn.Linear(2, 2) for _ in range(100)), nn.Linear(6, 100)
    enough = next(steps for steps in range(0, 10**6, 100) if worth_compiling("auto", shallow, steps, CPU))
    assert not worth_compiling("auto", deep, enough, CPU)
    assert worth_compiling("auto", nn.Linear(3000, 3000), enough - 1000, CPU) and not worth_compiling(
        "auto", shallow, enough - 1000, CPU
    )
    monkeypatch.setattr("pyrostoch.infer.compile.missing", lambda device: "no compiler")
    assert not worth_compiling("auto", guide, 10**9, CPU)


@pytest.mark.parametrize("choice", ["yes", None, 1])
def test_another_choice_is_refused(choice):
    with pytest.raises(ValueError, match="compile: expected True, False or 'auto', got"):
        train(compile=choice)


class Blasting(nn.Module):
    """A network that overflows at its n-th pass, eager or compiled."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner, self.at = nn.Linear(6, 3), at
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes.add_(1)
        return self.inner(x) * torch.where(self.passes == self.at, torch.inf, 1.0)


def blast(at: int, compile: bool, **options: Any) -> tuple[NonFiniteLossError, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = ps.BayesianModel(
        Blasting(at), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=45
    )
    guide = ps.guides.Additive(model)
    start = {name: value.clone() for name, value in states(model, guide).items()}
    with pytest.raises(NonFiniteLossError) as caught:
        train((model, guide), compile=compile, **options)
    return caught.value, start, states(model, guide)


FORGOTTEN = "the memory of Adam is forgotten when epoch 1 is run again: the staged step is given too few tensors"


@pytest.mark.parametrize(
    "at",
    [1, 4, 7, 13],
    ids=lambda at: f"pass {at}",
)
def test_a_nan_is_found_and_rolled_back(at, float64, interpreted):
    expected, _, left = blast(at, False)
    found, start, state = blast(at, True)
    assert (found.epoch, found.step, found.where) == (expected.epoch, expected.step, expected.where)
    assert (found.epoch, found.step) == ((at - 1) // 5 + 1, (at - 1) % 5 + 1)
    torch.testing.assert_close(state, left, rtol=1e-8, atol=1e-8)
    if found.epoch == 1:
        torch.testing.assert_close(state, start, rtol=0, atol=0)


def test_the_callers_random_state_and_modes_are_left_alone(interpreted):
    model, guide = build()
    model.eval()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train((model, guide), compile=True)
    assert torch.equal(torch.get_rng_state(), before) and not model.training


def test_no_gradient_is_left(interpreted):
    _, model, guide = train(compile=True)
    assert all(parameter.grad is None for module in (model, guide) for parameter in module.parameters())
