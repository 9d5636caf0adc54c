"""Priors that draw the entries of a weight together: one distribution whose event is the whole weight."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence, register_kl

import pyrostoch as ps
from pyrostoch import guides, priors
from pyrostoch.sites import draw_weight

F64 = torch.float64


class JointNormal(dist.TorchDistribution):
    """A normal distribution of all entries of a weight together, in the weight's shape."""

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        self.flat = dist.MultivariateNormal(loc.flatten(), scale_tril=scale_tril)
        super().__init__(event_shape=loc.shape)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.flat.mean.reshape(self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.flat.variance.reshape(self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn: Tensor = self.flat.rsample(torch.Size(sample_shape))
        return drawn.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        density: Tensor = self.flat.log_prob(value.flatten(-len(self.event_shape)))
        return density


@register_kl(JointNormal, JointNormal)
def _kl(q: JointNormal, p: JointNormal) -> Tensor:
    return kl_divergence(q.flat, p.flat)


class JointGuide(guides.Guide):
    """A full covariance for each site."""

    def initial_parameters(self, site: Any) -> dict[str, Tensor]:
        count = site.init.numel()
        return {"loc": site.init, "tril": 0.3 * torch.eye(count, dtype=F64) + 0.1 * torch.ones(count, count).tril()}

    def distribution(self, site: str, **parameters: Tensor) -> Any:
        return JointNormal(parameters["loc"], parameters["tril"].tril())


class JointPrior(priors.Prior):
    """The same for every parameter."""

    def distribution(self, name: str, shape: torch.Size) -> Any:
        return JointNormal(torch.zeros(shape, dtype=F64), 0.5 * torch.eye(shape.numel(), dtype=F64))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()


def model_of(prior: Any, net: nn.Module | None = None) -> ps.BayesianModel:
    net = network() if net is None else net
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(0.3), num_data=20)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, dtype=F64), torch.randn(20, 1, dtype=F64)


def test_the_posterior_is_kept_whole() -> None:
    old = JointGuide(model_of({"*": priors.Normal()}))
    later = model_of(old)
    assert list(later.sites) == list(old.site_names)
    assert later.sites["0.weight"].prior == "from_guide(JointNormal)"
    assert all(site.support is constraints.real for site in later.sites.values())  # guides are told of entries
    expected = copy.deepcopy(priors.from_guide(old)("0.weight", torch.zeros(2, 3)).base.flat)  # type: ignore[attr-defined]
    draws = torch.stack([later.draw()["0.weight"] for _ in range(2500)]).flatten(1)
    covariance = expected.covariance_matrix.detach()
    sizes = covariance.diagonal().sqrt()
    assert ((draws.T.cov() - covariance).abs() < 0.14 * sizes[:, None] * sizes).all()
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.fill_(5.0)
    value = torch.randn(2, 3, dtype=F64)
    held = later.prior("0.weight").distribution("0.weight", torch.Size([2, 3]))
    assert torch.allclose(held.log_prob(value), expected.log_prob(value.flatten()))
    assert not torch.allclose(held.log_prob(value), old.site_distribution("0.weight").log_prob(value))


def test_kl_to_itself_is_zero_and_to_others_that_of_log_densities() -> None:
    old = JointGuide(model_of({"*": priors.Normal()}))
    later = model_of(old)
    assert ps.decompose(later, old, data()).kl == pytest.approx(0.0, abs=1e-9)
    new = guides.Additive(later, init_scale=0.2)
    found = ps.decompose(later, new, data(), num_samples=150)
    exact = 0.0
    for site in old.site_names:
        q = new.site_distribution(site).base_dist
        diagonal = dist.MultivariateNormal(q.loc.flatten(), torch.diag(q.scale.flatten().square()))
        exact += kl_divergence(diagonal, old.site_distribution(site).flat).item()  # type: ignore[attr-defined]
    assert found.kl == pytest.approx(exact, abs=6.0 * found.kl_stderr + 1e-6)


def test_a_prior_of_ones_own_may_draw_entries_together() -> None:
    model = model_of({"*": JointPrior()})
    assert {name: value.shape for name, value in model.draw().items()}["0.weight"] == (2, 3)
    guide = guides.Additive(model)
    svi = SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(*data()))) for _ in range(3))
    ps.fit(model, guide, data(), epochs=2, lr=1e-2, seed=0, progress=False, compile=False)
    mcmc = MCMC(NUTS(model_of(JointGuide(model))), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(*data())
    assert mcmc.get_samples()["0.weight"].shape == (5, 2, 3)


def test_copies_and_precision() -> None:
    model = model_of(JointGuide(model_of({"*": priors.Normal()})))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        held = twin.float().prior("0.weight").base
        assert held.flat.loc.dtype == held.sample().dtype == torch.float32


def test_rows_may_be_drawn_apart_whose_entries_are_not() -> None:
    class Rows(priors.Prior):
        def distribution(self, name: str, shape: torch.Size) -> Any:
            return dist.MultivariateNormal(torch.zeros(shape), 0.5 * torch.eye(shape[-1]) + 0.5)

    model = ps.BayesianModel(nn.Linear(3, 2), prior=Rows(), likelihood=ps.likelihoods.Gaussian(), num_data=9)
    draws = torch.stack([model.draw()["weight"] for _ in range(1500)]).flatten(1)
    expected = torch.block_diag(*[0.5 * torch.eye(3) + 0.5] * 2)
    assert (draws.T.cov() - expected).abs().max() < 0.18


def test_shapes_are_checked_by_name() -> None:
    class Wrong(priors.Prior):
        def distribution(self, name: str, shape: torch.Size) -> Any:
            return dist.Normal(0.0, 1.0)

    with pytest.raises(
        ValueError, match=r"site '0.weight': expected a prior of shape \(2, 3\), .* a Normal of shape \("
    ):
        model_of(Wrong())
    net = nn.Embedding(5, 2, padding_idx=0).double()
    with pytest.raises(ValueError, match=r"site 'weight': its prior JointNormal draws the entries together, but torch"):
        model_of(JointPrior(), net)
    joint = JointNormal(torch.zeros(2, 3), torch.eye(6))
    assert draw_weight("w", joint, torch.Size([2, 3])).shape == (2, 3)
