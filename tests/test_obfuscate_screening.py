"""Screening hides patches of a grid that is laid at random over each example."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrostoch.obfuscate import Screening


def by_hand(x: Tensor, fraction: float, patch: int) -> Tensor:
    """The same random numbers, place by place."""
    count, _, height, width = x.shape
    cells = torch.rand(count, (height - 1) // patch + 2, (width - 1) // patch + 2) < fraction
    down, right = torch.randint(patch, (count, 1)), torch.randint(patch, (count, 1))
    found = x.clone()
    for n in range(count):
        for i in range(height):
            for j in range(width):
                if cells[n, (i + int(down[n, 0])) // patch, (j + int(right[n, 0])) // patch]:
                    found[n, :, i, j] = 0.0
    return found


@pytest.mark.parametrize(("fraction", "patch"), [(0.3, 4), (0.9, 1), (0.0, 3), (0.5, 9)])
def test_places_are_those_found_one_by_one(fraction: float, patch: int) -> None:
    x = torch.rand(5, 2, 9, 11) + 1.0
    state = torch.get_rng_state()
    found = Screening(fraction, patch)(x)
    torch.set_rng_state(state)
    assert torch.equal(found, by_hand(x, fraction, patch))


def test_the_expected_share_is_hidden_anew_at_each_call() -> None:
    screening = Screening(0.25, patch=4)
    x = torch.ones(2000, 1, 28, 28)
    one, two = screening(x), screening(x)
    # A cell of 16 places at most: the share of an example has a standard deviation of at most .5 / 7.
    assert abs((one == 0).double().mean() - 0.25) < 5 * 0.5 / 7 / 2000**0.5
    assert not torch.equal(one, two)
    assert torch.equal(x, torch.ones_like(x))


def test_vectors_and_series_are_screened_along_their_own_axes() -> None:
    vector = Screening(0.5, patch=2)(torch.ones(50, 12))
    assert {0.0, 1.0} == set(vector.unique().tolist())
    series = Screening(0.5, patch=3)(torch.ones(50, 4, 12))
    assert torch.equal(series[:, 0], series[:, 3])  # every channel alike


def test_hidden_places_may_be_noise_like_the_example_itself() -> None:
    x = 3.0 + 2.0 * torch.randn(40, 1, 32, 32)
    found = Screening(0.5, patch=4, fill="noise")(x)
    new = found[found != x].double()
    assert abs(new.mean() - 3.0) < 0.1
    assert abs(new.std() - 2.0) < 0.1


def test_what_cannot_be_screened_is_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        Screening()(torch.zeros(2, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="longer than an axis"):
        Screening(patch=4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="batch, channels"):
        Screening()(torch.zeros(2))
    for wrong in (1.0, -0.1, True):
        with pytest.raises(ValueError, match="fraction"):
            Screening(wrong)
    with pytest.raises(ValueError, match="patch"):
        Screening(patch=0)
    with pytest.raises(ValueError, match="fill"):
        Screening(fill="blur")  # type: ignore[arg-type]
