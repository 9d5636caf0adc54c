"""Predictions by linearization, beside the derivative of the whole network and full covariances."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyrostoch as ps
from pyrostoch.effects import Linearization, jacobians

G = ps.guides
GUIDES: dict[str, Any] = {
    "Additive": partial(G.Additive, init_scale=0.3),
    "WeightwiseAlpha": partial(G.WeightwiseAlpha, init_log_alpha=-1.0),
    "LowRank": partial(G.LowRank, rank=2, init_scale=0.3),
    "LowRank, by site": partial(G.LowRank, rank=1, scope="site", init_scale=0.3),
    "MatrixNormal": partial(G.MatrixNormal, init_scale=0.3),
    "FullCovariance": partial(G.FullCovariance, init_scale=0.3),
    "Laplace": partial(G.Laplace, init_scale=0.3),
    "Laplace, full": partial(G.Laplace, structure="full", init_scale=0.3),
    "Laplace, kronecker": partial(G.Laplace, structure="kronecker", init_scale=0.3),
}
X = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).reshape(5, 3)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def model_of(net: nn.Module, likelihood: Any = None, prior: Any = None) -> ps.BayesianModel:
    likelihood = ps.likelihoods.Gaussian(0.3) if likelihood is None else likelihood
    prior = {"*": ps.priors.Normal()} if prior is None else prior
    return ps.BayesianModel(net, prior=prior, likelihood=likelihood, num_data=20)


def moved(guide: nn.Module) -> None:
    """Change all parameters and covariances, so that no entry is alike."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if isinstance(guide, G.Laplace) and guide.tied_sites:
        size = len(guide.factor())
        root = torch.randn(size, size).double() * 0.2
        guide.set_covariance(root @ root.mT + 0.01 * torch.eye(size).double())
    elif isinstance(guide, G.Laplace) and guide.structure == "kronecker":
        parts = {}
        for name in guide.site_names:
            spread = guide.site_distribution(name)
            bases = [torch.linalg.qr(torch.randn_like(basis))[0] for basis in (spread.rows, spread.columns)]
            parts[name] = (*bases, 0.1 + torch.rand_like(spread.scale))
        guide.set_kronecker(parts)


def whole_covariance(guide: Any) -> Tensor:
    """The covariance of all sites together: between sites from what ties them, else from each site."""
    if isinstance(guide, G.Laplace) and guide.tied_sites:
        return guide.factor() @ guide.factor().mT
    sites = [guide.site_distribution(name) for name in guide.site_names]
    blocks = [site.covariance if hasattr(site, "covariance") else torch.diag(site.variance.flatten()) for site in sites]
    found = torch.block_diag(*blocks)
    if getattr(guide, "ties_sites", False):
        factor = torch.cat([guide.parameters_for(name)["factor"].flatten(1) for name in guide.site_names], 1)
        diagonal = torch.cat(
            [guide.parameters_for(name)["log_scale"].flatten().exp().square() for name in guide.site_names]
        )
        found = factor.mT @ factor + torch.diag(diagonal)
    return found.detach()


def by_hand(model: ps.BayesianModel, guide: Any, x: Any) -> tuple[Tensor, Tensor]:
    """The mean output, (B, ...), and the covariance of each example's outputs, by the derivative of the batch."""
    weights = {name: guide.site_distribution(name).mean.detach() for name in guide.site_names}

    def output(values: tuple[Tensor, ...]) -> Tensor:
        found: Any = torch.func.functional_call(model.net, dict(zip(weights, values, strict=True)), x)
        return found

    found = output(tuple(weights.values())).detach()
    jacobian = torch.autograd.functional.jacobian(lambda *values: output(values), tuple(weights.values()))
    rows = torch.cat([part.reshape((len(found), found[0].numel(), -1)) for part in jacobian], 2)
    covariance = whole_covariance(guide)
    return found, rows @ covariance @ rows.mT


@pytest.mark.parametrize("name", GUIDES)
def test_mean_and_covariance_are_those_of_the_whole_derivative(name: str) -> None:
    model = model_of(network())
    guide = GUIDES[name](model)
    moved(guide)
    loc, covariance = by_hand(model, guide, X)
    found = ps.predict(model, guide, X, mode="linearized")
    assert torch.allclose(found.mean, loc)
    assert torch.allclose(found.epistemic, covariance.diagonal(dim1=1, dim2=2), rtol=1e-10)
    y = torch.randn(5, 2).double()
    density = MultivariateNormal(loc, covariance + 0.09 * torch.eye(2).double()).log_prob(y)
    scored = ps.predict(model, guide, X, y=y, mode="linearized").log_density
    assert scored is not None and torch.allclose(scored, density, rtol=1e-9)
    assert set((found.treatments or {}).values()) == {"linearized"} and found.num_samples == 1


def test_a_last_layer_with_its_bias() -> None:
    net = network()
    model = model_of(net, prior={"2.*": ps.priors.Normal()})
    for guide in (G.LastLayer(model, init_scale=0.3), G.Laplace(model, "last_layer", init_scale=0.3)):
        moved(guide)
        exact = ps.predict(model, guide, X, mode="moments:full", y=torch.ones(5, 2).double())
        found = ps.predict(model, guide, X, mode="linearized", y=torch.ones(5, 2).double())
        assert torch.allclose(found.mean, exact.mean) and torch.allclose(found.variance, exact.variance)
        assert torch.allclose(found.log_density, exact.log_density)
        feature = torch.cat([net[:2](X), torch.ones(5, 1).double()], 1).detach()
        # By draws of weight and bias together.
        outputs = torch.stack([ps.draws(model, guide, X, 4000, seed=1).outputs]).squeeze(0)
        spread = outputs.var(0)
        assert ((spread / found.epistemic - 1.0).abs() < 0.15).all() and feature.shape == (5, 5)


@pytest.mark.parametrize(
    "name", ["Additive", "LowRank, by site", "MatrixNormal", "FullCovariance", "Laplace, kronecker"]
)
@pytest.mark.parametrize("likelihood", [ps.likelihoods.Gaussian(0.3), ps.likelihoods.Categorical()])
def test_a_linear_network_is_predicted_as_by_moments(name: str, likelihood: Any) -> None:
    model = model_of(nn.Linear(3, 2).double(), likelihood)
    guide = GUIDES[name](model)
    moved(guide)
    labels = (
        torch.tensor([0, 1, 0, 1, 1])
        if isinstance(likelihood, ps.likelihoods.Categorical)
        else torch.ones(5, 2).double()
    )
    for form in ("", ":closed"):
        exact = ps.predict(model, guide, X, y=labels, mode="moments:full" + form)
        found = ps.predict(model, guide, X, y=labels, mode="linearized" + form)
        assert exact.log_density is not None and found.log_density is not None
        assert torch.allclose(exact.log_density, found.log_density, rtol=1e-7)
        assert torch.allclose(exact.epistemic, found.epistemic, rtol=1e-6)


def test_many_examples_are_differentiated_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(network())
    guide = G.FullCovariance(model, init_scale=0.3)
    whole = ps.predict(model, guide, X, mode="linearized")
    monkeypatch.setattr(jacobians, "_MAX_BYTES", 1)
    parts = ps.predict(model, guide, X, mode="linearized")
    assert torch.allclose(whole.variance, parts.variance)
    scores = ps.compare(model, guide, (X, torch.zeros(5, 2).double()), modes=("mean", "linearized"), batch_size=2)
    assert [row.mode for row in scores.rows] == ["mean", "linearized"]


class Tied(nn.Module):
    """A weight that is used twice, in a product that no other rule knows, and a branch that depends on its values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(3, 3), nn.Parameter(torch.tensor([0.7, 0.2, -0.4]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        hidden = self.first(hidden) * self.scale.softmax(0)
        return hidden * 2.0 if bool(self.scale.sum() > 0) else hidden


class Meeting(nn.Module):
    """Each example's output depends on all others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.tanh(self.layer(x))
        return found - found.mean(0) * found.exp()


class Looping(nn.Module):
    """Python reads the input's values, so that examples cannot be vectorized."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(row) * (2.0 if row[0].item() > 0 else torch.tanh(row[1])) for row in x])


@pytest.mark.parametrize("kind", [Tied, Meeting, Looping])
@pytest.mark.parametrize("name", ["Additive", "LowRank", "Laplace, full"])
def test_any_network(kind: Any, name: str) -> None:
    torch.manual_seed(3)
    model = model_of(kind().double())
    guide = GUIDES[name](model)
    moved(guide)
    loc, covariance = by_hand(model, guide, X)
    found = ps.predict(model, guide, X, mode="linearized")
    assert torch.allclose(found.mean, loc)
    assert torch.allclose(found.epistemic, covariance.diagonal(dim1=1, dim2=2), rtol=1e-9)


def test_positions_batch_normalization_and_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Conv2d(2, 2, 1)).double()
    x = torch.randn(4, 1, 3, 3).double()
    with torch.no_grad():
        for _ in range(3):
            net(x + 1.0)
    model = model_of(net, prior={"0.*": ps.priors.Normal(), "3.*": ps.priors.Normal()})
    guide = GUIDES["Laplace, full"](model)
    moved(guide)
    model.net.eval()
    loc, covariance = by_hand(model, guide, x)
    model.net.train()
    found = ps.predict(model, guide, x, mode="linearized")
    assert torch.allclose(found.mean, loc) and model.net.training
    assert torch.allclose(found.epistemic.flatten(1), covariance.diagonal(dim1=1, dim2=2))


def test_constant_entries_have_no_part() -> None:
    table = nn.Embedding(5, 3, padding_idx=1)
    model = model_of(nn.Sequential(table, nn.Flatten(), nn.Linear(6, 2)).double())
    guide = G.Additive(model, init_scale=0.3)
    x = torch.tensor([[1, 2], [3, 1], [1, 1]])
    _, covariance = by_hand(model, guide, x)
    found = ps.predict(model, guide, x, mode="linearized")
    assert torch.allclose(found.epistemic, covariance.diagonal(dim1=1, dim2=2))


class Named(nn.Module):
    """Several inputs by name, an output in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: Tensor, mask: Tensor) -> dict[str, Any]:
        return {"logits": torch.tanh(self.layer(inputs * mask)), "loss": None}


def test_inputs_by_name_and_outputs_in_a_dictionary() -> None:
    net = Named().double()
    model = model_of(net)
    guide = G.FullCovariance(model, init_scale=0.3)
    mask = torch.ones(5, 3).double()
    found = ps.predict(model, guide, {"inputs": X, "mask": mask}, mode="linearized")
    plain = model_of(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double())
    plain.net.load_state_dict({"0.weight": net.layer.weight, "0.bias": net.layer.bias})
    other = ps.predict(plain, G.FullCovariance(plain, init_scale=0.3), X, mode="linearized")
    assert torch.allclose(found.mean, other.mean) and torch.allclose(found.variance, other.variance)


def test_with_many_outputs_only_variances_are_made() -> None:
    model = model_of(nn.Linear(3, 300).double())
    guide = G.Additive(model, init_scale=0.3)
    found = ps.predict(model, guide, X, mode="linearized")
    exact = ps.predict(model, guide, X, mode="moments")
    assert torch.allclose(found.variance, exact.variance)


def unmarked(*args: Any) -> None:
    for name, shape in (("weight", (2, 3)), ("bias", (2,))):
        pyro.sample(name, dist.Normal(torch.zeros(shape).double(), 1.0).to_event())


def test_what_has_no_covariance_is_refused_by_name() -> None:
    model = model_of(nn.Linear(3, 2).double(), prior={"*": ps.priors.RankOne()})
    with pytest.raises(
        ValueError, match=r"site 'weight': lin.*RankOneWeights has no covariance in closed form.*mode='mc'"
    ):
        ps.predict(model, G.RankOne(model), X, mode="linearized")
    model = model_of(nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match="site 'weight'.*it is not marked independent"):
        ps.predict(model, unmarked, X, mode="linearized")
    tied = GUIDES["LowRank"](model)
    given = {"weight": torch.zeros(2, 3).double()}
    with pytest.raises(ValueError, match="site 'bias'.*depends on a value that is given"), Linearization():
        with poutine.condition(data=given):
            drawn = tied()
        model.outputs(X, drawn)
    counts = model_of(nn.Linear(3, 2).double(), prior={"*": ps.priors.UniformMultinomial()})
    with pytest.raises(ValueError, match="site 'weight'.*SignedMultinomial may depend on each other"):
        ps.predict(counts, G.MultinomialWeights(counts), X, mode="linearized")
    noisy = model_of(nn.Sequential(nn.Linear(3, 2), ps.layers.Ternary(noise=0.5)).double())
    with pytest.raises(ValueError, match=r"got random activations.*mode='moments' or mode='mc'"):
        ps.predict(noisy, G.Additive(noisy), X, mode="linearized")
    nothing = model_of(nn.Linear(3, 2).double(), prior={"weight": None})
    with pytest.raises(ValueError, match="no uncertainty to linearize"):
        ps.predict(nothing, G.Additive(nothing), X, mode="linearized")
    with pytest.raises(ValueError, match="'linearized' draws nothing"):
        ps.predict(model, tied, X, mode="linearized", num_samples=5)


class Writing(nn.Module):
    """Writes into its input and into its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.layer.weight.clamp_(-0.3, 0.3)
        return torch.tanh(self.layer(x.mul_(2.0)))


def test_a_network_that_writes_into_its_inputs_gets_copies() -> None:
    net = Writing().double()
    x = X.clone()
    model = model_of(net)
    guide = G.Additive(model, init_scale=0.3)
    found = ps.predict(model, guide, x, mode="linearized")
    again = ps.predict(model, guide, x, mode="linearized")
    assert torch.equal(x, X) and torch.equal(found.variance, again.variance)
    plain = model_of(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double())
    weight = net.layer.weight.clamp(-0.3, 0.3)
    plain.net.load_state_dict({"0.weight": weight, "0.bias": net.layer.bias})
    other = ps.predict(plain, G.Additive(plain, init_scale=0.3), 2.0 * X, mode="linearized")
    assert torch.allclose(found.mean, other.mean) and torch.allclose(found.variance, other.variance)


class Noisy(nn.Module):
    """Draws random numbers of its own in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.randn(len(x), 2).double()


def test_a_network_with_noise_of_its_own_is_refused() -> None:
    model = model_of(Noisy().double())
    with pytest.raises(ValueError, match="differs from call to call.*mode='mc'"):
        ps.predict(model, G.Additive(model), X, mode="linearized")


def test_in_training_mode_the_batch_is_differentiated_as_a_whole() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)).double()
    model = model_of(net, prior={"0.weight": ps.priors.Normal()})
    guide = G.FullCovariance(model, init_scale=0.3)
    loc, covariance = by_hand(model, guide, X)
    found = ps.predict(model, guide, X, mode="linearized")
    assert torch.allclose(found.mean, loc)
    assert torch.allclose(found.epistemic, covariance.diagonal(dim1=1, dim2=2), rtol=1e-9)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def test_a_network_of_several_outputs_is_refused() -> None:
    model = model_of(Several().double(), ps.likelihoods.Gaussian(0.3, output=0))
    with pytest.raises(ValueError, match=r"returns one tensor whose first axis counts the examples, got '\(5, 2\)'"):
        ps.predict(model, G.Additive(model), X, mode="linearized")


def test_nothing_is_drawn_and_the_mean_is_that_of_mean_propagation() -> None:
    model = model_of(network())
    guide = GUIDES["LowRank"](model)
    state = torch.get_rng_state()
    found = ps.predict(model, guide, X, mode="linearized")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.allclose(found.mean, ps.predict(model, guide, X, mode="mean").mean)
    assert Linearization.name == "linearized"
