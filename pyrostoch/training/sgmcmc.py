"""Markov chains by stochastic gradients: SGHMC, SGLD, and their cyclical variants."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch.guides import Samples

__all__ = ["SGHMC", "Dynamics", "check_sampler"]


@dataclass(frozen=True)
class SGHMC:
    r"""Stochastic gradient Hamiltonian Monte Carlo, for `fit(sampler=)` and a guide `Samples.chain`.

    With $U(w) = -\log p(y, w \mid x)$, which a batch estimates, and the learning rate $\epsilon$ of `fit`:

    $$ v \leftarrow (1 - \alpha) v - \epsilon \nabla U(w) + \sqrt{2 \alpha \epsilon}\, \xi, \qquad
    w \leftarrow w + v. $$

    With friction $\alpha = 1$ it is SGLD. The chain samples the posterior as $\epsilon \to 0$; a finite rate and the
    noise of batches widen it. With one cycle the rate is constant, the first part of the epochs is left out, and draws
    are taken at the ends of the others. With several, the rate falls to 0 as a cosine in each; in the first part of a
    cycle there is no noise, so that the chain finds another mode.

    Args:
        cycles: Number of cycles, of the same number of epochs.
        friction: $\alpha$, from 0 to 1.
        explore: Share of each cycle in which no draws are taken.

    Raises:
        ValueError: A setting is out of range.

    References:
        Chen, Fox, Guestrin, "Stochastic gradient Hamiltonian Monte Carlo", 2014; Welling, Teh, "Bayesian learning via
        stochastic gradient Langevin dynamics", 2011; Zhang, Li, Zhang, Chen, Wilson, "Cyclical stochastic gradient MCMC
        for Bayesian deep learning", 2020.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = ps.BayesianModel(torch.nn.Linear(1, 1), prior={"*": ps.priors.Normal()},
        ...                          likelihood=ps.likelihoods.Gaussian(0.5), num_data=50)
        >>> guide = ps.guides.Samples.chain(model, 20)
        >>> _ = ps.fit(model, guide, (x, 2 * x), epochs=200, batch_size=50, lr=1e-3, sampler=SGHMC(), seed=0,
        ...            progress=False, compile=False)
        >>> len(guide), bool(guide.values("weight").mean() > 1.5)
        (20, True)
    """

    cycles: int = 1
    friction: float = 0.1
    explore: float = 0.5

    def __post_init__(self) -> None:
        check_count("SGHMC cycles", self.cycles)
        if not 0.0 < self.friction <= 1.0:
            raise ValueError(f"SGHMC friction: expected a number above 0 and at most 1, got {self.friction!r}")
        if not 0.0 <= self.explore < 1.0:
            raise ValueError(f"SGHMC explore: expected a share from 0 up and below 1, got {self.explore!r}")

    def window(self, length: int) -> int:
        """Number of epochs of a cycle in which draws are taken.

        Args:
            length: Number of epochs of the cycle.
        """
        return length - math.floor(self.explore * length)

    def takes(self, number: int, epochs: int, size: int) -> bool:
        """Whether a draw is taken at the end of an epoch.

        Args:
            number: The epoch, counted from 1.
            epochs: Number of epochs.
            size: Number of draws.

        Example:
            >>> [number for number in range(1, 13) if SGHMC(cycles=2).takes(number, 12, 4)]
            [5, 6, 11, 12]
        """
        length, draws = epochs // self.cycles, size // self.cycles
        window = self.window(length)
        place = (number - 1) % length + 1 - (length - window)
        return place > 0 and place * draws // window > (place - 1) * draws // window

    def factor(self, done: float) -> float:
        """The factor of the learning rate, by the fraction of steps already made.

        Args:
            done: The fraction.
        """
        return 1.0 if self.cycles == 1 else 0.5 * (1.0 + math.cos(math.pi * (done * self.cycles % 1.0)))

    def has_noise(self, done: float) -> bool:
        """Whether noise is added, by the fraction of steps already made.

        Args:
            done: The fraction.
        """
        return self.cycles == 1 or done * self.cycles % 1.0 >= self.explore


class Dynamics(torch.optim.Optimizer):
    """The step of `SGHMC` as an optimizer, whose loss is U.

    Args:
        params: Parameters, or groups of them with learning rates.
        lr: Learning rate.
        friction: The friction.
        temperature: Temperature of the noise.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, friction: float = 0.1, temperature: float = 1.0
    ) -> None:
        super().__init__(params, {"lr": lr, "friction": friction, "temperature": temperature})
        self.noise = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step.

        Args:
            closure: Not used.
        """
        for group in self.param_groups:
            rate, friction = group["lr"], group["friction"]
            spread = math.sqrt(2.0 * friction * rate * group["temperature"]) if self.noise else 0.0
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity: Tensor = state["velocity"]
                velocity.mul_(1.0 - friction).add_(parameter.grad, alpha=-rate)
                if spread:
                    velocity.add_(torch.randn_like(parameter), alpha=spread)
                parameter.add_(velocity)


def check_sampler(
    sampler: SGHMC,
    guide: object,
    epochs: int,
    optimizer: object,
    schedule: object,
    patience: object,
    clip: object,
) -> None:
    """Raise an error for settings that a chain cannot be run with.

    Args:
        sampler: The sampler.
        guide: The guide.
        epochs: Number of epochs.
        optimizer: The optimizer, of which there must be none.
        schedule: The schedule of the learning rate, which is the sampler's.
        patience: That of early stopping, which would stop a chain.
        clip: Largest norm of a gradient, which would change what a chain samples.

    Raises:
        TypeError: The guide is not made by `Samples.chain`.
        ValueError: The draws or the epochs cannot be divided among the cycles, or a setting contradicts the sampler.
    """
    if not isinstance(guide, Samples) or guide.point is None:
        raise TypeError(
            f"fit sampler: expected a guide made by guides.Samples.chain(model, size), which keeps the draws, got "
            f"{type(guide).__name__}{see('how-to/ensembles')}"
        )
    given = {"optimizer": optimizer, "schedule": schedule, "patience": patience, "clip": clip}
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"fit: {name}={value!r} and a sampler contradict each other: a chain has steps and rates of its own, "
                f"and one whose rate ends at 0, or that is stopped or clipped, samples nothing; leave {name} out"
                f"{see('how-to/ensembles')}"
            )
    epochs = check_count("epochs", epochs)
    if epochs % sampler.cycles or guide.size % sampler.cycles:
        raise ValueError(
            f"fit sampler: expected epochs and draws that are multiples of cycles={sampler.cycles}, got {epochs} "
            f"epochs and {guide.size} draws"
        )
    window, draws = sampler.window(epochs // sampler.cycles), guide.size // sampler.cycles
    if window < draws:
        raise ValueError(
            f"fit sampler: expected at least {draws} epochs of each cycle after the first {sampler.explore:g} of it, "
            f"one for each draw, got {window}; take more epochs, fewer draws or a smaller explore"
        )
