"""Laplace approximations beside the exact posterior, the exact evidence, and curvature by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from laplace_twins import (
    NOISE,
    Meeting,
    Twice,
    classes,
    evidence_by_hand,
    flat,
    ggn_by_hand,
    log_joint,
    model_of,
    normalized,
    regression,
    small,
    train,
    unflat,
    weights_of,
)
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.guides import Laplace
from pyrostoch.likelihoods import Bernoulli, Categorical, Gaussian
from pyrostoch.staging import missing


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
    likelihood, y, outputs = (
        (Categorical(), labels, 3) if kind == "categorical" else (Bernoulli(), x[:, 1:] - x[:, :2], 2)
    )
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
    with torch.no_grad():
        padded[0].weight[1] = 0.6
    prior = ps.priors.Normal(0.1, 0.7)
    model = model_of(padded, Gaussian(0.5), 40, {"0.weight": prior, "2.*": prior})
    guide = Laplace(model)
    found = ps.fit_laplace(model, guide, (x, y), not_optimum="warn", curvature_steps=0)
    exact = ggn_by_hand(model, x, y).diagonal() + 1.0 / 0.49
    free = torch.ones(29, dtype=torch.bool)
    free[3:6] = False
    assert found.num_weights == 26
    assert found.log_det == pytest.approx(exact[free].log().sum().item(), rel=1e-10)
    numbers = torch.tensor([0.1, 0.7], dtype=torch.float64)
    density = torch.distributions.Normal(*numbers).log_prob(flat(weights_of(model))[free]).sum()
    assert found.log_prior == pytest.approx(density.item(), rel=1e-10)
    assert (guide.site_distribution("0.weight").variance[1] == 0).all()


@pytest.mark.skipif(missing(torch.device("cpu")) is not None, reason="nothing to compile with")
@pytest.mark.parametrize("structure", ["full", "kronecker", "diagonal"])
def test_after_a_compiled_training_in_single_precision(structure: Any) -> None:
    """Means that compiled steps have trained are read like any others: the evidence by hand is found."""
    x = torch.linspace(-1, 1, 60)[:, None]
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    model = ps.BayesianModel(net, prior={"*": ps.priors.Normal()}, likelihood=Gaussian(0.3), num_data=60)
    guide = Laplace(model, structure, init_scale=1e-4)
    found = ps.fit(
        model, guide, (x, x.sin()), epochs=1500, batch_size=60, lr=2e-2, seed=0, compile=True, progress=False
    )  # fmt: skip
    assert found.compile_seconds
    after = ps.fit_laplace(model, guide, (x, x.sin()))
    double = copy.deepcopy(model).double()
    twin = Laplace(double, structure, init_loc=lambda site: guide.site_distribution(site.name).mean.detach().double())
    exact = ps.fit_laplace(double, twin, (x.double(), x.sin().double()))
    assert after.log_marginal_likelihood == pytest.approx(exact.log_marginal_likelihood, abs=1e-3)
    assert after.newton_gain < 0.1
