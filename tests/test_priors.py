"""Priors: their distributions, which parameter gets which, and which parameters cannot be random."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch import priors
from pyrostoch.priors import assign

F64 = {"dtype": torch.float64}

CASES = {
    "normal": (priors.Normal(0.5, 2.0), dist.Normal(torch.tensor(0.5), 2.0)),
    "laplace": (priors.Laplace(0.0, 0.7), dist.Laplace(torch.tensor(0.0), 0.7)),
    "student": (priors.StudentT(3.0, 0.0, 0.5), dist.StudentT(3.0, 0.0, 0.5)),
    "cauchy, given": (priors.as_prior(dist.Cauchy(0.0, 2.0)), dist.Cauchy(0.0, 2.0)),
    "normal, given as an event": (
        priors.as_prior(dist.Normal(0.0, 3.0).expand([4]).to_event(1)),
        dist.Normal(0.0, 3.0),
    ),
    "empirical": (priors.EmpiricalBayes(0.4), dist.Normal(torch.tensor(0.0), 0.4)),
    "mixture, given": (
        priors.as_prior(
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0]))
            )
        ),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0]))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_is_the_one_named(case):
    prior, distribution = CASES[case]
    values = torch.linspace(-2, 2, 4)
    found = prior.for_parameter(torch.zeros(1)).distribution("site", torch.Size([3, 4]))
    assert found.batch_shape == (3, 4) and found.event_shape == ()
    assert torch.allclose(found.log_prob(values.expand(3, 4)), distribution.log_prob(values).expand(3, 4), atol=1e-6)


def test_parameters_keep_double_precision():
    assert priors.Normal(0.0, 0.8).for_parameter(torch.zeros(1, **F64)).scale.item() == 0.8


def test_hierarchical_scale_is_a_site():
    with pyro.poutine.trace() as tracer:
        distribution = priors.Hierarchical(dist.HalfNormal(2.0)).distribution("fc.weight", torch.Size([2]))
    assert torch.equal(distribution.scale[0], tracer.trace.nodes["fc.weight_prior_scale"]["value"])
    with pytest.raises(ValueError, match="expected a distribution on the positive numbers"):
        priors.Hierarchical(dist.Normal(0.0, 1.0))


def network():
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 3),
            "bn": nn.BatchNorm2d(2),
            "body": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
            "rnn": nn.LSTM(2, 2),
            "head": nn.Linear(2, 2),
        }
    )


WEIGHTS = ["conv.weight", "body.0.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, []),
        (priors.Normal(), WEIGHTS),
        (dist.Normal(0.0, 1.0), WEIGHTS),
        ({"*.weight": priors.Normal()}, ["conv.weight", "body.0.weight", "head.weight"]),
        ({"head.*": priors.Normal()}, ["head.weight", "head.bias"]),
        ({"body.*": priors.Normal()}, ["body.0.weight", "body.0.bias"]),
        ({"bn.weight": priors.Normal()}, ["bn.weight"]),
        ({"bn.*": priors.Normal()}, ["bn.weight", "bn.bias"]),
        ({"body.1.*": priors.Normal()}, ["body.1.weight", "body.1.bias"]),
        ({"*weight*": priors.Normal(), "rnn.*": None}, ["conv.weight", "body.0.weight", "head.weight"]),
        (lambda name, p: priors.Normal() if p.dim() == 4 else None, ["conv.weight"]),
    ],
)
def test_rules(spec, expected):
    assert sorted(assign(network(), spec)) == sorted(expected)


def test_the_last_match_wins_and_a_dictionary_may_hold_callables():
    found = assign(
        network(),
        {"*.weight": priors.LogUniform(), "head.*": lambda name, p: priors.Normal(0.0, 1.0 / p.shape[-1] ** 0.5)},
    )
    assert (
        repr(found["conv.weight"]) == "LogUniform()" and repr(found["head.weight"]) == "Normal(loc=0, scale=0.707107)"
    )
    assert found["conv.weight"] is not found["body.0.weight"]


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))

    def forward(self, x):
        return self.part(x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(nn.LazyLinear(3)),
            "parameter '0.weight' of LazyLinear cannot be made random: it has no shape yet",
        ),
        (
            nn.Linear(2, 2, dtype=torch.complex64),
            "'weight' of Linear cannot be made random: its dtype is torch.complex64",
        ),
        (nn.ParameterDict({"weight": nn.Parameter(torch.zeros(0, 2))}), "'weight' of ParameterDict.*it is empty"),
    ],
)
def test_what_cannot_be_random_is_refused_by_name(net, message):
    with pytest.raises(ValueError, match=message):
        assign(net, priors.Normal())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_parts_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'part.weight' of .* it belongs to a scripted module"):
        assign(Scripted(), priors.Normal())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_bad_priors():
    with pytest.raises(TypeError, match="expected a distribution of single real weights"):
        priors.as_prior(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(TypeError, match=r"got torch's Normal; use pyro.distributions.Normal"):
        priors.as_prior(torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(ValueError):
        priors.Normal(0.0, -1.0)
    with pytest.raises(ValueError, match="approximation"):
        priors.LogUniform("molchanow")
    with pytest.raises(ValueError, match="EmpiricalBayes scale"):
        priors.EmpiricalBayes(0.0)
    with pytest.raises(TypeError, match=r"got the class Normal; use an instance: Normal\(\)"):
        assign(nn.Linear(1, 1), {"weight": priors.Normal})
    with pytest.raises(TypeError, match="prior: expected"):
        assign(nn.Linear(1, 1), {"weight": 3.0})


def test_improper_priors_are_reported():
    assert priors.LogUniform().improper and priors.ARD().improper and not priors.Normal().improper
    model = ps.BayesianModel(
        nn.Linear(2, 1), prior=priors.LogUniform(), likelihood=ps.likelihoods.Gaussian(), num_data=3
    )
    assert model.improper and model.sites["weight"].improper
    with pytest.raises(ValueError, match="site 'x': expected one of the random weights 'weight'"):
        model.prior("x")
