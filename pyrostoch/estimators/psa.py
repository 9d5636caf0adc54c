"""Path sample, analytic: a sampled path, and exact differences for what another state of each neuron would change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.estimators.states import Loss, States, check_apart, values_of
from pyrostoch.layers import KState

__all__ = ["path_sample_analytic"]


class _Path(States):
    """States drawn and kept, with each layer and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[KState] = []
        self.inputs: list[Tensor] = []
        self.index: list[Tensor] = []

    def states(self, layer: KState, x: Tensor) -> Tensor:
        probabilities = layer.probabilities(x.detach()).reshape(len(x), -1, len(layer.states))
        index = torch.distributions.Categorical(probabilities).sample()
        self.layers.append(layer)
        self.inputs.append(x)
        self.index.append(index)
        return values_of(layer, index, x)


class _Pushed(States):
    """States that are zero, but in one layer, where they are given; keeps what the next layer is given."""

    def __init__(self, depth: int, given: Tensor) -> None:
        super().__init__()
        self.at, self.given = depth, given
        self.next: Tensor | None = None

    def states(self, layer: KState, x: Tensor) -> Tensor:
        if self.depth == self.at + 1:
            self.next = x
        return self.given.reshape(-1, *x.shape[1:]) if self.depth == self.at else torch.zeros_like(x)


def path_sample_analytic(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    r"""A surrogate whose gradient takes exact differences along a sampled path.

    With $V_i(s)$ what it changes when neuron i is in state s and not in the one it was drawn in,

    $$ V_i(s) = L(h_i \to s) - L(h) \text{ in the last layer}, \qquad
    V_i(s) = \sum_j \sum_t \bigl(P_j(t \mid h_i \to s) - P_j(t \mid h)\bigr)\,V_j(t) \text{ before it}, $$

    the gradient is $\sum_i \sum_s V_i(s)\,\nabla P_i(s)$. It is unbiased for one layer; with more, changes of several
    neurons at once are taken as the sum of their changes, a small bias for a small variance. Memory grows with the
    product of the sizes of neighboring layers.

    Args:
        net: A network with nothing but affine operations behind each layer of neurons.
        x: Inputs, (B, ...).
        loss: Loss of each example.
        samples: Paths that are averaged.

    Returns:
        The mean loss, with this gradient.

    Raises:
        ValueError: What lies between two layers is not affine.

    References:
        Shekhovtsov, Yanush, Flach, "Path sample-analytic gradient estimators for stochastic binary networks", 2020.
    """
    check_apart(net, "path-sample-analytic")
    total: Tensor | float = 0.0
    for _ in range(samples):
        with _Path() as path:
            out = net(x)
        losses = loss(out)
        whole = losses.mean()
        with torch.no_grad():
            gains = _gains(net, x, path, out, loss, losses)
        for layer, given, gain in zip(path.layers, path.inputs, gains, strict=True):
            probabilities = layer.probabilities(given).reshape(gain.shape)
            part = (gain * probabilities).sum((1, 2)).mean()
            whole = whole + part - part.detach()
        total = total + whole / samples
    return torch.as_tensor(total)


def _gains(net: nn.Module, x: Tensor, path: _Path, out: Tensor, loss: Loss, losses: Tensor) -> list[Tensor]:
    """What each state of each neuron would change, (B, n, k) by layer."""
    found: list[Tensor] = []
    for depth in reversed(range(len(path.layers))):
        layer, index = path.layers[depth], path.index[depth]
        slopes = _matrix(net, x, depth, path.inputs[depth])  # (n, m)
        values = torch.tensor(layer.states, dtype=out.dtype, device=out.device)
        last = depth == len(path.layers) - 1
        columns = []
        for value in values:
            change = (value - values[index]).unsqueeze(-1) * slopes  # (B, n, m): what the next layer is given more
            if last:
                moved = out.unsqueeze(1) + change.reshape(*change.shape[:2], *out.shape[1:])
                columns.append(torch.vmap(loss, in_dims=1, out_dims=1)(moved) - losses.unsqueeze(1))
            else:
                columns.append(_passed_on(path.layers[depth + 1], path.inputs[depth + 1], change, found[0]))
        found.insert(0, torch.stack(columns, dim=-1))
    return found


def _passed_on(layer: KState, given: Tensor, change: Tensor, gain: Tensor) -> Tensor:
    """What changes of a layer's input change, neuron by neuron: (B, n, m) by the layer's gains (B, m, k) to (B, n)."""
    moved = (given.flatten(1).unsqueeze(1) + change).flatten(0, 1).reshape(-1, *given.shape[1:])
    before = layer.probabilities(given).reshape(gain.shape)
    after = layer.probabilities(moved).reshape(*change.shape, -1)
    return ((after - before.unsqueeze(1)) * gain.unsqueeze(1)).sum((2, 3))


def _matrix(net: nn.Module, x: Tensor, depth: int, given: Tensor) -> Tensor:
    """The affine map from a layer's states to the next layer's input, or the output: (n, m), from unit vectors."""
    count = given[0].numel()
    eye = torch.eye(count, dtype=given.dtype, device=given.device)
    probes = torch.cat([eye, torch.zeros_like(eye[:1]), torch.ones_like(eye[:1])])
    with _Pushed(depth, probes) as pushed:
        out: Any = net(x[:1].expand(len(probes), *x.shape[1:]))
    found = (out if pushed.next is None else pushed.next).flatten(1)
    slopes = found[:-2] - found[-2]
    if not torch.allclose(slopes.sum(0), found[-1] - found[-2], rtol=1e-3, atol=1e-4 * found.abs().max().item()):
        raise ValueError(
            f"estimator 'path-sample-analytic': what follows layer {depth + 1} of the neurons is not affine; leave "
            "nothing but linear layers and batch normalization there"
        )
    return slopes
