"""Laplace approximations with Kronecker factors of the library curvlinops, and beside the library laplace."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from laplace_twins import NOISE, Meeting, Twice, classes, model_of, regression, small, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.guides import Laplace
from pyrostoch.likelihoods import Bernoulli, Categorical, Gaussian

# The Kronecker structure is that of the library curvlinops, which warns of its own use of torch.
by_library = pytest.mark.filterwarnings("ignore")


def test_without_the_library_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    model, data, _, _ = regression()
    with pytest.raises(ImportError, match=r"pip install --no-deps curvlinops.*no extra for it.*torchvision"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), data)


@by_library
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


@by_library
def test_weights_that_the_kronecker_structure_does_not_see_are_refused() -> None:
    pytest.importorskip("curvlinops")
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    model = model_of(Twice().double(), Gaussian(0.3), 20)
    with pytest.raises(ValueError, match="'first.weight' is used 2 times.*take structure='diagonal'"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))
    model = model_of(Meeting().double(), Gaussian(0.3), 20)
    with pytest.raises(ValueError, match="a network that keeps examples apart"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))
    model = model_of(
        small(),
        Gaussian(0.3),
        20,
        {"*": ps.priors.Normal(0.0, torch.tensor(0.5)), "0.weight": ps.priors.Normal(0.0, 0.5 + torch.rand(4, 3))},
    )
    with pytest.raises(ValueError, match="site '0.weight'.*expects a prior with one standard deviation"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))


@by_library
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
