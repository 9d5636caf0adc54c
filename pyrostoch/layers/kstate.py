"""Neurons with k states: thresholds behind noise, drawn, averaged, or carried by moments; exact expected gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count, check_positive, is_rising
from pyrostoch._precision import at_least_single
from pyrostoch.effects.activation import random_activation
from pyrostoch.layers.noise import NOISE_DISTRIBUTIONS, NoiseDistribution
from pyrostoch.moments import Knot, Moments, Piecewise, Smooth, activate
from pyrostoch.moments.gaussian import per_example

__all__ = ["Binary", "KState", "Ternary"]

_LEARNED = ("thresholds", "noise")


class KState(nn.Module):
    r"""Neurons that take one of k states, by where their noisy input lies between thresholds.

    $$ s = s_i \text{ where } \theta_{i-1} < x + \sigma \xi \le \theta_i, \qquad
    E\,s = s_1 + \sum_i (s_{i+1} - s_i)\,F\Bigl(\frac{x - \theta_i}{\sigma}\Bigr) $$

    for noise $\xi$ of mean 0 and variance 1 with the symmetric distribution function F. A draw's backward pass is the
    exact derivative of its expectation for the given input, by the input, the thresholds and the noise:

    $$ \frac{\partial E}{\partial x} = \sum_i D_i N_i, \quad \frac{\partial E}{\partial \theta_i} = -D_i N_i, \quad
    \frac{\partial E}{\partial \sigma} = \sum_i D_i N_i\,\frac{\theta_i - x}{\sigma}, \qquad
    D_i = s_{i+1} - s_i,\; N_i = \frac1\sigma F'\Bigl(\frac{\theta_i - x}{\sigma}\Bigr). $$

    It is exact for the expected state, and not for the expectation of what a network makes of the state
    (`pyrostoch.estimators` compares).

    Works on any shape `(batch, neurons or channels, ...)`. `train()` and `eval()` make no difference; the
    interpretation does:

    | interpretation | output |
    | --- | --- |
    | none, or any that samples | a draw, fresh at every call |
    | `MeanPropagation` | the expected state for the given input |
    | `NoiseFree` | the state without noise: hard thresholds |
    | `MomentPropagation` | mean and (co)variance for the input's: exact for a Gaussian input |

    Under plain `torch.compile` on a CPU give `options={"fallback_random": True}`, as `compile_step` does: the
    compiler's own normal numbers take ten times as long as torch's.

    Args:
        states: The states, rising.
        thresholds: Where one state follows another, rising, one less than states.
        noise: Standard deviation $\sigma$ of the noise.
        noise_distribution: Distribution of the noise: `"gaussian"`, `"logistic"`, `"uniform"` or `"laplace"`.
        learn: What is learned of `"thresholds"` and `"noise"`.
        num: Number of neurons or channels that learn values of their own; by default they share them.

    Raises:
        ValueError: States or thresholds do not rise or do not fit each other, the noise is not positive, a name is
            unknown, or `num` is given with nothing to learn.

    References:
        "TriDeNT (Tri-state Stochastic Deep Neural Network)" (note), whose equation 7 is this gradient for three states;
        Bengio, Leonard, Courville 2013.

    Example:
        >>> from pyrostoch.effects import MeanPropagation
        >>> layer, x = KState((0.0, 1.0, 2.0), (-1.0, 1.0), noise=0.5), torch.tensor([[-30.0, 0.0, 30.0]])
        >>> layer(x)
        tensor([[0., 1., 2.]])
        >>> layer.probabilities(torch.tensor(1.0))
        tensor([3.1671e-05, 4.9997e-01, 5.0000e-01])
    """

    def __init__(
        self,
        states: Sequence[float] = (-1.0, 0.0, 1.0),
        thresholds: Sequence[float] = (-0.5, 0.5),
        noise: float = 0.5,
        *,
        noise_distribution: str = "gaussian",
        learn: str | Iterable[str] = (),
        num: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.states = tuple(float(state) for state in states)
        given = tuple(float(at) for at in thresholds)
        if (
            len(self.states) < 2
            or len(given) != len(self.states) - 1
            or not is_rising(self.states)
            or not is_rising(given)
        ):
            raise ValueError(
                f"{name}: expected at least two rising states, and one rising threshold less, got states {self.states} "
                f"and thresholds {given}"
            )
        check_positive(f"{name} noise", noise)
        #: Name of the noise's distribution, kept since a distribution's functions cannot be pickled.
        self.noise_distribution = check_choice(f"{name} noise_distribution", noise_distribution, NOISE_DISTRIBUTIONS)
        learned = {learn} if isinstance(learn, str) else set(learn)
        for what in sorted(learned):
            check_choice(f"{name} learn", what, _LEARNED)
        if num is not None:
            check_count(f"{name} num", num)
            if not learned:
                raise ValueError(f"{name}: num={num} is for neurons that learn values of their own; say what by learn=")
        #: Factor of the noise, for trials of another noise level.
        self.noise_factor = 1.0
        self.num = num
        self._thresholds, self._noise = given, float(noise)
        shape = () if num is None else (num,)
        # The first threshold and the logarithms of the gaps: thresholds that are learned cannot cross.
        first = torch.full(shape, given[0]) if "thresholds" in learned else None
        gaps = [torch.full(shape, high - low).log() for low, high in itertools.pairwise(given)]
        self.first_threshold = None if first is None else nn.Parameter(first)
        self.log_gaps = None if first is None or not gaps else nn.Parameter(torch.stack(gaps))
        self.log_noise = nn.Parameter(torch.full(shape, noise).log()) if "noise" in learned else None

    @property
    def _noise_functions(self) -> NoiseDistribution:
        """Distribution of the noise."""
        return NOISE_DISTRIBUTIONS[self.noise_distribution]

    @property
    def noise(self) -> Any:
        """Deviation of the noise: a number, or a tensor where it is learned."""
        return self.noise_factor * (self._noise if self.log_noise is None else self.log_noise.exp())

    @property
    def thresholds(self) -> tuple[Any, ...]:
        """The thresholds: numbers, or tensors where they are learned."""
        if self.first_threshold is None:
            return self._thresholds
        found: list[Tensor] = [self.first_threshold]
        for gap in () if self.log_gaps is None else self.log_gaps.unbind():
            found.append(found[-1] + gap.exp())
        return tuple(found)

    def forward(self, x: Any) -> Any:
        """States of the neurons, in the shape of `x`, under the interpretation in force."""
        return random_activation(x, self)

    def draw(self, x: Tensor) -> Tensor:
        """States drawn for the given inputs; the backward pass is that of `expected`."""
        wide = self._given(x)
        noise, thresholds = self._placed(wide)
        drawn: Tensor = _States.apply(
            wide, self._fresh_noise(wide), self._noise_functions, self.states, noise, *thresholds
        )
        return drawn.to(x.dtype)

    def expected(self, x: Tensor) -> Tensor:
        """Expected state for the given input."""
        return self._mean_of(self.states, self._given(x)).to(x.dtype)

    def variance(self, x: Tensor) -> Tensor:
        """Variance of the state for the given input."""
        wide = self._given(x)
        mean = self._mean_of(self.states, wide).unsqueeze(-1)
        apart = torch.tensor(self.states, dtype=wide.dtype, device=wide.device) - mean
        return (apart.square() * self._probabilities(wide)).sum(-1).to(x.dtype)

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of each state for the given input, (..., k)."""
        return self._probabilities(self._given(x)).to(x.dtype)

    def noise_free(self, x: Tensor) -> Tensor:
        """The states without noise; nothing is passed back."""
        with torch.no_grad():
            wide = self._given(x)
            _, thresholds = self._placed(wide)
            return _state_of(wide, self.states, thresholds).to(x.dtype)

    def propagate(self, x: Moments) -> Moments:
        """Moments of the states for Gaussian inputs: exact for every distribution of the noise."""
        noise, thresholds = self._placed(x.loc)
        if self.noise_distribution == "gaussian":
            own = torch.as_tensor(noise, dtype=x.loc.dtype, device=x.loc.device).square().expand(x.loc.shape)
            cov = None if x.cov is None else x.cov + self._noise_covariance(per_example(own))
            noisy = Moments(x.loc, x.var + own, cov, x.settings, x.links)
            return activate(noisy, Piecewise.states(self.states, thresholds))
        # The mean state as a function of the input gives the mean and all covariances between neurons; a neuron's own
        # variance is that of a state, whose square has a mean by the same formula.
        made = activate(x, self._mean_unit(self.states, noise, thresholds))
        squares = self._mean_unit(tuple(state * state for state in self.states), noise, thresholds)
        made.var = (squares.mean_variance(x.loc, x.var)[0] - made.loc.square()).clamp_min(0.0)
        if made.cov is not None:
            made.cov = torch.diagonal_scatter(made.cov, per_example(made.var), dim1=1, dim2=2)
        return made

    def _given(self, x: Tensor) -> Tensor:
        """The input as the thresholds meet it."""
        return at_least_single(x)

    def _probabilities(self, x: Tensor) -> Tensor:
        noise, thresholds = self._placed(x)
        at = [(threshold - x) / noise for threshold in thresholds]
        found = [self._noise_functions.cdf(at[0])]
        for low, high in itertools.pairwise(at):
            # Each difference on the side where both terms are small.
            upper = low > 0
            found.append(
                self._noise_functions.cdf(torch.where(upper, -low, high))
                - self._noise_functions.cdf(torch.where(upper, -high, low))
            )
        found.append(self._noise_functions.cdf(-at[-1]))
        return torch.stack(found, dim=-1).clamp_min(0.0)

    def _fresh_noise(self, x: Tensor) -> Tensor:
        return self._noise_functions.draw(x)

    def _noise_covariance(self, own: Tensor) -> Tensor:
        """Covariance of the neurons' noise, from their variances (B, n)."""
        return torch.diag_embed(own)

    def _mean_of(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        """Mean of what has a value in each state."""
        noise, thresholds = self._placed(x)
        total = torch.full_like(x, values[0])
        for low, high, at in zip(values[:-1], values[1:], thresholds, strict=True):
            total = total + (high - low) * self._noise_functions.cdf((x - at) / noise)
        return total

    def _mean_unit(self, values: tuple[float, ...], noise: Any, thresholds: tuple[Any, ...]) -> Any:
        """That mean as a function of the input, for moments."""
        if self._noise_functions.bounded:
            half = 3.0**0.5 * noise
            knots = []
            for low, high, at in zip(values[:-1], values[1:], thresholds, strict=True):
                rise = (high - low) / (2.0 * half)
                knots += [Knot(at - half, kink=rise), Knot(at + half, kink=-rise)]
            return Piecewise(tuple(knots), offset=values[0])
        if self.num is not None or (torch.is_grad_enabled() and bool(list(self.parameters()))):
            raise ValueError(
                f"{type(self).__name__}: moments under {self.noise_distribution} noise go by quadrature, which neither "
                "passes gradients to thresholds or noise nor knows each neuron's own; train and predict by draws, or "
                "take Gaussian or uniform noise"
            )
        return Smooth(lambda x: self._mean_of(values, x))

    def _placed(self, x: Tensor) -> tuple[Any, tuple[Any, ...]]:
        """Noise and thresholds in shapes that broadcast with the input, and in its dtype."""

        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.to(x.dtype)
            return value.reshape(1, -1, *[1] * (x.dim() - 2)) if value.dim() else value

        return place(self.noise), tuple(place(at) for at in self.thresholds)

    def extra_repr(self) -> str:
        """The settings."""
        learned = [
            what for what, has in zip(_LEARNED, (self.first_threshold, self.log_noise), strict=True) if has is not None
        ]
        also = f", learn={tuple(learned)}" if learned else ""
        noise = f"{self._noise:g}, {self.noise_distribution}"
        return f"states={self.states}, thresholds={self._thresholds}, noise={noise}{also}"


class Ternary(KState):
    """Neurons with the states -1, 0 and 1, as in the TriDeNT note.

    Args:
        threshold: The state is 0 between minus this and this.
        noise: Deviation of the noise.
        settings: `noise_distribution`, `learn` and `num`, as in `KState`.

    Example:
        >>> Ternary(noise=0.1)(torch.tensor([[-3.0, 0.0, 3.0]]))
        tensor([[-1.,  0.,  1.]])
    """

    def __init__(self, threshold: float = 0.5, noise: float = 0.5, **settings: Any) -> None:
        check_positive("Ternary threshold", threshold)
        super().__init__((-1.0, 0.0, 1.0), (-threshold, threshold), noise, **settings)


class Binary(KState):
    """Neurons with the states -1 and 1.

    Args:
        threshold: Where one follows the other.
        noise: Deviation of the noise.
        settings: `noise_distribution`, `learn` and `num`, as in `KState`.

    Example:
        >>> Binary(noise=0.1)(torch.tensor([[-3.0, 3.0]]))
        tensor([[-1.,  1.]])
    """

    def __init__(self, threshold: float = 0.0, noise: float = 0.5, **settings: Any) -> None:
        super().__init__((-1.0, 1.0), (threshold,), noise, **settings)


def _state_of(x: Tensor, states: tuple[float, ...], thresholds: tuple[Any, ...]) -> Tensor:
    """The state at a point."""
    first, *steps = [high - low for low, high in itertools.pairwise(states)]
    total = _above(x, thresholds[0])
    if first != 1.0:
        total.mul_(first)
    for step, at in zip(steps, thresholds[1:], strict=True):
        total.add_(_above(x, at), alpha=step)
    return total if states[0] == 0.0 else total.add_(states[0])


def _above(x: Tensor, at: Any) -> Tensor:
    """1 where a value is above a threshold, 0 elsewhere, in its dtype."""
    # In a quarter of the time of a comparison, whose truth values are made into numbers.
    return (x - at).sign_().clamp_min_(0.0)


class _States(torch.autograd.Function):
    """States at x + noise * deviation; passed back is the derivative of the expected state."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        unit: Tensor,
        distribution: NoiseDistribution,
        states: tuple[float, ...],
        noise: Any,
        *thresholds: Any,
    ) -> Tensor:
        noisy = torch.addcmul(x, unit, noise) if isinstance(noise, Tensor) else torch.add(x, unit, alpha=noise)
        return _state_of(noisy, states, thresholds)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, distribution, states, noise, *thresholds = inputs
        tensors = [x, *(value for value in (noise, *thresholds) if isinstance(value, Tensor))]
        ctx.save_for_backward(*tensors)
        ctx.distribution, ctx.states = distribution, states
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in (noise, *thresholds)]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        waiting = iter(tensors)
        noise, *thresholds = [next(waiting) if number is None else number for number in ctx.numbers]
        found: list[Any] = [None] * (5 + len(thresholds))
        by_x: Any = 0.0
        for index, (low, high, at) in enumerate(zip(ctx.states[:-1], ctx.states[1:], thresholds, strict=True), 5):
            z = (at - x) / noise
            part = ctx.distribution.pdf(z) * ((high - low) / noise)
            by_x = by_x + part
            if ctx.needs_input_grad[4]:
                by_noise = (grad * part * z).sum_to_size(noise.shape)
                found[4] = by_noise if found[4] is None else found[4] + by_noise
            if ctx.needs_input_grad[index]:
                found[index] = -(grad * part).sum_to_size(at.shape)
        found[0] = grad * by_x
        return tuple(found)
