"""Path sample-analytic: a sampled path, and exact differences of the loss for other states of each neuron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrostoch._manual import see
from pyrostoch.estimators.states import Loss, States, check_examples_independent, values_of
from pyrostoch.layers import KState

__all__ = ["path_sample_analytic"]


class _Path(States):
    """Draws the states and records them, with each layer and its input."""

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


class _GivenStates(States):
    """Sets the states of one layer to given values and all others to zero; records the next layer's input."""

    def __init__(self, depth: int, values: Tensor) -> None:
        super().__init__()
        self.at, self.values = depth, values
        self.next_input: Tensor | None = None

    def states(self, layer: KState, x: Tensor) -> Tensor:
        if self.depth == self.at + 1:
            self.next_input = x
        return self.values.reshape(-1, *x.shape[1:]) if self.depth == self.at else torch.zeros_like(x)


def path_sample_analytic(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    r"""A surrogate loss whose gradient consists of exact differences along a sampled path.

    Let $V_i(s)$ be the change of the loss if neuron i is in state s instead of the drawn one:

    $$ V_i(s) = L(h_i \to s) - L(h) \text{ in the last layer}, \qquad
    V_i(s) = \sum_j \sum_t \bigl(P_j(t \mid h_i \to s) - P_j(t \mid h)\bigr)\,V_j(t) \text{ before it}, $$

    The gradient is $\sum_i \sum_s V_i(s)\,\nabla P_i(s)$. It is unbiased for one layer of neurons. With more layers,
    the change by several neurons at once is taken as the sum of their changes, which trades a small bias for a small
    variance. Memory grows with the product of the sizes of neighboring layers.

    Args:
        net: A network with only affine operations after each layer of neurons.
        x: Inputs, (B, ...).
        loss: Loss of each example.
        samples: Number of paths that are averaged.

    Returns:
        The mean loss, a scalar whose backward pass gives this gradient.

    Raises:
        ValueError: The operations after a layer of neurons are not affine.

    References:
        Shekhovtsov, Yanush, Flach, "Path sample-analytic gradient estimators for stochastic binary networks", 2020.
    """
    check_examples_independent(net, "path-sample-analytic")
    total: Tensor | float = 0.0
    for _ in range(samples):
        with _Path() as path:
            out = net(x)
        losses = loss(out)
        value = losses.mean()
        with torch.no_grad():
            changes = _loss_changes(net, x, path, out, loss, losses)
        for layer, layer_input, change in zip(path.layers, path.inputs, changes, strict=True):
            probabilities = layer.probabilities(layer_input).reshape(change.shape)
            term = (change * probabilities).sum((1, 2)).mean()
            value = value + term - term.detach()
        total = total + value / samples
    return torch.as_tensor(total)


def _loss_changes(net: nn.Module, x: Tensor, path: _Path, out: Tensor, loss: Loss, losses: Tensor) -> list[Tensor]:
    """V: the change of the loss for each state of each neuron, (B, n, k) by layer."""
    changes: list[Tensor] = []
    for depth in reversed(range(len(path.layers))):
        layer, index = path.layers[depth], path.index[depth]
        matrix = _linear_map(net, x, depth, path.inputs[depth])  # (n, m)
        values = torch.tensor(layer.states, dtype=out.dtype, device=out.device)
        last = depth == len(path.layers) - 1
        columns = []
        for value in values:
            shift = (value - values[index]).unsqueeze(-1) * matrix  # (B, n, m): change of the next layer's input
            if last:
                shifted = out.unsqueeze(1) + shift.reshape(*shift.shape[:2], *out.shape[1:])
                columns.append(torch.vmap(loss, in_dims=1, out_dims=1)(shifted) - losses.unsqueeze(1))
            else:
                columns.append(_through_layer(path.layers[depth + 1], path.inputs[depth + 1], shift, changes[0]))
        changes.insert(0, torch.stack(columns, dim=-1))
    return changes


def _through_layer(layer: KState, x: Tensor, shift: Tensor, change: Tensor) -> Tensor:
    """The change of the loss if the input of a layer of neurons is shifted.

    Args:
        layer: The layer.
        x: Its input, (B, ...), m neurons.
        shift: One shift of the input for each of the n neurons before it, (B, n, m).
        change: The layer's V, (B, m, k).

    Returns:
        (B, n).
    """
    shifted = (x.flatten(1).unsqueeze(1) + shift).flatten(0, 1).reshape(-1, *x.shape[1:])
    before = layer.probabilities(x).reshape(change.shape)
    after = layer.probabilities(shifted).reshape(*shift.shape, -1)
    return ((after - before.unsqueeze(1)) * change.unsqueeze(1)).sum((2, 3))


def _linear_map(net: nn.Module, x: Tensor, depth: int, layer_input: Tensor) -> Tensor:
    """The matrix, (n, m), of the affine map from a layer's states to the next layer's input, or to the output.

    It is read off by running the network on unit vectors, zero, and ones in place of the states.
    """
    count = layer_input[0].numel()
    eye = torch.eye(count, dtype=layer_input.dtype, device=layer_input.device)
    probes = torch.cat([eye, torch.zeros_like(eye[:1]), torch.ones_like(eye[:1])])
    with _GivenStates(depth, probes) as given:
        out: Tensor = net(x[:1].expand(len(probes), *x.shape[1:]))
    images = (out if given.next_input is None else given.next_input).flatten(1)
    matrix = images[:-2] - images[-2]
    if not torch.allclose(matrix.sum(0), images[-1] - images[-2], rtol=1e-3, atol=1e-4 * images.abs().max().item()):
        raise ValueError(
            f"estimator 'path-sample-analytic': the operations after layer {depth + 1} of the neurons are not affine; "
            "use only linear layers and batch normalization there"
            f"{see('how-to/discrete_networks')}"
        )
    return matrix
