"""`fit(accumulate=)`: a batch in parts gives the step of the whole batch, with the memory of a part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.infer.batches import Share
from pyrostoch.safefile import CheckpointError
from pyrostoch.staging import missing
from pyrostoch.training.accumulate import parts_of_batch
from pyrostoch.training.trainer import NonFiniteLossError

NO_COMPILER = missing(torch.device("cpu"))


def data(count: int = 22) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=generator).double()
    return x, (x @ x.new_tensor([[1.0], [-1.0], [0.5]])).sin()


def build(count: int = 22) -> tuple[ps.BayesianModel, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=count)
    return model, ps.guides.Delta(model)  # whose loss has no noise, so that parts and whole can be compared


def run(guide_and_model: tuple[ps.BayesianModel, Any] | None = None, **settings: Any) -> tuple[Any, ps.Fit]:
    model, guide = guide_and_model or build()
    options = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "seed": 0, "progress": False, "compile": False}
    return guide, ps.fit(model, guide, settings.pop("data", data()), **{**options, **settings})


def assert_same(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, **({"atol": 1e-9, "rtol": 1e-9} | tolerance))


# 22 examples in batches of 8: the last has 6, which three parts divide evenly and four do not; 100 parts are eight.
@pytest.mark.parametrize("parts", [2, 3, 4, 100])
@pytest.mark.parametrize("settings", [{}, {"optimizer": torch.optim.SGD, "lr": 1e-4}, {"clip": 1.0}, {"kl_warmup": 2}])
def test_a_step_in_parts_is_that_of_the_whole_batch(parts: int, settings: dict[str, Any]) -> None:
    whole, of_whole = run(**settings)
    in_parts, of_parts = run(accumulate=parts, **settings)
    assert_same(whole, in_parts)
    for name in ("loss", "elbo", "data", "kl", "lr", "kl_weight"):
        assert of_parts.history[name] == pytest.approx(of_whole.history[name], rel=1e-9), name


def test_the_members_of_an_ensemble_accumulate_too() -> None:
    def ensemble() -> tuple[ps.BayesianModel, Any]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        likelihood = ps.likelihoods.Gaussian(0.3)
        model = ps.BayesianModel(net, prior={"*": ps.priors.Normal()}, likelihood=likelihood, num_data=22)
        return model, ps.guides.Ensemble.of(model, size=3)

    assert_same(run(ensemble())[0], run(ensemble(), accumulate=3)[0], atol=1e-7, rtol=1e-7)


def test_a_loader_and_several_inputs_are_cut_too() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1).double()

        def forward(self, x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
            output: Tensor = factor * self.linear(x) + shift
            return output

    x, y = data()

    def pair() -> tuple[ps.BayesianModel, Any]:
        torch.manual_seed(0)
        model = ps.BayesianModel(
            Sum(),
            prior=ps.priors.Normal(),
            likelihood=ps.likelihoods.Gaussian(0.3),
            num_data=22,
            in_dims=(0, 0, None),
        )
        return model, ps.guides.Delta(model)

    several = {"data": ((x, y, torch.full((1,), 2.0).double()), y)}
    assert_same(run(pair(), **several)[0], run(pair(), accumulate=3, **several)[0])
    of_loader = [run(accumulate=parts, data=DataLoader(TensorDataset(x, y), batch_size=8))[0] for parts in (1, 3)]
    assert_same(*of_loader)


def test_the_gradient_of_a_guide_with_noise_is_unbiased() -> None:
    """The mean of many single steps of SGD in parts is that of steps on the whole batch, within four errors."""

    def mean_step(parts: int) -> tuple[Tensor, Tensor]:
        found = []
        for seed in range(300):
            model, _ = build()
            guide = ps.guides.Additive(model, init_scale=0.3)
            start = nn.utils.parameters_to_vector(guide.parameters()).detach().clone()
            run((model, guide), epochs=1, batch_size=22, accumulate=parts, optimizer=torch.optim.SGD, lr=1.0, seed=seed)
            found.append(nn.utils.parameters_to_vector(guide.parameters()).detach() - start)
        steps = torch.stack(found)
        return steps.mean(0), steps.std(0) / math.sqrt(len(steps))

    whole, whole_error = mean_step(1)
    parts, parts_error = mean_step(4)
    error = (whole_error**2 + parts_error**2).sqrt() + 1e-12
    assert ((whole - parts).abs() / error).max() < 4.5


@pytest.mark.skipif(NO_COMPILER is not None, reason=f"nothing to compile with: {NO_COMPILER}")
def test_compiled_parts_are_those_of_eager_steps() -> None:
    settings = {"accumulate": 2, "data": data(24), "epochs": 4}
    eager = run(build(24), **settings)[0]
    compiled, result = run(build(24), compile=True, **settings)
    assert result.compile_seconds
    assert_same(eager, compiled, atol=1e-6, rtol=1e-6)


class Stop(Exception):
    pass


def test_a_run_in_parts_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise Stop

    settings: dict[str, Any] = {"accumulate": 3, "checkpoint": tmp_path / "run.safetensors"}
    with pytest.raises(Stop):
        run(callback=stop, **settings)
    assert_same(run(accumulate=3)[0], run(resume=True, **settings)[0], atol=0.0, rtol=0.0)
    with pytest.raises(CheckpointError, match="accumulate=3"):
        run(resume=True, **{**settings, "accumulate": 2})


def test_an_error_between_two_parts_leaves_nothing_for_the_next_run() -> None:
    class Faulty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(3, 1).double(), -1000

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("a fault of the network")
            output: Tensor = self.linear(x)
            return output

    net = Faulty()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=22)
    guide = ps.guides.Delta(model)
    before = nn.utils.parameters_to_vector(guide.parameters()).detach().clone()

    def arm(row: dict[str, Any]) -> None:
        net.calls = 0

    with pytest.raises(RuntimeError, match="a fault of the network"):
        run((model, guide), accumulate=3, callback=arm)
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert not torch.equal(before, nn.utils.parameters_to_vector(guide.parameters()))  # the first epoch is kept


def test_a_part_that_is_not_finite_is_named() -> None:
    x, y = data()
    model, guide = build()
    model.likelihood = ps.likelihoods.Gaussian(0.3)
    with pytest.raises(NonFiniteLossError, match=r"parameter|data term"):
        run((model, guide), accumulate=3, data=(x, y * 1e200), lr=1e200)


def test_networks_whose_examples_meet_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=0), nn.Linear(4, 1)).double()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=22)
    guide = ps.guides.Delta(model)
    with pytest.raises(ValueError, match="accumulate=2"):
        run((model, guide), accumulate=2, batch_size=22)
    with pytest.raises(ValueError, match="accumulate=2"):
        run((model, guide), accumulate=2, data=DataLoader(TensorDataset(*data()), batch_size=22))


@pytest.mark.parametrize("accumulate", [0, -1, 1.5, True, None])
def test_a_wrong_number_of_parts_is_refused(accumulate: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="accumulate"):
        run(accumulate=accumulate)


@pytest.mark.parametrize(("size", "count"), [(1, 3), (5, 2), (7, 3), (8, 8), (3, 9)])
def test_parts_hold_every_example_once_and_weights_are_those_of_a_mean(size: int, count: int) -> None:
    parts = parts_of_batch(Share(torch.zeros(size, 1), torch.arange(size), None, size), count)
    assert torch.cat([part.y for part in parts]).tolist() == list(range(size))
    sizes = [len(part.y) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and len(parts) == min(size, count)
    if len(parts) > 1:
        for part in parts:
            assert part.weight == pytest.approx(len(part.y) * len(parts) / size)


@pytest.mark.parametrize(("batch_size", "parts"), [(6, 4), (5, 2)])  # the last of five has two examples
def test_parts_of_one_example_are_refused_by_name_where_they_are_normalized(batch_size: int, parts: int) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=22)
    pair = (model, ps.guides.Delta(model))
    with pytest.raises(ValueError, match=rf"accumulate={parts} leaves a part of one example.*BatchNorm1d '1'"):
        run(pair, batch_size=batch_size, accumulate=parts)
    run(pair, batch_size=11, accumulate=parts)
    net[1].requires_grad_(False)  # which keeps its statistics
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=22)
    run((model, ps.guides.Delta(model)), batch_size=batch_size, accumulate=parts)
