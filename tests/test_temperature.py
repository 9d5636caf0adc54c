"""A guide remembers the temperature at which it was trained, and every table says so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.guides.temperature import marked_temperatures, temperature_text, temperatures_of
from pyrostoch.safefile import CheckpointError, read_file, write_file

PHRASE = "trained at temperature 0.25"


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 12)[:, None]
    return x, x.sin()


def build(kind: Any = ps.guides.Additive) -> tuple[ps.BayesianModel, Any]:
    likelihood = ps.likelihoods.Gaussian(0.3)
    net = nn.Linear(1, 1)
    model = ps.BayesianModel(net, prior={"*": ps.priors.Normal()}, likelihood=likelihood, num_data=12)
    return model, kind(model)


def run(model: ps.BayesianModel, guide: nn.Module, temperature: float = 0.25, **settings: Any) -> None:
    options = {"epochs": 2, "seed": 0, "progress": False, "compile": False, **settings}
    ps.fit(model, guide, data(), temperature=temperature, **options)


def test_every_table_says_so_and_none_otherwise() -> None:
    model, guide = build()
    run(model, guide)
    for text in (ps.decompose(model, guide, data()), ps.compare(model, guide, data())):
        assert PHRASE in str(text) and 0.25 in text.to_dict()["temperatures"]
        assert json.dumps(text.to_dict())
    assert PHRASE in str(ps.accuracy_by_samples(model, guide, data(), (1, 2)))
    tree = ps.to_arviz(model, guide, data(), draws=2)
    assert tree.attrs["temperature"] == PHRASE
    run(model, guide, temperature=1.0)
    for again in (ps.decompose(model, guide, data()), ps.compare(model, guide, data())):
        assert "temperature" not in str(again)
    assert "temperature" not in ps.to_arviz(model, guide, data(), draws=2).attrs
    assert "temperatures" not in ps.compare(model, guide, data()).to_dict()


def test_the_report_says_so(tmp_path: Path) -> None:
    model, guide = build()
    run(model, guide)
    page = ps.write_report(model, guide, data(), data(), out=tmp_path / "run")
    assert PHRASE in Path(page).read_text()


def test_a_point_and_an_ensemble_say_so() -> None:
    model, point = build(ps.guides.Delta)
    run(model, point)
    assert f"The guide was {PHRASE}, where it maximizes no log joint density." in str(
        ps.decompose(model, point, data())
    )
    model, ensemble = build(lambda model: ps.guides.Ensemble.of(model, size=2))
    run(model, ensemble)
    assert PHRASE in str(ps.decompose(model, ensemble, data()))


def test_parts_trained_at_different_temperatures_are_all_named() -> None:
    model, first = build()
    second, third = ps.guides.Additive(model), ps.guides.Additive(model)
    run(model, first)
    run(model, second, temperature=4.0)
    run(model, third, temperature=1.0)
    mixed = ps.guides.Ensemble([first, second, third])
    assert temperatures_of(mixed) == (0.25, 4.0)
    assert "parts trained at temperatures 0.25, 4" in str(ps.decompose(model, mixed, data()))
    run(model, mixed, temperature=0.5)  # the whole is now trained at one
    assert temperatures_of(mixed) == (0.5,) and temperatures_of(first) == (0.5,)


def test_it_survives_a_file_a_checkpoint_and_a_copy(tmp_path: Path) -> None:
    model, guide = build()
    run(model, guide, checkpoint=tmp_path / "run.safetensors")
    ps.save(tmp_path / "net.safetensors", model, guide)
    assert temperatures_of(copy.deepcopy(guide)) == (0.25,)
    for name in ("run.safetensors", "net.safetensors"):
        other, fresh = build()
        ps.load(tmp_path / name, other, fresh)
        assert temperatures_of(fresh) == (0.25,), name
    # A file of a guide at temperature 1 takes the note away again.
    third, plain = build()
    ps.save(tmp_path / "plain.safetensors", third, plain)
    ps.load(tmp_path / "plain.safetensors", model, guide)
    assert temperatures_of(guide) == ()


def test_a_resumed_run_says_so(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        raise Stop

    settings: dict[str, Any] = {"checkpoint": tmp_path / "run.safetensors"}
    model, guide = build()
    with pytest.raises(Stop):
        run(model, guide, callback=stop, **settings)
    other, fresh = build()
    run(other, fresh, resume=True, **settings)
    assert temperatures_of(fresh) == (0.25,)


@pytest.mark.parametrize("wrong", [{"": ["cold"]}, {"": [-1.0]}, {"": [float("inf")]}, {"": 0.5}, {"elsewhere": [0.5]}])
def test_a_wrong_note_in_a_file_is_refused_and_changes_nothing(wrong: dict[str, Any], tmp_path: Path) -> None:
    model, guide = build()
    run(model, guide)
    path = tmp_path / "net.safetensors"
    ps.save(path, model, guide)
    tensors, content = read_file(path)
    write_file(path, tensors, {**content, "temperatures": wrong})
    other, fresh = build()
    before = [parameter.detach().clone() for parameter in fresh.parameters()]
    with pytest.raises(CheckpointError, match="temperatures"):
        ps.load(path, other, fresh)
    assert marked_temperatures(fresh) == {}
    assert all(torch.equal(one, two) for one, two in zip(before, fresh.parameters(), strict=True))


def test_a_guide_of_a_users_own_class_is_found_again(tmp_path: Path) -> None:
    class Own(ps.guides.Additive):
        pass

    model, guide = build(Own)
    run(model, guide)
    ps.save(tmp_path / "net.safetensors", model, guide)
    other, fresh = build(Own)
    ps.load(tmp_path / "net.safetensors", other, fresh)
    assert temperatures_of(fresh) == (0.25,)


def test_nothing_is_said_of_other_callables() -> None:
    assert temperatures_of(lambda x: x) == () and temperature_text(()) == ""
