"""The warning of fit that a last layer whose distribution has mean zero makes logits that cannot learn."""

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.effects.usage import _UsageMode, weight_usage

VarianceOnly = ps.guides.VarianceOnly


class Net(nn.Module):
    """A hidden layer and a last one, whose output is processed further."""

    def __init__(self, after=None, last=None):
        super().__init__()
        self.hidden, self.after = nn.Linear(4, 6), after
        self.last = nn.Linear(6, 3) if last is None else last

    def forward(self, x):
        h = self.hidden(x).relu()
        out = self.last(h)
        return out if self.after is None else self.after(out, h)


class TiedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).square())


class FullyConvolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(1, 3, (2, 2))

    def forward(self, x):
        return self.last(x.view(-1, 1, 2, 2)).flatten(1)


def in_place(out, h):
    return F.relu(out, inplace=True)


def added_in_place(out, h):
    out += h[:, :3]
    return out


def view_written_to(out, h):
    view = out.view(-1, 3)
    view.square_()
    return out


KEPT = []


def kept_elsewhere(out, h):
    KEPT[:] = [out]
    return h[:, :3].clone()


# How the last layer's output is processed, and whether the logits are still symmetric around the bias.
AFTER = {
    "nothing": (None, True),
    "a view": (lambda out, h: out.view(-1, 3).reshape(-1, 3), True),
    "an axis there and back": (lambda out, h: out.unsqueeze(1).transpose(1, 2).squeeze(-1), True),
    "log-softmax": (lambda out, h: F.log_softmax(out, -1), True),
    "its module": (lambda out, h: nn.LogSoftmax(-1)(out), True),
    "another dtype": (lambda out, h: out.double(), True),
    "a part": (lambda out, h: out[:, :3], True),
    "contiguous": (lambda out, h: torch.flatten(out.contiguous(), 1), True),
    "identity and dropout": (lambda out, h: F.dropout(nn.Identity()(out), 0.5, training=False), True),
    "a residual": (lambda out, h: out + h[:, :3], False),
    "a residual in place": (added_in_place, False),
    "a nonlinearity": (lambda out, h: out.square(), False),
    "a nonlinearity in place": (in_place, False),
    "its view written to": (view_written_to, False),
    "looked at only": (lambda out, h: h[:, :3] * out.shape[1], False),
    "kept, and something else returned": (kept_elsewhere, False),
    "another layer made it": (lambda out, h: (out.sum() * 0 + h)[:, :3], False),
}
X, Y = torch.randn(12, 4), torch.arange(12) % 3


def model_of(net, likelihood=None, prior=None):
    likelihood = ps.likelihoods.Categorical() if likelihood is None else likelihood
    return ps.BayesianModel(net, prior=prior or ps.priors.LogUniform(), likelihood=likelihood, num_data=12)


def warned(model, guide, y=Y, x=X, **options):
    """The sites that the warnings of one run name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ps.fit(model, guide, (x, y), epochs=2, batch_size=6, seed=0, progress=False, **options)
    found = [warning for warning in caught if "has mean zero" in str(warning.message)]
    assert all(warning.category is UserWarning and warning.filename == __file__ for warning in found)
    return [str(warning.message).split("'")[1] for warning in found]


@pytest.mark.parametrize("case", AFTER)
def test_what_follows_the_last_layer(case):
    after, expected = AFTER[case]
    net = Net(after)
    assert warned(model_of(net), VarianceOnly(model_of(net))) == (["last.weight"] if expected else [])
    weights = {name: p.detach() for name, p in net.named_parameters() if p.dim() > 1}
    uses = weight_usage(net, weights, (X,), {}).uses
    assert [uses["last.weight"][0].output, uses["hidden.weight"][0].output] == [expected, False]


def test_a_reused_id_is_not_the_output():
    """A tensor with the same `id` as an earlier output of a layer is not that output."""
    weight, output, other = torch.ones(2, 2), torch.ones(2), torch.ones(2)
    mode = _UsageMode({"last.weight": weight}, {}, 1)
    mode._note(output, ("last.weight", 0))
    assert mode._maker(output) == ("last.weight", 0)
    mode._made[id(other)] = mode._made.pop(id(output))
    assert mode._maker(other) is None
    del output
    assert mode._maker(other) is None


DISTRIBUTIONS = {
    "variance": (VarianceOnly, ["last.weight"]),
    "two points": (functools.partial(VarianceOnly, family="bernoulli"), ["last.weight"]),
    "uniform": (functools.partial(VarianceOnly, family="uniform"), ["last.weight"]),
    "means": (ps.guides.LayerwiseAlpha, []),
    "means of zero that can move": (functools.partial(ps.guides.Additive, init_loc=0.0), []),
    "hidden only": (lambda m: ps.guides.PerSite(m, {"*": VarianceOnly, "last.*": ps.guides.Additive}), []),
    "last only": (lambda m: ps.guides.PerSite(m, {"*": ps.guides.Additive, "last.*": VarianceOnly}), ["last.weight"]),
}


@pytest.mark.parametrize("case", DISTRIBUTIONS)
def test_which_distribution(case):
    make, expected = DISTRIBUTIONS[case]
    model = model_of(Net())
    assert warned(model, make(model)) == expected


def test_the_random_weights_of_other_layers_only():
    model = model_of(Net(), prior={"hidden.weight": ps.priors.LogUniform()})
    assert warned(model, VarianceOnly(model)) == []
    model = model_of(Net(), prior={"last.bias": ps.priors.Normal()})
    assert warned(model, VarianceOnly(model)) == []


class Squared(ps.likelihoods.Categorical):
    def distribution(self, output, **quantities):
        return super().distribution(output.square())


LIKELIHOODS = {
    "bernoulli": (ps.likelihoods.Bernoulli, F.one_hot(Y, 3).float(), True),
    "gaussian": (lambda: ps.likelihoods.Gaussian(0.1), torch.randn(12, 3), False),
    "a distribution of one's own": (Squared, Y, False),
}


@pytest.mark.parametrize("case", LIKELIHOODS)
def test_which_likelihood(case):
    make, y, expected = LIKELIHOODS[case]
    model = model_of(Net(), make())
    assert warned(model, VarianceOnly(model), y) == (["last.weight"] if expected else [])


def test_a_convolution_may_be_the_last_layer_and_a_tied_weight_may_learn():
    model = model_of(FullyConvolutional())
    assert warned(model, VarianceOnly(model)) == ["last.weight"]
    model = model_of(TiedNet())
    assert warned(model, VarianceOnly(model)) == []


def test_it_warns_once_also_with_held_out_data_and_says_what_to_do():
    model = model_of(Net())
    assert warned(model, VarianceOnly(model), validation=(X, Y)) == ["last.weight"]
    with pytest.warns(UserWarning, match=r"'last.weight' has mean zero .* a Categorical likelihood.*PerSite\(model"):
        ps.fit(model, VarianceOnly(model), (X, Y), epochs=1, progress=False)


def test_the_check_does_not_change_the_run():
    """Random numbers, buffers and parameters are not changed by the additional pass."""
    runs = []
    for prior in ({"net.weight": ps.priors.LogUniform()}, {"net.weight": ps.priors.LogUniform()}):
        torch.manual_seed(0)
        net = nn.Sequential()
        net.add_module("body", nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)))
        net.add_module("net", nn.Linear(5, 3))
        model = model_of(net, prior=prior)
        guide = VarianceOnly(model)
        if runs:
            model.likelihood = ps.likelihoods.FromOutput(model.likelihood.distribution)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = ps.fit(model, guide, (X, Y), epochs=2, batch_size=6, seed=3, progress=False)
        runs.append((result.history["elbo"], {k: v.clone() for k, v in net.state_dict().items()}))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_the_claim_of_the_warning_is_true():
    """The expected log-likelihood under a symmetric last layer is at most that of the bias alone, input by input."""
    torch.manual_seed(0)
    x, bias = torch.randn(5, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    scale = torch.rand(3, 6, dtype=torch.float64) * 2
    draws = torch.randn(20_000, 3, 6, dtype=torch.float64) * scale
    terms = F.log_softmax(torch.einsum("sci,ni->snc", draws, x) + bias, -1)
    error = terms.std(0) / math.sqrt(len(terms))
    assert (terms.mean(0) <= F.log_softmax(bias, -1) + 3 * error).all()
    assert (terms.mean(0) < F.log_softmax(bias, -1) - 3 * error).any()


@pytest.mark.parametrize(
    ("last", "warns"),
    [
        (nn.Softmax(dim=1), True),
        (nn.LogSoftmax(dim=1), False),  # log probabilities are logits
        (nn.ReLU(), False),
        (nn.Sigmoid(), False),
        (nn.Identity(), False),
    ],
)
def test_probabilities_in_place_of_logits_are_named(last: nn.Module, warns: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4), last)
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=20)
    data = (torch.randn(20, 3), torch.randint(4, (20,)))

    def run() -> None:
        ps.fit(model, ps.guides.Additive(model), data, epochs=1, batch_size=10, progress=False, compile=False)

    if warns:
        with pytest.warns(UserWarning, match="outputs are probabilities.*leave out the last softmax"):
            run()
    else:
        run()
    assert not model.likelihood._forward_pre_hooks
