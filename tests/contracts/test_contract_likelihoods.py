"""What every likelihood does, by the registry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from common import COPIES, assert_documented, kinds, public, same_state
from registry import COMPOSITES, LIKELIHOODS
from torch import Tensor
from torch.autograd import gradcheck

from pyrostoch import likelihoods
from pyrostoch.likelihoods import Likelihood
from pyrostoch.likelihoods.base import elementwise

F64 = torch.float64
DRAWS = 20_000
each_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


def output_of(name: str, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(LIKELIHOODS[name].output, dtype=dtype)


def made(name: str, output: Tensor) -> tuple[Any, Any]:
    likelihood = LIKELIHOODS[name].make().to(output.dtype)
    return likelihood, likelihood(output)


def test_every_public_likelihood_is_registered() -> None:
    missing = public(likelihoods, Likelihood) ^ (kinds(LIKELIHOODS) | kinds(COMPOSITES))
    assert not missing, f"{missing}: expected a line for each public likelihood in LIKELIHOODS of the registry"


@each_likelihood
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_one_batch_axis_and_the_outputs_dtype(name: str, dtype: torch.dtype) -> None:
    likelihood, distribution = made(name, output_of(name, dtype))
    assert distribution.batch_shape == (5,)
    target = distribution.sample()
    assert target.shape == LIKELIHOODS[name].target
    assert target.is_floating_point() != LIKELIHOODS[name].integer
    density = distribution.log_prob(target)
    assert density.shape == (5,) and density.dtype == dtype and torch.isfinite(density).all()


@each_likelihood
def test_its_own_draws_are_targets_and_other_shapes_are_refused(name: str) -> None:
    likelihood, distribution = made(name, output_of(name))
    target = distribution.sample()
    likelihood.check_shape(distribution, target)
    likelihood.check_target(distribution, target)
    for wrong in (target[:4], target.unsqueeze(-1), target.expand(2, *target.shape)):
        with pytest.raises(ValueError, match=r"expected targets of shape \(5,.*got \("):
            likelihood.check_shape(distribution, wrong)
    if target.is_floating_point():
        target[0] = math.nan
        with pytest.raises(ValueError, match=f"likelihood {type(likelihood).__name__}"):
            likelihood.check_target(distribution, target)
    else:
        with pytest.raises(TypeError, match=f"likelihood {type(likelihood).__name__}: expected integer"):
            likelihood.check_shape(distribution, target.double())


@each_likelihood
@pytest.mark.parametrize("value", [-1.5, -1.0, 0.5])
def test_targets_outside_the_support_are_refused(name: str, value: float) -> None:
    likelihood, distribution = made(name, output_of(name))
    target = distribution.sample()
    target[1] = value
    inside = elementwise(distribution).support.check(target)
    if bool(inside.all()):
        likelihood.check_target(distribution, target)
    else:
        with pytest.raises(ValueError, match=r"likelihood \w+: expected .*, got \d+ (others|outside), among them"):
            likelihood.check_target(distribution, target)


@each_likelihood
def test_the_density_of_an_example_depends_on_its_own_output_alone(name: str) -> None:
    output = output_of(name)
    likelihood, _ = made(name, output)
    # A loss may be flat where a target is right, but not for each of many targets.
    targets = [likelihood(torch.zeros_like(output)).sample() for _ in range(40)]

    def densities() -> Tensor:
        torch.manual_seed(0)
        distribution = likelihood(output)
        return torch.stack([distribution.log_prob(target) for target in targets])

    before = densities()
    output[2] += torch.randn_like(output[2])
    assert (before != densities()).any(0).tolist() == [False, False, True, False, False]


@each_likelihood
def test_gradients_by_the_output(name: str) -> None:
    output = output_of(name)
    likelihood, distribution = made(name, output)
    target = distribution.sample()

    def density(output: Tensor) -> Tensor:
        torch.manual_seed(0)
        return likelihood(output).log_prob(target)

    assert gradcheck(density, (output.requires_grad_(),))


@each_likelihood
def test_gradients_by_what_is_learned(name: str) -> None:
    output = output_of(name)
    likelihood, distribution = made(name, output)
    target = distribution.sample()
    learned = list(likelihood.parameters())
    assert learned or not name.endswith("learned")
    if learned:
        likelihood(output).log_prob(target).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in learned)


@each_likelihood
def test_mean_and_variance_are_those_of_draws(name: str) -> None:
    _, distribution = made(name, output_of(name))
    try:
        mean, variance = distribution.mean, distribution.variance
    except NotImplementedError:
        return
    if not bool(torch.isfinite(mean).all()):
        return  # class labels have no mean
    draws = distribution.sample((DRAWS,)).double()
    if draws.shape[1:] != mean.shape:  # a time and what is known of it
        draws = draws[..., 0]
    assert ((draws.mean(0) - mean).abs() <= 5.5 * (variance / DRAWS).sqrt()).all()
    fourth = (draws - mean).pow(4).mean(0)
    error = ((fourth - variance.square()).clamp_min(0.0) / DRAWS).sqrt()
    assert ((draws.var(0) - variance).abs() <= 7.0 * error + 0.05 * variance).all()


@each_likelihood
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_independent(name: str, way: str) -> None:
    output = output_of(name)
    likelihood, distribution = made(name, output)
    twin = COPIES[way](likelihood)
    assert type(twin) is type(likelihood) and same_state(likelihood, twin) and twin.identity() == likelihood.identity()
    target = distribution.sample()
    found = []
    for each in (likelihood, twin):
        torch.manual_seed(0)
        found.append(each(output).log_prob(target))
    assert torch.equal(*found)


@pytest.mark.gpu
@each_likelihood
def test_device_is_changed_by_to(name: str) -> None:
    likelihood = LIKELIHOODS[name].make().to("cuda")
    distribution = likelihood(output_of(name, torch.float32).cuda())
    assert distribution.log_prob(distribution.sample()).device.type == "cuda"


@pytest.mark.parametrize("kind", sorted(kinds(LIKELIHOODS) | kinds(COMPOSITES)))
def test_documentation(kind: str) -> None:
    assert_documented(getattr(likelihoods, kind), source=False)
