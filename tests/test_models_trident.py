"""Networks of ternary neurons: their layers, wrong arguments, and training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import pyrostoch as ps
from pyrostoch.bench.case import Setting, Trained, TrialContext
from pyrostoch.bench.published.discrete import discrete_updates, integers
from pyrostoch.bench.published.trident import TRIDENT
from pyrostoch.bench.trial import run_trial
from pyrostoch.layers import Binary, Ternary
from pyrostoch.models import TriDeNT, TriDeNTConv
from pyrostoch.quantize import TernaryGradient


def test_layers_of_a_dense_network():
    net = TriDeNT(20, (7, 5), 3, gradient=TernaryGradient)
    names = ["dropout", "fc1", "bn1", "neurons1", "error1", "fc2", "bn2", "neurons2", "error2", "scores"]
    assert [name for name, _ in net.named_children()] == names and net.fc1.bias is None
    assert isinstance(net.neurons2, Ternary) and net.error1 is not net.error2
    plain = TriDeNT(20, 7, 3, neurons=Binary, batch_norm=False, dropout=0.0)
    assert [name for name, _ in plain.named_children()] == ["dropout", "fc1", "neurons1", "scores"]
    assert plain.fc1.bias is not None and plain(torch.randn(4, 4, 5)).shape == (4, 3)


def test_layers_of_a_convolutional_network():
    net = TriDeNTConv(3, 5, (16, 20), (2, 3, 4), gradient=TernaryGradient)
    assert net.fc.in_features == 3 * 1 * 2 and net(torch.randn(2, 3, 16, 20)).shape == (2, 5)
    assert [name for name, _ in net.named_children()][-6:] == ["flatten", "fc", "bn3", "neurons3", "error3", "scores"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TriDeNT(4, 0, 2), "TriDeNT: expected positive"),
        (lambda: TriDeNT(4, (), 2), "at least three widths"),
        (lambda: TriDeNT(4, 3, 2)(torch.zeros(2, 5)), "expected 4 values"),
        (lambda: TriDeNTConv(image_size=12), "at least 16 x 16"),
        (lambda: TriDeNTConv(widths=(1, 0, 2)), "three positive widths"),
        (lambda: TriDeNTConv()(torch.zeros(2, 1, 20, 28)), r"expected images of shape \(batch, 1, 28, 28\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("discrete", [False, True], ids=["plain", "all discrete"])
def test_a_network_learns_the_digits(discrete):
    torch.manual_seed(0)
    data = ps.data.load("digits")
    net = TriDeNT(64, 200, 10, gradient=TernaryGradient if discrete else None, dropout=0.0)
    prior = {"fc1.weight": ps.priors.Grid()} if discrete else {}
    count = len(data.x_train)
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=count)
    guide = (ps.guides.CategoricalWeights if discrete else ps.guides.Additive)(model)
    settings = {"epochs": 15, "batch_size": 100, "lr": 0.01, "compile": False, "progress": False, "seed": 0}
    if discrete:
        TernaryGradient().attach([*guide.parameters(), *net.parameters()])
    ps.fit(model, guide, (data.x_train, data.y_train), **settings)
    test = (data.x_test, data.y_test)
    assert ps.compare(model, guide, test, modes=("mc:20",), seed=0)["mc:20"].accuracy > (0.87 if discrete else 0.93)


def trial_context(tmp_path, **changes):
    """The context of a short trial on the digits, and the list to which it reports its epochs."""
    case = TRIDENT.case("dense/discrete-updates")
    rows = []
    data = ps.data.load("digits")
    recipe = dataclasses.replace(case.recipes["quick"], epochs=4, examples=None, batch_size=50, **changes)
    return TrialContext(case, recipe, Setting("quick", tmp_path), 0, rows.append, data), rows


def test_weights_that_move_by_whole_levels_learn_the_digits(tmp_path):
    trial, rows = trial_context(tmp_path)
    metrics = discrete_updates(dataclasses.replace(trial, case=dataclasses.replace(trial.case, measure=None)))
    assert metrics["accuracy/mc:20"] > 0.75
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    context, _ = trial_context(tmp_path)
    again = discrete_updates(dataclasses.replace(context, case=dataclasses.replace(trial.case, measure=None)))
    assert {key: value for key, value in again.items() if "seconds" not in key} == {
        key: value for key, value in metrics.items() if "seconds" not in key
    }


def test_the_network_of_integers_is_scored_and_counted(tmp_path):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (300, 1, 8, 8)) / 255
    labels = torch.randint(0, 3, (300,))
    net = TriDeNT(64, 20, 3)
    prior = {name: ps.priors.Grid() for name in ("fc1.weight", "scores.weight")}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=300)
    guide = ps.guides.CategoricalWeights(model)
    trial, _ = trial_context(tmp_path)
    trained = Trained(trial.case, model, guide, (images, labels), (images, labels), trial.recipe, 0, trial.split)
    metrics = integers(trained)
    plain = guide.export(model)
    ps.guides.refresh_batch_norm(plain, images)
    with torch.no_grad(), ps.effects.NoiseFree():
        accuracy = (plain(images).argmax(-1) == labels).double().mean()
    assert metrics["accuracy/integers"] == pytest.approx(accuracy.item(), abs=1e-6)
    assert metrics["cost/weight-bits"] == 2 * (64 * 20 + 20 * 3)
    assert metrics["cost/float-bits"] == 16 * metrics["cost/weight-bits"]
    assert metrics["cost/multiplications"] == 3
    assert 0 < metrics["cost/active"] < metrics["cost/additions"] < 64 * 20 + 60


def test_the_cost_of_neurons_is_a_ratio_to_relus(tmp_path):
    metrics = run_trial(TRIDENT, TRIDENT.case("time"), 0, Setting("quick", tmp_path), None)["metrics"]
    assert set(metrics) == {"time/neurons", "time/numbers"} and min(metrics.values()) > 0.0


def test_training_images_are_shifted_and_others_are_not():
    data = ps.data.load("digits")
    net = TRIDENT.case("dense/full").network(data)
    assert (net.augment.padding, net.augment.flip) == (1, False)
    seen = []
    net.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(data.x_train[:20])
    net.eval()(data.x_train[:20])
    assert not torch.equal(seen[0], data.x_train[:20]) and torch.equal(seen[1], data.x_train[:20])
    assert TRIDENT.case("dense/plain").network(data).augment.padding == 0


def test_the_figure_has_accuracy_where_noise_was_swept():
    passes = ["Forward: states and their mean", "Backward: gradient of the mean"]
    swept = {
        f"noise/{noise}": {f"accuracy/{mode}": 0.9 for mode in ("mc:1", "mc:20", "noise-free")} for noise in (0.05, 0.3)
    }
    for scores, titles in (({}, passes), (swept, [*passes, "Accuracy against noise"])):
        assert [axes.get_title() for axes in TRIDENT.figure(scores).axes] == titles
