"""Progressive training: what each step trains and reads, how it stops, and that it goes on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.layers import Conditional, GatedSelection, StochasticAdditive, embody
from pyrostoch.obfuscate import Client, Screening, bypassed, progressive
from pyrostoch.obfuscate import progressive as verb

EPOCHS = {"clean": 3, "classes": 2, "selection": 2, "mixed": 3}


class Setting:
    """A small classifier behind a layer of noise, and its data."""

    def __init__(self, prior: Any = None, seed: int = 1) -> None:
        torch.manual_seed(seed)
        self.x = torch.randn(60, 4)
        self.y = (self.x[:, 0] > 0).long()
        layer = Conditional(lambda: StochasticAdditive(4, scale=0.5), 2, where="output")
        self.net = embody.prepend(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), layer)
        self.model = ps.BayesianModel(self.net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=60)
        self.guide = ps.guides.Additive(self.model)
        self.gate = GatedSelection(nn.Linear(4, 2))

    def train(self, **settings: Any) -> Any:
        given: dict[str, Any] = {
            "selection": self.gate,
            "shares": (0.2, 0.5),
            "epochs": EPOCHS,
            "validation": (self.x, self.y),
            "screening": Screening(0.3, patch=1),
            "batch_size": 10,
            "lr": 0.02,
            "progress": False,
            "compile": False,
        }
        return progressive(self.model, self.guide, (self.x, self.y), **{**given, **settings})

    def state(self) -> dict[str, Tensor]:
        parts = {**self.model.state_dict(), **{f"guide.{k}": v for k, v in self.guide.state_dict().items()}}
        return {name: value.clone() for name, value in parts.items()}


class Recorder:
    """What `fit` is given in each step, and which parameters it changes."""

    def __init__(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[dict[str, Any]] = []
        self._setting = setting
        for module, name in (("obfuscate.progressive", "fit"), ("training.two_steps", "fit")):
            whole = __import__(f"pyrostoch.{module}", fromlist=["fit"])
            monkeypatch.setattr(whole, name, self._wrapped(whole.fit))

    def _wrapped(self, fit: Any) -> Any:
        def run(model: Any, guide: Any, data: Any, **settings: Any) -> Any:
            before = self._setting.state()
            step = {"bypassed": model.net.bypassed, "num_data": model.num_data, "labels": settings.get("labels")}
            step["rows"] = [data[i] for i in range(len(data))]
            result = fit(model, guide, data, **settings)
            after = self._setting.state()
            step["changed"] = {name for name in after if name in before and not torch.equal(after[name], before[name])}
            self.steps.append(step)
            return result

        return run


def test_each_step_trains_its_part_on_its_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    recorder = Recorder(setting, monkeypatch)
    result = setting.train(shares=(0.2,))
    clean, classes, selection, mixed = recorder.steps
    assert [step["bypassed"] for step in recorder.steps] == [True, False, False, True]
    assert [step["num_data"] for step in recorder.steps] == [12, 12, 12, 60]
    assert [step["labels"] for step in recorder.steps] == [None, "known", None, None]
    assert all(name.startswith("net.network.") for name in clean["changed"] | mixed["changed"])
    assert clean["changed"]
    assert mixed["changed"]
    assert all(name.startswith("net.stochastic.classes.") for name in classes["changed"] if "seen" not in name)
    assert all(name.startswith("net.stochastic.selection.") for name in selection["changed"])
    assert setting.model.num_data == 60
    assert all(parameter.requires_grad for parameter in setting.model.parameters())
    assert not setting.net.bypassed
    assert (result.stages[0].clean, result.stages[0].obfuscated) == (12, 48)


def test_the_rest_is_what_the_layer_sends_and_never_the_clean_input(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    recorder = Recorder(setting, monkeypatch)
    setting.train(shares=(0.2,), screening=None)
    rows = recorder.steps[-1]["rows"]
    clean = {tuple(x.tolist()) for x, _ in recorder.steps[0]["rows"]}
    everything = {tuple(x.tolist()): int(label) for x, label in zip(setting.x, setting.y, strict=True)}
    assert {tuple(x.tolist()) for x, _ in rows[:12]} == clean
    assert not {tuple(x.tolist()) for x, _ in rows[12:]} & set(everything)
    # The layer did not change since: what was added is within its noise for the class of each example.
    sent = torch.stack([x for x, _ in rows[12:]])
    labels = torch.tensor([int(label) for _, label in rows[12:]])
    layer: Any = setting.net.stochastic
    order = torch.randperm(60, generator=torch.Generator().manual_seed(_seed_of_order()))[12:]
    assert torch.equal(labels, setting.y[order])
    with torch.no_grad():
        for c in (0, 1):
            chosen = labels == c
            distribution = layer.classes[c].activation_distribution(setting.x[order][chosen])
            scaled = (sent[chosen] - distribution.mean) / distribution.stddev
            assert scaled.abs().max() < 6.0
            assert abs(scaled.std() - 1.0) < 0.4


def _seed_of_order() -> int:
    from pyrostoch._seeds import mixed_seed

    return mixed_seed(0, 0)


def test_the_rest_may_be_obfuscated_by_the_selection() -> None:
    setting = Setting()
    result = setting.train(shares=(0.2,), obfuscate_by="selection")
    assert result.obfuscated_by == "selection"
    assert "obfuscated by selection" in str(result)
    client = Client(setting.model, setting.guide, "stochastic")
    assert client.send(setting.x)[0].shape == (60, 4)


def test_it_ends_with_the_score_that_is_wanted_or_the_last_share() -> None:
    early = Setting().train(shares=(0.2, 0.5, 1.0), score=lambda model, guide: 0.7, wanted=0.7)
    assert (len(early.stages), early.reached) == (1, True)
    scores = iter([0.1, 0.2, 0.3, 0.4, 0.5])
    late = Setting().train(shares=(0.2, 0.5, 1.0), score=lambda model, guide: next(scores), wanted=0.9)
    assert (len(late.stages), late.reached) == (3, False)
    assert [(stage.alone, stage.mixed) for stage in late.stages] == [(0.1, 0.2), (0.3, 0.4), (0.5, 0.5)]
    assert late.stages[-1].noise is None  # nothing is left to obfuscate


def test_the_score_is_that_of_the_network_without_the_layer() -> None:
    setting = Setting()
    seen: list[bool] = []

    def score(model: ps.BayesianModel, guide: Any) -> float:
        seen.append(setting.net.bypassed)
        return float(len(seen))

    setting.train(shares=(0.2,), score=score)
    assert seen == [True, True]


def test_the_next_stage_goes_on_or_starts_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    for from_scratch in (False, True):
        setting = Setting()
        start = setting.state()
        begins: list[dict[str, Tensor]] = []
        fit = verb.__globals__["fit"]

        def run(model: Any, *rest: Any, own: Any = (fit, setting, begins), **settings: Any) -> Any:
            own[2].append(own[1].state())
            return own[0](model, *rest, **settings)

        with monkeypatch.context() as patch:
            patch.setitem(verb.__globals__, "fit", run)
            setting.train(from_scratch=from_scratch)
        again = {name for name, value in start.items() if torch.equal(begins[2][name], value)}
        assert (again == set(start)) is from_scratch


@pytest.mark.parametrize("prior", [None, ps.priors.Normal()])
@pytest.mark.parametrize("broken", [1, 3, 6, 9, 12])
def test_an_interrupted_training_comes_to_the_same_result(tmp_path: Path, prior: Any, broken: int) -> None:
    whole = Setting(prior)
    expected = whole.train(checkpoint=tmp_path / "whole")
    epochs = 0

    def stop(row: Any) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == broken:
            raise KeyboardInterrupt

    cut = Setting(prior)
    with pytest.raises(KeyboardInterrupt):
        cut.train(checkpoint=tmp_path / "cut", callback=stop)
    again = Setting(prior)
    result = again.train(checkpoint=tmp_path / "cut", resume=True)
    assert [s.mixed for s in result.stages] == [s.mixed for s in expected.stages]
    assert [s.noise for s in result.stages] == [s.noise for s in expected.stages]
    for name, value in whole.state().items():
        assert torch.equal(again.state()[name], value), name


def test_the_order_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    recorder = Recorder(setting, monkeypatch)
    setting.train(shares=(0.1,), order=torch.arange(10, 20))
    clean = torch.stack([x for x, _ in recorder.steps[0]["rows"]])
    assert torch.equal(clean, setting.x[10:16])


def test_bypassed_reads_the_input_as_it_is_and_forgets_what_it_learned() -> None:
    setting = Setting()
    with bypassed(setting.model):
        one = ps.predict(setting.model, setting.guide, setting.x, mode="mean").probs
    expected = setting.net.network(setting.x).softmax(-1)
    torch.testing.assert_close(one, expected.detach().double())
    with pytest.raises(ValueError, match="class of each example is not known"):
        ps.predict(setting.model, setting.guide, setting.x, mode="mean")


def test_networks_and_data_that_do_not_fit_are_named() -> None:
    setting = Setting()
    plain = ps.BayesianModel(nn.Linear(4, 2), likelihood=ps.likelihoods.Categorical(), num_data=60)
    with pytest.raises(TypeError, match=r"embody\.prepend"):
        progressive(plain, setting.guide, (setting.x, setting.y), selection=None, epochs=EPOCHS)
    unconditional = embody.prepend(nn.Linear(4, 2), StochasticAdditive(4))
    model = ps.BayesianModel(unconditional, likelihood=ps.likelihoods.Categorical(), num_data=60)
    with pytest.raises(TypeError, match="Conditional in front"):
        progressive(model, setting.guide, (setting.x, setting.y), selection=None, epochs=EPOCHS)
    layered = embody.prepend(nn.Linear(4, 2), setting.net.stochastic, nn.Linear(4, 4))
    model = ps.BayesianModel(layered, likelihood=ps.likelihoods.Categorical(), num_data=60)
    with pytest.raises(ValueError, match="leave layers= out"):
        progressive(model, setting.guide, (setting.x, setting.y), selection=None, epochs=EPOCHS)
    loader = DataLoader(TensorDataset(setting.x, setting.y))
    with pytest.raises(TypeError, match="DataLoader cannot"):
        progressive(setting.model, setting.guide, loader, selection=setting.gate, epochs=EPOCHS)
    with pytest.raises(ValueError, match="as many targets"):
        progressive(setting.model, setting.guide, (setting.x, setting.y[1:]), selection=setting.gate, epochs=EPOCHS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shares": (0.5, 0.2)}, "rising"),
        ({"shares": (0.0, 0.2)}, "rising"),
        ({"shares": (0.2, 1.5)}, "rising"),
        ({"shares": (0.001,)}, "at least two clean ones"),
        ({"shares": 0.05}, "rising"),
        ({"noise_weight": 0.1}, "steps=.*classes.*noise_weight"),
        ({"learning_rate": 0.1}, "no setting of fit"),
        ({"steps": {"clean": {"lrr": 0.1}}}, "did you mean 'lr'"),
        ({"epochs": {**EPOCHS, "class": 1}}, "did you mean 'classes'"),
        ({"screening": Screening(patch=50)}, "patch"),
        ({"epochs": {"clean": 1}}, "a number for each step"),
        ({"epochs": {**EPOCHS, "mixed": 0}}, "mixed"),
        ({"order": torch.tensor([0, 0, 1])}, "1 repeated and 0 outside"),
        ({"order": torch.tensor([0, 60])}, "0 repeated and 1 outside"),
        ({"order": torch.tensor([0, 1])}, "at least 30"),
        ({"obfuscate_by": "noise"}, "obfuscate_by"),
        ({"steps": {"noise": {}}}, "steps"),
        ({"validation": None}, "validation="),
        ({"selection": None, "obfuscate_by": "selection", "epochs": EPOCHS}, "there is none"),
    ],
)
def test_settings_that_do_not_fit_are_named(wrong: dict[str, Any], message: str) -> None:
    setting = Setting()
    before = setting.state()
    with pytest.raises(ValueError, match=message):
        setting.train(**wrong)
    assert all(torch.equal(value, before[name]) for name, value in setting.state().items())


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("screening", {"screening": None}),
        ("screening", {"screening": Screening(0.3, patch=2)}),
        ("obfuscate_by", {"obfuscate_by": "selection"}),
        ("order", {"order": torch.arange(60)}),
        ("from_scratch", {"from_scratch": True}),
        ("shares", {"shares": (0.3, 0.5)}),
    ],
)
def test_it_is_not_resumed_with_something_else(tmp_path: Path, name: str, other: dict[str, Any]) -> None:
    Setting().train(checkpoint=tmp_path, shares=(0.2,))
    with pytest.raises(ValueError, match=f"begun with another {name}"):
        Setting().train(checkpoint=tmp_path, resume=True, **{"shares": (0.2,), **other})
    again = Setting()
    again.x = again.x + 1.0
    with pytest.raises(ValueError, match="begun with another data"):
        again.train(checkpoint=tmp_path, resume=True, shares=(0.2,))
    more = Setting().train(checkpoint=tmp_path, resume=True, shares=(0.2, 0.5))
    assert len(more.stages) == 2


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="give checkpoint="):
        Setting().train(resume=True)
