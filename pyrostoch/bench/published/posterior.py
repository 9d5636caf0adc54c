"""A recurrent network that represents uncertainty by sampling: its trajectories have the moments of posteriors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from pyrostoch.effects import frozen_noise
from pyrostoch.layers.recurrent import RateNetwork
from pyrostoch.records import Record

# Prior mean of the latent variables, where the rates are well above 0, and deviation of the noise on pixels.
_CENTER, _SPREAD = 2.0, 0.6
# Steps of a trajectory in training, and those left out at its start. It is judged on one five times as long: a network
# that is right for a while and then runs away would pass otherwise.
_STEPS, _SKIP = 240, 40
# Neurons for each latent variable, and members of the frozen noise: with one member of 200 trajectories a network fits
# its noise (covariance error 0.06 on it and 0.4 on fresh noise).
_NEURONS, _MEMBERS = 4, 16

__all__ = ["PosteriorFit", "Problem", "fit_posteriors"]


@dataclass(frozen=True, eq=False)
class Problem:
    r"""A linear Gaussian model whose posteriors are known: $y \sim N(c, P)$, $x \mid y \sim N(z A y, s^2 I)$.

    The contrast z of an image scales the evidence: the posterior's mean moves from c, and its covariance shrinks.

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
        """A problem of num latent variables, with as many pixels; one pattern at several contrasts.

        Args:
            num: Number n of latent variables.
            seed: Seed of features and pattern.
            contrasts: The contrasts.
        """
        generator = torch.Generator().manual_seed(seed)
        places = torch.arange(num, dtype=torch.float64)
        apart = (places.unsqueeze(1) - places).abs()
        apart = torch.minimum(apart, num - apart)
        prior = torch.exp(-apart / 1.5)
        features = torch.exp(-0.5 * apart.square()) / 1.5
        drawn = torch.linalg.cholesky(prior) @ torch.randn(num, generator=generator, dtype=torch.float64)
        images, means, covariances = [], [], []
        for contrast in contrasts:
            precision = prior.inverse() + contrast**2 * features.T @ features / _SPREAD**2
            covariance = precision.inverse()
            image = contrast * features @ (_CENTER + drawn)
            images.append(image)
            means.append(
                _CENTER
                + covariance @ (contrast * features.T @ (image - contrast * features.sum(1) * _CENTER)) / _SPREAD**2
            )
            covariances.append(covariance)
        return cls(torch.stack(images), torch.stack(means), torch.stack(covariances))


@dataclass(frozen=True)
class PosteriorFit(Record):
    """How well the stationary moments of a trained network match the posteriors, on noise it was not trained on.

    Args:
        mean_error: Error of the means, root mean square over that of the posterior means from the prior's.
        covariance_error: Error of the covariances, Frobenius norm over that of the posterior covariances.
        untrained_mean_error: The first before training.
        untrained_covariance_error: The second before training.
        moments_mean_error: The first by propagated moments in place of trajectories.
        moments_covariance_error: The second by propagated moments.
    """

    mean_error: float
    covariance_error: float
    untrained_mean_error: float
    untrained_covariance_error: float
    moments_mean_error: float
    moments_covariance_error: float


class _Inhibitory(nn.Module):
    """Weights below 0: rates that rise with the square of their potentials run away under excitation."""

    def forward(self, raw: Tensor) -> Tensor:
        """The weights."""
        return -nn.functional.softplus(raw)


class _Sampler(nn.Module):
    """Input weights and biases before a rate network; potentials of the first neurons stand for the latent variables.

    The others are free: neurons that inhibit those that inhibit do the work of excitation.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.latents = problem.mean.shape[1]
        num = _NEURONS * self.latents
        self.network = RateNetwork(num, dt=5.0)
        register_parametrization(self.network, "weight", _Inhibitory())
        nn.init.constant_(self.network.parametrizations.weight.original, -3.0)  # type: ignore[union-attr, arg-type]
        self.feed = nn.Linear(problem.images.shape[1], num)
        nn.init.constant_(self.feed.bias, _CENTER)

    def trajectories(self, problem: Problem, runs: int, steps: int, skip: int) -> Tensor:
        """Potentials after a transient, for each image, (B, draws, n)."""
        drive = self.feed(problem.images).repeat_interleave(runs, dim=0)
        found = self.network(drive, steps, skip)  # (T, B runs, n)
        return found[..., : self.latents].unflatten(1, (-1, runs)).movedim(1, 0).flatten(1, 2)


def _errors(mean: Tensor, covariance: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    by_mean = (mean - problem.mean).square().sum() / (problem.mean - _CENTER).square().sum()
    by_covariance = (covariance - problem.covariance).square().sum() / problem.covariance.square().sum()
    return by_mean, by_covariance


def _sampled_errors(sampler: _Sampler, problem: Problem, runs: int, steps: int, skip: int) -> tuple[Tensor, Tensor]:
    drawn = sampler.trajectories(problem, runs, steps, skip)
    mean = drawn.mean(1)
    apart = drawn - mean.unsqueeze(1)
    return _errors(mean, apart.mT @ apart / (drawn.shape[1] - 1), problem)


def fit_posteriors(num: int = 6, *, epochs: int = 60, lr: float = 0.02, runs: int = 40, seed: int = 0) -> PosteriorFit:
    """Train a rate network on frozen noise so that it samples from known posteriors.

    Args:
        num: Number of latent variables.
        epochs: Passes through the members of the noise, each a step of Adam on all images.
        lr: Learning rate, falling linearly to 0.
        runs: Trajectories an image and member.
        seed: Seed of the problem, the start and the noise; torch's random state is left as it was.

    Returns:
        The errors on fresh noise, before and after.

    Example:
        >>> fit_posteriors(3, epochs=1, runs=4).mean_error > 0
        True

    References:
        Echeveste, Aitchison, Hennequin, Lengyel 2020.
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
            state = sampler.network.moments(sampler.feed(problem.images), _STEPS)
            num = sampler.latents
            moments = _errors(state.mean[:, :num], state.covariance[:, :num, :num], problem)
    return PosteriorFit(*(value.sqrt().item() for value in (*after, *before, *moments)))
