"""Conditional layers made of layers of a network, and what users meet on the way: messages, moments, selections."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.effects.moments import MomentPropagation
from pyrostoch.layers import Conditional, GatedSelection, HardSelection, StochasticLinear, make_conditional
from pyrostoch.layers.conditional.combine import Combination
from pyrostoch.moments import MissingRuleError
from pyrostoch.training.checkpoint import CheckpointError

QUIET: dict[str, Any] = {"progress": False, "compile": False, "seed": 0, "lr": 0.01}


def network() -> nn.Module:
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    return nn.Sequential(nn.Linear(3, 4), block, nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["0", "1", "1.0"])
def test_classes_start_as_the_layer(name: str) -> None:
    net, x = network(), torch.randn(5, 3)
    made = make_conditional(copy.deepcopy(net), name, 3)
    layer = made.get_submodule(name)
    assert isinstance(layer, Conditional)
    with HardSelection(torch.tensor([0, 2, 1, 1, 0])):
        assert torch.allclose(made(x), net(x), atol=1e-6)
    layer.selection = GatedSelection(nn.Linear(3 if name == "0" else 4, 3))
    assert torch.allclose(made(x), net(x), atol=1e-6)  # numbers of equal classes sum to 1
    first = next(layer.classes[0].parameters())
    with torch.no_grad():
        first.zero_()
    assert all(bool(next(other.parameters()).any()) for other in layer.classes[1:])


def test_stochastic_layers_become_conditional_ones() -> None:
    net = ps.layers.make_stochastic(network(), "0")
    layer = make_conditional(net, "0", 3).get_submodule("0")
    assert isinstance(layer, Conditional) and layer.activation is not None and layer.activation.prior is not None
    assert isinstance(layer.classes[0], StochasticLinear)


def test_layers_that_would_lose_something_are_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"make_conditional: no module\(s\) '7'"):
        make_conditional(net, "7", 2)
    with pytest.raises(ValueError, match=r"'0' is conditional already"):
        make_conditional(make_conditional(network(), "0", 2), "0", 2)
    with pytest.raises(ValueError, match="expected at least one module, got none"):
        make_conditional(net, [], 2)
    with pytest.raises(TypeError, match="'0' is a Conditional; make it stochastic first"):
        ps.layers.make_stochastic(make_conditional(network(), "0", 2), "0")
    with pytest.raises(ValueError, match=r"'2' is a Tanh without parameters"):
        make_conditional(net, ["0", "2"], 2)
    assert type(net.get_submodule("0")) is nn.Linear  # nothing was changed
    net.get_submodule("1.0").register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ValueError, match="'1' cannot be replaced without losing something: it has hooks"):
        make_conditional(net, "1", 2)
    tied = network()
    tied.get_submodule("1.2").weight = tied.get_submodule("1.0").weight
    make_conditional(copy.deepcopy(tied), "1", 2)  # tied within the block, which is copied as a whole
    with pytest.raises(ValueError, match=r"it shares a parameter with '1.2.weight'"):
        make_conditional(tied, "1.0", 2)
    with pytest.raises(ValueError, match=r"a parameter of it is fixed"):
        make_conditional(network().requires_grad_(False), "0", 2)


@pytest.mark.parametrize("combine", ["shared", "independent", "mixture"])
def test_moments_of_several_classes_are_those_of_draws(combine: Combination) -> None:
    torch.manual_seed(0)
    layer = Conditional(
        lambda: StochasticLinear(3, 4), 3, GatedSelection(nn.Linear(3, 3)), where="output", combine=combine
    ).double()
    net = nn.Sequential(layer, nn.Linear(4, 2).double())
    x = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        with MomentPropagation():
            moments = net(x)
        draws = net(x.repeat_interleave(100_000, 0)).unflatten(0, (2, -1))
    error = (moments.loc - draws.mean(1)).abs() / draws.std(1) * 100_000**0.5
    assert bool((error < 5.0).all())
    assert torch.allclose(moments.var, draws.var(1), rtol=0.05)


def test_moments_of_dependent_entries_are_refused() -> None:
    gate = GatedSelection(nn.Linear(3, 3))
    layer = Conditional(lambda: StochasticLinear(3, 4), 3, gate, where="output", combine="mixture-by-example")
    with pytest.raises(MissingRuleError, match="entries of an activation depend on each other"), MomentPropagation():
        layer(torch.randn(2, 3))


def gated(*, width: int = 2) -> tuple[ps.BayesianModel, nn.Module, GatedSelection]:
    layer = Conditional(lambda: StochasticLinear(2, 2), 2, where="output")
    net = nn.Sequential(layer, nn.Linear(2, 2))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=20)
    return model, ps.guides.Additive(model), GatedSelection(nn.Linear(width, 2))


DATA = torch.randn(20, 2), torch.tensor([0, 1] * 10)


def test_a_selection_that_does_not_fit_is_found_before_training() -> None:
    model, guide, gate = gated(width=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as found:
        ps.fit_two_steps(model, guide, DATA, selection=gate, epochs=(1, 1), **QUIET)
    notes = "".join(found.value.__notes__)
    assert (
        "nothing has been trained yet" in notes and "reads what its layer reads, here inputs of shape (20, 2)" in notes
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_selection_around_training_is_refused() -> None:
    model, guide, _ = gated()
    with HardSelection(DATA[1][:10]), pytest.raises(ValueError, match=r"fit: it runs inside of a HardSelection"):
        ps.fit(model, guide, DATA, epochs=1, batch_size=10, **QUIET)


def test_known_labels_are_marked_everywhere() -> None:
    model, guide, _ = gated()
    result = ps.fit(model, guide, DATA, epochs=1, labels="known", **QUIET)
    assert result.labels == "known" and ", labels known" in str(result)
    noise = ps.activation_noise(model, guide, DATA, labels="known")
    assert noise.labels == "known" and "20 examples, labels known;" in str(noise)
    with HardSelection(DATA[1]):
        assert ps.activation_noise(model, guide, DATA).labels == "known"
        with pytest.raises(ValueError, match=r"decompose: it runs inside of a HardSelection"):
            ps.decompose(model, guide, DATA)
    half = {"batch_size": 10}  # whose labels would be used for both halves
    with HardSelection(DATA[1][:10]):
        for verb in (
            lambda: ps.compare(model, guide, DATA, modes=("mc:1",), **half),
            lambda: ps.accuracy_by_samples(model, guide, DATA, [1], **half),
            lambda: ps.predict(model, guide, DATA[0], **half),
            lambda: ps.activation_noise(model, guide, DATA, **half),
        ):
            with pytest.raises(ValueError, match="inside of a HardSelection of 10 examples, and there are 20"):
                verb()


def test_labels_of_a_training_are_not_those_of_verbs_in_its_callback() -> None:
    model, guide, gate = gated()
    layer: Any = model.net.get_submodule("0")
    layer.selection = gate
    marks: list[Any] = []
    ps.fit(
        model,
        guide,
        DATA,
        epochs=1,
        labels="known",
        callback=lambda row: marks.extend(row.labels for row in ps.compare(model, guide, DATA, modes=("mc:1",)).rows),
        **QUIET,
    )
    assert marks == [None]


def test_known_classes_are_no_selection_of_a_layer() -> None:
    model, guide, _ = gated()
    known: Any = HardSelection(DATA[1])
    with pytest.raises(TypeError, match="fit_two_steps selection: expected a module, .* got HardSelection"):
        ps.fit_two_steps(model, guide, DATA, selection=known, epochs=(1, 1), **QUIET)
    with pytest.raises(TypeError, match="fit_two_steps labels: labels are known in the first step"):
        ps.fit_two_steps(model, guide, DATA, selection=None, epochs=(1, 1), first={"labels": None}, **QUIET)
    layer: Any = model.net.get_submodule("0")
    layer.selection = known
    with pytest.raises(TypeError, match="Conditional selection: expected a module, .* got HardSelection"):
        model.net(DATA[0])


def test_messages_are_short(tmp_path: Path) -> None:
    model, guide, gate = gated()
    path = tmp_path / "run.safetensors"
    result = ps.fit_two_steps(model, guide, DATA, selection=gate, epochs=(1, 1), checkpoint=path, **QUIET)
    assert str(result).startswith("classes: 1 epoch in") and "\nselection: 1 epoch in" in str(result)
    assert [part["epochs"] for part in result.to_dict().values()] == [1, 1]
    with pytest.raises(TypeError, match="labels: expected 'known', .* got Tensor"):
        ps.compare(model, guide, DATA, labels=DATA[1])  # type: ignore[arg-type]
    other, own, _ = gated()
    with pytest.raises(CheckpointError, match=r"expected the network as it is here, got one with 0.selection: Gat"):
        ps.load(tmp_path / "run.selection.safetensors", other, own)
    with pytest.raises(CheckpointError, match=r"expected the network with 0.selection: Gat.* got one without that"):
        ps.load(tmp_path / "run.classes.safetensors", model, guide)
