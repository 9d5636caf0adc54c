"""What every guide does, by the registry."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from common import COPIES, assert_documented, kinds, public, same_state
from guide_registry import GUIDES
from pyro import poutine
from registry import model_of
from torch import nn
from torch.autograd import gradcheck

import pyrostoch as ps
from pyrostoch.distributions import has_closed_form, kl_sum
from pyrostoch.effects import LocalReparameterization
from pyrostoch.guides import Guide, PerSite

DRAWS = 4000
each_guide = pytest.mark.parametrize("name", GUIDES)


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[ps.BayesianModel, Any]:
    between = ps.layers.StochasticLinear(4, 4, prior="standard") if GUIDES[name].amortised else nn.Tanh()
    net = nn.Sequential(nn.Linear(3, 4, bias=False), between, nn.Linear(4, 2)).to(dtype)
    model = model_of(net, GUIDES[name].prior())
    return model, GUIDES[name].make(model)


def draw(name: str, guide: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return guide(x) if GUIDES[name].amortised else guide()


def prior_of(model: ps.BayesianModel, site: str) -> Any:
    shape = model.sites[site].init.shape
    return model.prior(site).distribution(site, shape).to_event(len(shape))


def test_every_public_guide_is_registered() -> None:
    missing = (public(ps.guides, Guide) | {"Guide", "PerSite", "Amortised"}) ^ kinds(GUIDES)
    assert not missing, f"{missing}: expected a line for each in tests/contracts/guide_registry.py"


@each_guide
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtype_and_draws(name: str, dtype: torch.dtype) -> None:
    model, guide = build(name, dtype)
    assert list(guide.site_names) == list(guide.weight_names) == list(model.sites)
    drawn = draw(name, guide, torch.randn(5, 3, dtype=dtype))
    assert list(drawn) == list(model.sites)
    others = {key: value.dtype for key, value in guide.named_parameters() if value.dtype != dtype}
    assert not others, f"parameters in another precision than the model's {dtype}: {others}"
    for site, described in model.sites.items():
        distribution = guide.site_distribution(site)
        assert distribution.event_shape == described.init.shape == drawn[site].shape and not distribution.batch_shape
        assert drawn[site].dtype == dtype and torch.isfinite(drawn[site]).all()
        if GUIDES[name].moments:
            assert distribution.mean.dtype == dtype and torch.isfinite(distribution.variance).all()


class Scaled(nn.Module):
    """A network with a random number."""

    def __init__(self):
        super().__init__()
        self.factor, self.layer = nn.Parameter(torch.tensor(1.3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.factor * self.layer(x)


@each_guide
def test_a_single_number_can_be_random(name: str) -> None:
    model = model_of(Scaled().double(), GUIDES[name].prior())
    guide = ps.guides.Additive(model) if name == "PerSite" else GUIDES[name].make(model)
    x = torch.randn(4, 3).double()
    assert draw(name, guide, x)["factor"].shape == guide.site_distribution("factor").event_shape == ()
    loss = ps.ELBO("local")(model, guide)(x, torch.randn(4, 2).double())
    loss.backward()
    assert torch.isfinite(loss)


@each_guide
def test_moments_are_those_of_draws(name: str) -> None:
    model, guide = build(name)
    if not GUIDES[name].moments:
        with pytest.raises(ValueError, match="has no known mean"):
            ps.predict(model, guide, torch.randn(4, 3).double(), mode="mean")
        return
    for site in model.sites:
        distribution = guide.site_distribution(site)
        draws = distribution.sample((DRAWS,))
        deviation = distribution.variance.sqrt()
        assert ((draws.mean(0) - distribution.mean).abs() <= 5.5 * deviation / math.sqrt(DRAWS) + 1e-12).all()
        fourth = (draws - distribution.mean).pow(4).mean(0)
        error = (fourth - distribution.variance.square()).clamp_min(0.0).sqrt() / math.sqrt(DRAWS)
        assert ((draws.var(0) - distribution.variance).abs() <= 6.0 * error + 0.02 * distribution.variance).all()


@each_guide
def test_parameters_exist_from_the_start_and_each_has_its_group(name: str) -> None:
    model, guide = build(name)
    groups = guide.parameter_groups()
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    of_sites = [id(parameter) for site in model.sites for parameter in guide.parameters_for(site).values()]
    assert set(groups) == {"main", "alpha"}
    assert sorted(grouped) == sorted(of_sites) == sorted(map(id, guide.parameters()))
    with pytest.raises(ValueError, match="no site 'elsewhere'"):
        guide.parameters_for("elsewhere")
    with pytest.raises(ValueError, match="no site 'elsewhere'"):
        guide.site_distribution("elsewhere")


@each_guide
def test_kl_is_a_closed_form_and_the_mean_of_log_densities(name: str) -> None:
    model, guide = build(name)
    for site in model.sites:
        posterior, prior = guide.site_distribution(site), prior_of(model, site)
        found = has_closed_form(posterior, prior)
        assert found == GUIDES[name].closed_form, f"KL at {site!r}: say closed_form={found} in GUIDES"
        if not GUIDES[name].closed_form:
            continue
        kl = kl_sum(posterior, prior).item()
        assert kl >= 0.0
        if GUIDES[name].by_convention:
            continue
        draws = posterior.sample((DRAWS,))
        known = GUIDES[name].log_prior
        values = posterior.log_prob(draws) - (prior.log_prob(draws) if known is None else known * draws[0].numel())
        assert abs(values.mean().item() - kl) <= 5.0 * values.std().item() / math.sqrt(DRAWS) + 1e-9


def derivatives(guide: Any, loss: Any) -> tuple[float, float]:
    """The derivative of a loss along a random direction in all parameters: by autograd, and by central differences."""
    parameters = list(guide.parameters())
    direction = [torch.randn_like(parameter) for parameter in parameters]
    guide.zero_grad()
    loss().backward()
    moved = zip(parameters, direction, strict=True)
    by_autograd = sum((p.grad * d).sum().item() for p, d in moved if p.grad is not None)
    found = []
    with torch.no_grad():
        for step in (1e-6, -1e-6):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(step * d)
            found.append(loss().item())
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(step * d)
    return by_autograd, (found[0] - found[1]) / 2e-6


@each_guide
def test_gradients_of_kl_and_of_the_loss(name: str) -> None:
    model, guide = build(name)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)

    def seeded() -> torch.Tensor:
        torch.manual_seed(1)
        return ps.ELBO("local").differentiable_loss(model, guide, x, y)

    def kl() -> torch.Tensor:
        return sum((kl_sum(guide.site_distribution(s), prior_of(model, s)) for s in model.sites), x.new_zeros(()))

    by_autograd, by_differences = derivatives(guide, seeded)
    if not GUIDES[name].straight_through:
        assert by_autograd == pytest.approx(by_differences, rel=1e-4, abs=1e-4)
    if GUIDES[name].collected:
        assert all(parameter.grad is None for parameter in guide.parameters())
    else:
        assert all(torch.isfinite(parameter.grad).all() for parameter in guide.parameters())
    if GUIDES[name].closed_form and kl().requires_grad:
        by_autograd, by_differences = derivatives(guide, kl)
        assert by_autograd == pytest.approx(by_differences, rel=1e-5, abs=1e-6)


@each_guide
def test_local_and_shared_draws_have_the_same_mean(name: str) -> None:
    model = model_of(nn.Linear(3, 2, bias=False, dtype=torch.float64), {"*": GUIDES[name].prior()})
    guide = GUIDES[name].make(model) if name != "PerSite" else PerSite(model, {"*": ps.guides.Additive})
    x = torch.randn(3, dtype=torch.float64)
    with LocalReparameterization() as local:
        trace = poutine.trace(partial(draw, name, guide)).get_trace(x.expand(DRAWS, 3))
        drawn = poutine.replay(model.observation, trace=trace)(x.expand(DRAWS, 3)).mean
    treatment = local.treatments["weight"]
    found = treatment.startswith("local")
    assert found == GUIDES[name].local, f"treatment {treatment!r}: say local={found} in GUIDES"
    if not GUIDES[name].local:
        assert bool((drawn == drawn[0]).all())
        assert treatment.startswith(("shared (no rule for", "shared (entries of", "shared (a point"))
        return
    shared = guide.site_distribution("weight").sample((DRAWS,)) @ x
    error = (drawn.var(0) + shared.var(0)).sqrt() / math.sqrt(DRAWS)
    assert ((drawn.mean(0) - shared.mean(0)).abs() <= 5.0 * error).all()
    ratio = drawn.std(0) / shared.std(0)
    assert ((ratio > 0.8) & (ratio < 1.25)).all()


@each_guide
def test_state_and_checkpoints_come_back(name: str, tmp_path: Path) -> None:
    model, guide = build(name)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    by_state, by_file = GUIDES[name].make(model), GUIDES[name].make(model)
    by_state.load_state_dict(guide.state_dict())
    ps.save(tmp_path / "guide.safetensors", model, guide)
    ps.load(tmp_path / "guide.safetensors", model, by_file)
    for other in (by_state, by_file):
        assert same_state(guide, other)
        for site in model.sites:
            ours = guide.parameters_for(site)
            assert all(torch.equal(value, ours[key]) for key, value in other.parameters_for(site).items())


@each_guide
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_independent(name: str, way: str) -> None:
    model, guide = build(name)
    its, twin = COPIES[way]((model, guide)) if GUIDES[name].amortised else (model, COPIES[way](guide))
    assert type(twin) is type(guide) and same_state(guide, twin)
    x = torch.randn(4, 3).double()
    torch.manual_seed(1)
    drawn = draw(name, guide, x)
    torch.manual_seed(1)
    again = draw(name, twin, x)
    assert all(torch.equal(drawn[site], again[site]) for site in model.sites)
    loss = ps.ELBO("local")(its, twin)(x, torch.randn(4, 2).double())
    loss.backward()
    assert torch.isfinite(loss) and all(parameter.grad is None for parameter in guide.parameters())


@each_guide
def test_precision_is_changed_by_to(name: str) -> None:
    model, guide = build(name, torch.float32)
    assert guide.to(torch.float64) is guide
    for site in model.sites:
        assert guide.site_distribution(site).sample().dtype == torch.float64


@pytest.mark.gpu
@each_guide
def test_device_is_changed_by_to(name: str) -> None:
    model, guide = build(name, torch.float32)
    model.to("cuda"), guide.to("cuda")
    x = torch.randn(4, 3).cuda()
    assert all(value.device.type == "cuda" for value in draw(name, guide, x).values())
    loss = ps.ELBO("local")(model, guide)(x, torch.randn(4, 2).cuda())
    assert loss.device.type == "cuda" and torch.isfinite(loss)


@each_guide
def test_kl_is_differentiable_twice_where_it_is_at_all(name: str) -> None:
    if not GUIDES[name].closed_form:
        return
    model, guide = build(name)
    site = list(model.sites)[-1]
    part = guide.weights if GUIDES[name].amortised else guide
    part = part._part(site) if isinstance(part, PerSite) else part
    names, start = zip(*part.parameters_for(site).items(), strict=True)
    inputs = tuple(value.detach().clone().requires_grad_() for value in start)

    def kl(*values: torch.Tensor) -> torch.Tensor:
        distribution = part.distribution(site, **dict(zip(names, values, strict=True)))
        return kl_sum(distribution.to_event(len(distribution.batch_shape)), prior_of(model, site))

    if kl(*inputs).requires_grad:
        assert gradcheck(kl, inputs)


@pytest.mark.parametrize("kind", sorted(kinds(GUIDES)))
def test_documentation(kind: str) -> None:
    assert_documented(getattr(ps.guides, kind), source=GUIDES[kind].source, shapes=kind != "PerSite")


@each_guide
def test_constants_of_torch_are_neither_drawn_nor_trained(name: str) -> None:
    member = GUIDES[name]
    table = nn.Embedding(5, 3, padding_idx=1).double()
    with torch.no_grad():
        table.weight[1] = 0.7
    model = model_of(nn.Sequential(table, nn.Flatten(), nn.Linear(6, 2).double()), member.prior())
    if not member.constants:
        with pytest.raises(ValueError, match=r"without constant entries.*got '0.weight'.*'0.weight': None"):
            member.make(model)
        return
    guide = member.make(model)
    drawn, distribution = draw(name, guide, torch.tensor([[1, 2]])), guide.site_distribution("0.weight")
    assert (drawn["0.weight"][1] == 0.7).all() and (distribution.variance[1] == 0).all()
    drawn["0.weight"].square().sum().backward()
    for parameter in guide.parameters_for("0.weight").values():
        if parameter.grad is not None and parameter.shape == table.weight.shape:
            assert (parameter.grad[1] == 0).all()


@each_guide
def test_a_draw_is_an_ordinary_network(name: str) -> None:
    model, guide = build(name)
    if GUIDES[name].amortised:
        return  # its layers are random themselves
    x = torch.randn(5, 3, dtype=torch.float64)
    plain = guide.export(model, draw=3)
    with torch.no_grad():
        expected = ps.draws(model, guide, x, 1, seed=3).outputs[0]
        torch.testing.assert_close(plain(x), expected)
        if GUIDES[name].moments and not name.endswith(("CategoricalWeights", "Weights", "binomial")):
            found, mean = guide.export(model)(x), ps.predict(model, guide, x, mode="mean").mean
            torch.testing.assert_close(found, mean)
