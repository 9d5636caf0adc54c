"""A posterior as the prior of what comes next: its values, for which weights, and what cannot be one."""

from __future__ import annotations

import copy
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Trace_ELBO
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import guides, priors
from pyrostoch.priors.base import values_of
from pyrostoch.training.checkpoint import CheckpointError

sys.path.insert(0, str(Path(__file__).parent / "contracts"))
from guide_registry import GUIDES

F64 = torch.float64


def network(outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def model_of(net: nn.Module, prior: Any, likelihood: Any = None, **options: Any) -> ps.BayesianModel:
    likelihood = ps.likelihoods.Gaussian(0.3) if likelihood is None else likelihood
    return ps.BayesianModel(net, prior=prior, likelihood=likelihood, num_data=20, **options)


def learned(net: nn.Module, prior: Any = None, kind: Any = guides.Additive, **options: Any) -> Any:
    """A guide away from where it starts."""
    guide = kind(model_of(net, {"*": priors.Normal()} if prior is None else prior, **options))
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def data(outputs: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, dtype=F64), torch.randn(20, outputs, dtype=F64)


def trained(model: ps.BayesianModel, guide: Any, part: tuple[Tensor, Tensor]) -> None:
    ps.fit(model, guide, part, epochs=3, lr=0.05, seed=0, progress=False, compile=False)


# What cannot be a prior, by the guide's name in the registry.
REFUSED = {
    "VarianceOnly, uniform": "weight.*SymmetricUniform that is bounded",
    "VarianceOnly, bernoulli": "weight.*TwoPoint that is discrete",
    "CategoricalWeights": "weight.*Levels that is discrete",
    "BinomialWeights": "weight.*BinomialLevels that is discrete",
    "BinomialWeights, binomial": "weight.*BinomialLevels that is discrete",
    "MultinomialWeights": "weight.*SignedMultinomial that is discrete",
    "Delta": "weight.*Delta that is a single point",
    "LowRank": "LowRank joins sites",
    "Swag": "Swag joins sites",
    "Laplace, full": "Laplace joins sites",
    "RankOne": "weight.*RankOneWeights that has no density",
    "RankOne, components": "RankOne joins sites",
    "Flow": "weight.*FlowWeights that has no density",
    "Flow, planar": "weight.*FlowWeights that has no density",
}


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_is_its_own_prior_or_refused_by_name(name: str) -> None:
    member, net = GUIDES[name], network()
    guide = member.make(model_of(net, member.prior()))
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            model_of(net, guide)
        return
    later = model_of(net, guide)
    assert list(later.sites) == list(guide.weight_names)
    found = ps.decompose(later, guide, data(), num_samples=3)
    assert found.kl == 0.0 and all(row.kl == 0.0 for row in found.sites)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2)
    assert ps.decompose(later, guide, data(), num_samples=50).kl > 0.0


def test_the_values_are_those_of_the_moment() -> None:
    net, guide = network(), learned(network())
    rule, later = priors.from_guide(guide), model_of(net, guide)
    before = {site: copy.deepcopy(guide.site_distribution(site).base_dist.loc.detach()) for site in guide.site_names}
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.fill_(7.0)
    guide.to(torch.float32)
    for found in (later, model_of(network(), rule)):
        for site in guide.site_names:
            held = found.prior(site).distribution(site, before[site].shape)
            assert torch.equal(held.loc, before[site]) and not held.loc.requires_grad and held.loc.dtype == F64
    own = later.prior("0.weight").distribution("0.weight", torch.Size([8, 3]))
    later.prior("0.weight").base.loc.zero_()  # each model has a copy of its own
    assert not torch.equal(model_of(network(), rule).prior("0.weight").base.loc, torch.zeros(8, 3, dtype=F64))
    assert own.loc.abs().max() == 0.0


def test_no_gradient_reaches_the_guide_it_was_taken_from() -> None:
    old = learned(network())
    later = model_of(network(), old)
    new = learned(network())
    ps.ELBO()(later, new)(*data()).backward()
    assert all(parameter.grad is None for parameter in old.parameters())
    assert all(parameter.grad is not None for parameter in new.parameters())


def test_distributions_that_require_grad_are_priors() -> None:
    guide = learned(network())
    bases = {site: guide.site_distribution(site).base_dist for site in guide.site_names}
    ways: list[Any] = [
        bases,
        {site: priors.Normal(base.loc, base.scale) for site, base in bases.items()},
        lambda name, weight: priors.Normal(bases[name].loc, bases[name].scale),
    ]
    for prior in ways:
        model = model_of(network(), prior)
        assert ps.decompose(model, guide, data()).kl == pytest.approx(0.0, abs=1e-12)
        assert not any(parameter.requires_grad for parameter in model.priors.parameters())
    moped = model_of(network(), {"*weight": lambda name, weight: priors.Normal(weight, 0.1)})
    assert torch.equal(moped.prior("0.weight").loc, moped.net[0].weight)
    loc = torch.zeros((), dtype=F64, requires_grad=True)
    noise = ps.likelihoods.Gaussian(dist.LogNormal(loc, 1.0))
    pickle.loads(pickle.dumps(copy.deepcopy(noise)))


def test_a_distribution_that_holds_a_network_is_copied() -> None:
    flow = dist.transforms.AffineAutoregressive(pyro.nn.AutoRegressiveNN(4, [8]))
    distribution = dist.TransformedDistribution(dist.Normal(torch.zeros(4), 1.0).to_event(1), [flow])
    value = torch.randn(4)
    held = values_of(distribution)
    before = held.log_prob(value)
    assert torch.allclose(before, distribution.log_prob(value)) and not before.requires_grad
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(1.0)
    assert torch.equal(held.log_prob(value.clone()), before)


def conjugate(x: Tensor, y: Tensor, loc: Tensor, variance: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """The posterior of a linear model's weights under independent normal priors, with orthogonal inputs."""
    precision = 1.0 / variance + x.square().sum(0) / noise**2
    return (loc / variance + x.T @ y[:, 0] / noise**2) / precision, 1.0 / precision


def test_two_parts_one_after_the_other_are_as_good_as_both_at_once() -> None:
    """Exact where mean field is: the ELBO of part two is log p(y2 | y1) at every draw, with no variance."""
    noise = 0.4
    parts = [(torch.linalg.qr(torch.randn(9, 3, dtype=F64))[0] * 2.0, torch.randn(9, 1, dtype=F64)) for _ in range(2)]
    batch = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    start = (torch.zeros(3, dtype=F64), torch.full((3,), 0.8**2, dtype=F64))

    def guide_at(model: ps.BayesianModel, moments: tuple[Tensor, Tensor]) -> guides.Additive:
        guide = guides.Additive(model)
        with torch.no_grad():
            guide.parameters_for("weight")["loc"].copy_(moments[0])
            guide.parameters_for("weight")["log_scale"].copy_(0.5 * moments[1].log())
        return guide

    def build(prior: Any, count: int) -> ps.BayesianModel:
        net = nn.Linear(3, 1, bias=False).double()
        return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(noise), num_data=count)

    after_one = conjugate(*parts[0], *start, noise)
    first = build(priors.Normal(0.0, 0.8), 9)
    yesterday = guide_at(first, after_one)
    today = build(yesterday, 9)
    both = guide_at(today, conjugate(*batch, *start, noise))
    losses = torch.tensor([Trace_ELBO().loss(today, both, *parts[1]) for _ in range(5)], dtype=F64)
    # log p(y2 | y1) = log p(y1, y2) - log p(y1), each by the covariance of the targets.
    evidence = []
    for x, y in (batch, parts[0]):
        covariance = x @ torch.diag(start[1]) @ x.T + noise**2 * torch.eye(len(x), dtype=F64)
        evidence.append(dist.MultivariateNormal(torch.zeros(len(x), dtype=F64), covariance).log_prob(y[:, 0]))
    assert torch.allclose(-losses, (evidence[0] - evidence[1]).expand(5), atol=1e-9)
    assert not torch.allclose(-losses, evidence[0].expand(5), atol=0.1)


def test_a_new_head_has_a_rule_of_its_own() -> None:
    old = learned(network())
    renamed = nn.Sequential(*network(2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"guide Additive has nothing of '3.weight'\. Say by rules"):
        model_of(renamed, old)
    with pytest.raises(ValueError, match=r"parameter '2.weight': expected shape \(2, 8\), the guide Additive has \(1"):
        model_of(network(2), old)
    with pytest.raises(ValueError, match=r"has '2.weight', '2.bias', which the network does not have.*how-to/continue"):
        model_of(nn.Sequential(nn.Linear(3, 8)), old)
    rules: dict[str, Any] = {"*": priors.Normal(), "0.*": priors.from_guide(old)}
    found = model_of(network(2), rules).sites
    assert {name: site.prior for name, site in found.items()} == {
        "0.weight": "from_guide(Normal)",
        "0.bias": "from_guide(Normal)",
        "2.weight": "Normal(loc=0, scale=1)",
        "2.bias": "Normal(loc=0, scale=1)",
    }
    assert {n: s.prior for n, s in model_of(network(2), {"*": priors.Normal(), "0.*": old}).sites.items()} == {
        name: site.prior for name, site in found.items()
    }


def test_rules_that_speak_of_what_the_guide_lacks_are_refused() -> None:
    weights_only = learned(network(), prior=priors.Normal())
    with pytest.raises(ValueError, match=r"rule '0\.\*': it matches '0.bias', of which the guide Additive has no"):
        model_of(network(), {"*": priors.Normal(), "0.*": weights_only})
    found = model_of(network(), {"*": priors.Normal(), "0.*weight": weights_only}).sites
    assert found["0.bias"].prior == "Normal(loc=0, scale=1)" and found["0.weight"].prior == "from_guide(Normal)"
    assert list(model_of(network(), weights_only).sites) == ["0.weight", "2.weight"]
    deeper = learned(nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 1)))
    shallower = nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"rule '0\.\*': the guide Additive has distributions of '0.1.weight', '0.1.b"):
        model_of(shallower, {"*": priors.Normal(), "0.*": deeper})

    def own_rule(name: str, weight: Tensor) -> Any:
        return priors.from_guide(deeper)(name, weight)

    with pytest.raises(ValueError, match=r"parameter '2.weight': the guide Additive has no distribution of that name"):
        model_of(nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 1)), own_rule)


def test_what_was_random_stays_random() -> None:
    """Normalization layers and layers with a prior of their own go by the guide's sites."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), ps.layers.Linear(4, 1, prior=priors.Normal(0.0, 3.0)))
    old = learned(net, prior={"*": priors.Normal(), "1.weight": priors.Normal(1.0, 0.1)})
    later = model_of(net, old)
    assert list(later.sites) == ["0.weight", "0.bias", "1.weight", "2.weight", "2.bias"]
    assert {site.prior for site in later.sites.values()} == {"from_guide(Normal)"}
    assert list(model_of(net, {"*": old}).sites) == list(later.sites)
    compiled = torch.compile(net)  # names gain a prefix
    assert list(model_of(compiled, old).sites) == list(later.sites)  # type: ignore[arg-type]


def test_random_scales_are_no_weights() -> None:
    noise = ps.likelihoods.Gaussian(dist.LogNormal(0.0, 1.0))
    old = learned(network(), prior=priors.Hierarchical(), likelihood=noise)
    assert len(old.site_names) == 5 and len(old.weight_names) == 2
    later = model_of(network(), old, likelihood=ps.likelihoods.Gaussian(0.3))
    assert list(later.sites) == ["0.weight", "2.weight"]
    scale = next(name for name in old.site_names if name.startswith("likelihood"))
    again = model_of(network(), old, likelihood=ps.likelihoods.Gaussian(old.site_distribution(scale)))
    assert list(again.sites) == ["0.weight", "2.weight", scale]
    rest = {name: partial(guides.Additive) for name in ("0.*", "2.*", scale)}
    new = guides.PerSite(again, rest)
    new.parts[-1].load_state_dict(old.restricted_to([scale]).state_dict())
    assert {row.site: row.kl for row in ps.decompose(again, new, data()).sites}[scale] == pytest.approx(0.0, abs=1e-9)


class Bag(nn.Module):
    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3, padding_idx=padding)
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).sum(1))


@pytest.mark.parametrize("kind", [guides.Additive, guides.LayerwiseAlpha])
def test_padding_rows_stay_constant(kind: Any) -> None:
    old = learned(Bag(2), kind=kind)
    later = model_of(Bag(2), old)
    draws = torch.stack([later.draw()["table.weight"] for _ in range(3)])
    assert draws[:, 2].abs().max() == 0.0 and draws[:, 1].std(0).min() > 0.0
    assert ps.decompose(later, old, (torch.randint(0, 6, (20, 4)), torch.zeros(20, 1))).kl == 0.0
    for rules in (old, {"*": old}, lambda name, weight: priors.from_guide(old)(name, weight)):
        with pytest.raises(ValueError, match=r"'table.weight': the guide held 3 of its entries constant.*how-to/cont"):
            model_of(Bag(None), rules)
        with pytest.raises(ValueError, match=r"'table.weight': the guide held 3 of its entries constant"):
            model_of(Bag(1), rules)
    assert list(model_of(Bag(2), learned(Bag(None))).sites)  # the other way round the constants are the network's


class PointGuide(guides.Guide):
    """A guide of a user's own with one distribution for everything."""

    family: Any = staticmethod(lambda loc: dist.Delta(loc))

    def initial_parameters(self, site: Any) -> dict[str, Tensor]:
        return {"loc": site.init}

    def distribution(self, site: str, **parameters: Tensor) -> Any:
        return self.family(parameters["loc"])


class Unsupported(dist.TorchDistribution):
    """A distribution without a support."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (lambda loc: dist.Delta(loc), "Delta that is a single point, to which"),
        (lambda loc: dist.Uniform(loc - 1, loc + 1), "Uniform that is bounded"),
        (lambda loc: dist.Normal(loc * torch.nan, 1.0, validate_args=False), "Normal that is not finite"),
        (lambda loc: dist.Normal(loc, 0.0 * loc, validate_args=False), r"Normal that has a .* 0 at 24 of 24 entries"),
        (lambda loc: ps.distributions.MultiplicativeNormal(0.0 * loc, 1.0), r"deviation of 0 at 24 of 24 entries"),
        (Unsupported, "Unsupported that does not say on which values"),
    ],
)
def test_posteriors_that_cannot_be_priors(family: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PointGuide, "family", staticmethod(family))
    guide = PointGuide(model_of(network(), priors.Normal()))
    with pytest.raises(ValueError, match=rf"parameter '0.weight' of the guide PointGuide .*{message}.*how-to/continue"):
        model_of(network(), guide)
    rules = {"*": priors.Normal(), "2.*": priors.from_guide(learned(network())), "0.*": None}
    assert list(model_of(network(), rules).sites) == ["2.weight", "2.bias"]


def test_what_is_no_guide_is_refused() -> None:
    model = model_of(network(), priors.Normal())
    auto = pyro.infer.autoguide.AutoNormal(model)
    for wrong in (auto, model, network()):
        for spec in (wrong, {"*": wrong}):
            with pytest.raises(TypeError, match=rf"prior: expected a prior or a guide .*, got {type(wrong).__name__}"):
                model_of(network(), spec)
    with pytest.raises(TypeError, match="got the class Additive; use a trained instance"):
        model_of(network(), guides.Additive)
    with pytest.raises(ValueError, match="the guide Additive has no weights"):
        model_of(network(), guides.Additive(model_of(network(), None)))
    tied = learned(network())
    tied.ties_sites = True
    for guide in (tied, guides.PerSite.of([tied], sites=tied.site_names)):
        with pytest.raises(
            ValueError, match=r"the posterior of the guide Additive joins sites '0.weight', .*how-to/co"
        ):
            model_of(network(), guide)


def test_a_guide_of_somebody_elses_class_will_do() -> None:
    class Mine:
        weight_names = ("weight",)

        def site_distribution(self, site: str) -> Any:
            return dist.StudentT(4.0, torch.zeros(1, 3), 0.5).to_event(2)

    model = model_of(nn.Linear(3, 1), Mine())
    assert model.sites["weight"].prior == "from_guide(StudentT)"
    assert model.draw()["weight"].shape == (1, 3)


def test_copies_devices_and_precision() -> None:
    model = model_of(network().float(), learned(network()))
    prior = model.prior("0.weight")
    assert prior.base.loc.dtype == torch.float32  # type: ignore[union-attr]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        held = twin.prior("0.weight").base
        assert torch.equal(held.loc, prior.base.loc) and held.loc.data_ptr() != prior.base.loc.data_ptr()
        assert twin.to(F64).prior("0.weight").base.scale.dtype == F64
    state = torch.get_rng_state()
    priors.from_guide(guides.Additive(model))
    assert torch.equal(state, torch.get_rng_state())


def test_checkpoints_tell_priors_apart(tmp_path: Path) -> None:
    net, old, other = network(), learned(network()), learned(network())
    model = model_of(net, old)
    guide = guides.Additive(model)
    trained(model, guide, data())
    ps.save(tmp_path / "two.pt", model, guide)
    again = model_of(network(), copy.deepcopy(old))
    fresh = guides.Additive(again)
    ps.load(tmp_path / "two.pt", again, fresh)
    part = data()
    assert ps.decompose(again, fresh, part).kl == ps.decompose(model, guide, part).kl > 0.0
    wrong = model_of(network(), other)
    with pytest.raises(CheckpointError, match=r"site '0.weight': expected the prior from_guide\(Normal\), .*checksum"):
        ps.load(tmp_path / "two.pt", wrong, guides.Additive(wrong))


def test_nuts_runs_on_it() -> None:
    old = learned(nn.Linear(3, 1).double())
    model = model_of(nn.Linear(3, 1).double(), old)
    mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run(*data())
    assert mcmc.get_samples()["weight"].shape == (20, 1, 3)
