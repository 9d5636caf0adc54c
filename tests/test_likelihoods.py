"""Likelihoods: their distributions against torch's own, and the targets they refuse."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch import likelihoods as lk

OUT = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.0, 0.1]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])
REALS = torch.tensor([[0.1, 0.2], [1.0, -1.0], [0.0, 3.0]], dtype=torch.float64)

CASES = {
    "categorical": (lk.Categorical(), OUT, LABELS, lambda: -F.cross_entropy(OUT, LABELS, reduction="none")),
    "categorical, positions": (
        lk.Categorical(),
        OUT.expand(4, 3, 2),
        LABELS.expand(4, 3),
        lambda: -F.cross_entropy(OUT, LABELS, reduction="sum").expand(4),
    ),
    "bernoulli": (
        lk.Bernoulli(),
        OUT,
        (REALS > 0).double(),
        lambda: -F.binary_cross_entropy_with_logits(OUT, (REALS > 0).double(), reduction="none").sum(-1),
    ),
    "poisson": (
        lk.Poisson(),
        OUT,
        torch.tensor([[0.0, 1.0], [3.0, 2.0], [5.0, 0.0]], dtype=torch.float64),
        lambda: (
            torch.tensor([[0.0, 1.0], [3.0, 2.0], [5.0, 0.0]]) * OUT
            - OUT.exp()
            - torch.lgamma(torch.tensor([[0.0, 1.0], [3.0, 2.0], [5.0, 0.0]], dtype=torch.float64) + 1)
        ).sum(-1),
    ),
    "gaussian": (lk.Gaussian(0.7), OUT, REALS, lambda: dist.Normal(OUT, 0.7).log_prob(REALS).sum(-1)),
    "gaussian, one axis": (
        lk.Gaussian(0.7),
        OUT[:, 0],
        REALS[:, 0],
        lambda: dist.Normal(OUT[:, 0], 0.7).log_prob(REALS[:, 0]),
    ),
    "heteroscedastic": (
        lk.HeteroscedasticGaussian(),
        OUT,
        REALS[:, :1],
        lambda: dist.Normal(OUT[:, :1], F.softplus(OUT[:, 1:]) + 1e-6).log_prob(REALS[:, :1]).sum(-1),
    ),
    "student": (lk.StudentT(3.0, 0.7), OUT, REALS, lambda: dist.StudentT(3.0, OUT, 0.7).log_prob(REALS).sum(-1)),
    "a function": (
        lk.as_likelihood(lambda out: dist.Laplace(out, 2.0)),
        OUT,
        REALS,
        lambda: dist.Laplace(OUT, 2.0).log_prob(REALS).sum(-1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_density_is_the_one_named(case):
    likelihood, output, target, expected = CASES[case]
    distribution = likelihood(output)
    assert distribution.batch_shape == (len(output),)
    likelihood.check_shape(distribution, target)
    likelihood.check_target(distribution, target)
    assert torch.allclose(distribution.log_prob(target), expected())


@pytest.mark.parametrize("make", [lk.Gaussian, lambda s, learn: lk.StudentT(4.0, s, learn=learn)])
def test_learned_noise_is_fitted(make):
    likelihood = make(0.5, learn=True)
    assert sum(p.numel() for p in likelihood.parameters()) == 1
    likelihood(torch.zeros(3, 1)).log_prob(torch.ones(3, 1)).sum().backward()
    assert next(likelihood.parameters()).grad != 0
    assert "learned, 0.5" in repr(likelihood)


def test_repr_of_fixed_and_random_noise():
    assert "0.5" in repr(lk.Gaussian(0.5)) and "random, Gamma" in repr(lk.Gaussian(dist.Gamma(2.0, 2.0)))


@pytest.mark.parametrize(
    ("likelihood", "output", "target", "message"),
    [
        (lk.Categorical(), OUT, torch.tensor([0, 1, 2]), "labels from 0 to 1.*got 1 outside, among them 2"),
        (lk.Categorical(), OUT, torch.tensor([0, -1, 1]), "among them -1"),
        (lk.Categorical(), OUT, LABELS.double(), "expected integer class labels, got torch.float64"),
        (lk.Categorical(), OUT, LABELS[:, None], r"expected targets of shape \(3,\).*got \(3, 1\)"),
        (lk.Bernoulli(), OUT, torch.full((3, 2), 2.0), "targets 0 or 1, got 6 others, among them 2"),
        (lk.Bernoulli(), OUT, LABELS, "expected floating-point targets"),
        (lk.Poisson(), OUT, torch.full((3, 2), 0.5), "counts 0, 1, 2.*got 6 others, among them 0.5"),
        (lk.Gaussian(), OUT, REALS[:, 0], r"expected targets of shape \(3, 2\)"),
        (lk.Gaussian(), OUT, REALS * float("nan"), "6 target.s. are NaN"),
    ],
)
def test_targets_that_are_refused(likelihood, output, target, message):
    distribution = likelihood(output)
    with pytest.raises((ValueError, TypeError), match=message):
        likelihood.check_shape(distribution, target)
        likelihood.check_target(distribution, target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lk.Categorical()(torch.zeros(3)), "expected logits of shape"),
        (lambda: lk.HeteroscedasticGaussian()(torch.zeros(3, 3)), r"shape \(batch, 2 d\)"),
        (lambda: lk.Gaussian(-1.0), "likelihood.scale: expected a positive finite number"),
        (lambda: lk.Gaussian(dist.Gamma(1.0, 1.0), learn=True), "one or the other"),
        (lambda: lk.StudentT(0.0), "df"),
        (lambda: lk.as_likelihood(nn.Linear(1, 1)), "likelihood: expected"),
        (lambda: lk.as_likelihood(lambda out: out)(OUT), "expected a Pyro distribution"),
        (
            lambda: lk.as_likelihood(lambda out: torch.distributions.Normal(out, 1.0))(OUT),
            "expected a Pyro distribution",
        ),
    ],
)
def test_bad_use(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_any_distribution_trains():
    model = ps.BayesianModel(
        nn.Linear(2, 2), prior=ps.priors.Normal(), likelihood=lambda out: dist.Gamma(out.exp(), 1.0), num_data=6
    )
    loss = ps.ELBO()(model, ps.guides.Additive(model))(torch.randn(6, 2), torch.rand(6, 2) + 0.1)
    assert torch.isfinite(loss)
