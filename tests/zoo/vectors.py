"""Networks on vectors, sets and pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .entry import Made, Then, network

B = 10


@network("multilayer perceptron")
def mlp() -> Made:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(B, 3)


@network("perceptron with dropout, in training", training=True)
def dropout() -> Made:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)), torch.randn(B, 3)


@network("softmax within an example", random=("l.weight",))
def softmax() -> Made:
    return Then(lambda layer, net, x: layer(x).softmax(1)), torch.randn(B, 3)


@network("highway layers")
def highway() -> Made:
    class Highway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 1)
            self.value, self.gate = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            gate = self.gate(h).sigmoid()
            return self.leave(gate * self.value(h).relu() + (1 - gate) * h)

    return Highway(), torch.randn(B, 3)


@network("dense residual network")
def dense() -> Made:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3 + 4 * depth, 4) for depth in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.cat([x, torch.tanh(layer(x))], 1)
            return x

    return Dense(), torch.randn(B, 3)


@network("deep set")
def deep_set() -> Made:
    class DeepSet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phi = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4))
            self.rho = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

        def forward(self, sets: Tensor) -> Tensor:
            return self.rho(self.phi(sets).mean(1))

    return DeepSet(), torch.randn(B, 5, 2)


@network("deep set on packed rows", in_dims=(0, 0))
def packed_set() -> Made:
    class Packed(nn.Module):
        """Only the members that exist run through phi."""

        def __init__(self) -> None:
            super().__init__()
            self.phi, self.rho = nn.Linear(2, 4), nn.Linear(4, 1)

        def forward(self, sets: Tensor, present: Tensor) -> Tensor:
            pooled = sets.new_zeros(*present.shape, 4)
            pooled[present] = torch.tanh(self.phi(sets[present]))
            return self.rho(pooled.sum(1))

    present = torch.rand(B, 5) < 0.6
    present[:, 0] = True
    return Packed(), (torch.randn(B, 5, 2), present)


@network("Siamese network", in_dims=(0, 0))
def siamese() -> Made:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Sequential(nn.Linear(3, 6), nn.Tanh()), nn.Linear(6, 1)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.head((self.encoder(one) - self.encoder(other)).abs())

    return Siamese(), (torch.randn(B, 3), torch.randn(B, 3))


@network("two towers with embeddings", in_dims=(0, 0))
def towers() -> Made:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(7, 4), nn.Embedding(9, 4)
            self.user, self.item = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.user(self.users(user)) * self.item(self.items(item))).sum(1, keepdim=True)

    return Towers(), (torch.randint(7, (B,)), torch.randint(9, (B,)))


@network("bilinear layer", in_dims=(0, 0))
def bilinear() -> Made:
    return nn.Bilinear(3, 2, 2), (torch.randn(B, 3), torch.randn(B, 2))


@network("conditioned by feature-wise scales", in_dims=(0, 0))
def film() -> Made:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale, self.shift, self.head = (
                nn.Linear(3, 6),
                nn.Linear(2, 6),
                nn.Linear(2, 6),
                nn.Linear(6, 1),
            )

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.head(torch.relu(self.body(x) * self.scale(condition) + self.shift(condition)))

    return Conditioned(), (torch.randn(B, 3), torch.randn(B, 2))


@network("autoencoder with tied weights")
def tied() -> Made:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T)

    return Tied(), torch.randn(B, 4)


@network("a module held twice")
def held_twice() -> Made:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer), torch.randn(B, 3)


@network("hypernetwork, 3 examples")
def hypernetwork_3() -> Made:
    return _hypernetwork(3)


@network("hypernetwork, as many rows as examples")
def hypernetwork_4() -> Made:
    return _hypernetwork(4)


def _hypernetwork(count: int) -> Made:
    net = Then(
        lambda layer, net, x: F.linear(x, layer(net.codes)).sum(1, keepdim=True),
        nn.Linear(3, 5, bias=False),
        codes=nn.Parameter(torch.randn(4, 3)),
    )
    return net, torch.randn(count, 5)


@network("prototypes", random=("l.*",))
def prototypes() -> Made:
    net = Then(
        lambda layer, net, x: -torch.cdist(x, layer(net.codes)), nn.Linear(2, 3), codes=nn.Parameter(torch.randn(4, 2))
    )
    return net, torch.randn(B, 3)


@network("experts chosen by the input")
def experts() -> Made:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.head = nn.ModuleList([nn.Linear(3, 4) for _ in range(2)]), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            chosen = (x[:, 0] > 0).long()
            h = x.new_zeros(len(x), 4)
            for index, expert in enumerate(self.experts):
                rows = chosen == index
                h[rows] = torch.tanh(expert(x[rows]))
            return self.head(h)

    return Experts(), torch.randn(B, 3)


@network("mixture of experts")
def mixture() -> Made:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(3, 2), nn.ModuleList([nn.Linear(3, 1) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            shares = self.gate(x).softmax(1)
            return sum(shares[:, [k]] * expert(x) for k, expert in enumerate(self.experts))  # type: ignore[return-value]

    return Mixture(), torch.randn(B, 3)


@network("layers left out at random, in training", training=True)
def layer_drop() -> Made:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            if not self.training or torch.rand(()) < 0.5:
                h = h + torch.tanh(self.middle(h))
            return self.last(h)

    return LayerDrop(), torch.randn(B, 3)


@network("stochastic depth for each example, in training", training=True)
def stochastic_depth() -> Made:
    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            kept = torch.rand(len(x), 1) < 0.5 if self.training else 1.0
            return self.last(h + kept * torch.tanh(self.middle(h)))

    return Depth(), torch.randn(B, 3)


@network("mixup, in training", training=True)
def mixup() -> Made:
    net = Then(lambda layer, net, x: layer(x + 0.5 * x[torch.randperm(len(x))] if net.training else x))
    return net, torch.randn(B, 3)


@network("batch normalization in evaluation")
def batch_norm() -> Made:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)), torch.randn(B, 3)


@network("batch normalization in training", training=True, approximate="examples meet in the batch's statistics")
def batch_norm_training() -> Made:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)), torch.randn(B, 3)


@network("a norm of the weight beside it", random=("l.weight",))
def weight_norm() -> Made:
    return Then(lambda layer, net, x: layer(x) / layer.weight.detach().norm()), torch.randn(B, 3)


class _Around(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


@network("custom autograd function", random=("l.weight",))
def custom_function() -> Made:
    return Then(lambda layer, net, x: _Around.apply(x, layer.weight).tanh(), nn.Linear(3, 3, bias=False)), torch.randn(
        B, 3
    )


@network("torch.vmap inside")
def mapped() -> Made:
    return Then(lambda layer, net, x: torch.vmap(layer)(x)), torch.randn(B, 3)


@network("weights in plain products")
def products() -> Made:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(6, 2) / 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.first) @ self.second

    return Products(), torch.randn(B, 3)
