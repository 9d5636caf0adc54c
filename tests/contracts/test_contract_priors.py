"""What every prior does, by the registry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from common import COPIES, assert_documented, kinds, public, same_state
from pyro import poutine
from registry import PRIORS, model_of
from torch import Tensor, nn
from torch.autograd import gradcheck

import pyrostoch as ps
from pyrostoch.distributions import has_closed_form, kl_sum
from pyrostoch.priors import Prior

DRAWS = 40_000
F64 = {"dtype": torch.float64}
each_prior = pytest.mark.parametrize("name", PRIORS)
PROPER = [name for name, member in PRIORS.items() if not member.make().improper]


def distribution_of(name: str, shape: tuple[int, ...] = (3, 4), dtype: torch.dtype = torch.float64) -> Any:
    prior = PRIORS[name].make().for_parameter(torch.zeros(1, dtype=dtype))
    with poutine.block():
        return prior.distribution("site", torch.Size(shape))


def test_every_public_prior_is_registered() -> None:
    assert public(ps.priors, Prior) == kinds(PRIORS)


@each_prior
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 1, 3, 3)])
def test_one_distribution_a_weight(name: str, shape: tuple[int, ...]) -> None:
    found = distribution_of(name, shape)
    assert found.batch_shape == shape and found.event_shape == ()
    assert found.to_event(len(shape)).event_shape == shape


@pytest.mark.parametrize("name", PROPER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_parameters_dtype_and_the_moments_named(name: str, dtype: torch.dtype) -> None:
    member = PRIORS[name]
    draws = distribution_of(name, (DRAWS,), dtype).sample()
    assert draws.dtype == dtype and torch.isfinite(draws).all()
    if member.mean is not None:
        assert abs(draws.mean().item() - member.mean) <= 5.0 * math.sqrt(member.variance / DRAWS)
        fourth = (draws - draws.mean()).double().pow(4).mean().item()
        error = math.sqrt(max(fourth - member.variance**2, 0.0) / DRAWS)
        assert abs(draws.var().item() - member.variance) <= 6.0 * error + 1e-6


@pytest.mark.parametrize("name", [name for name in PRIORS if PRIORS[name].density])
def test_density_is_finite_differentiable_and_proper_where_it_says_so(name: str) -> None:
    found = distribution_of(name, ())
    values = torch.linspace(-1.7, 1.9, 12, **F64).requires_grad_()
    assert torch.isfinite(found.log_prob(values)).all()
    assert gradcheck(found.log_prob, (values,))
    if name in PROPER:
        # t -> sinh(t): dense where a narrow part of a mixture lies, and far out where tails are heavy.
        t = torch.linspace(-16.0, 16.0, 200_001, **F64)
        mass = torch.trapezoid(found.log_prob(t.sinh()).exp() * t.cosh(), t).item()
        assert mass == pytest.approx(1.0, abs=1e-4)
    else:
        assert PRIORS[name].make().improper


@each_prior
def test_what_cannot_be_drawn_says_so_by_name(name: str) -> None:
    if not PRIORS[name].make().improper:
        return
    with pytest.raises(ValueError, match=f"{name} is an improper prior"):
        distribution_of(name).sample()


@each_prior
def test_each_site_has_a_copy_of_its_own(name: str) -> None:
    prior = PRIORS[name].make()
    model = model_of(nn.Sequential(nn.Linear(3, 2, **F64), nn.Linear(2, 1, **F64)), prior)
    one, other = model.prior("0.weight"), model.prior("1.weight")
    assert type(one) is type(other) is type(prior) and len({id(one), id(other), id(prior)}) == 3
    assert repr(one) == repr(other) == repr(prior)
    held = [{value.data_ptr() for value in part.state_dict().values()} for part in (one, other, prior)]
    assert not held[0] & held[1] and not held[0] & held[2]
    assert all(site.improper == prior.improper for site in model.sites.values() if site.role == "weight")


@each_prior
def test_kl_of_a_normal_posterior(name: str) -> None:
    """At least 0 where the prior is proper, the mean of log densities where there are some, with the right slope."""
    prior = distribution_of(name, (3,))
    loc = torch.tensor([0.3, -0.2, 0.8], **F64, requires_grad=True)
    log_scale = torch.tensor([-1.0, -0.5, -0.3], **F64, requires_grad=True)

    def posterior(loc: Tensor, log_scale: Tensor) -> Any:
        return ps.distributions.MultiplicativeNormal(loc, 2.0 * log_scale - loc.square().log()).to_event(1)

    if not has_closed_form(posterior(loc, log_scale), prior.to_event(1)):
        # Then by an estimate, or under a posterior of another kind.
        assert PRIORS[name].density or PRIORS[name].posterior is not ps.guides.Additive
        return
    kl = kl_sum(posterior(loc, log_scale), prior.to_event(1))
    assert torch.isfinite(kl) and (kl >= 0.0 or PRIORS[name].make().improper)
    assert gradcheck(lambda *values: kl_sum(posterior(*values), prior.to_event(1)), (loc, log_scale))
    if PRIORS[name].density:
        draws = posterior(loc, log_scale).sample((DRAWS,))
        values = (posterior(loc, log_scale).log_prob(draws) - prior.to_event(1).log_prob(draws)).detach()
        assert abs(values.mean().item() - kl.item()) <= 5.0 * values.std().item() / math.sqrt(DRAWS)


@each_prior
def test_a_model_under_it_is_trained(name: str) -> None:
    model = model_of(nn.Linear(3, 2, **F64), PRIORS[name].make())
    guide = PRIORS[name].posterior(model)
    loss = ps.ELBO("local")(model, guide)
    loss(torch.randn(5, 3, **F64), torch.randn(5, 2, **F64)).backward()
    trained = [p for p in loss.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert ("weight_prior_scale" in model.sites) == PRIORS[name].random_scale


@each_prior
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_independent(name: str, way: str) -> None:
    prior = PRIORS[name].make()
    twin = COPIES[way](prior)
    assert type(twin) is type(prior) and repr(twin) == repr(prior) and same_state(prior, twin)
    if name in PROPER:
        found = []
        for each in (prior, twin):
            torch.manual_seed(0)
            found.append(each.distribution("site", torch.Size([4])).sample())
        assert torch.equal(*found)


@each_prior
def test_precision_is_changed_by_to(name: str) -> None:
    prior = PRIORS[name].make()
    for dtype in (torch.float32, torch.float64):
        prior.to(dtype)
        assert all(value.dtype == dtype for value in prior.state_dict().values())
        if name in PROPER:
            assert prior.distribution("site", torch.Size([2])).sample().dtype == dtype


@pytest.mark.parametrize("kind", sorted(kinds(PRIORS)))
def test_documentation(kind: str) -> None:
    assert_documented(getattr(ps.priors, kind), source=PRIORS[kind].source)
