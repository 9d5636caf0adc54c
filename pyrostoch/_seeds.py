"""Seeds of torch's random generators: derive them from integers, set them, and restore the generators' states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["forked", "generator_states", "mixed_seed", "reseed", "set_generator_states"]


def mixed_seed(*parts: int) -> int:
    """Derive one seed from several non-negative integers; it is the same on every machine.

    Args:
        parts: The run's seed, and integers that distinguish this use of it from others: epoch, batch, rank.

    Returns:
        A number below 2^63.

    Example:
        >>> mixed_seed(7, 0, 1) == mixed_seed(7, 0, 1), mixed_seed(7, 0, 1) == mixed_seed(7, 1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore torch's generators (the CPU's and the device's) on leaving; inside, seed them where a seed is given."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            reseed(device, seed)
        yield


def generator_states(device: torch.device | None) -> tuple[torch.Tensor, ...]:
    """The states of torch's generators, of the CPU and of one device: equal where no number was drawn in between.

    Args:
        device: The device, or `None` for the CPU alone.

    Example:
        >>> before = generator_states(None)
        >>> _ = torch.randn(1)
        >>> torch.equal(before[0], generator_states(None)[0])
        False
    """
    states = (torch.get_rng_state(),)
    return states if device is None or device.type != "cuda" else (*states, torch.cuda.get_rng_state(device))


def set_generator_states(device: torch.device | None, states: tuple[torch.Tensor, ...]) -> None:
    """Put torch's generators back where `generator_states` found them.

    Args:
        device: The device, or `None` for the CPU alone.
        states: The states.
    """
    torch.set_rng_state(states[0])
    if device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def reseed(device: torch.device, seed: int) -> None:
    """Seed torch's generators of the CPU and of one device; other devices' generators are left alone."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
