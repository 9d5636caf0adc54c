"""Training with known labels and of selections; what is told of labels in prediction; the weight of the noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyrostoch as ps
from pyrostoch.layers import Conditional, GatedSelection, SoftSelection, StochasticLinear

N = 60
QUIET: dict[str, Any] = {"progress": False, "compile": False, "seed": 0, "lr": 0.05}


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(3))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def model_of(weights: Any = None, **settings: Any) -> tuple[ps.BayesianModel, nn.Module]:
    torch.manual_seed(0)
    layer = Conditional(lambda: StochasticLinear(3, 4, **settings), 3, where="output")
    net = nn.Sequential(nn.Identity(), layer, nn.Tanh(), nn.Linear(4, 3))
    model = ps.BayesianModel(net, prior=weights, likelihood=ps.likelihoods.Categorical(), num_data=N)
    return model, ps.guides.Additive(model)


class Items(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "tensor data set": TensorDataset,
    "data set": Items,
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=20),
    "loader of items": lambda x, y: DataLoader(Items(x, y), batch_size=20),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_reach_the_layer_in_every_form_of_data(form: str) -> None:
    x, y = data()
    found = []
    for given in (FORMS[form](x, y), FORMS["loader" if "loader" in form else "tensors"](x, y)):
        model, guide = model_of()
        result = ps.fit(model, guide, given, epochs=2, batch_size=20, shuffle=False, labels="known", **QUIET)
        found.append(result.history["loss"])
        known = ps.compare(model, guide, given, modes=("mean",), labels="known").rows[0]
        ps.layers.accept_labels(model.net)
        by_hand = ps.compare(model, guide, ((x, y), y), modes=("mean",)).rows[0]
        assert known.nll == pytest.approx(by_hand.nll) and known.labels == by_hand.labels == "known"
        assert ps.decompose(model, guide, given, labels="known").labels == "known"
    assert found[0] == pytest.approx(found[1])


def test_nothing_is_told_of_the_targets_unless_it_is_asked_for() -> None:
    model, guide = model_of()
    x, y = data()
    for call in (
        lambda: ps.fit(model, guide, (x, y), epochs=1, **QUIET),
        lambda: ps.compare(model, guide, (x, y)),
        lambda: ps.decompose(model, guide, (x, y)),
        lambda: ps.predict(model, guide, x, y=y),
        lambda: ps.ELBO()(model, guide)(x, y),
    ):
        with pytest.raises(ValueError, match="the class of each example is not known"):
            call()
    with ps.layers.HardSelection(y):
        assert ps.compare(model, guide, (x, y), modes=("mean",)).rows[0].labels == "known"
        assert ps.accuracy_by_samples(model, guide, (x, y), [1]).rows[0].labels == "known"
        assert ps.predict(model, guide, x, mode="mean").labels == "known"
    scores = ps.compare(model, guide, (x, y), modes=("mean", "mc:3"), labels="known")
    assert "mean, labels known" in str(scores) and "mc:3, labels known" in str(scores)
    prediction = ps.predict(model, guide, x, labels=y, mode="mean")
    assert prediction.labels == "known" and "labels known" in str(prediction)
    wrong = ps.predict(model, guide, x, labels=(y + 1) % 3, mode="mean")
    assert not torch.allclose(prediction.probs, wrong.probs)
    model.net[1].selection = SoftSelection(3, 4)  # from here on the layer does without labels
    first = ps.compare(model, guide, (x, y), modes=("mean",))
    other = ps.compare(model, guide, (x, (y + 1) % 3), modes=("mean",))
    assert "known" not in str(first) and first["mean"].nll != other["mean"].nll
    one, two = (ps.predict(model, guide, x, y=labels, mode="mean") for labels in (y, (y + 1) % 3))
    assert torch.equal(one.probs, two.probs)


def test_labels_that_are_no_classes_are_refused() -> None:
    model, guide = model_of()
    x, y = data()
    with pytest.raises(ValueError, match="targets: expected class indices.*got torch.float32"):
        ps.fit(model, guide, (x, y.float()), epochs=1, labels="known", **QUIET)
    with pytest.raises(ValueError, match="labels: expected one of 'known'"):
        ps.compare(model, guide, (x, y), labels="yes")  # type: ignore[arg-type]
    plain = ps.BayesianModel(nn.Linear(3, 3), likelihood=ps.likelihoods.Categorical(), num_data=N)
    with pytest.raises(ValueError, match="Linear has no Conditional layer"):
        ps.compare(plain, guide, (x, y), labels="known")


def test_time_first_models_take_labels_too() -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Conditional(lambda: ps.layers.StochasticLSTM(2, 3), 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x)[-1]
            return found

    model = ps.BayesianModel(Last(), likelihood=ps.likelihoods.Categorical(), num_data=12, in_dims=1)
    guide = ps.guides.Additive(model)
    x, y = torch.randn(5, 12, 2), torch.arange(12) % 3
    ps.fit(model, guide, (x, y), epochs=1, batch_size=5, labels="known", **QUIET)
    assert model.in_dims == 1
    assert ps.compare(model, guide, (x, y), modes=("mc:2",), labels="known", batch_size=5).num_examples == 12


def test_a_class_that_never_occurs_is_named() -> None:
    model, guide = model_of()
    x, y = data()
    with pytest.warns(UserWarning, match=r"layer '1': class\(es\) '2' never occurred in training"):
        ps.fit(model, guide, (x, y.clamp_max(1)), epochs=1, labels="known", **QUIET)


def test_a_soft_selection_may_be_compiled_and_exported() -> None:
    model, guide = model_of(prior="standard")
    model.net[1].selection = GatedSelection(nn.Linear(3, 3))
    x, y = data()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    step = ps.compile_step(ps.ELBO()(model, guide), optimizer)
    losses = [step(x, y).item() for _ in range(3)]
    assert step.reason is None and all(loss > 0 for loss in losses)
    with torch.no_grad(), ps.effects.MeanPropagation():
        program = torch.export.export(model.net.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        assert torch.allclose(program(x[:7]), model.net(x[:7]), atol=1e-6)
    ps.layers.accept_labels(model.net)
    with torch.no_grad(), pytest.raises(Exception, match="export the network without|too many positional"):
        torch.export.export(model.net, (x, y))
    assert model.net(x).shape == (N, 3)  # what was interrupted is known no more


@pytest.mark.parametrize("train_network", [True, False])
def test_the_second_step_leaves_the_classes_as_they_are(train_network: bool) -> None:
    x, y = data()
    model, guide = model_of({"1.classes.*": ps.priors.Normal()})
    assert list(model.sites)
    trained = [p.requires_grad for p in (*model.parameters(), *guide.parameters())]
    only, its = model_of({"1.classes.*": ps.priors.Normal()})
    ps.fit_two_steps(only, its, (x, y), selection=None, epochs=(3, 0), **QUIET)
    settings: Any = {"epochs": (3, 3), "train_network": train_network, **QUIET}
    result = ps.fit_two_steps(model, guide, (x, y), selection=GatedSelection(nn.Linear(3, 3)), **settings)
    assert result.selection is not None and len(result.selection.history["loss"]) == 3
    after, first = model.state_dict(), only.state_dict()
    for name, value in first.items():
        same = torch.equal(after[name], value)
        assert same if ".classes." in name or not train_network else same is not (name.startswith("net.3")), name
    for name, value in its.state_dict().items():
        assert torch.equal(guide.state_dict()[name], value), name
    kept = [p for n, p in model.named_parameters() if ".selection." not in n]
    assert [p.requires_grad for p in (*kept, *guide.parameters())] == trained


@pytest.mark.parametrize("interrupted", [0, 1])
def test_an_interrupted_run_of_two_steps_goes_on(interrupted: int, tmp_path: Path) -> None:
    x, y = data()

    def run(checkpoint: Path, callback: Any = None, resume: bool = False) -> dict[str, Tensor]:
        model, guide = model_of()
        selection = GatedSelection(nn.Linear(3, 3))
        ps.fit_two_steps(
            model, guide, (x, y), selection=selection, epochs=(3, 3), checkpoint=checkpoint, resume=resume,
            callback=callback, batch_size=20, **QUIET,
        )  # fmt: skip
        return copy.deepcopy(model.state_dict())

    whole = run(tmp_path / "whole.safetensors")
    calls = 0

    def stop(row: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 + 3 * interrupted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part.safetensors", stop)
    again = run(tmp_path / "part.safetensors", resume=True)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_selections_by_name_are_checked() -> None:
    model, guide = model_of()
    x, y = data()
    with pytest.raises(ValueError, match="expected one for each of '1', got '2'"):
        ps.fit_two_steps(model, guide, (x, y), selection={"2": SoftSelection(3, 4)}, epochs=(1, 1), **QUIET)
    plain = ps.BayesianModel(nn.Linear(3, 3), likelihood=ps.likelihoods.Categorical(), num_data=N)
    with pytest.raises(ValueError, match="has no Conditional layer"):
        ps.fit_two_steps(plain, guide, (x, y), selection=None, epochs=(1, 1), **QUIET)


def test_the_weight_of_the_noise_enlarges_it() -> None:
    x, y = data()
    noise = []
    for weight in (0.0, 0.5):
        model, guide = model_of()
        ps.fit(model, guide, (x, y), epochs=30, labels="known", noise_weight=weight, **QUIET)
        row = ps.activation_noise(model, guide, (x, y), labels="known").rows[0]
        assert row.layer == "1.activation" and row.units == 4
        noise.append(row.noise)
    assert noise[1] > 3.0 * noise[0]


def test_the_loss_with_a_weight_of_the_noise_is_the_one_by_hand() -> None:
    layer = ps.layers.StochasticAdditive(3, scale=0.7)
    net = nn.Sequential(layer, nn.Linear(3, 3))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=N)
    guide = ps.guides.Additive(model)
    x, y = data()
    losses = []
    for weight in (0.0, 0.25):
        torch.manual_seed(0)
        losses.append(ps.ELBO(noise_weight=weight)(model, guide)(x[:20], y[:20]))
    expected = -0.25 * N * layer.log_scale.mean()
    assert (losses[1] - losses[0]).item() == pytest.approx(expected.item(), rel=1e-3)
    losses[1].backward()
    with pytest.raises(ValueError, match="Bernoulli activations have no scale"):
        discrete = nn.Sequential(StochasticLinear(3, 3, distribution="bernoulli"))
        other = ps.BayesianModel(discrete, likelihood=ps.likelihoods.Categorical(), num_data=N)
        ps.ELBO(noise_weight=1.0)(other, guide)(x, y)
    plain = ps.BayesianModel(nn.Linear(3, 3), likelihood=ps.likelihoods.Categorical(), num_data=N)
    with pytest.raises(ValueError, match="noise_weight: expected a BayesianModel with a layer"):
        ps.ELBO(noise_weight=1.0)(plain, guide)(x, y)


def test_scores_of_a_run_are_marked_where_labels_are_known() -> None:
    from pyrostoch.cli.screen import score_table
    from pyrostoch.runs.scores import score

    model, guide = model_of()
    x, y = data()
    experiment: Any = SimpleNamespace(model=model, guide=guide, test=(x, y), target_std=1.0)
    rows = score(experiment, ("mean", "mc:1", "mc:2"), labels="known").rows
    assert all(row["labels"] == "known" for row in rows)
    table = score_table([("additive", row) for row in rows])
    assert list(table.columns[1].cells) == ["mean, labels known", "mc:1, labels known", "mc:2, labels known"]
    model.net[1].selection = SoftSelection(3, 4)
    assert list(score_table([("a", row) for row in score(experiment, ("mc:1",)).rows]).columns[1].cells) == ["mc:1"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("where", ["input", "output"])
def test_random_weights_of_classes_have_one_expectation_under_every_estimator(known: bool, where: Any) -> None:
    torch.manual_seed(0)
    layer = Conditional(lambda: StochasticLinear(3, 2), 3, GatedSelection(nn.Linear(3, 3)), where=where)
    net = ps.layers.accept_labels(nn.Sequential(layer, nn.Tanh(), nn.Linear(2, 3)).double())
    prior = {"0.classes.*": ps.priors.Normal()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=6)
    guide = ps.guides.Additive(model, init_scale=0.3)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 2, 2, 0, 1, 1])
    given: Any = (x, y) if known else x
    found = {}
    with torch.no_grad():
        for estimator in ("shared", "local", "flipout"):
            found[estimator] = torch.stack([ps.ELBO(estimator)(model, guide)(given, y) for _ in range(120)])
    for estimator in ("local", "flipout"):
        one, two = found["shared"], found[estimator]
        error = ((one.var() + two.var()) / 120).sqrt()
        assert (one.mean() - two.mean()).abs() <= 5.0 * error
    by_batches = ps.predict(model, guide, x, labels=y if known else None, mode="mc:100", batch_size=2, seed=0)
    whole = ps.predict(model, guide, x, labels=y if known else None, mode="mc:100", seed=1)
    assert torch.allclose(by_batches.probs, whole.probs, atol=0.15)


def test_noise_beside_the_signal_of_time_first_networks() -> None:
    torch.manual_seed(0)
    layer = StochasticLinear(2, 3)

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = layer, nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.layer(x)[-1])
            return found

    model = ps.BayesianModel(TimeFirst(), likelihood=ps.likelihoods.Categorical(), num_data=8, in_dims=1)
    x, y = torch.randn(5, 8, 2), torch.arange(8) % 2
    (row,) = ps.activation_noise(model, ps.guides.Additive(model), (x, y)).rows
    with torch.no_grad():
        q = layer.activation_distribution(x)
    assert row.signal == pytest.approx(q.mean.std(1, correction=0).mean().item(), rel=1e-4)
    assert row.noise == pytest.approx(q.stddev.mean().item(), rel=1e-4) and row.units == 15
