"""Frozen noise: a fixed ensemble of random draws that a loss uses at every call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from pyrostoch._checks import check_count
from pyrostoch._seeds import mixed_seed

__all__ = ["frozen_noise", "noise_is_frozen", "particles"]

_ACTIVE: list[frozen_noise] = []


class frozen_noise:  # noqa: N801 - read as a verb: with frozen_noise(num=10, seed=0)
    r"""A context that fixes an ensemble of random draws: of weights, activations, dropout masks and trajectories.

    Inside it a loss is the mean over the ensemble,

    $$ \frac1M \sum_{m=1}^M \mathcal{L}(\theta, \xi_m), $$

    with the same $\xi_m$ at every call. This is a deterministic function of the parameters, as L-BFGS, line searches,
    finite differences, or learning the trajectories of a recurrent network need it. `ELBO` and `fit` use all members at
    each step, in place of their `num_particles`. To use the members one by one, iterate over the context.

    A member is a seed of torch's generators, so draws of the same shapes in the same order are the same. Noise that is
    drawn for each example belongs to the example's place in the batch; where it must stay with the example, use one
    full batch or `estimator="shared"`. Steps are not compiled inside the context. The generators' states are restored.

    Args:
        num: Number M of members.
        seed: Seed of the ensemble.

    Raises:
        ValueError: `num` is not an integer of at least 1.

    References:
        Echeveste, Aitchison, Hennequin, Lengyel, "Cortical-like dynamics in recurrent circuits optimized for
        sampling-based probabilistic inference", 2020, trains on frozen noise.

    Example:
        >>> def draws():
        ...     values = []
        ...     with frozen_noise(num=2, seed=0) as noise:
        ...         for member in noise:
        ...             with member:
        ...                 values.append(torch.randn(()).item())
        ...     return values
        >>> draws() == draws(), len(set(draws()))
        (True, 2)
    """

    def __init__(self, num: int = 1, seed: int = 0) -> None:
        self.num = check_count("frozen_noise num", num)
        self.seed = seed

    def __enter__(self) -> frozen_noise:
        _ACTIVE.append(self)
        return self

    def __exit__(self, *_: object) -> None:
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
    """Whether a `frozen_noise` context is active."""
    return bool(_ACTIVE)


def particles(count: int) -> tuple[AbstractContextManager[None], ...]:
    """One context for each draw that a loss averages over: the members of the active `frozen_noise`, if there is one.

    Args:
        count: Number of draws without `frozen_noise`.

    Example:
        >>> len(particles(3))
        3
        >>> with frozen_noise(num=5):
        ...     len(particles(3))
        5
    """
    return tuple(_ACTIVE[-1]) if _ACTIVE else (contextlib.nullcontext(),) * count
