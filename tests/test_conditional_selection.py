"""Selections of conditional layers: boxes and masks, backgrounds, and places elsewhere in a network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation
from pyrostoch.layers import (
    Conditional,
    GatedSelection,
    HardSelection,
    SelectedAt,
    SoftSelection,
    StochasticAdditive,
    StochasticConv2d,
    StochasticLinear,
)

F64 = torch.float64


def boxes() -> tuple[list[Tensor], list[Tensor]]:
    """Two overlapping boxes in the first image, one in the second, none in the third."""
    first = torch.tensor([[0.0, 0.0, 3.0, 3.0], [2.0, 2.0, 5.0, 6.0]])
    return [first, torch.tensor([[1.0, 4.0, 4.0, 6.0]]), torch.zeros(0, 4)], [
        torch.tensor([0, 1]),
        torch.tensor([1]),
        torch.zeros(0, dtype=torch.int64),
    ]


def test_boxes_are_the_masks_of_their_pixels() -> None:
    found = HardSelection.from_boxes(*boxes(), 2, (6, 6)).tensor
    assert found is not None and found.shape == (3, 3, 1, 6, 6)
    expected = torch.zeros(3, 3, 6, 6)
    expected[0, 0, :3, :3] = 1.0
    expected[0, 1, 2:6, 2:5] = 1.0
    expected[1, 1, 4:6, 1:4] = 1.0
    expected[:, 2] = (expected[:, :2].sum(1) == 0).float()
    assert torch.equal(found[:, :, 0].float(), expected)
    small = HardSelection.from_boxes([torch.tensor([[2.1, 0.2, 2.3, 0.4]])], [torch.tensor([0])], 1, (2, 4)).tensor
    assert small is not None and small[0, 0, 0].tolist() == [[False, False, True, False], [False] * 4]
    labels = HardSelection(torch.tensor([1, 0])).dense(3, (2, 2))
    assert labels.shape == (2, 3, 2, 2) and labels[:, :, 0, 0].tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def kernels(background: Any, **settings: Any) -> Conditional:
    torch.manual_seed(0)
    return Conditional(lambda: StochasticConv2d(1, 1, 3, padding=1), 2, background=background, **settings).double()


@pytest.mark.parametrize("background", ["class", "zero", "pass"])
def test_backgrounds_and_overlapping_boxes(background: Any) -> None:
    """Each class by itself on its own pixels, as far as it reaches; both contribute where boxes overlap."""
    layer, selection = kernels(background), HardSelection.from_boxes(*boxes(), 2, (6, 6))
    x = torch.randn(3, 1, 6, 6, dtype=F64) + 3.0
    pi = torch.as_tensor(selection.tensor).double()
    expected, spread = torch.zeros_like(x), torch.zeros_like(x)
    for c, own in enumerate(layer.classes):
        near = F.max_pool2d(pi[:, c], 3, 1, 1) > 0
        distribution = own.activation_distribution(x * pi[:, c])  # type: ignore[operator]
        expected += torch.where(near, distribution.mean, 0.0)
        spread += torch.where(near, distribution.stddev, 0.0)
    if background == "pass":
        expected = expected + pi[:, 2] * x
    with torch.no_grad(), MeanPropagation():
        assert torch.allclose(layer(x, selection=selection), expected)
    with torch.no_grad():
        many = torch.stack([layer(x, selection=selection) for _ in range(500)])
    assert ((many.mean(0) - expected).abs() <= 6.0 * spread / math.sqrt(500) + 1e-9).all()
    assert (many.std(0) == 0).equal(spread == 0)
    far = (F.max_pool2d(pi[:, :2].sum(1), 3, 1, 1) == 0) & (pi[:, 2] > 0)
    assert far.any()
    if background == "zero":
        assert not many[:, far].any()
    if background == "pass":
        assert torch.equal(many[0][far], x[far])
        assert torch.allclose(selection.clear_text(), pi[:, 2].flatten(1).mean(1).float())
        with pytest.raises(ValueError, match="by labels has no background"):
            HardSelection(torch.tensor([0])).clear_text()


def test_selections_without_a_background_are_refused_by_layers_with_one() -> None:
    selection = HardSelection.from_boxes(*boxes(), 2, (6, 6))
    x = torch.randn(3, 1, 6, 6, dtype=F64)
    with pytest.raises(ValueError, match=r"here \(3, 2, 1, 6, 6\).*got \(3, 3, 1, 6, 6\)"):
        kernels(None)(x, selection=selection)
    with pytest.raises(ValueError, match=r"here \(3, 3, 1, 5, 6\).*got \(3, 3, 1, 6, 6\)"):
        kernels("class")(x[:, :, :5], selection=selection)
    other = Conditional(lambda: StochasticConv2d(1, 1, 3), 2, background="pass").double()
    with pytest.raises(ValueError, match="expected activations in the shape of the input"):
        other(x, selection=selection)


def test_places_without_a_class_cost_no_rate() -> None:
    torch.manual_seed(0)
    layer = Conditional(lambda: StochasticConv2d(1, 2, 1, prior="standard"), 2, background="zero")
    net = ps.layers.accept_labels(nn.Sequential(layer, nn.Flatten(), nn.Linear(72, 2)).double())
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=3)
    x, y = torch.randn(3, 1, 6, 6, dtype=F64), torch.tensor([0, 1, 1])
    selection = torch.as_tensor(HardSelection.from_boxes(*boxes(), 2, (6, 6)).tensor).double()
    terms = ps.ELBO()(model, ps.guides.Additive(model))
    parts = ps.ELBO().terms(model, ps.guides.Additive(model), (x, selection), y)
    assert torch.isfinite(terms((x, selection), y))
    expected = torch.zeros(3, dtype=F64)
    for index in range(3):
        for i in range(6):
            for j in range(6):
                chosen = [c for c in range(2) if selection[index, c, 0, i, j]]
                if chosen:
                    pixel = x[index : index + 1, :, i : i + 1, j : j + 1]
                    each = [layer.classes[c].activation_distribution(pixel) for c in chosen]
                    loc, scale = sum(e.mean for e in each), sum(e.stddev for e in each)
                    expected[index] += (0.5 * (loc**2 + scale**2 - 1.0) - scale.log()).sum()
    assert torch.allclose(parts.rates["0.activation"].by_example, expected)


def test_pixels_are_an_input_of_every_verb() -> None:
    torch.manual_seed(0)
    layer = Conditional(lambda: StochasticConv2d(1, 2, 1, prior="standard"), 2, background="zero")
    net = ps.layers.accept_labels(nn.Sequential(layer, nn.Flatten(), nn.Linear(72, 2)).double())
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=3)
    guide = ps.guides.Additive(model)
    selection = torch.as_tensor(HardSelection.from_boxes(*boxes(), 2, (6, 6)).tensor)
    data = (torch.randn(3, 1, 6, 6, dtype=F64), selection), torch.tensor([0, 1, 1])
    ps.fit(model, guide, data, epochs=1, progress=False, compile=False)
    assert ps.compare(model, guide, data, modes=("mc:2",)).rows[0].labels == "known"
    parts = ps.decompose(model, guide, data)
    assert parts.rates[0].nats > 0.0 and parts.labels == "known"


def test_bad_boxes_and_masks_are_refused() -> None:
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="left < right and top < bottom, and a part within 4 x 4 pixels"):
        HardSelection.from_boxes([torch.tensor([[2.0, 0.0, 2.0, 1.0]])], [one], 1, (4, 4))
    with pytest.raises(ValueError, match="left < right and top < bottom"):
        HardSelection.from_boxes([torch.tensor([[5.0, 0.0, 9.0, 1.0]])], [one], 1, (4, 4))
    with pytest.raises(ValueError, match=r"boxes of image 0: expected shape \(number, 4\)"):
        HardSelection.from_boxes([torch.zeros(4)], [one], 1, (4, 4))
    with pytest.raises(ValueError, match="expected classes from 0 to 0, got 1"):
        HardSelection.from_boxes([torch.tensor([[0.0, 0.0, 1.0, 1.0]])], [one + 1], 1, (4, 4))
    with pytest.raises(ValueError, match="expected labels for each of 1 images, got 2"):
        HardSelection.from_masks([torch.zeros(1, 2, 2)], [one, one], 1)
    with pytest.raises(ValueError, match="one for each of 1 objects"):
        HardSelection.from_masks([torch.zeros(1, 2, 2)], [torch.tensor([0, 0])], 1)
    with pytest.raises(ValueError, match="of one size for all images"):
        HardSelection.from_masks([torch.zeros(1, 2, 2), torch.zeros(1, 2, 3)], [one, one], 1)
    with pytest.raises(ValueError, match="expected 0 or 1"):
        HardSelection(tensor=torch.full((1, 2, 3), 0.5))
    with pytest.raises(ValueError, match="either labels"):
        HardSelection()
    with pytest.raises(TypeError, match="expected a function that makes the layer of one class"):
        Conditional(nn.Linear(3, 2), 2)  # type: ignore[arg-type]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.layer = Conditional(lambda: StochasticLinear(4, 4), 5)
        self.second = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor, around: bool = False) -> Tensor:
        h = self.first(x)
        out: Tensor = self.last(self.second(self.layer(h)) + (h if around else 0.0))
        return out


@pytest.mark.parametrize("at", ["first.0", "second.1"])
@pytest.mark.parametrize("kind", ["static", "gate"])
def test_a_selection_elsewhere_is_the_one_written_by_hand(at: str, kind: str) -> None:
    net, x = Branches().double(), torch.randn(6, 3, dtype=F64)
    selection = (SoftSelection(5, 4) if kind == "static" else GatedSelection(nn.Linear(3, 5))).double()
    with torch.no_grad():
        for parameter in selection.parameters():
            parameter.normal_()
    whole = SelectedAt(net, layer="layer", at=at, selection=selection, example=x)
    pi = selection(x)
    pi = pi[..., None] if pi.dim() == 2 else pi
    with torch.no_grad(), MeanPropagation():
        found = whole(x)
        if at == "first.0":
            h = net.first[0](x)
            inputs = [torch.tanh(h * pi[:, c]) for c in range(5)]
            middle: Any = sum(own(i) for own, i in zip(net.layer.classes, inputs, strict=True))
            expected = net.last(net.second(middle))
        else:
            h = net.first(x)
            middle = sum(pi[:, c] * net.second(own(h)) for c, own in enumerate(net.layer.classes))
            expected = net.last(middle)
        assert torch.allclose(found, expected)
        labels = torch.tensor([0, 4, 4, 1, 2, 0])
        with HardSelection(labels):
            assert torch.allclose(whole(x), net(x))
    model = ps.BayesianModel(whole, likelihood=ps.likelihoods.Categorical(), num_data=6)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    ps.ELBO()(model, ps.guides.Additive(model))(x, y).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in whole.parameters())


def test_places_that_cannot_be_selected_are_refused() -> None:
    x = torch.randn(6, 3)
    with pytest.raises(ValueError, match="has no module 'third'; it has"):
        SelectedAt(Branches(), layer="layer", at="third", selection=SoftSelection(5, 4), example=x)
    with pytest.raises(ValueError, match="expected a Conditional layer, and another module"):
        SelectedAt(Branches(), layer="last", at="second", selection=SoftSelection(5, 4), example=x)
    with pytest.raises(ValueError, match=r"SelectedAt selection.*here \(6, 5, 4\).*got \(6, 5, 3\)"):
        SelectedAt(Branches(), layer="layer", at="second", selection=SoftSelection(5, 3), example=x)
    with pytest.raises(ValueError, match=r"here \(6, 5, 4\).*got \(6, 4, 4\)"):
        SelectedAt(Branches(), layer="layer", at="second", selection=SoftSelection(4, 4), example=x)

    class Around(Branches):
        def forward(self, x: Tensor, around: bool = True) -> Tensor:
            return super().forward(x, around)

    with pytest.raises(ValueError, match="no branch may lead around them"):
        SelectedAt(Around(), layer="layer", at="last", selection=SoftSelection(5, 2), example=x)
    normal = nn.Sequential(Conditional(lambda: StochasticAdditive(3), 5), nn.BatchNorm1d(3), nn.Linear(3, 2))
    whole = SelectedAt(normal, layer="0", at="2", selection=SoftSelection(5, 2), example=x)
    whole.eval()(x)
    with pytest.raises(ValueError, match="batch normalization in training mode"):
        whole.train()(x)
    twice = nn.Linear(4, 4)
    again = nn.Sequential(Conditional(lambda: StochasticLinear(3, 4), 5), twice, twice)
    with pytest.raises(ValueError, match="copy of each example|expected one call"):
        SelectedAt(again, layer="0", at="1", selection=SoftSelection(5, 4), example=x)
