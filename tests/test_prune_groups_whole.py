"""Structured pruning: what cannot be cut is named and kept whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cut_networks import cut, outputs
from torch import nn

from pyrostoch import priors


class Wired(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.size = nn.Parameter(torch.randn(6))
        if kind == "tied":
            self.b.weight = self.a.weight

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.kind == "residual":
            h = torch.relu(h + self.b(h))
        elif self.kind == "gate":
            h = h * torch.sigmoid(self.b(x))
        elif self.kind == "added input":
            h = torch.relu(self.b(h + x))
        elif self.kind == "functional":
            h = torch.relu(F.linear(h, self.b.weight))
        elif self.kind == "twice":
            h = torch.relu(self.b(torch.relu(self.b(h))))
        elif self.kind == "softmax":
            h = torch.relu(self.b(h.softmax(-1)))
        elif self.kind == "parameter":
            h = torch.relu(self.b(h * self.size))
        elif self.kind == "to the output":
            return self.out(torch.relu(self.c(h))) + h.mean(-1, keepdim=True)
        else:
            h = torch.relu(self.b(h))
        if self.kind == "view":
            h = h.view(-1, 6)
        return self.out(torch.relu(self.c(h)))


WHOLE = {
    "residual": {"a": "its outputs and those of 'b' meet before 'c'", "b": "its outputs and those of 'a' meet"},
    "gate": {"a": "those of 'b' meet before 'c'", "b": "those of 'a' meet before 'c'"},
    "added input": {"a": "the input of 'b' still depends on other inputs"},
    "functional": {"a": "a feature of the input of 'c' depends on several", "b": "not called as a module"},
    "twice": {"a": "'b' .Linear. reads its outputs, and is called 2 times", "b": "it is called 2 times"},
    "softmax": {"a": "a feature of the input of 'b' depends on several of its outputs"},
    "parameter": {"a": "does not run with smaller layers"},
    "to the output": {"a": "reach the network's output without another layer", "b": "not called as a module"},
    "tied": {"a": "another layer holds the same weight", "b": "another layer holds the same weight"},
    "view": {"b": "does not run with smaller layers|outputs with smaller layers differ"},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_cannot_be_cut_is_kept_whole_and_says_why(kind):
    x = torch.randn(6, 6)
    net = Wired(kind)
    pruning = cut(net, x)
    assert set(pruning.kept_whole) == {*WHOLE[kind], "out"}
    fresh = torch.randn(6, 6)
    torch.testing.assert_close(outputs(pruning.export(), fresh), outputs(pruning.masked, fresh))
    for layer, reason in WHOLE[kind].items():
        assert f"{layer} is kept whole: " in str(pruning)
        with pytest.raises(ValueError, match=f"layer '{layer}' cannot lose units: .*({reason})"):
            cut(net, x, layers=[layer])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Embedding(7, 5), nn.Linear(5, 6)
        self.lstm, self.head, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.out(self.head(self.lstm(self.first(self.embed(tokens)))[0][:, -1]).relu())


OTHERS = {
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
        torch.randn(6, 4),
        {"0": r"'1' \(LayerNorm\) reads its outputs"},
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Linear(48, 2)
        ),
        torch.randn(6, 1, 8, 8),
        {"0": r"'1' \(Conv2d\) reads its outputs in groups"},
    ),
    "sigmoid and zeros": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(108, 2)
        ),
        torch.randn(6, 1, 8, 8),
        {"0": "still adds something to the input of '2', which pads with zeros"},
    ),
    "recurrent": (Recurrent, torch.randint(0, 7, (6, 4)), {"first": r"'lstm' \(LSTM\) reads its outputs"}),
    "transformer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 2)),
        torch.randn(6, 3, 8),
        {"0.linear2": r"'0.norm2' \(LayerNorm\) reads its outputs"},
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_layers_that_read_in_another_way_are_named(case):
    make, x, whole = OTHERS[case]
    net = make()
    pruning = cut(net, x, prior={"*weight": priors.Normal()})
    assert len(pruning.kept_whole) == len(whole) + 1 and pruning.compression > 1
    torch.testing.assert_close(outputs(pruning.export(), x), outputs(pruning.masked, x), rtol=1e-4, atol=1e-5)
    for layer, reason in whole.items():
        with pytest.raises(ValueError, match=f"layer '{layer}' cannot lose units: .*{reason}"):
            cut(net, x, layers=[layer], prior={"*weight": priors.Normal()})
