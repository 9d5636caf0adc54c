"""The toy problem of variance networks: its points, its network, and the results of training."""

from __future__ import annotations

import math
import runpy
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyrostoch.bench.published import toy
from pyrostoch.data import DataSplit
from pyrostoch.distributions import CenteredNormal, TwoPoint
from pyrostoch.effects import base_distribution
from pyrostoch.guides import Additive, VarianceOnly
from pyrostoch.likelihoods import Categorical
from pyrostoch.model import BayesianModel
from pyrostoch.prediction import predict
from pyrostoch.priors import LogUniform, Normal

TINY = toy.Preset(steps=3, lr=1e-3, schedule="linear", points=6, samples=4, grid=5)
EXAMPLE = str(Path(__file__).resolve().parent.parent / "examples" / "variance_networks.py")


@cache
def quick() -> toy.ToyResult:
    """The result of the quick preset, which takes a second or two; shared between tests, which only read it."""
    return toy.train("quick")


def bayesian(net: nn.Module, split: DataSplit) -> BayesianModel:
    prior = {"variance.weight": LogUniform()}
    return BayesianModel(net, prior=prior, likelihood=Categorical(), num_data=len(split.y_train))


@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_have_their_moments(part: str) -> None:
    split = toy.problem(seed=3)
    x, y = getattr(split, f"x_{part}").double(), getattr(split, f"y_{part}")
    assert y.bincount().tolist() == [500] * 4 and y.dtype == torch.int64
    for label, center in enumerate([(3, 3), (3, 10), (10, 3), (10, 10)]):
        cloud = x[y == label]
        # Five standard errors of a mean, and of an element of the covariance, of 500 points.
        assert (cloud.mean(0) - torch.tensor(center)).abs().max() < 5 / math.sqrt(500)
        assert (cloud.T.cov() - torch.eye(2)).abs().max() < 5 * math.sqrt(2 / 500)


def test_points_depend_on_the_seed_and_are_all_different() -> None:
    state = torch.get_rng_state()
    one, again, other = toy.problem(seed=1), toy.problem(seed=1), toy.problem(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x_train, again.x_train) and torch.equal(one.x_test, again.x_test)
    draws = torch.cat([one.x_train, one.x_test, other.x_train, other.x_test])
    assert len(draws.unique(dim=0)) == len(draws) == 8000
    assert (one.num_classes, one.input_shape, len(toy.problem(points=7).y_test)) == (4, (2,), 28)


def test_network_has_the_published_layers_and_ends_in_logits() -> None:
    net = toy.network()
    linear = [module for module in net if isinstance(module, nn.Linear)]
    assert [module.in_features for module in linear] == [2, 100, 100, 100, 100, 2, 100]
    assert [module.out_features for module in linear] == [100, 100, 100, 100, 2, 100, 4]
    assert [module.bias is None for module in linear] == [module is net.variance for module in linear]
    assert [type(module) for module in net[1::2]] == [nn.LeakyReLU] * 6 and net[-1] is linear[-1]


def test_presets_are_the_published_recipe_and_shorter_ones() -> None:
    full = toy.PRESETS["full"]
    assert (full.steps, full.lr, full.schedule, full.points, full.samples) == (21_000, 1e-4, "constant", 500, 100)
    assert toy.PRESETS["cpu"].points == 500 and toy.PRESETS["cpu"].samples == 100
    with pytest.raises(ValueError, match="toy preset"):
        toy.train("enormous")


def test_averaging_separates_what_the_mean_cannot() -> None:
    result = quick()
    assert result.accuracy["mean"] == 0.25
    assert result.accuracy["mc:100"] > 0.95 > result.accuracy["mc:1"] > 0.6
    assert len(np.unique(result.by_mean.label)) == 1 and np.ptp(result.by_mean.confidence) < 1e-6
    # Around each center every prediction by averaging is right.
    for label, (first, second) in enumerate(toy.CENTERS):
        rows, columns = (np.abs(result.axis - center) <= 1.0 for center in (second, first))
        assert (result.by_averaging.label[np.ix_(rows, columns)] == label).all() and rows.sum() >= 4
    assert result.data_term > -math.log(4) / 2 and result.seconds > 0


def test_classes_differ_by_width_and_not_by_mean() -> None:
    result = quick()
    assert result.activations.shape == (4, 500, 2)
    clouds = [result.activations[:, result.y == label].reshape(-1, 2) for label in range(4)]
    widths = sorted(float(np.median(np.abs(cloud))) for cloud in clouds)
    assert all(wide > 3 * narrow for narrow, wide in zip(widths, widths[1:], strict=False))
    for cloud in clouds:
        # As many draws above zero as below, within five standard errors.
        assert np.abs((cloud > 0).mean(0) - 0.5).max() < 2.5 / math.sqrt(len(cloud))


@pytest.mark.parametrize("family, distribution", [("gaussian", CenteredNormal), ("bernoulli", TwoPoint)])
def test_activations_have_the_distribution_of_the_layer(family: str, distribution: type) -> None:
    """Against the exact distribution given the features: mean zero, variance sum of squared inputs times phi²."""
    split, net = toy.problem(points=5), toy.network()
    model = bayesian(net, split)
    guide = VarianceOnly(model, family=family)
    found = base_distribution(guide.site_distribution("variance.weight"))
    assert isinstance(found, distribution)
    draws = toy.activations(model, guide, split.x_test, layer="variance", draws=400).double()
    with torch.no_grad():
        variance = net[: list(net).index(net.variance)](split.x_test).square() @ found.variance.T
    assert draws.shape == (400, 20, 2)
    scaled = draws / variance.sqrt()
    # Five standard errors of 400 draws, which examples may share.
    assert scaled.mean((0, 1)).abs().max() < 5 / math.sqrt(400)
    assert (scaled.square().mean((0, 1)) - 1).abs().max() < 5 * math.sqrt(2 / 400)
    assert len(draws[:, 0, 0].unique()) > 350
    assert not net.variance._forward_hooks


def test_activations_leave_no_hook_after_an_error() -> None:
    split, net = toy.problem(points=2), toy.network()
    model = bayesian(net, split)
    with pytest.raises(ValueError, match="inputs x"):
        toy.activations(model, VarianceOnly(model), split.x_test / 0, layer="variance", draws=1)
    assert not net.variance._forward_hooks


def test_training_is_reproducible_and_keeps_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    state, seeds, fit = torch.get_rng_state(), [], toy.fit
    monkeypatch.setattr(toy, "fit", lambda *args, **kwargs: seeds.append(kwargs["seed"]) or fit(*args, **kwargs))
    one, again, other = toy.train(TINY), toy.train(TINY), toy.train(TINY, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(one.activations, again.activations)
    np.testing.assert_array_equal(one.by_averaging.confidence, again.by_averaging.confidence)
    assert one.data_term == again.data_term != other.data_term and seeds == [0, 0, 1]


def test_regions_are_laid_out_like_an_image() -> None:
    """A network that depends on the first input only gives columns, not rows."""
    net = nn.Linear(2, 4)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0], [1, 0], [0, 0], [0, 0]]))
        net.bias.copy_(torch.tensor([0.0, -6.5, -99, -99]))
    model = BayesianModel(net, prior={"bias": Normal()}, likelihood=Categorical(), num_data=12)
    guide = Additive(model, init_scale=1e-6)
    axis = torch.arange(14.0)
    regions = toy._regions(model, guide, toy._plane(axis), "mean")
    assert (regions.label == (np.arange(14) >= 7)[None, :]).all()
    assert regions.confidence[2, 9] == predict(model, guide, torch.tensor([[9.0, 2.0]]), mode="mean").probs.max()


def test_results_print_as_a_table_and_convert_to_plain_data() -> None:
    result = toy.train(TINY)
    assert str(result).splitlines()[0].startswith("Toy problem, seed 0: 3 steps in")
    plain = result.to_dict()
    assert plain["preset"]["steps"] == 3 and len(plain["by_mean"]["label"]) == 5
    assert [row["mode"] for row in plain["scores"]["rows"]] == ["mean", "mc:1", "mc:4"] == list(result.accuracy)


def test_example_compares_and_decomposes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [EXAMPLE, "--epochs", "2"])
    runpy.run_path(EXAMPLE)
    output = capsys.readouterr().out
    assert "360 examples; NLL in nats" in output and "mc:20" in output
    assert "= ELBO" in output and "fc2.weight" in output


def test_example_draws_the_toy_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "toy.png"
    presets = []
    monkeypatch.setattr(toy, "train", lambda preset, **_: presets.append(preset) or quick())
    monkeypatch.setattr(sys, "argv", [EXAMPLE, "--toy", str(path), "--preset", "quick"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(EXAMPLE)
    assert end.value.code is None and presets == ["quick"]
    assert path.read_bytes().startswith(b"\x89PNG") and "Toy problem, seed 0" in capsys.readouterr().out
