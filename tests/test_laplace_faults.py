"""The prior's precision of a Laplace approximation, points that are no maximum, and what is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from laplace_twins import (
    PRIOR,
    classes,
    evidence_by_hand,
    flat,
    ggn_by_hand,
    model_of,
    regression,
    small,
    train,
    unflat,
)
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.guides import Laplace
from pyrostoch.likelihoods import Categorical, Gaussian
from pyrostoch.training.optimum import find_negative_curvature


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
        model,
        guide,
        (x, y),
        epochs=1500,
        batch_size=60,
        lr=0.03,
        schedule="cosine",
        progress=False,
        compile=False,
        seed=0,
    )
    assert torch.equal(before, guide.site_distribution("0.weight").variance)
    found = ps.fit_laplace(model, guide, (x, y))
    assert found.newton_gain < 1e-3 and 0 < found.effective_weights < found.num_weights
    assert "log marginal likelihood" in str(found) and found.to_dict()["structure"] == "diagonal"


def test_the_direction_of_negative_curvature_is_one() -> None:
    root = torch.randn(6, 6).double()
    matrix = root @ root.mT - 0.5 * torch.eye(6).double()
    like = {"a": torch.zeros(2, 2), "b": torch.zeros(2)}

    def product(vector: dict[str, Tensor]) -> dict[str, Tensor]:
        return unflat(matrix @ flat(vector), like)

    for steps in (2, 4, 6):
        found = find_negative_curvature(product, like, steps)
        if found is not None:
            vector = flat(found.vector)
            assert (vector @ matrix @ vector).item() == pytest.approx(found.value, rel=1e-8)
            assert torch.linalg.vector_norm(vector).item() == pytest.approx(1.0)
    smallest = torch.linalg.eigvalsh(matrix)[0].item()
    assert (smallest < 0) == (found is not None)
    assert found is None or found.value == pytest.approx(smallest, rel=1e-6)
    assert find_negative_curvature(lambda vector: vector, like, 6) is None


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


def _penalty(net: nn.Module) -> Tensor:
    return torch.zeros(())


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
    penalized = ps.BayesianModel(small(), prior=PRIOR, likelihood=Gaussian(0.3), num_data=40, penalty=_penalty)
    with pytest.raises(ValueError, match="a model without a penalty"):
        ps.fit_laplace(penalized, Laplace(penalized), (x, y))
    model = model_of(small(), Gaussian(0.3), 40)
    with pytest.raises(ValueError, match=r"Laplace\(structure='last_layer'\): expected the weight of one linear layer"):
        Laplace(model, "last_layer")
    with pytest.raises(ValueError, match="structure: expected"):
        Laplace(model, "low_rank")  # type: ignore[arg-type]


def test_a_fitted_prior_has_no_maximum_that_fit_could_find() -> None:
    model = model_of(small(), Gaussian(0.3), 40, {"*": ps.priors.EmpiricalBayes(0.5)})
    data = torch.randn(40, 3).double(), torch.randn(40, 2).double()
    with pytest.raises(ValueError, match="'0.weight', .* is fitted.*no maximum.*prior_precision='marginal'"):
        ps.fit(model, Laplace(model), data, epochs=1, progress=False, compile=False)


def test_the_marginal_likelihood_without_a_maximum_is_refused() -> None:
    x = torch.linspace(-1, 1, 20).double()[:, None]
    net = nn.Linear(1, 1).double()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    model = model_of(net, Gaussian(1.0), 20, {"*": ps.priors.Normal()})
    with pytest.raises(ValueError, match="of all weights rises as the precision goes to infinity.*at the prior's mean"):
        ps.fit_laplace(model, Laplace(model, "full"), (x, torch.zeros(20, 1).double()), prior_precision="marginal")
