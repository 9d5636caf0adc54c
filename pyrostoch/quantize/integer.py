"""Layers and networks of integers: int8 weights, and states found by comparing sums with thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrostoch.layers.noise import NOISE_DISTRIBUTIONS
from pyrostoch.quantize.costs import LayerCost, NetworkCost

__all__ = ["IntegerLayer", "IntegerNetwork", "integer_steps"]

# Integers up to this one are exact in single precision.
_EXACT = 2**24


class IntegerLayer(nn.Module):
    """A linear or convolutional layer of int8 weights, followed by neurons with k states or giving scores.

    The sums of weights times inputs are integers. They are compared with thresholds, which include the effect of
    biases, scales and batch normalization. Torch has no integer convolution: the sums are computed in a floating point
    type in which all of them are exact.

    Args:
        weight: int8 weights, (out, ...).
        options: Stride, padding, dilation and groups of a convolution; `None` for a linear layer.
        pool: Max pooling of the sums before they are compared, or `None`.
        states: The states as int8, (k,), increasing; `None` for a layer that gives scores.
        sign: int8, (out,): -1 where a larger sum gives a lower state, else 1.
        thresholds: The thresholds of the signed sum between neighboring states, (k - 1, out).
        noise: Standard deviation of the noise on the signed sum, (out,).
        noise_distribution: Distribution of the noise: `"gaussian"`, `"logistic"`, `"uniform"` or `"laplace"`.
        scale: The factor that makes a score from a sum, (out,).
        bias: The term added to a score, (out,).
        largest: The largest absolute input, an integer; `None` for real inputs.
    """

    weight: Tensor
    sign: Tensor
    thresholds: Tensor
    rest: Tensor
    noise: Tensor
    kind: Tensor
    states: Tensor | None
    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        options: dict[str, Any] | None,
        *,
        pool: nn.Module | None = None,
        states: Tensor | None = None,
        sign: Tensor | None = None,
        thresholds: Tensor | None = None,
        noise: Tensor | None = None,
        noise_distribution: str = "gaussian",
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        largest: int | None = None,
    ) -> None:
        super().__init__()
        self.options, self.pool, self.noise_distribution, self.largest = options, pool, noise_distribution, largest
        self.register_buffer("weight", weight)
        self.register_buffer("states", states)
        self.register_buffer("sign", sign)
        floor = None if thresholds is None else thresholds.floor()
        # An integer exceeds a threshold if and only if it exceeds its floor; the rest matters only with noise.
        self.register_buffer("rest", None if thresholds is None or floor is None else (thresholds - floor).float())
        if floor is not None and largest is not None:
            limits = torch.iinfo(torch.int32)
            floor = floor.clamp(limits.min + 128, limits.max - 128).to(torch.int32)
        self.register_buffer("thresholds", floor if largest is not None else thresholds)
        self.register_buffer("noise", noise)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        # Saved too, so that loading can refuse thresholds that were made for other inputs or another noise.
        kind = torch.tensor(
            [list(NOISE_DISTRIBUTIONS).index(noise_distribution), -1 if largest is None else largest],
            device=weight.device,
        )
        self.register_buffer("kind", kind)
        self._choose_dtype()

    def _choose_dtype(self) -> None:
        """Choose the floating point type in which the sums with these weights are exact."""
        largest_sum = int(self.weight.long().abs().flatten(1).sum(1).max())
        exact = self.largest is not None and self.largest * largest_sum < _EXACT
        self.dtype = torch.float32 if exact else torch.float64

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(prefix + "kind")
        if given is not None and given.tolist() != self.kind.tolist():
            names = list(NOISE_DISTRIBUTIONS)
            theirs, mine = (
                (names[distribution], largest) for distribution, largest in (given.tolist(), self.kind.tolist())
            )
            raise ValueError(
                f"IntegerLayer {prefix}: the state dict is for {theirs[0]} noise and inputs up to {theirs[1]}, this "
                f"layer for {mine[0]} noise and inputs up to {mine[1]} (-1: real inputs)"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._choose_dtype()

    def forward(self, x: Tensor, draw: bool = False) -> Tensor:
        """States as int8, or scores in single precision.

        Args:
            x: Inputs: integers in any dtype, or real numbers for a first layer without `largest`.
            draw: Whether noise is added to the sums.
        """
        sums = self._sums(x.to(self.dtype), self.weight.to(self.dtype))
        sums = sums if self.pool is None else self.pool(sums)
        if self.states is None:
            return (self._by_output(self.scale, sums) * sums + self._by_output(self.bias, sums)).float()
        signed = sums * self._by_output(self.sign, sums)
        if draw:
            signed = signed + self._by_output(self.noise, sums) * NOISE_DISTRIBUTIONS[self.noise_distribution].draw(
                signed
            )
        states = self.states[0].expand(signed.shape)
        for index, (low, high) in enumerate(zip(self.states[:-1], self.states[1:], strict=True)):
            threshold = self._by_output(self.thresholds[index], sums)
            if draw and self.largest is not None:
                threshold = threshold + self._by_output(self.rest[index], sums)
            states = states + (high - low) * (signed > threshold)
        return states

    def near(self, x: Tensor, tolerance: float) -> Tensor:
        """Where a sum is so near to a threshold that rounding errors decide the state.

        Args:
            x: Inputs.
            tolerance: The rounding error of a sum, relative to the sum of the absolute values of its terms.

        Returns:
            A boolean tensor in the shape of the states.
        """
        x, weight = x.double(), self.weight.double()
        sums, sizes = self._sums(x, weight), self._sums(x.abs(), weight.abs())
        if self.pool is not None:
            sums, sizes = self.pool(sums), self.pool(sizes)
        signed = sums * self._by_output(self.sign, sums).double()
        near = torch.zeros_like(signed, dtype=torch.bool)
        for floor, rest in zip(self.thresholds, self.rest, strict=True):
            exact = floor.double() + (rest.double() if self.largest is not None else 0.0)
            threshold = self._by_output(exact, sums).double()
            near |= (signed - threshold).abs() <= tolerance * (sizes + threshold.abs()) + 1e-9
        return near

    def cost(self, name: str, x: Tensor) -> LayerCost:
        """The layer's cost for one example.

        Args:
            name: Name of the layer.
            x: The layer's inputs for some examples, over which active additions are averaged.
        """
        nonzero = (self.weight != 0).double()
        active = self._sums((x != 0).double(), nonzero)
        possible = self._sums(torch.ones_like(x, dtype=torch.float64)[:1], nonzero)
        levels = len(self.weight.unique())
        outputs = active if self.pool is None else self.pool(active)
        only_signs = int(self.weight.abs().max()) <= 1 or (self.largest is not None and self.largest <= 1)
        additions = int(possible.sum())
        scores = outputs[0].numel() if self.states is None else 0
        return LayerCost(
            name=name,
            weights=self.weight.numel(),
            weight_bits=self.weight.numel() * max(1, math.ceil(math.log2(levels))),
            float_bits=self.weight.numel() * 32,
            additions=additions,
            active=float(active.sum()) / len(x),
            multiplications=scores if only_signs else scores + additions,
            comparisons=0 if self.states is None else outputs[0].numel() * (len(self.states) - 1),
        )

    def _sums(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.options is None:
            flat = x.flatten(1)
            if flat.shape[1] != weight.shape[1]:
                raise ValueError(
                    f"IntegerLayer: expected {weight.shape[1]} values per example, got inputs of shape {tuple(x.shape)}"
                )
            return F.linear(flat, weight)
        return F.conv2d(x, weight, **self.options)

    def _by_output(self, value: Tensor, sums: Tensor) -> Tensor:
        """Values, one for each output or one for all, reshaped to broadcast with the sums."""
        return value.to(self.dtype).reshape(-1, *[1] * (sums.dim() - 2)) if value.dim() else value.to(self.dtype)

    def extra_repr(self) -> str:
        """Kind, shape of the weights, and states."""
        kind = "linear" if self.options is None else "convolution"
        ends = "scores" if self.states is None else f"states {self.states.tolist()}"
        return f"{kind}, weights {tuple(self.weight.shape)}, {ends}"


class IntegerNetwork(nn.Module):
    """Layers of integers that run one after the other.

    `export_integer` makes it. It can load the state dict of another export of the same architecture.

    Args:
        layers: The layers by the names they had in the original network; the last one gives scores.
        input_step: A step of which all inputs are integer multiples; `None` for real inputs.

    Attributes:
        ties: Number of states in the comparison by `export_integer` that differ from the network's, since the sum
            equals a threshold up to rounding.
    """

    step: Tensor

    def __init__(self, layers: dict[str, IntegerLayer], input_step: float | None) -> None:
        super().__init__()
        # A slash in front, since the name of a module may not be that of a method; dots are not allowed either.
        self.layers = nn.ModuleDict({"/" + name.replace(".", "/"): layer for name, layer in layers.items()})
        self.input_step = input_step
        # Saved too, so that loading can refuse thresholds that were made for other inputs.
        self.register_buffer("step", torch.tensor(math.nan if input_step is None else input_step, dtype=torch.float64))
        self.ties = 0

    def forward(self, x: Tensor, draw: bool = False) -> Tensor:
        """Scores, (batch, ...).

        Args:
            x: Inputs as for the original network.
            draw: Whether the neurons' states are random as in the original network; by default there is no noise.
        """
        *_, (_, _, _, scores) = self._run(x, draw)
        return scores

    def states(self, x: Tensor) -> dict[str, Tensor]:
        """The noise-free states of each layer of neurons, int8, by the name of its linear layer or convolution.

        Args:
            x: Inputs as for the original network.
        """
        return {name: states for name, layer, _, states in self._run(x, False) if layer.states is not None}

    def costs(self, x: Tensor) -> NetworkCost:
        """Bits and operations of each layer for one example.

        Args:
            x: Examples, over which active additions are averaged.

        Raises:
            ValueError: There are no examples.
        """
        if len(x) == 0:
            raise ValueError("IntegerNetwork.costs: expected examples to count active additions on, got none")
        return NetworkCost(tuple(layer.cost(name, inputs) for name, layer, inputs, _ in self._run(x, False)))

    def _run(self, x: Tensor, draw: bool) -> Iterator[tuple[str, IntegerLayer, Tensor, Tensor]]:
        """Run the layers, and yield the name of each, the layer, its inputs and its outputs."""
        inputs = self.to_steps(x)
        for name, layer in self.named_layers():
            outputs = layer(inputs, draw)
            yield name, layer, inputs, outputs
            inputs = outputs

    def named_layers(self) -> Iterator[tuple[str, IntegerLayer]]:
        """The layers with their names in the original network."""
        for name, layer in self.layers.items():
            yield name[1:].replace("/", "."), layer  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(prefix + "step")
        if given is not None and not torch.equal(given.nan_to_num(-1.0).cpu(), self.step.nan_to_num(-1.0).cpu()):
            raise ValueError(
                f"IntegerNetwork: the state dict is for inputs in steps of {float(given):g}, this network for steps of "
                f"{float(self.step):g} (nan: real inputs)"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def to_steps(self, x: Tensor) -> Tensor:
        """Convert inputs for the first layer: to integer numbers of steps, or unchanged if there is no `input_step`.

        Args:
            x: Inputs as for the original network.

        Raises:
            ValueError: An input is not an integer multiple of the step, or is larger than the export allows.
        """
        if self.input_step is None:
            return x
        steps = integer_steps(x, self.input_step)
        largest: Any = next(iter(self.named_layers()))[1].largest
        if bool((steps.abs() > largest).any()):
            raise ValueError(
                f"IntegerNetwork: expected inputs of at most {largest} steps of {self.input_step:g}, as at export, got "
                f"{float(x.abs().max()):g}"
            )
        return steps


def integer_steps(x: Tensor, step: float) -> Tensor:
    """Inputs as integer numbers of steps, in double precision.

    Args:
        x: Inputs.
        step: The step.

    Raises:
        ValueError: An input is not an integer multiple of the step.
    """
    steps = x.double() / step
    nearest = steps.round()
    tolerance = 4.0 * torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    if bool(((steps - nearest).abs() > 1e-6 + tolerance * nearest.abs()).any()):
        raise ValueError(f"integers: the inputs are not integer multiples of input_step={step:g}")
    return nearest
