"""A recurrent rate network trained so that its noisy trajectories are samples from known posteriors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from pyrostoch.effects import frozen_noise
from pyrostoch.layers.recurrent import RateNetwork
from pyrostoch.records import Record

# Prior mean of the latent variables, at which the rates are well above 0, and standard deviation of the pixels' noise.
_PRIOR_MEAN, _PIXEL_NOISE = 2.0, 0.6
# Steps of a trajectory in training, and the initial ones that are left out. The test trajectories are five times as
# long, so that a network whose activity diverges later does not pass.
_STEPS, _SKIP = 240, 40
# Neurons for each latent variable, and members of the frozen noise: with a single member of 200 trajectories, a network
# overfits its noise (covariance error 0.06 on it and 0.4 on new noise).
_NEURONS, _MEMBERS = 4, 16

__all__ = ["PosteriorFit", "Problem", "fit_posteriors"]


@dataclass(frozen=True, eq=False)
class Problem:
    r"""A linear Gaussian model whose posteriors are known: $y \sim N(c, P)$, $x \mid y \sim N(z A y, s^2 I)$.

    The contrast z of an image scales the evidence: with higher contrast the posterior's mean moves away from c, and its
    covariance shrinks.

    Args:
        images: Images x at several contrasts, (B, d).
        mean: Their posterior means, (B, n).
        covariance: Their posterior covariances, (B, n, n).
    """

    images: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def draw(cls, num: int, seed: int, contrasts: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)) -> Problem:
        """Draw a problem: images of one pattern at several contrasts.

        Args:
            num: Number n of latent variables, and of pixels.
            seed: Seed of the pattern.
            contrasts: Contrasts of the images.
        """
        generator = torch.Generator().manual_seed(seed)
        positions = torch.arange(num, dtype=torch.float64)
        distance = (positions.unsqueeze(1) - positions).abs()
        distance = torch.minimum(distance, num - distance)  # on a circle
        prior = torch.exp(-distance / 1.5)
        features = torch.exp(-0.5 * distance.square()) / 1.5
        deviation = torch.linalg.cholesky(prior) @ torch.randn(num, generator=generator, dtype=torch.float64)
        images, means, covariances = [], [], []
        for contrast in contrasts:
            precision = prior.inverse() + contrast**2 * features.T @ features / _PIXEL_NOISE**2
            covariance = precision.inverse()
            image = contrast * features @ (_PRIOR_MEAN + deviation)
            images.append(image)
            residual = image - contrast * features.sum(1) * _PRIOR_MEAN
            means.append(_PRIOR_MEAN + covariance @ (contrast * features.T @ residual) / _PIXEL_NOISE**2)
            covariances.append(covariance)
        return cls(torch.stack(images), torch.stack(means), torch.stack(covariances))


@dataclass(frozen=True)
class PosteriorFit(Record):
    """Errors of the stationary moments of a trained network against the posteriors, on noise not used in training.

    Args:
        mean_error: Root mean squared error of the means, divided by the root mean squared distance of the posterior
            means from the prior mean.
        covariance_error: Frobenius norm of the covariances' errors, divided by that of the posterior covariances.
        untrained_mean_error: `mean_error` before training.
        untrained_covariance_error: `covariance_error` before training.
        moments_mean_error: `mean_error` of propagated moments instead of trajectories.
        moments_covariance_error: `covariance_error` of propagated moments instead of trajectories.
    """

    mean_error: float
    covariance_error: float
    untrained_mean_error: float
    untrained_covariance_error: float
    moments_mean_error: float
    moments_covariance_error: float


class _Inhibitory(nn.Module):
    """A parametrization by negative weights: with excitation, rates that grow as squared potentials diverge."""

    def forward(self, raw: Tensor) -> Tensor:
        """The weights, -softplus(raw)."""
        return -nn.functional.softplus(raw)


class _Sampler(nn.Module):
    """Input weights and biases before a rate network; the first neurons' potentials represent the latent variables.

    The other neurons are unconstrained: by inhibiting inhibitory neurons they have the effect of excitation.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.latents = problem.mean.shape[1]
        num = _NEURONS * self.latents
        self.network = RateNetwork(num, dt=5.0)
        register_parametrization(self.network, "weight", _Inhibitory())
        nn.init.constant_(self.network.parametrizations.weight.original, -3.0)  # type: ignore[union-attr, arg-type]
        self.input_layer = nn.Linear(problem.images.shape[1], num)
        nn.init.constant_(self.input_layer.bias, _PRIOR_MEAN)

    def trajectories(self, problem: Problem, runs: int, steps: int, skip: int) -> Tensor:
        """Potentials of the latent variables after a transient, for each image, (B, draws, n)."""
        drive = self.input_layer(problem.images).repeat_interleave(runs, dim=0)
        potentials = self.network(drive, steps, skip)  # (T, B runs, neurons)
        return potentials[..., : self.latents].unflatten(1, (-1, runs)).movedim(1, 0).flatten(1, 2)


def _errors(mean: Tensor, covariance: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Squared relative errors of means and covariances."""
    mean_error = (mean - problem.mean).square().sum() / (problem.mean - _PRIOR_MEAN).square().sum()
    covariance_error = (covariance - problem.covariance).square().sum() / problem.covariance.square().sum()
    return mean_error, covariance_error


def _sampled_errors(sampler: _Sampler, problem: Problem, runs: int, steps: int, skip: int) -> tuple[Tensor, Tensor]:
    """Squared relative errors of the moments of trajectories."""
    draws = sampler.trajectories(problem, runs, steps, skip)
    mean = draws.mean(1)
    deviation = draws - mean.unsqueeze(1)
    return _errors(mean, deviation.mT @ deviation / (draws.shape[1] - 1), problem)


def fit_posteriors(num: int = 6, *, epochs: int = 60, lr: float = 0.02, runs: int = 40, seed: int = 0) -> PosteriorFit:
    """Train a rate network on frozen noise so that it samples from known posteriors.

    Args:
        num: Number of latent variables.
        epochs: Passes through the members of the frozen noise; each member is one step of Adam on all images.
        lr: Initial learning rate, which falls linearly to 0.
        runs: Trajectories for each image and member.
        seed: Seed of the problem, the initialization and the noise; torch's random state is unchanged afterwards.

    Returns:
        The errors on new noise, before and after training.

    Example:
        >>> fit_posteriors(3, epochs=1, runs=4).mean_error > 0
        True

    References:
        Echeveste, Aitchison, Hennequin, Lengyel, "Cortical-like dynamics in recurrent circuits optimized for
        sampling-based probabilistic inference", 2020.
    """
    problem = Problem.draw(num, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        sampler = _Sampler(problem).double()
        with torch.no_grad():
            before = _sampled_errors(sampler, problem, 200, _STEPS, _SKIP)
        optimizer = torch.optim.Adam(sampler.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * _MEMBERS)
        noise = frozen_noise(num=_MEMBERS, seed=seed)
        for _ in range(epochs):
            for member in noise:
                optimizer.zero_grad()
                with member:
                    sum(_sampled_errors(sampler, problem, runs, _STEPS, _SKIP)).backward()  # type: ignore[union-attr]
                nn.utils.clip_grad_norm_(sampler.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            after = _sampled_errors(sampler, problem, 200, 5 * _STEPS, _SKIP)
            state = sampler.network.moments(sampler.input_layer(problem.images), _STEPS)
            latents = sampler.latents
            moments = _errors(state.mean[:, :latents], state.covariance[:, :latents, :latents], problem)
    return PosteriorFit(*(value.sqrt().item() for value in (*after, *before, *moments)))
