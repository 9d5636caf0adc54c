"""Networks in which the examples of a batch meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import Made, Then, network

B = 8
_ONE = {"random": ("l.weight",)}


def _attention(h: Tensor) -> Tensor:
    return torch.softmax(h @ h.T, -1) @ h


@network("graph convolution by a matrix", **_ONE)
def by_matrix() -> Made:
    return Then(lambda layer, net, x: net.a @ layer(x), a=nn.Parameter(torch.rand(B, B) / 2)), torch.randn(B, 3)


@network("graph convolution by index_add", in_dims=(0, None))
def by_index_add() -> Made:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h = torch.relu(self._mix(self.first(x), edges))
            return self._mix(self.second(h), edges)

        def _mix(self, h: Tensor, edges: Tensor) -> Tensor:
            return h.index_add(0, edges[1], h[edges[0]])

    return Graph(), (torch.randn(B, 3), torch.randint(B, (2, 12)))


@network("graph attention", in_dims=(0, None))
def graph_attention() -> Made:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.score, self.head = nn.Linear(3, 4), nn.Linear(8, 1), nn.Linear(4, 1)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            h = self.value(x)
            pairs = torch.cat([h[:, None].expand(-1, len(h), -1), h[None].expand(len(h), -1, -1)], -1)
            scores = self.score(pairs)[..., 0].masked_fill(~adjacency, -torch.inf)
            return self.head(torch.relu(scores.softmax(1) @ h))

    return Attention(), (torch.randn(B, 3), (torch.rand(B, B) < 0.4) | torch.eye(B, dtype=torch.bool))


@network("labeled nodes of a graph", in_dims=(None, None, 0))
def labeled_nodes() -> Made:
    net = Then(lambda layer, net, x, a, nodes: net.head((a @ torch.relu(layer(x)))[nodes]), head=nn.Linear(4, 1))
    return net, (torch.randn(12, 3), torch.rand(12, 12) / 4, torch.tensor([0, 3, 4, 7, 11]))


@network("attention over the batch", **_ONE)
def attention() -> Made:
    return Then(lambda layer, net, x: _attention(layer(x))), torch.randn(B, 3)


@network("a branch of attention that begins at zero", random=("l.weight",))
def zero_branch() -> Made:
    def function(layer: nn.Module, net: Then, x: Tensor) -> Tensor:
        h = layer(x)
        return h + net.alpha * _attention(h)

    return Then(function, alpha=nn.Parameter(torch.zeros(()))), torch.randn(B, 3)


@network("contrastive logits within the batch", in_dims=(0, 0))
def contrastive() -> Made:
    class Contrastive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return (self.one(one) @ self.other(other).T).log_softmax(1)

    return Contrastive(), (torch.randn(B, 3), torch.randn(B, 2))


@network("cumulative sum", **_ONE)
def cumulative() -> Made:
    return Then(lambda layer, net, x: layer(x).cumsum(0)), torch.randn(B, 3)


@network("minus the batch's detached mean", **_ONE)
def centered() -> Made:
    return Then(lambda layer, net, x: (lambda h: h - h.mean(0).detach())(layer(x))), torch.randn(B, 3)


@network("pairs i and i + N/2", **_ONE)
def pairs() -> Made:
    return Then(lambda layer, net, x: (lambda h: h - h.roll(len(h) // 2, 0))(layer(x))), torch.randn(B, 3)


@network("neighbors two rows away", **_ONE)
def neighbors() -> Made:
    return Then(lambda layer, net, x: (lambda h: h + h.roll(2, 0))(layer(x))), torch.randn(B, 3)


@network("neighbors 24 rows away", **_ONE)
def far_neighbors() -> Made:
    return Then(lambda layer, net, x: (lambda h: h if len(h) < 25 else h + h.roll(24, 0))(layer(x))), torch.randn(60, 3)


@network("rank in the batch", **_ONE)
def rank() -> Made:
    return Then(
        lambda layer, net, x: (lambda h: torch.cat([h, h.argsort(0).argsort(0).to(h)], 1))(layer(x))
    ), torch.randn(B, 3)


@network("a gate by the batch's sum", **_ONE)
def gate() -> Made:
    return Then(lambda layer, net, x: (lambda h: h * (h.sum() > 0))(layer(x))), torch.randn(B, 3)


@network("a series whose first axis is time", **_ONE)
def series() -> Made:
    return Then(lambda layer, net, x: net.rnn(layer(x))[0], rnn=nn.GRU(4, 4)), torch.randn(B, 3)


@network("a set transformer over the batch")
def set_transformer() -> Made:
    class Sets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.attention, self.leave = nn.Linear(3, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            return self.leave(h + self.attention(h, h, h, need_weights=False)[0])

    return Sets(), torch.randn(B, 3)
