"""Layers and networks of integers: int8 weights, sums compared with thresholds, states handed on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrostoch.layers.noise import NOISE_DISTRIBUTIONS
from pyrostoch.quantize.costs import LayerCost, NetworkCost

__all__ = ["IntegerLayer", "IntegerNetwork", "whole_steps"]

# Whole numbers up to here are exact in single precision.
_EXACT = 2**24


class IntegerLayer(nn.Module):
    """A linear or convolutional layer of int8 weights, and the neurons with states that stand behind it.

    The sums of weights times inputs, whole numbers, are compared with thresholds, into which biases, scales and batch
    normalization have gone. Torch has no integer convolution: the whole numbers are carried in floating point, where
    all of them are exact.

    Args:
        weight: int8 weights, (out, ...).
        options: Stride, padding, dilation and groups of a convolution; none for a linear layer.
        pool: A maximum over sums before they are compared.
        states: States, whole numbers, int8; none for a layer of scores.
        sign: int8, -1 where a larger sum is a lower state, (out,).
        thresholds: Where the signed sum passes to the next state, (k - 1, out).
        noise: Deviation of the noise on the signed sum, (out,).
        noise_distribution: Distribution of the noise.
        scale: What a sum is multiplied with for a score.
        bias: What is added to a score, (out,).
        largest: The largest absolute whole number that comes in; none for real inputs.
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
        whole = None if thresholds is None else thresholds.floor()
        # A whole sum is above a threshold where it is above its whole part; the rest matters to noisy sums only.
        self.register_buffer("rest", None if thresholds is None or whole is None else (thresholds - whole).float())
        if whole is not None and largest is not None:
            limits = torch.iinfo(torch.int32)
            whole = whole.clamp(limits.min + 128, limits.max - 128).to(torch.int32)
        self.register_buffer("thresholds", whole if largest is not None else thresholds)
        self.register_buffer("noise", noise)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        # In the state dict too, so that thresholds do not come to inputs or noise that they were not made for.
        kind = torch.tensor(
            [list(NOISE_DISTRIBUTIONS).index(noise_distribution), -1 if largest is None else largest],
            device=weight.device,
        )
        self.register_buffer("kind", kind)
        self._choose_dtype()

    def _choose_dtype(self) -> None:
        """The precision in which the sums of these weights are exact."""
        most = int(self.weight.long().abs().flatten(1).sum(1).max())
        exact = self.largest is not None and self.largest * most < _EXACT
        self.dtype = torch.float32 if exact else torch.float64

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(prefix + "kind")
        if given is not None and given.tolist() != self.kind.tolist():
            names = list(NOISE_DISTRIBUTIONS)
            theirs, mine = (
                (names[distribution], largest) for distribution, largest in (given.tolist(), self.kind.tolist())
            )
            raise ValueError(
                f"IntegerLayer {prefix}: the state dict is of {theirs[0]} noise and inputs up to {theirs[1]}, this "
                f"layer of {mine[0]} noise and inputs up to {mine[1]} (-1: real inputs)"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._choose_dtype()

    def forward(self, x: Tensor, draw: bool = False) -> Tensor:
        """States as int8, or scores in single precision.

        Args:
            x: Inputs: whole numbers in any dtype, or real ones for a first layer that takes them.
            draw: Whether noise is added.
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
        found = self.states[0].expand(signed.shape)
        for index, (low, high) in enumerate(zip(self.states[:-1], self.states[1:], strict=True)):
            at = self._by_output(self.thresholds[index], sums)
            if draw and self.largest is not None:
                at = at + self._by_output(self.rest[index], sums)
            found = found + (high - low) * (signed > at)
        return found

    def near(self, x: Tensor, share: float) -> Tensor:
        """Where a sum is so near to a threshold that rounding of its parts decides.

        Args:
            x: Inputs.
            share: Rounding, as a share of the sum of the parts' sizes.
        """
        x, weight = x.double(), self.weight.double()
        sums, sizes = self._sums(x, weight), self._sums(x.abs(), weight.abs())
        if self.pool is not None:
            sums, sizes = self.pool(sums), self.pool(sizes)
        signed = sums * self._by_output(self.sign, sums).double()
        found = torch.zeros_like(signed, dtype=torch.bool)
        for whole, rest in zip(self.thresholds, self.rest, strict=True):
            at = self._by_output(whole.double() + (rest.double() if self.largest is not None else 0.0), sums).double()
            found |= (signed - at).abs() <= share * (sizes + at.abs()) + 1e-9
        return found

    def cost(self, name: str, x: Tensor) -> LayerCost:
        """What one example takes.

        Args:
            name: Name of the layer.
            x: Its inputs for some examples.
        """
        there = self._sums((x != 0).double(), (self.weight != 0).double())
        every = self._sums(torch.ones_like(x, dtype=torch.float64)[:1], (self.weight != 0).double())
        levels = len(self.weight.unique())
        outputs = there if self.pool is None else self.pool(there)
        signs = int(self.weight.abs().max()) <= 1 or (self.largest is not None and self.largest <= 1)
        additions = int(every.sum())
        scores = outputs[0].numel() if self.states is None else 0
        return LayerCost(
            name=name,
            weights=self.weight.numel(),
            weight_bits=self.weight.numel() * max(1, math.ceil(math.log2(levels))),
            float_bits=self.weight.numel() * 32,
            additions=additions,
            active=float(there.sum()) / len(x),
            multiplications=scores if signs else scores + additions,
            comparisons=0 if self.states is None else outputs[0].numel() * (len(self.states) - 1),
        )

    def _sums(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.options is None:
            flat = x.flatten(1)
            if flat.shape[1] != weight.shape[1]:
                raise ValueError(
                    f"IntegerLayer: expected {weight.shape[1]} values an example, got inputs of shape {tuple(x.shape)}"
                )
            return F.linear(flat, weight)
        return F.conv2d(x, weight, **self.options)

    def _by_output(self, value: Tensor, sums: Tensor) -> Tensor:
        """A value for each output, in the shape of sums."""
        return value.to(self.dtype).reshape(-1, *[1] * (sums.dim() - 2)) if value.dim() else value.to(self.dtype)

    def extra_repr(self) -> str:
        """What it holds."""
        kind = "linear" if self.options is None else "convolution"
        ends = "scores" if self.states is None else f"states {self.states.tolist()}"
        return f"{kind}, weights {tuple(self.weight.shape)}, {ends}"


class IntegerNetwork(nn.Module):
    """Layers of integers, one behind the other; made by `export_integer`, loaded from the state dict of another export.

    Args:
        layers: The layers by name; the last one gives scores.
        input_step: The inputs are whole multiples of it; none where they are real.
    """

    step: Tensor

    def __init__(self, layers: dict[str, IntegerLayer], input_step: float | None) -> None:
        super().__init__()
        # With a slash in front, since a module's name may not be that of a method.
        self.layers = nn.ModuleDict({"/" + name.replace(".", "/"): layer for name, layer in layers.items()})
        self.input_step = input_step
        # In the state dict too, so that weights do not come to thresholds that were meant for other inputs.
        self.register_buffer("step", torch.tensor(math.nan if input_step is None else input_step, dtype=torch.float64))
        #: States of the examples that the network was checked on which were on a threshold but for rounding.
        self.ties = 0

    def forward(self, x: Tensor, draw: bool = False) -> Tensor:
        """Scores, (batch, ...).

        Args:
            x: Inputs as the original network takes them.
            draw: Whether the neurons are drawn, as the original ones are; by default they are run without noise.
        """
        *_, (_, _, _, scores) = self._run(x, draw)
        return scores

    def states(self, x: Tensor) -> dict[str, Tensor]:
        """The states of each layer of neurons without noise, int8, by the name of its linear layer.

        Args:
            x: Inputs.
        """
        return {name: made for name, layer, _, made in self._run(x, False) if layer.states is not None}

    def costs(self, x: Tensor) -> NetworkCost:
        """Bits and operations of each layer for one example.

        Args:
            x: Examples, over which active additions are averaged.

        Raises:
            ValueError: There are none.
        """
        if len(x) == 0:
            raise ValueError("IntegerNetwork.costs: expected examples to count active additions on, got none")
        return NetworkCost(tuple(layer.cost(name, given) for name, layer, given, _ in self._run(x, False)))

    def _run(self, x: Tensor, draw: bool) -> Iterator[tuple[str, IntegerLayer, Tensor, Tensor]]:
        """Each layer with its name, what comes into it and what it makes of it."""
        h = self.whole(x)
        for name, layer in self.named_layers():
            made = layer(h, draw)
            yield name, layer, h, made
            h = made

    def named_layers(self) -> Iterator[tuple[str, IntegerLayer]]:
        """The layers by their names in the original network."""
        for name, layer in self.layers.items():
            yield name[1:].replace("/", "."), layer  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(prefix + "step")
        if given is not None and not torch.equal(given.nan_to_num(-1.0).cpu(), self.step.nan_to_num(-1.0).cpu()):
            raise ValueError(
                f"IntegerNetwork: the state dict is of inputs in steps of {float(given):g}, this network of "
                f"{float(self.step):g} (nan: real inputs)"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def whole(self, x: Tensor) -> Tensor:
        """Inputs as the first layer takes them: whole numbers of steps, or as they are.

        Args:
            x: Inputs.

        Raises:
            ValueError: They are no whole multiples of the step, or larger than sums were planned for.
        """
        if self.input_step is None:
            return x
        whole = whole_steps(x, self.input_step)
        largest: Any = next(iter(self.named_layers()))[1].largest
        if bool((whole.abs() > largest).any()):
            raise ValueError(
                f"IntegerNetwork: expected inputs of at most {largest} steps of {self.input_step:g}, as those of the "
                f"export, got {float(x.abs().max()):g}"
            )
        return whole


def whole_steps(x: Tensor, step: float) -> Tensor:
    """Inputs as whole numbers of steps, in double precision.

    Args:
        x: Inputs.
        step: The step.

    Raises:
        ValueError: They are no whole multiples of it.
    """
    steps = x.double() / step
    whole = steps.round()
    digit = 4.0 * torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    if bool(((steps - whole).abs() > 1e-6 + digit * whole.abs()).any()):
        raise ValueError(f"integers: the inputs are no whole multiples of input_step={step:g}")
    return whole
