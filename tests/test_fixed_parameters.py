"""What the user has fixed stays fixed; norms of other libraries have no prior; half precision is widened."""

import dataclasses

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.likelihoods.reading import full_precision


def network():
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for part in net[:2]:
        part.requires_grad_(False)
    return net


def bayes(net, prior):
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=20)


def test_a_single_prior_and_wildcards_leave_fixed_parameters_alone():
    for prior in (ps.priors.Normal(), {"*": ps.priors.Normal()}, {"*.weight": ps.priors.Normal()}):
        net = network()
        model = bayes(net, prior)
        assert [site for site in model.sites if site.startswith("0")] == [] and "3.weight" in model.sites
        assert not net[0].weight.requires_grad


@pytest.mark.parametrize("rule", ["0.weight", "0.*"])
def test_a_rule_that_names_them_makes_them_random_with_a_warning(rule):
    net = network()
    with pytest.warns(UserWarning, match=r"'0\.weight'.* were fixed .* a rule names them"):
        model = bayes(net, {rule: ps.priors.Normal()})
    assert "0.weight" in model.sites
    # Another model without that rule gives it back as the user had it.
    bayes(net, {"3.weight": ps.priors.Normal()})
    assert not net[0].weight.requires_grad
    bayes(net, {"0.bias": None, "3.bias": ps.priors.Normal()})
    assert net[3].weight.requires_grad and not net[0].weight.requires_grad


def test_a_network_fixed_altogether_is_named():
    net = network().requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.weight', .* are fixed .* makes none random; name those"):
        bayes(net, ps.priors.Normal())
    with pytest.raises(ValueError, match="write out the name of a normalization layer or of a fixed parameter"):
        bayes(net, {"*": ps.priors.Normal()})


def test_batch_normalization_of_a_fixed_part_keeps_its_statistics():
    net = network()
    net.append(nn.BatchNorm1d(2))
    model = bayes(net, ps.priors.Normal())
    before = {name: value.clone() for name, value in net[1].state_dict().items()}
    data = (torch.randn(20, 3) + 5, torch.randint(0, 2, (20,)))
    ps.fit(model, ps.guides.Additive(model), data, epochs=2, batch_size=10, progress=False, compile=False)
    assert all(torch.equal(value, net[1].state_dict()[name]) for name, value in before.items())
    assert net[4].num_batches_tracked == 4 and net[1].training


class TheirRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * self.weight


def test_normalization_layers_of_other_libraries_have_no_prior_unless_asked():
    net = nn.Sequential(nn.Linear(3, 4), TheirRMSNorm(4), nn.Linear(4, 2))
    assert list(bayes(net, ps.priors.Normal()).sites) == ["0.weight", "2.weight"]
    assert "1.weight" not in bayes(net, {"*": ps.priors.Normal()}).sites
    assert "1.weight" in bayes(net, {"1.weight": ps.priors.Normal()}).sites


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple = ()


class Returning(nn.Linear):
    def __init__(self, form):
        super().__init__(8, 10)
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


FORMS = {
    "dictionary": (lambda h: {"logits": h}, lambda out: out["logits"]),
    "tuple": (lambda h: (h, None), lambda out: out[0]),
    "dataclass": (lambda h: Output(h, (h,)), lambda out: out.logits),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_in_half_precision_are_widened_whatever_holds_them(form):
    x, y = torch.randn(400, 8), torch.randint(0, 10, (400,))
    wrap, read = FORMS[form]
    terms = {}
    for name, net in (("plain", nn.Linear(8, 10)), (form, Returning(wrap))):
        nn.init.constant_(net.bias, 0.1)
        torch.manual_seed(0)
        nn.init.normal_(net.weight)
        likelihood = (
            (lambda out: dist.Categorical(logits=out))
            if name == "plain"
            else (lambda out: dist.Categorical(logits=read(out)))
        )
        model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=400)
        guide = ps.guides.Additive(model, init_scale=1e-8)
        options = {"epochs": 1, "batch_size": 400, "lr": 1e-12, "precision": "bf16", "seed": 0}
        terms[name] = ps.fit(model, guide, (x, y), compile=False, progress=False, **options).history["data"][0]
    assert terms[form] == pytest.approx(terms["plain"], rel=1e-6)
    assert full_precision(wrap(torch.zeros(2, dtype=torch.float16))) is not None


def test_whole_numbers_of_numpy_count_and_errors_come_without_pyros_shapes():
    x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
    net = nn.Linear(3, 2)
    model = ps.BayesianModel(
        net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=np.int64(20)
    )
    guide = ps.guides.Additive(model)
    sizes = {"epochs": np.int64(2), "batch_size": np.int32(7), "seed": np.int64(3), "num_particles": np.int64(2)}
    assert len(ps.fit(model, guide, (x, y), progress=False, compile=False, **sizes).history["elbo"]) == 2
    assert ps.predict(model, guide, x, num_samples=np.int64(3), batch_size=np.int64(6)).num_samples == 3
    assert ps.decompose(model, guide, (x, y), num_samples=np.int64(2)).num_samples == 2
    with pytest.raises(ValueError, match="epochs: expected a whole number from 1 up, got True"):
        ps.fit(model, guide, (x, y), epochs=True)
    for call in (
        lambda: ps.predict(model, guide, torch.randn(5, 4)),
        lambda: ps.fit(model, guide, (torch.randn(20, 4), y), epochs=1, progress=False),
        lambda: ps.decompose(model, guide, (torch.randn(20, 4), y)),
        lambda: ps.ELBO()(model, guide)(torch.randn(20, 4), y),
        lambda: ps.predict(model, lambda x: None, x),
    ):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            call()
        assert "Trace Shapes" not in str(caught.value)


class Rescaled(nn.Module):
    """Scales of a module that normalizes, under a name that does not say so."""

    def __init__(self):
        super().__init__()
        self.g, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def scaled(self, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def forward(self, x):
        return self.g * self.scaled(x) + self.shift


class LayerScale(nn.Module):
    """A scale per channel in a block that has a normalization, but is none."""

    def __init__(self):
        super().__init__()
        self.norm, self.gamma = nn.LayerNorm(8), nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x):
        return x + self.gamma * self.norm(x)


class WithMatrix(nn.Module):
    """A layer that normalizes its input and holds a matrix: its parameters are weights."""

    def __init__(self):
        super().__init__()
        self.matrix, self.g = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return (x / x.norm(dim=-1, keepdim=True)) @ self.matrix * self.g


def test_normalization_is_known_by_what_it_computes():
    net = nn.Sequential(nn.Linear(3, 8), Rescaled(), LayerScale(), WithMatrix())
    found = set(bayes(net, ps.priors.Normal()).sites)
    assert found == {"0.weight", "2.gamma", "3.matrix", "3.g"}
    assert "1.g" in bayes(net, {"1.g": ps.priors.Normal()}).sites
