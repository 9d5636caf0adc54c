"""Frozen noise: a fixed ensemble of draws, each a deterministic path that can be differentiated and visited again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from pyrostoch._checks import check_count
from pyrostoch._seeds import mixed_seed

__all__ = ["frozen_noise", "noise_is_frozen", "particles"]

_ACTIVE: list[frozen_noise] = []


class frozen_noise:  # noqa: N801 - read as a verb: with frozen_noise(num=10, seed=0)
    r"""A handler that fixes an ensemble of noise: of weights, activations, masks and trajectories alike.

    Inside it a loss is the mean over the ensemble,

    $$ \frac1M \sum_{m=1}^M \mathcal{L}(\theta, \xi_m), $$

    with the same $\xi_m$ at every call: a deterministic function of the parameters, for L-BFGS, line searches, finite
    differences, or for learning trajectories of a recurrent network. `ELBO` and `fit` visit all members at each step,
    in place of their `num_particles`; iterate over the handler to visit them yourself.

    A member is the state of torch's generators at its start, so whatever is drawn in the same order and shapes is
    the same. Noise of single examples belongs to the place in the batch: use one full batch, or `estimator="shared"`,
    where a draw is to stay with its example. Steps are not compiled inside it. Generators are left as they were.

    Args:
        num: Number M of members.
        seed: Seed of the ensemble.

    Raises:
        ValueError: `num` is no whole number from 1 up.

    References:
        Echeveste, Aitchison, Hennequin, Lengyel, "Cortical-like dynamics in recurrent circuits optimized for
        sampling-based probabilistic inference", 2020, for training on frozen noise.

    Example:
        >>> def draws():
        ...     found = []
        ...     with frozen_noise(num=2, seed=0) as noise:
        ...         for member in noise:
        ...             with member:
        ...                 found.append(torch.randn(()).item())
        ...     return found
        >>> draws() == draws(), len(set(draws()))
        (True, 2)
    """

    def __init__(self, num: int = 1, seed: int = 0) -> None:
        self.num = check_count("frozen_noise num", num)
        self.seed = seed

    def __enter__(self) -> frozen_noise:
        _ACTIVE.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _ACTIVE.remove(self)

    def __iter__(self) -> Iterator[AbstractContextManager[None]]:
        return (self._member(index) for index in range(self.num))

    def __len__(self) -> int:
        return self.num

    @contextlib.contextmanager
    def _member(self, index: int) -> Iterator[None]:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(mixed_seed(self.seed, index))
            yield


def noise_is_frozen() -> bool:
    """Whether a `frozen_noise` is in force."""
    return bool(_ACTIVE)


def particles(count: int) -> tuple[AbstractContextManager[None], ...]:
    """A context for each draw that a loss averages over: fresh ones, or the members of the frozen noise in force.

    Args:
        count: Number of fresh draws.

    Example:
        >>> len(particles(3))
        3
        >>> with frozen_noise(num=5):
        ...     len(particles(3))
        5
    """
    return tuple(_ACTIVE[-1]) if _ACTIVE else (contextlib.nullcontext(),) * count
