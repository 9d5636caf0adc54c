"""Recurrent networks of rate neurons: rectified-power rates, Ornstein-Uhlenbeck noise, Euler steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count, check_positive
from pyrostoch.moments.power import RectifiedPower

__all__ = ["RateMoments", "RateNetwork"]


@dataclass(frozen=True, eq=False)
class RateMoments:
    """Mean and covariance of a rate network's potentials and of the noise that drives them.

    Args:
        loc: Means of the n potentials, then of the n noise variables, (B, 2 n).
        cov: Their covariance, (B, 2 n, 2 n).
    """

    loc: Tensor
    cov: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean potentials, (B, n)."""
        return self.loc[:, : self.loc.shape[1] // 2]

    @property
    def covariance(self) -> Tensor:
        """Covariance of the potentials, (B, n, n)."""
        half = self.loc.shape[1] // 2
        return self.cov[:, :half, :half]


class RateNetwork(nn.Module):
    r"""A recurrent network of n neurons whose rates are rectified powers of their potentials.

    $$ \tau\,\dot v = -v + W r(v) + h + \eta, \qquad r(v) = k\,[v]_+^p, \qquad
    \eta \text{ Ornstein-Uhlenbeck with covariance } L L^\top \text{ and time constant } \tau_\eta, $$

    integrated by Euler steps for v and by the exact transition for the noise. Called with an input, it draws a
    trajectory, whose noise `frozen_noise` can fix. `moments` propagates mean and covariance instead; the moments of the
    rates are exact for Gaussian potentials.

    Args:
        num: Number n of neurons.
        power: Power p, an integer.
        gain: Factor k.
        tau: Time constant of the potentials; all times are in the same unit, such as ms.
        tau_noise: Time constant of the noise.
        dt: Length of a step.

    Attributes:
        weight: W, (n, n), entry (i, j) from neuron j to neuron i; initially 0.
        noise_root: L, (n, n); initially the identity.

    Raises:
        ValueError: A number is not positive, or the step is not shorter than both time constants.

    References:
        Hennequin, Lengyel, "Characterizing variability in nonlinear recurrent neuronal networks", 2016; Echeveste,
        Aitchison, Hennequin, Lengyel, "Cortical-like dynamics in recurrent circuits optimized for sampling-based
        probabilistic inference", 2020, with k = 0.3, p = 2 and time constants of 20 and 50 ms.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = RateNetwork(3)
        >>> network(torch.zeros(2, 3), steps=10).shape
        torch.Size([10, 2, 3])
        >>> network.moments(torch.zeros(2, 3), steps=10).covariance.shape
        torch.Size([2, 3, 3])
    """

    def __init__(
        self,
        num: int,
        *,
        power: int = 2,
        gain: float = 0.3,
        tau: float = 20.0,
        tau_noise: float = 50.0,
        dt: float = 2.0,
    ) -> None:
        super().__init__()
        self.num = check_count("RateNetwork num", num)
        self.rate = RectifiedPower(power, check_positive("RateNetwork gain", gain))
        self.tau, self.tau_noise, self.dt = tau, tau_noise, dt
        for name in ("tau", "tau_noise", "dt"):
            check_positive(f"RateNetwork {name}", getattr(self, name))
        if dt >= min(tau, tau_noise):
            raise ValueError(
                f"RateNetwork: expected a step below both time constants, got dt={dt}, tau={tau} and "
                f"tau_noise={tau_noise}"
            )
        self.weight = nn.Parameter(torch.zeros(num, num))
        self.noise_root = nn.Parameter(torch.eye(num))

    def rates(self, v: Tensor) -> Tensor:
        """Rates of the neurons at given potentials.

        Args:
            v: Potentials, (..., n).
        """
        return self.rate.gain * v.clamp_min(0.0) ** self.rate.power

    def forward(self, h: Tensor, steps: int, skip: int = 0) -> Tensor:
        """Draw a trajectory of the potentials; it starts at v = 0, with noise from its stationary distribution.

        Args:
            h: Input of each neuron, constant in time, (B, n).
            steps: Number of steps.
            skip: Number of steps at the start that are not returned.

        Returns:
            Potentials, (steps - skip, B, n).

        Raises:
            ValueError: The input has another shape, or no step is left.
        """
        self._check(h, steps)
        if not 0 <= skip < steps:
            raise ValueError(f"RateNetwork skip: expected a number from 0 up to but not including {steps}, got {skip}")
        decay, new_scale = self._noise_transition()
        step = self.dt / self.tau
        noise = torch.randn_like(h) @ self.noise_root.T
        v = torch.zeros_like(h)
        trajectory = []
        for index in range(steps):
            v = v + step * (-v + self.rates(v) @ self.weight.T + h + noise)
            noise = decay * noise + new_scale * torch.randn_like(h) @ self.noise_root.T
            if index >= skip:
                trajectory.append(v)
        return torch.stack(trajectory)

    def moments(self, h: Tensor, steps: int, start: RateMoments | None = None) -> RateMoments:
        r"""Mean and covariance after a number of steps, without sampling.

        A step is a linear function of $u = (v, \eta, r(v))$, so it is exact given the moments of u. The moments of r,
        and its covariance with v and $\eta$ (Stein's lemma), are exact for Gaussian v.

        Args:
            h: Input of each neuron, constant in time, (B, n).
            steps: Number of steps.
            start: Moments to start from; by default those with which `forward` starts.

        Returns:
            The moments after the last step.
        """
        self._check(h, steps)
        n = self.num
        noise_cov = self.noise_root @ self.noise_root.T
        if start is None:
            cov = h.new_zeros(len(h), 2 * n, 2 * n)
            cov[:, n:, n:] = noise_cov
            start = RateMoments(torch.cat([torch.zeros_like(h), torch.zeros_like(h)], dim=1), cov)
        _, new_scale = self._noise_transition()
        added = torch.block_diag(torch.zeros_like(noise_cov), new_scale**2 * noise_cov)
        state = start
        for _ in range(steps):
            matrix, loc, cov = self._step_matrix_and_moments(state)
            shift = torch.cat([self.dt / self.tau * h, torch.zeros_like(h)], dim=1)
            state = RateMoments(loc @ matrix.T + shift, matrix @ cov @ matrix.T + added)
        return state

    def lagged(self, state: RateMoments, lag: int) -> Tensor:
        """Covariance of the potentials `lag` steps later with the potentials now, in a stationary state.

        Args:
            state: The stationary moments, such as `moments` after many steps.
            lag: Number of steps.

        Returns:
            Covariances, (B, n, n); entry (i, j) is that of the later potential i with the potential j now.
        """
        matrix, _, _ = self._step_matrix_and_moments(state)
        n = self.num
        slope = self._slope(state)
        # One step as a linear map of (v, noise), in which each rate is replaced by its mean derivative times v.
        step_map = matrix[:, : 2 * n] + torch.cat(
            [matrix[:, 2 * n :] * slope.unsqueeze(1), torch.zeros_like(matrix[:, :n]).expand(len(slope), -1, -1)], dim=2
        )
        return (torch.linalg.matrix_power(step_map, lag) @ state.cov)[:, :n, :n]

    def _noise_transition(self) -> tuple[float, float]:
        """The factor by which the noise decays in a step, and the factor of the new noise that is added."""
        decay = math.exp(-self.dt / self.tau_noise)
        return decay, math.sqrt(1.0 - decay * decay)

    def _slope(self, state: RateMoments) -> Tensor:
        """Mean derivative of the rates."""
        return self.rate.slope(state.mean, state.covariance.diagonal(dim1=1, dim2=2))

    def _step_matrix_and_moments(self, state: RateMoments) -> tuple[Tensor, Tensor, Tensor]:
        """The matrix of a step on (v, noise, rates), (2 n, 3 n), and the mean and covariance of (v, noise, rates)."""
        n, step = self.num, self.dt / self.tau
        eye = torch.eye(n, dtype=self.weight.dtype, device=self.weight.device)
        upper = torch.cat([(1.0 - step) * eye, step * eye, step * self.weight], dim=1)
        lower = torch.cat([torch.zeros_like(eye), self._noise_transition()[0] * eye, torch.zeros_like(eye)], dim=1)
        m, c = state.mean, state.covariance
        v = c.diagonal(dim1=1, dim2=2)
        mean, variance = self.rate.mean_variance(m, v)
        rates = self.rate.covariance((m.unsqueeze(2), m.unsqueeze(1)), (v.unsqueeze(2), v.unsqueeze(1)), c)
        rates = torch.diagonal_scatter(rates, variance, dim1=1, dim2=2)
        cross = state.cov[:, :, :n] * self._slope(state).unsqueeze(1)
        cov = torch.cat([torch.cat([state.cov, cross], dim=2), torch.cat([cross.mT, rates], dim=2)], dim=1)
        return torch.cat([upper, lower]), torch.cat([state.loc, mean], dim=1), cov

    def _check(self, h: Tensor, steps: int) -> None:
        check_count("RateNetwork steps", steps)
        if h.dim() != 2 or h.shape[1] != self.num:
            raise ValueError(f"RateNetwork: expected inputs of shape (batch, {self.num}), got {tuple(h.shape)}")

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num}, power={self.rate.power}, gain={self.rate.gain:g}, tau={self.tau:g}, dt={self.dt:g}"
