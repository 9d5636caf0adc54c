"""What every likelihood that is made of others does, by the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import COPIES, same_state
from registry import COMPOSITES
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils import _pytree as pytree

from pyrostoch.likelihoods.several import expected_log_prob

F64 = torch.float64
each_composite = pytest.mark.parametrize("name", COMPOSITES)


def made(name: str, dtype: torch.dtype = F64) -> tuple[Any, Any, Any]:
    """The likelihood, a network's output, and targets."""
    member = COMPOSITES[name]
    likelihood = member.make().to(dtype)
    return likelihood, member.output(dtype), likelihood.read_target(member.target(dtype))


@each_composite
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_one_density_for_each_example_in_the_outputs_dtype(name: str, dtype: torch.dtype) -> None:
    likelihood, output, target = made(name, dtype)
    distribution = likelihood(output)
    assert distribution.batch_shape == (5,)
    likelihood.check_shape(distribution, target)
    likelihood.check_target(distribution, target)
    density = distribution.log_prob(target)
    assert density.shape == (5,) and density.dtype == dtype and torch.isfinite(density).all()
    torch.testing.assert_close(expected_log_prob(distribution, target), density)


@each_composite
def test_other_numbers_of_targets_are_refused(name: str) -> None:
    likelihood, output, target = made(name)
    with pytest.raises(ValueError, match="expected"):
        likelihood.check_shape(likelihood(output), target[:4])


@each_composite
def test_the_density_of_an_example_depends_on_its_own_output_alone(name: str) -> None:
    likelihood, output, target = made(name)
    before = likelihood(output).log_prob(target)

    def moved(part: Tensor) -> Tensor:
        # By another step in each column, since steps in two directions may cancel in a sum of absolute values.
        return torch.where(torch.arange(5)[:, None] == 2, part + torch.linspace(1.0, 1.7, part.shape[1]), part)

    after = likelihood(pytree.tree_map(moved, output)).log_prob(target)
    assert (before != after).tolist() == [False, False, True, False, False]


@each_composite
def test_gradients_by_the_output(name: str) -> None:
    likelihood, output, target = made(name)
    leaves, tree = pytree.tree_flatten(output)

    def density(*leaves: Tensor) -> Tensor:
        found: Tensor = likelihood(pytree.tree_unflatten(list(leaves), tree)).log_prob(target)
        return found

    assert gradcheck(density, tuple(leaf.requires_grad_() for leaf in leaves))


@each_composite
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_independent(name: str, way: str) -> None:
    likelihood, output, target = made(name)
    twin = COPIES[way](likelihood)
    assert type(twin) is type(likelihood) and same_state(likelihood, twin) and twin.identity() == likelihood.identity()
    assert torch.equal(likelihood(output).log_prob(target), twin(output).log_prob(target))


@pytest.mark.gpu
@each_composite
def test_device_is_changed_by_to(name: str) -> None:
    likelihood, output, target = made(name, torch.float32)
    moved = pytree.tree_map(Tensor.cuda, output)
    assert likelihood.cuda()(moved).log_prob(target.to("cuda")).device.type == "cuda"
