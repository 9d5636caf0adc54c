"""Laplace approximations beside the exact posterior, the exact evidence, and curvature by hand."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.guides import Laplace
from pyrostoch.likelihoods import Bernoulli, Categorical, Gaussian

NOISE = torch.tensor([0.3, 0.5], dtype=torch.float64)
PRIOR = {"*": ps.priors.Normal(0.1, 0.7)}


def model_of(net: nn.Module, likelihood: Any, num_data: int, prior: Any = None) -> ps.BayesianModel:
    return ps.BayesianModel(net, prior=PRIOR if prior is None else prior, likelihood=likelihood, num_data=num_data)


def classes(count: int = 60) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3).double()
    return x, ((x[:, 0] + 0.5 * torch.randn(count)) > 0).long() + (x[:, 1] > 0.7).long()


def train(model: ps.BayesianModel, data: tuple[Tensor, Tensor]) -> None:
    """Move the network to a maximum of the log joint density."""
    names = list(model.sites)
    parameters = [model.net.get_parameter(name).requires_grad_() for name in names]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    model.net.eval()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -log_joint(model, dict(zip(names, parameters, strict=True)), data)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[arg-type]
    for parameter in parameters:
        parameter.requires_grad_(False)


def log_prior(model: ps.BayesianModel, weights: dict[str, Tensor]) -> Tensor:
    parts = [model.prior(name).distribution(name, value.shape).log_prob(value).sum() for name, value in weights.items()]
    return torch.stack(parts).sum()


def log_joint(model: ps.BayesianModel, weights: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    output = torch.func.functional_call(model.net, weights, data[0])
    return model.likelihood(output).log_prob(data[1]).sum() + log_prior(model, weights)  # type: ignore[attr-defined]


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in weights.values()])


def unflat(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def weights_of(model: ps.BayesianModel) -> dict[str, Tensor]:
    return {name: site.init.clone() for name, site in model.sites.items()}


def ggn_by_hand(model: ps.BayesianModel, x: Tensor, y: Tensor) -> Tensor:
    """The sum over examples of J' (Hessian of -log p by the output) J, from derivatives of the whole batch."""
    like = weights_of(model)

    def output(vector: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model.net, unflat(vector, like), x)
        return found

    at = output(flat(like)).detach()
    rows = jacobian(output, flat(like)).reshape(at.numel(), -1)  # type: ignore[union-attr]

    def loss(values: Tensor) -> Tensor:
        return -model.likelihood(values).log_prob(y).sum()  # type: ignore[attr-defined,no-any-return]

    inner = hessian(loss, at).reshape(at.numel(), at.numel())  # type: ignore[union-attr]
    return rows.mT @ inner @ rows


def evidence_by_hand(model: ps.BayesianModel, data: tuple[Tensor, Tensor], precision: Tensor) -> float:
    weights = weights_of(model)
    size = flat(weights).numel()
    determinant = torch.linalg.slogdet(precision).logabsdet
    return (log_joint(model, weights, data) + 0.5 * size * math.log(2 * math.pi) - 0.5 * determinant).item()


def regression(count: int = 40) -> tuple[ps.BayesianModel, tuple[Tensor, Tensor], Tensor, float]:
    """A linear model at its exact posterior mean, its data, the covariance of an output's weights, and the evidence."""
    x, y = torch.randn(count, 3).double(), torch.randn(count, 2).double()
    net = nn.Linear(3, 2).double()
    phi = torch.cat([x, torch.ones(count, 1).double()], 1)
    evidence, covariances = 0.0, []
    with torch.no_grad():
        for o, noise in enumerate(NOISE.tolist()):
            precision = torch.eye(4).double() / 0.7**2 + phi.mT @ phi / noise**2
            mean = torch.linalg.solve(precision, 0.1 / 0.7**2 + phi.mT @ y[:, o] / noise**2)
            net.weight[o], net.bias[o] = mean[:3], mean[3]
            covariances.append(torch.linalg.inv(precision))
            spread = noise**2 * torch.eye(count).double() + 0.7**2 * phi @ phi.mT
            evidence += MultivariateNormal(0.1 * phi.sum(1), spread).log_prob(y[:, o]).item()
    return model_of(net, Gaussian(NOISE), count), (x, y), torch.stack(covariances), evidence


@pytest.mark.parametrize("structure", ["full", "last_layer"])
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_of_linear_regression_it_is_the_exact_posterior_and_evidence(structure: Any, batch_size: int) -> None:
    model, (x, y), covariances, evidence = regression()
    guide = Laplace(model, structure)
    assert "not fitted" in repr(guide)
    found = ps.fit_laplace(model, guide, (x, y), batch_size=batch_size)
    assert "not fitted" not in repr(guide) and found.negative_curvature is None
    assert found.log_marginal_likelihood == pytest.approx(evidence, abs=1e-10)
    assert found.newton_gain < 1e-20 and found.num_weights == 8
    whole = guide.factor() @ guide.factor().mT
    for o, covariance in enumerate(covariances):
        entries = torch.tensor([3 * o, 3 * o + 1, 3 * o + 2, 6 + o])
        assert torch.allclose(whole[entries][:, entries], covariance, rtol=1e-10)
    assert whole[0, 3].abs() < 1e-14  # outputs are independent
    exact = ps.guides.LastLayer(model)
    ps.fit_last_layer(model, exact, (x, y))
    one, other = (ps.predict(model, g, x[:4], y=y[:4], mode="linearized") for g in (guide, exact))
    assert torch.allclose(one.variance, other.variance) and torch.allclose(one.log_density, other.log_density)
    if structure == "last_layer":
        terms = ps.decompose(model, guide, (x, y), estimator="moments")
        assert terms.elbo == pytest.approx(evidence, abs=1e-8)


def test_the_data_may_come_from_a_loader_in_any_order() -> None:
    model, data, _, evidence = regression()
    guide = Laplace(model, "full")
    loader = DataLoader(TensorDataset(*data), batch_size=16, shuffle=True)
    assert ps.fit_laplace(model, guide, loader).log_marginal_likelihood == pytest.approx(evidence, abs=1e-10)


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_of_logistic_regression_its_precision_is_the_hessian(structure: Any, kind: str) -> None:
    x, labels = classes()
    likelihood, y, outputs = (Categorical(), labels, 3) if kind == "categorical" else (Bernoulli(), x[:, 1:] - x[:, :2], 2)
    y = y if kind == "categorical" else (y > 0.3).double()
    model = model_of(nn.Linear(3, outputs).double(), likelihood, 60)
    train(model, (x, y))
    like = weights_of(model)
    exact = -hessian(lambda vector: log_joint(model, unflat(vector, like), (x, y)), flat(like))  # type: ignore[operator]
    guide = Laplace(model, structure)
    found = ps.fit_laplace(model, guide, (x, y), batch_size=16)
    assert found.newton_gain < 1e-12 and found.negative_curvature is None
    if structure == "diagonal":
        exact = torch.diag(exact.diagonal())
        for name, part in unflat(exact.diagonal(), like).items():
            assert torch.allclose(guide.site_distribution(name).variance, part.reciprocal(), rtol=1e-10)
    else:
        assert torch.allclose(guide.factor() @ guide.factor().mT, torch.linalg.inv(exact), rtol=1e-9, atol=1e-12)
    assert found.log_marginal_likelihood == pytest.approx(evidence_by_hand(model, (x, y), exact), abs=1e-9)


class Twice(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


def small(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def normalized() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for _ in range(3):
            net(1.0 + torch.randn(20, 3).double())
    return net


class Meeting(nn.Module):
    """Each example's output depends on all others; this belongs to one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.tanh(self.layer(x))
        return found + found.mean(0)


NETWORKS = {"plain": small, "twice": Twice, "normalized": normalized, "meeting": Meeting}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("likelihood", [Gaussian(NOISE), Categorical()])
def test_the_curvature_is_that_of_the_whole_derivative(network: str, structure: Any, likelihood: Any) -> None:
    x = torch.randn(30, 3).double()
    y = torch.randn(30, 2).double() if isinstance(likelihood, Gaussian) else torch.randint(2, (30,))
    net = NETWORKS[network]().double()
    prior = {"*": ps.priors.Normal(0.1, 0.7), "1.*": None} if network == "normalized" else None
    model = model_of(net, likelihood, 30, prior)
    guide = Laplace(model, structure)
    with pytest.warns(UserWarning, match="no maximum"):
        found = ps.fit_laplace(model, guide, (x, y), batch_size=8, not_optimum="warn")
    model.net.eval()
    exact = ggn_by_hand(model, x, y) + torch.eye(flat(weights_of(model)).numel()).double() / 0.49
    exact = exact if structure == "full" else torch.diag(exact.diagonal())
    assert found.log_det == pytest.approx(torch.linalg.slogdet(exact).logabsdet.item(), rel=1e-10)
    assert found.log_marginal_likelihood == pytest.approx(evidence_by_hand(model, (x, y), exact), abs=1e-8)
    variances = torch.linalg.inv(exact).diagonal()
    found_variances = {name: guide.site_distribution(name).variance for name in guide.site_names}
    assert torch.allclose(flat(found_variances), variances, rtol=1e-9)


def test_a_last_layer_on_features_and_positions_of_an_output() -> None:
    x, y = classes()
    model = model_of(small(3), Categorical(), 60, {"2.*": ps.priors.Normal()})
    train(model, (x, y))
    guide = Laplace(model, "last_layer")
    found = ps.fit_laplace(model, guide, (x, y))
    exact = ggn_by_hand(model, x, y) + torch.eye(15).double()
    assert found.log_marginal_likelihood == pytest.approx(evidence_by_hand(model, (x, y), exact), abs=1e-9)
    net = nn.Sequential(nn.Conv1d(1, 3, 2)).double()
    for axis in (1, -1):
        shaped = net if axis == 1 else nn.Sequential(*net, Swap())
        sequence = model_of(copy.deepcopy(shaped), Categorical(axis=axis), 10)
        inputs, labels = torch.randn(10, 1, 5).double(), torch.randint(3, (10, 4))
        train(sequence, (inputs, labels))
        found = ps.fit_laplace(sequence, Laplace(sequence, "full"), (inputs, labels))
        exact = ggn_by_hand(sequence, inputs, labels) + torch.eye(9).double() / 0.49
        assert found.log_det == pytest.approx(torch.linalg.slogdet(exact).logabsdet.item(), rel=1e-10)


class Swap(nn.Module):
    """The last two axes, exchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.filterwarnings("ignore:fit_laplace")
def test_constant_entries_cost_nothing() -> None:
    x, y = torch.randint(5, (40, 2)), torch.randn(40, 2).double()
    padded = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Flatten(), nn.Linear(6, 2)).double()
    model = model_of(padded, Gaussian(0.5), 40, {"0.weight": ps.priors.Normal(), "2.*": ps.priors.Normal()})
    guide = Laplace(model)
    found = ps.fit_laplace(model, guide, (x, y), not_optimum="warn", curvature_steps=0)
    exact = ggn_by_hand(model, x, y).diagonal() + 1.0
    free = torch.ones(29, dtype=torch.bool)
    free[3:6] = False
    assert found.num_weights == 26
    assert found.log_det == pytest.approx(exact[free].log().sum().item(), rel=1e-10)
    assert (guide.site_distribution("0.weight").variance[1] == 0).all()


@pytest.mark.filterwarnings("ignore:fit_laplace")
@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_the_best_prior_precision_is_the_largest_marginal_likelihood(structure: Any) -> None:
    x, y = classes()
    model = model_of(small(3), Categorical(), 60, {"*": ps.priors.Normal(0.0, 0.9)})
    train(model, (x, y))
    guide = Laplace(model, structure)
    given = ps.fit_laplace(model, guide, (x, y))
    found = ps.fit_laplace(model, guide, (x, y), prior_precision="marginal")
    (precision,) = set(found.prior_precision.values())
    assert isinstance(precision, float) and given.chosen == "given" and found.chosen == "marginal"
    assert found.log_marginal_likelihood > given.log_marginal_likelihood
    # The model's prior is the one that was found, and so is the guide's.
    assert model.sites["0.weight"].prior == f"Normal(loc=0, scale={precision**-0.5:.6g})"
    curvature = ggn_by_hand(model, x, y)
    curvature = curvature if structure == "full" else torch.diag(curvature.diagonal())
    values = []
    for factor in (0.999, 1.0, 1.001):
        for name in guide.site_names:
            model.prior(name).scale.fill_((factor * precision) ** -0.5)
        exact = curvature + factor * precision * torch.eye(len(curvature)).double()
        values.append(evidence_by_hand(model, (x, y), exact))
    assert values[1] == pytest.approx(found.log_marginal_likelihood, abs=1e-9)
    assert values[1] > max(values[0], values[2])
    if structure == "diagonal":
        apart = ps.fit_laplace(
            model, guide, (x, y), prior_precision="marginal", per_site=True, not_optimum="warn", curvature_steps=0
        )
        assert apart.log_marginal_likelihood > found.log_marginal_likelihood
        assert len(set(apart.prior_precision.values())) == 4


def test_the_precision_may_be_chosen_on_held_out_data() -> None:
    x, y = classes(120)
    model = model_of(small(3), Categorical(), 60, {"*": ps.priors.Normal()})
    train(model, (x[:60], y[:60]))
    guide = Laplace(model)
    found = ps.fit_laplace(model, guide, (x[:60], y[:60]), prior_precision=(x[60:], y[60:]))
    assert found.held_out is not None and found.chosen == "held-out" and len(found.held_out) == 17
    (precision,) = set(found.prior_precision.values())
    assert precision == pytest.approx(min(found.held_out, key=found.held_out.__getitem__))  # type: ignore[arg-type]
    scored = ps.compare(model, guide, (x[60:], y[60:]), modes=("linearized",)).rows[0].nll
    assert scored == pytest.approx(min(found.held_out.values()), rel=1e-9)


def test_training_with_the_guide_finds_a_maximum() -> None:
    torch.manual_seed(0)
    x, y = classes()
    model = model_of(small(3), Categorical(), 60, {"*": ps.priors.Normal()})
    guide = Laplace(model, init_scale=1e-4)
    with pytest.raises(ValueError, match=r"no maximum.*a Newton step would add.*Train longer"):
        ps.fit_laplace(model, guide, (x, y))
    before = guide.site_distribution("0.weight").variance
    ps.fit(
        model, guide, (x, y), epochs=1500, batch_size=60, lr=0.03, schedule="cosine", progress=False, compile=False, seed=0
    )
    assert torch.equal(before, guide.site_distribution("0.weight").variance)
    found = ps.fit_laplace(model, guide, (x, y))
    assert found.newton_gain < 1e-3 and 0 < found.effective_weights < found.num_weights
    assert "log marginal likelihood" in str(found) and found.to_dict()["structure"] == "diagonal"


def test_a_saddle_is_named_with_the_remedy() -> None:
    # With all weights at zero the gradient of a centered target is zero, and so is the curvature that is used.
    net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    x = torch.linspace(-1, 1, 20).double()[:, None]
    model = model_of(net, Gaussian(0.1), 20, {"*": ps.priors.Normal()})
    guide = Laplace(model)
    with pytest.raises(ValueError, match=r"negative curvature.*mostly of '[01].weight'.*saddle.*Train longer"):
        ps.fit_laplace(model, guide, (x, x))
    with pytest.warns(UserWarning, match="negative curvature"):
        found = ps.fit_laplace(model, guide, (x, x), not_optimum="warn")
    # The Hessian's smallest eigenvalue: 1 from the prior, less the sum of x y over the variance.
    exact = 1.0 - (x * x).sum().item() / 0.01
    assert found.negative_curvature == pytest.approx(exact, rel=1e-6) and found.newton_gain == 0.0
    assert ps.fit_laplace(model, guide, (x, x), curvature_steps=0).negative_curvature is None


def test_what_is_drawn_has_the_covariance_of_the_guide() -> None:
    model, data, _, _ = regression()
    guide = Laplace(model, "full")
    ps.fit_laplace(model, guide, data)
    drawn = torch.stack([flat(guide()) for _ in range(4000)]).detach()
    exact = guide.factor() @ guide.factor().mT
    spread = exact.diagonal().sqrt()
    assert ((drawn.T.cov() - exact) / spread.outer(spread)).abs().max() < 6.0 * math.sqrt(2.0 / 4000)
    # What a part of the guide covers keeps its covariance.
    part = guide.restricted_to(["bias"])
    assert torch.allclose(part.site_distribution("bias").variance, exact.diagonal()[6:])
    assert "not fitted" not in repr(part)


def test_what_it_cannot_treat_is_refused_by_name() -> None:
    x, y = torch.randn(40, 3).double(), torch.randn(40, 2).double()

    def refused(match: str, likelihood: Any = None, prior: Any = None, kind: Any = ValueError, **options: Any) -> None:
        model = model_of(small(), Gaussian(0.3) if likelihood is None else likelihood, options.pop("num", 40), prior)
        guide = options.pop("guide", Laplace)(model)
        with pytest.raises(kind, match=match):
            ps.fit_laplace(model, guide, (x, y), **options)

    refused("expected the likelihood Categorical, Bernoulli, or Gaussian.*StudentT", ps.likelihoods.StudentT(4.0, 0.3))
    refused("without missing targets", Gaussian(0.3, nan_is_missing=True))
    refused("expected the likelihood", Gaussian(dist.Gamma(9.0, 9.0)))
    refused("normal prior at site '0.weight', got Laplace.*take priors.Normal", prior={"*": ps.priors.Laplace()})
    refused(r"random scale\(s\) '0.weight_prior_scale'", prior={"*": ps.priors.Hierarchical()})
    refused("num_data=50 examples.*got 40", num=50)
    refused("expected a guide Laplace, got Additive", guide=ps.guides.Additive, kind=TypeError)
    refused("per_site=True: expected prior_precision='marginal'", per_site=True)
    refused("prior_precision: expected", prior_precision="best")
    refused("not_optimum: expected", not_optimum="ignore")
    refused(
        "expected the priors priors.Normal, whose scale can be changed, got another at site",
        prior={"*": ps.priors.EmpiricalBayes(0.5)},
        prior_precision="marginal",
    )
    only = lambda model: Laplace(model, sites=["0.weight"])  # noqa: E731
    refused("expected a guide of all random weights.*'2.bias'.*got one of '0.weight'", guide=only)
    model = model_of(small(), Gaussian(0.3), 40)
    with pytest.raises(ValueError, match=r"Laplace\(structure='last_layer'\): expected the weight of one linear layer"):
        Laplace(model, "last_layer")
    with pytest.raises(ValueError, match="structure: expected"):
        Laplace(model, "low_rank")  # type: ignore[arg-type]


def test_the_marginal_likelihood_without_a_maximum_is_refused() -> None:
    x = torch.linspace(-1, 1, 20).double()[:, None]
    net = nn.Linear(1, 1).double()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    model = model_of(net, Gaussian(1.0), 20, {"*": ps.priors.Normal()})
    with pytest.raises(ValueError, match="of all weights rises as the precision goes to infinity.*at the prior's mean"):
        ps.fit_laplace(model, Laplace(model, "full"), (x, torch.zeros(20, 1).double()), prior_precision="marginal")


# The Kronecker structure is that of the library curvlinops.


def test_without_the_library_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    model, data, _, _ = regression()
    with pytest.raises(ImportError, match=r"pip install --no-deps curvlinops.*no extra for it.*torchvision"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), data)


@pytest.mark.parametrize("kind", ["gaussian", "categorical, one example", "bernoulli, one example"])
def test_where_the_kronecker_structure_is_exact(kind: str) -> None:
    pytest.importorskip("curvlinops")
    net, count = nn.Linear(3, 2, bias=False).double(), 30 if kind == "gaussian" else 1
    x = torch.randn(count, 3).double()
    cases: dict[str, tuple[Any, Tensor]] = {
        "gaussian": (Gaussian(NOISE), torch.randn(count, 2).double()),
        "categorical, one example": (Categorical(), torch.tensor([1])),
        "bernoulli, one example": (Bernoulli(), torch.tensor([[0.0, 1.0]]).double()),
    }
    likelihood, y = cases[kind]
    model = model_of(net, likelihood, count)
    train(model, (x, y))
    guide, full = Laplace(model, "kronecker"), Laplace(model, "full")
    if kind.startswith("bernoulli"):
        # Of one example the curvature of independent targets is no product; that of one of them is.
        model = model_of(nn.Linear(3, 1, bias=False).double(), likelihood, 1)
        y = y[:, :1]
        train(model, (x, y))
        guide, full = Laplace(model, "kronecker"), Laplace(model, "full")
    one = ps.fit_laplace(model, guide, (x, y), batch_size=8)
    other = ps.fit_laplace(model, full, (x, y))
    if kind == "gaussian":
        assert one.log_det == pytest.approx(other.log_det, rel=1e-9)
    assert one.log_marginal_likelihood == pytest.approx(other.log_marginal_likelihood, abs=1e-8)
    assert torch.allclose(guide.site_distribution("weight").covariance, full.factor() @ full.factor().mT, rtol=1e-6)


def test_weights_that_the_kronecker_structure_does_not_see_are_refused() -> None:
    pytest.importorskip("curvlinops")
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    model = model_of(Twice().double(), Gaussian(0.3), 20)
    with pytest.raises(ValueError, match="'first.weight' is used 2 times.*take structure='diagonal'"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))
    model = model_of(Meeting().double(), Gaussian(0.3), 20)
    with pytest.raises(ValueError, match="a network that keeps examples apart"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))
    model = model_of(small(), Gaussian(0.3), 20, {"*": ps.priors.Normal(0.0, torch.tensor(0.5)), "0.weight": ps.priors.Normal(0.0, 0.5 + torch.rand(4, 3))})
    with pytest.raises(ValueError, match="site '0.weight'.*expects a prior with one standard deviation"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize(
    ("subset", "theirs", "ours"),
    [
        ("all", "full", "full"),
        ("all", "diag", "diagonal"),
        ("all", "kron", "kronecker"),
        ("last_layer", "full", "last_layer"),
        ("last_layer", "kron", "kronecker"),
    ],
)
def test_the_marginal_likelihood_is_that_of_the_library_laplace(kind: str, subset: str, theirs: str, ours: Any) -> None:
    library = pytest.importorskip("laplace")
    x, labels = classes()
    y = labels if kind == "classification" else torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1)
    net = small(3 if kind == "classification" else 2)
    prior = {"2.*": ps.priors.Normal()} if subset == "last_layer" else {"*": ps.priors.Normal()}
    prior = prior if subset == "last_layer" else {"*": ps.priors.Normal(), "*.bias": ps.priors.Normal()}
    model = model_of(net, Categorical() if kind == "classification" else Gaussian(0.3), 60, prior)
    train(model, (x, y))
    found = ps.fit_laplace(model, Laplace(model, ours), (x, y), batch_size=25)
    options = {} if kind == "classification" else {"sigma_noise": 0.3}
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    other = library.Laplace(
        net, kind, subset_of_weights=subset, hessian_structure=theirs, prior_precision=1.0, **options
    )
    other.fit(DataLoader(TensorDataset(x, y), batch_size=25))
    assert found.log_marginal_likelihood == pytest.approx(float(other.log_marginal_likelihood()), abs=1e-4)
