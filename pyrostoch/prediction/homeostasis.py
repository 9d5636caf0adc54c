"""Homeostasis: neurons that restore their own statistics when the noise around them changes, without labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count, check_positive
from pyrostoch._seeds import forked
from pyrostoch.layers import KState, ThresholdNeuron
from pyrostoch.prediction.readouts import evaluating

__all__ = ["Homeostasis", "NeuronStatistics", "noise_scaled"]


@dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """Statistics of each neuron, or channel, of a layer over many inputs.

    Args:
        rate: Mean of its state.
        variance: Variance across inputs of its mean state, which tells how strongly it follows its input. The variance
            of a binary draw is r (1 - r) whatever the input, so this is estimated as the covariance of two independent
            draws for each input.
    """

    rate: Tensor
    variance: Tensor


class Homeostasis:
    r"""A local learning rule for the gain and the bias of every binary neuron.

    With a running mean $\bar r$ of a neuron's state, and a running variance $v$ across inputs of its rate,

    $$ b \leftarrow b - \eta_b\,(\bar r - r^*), \qquad \log g \leftarrow \log g + \eta_g\,(v^* - v). $$

    Stronger noise flattens a neuron's transfer function; the bias alone restores the mean rate but not the slope. The
    rule uses neither labels, nor weights, nor other neurons' states, and changes no weights.

    Args:
        net: A network with `ThresholdNeuron` layers.
        rate: Target $r^*$ of all neurons; by default `calibrate` measures the target of each.
        variance: Target $v^*$ of all neurons; by default `calibrate` measures the target of each.
        learning_rate: $\eta_b$ in units of a neuron's noise, and $\eta_g$; both fall linearly to 0 over a call of
            `adapt`. With $\eta_g = 0$ only the bias adapts.
        momentum: Weight of the past in the running statistics.

    Attributes:
        targets: The targets by layer name.

    Raises:
        ValueError: The network has no such layer, or a setting is out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(20, 30), ThresholdNeuron(0.5), nn.Linear(30, 2))
        >>> x = torch.randn(500, 20)
        >>> homeostasis = Homeostasis(net)
        >>> homeostasis.calibrate(x, seed=0)
        >>> with noise_scaled(net, 3.0):
        ...     before = homeostasis.distance(x, seed=0)
        ...     homeostasis.adapt(x, epochs=30, seed=0)
        ...     after = homeostasis.distance(x, seed=0)
        >>> after < 0.5 * before
        True

    References:
        Rule, "Training stochastic neural networks", 2019 (note); Marder, Prinz, "Modeling stability in neuron and
        network function: the role of activity in homeostasis", 2002; O'Leary, Marder, "Temperature-robust neural
        function from activity-dependent ion channel regulation", 2016.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        rate: float | None = None,
        variance: float | None = None,
        learning_rate: tuple[float, float] = (1.0, 10.0),
        momentum: float = 0.5,
    ) -> None:
        self.net = net
        self.neurons = {name: part for name, part in net.named_modules() if isinstance(part, ThresholdNeuron)}
        if not self.neurons:
            raise ValueError(f"Homeostasis: {type(net).__name__} has no ThresholdNeuron layer to regulate")
        if rate is not None and not 0.0 < rate < 1.0:
            raise ValueError(f"Homeostasis rate: expected a mean state between 0 and 1, got {rate!r}")
        if variance is not None and not 0.0 < variance < 0.25:
            raise ValueError(f"Homeostasis variance: expected a variance between 0 and 0.25, got {variance!r}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(
                f"Homeostasis momentum: expected a weight from 0 up to but not including 1, got {momentum!r}"
            )
        self.rate, self.variance, self.learning_rate, self.momentum = rate, variance, learning_rate, momentum
        self.targets: dict[str, NeuronStatistics] = {}

    def calibrate(self, x: Tensor, *, repeats: int = 4, batch_size: int = 1000, seed: int | None = None) -> None:
        """Take the neurons' present statistics as their targets, where no target was given.

        Args:
            x: Inputs, without labels.
            repeats: Number of pairs of draws for each input.
            batch_size: Number of examples that run at a time.
            seed: Seed of the draws, with which torch's random state is restored afterwards; without it, draws continue
                from the present random state.
        """
        for name, found in self.statistics(x, repeats=repeats, batch_size=batch_size, seed=seed).items():
            rate = found.rate if self.rate is None else torch.full_like(found.rate, self.rate)
            variance = found.variance if self.variance is None else torch.full_like(found.variance, self.variance)
            self.targets[name] = NeuronStatistics(rate, variance)

    def statistics(
        self, x: Tensor, *, repeats: int = 4, batch_size: int = 1000, seed: int | None = None
    ) -> dict[str, NeuronStatistics]:
        """The neurons' statistics over some inputs, by layer name.

        Args:
            x: Inputs.
            repeats: As in `calibrate`.
            batch_size: As in `calibrate`.
            seed: As in `calibrate`.
        """
        check_count("Homeostasis repeats", repeats)
        sums: dict[str, list[Tensor]] = {}
        with self._evaluating(x, seed):
            for _ in range(repeats):
                for part in x.split(batch_size):
                    for name, pair in self._draw_pairs(part).items():
                        one, other = (states.double() for states in pair)
                        terms = [(one * other).sum(1), one.sum(1), other.sum(1)]
                        terms.append(torch.full_like(terms[0], one.shape[1]))
                        past = sums.get(name)
                        sums[name] = terms if past is None else [a + b for a, b in zip(past, terms, strict=True)]
        result = {}
        for name, (product, one, other, count) in sums.items():
            variance = (product / count - one * other / count.square()).clamp_min(0.0)
            result[name] = NeuronStatistics(((one + other) / (2.0 * count)).float(), variance.float())
        return result

    def distance(self, x: Tensor, *, repeats: int = 4, batch_size: int = 1000, seed: int | None = None) -> float:
        """Root mean squared distance from the targets of all rates and their standard deviations across inputs.

        Args:
            x: Inputs.
            repeats: As in `calibrate`.
            batch_size: As in `calibrate`.
            seed: As in `calibrate`.
        """
        self._check_calibrated()
        present = self.statistics(x, repeats=repeats, batch_size=batch_size, seed=seed)
        squares = [
            torch.cat([found.rate - target.rate, found.variance.sqrt() - target.variance.sqrt()]).square()
            for found, target in ((present[name], self.targets[name]) for name in self.targets)
        ]
        return torch.cat(squares).mean().sqrt().item()

    def adapt(self, x: Tensor, *, epochs: int = 10, batch_size: int = 200, seed: int | None = None) -> None:
        """Adapt the gain and the bias of every neuron, batch by batch.

        Args:
            x: Inputs under the new conditions, without labels.
            epochs: Number of passes over them.
            batch_size: Number of examples for one update.
            seed: As in `calibrate`.

        Raises:
            ValueError: `calibrate` has not been called.
        """
        self._check_calibrated()
        check_count("Homeostasis epochs", epochs)
        running: dict[str, tuple[Tensor, Tensor]] = {}
        steps = epochs * len(x.split(batch_size))
        step = 0
        with self._evaluating(x, seed):
            for _ in range(epochs):
                for index in torch.randperm(len(x)).to(x.device).split(batch_size):
                    decay = 1.0 - step / steps
                    for name, pair in self._draw_pairs(x[index]).items():
                        running[name] = self._update(name, pair, running.get(name), decay)
                    step += 1

    def oracle(self, factor: float) -> None:
        r"""Set the exact solution for threshold units: scale weights and thresholds as the noise, by $\sigma'/\sigma$.

        Args:
            factor: The factor $\sigma'/\sigma$ by which the noise has grown since `calibrate`.
        """
        check_positive("Homeostasis oracle factor", factor)
        for neuron in self.neurons.values():
            neuron.gain.fill_(factor)
            neuron.bias.fill_(neuron.threshold * (1.0 - factor))

    def reset(self) -> None:
        """Set all gains to 1 and all biases to 0."""
        for neuron in self.neurons.values():
            neuron.gain.fill_(1.0)
            neuron.bias.zero_()

    def _update(
        self, name: str, pair: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None, decay: float
    ) -> tuple[Tensor, Tensor]:
        """Make one step of the rule, and return the running mean and variance."""
        neuron, target = self.neurons[name], self.targets[name]
        one, other = pair
        rate = (one.mean(1) + other.mean(1)) / 2
        variance = (one * other).mean(1) - one.mean(1) * other.mean(1)
        if past is not None:
            rate, variance = past[0].lerp(rate, 1.0 - self.momentum), past[1].lerp(variance, 1.0 - self.momentum)
        if neuron.gain.dim() == 0:
            neuron.gain, neuron.bias = neuron.gain.expand_as(rate).clone(), neuron.bias.expand_as(rate).clone()
        bias_rate, gain_rate = self.learning_rate
        neuron.bias -= decay * bias_rate * neuron.noise * (rate - target.rate)
        neuron.gain *= (decay * gain_rate * (target.variance - variance)).exp()
        return rate, variance

    def _draw_pairs(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Two independent draws of all states for each input, (neurons, inputs), by layer."""
        one, other = self._draw_states(x), self._draw_states(x)
        return {name: (one[name], other[name]) for name in self.neurons}

    def _draw_states(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, states: found.update({name: states.transpose(0, 1).flatten(1)})

        with contextlib.ExitStack() as stack:
            for name, neuron in self.neurons.items():
                stack.callback(neuron.register_forward_hook(record(name)).remove)
            self.net(x)
        return found

    @contextlib.contextmanager
    def _evaluating(self, x: Tensor, seed: int | None) -> Iterator[None]:
        with evaluating(self.net), forked(x.device, seed) if seed is not None else contextlib.nullcontext():
            yield

    def _check_calibrated(self) -> None:
        if not self.targets:
            raise ValueError(
                "Homeostasis: there are no targets yet; call calibrate(x) under the conditions to be restored"
            )


@contextlib.contextmanager
def noise_scaled(net: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the noise of every neuron with thresholds in a network, inside a `with` block.

    Args:
        net: The network.
        factor: The factor; a very small one removes the noise.

    Raises:
        ValueError: The factor is not positive, or the network has no such neurons.

    Example:
        >>> neuron = ThresholdNeuron(0.5)
        >>> with noise_scaled(neuron, 4.0):
        ...     neuron.noise
        2.0
        >>> neuron.noise
        0.5
    """
    check_positive("noise_scaled factor", factor)
    neurons = [part for part in net.modules() if isinstance(part, KState)]
    if not neurons:
        raise ValueError(f"noise_scaled: {type(net).__name__} has no neurons with thresholds")
    before = [neuron.noise_factor for neuron in neurons]
    try:
        for neuron, noise_factor in zip(neurons, before, strict=True):
            neuron.noise_factor = noise_factor * factor
        yield
    finally:
        for neuron, noise_factor in zip(neurons, before, strict=True):
            neuron.noise_factor = noise_factor
