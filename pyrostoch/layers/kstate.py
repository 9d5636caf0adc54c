"""Stochastic neurons with k states: noise is added to the input, and thresholds select the state."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count, check_positive, is_rising
from pyrostoch._manual import see
from pyrostoch._precision import at_least_single
from pyrostoch.effects.activation import random_activation
from pyrostoch.layers.noise import NOISE_DISTRIBUTIONS, NoiseDistribution
from pyrostoch.layers.states import noisy_states, states_at
from pyrostoch.moments import Knot, Moments, Piecewise, Smooth, activate
from pyrostoch.moments.gaussian import per_example

__all__ = ["Binary", "KState", "Ternary"]

_LEARNED = ("thresholds", "noise")


class KState(nn.Module):
    r"""Neurons that take one of k states, selected by thresholds on their noisy input.

    $$ s = s_i \text{ where } \theta_{i-1} < x + \sigma \xi \le \theta_i, \qquad
    E\,s = s_1 + \sum_i (s_{i+1} - s_i)\,F\Bigl(\frac{x - \theta_i}{\sigma}\Bigr) $$

    for noise $\xi$ of mean 0 and variance 1 with the symmetric distribution function F. The backward pass of a draw is
    the exact derivative of the expected state for the given input, by the input, the thresholds and the noise:

    $$ \frac{\partial E}{\partial x} = \sum_i D_i N_i, \quad \frac{\partial E}{\partial \theta_i} = -D_i N_i, \quad
    \frac{\partial E}{\partial \sigma} = \sum_i D_i N_i\,\frac{\theta_i - x}{\sigma}, \qquad
    D_i = s_{i+1} - s_i,\; N_i = \frac1\sigma F'\Bigl(\frac{\theta_i - x}{\sigma}\Bigr). $$

    This derivative is exact for the expected state, but not for the expectation of a nonlinear function of it, such as
    the output of the layers that follow; `pyrostoch.estimators` compares gradient estimators.

    Inputs have any shape `(batch, neurons or channels, ...)`. The output does not depend on `train()` and `eval()`, but
    on the interpretation:

    | interpretation | output |
    | --- | --- |
    | none, or one that samples weights | a new draw at every call |
    | `MeanPropagation` | the expected state for the given input |
    | `NoiseFree` | the state without noise |
    | `MomentPropagation` | mean and (co)variance, from those of the input; exact for a Gaussian input |

    With plain `torch.compile` on a CPU pass `options={"fallback_random": True}`, as `compile_step` does: the normal
    random numbers of compiled code take ten times as long as torch's.

    Args:
        states: The states, rising.
        thresholds: The thresholds between neighboring states, rising, one fewer than states.
        noise: Standard deviation $\sigma$ of the noise.
        noise_distribution: Distribution of the noise: `"gaussian"`, `"logistic"`, `"uniform"` or `"laplace"`.
        learn: What is learned: `"thresholds"`, `"noise"` or both; by default nothing.
        num: Number of neurons or channels, if each learns its own values; by default all share the same values.

    Raises:
        ValueError: States or thresholds do not rise, their numbers do not match, the noise is not positive, a name is
            unknown, or `num` is given with nothing to learn.

    References:
        "TriDeNT (Tri-state Stochastic Deep Neural Network)" (note), whose equation 7 is this gradient for three states;
        Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons", 2013.

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
                f"{name}: expected at least two rising states, and one rising threshold fewer, got states "
                f"{self.states} and thresholds {given}"
            )
        check_positive(f"{name} noise", noise)
        #: Name of the noise's distribution; the distribution itself is not stored, since it cannot be pickled.
        self.noise_distribution = check_choice(f"{name} noise_distribution", noise_distribution, NOISE_DISTRIBUTIONS)
        learned = {learn} if isinstance(learn, str) else set(learn)
        for what in sorted(learned):
            check_choice(f"{name} learn", what, _LEARNED)
        if num is not None:
            check_count(f"{name} num", num)
            if not learned:
                raise ValueError(f"{name}: num={num} gives each neuron its own learned values; name them by learn=")
        #: Factor of the noise's standard deviation, to evaluate a network at another noise level.
        self.noise_factor = 1.0
        self.num = num
        self._thresholds, self._noise = given, float(noise)
        shape = () if num is None else (num,)
        # Learned are the first threshold and the logarithms of the gaps, so that thresholds cannot cross.
        first = torch.full(shape, given[0]) if "thresholds" in learned else None
        gaps = [torch.full(shape, high - low).log() for low, high in itertools.pairwise(given)]
        self.first_threshold = None if first is None else nn.Parameter(first)
        self.log_gaps = None if first is None or not gaps else nn.Parameter(torch.stack(gaps))
        self.log_noise = nn.Parameter(torch.full(shape, noise).log()) if "noise" in learned else None

    @property
    def _noise_functions(self) -> NoiseDistribution:
        """The noise's distribution at standard deviation 1."""
        return NOISE_DISTRIBUTIONS[self.noise_distribution]

    @property
    def noise(self) -> float | Tensor:
        """Standard deviation of the noise: a number, or a tensor if it is learned."""
        return self.noise_factor * (self._noise if self.log_noise is None else self.log_noise.exp())

    @property
    def thresholds(self) -> tuple[float | Tensor, ...]:
        """The thresholds: numbers, or tensors if they are learned."""
        if self.first_threshold is None:
            return self._thresholds
        thresholds: list[Tensor] = [self.first_threshold]
        for gap in () if self.log_gaps is None else self.log_gaps.unbind():
            thresholds.append(thresholds[-1] + gap.exp())
        return tuple(thresholds)

    def forward(self, x: Tensor | Moments) -> Tensor | Moments:
        """States of the neurons, in the shape of `x`, or their mean or moments: see the table of interpretations.

        Args:
            x: Inputs, or their moments.
        """
        return random_activation(x, self)

    def draw(self, x: Tensor) -> Tensor:
        """States drawn for the inputs `x`; the backward pass is that of `expected`."""
        value = self._threshold_input(x)
        noise, thresholds = self._noise_and_thresholds(value)
        drawn = noisy_states(value, self._draw_noise(value), self._noise_functions, self.states, noise, thresholds)
        return drawn.to(x.dtype)

    def expected(self, x: Tensor) -> Tensor:
        """Expected states for the inputs `x`."""
        return self._expectation(self.states, self._threshold_input(x)).to(x.dtype)

    def variance(self, x: Tensor) -> Tensor:
        """Variances of the states for the inputs `x`."""
        value = self._threshold_input(x)
        mean = self._expectation(self.states, value).unsqueeze(-1)
        deviations = torch.tensor(self.states, dtype=value.dtype, device=value.device) - mean
        return (deviations.square() * self._probabilities(value)).sum(-1).to(x.dtype)

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of each of the k states for the inputs `x`, (..., k)."""
        return self._probabilities(self._threshold_input(x)).to(x.dtype)

    def noise_free(self, x: Tensor) -> Tensor:
        """The states without noise, without a gradient."""
        with torch.no_grad():
            value = self._threshold_input(x)
            _, thresholds = self._noise_and_thresholds(value)
            return states_at(value, self.states, thresholds).to(x.dtype)

    def propagate(self, x: Moments) -> Moments:
        """Moments of the states, exact for Gaussian inputs and every distribution of the noise."""
        noise, thresholds = self._noise_and_thresholds(x.loc)
        if self.noise_distribution == "gaussian":
            noise_var = torch.as_tensor(noise, dtype=x.loc.dtype, device=x.loc.device).square().expand(x.loc.shape)
            cov = None if x.cov is None else x.cov + self._noise_covariance(per_example(noise_var))
            noisy = Moments(x.loc, x.var + noise_var, cov, x.settings, x.links)
            return activate(noisy, Piecewise.states(self.states, thresholds))
        # The expected state as a function of the input gives the means and the covariances between neurons. The
        # variance of a neuron is E[s^2] - (E s)^2, with E[s^2] from the same function for the squared states.
        result = activate(x, self._expectation_function(self.states, noise, thresholds))
        squares = self._expectation_function(tuple(state * state for state in self.states), noise, thresholds)
        result.var = (squares.mean_variance(x.loc, x.var)[0] - result.loc.square()).clamp_min(0.0)
        if result.cov is not None:
            result.cov = torch.diagonal_scatter(result.cov, per_example(result.var), dim1=1, dim2=2)
        return result

    def _threshold_input(self, x: Tensor) -> Tensor:
        """The input that noise is added to and that thresholds are compared with, in at least single precision."""
        return at_least_single(x)

    def _probabilities(self, x: Tensor) -> Tensor:
        noise, thresholds = self._noise_and_thresholds(x)
        at = [(threshold - x) / noise for threshold in thresholds]
        probabilities = [self._noise_functions.cdf(at[0])]
        for low, high in itertools.pairwise(at):
            # The difference of the distribution function is taken in the tail where both values are small, so that it
            # keeps its digits.
            upper = low > 0
            probabilities.append(
                self._noise_functions.cdf(torch.where(upper, -low, high))
                - self._noise_functions.cdf(torch.where(upper, -high, low))
            )
        probabilities.append(self._noise_functions.cdf(-at[-1]))
        return torch.stack(probabilities, dim=-1).clamp_min(0.0)

    def _draw_noise(self, x: Tensor) -> Tensor:
        return self._noise_functions.draw(x)

    def _noise_covariance(self, var: Tensor) -> Tensor:
        """Covariance of the noise of an example's neurons, (B, n, n), from its variances, (B, n)."""
        return torch.diag_embed(var)

    def _expectation(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        """Expectation of a quantity that takes one of the values in each state."""
        noise, thresholds = self._noise_and_thresholds(x)
        total = torch.full_like(x, values[0])
        for low, high, at in zip(values[:-1], values[1:], thresholds, strict=True):
            total = total + (high - low) * self._noise_functions.cdf((x - at) / noise)
        return total

    def _expectation_function(
        self, values: tuple[float, ...], noise: float | Tensor, thresholds: tuple[float | Tensor, ...]
    ) -> Piecewise | Smooth:
        """The same expectation as a function of the input whose moments are known."""
        if self._noise_functions.bounded:
            half = 3.0**0.5 * noise
            knots = []
            for low, high, at in zip(values[:-1], values[1:], thresholds, strict=True):
                rise = (high - low) / (2.0 * half)
                knots += [Knot(at - half, kink=rise), Knot(at + half, kink=-rise)]
            return Piecewise(tuple(knots), offset=values[0])
        if self.num is not None or (torch.is_grad_enabled() and bool(list(self.parameters()))):
            raise ValueError(
                f"{type(self).__name__}: moments under {self.noise_distribution} noise are computed by quadrature, "
                "which supports neither gradients of thresholds and noise nor separate values for each neuron; train "
                "and predict with draws, or use Gaussian or uniform noise"
                f"{see('how-to/discrete_networks')}"
            )
        return Smooth(lambda x: self._expectation(values, x))

    def _noise_and_thresholds(self, x: Tensor) -> tuple[float | Tensor, tuple[float | Tensor, ...]]:
        """Standard deviation of the noise and thresholds, in the input's dtype and in shapes that broadcast with it."""

        def broadcast(value: float | Tensor) -> float | Tensor:
            if not isinstance(value, Tensor):
                return value
            value = value.to(x.dtype)
            return value.reshape(1, -1, *[1] * (x.dim() - 2)) if value.dim() else value

        return broadcast(self.noise), tuple(broadcast(at) for at in self.thresholds)

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
        threshold: The state is 0 between `-threshold` and `threshold`.
        noise: Standard deviation of the noise.
        noise_distribution: See `KState`.
        learn: See `KState`.
        num: See `KState`.

    Example:
        >>> Ternary(noise=0.1)(torch.tensor([[-3.0, 0.0, 3.0]]))
        tensor([[-1.,  0.,  1.]])
    """

    def __init__(
        self,
        threshold: float = 0.5,
        noise: float = 0.5,
        *,
        noise_distribution: str = "gaussian",
        learn: str | Iterable[str] = (),
        num: int | None = None,
    ) -> None:
        check_positive("Ternary threshold", threshold)
        thresholds = (-threshold, threshold)
        super().__init__(
            (-1.0, 0.0, 1.0), thresholds, noise, noise_distribution=noise_distribution, learn=learn, num=num
        )


class Binary(KState):
    """Neurons with the states -1 and 1.

    Args:
        threshold: The threshold between the two states.
        noise: Standard deviation of the noise.
        noise_distribution: See `KState`.
        learn: See `KState`.
        num: See `KState`.

    Example:
        >>> Binary(noise=0.1)(torch.tensor([[-3.0, 3.0]]))
        tensor([[-1.,  1.]])
    """

    def __init__(
        self,
        threshold: float = 0.0,
        noise: float = 0.5,
        *,
        noise_distribution: str = "gaussian",
        learn: str | Iterable[str] = (),
        num: int | None = None,
    ) -> None:
        super().__init__((-1.0, 1.0), (threshold,), noise, noise_distribution=noise_distribution, learn=learn, num=num)
