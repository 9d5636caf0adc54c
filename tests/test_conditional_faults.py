"""Faults that a hostile review found in conditional layers: each stays mended or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyrostoch as ps
from pyrostoch.layers import (
    Conditional,
    GatedSelection,
    HardSelection,
    SelectedAt,
    SoftSelection,
    StochasticConv1d,
    StochasticLinear,
)

QUIET: dict[str, Any] = {"progress": False, "compile": False, "seed": 0, "lr": 0.01}


def model_of(net: nn.Module, count: int) -> tuple[ps.BayesianModel, nn.Module]:
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=count)
    return model, ps.guides.Additive(model)


class Kinds(nn.Module):
    """Has whole numbers for each example as a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Conditional(lambda: nn.Linear(2, 2), 3, SoftSelection(3, (1,)), where="output")
        self.kinds = nn.Embedding(3, 2)

    def forward(self, x: Tensor, kind: Tensor | None = None) -> Tensor:
        h: Tensor = self.layer(x)
        return h if kind is None else h + self.kinds(kind)


def test_labels_are_taken_as_an_input_within_a_call_only() -> None:
    net, x, kind = Kinds(), torch.randn(6, 2), torch.tensor([0, 1] * 3)
    model, guide = model_of(net, 6)
    before = net(x, kind)
    ps.predict(model, guide, x, labels=kind)
    assert torch.equal(net(x, kind), before)
    ps.layers.accept_labels(net, 2)
    ps.predict(model, guide, x, labels=kind)
    with HardSelection(kind):
        expected = net(x)
    assert torch.equal(net(x, None, kind), expected)


def test_whole_numbers_as_inputs_keep_the_selection() -> None:
    layer = Conditional(lambda: nn.Embedding(10, 4), 3, SoftSelection(3, (1,), "softmax"), where="output")
    x = torch.tensor([1, 2, 3])
    assert torch.allclose(layer(x), torch.stack([own(x) for own in layer.classes]).mean(0))
    with pytest.raises(ValueError, match=r"inputs of torch.int64 cannot be multiplied by a selection"):
        Conditional(lambda: nn.Embedding(10, 4), 3)(x, selection=torch.ones(3, 3))


def test_channels_that_belong_together_have_one_number() -> None:
    family = ps.layers.activations.Categorical()
    layer = Conditional(lambda: StochasticLinear(2, 4, distribution=family), 2, where="output", combine="mixture")
    assert layer(torch.randn(3, 2), selection=torch.full((3, 2), 0.5)).shape == (3, 4)
    with pytest.raises(ValueError, match="the channels of Categorical activations belong together"):
        layer(torch.randn(3, 2), selection=torch.full((3, 2, 4), 0.5))


def test_a_subclass_keeps_its_own_outputs() -> None:
    class Narrow(StochasticLinear):
        def outputs(self, x: Any) -> Any:
            loc, scale = super().outputs(x)
            return loc, scale.clamp(max=-5.0)

    layer = Conditional(lambda: Narrow(2, 2), 2, where="output")
    x, one = torch.randn(500, 2), torch.tensor([[1.0, 0.0]]).expand(500, 2)
    with torch.no_grad():
        for own in layer.classes:
            own.kernel.weight.zero_()
        assert layer(x, selection=one).std(0).max() < 0.02


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        x = torch.full((2,), float(index))
        return (x, 2.0 * x), index % 3


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Conditional(lambda: nn.Linear(2, 3), 3)

    def forward(self, one: Tensor, two: Tensor, extra: Tensor | None = None) -> Tensor:
        assert extra is None, "a target arrived as an input"
        found: Tensor = self.layer(one + two)
        return found


@pytest.mark.parametrize("loaded", [False, True])
def test_nested_inputs_of_items(loaded: bool) -> None:
    net = TwoInputs()
    model, guide = model_of(net, 12)
    ps.fit(model, guide, DataLoader(Pairs(), 4) if loaded else Pairs(), epochs=1, labels="known", **QUIET)
    assert net.layer.seen.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_that_have_started_bring_labels() -> None:
    x, y = torch.randn(12, 2), torch.arange(12) % 2
    loader = DataLoader(TensorDataset(x, y), 4, num_workers=1, persistent_workers=True)
    for _ in loader:
        pass
    layer = Conditional(lambda: nn.Linear(2, 2), 2, SoftSelection(2, (1,)), where="output")
    model, guide = model_of(layer, 12)
    ps.fit(model, guide, loader, epochs=1, labels="known", **QUIET)
    assert layer.seen.tolist() == [1.0, 1.0]


def test_labels_that_reach_no_layer_are_an_error() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = Conditional(lambda: nn.Linear(2, 2), 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(x)
            return found

    model, guide = model_of(Unused(), 4)
    with pytest.raises(ValueError, match="layer 'layer': labels='known', but no label has reached it"):
        ps.fit(model, guide, (torch.randn(4, 2), torch.tensor([0, 1, 0, 1])), epochs=1, labels="known", **QUIET)


def test_layers_of_one_activation_are_alike() -> None:
    families = iter(["gaussian", "laplace"])
    with pytest.raises(ValueError, match="layers of all classes to have one distribution"):
        Conditional(lambda: StochasticLinear(1, 1, distribution=next(families)), 2)
    kinds = iter([StochasticLinear(1, 1), nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="layers of all classes to have one distribution"):
        Conditional(lambda: next(kinds), 2)

    def louder() -> nn.Module:
        layer = StochasticLinear(1, 1)
        layer.noise_factor = 4.0
        return layer

    layer, x, y = Conditional(louder, 2), torch.zeros(4000, 1), torch.zeros(4000).long()
    with torch.no_grad():
        assert abs(layer(x, labels=y).std() / layer.classes[0](x).std() - 1.0) < 0.15


class Constant(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_buffer("logits").to(x.dtype).expand(len(x), *self.get_buffer("logits").shape)


def test_gates_may_be_zero() -> None:
    never = GatedSelection(Constant(torch.full((2, 4), -torch.inf)), "sigmoid")
    layer = Conditional(lambda: StochasticLinear(4, 4, prior="standard"), 2, never, where="output")
    assert not layer(torch.zeros(3, 4)).any()
    model, guide = model_of(nn.Sequential(layer, nn.Linear(4, 2)), 3)
    assert ps.ELBO().terms(model, guide, torch.zeros(3, 4), torch.tensor([0, 1, 0])).rate == 0.0
    halves = torch.full((2, 1, 6), -torch.inf)
    halves[0, :, :3] = halves[1, :, 3:] = torch.inf
    apart = Conditional(lambda: StochasticConv1d(1, 1, 1), 2, GatedSelection(Constant(halves), "sigmoid"))
    x = torch.randn(2, 1, 6)
    with torch.no_grad(), ps.effects.MeanPropagation():
        first, second = (own(x) for own in apart.classes)
        assert torch.allclose(apart(x), torch.where(torch.arange(6) < 3, first, second))


@pytest.mark.parametrize("compiled", [True])
def test_a_compiled_step_sees_zeros_that_come_later(compiled: bool) -> None:
    layer = Conditional(
        lambda: StochasticLinear(3, 2, prior="standard"), 2, GatedSelection(nn.Linear(3, 2), "sigmoid"), where="output"
    )
    model, guide = model_of(nn.Sequential(layer, nn.Linear(2, 2)), 4)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-9)
    step = ps.compile_step(ps.ELBO()(model, guide), optimizer)
    for _ in range(3):
        step(x, y)
    assert step.reason is None
    with torch.no_grad():
        layer.selection.gate.bias.fill_(-1e4)
        expected = ps.ELBO()(model, guide)(x, y)
    assert step(x, y).item() == pytest.approx(expected.item(), rel=1e-4)


class Attention(nn.Module):
    """Attention in which a token sees itself and earlier ones; its bias would answer zeros, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 1, batch_first=True)
        nn.init.normal_(self.inner.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        found: Tensor = self.inner(x, x, x, attn_mask=mask, need_weights=False)[0]
        return found


class Causal(nn.Conv1d):
    """A convolution whose later weights are masked."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * torch.tensor([1.0, 1.0, 0.0]), self.bias)


@pytest.mark.parametrize("kind", ["attention", "convolution"])
def test_masked_inputs_are_not_reached(kind: str) -> None:
    make = Attention if kind == "attention" else lambda: Causal(1, 1, 3, padding=1)
    layer = Conditional(make, 2).eval()
    x = torch.randn(1, 4, 4) if kind == "attention" else torch.randn(1, 1, 4)
    selection = torch.zeros(1, 2, *x.shape[1:])
    selection[:, 0] = 1.0
    selection[:, 1, 3 if kind == "attention" else slice(None), ..., slice(None) if kind == "attention" else 3] = 1.0
    with torch.no_grad():
        difference = (layer(x, selection=HardSelection(tensor=selection)) - layer.classes[0](x))[0]
    by_time = difference.abs().amax(-1 if kind == "attention" else 0)
    assert not by_time[:3].any() and by_time[3] > 0.0


def test_a_selection_elsewhere_costs_no_rate_of_what_is_not_selected() -> None:
    layer = Conditional(lambda: StochasticLinear(4, 3, prior="standard"), 3)
    net = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(3, 2))
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0])[:, None].expand(len(x), 3, 1)

    whole = SelectedAt(net, layer="1", at="0", selection=First(), example=x)
    model, guide = model_of(whole, 4)
    found = ps.ELBO().terms(model, guide, x, y).rate
    q = layer.classes[0].activation_distribution(net[0](x))
    expected = (0.5 * (q.mean.square() + q.variance - 1.0) - q.stddev.log()).sum()
    assert torch.allclose(torch.as_tensor(found), expected, rtol=1e-4)
    for background in ("zero", "pass"):
        other = nn.Sequential(nn.Linear(2, 4), Conditional(lambda: StochasticLinear(4, 4), 3, background=background))
        with pytest.raises(ValueError, match="with background=None or 'class', got"):
            SelectedAt(other, layer="1", at="0", selection=First(), example=x)


def test_checkpointing_with_classes_from_outside_is_refused() -> None:
    layer = Conditional(lambda: nn.Linear(2, 2), 2, SoftSelection(2, (1,)), where="output")
    x, y = torch.randn(4, 2, requires_grad=True), torch.tensor([0, 0, 1, 1])
    with HardSelection(y), pytest.raises(ValueError, match="runs under torch.utils.checkpoint"):
        checkpoint(layer, x, use_reentrant=True)


def test_bad_labels_leave_the_selections_around_them() -> None:
    layer = Conditional(lambda: nn.Linear(2, 2), 2, SoftSelection(2, (1,)), where="output")
    net = ps.layers.accept_labels(nn.Sequential(layer))
    x, y = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
    with HardSelection(1 - y):
        with HardSelection(y):
            with pytest.raises(ValueError, match="class indices"):
                net(x, y.float())
            assert torch.equal(net(x), layer(x, labels=y))
        assert torch.equal(net(x), layer(x, labels=1 - y))


def test_statistics_of_fixed_classes_stay(tmp_path: Path) -> None:
    layer = Conditional(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)), 2, where="output")
    x = torch.randn(40, 2)
    y = (x[:, 0] > 0).long()
    model, guide = model_of(layer, 40)
    seen: list[Tensor] = []

    def watch(row: Any) -> None:
        seen.append(layer.classes[0][1].running_mean.clone())

    gate = GatedSelection(nn.Linear(2, 2))
    for name in ("beta0.1", "beta0.2"):
        ps.fit_two_steps(
            model, guide, (x, y), selection=gate, epochs=(3, 3), callback=watch, checkpoint=tmp_path / name, **QUIET
        )
        assert not torch.equal(seen[0], seen[2]) and torch.equal(seen[2], seen[5])
        seen.clear()
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names[0] == "beta0.1.classes.safetensors" and len(names) == 4


def test_layers_with_time_first_inside_say_which_axis() -> None:
    def encoder(batch_first: bool) -> nn.Module:
        layer = nn.TransformerEncoderLayer(4, 1, 4, dropout=0.0, batch_first=batch_first)
        return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    x, y = torch.randn(5, 5, 4), torch.tensor([0, 1, 0, 1, 0])
    layer = Conditional(lambda: encoder(False), 2).eval()
    rows = [layer.classes[int(c)](x[:, i : i + 1])[:, 0] for i, c in enumerate(y)]
    assert torch.allclose(layer(x, labels=y), torch.stack(rows, 1), atol=1e-5)
    with pytest.raises(ValueError, match="holds a layer with batch_first=False"):
        Conditional(lambda: nn.Sequential(encoder(False), nn.Linear(4, 2)), 2)


def test_an_empty_batch_is_refused() -> None:
    layer = Conditional(lambda: nn.Linear(2, 2), 2)
    with pytest.raises(ValueError, match="at least one example"):
        layer(torch.zeros(0, 2), labels=torch.zeros(0).long())
