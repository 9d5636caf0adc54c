"""Recurrent networks of rate neurons that sample: rectified powers, noise with memory, an Euler step."""

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
        loc: Means of the n potentials, then of the n noises, (B, 2 n).
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

    unrolled by Euler's steps for v and the exact step for the noise. Called with an input it draws a trajectory, whose
    noise `frozen_noise` can fix; `moments` carries mean and covariance instead, with the rates' moments exact for
    Gaussian potentials.

    Args:
        num: Number n of neurons.
        power: Power p, a whole number.
        gain: Factor k.
        tau: Time constant of the potentials, in the unit of all times.
        tau_noise: Time constant of the noise.
        dt: Length of a step.

    Attributes:
        weight: W, (n, n), entry (i, j) from neuron j to neuron i; starts at 0.
        noise_root: L, (n, n); starts at the unit matrix.

    Raises:
        ValueError: A number is not positive, or the step is not shorter than both time constants.

    References:
        Hennequin, Lengyel 2016; Echeveste, Aitchison, Hennequin, Lengyel 2020: k = 0.3, p = 2, time constants of 20 and
        50 ms.

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
                f"RateNetwork: expected a step below both time constants, got dt={dt}, {tau} and {tau_noise}"
            )
        self.weight = nn.Parameter(torch.zeros(num, num))
        self.noise_root = nn.Parameter(torch.eye(num))

    def rates(self, v: Tensor) -> Tensor:
        """Rates of the neurons at given potentials.

        Args:
            v: Potentials.
        """
        return self.rate.gain * v.clamp_min(0.0) ** self.rate.power

    def forward(self, h: Tensor, steps: int, skip: int = 0) -> Tensor:
        """A trajectory of the potentials from rest, with noise drawn from its stationary distribution on.

        Args:
            h: Input of each neuron, constant in time, (B, n).
            steps: Number of steps.
            skip: Steps at the start that are left out of the result.

        Returns:
            Potentials, (steps - skip, B, n).

        Raises:
            ValueError: The input's shape does not fit, or no step is left.
        """
        self._check(h, steps)
        if not 0 <= skip < steps:
            raise ValueError(f"RateNetwork skip: expected a number from 0 up to but not including {steps}, got {skip}")
        keep, fresh = self._memory()
        step = self.dt / self.tau
        noise = torch.randn_like(h) @ self.noise_root.T
        v = torch.zeros_like(h)
        found = []
        for index in range(steps):
            v = v + step * (-v + self.rates(v) @ self.weight.T + h + noise)
            noise = keep * noise + fresh * torch.randn_like(h) @ self.noise_root.T
            if index >= skip:
                found.append(v)
        return torch.stack(found)

    def moments(self, h: Tensor, steps: int, start: RateMoments | None = None) -> RateMoments:
        r"""Mean and covariance after some steps, without samples.

        With $u = (v, \eta, r(v))$ a step is linear, so it is exact given the moments of u; those of r, and its
        covariance with v and $\eta$ (Stein's lemma), are exact for Gaussian v.

        Args:
            h: Input of each neuron, (B, n).
            steps: Number of steps.
            start: Where to start; by default as `forward` does.

        Returns:
            The moments.
        """
        self._check(h, steps)
        n = self.num
        drive = self.noise_root @ self.noise_root.T
        if start is None:
            cov = h.new_zeros(len(h), 2 * n, 2 * n)
            cov[:, n:, n:] = drive
            start = RateMoments(torch.cat([torch.zeros_like(h), torch.zeros_like(h)], dim=1), cov)
        keep, fresh = self._memory()
        added = torch.block_diag(torch.zeros_like(drive), fresh**2 * drive)
        state = start
        for _ in range(steps):
            matrix, loc, cov = self._expanded(state)
            shift = torch.cat([self.dt / self.tau * h, torch.zeros_like(h)], dim=1)
            state = RateMoments(loc @ matrix.T + shift, matrix @ cov @ matrix.T + added)
        return state

    def lagged(self, state: RateMoments, lag: int) -> Tensor:
        """Covariance of the potentials `lag` steps later with those now, in a stationary state.

        Args:
            state: The stationary moments.
            lag: Number of steps.

        Returns:
            Covariances, (B, n, n), later potentials first.
        """
        matrix, _, _ = self._expanded(state)
        n = self.num
        slope = self._slope(state)
        # One step as a linear map of (v, noise): the rates enter by their mean derivative.
        each = matrix[:, : 2 * n] + torch.cat(
            [matrix[:, 2 * n :] * slope.unsqueeze(1), torch.zeros_like(matrix[:, :n]).expand(len(slope), -1, -1)], dim=2
        )
        return (torch.linalg.matrix_power(each, lag) @ state.cov)[:, :n, :n]

    def _memory(self) -> tuple[float, float]:
        """What the noise keeps over a step, and the deviation of what it gains."""
        keep = math.exp(-self.dt / self.tau_noise)
        return keep, math.sqrt(1.0 - keep * keep)

    def _slope(self, state: RateMoments) -> Tensor:
        return self.rate.slope(state.mean, state.covariance.diagonal(dim1=1, dim2=2))

    def _expanded(self, state: RateMoments) -> tuple[Tensor, Tensor, Tensor]:
        """The step as a matrix on (v, noise, rates), (2 n, 3 n), and the moments of these."""
        n, step = self.num, self.dt / self.tau
        eye = torch.eye(n, dtype=self.weight.dtype, device=self.weight.device)
        upper = torch.cat([(1.0 - step) * eye, step * eye, step * self.weight], dim=1)
        lower = torch.cat([torch.zeros_like(eye), self._memory()[0] * eye, torch.zeros_like(eye)], dim=1)
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
