"""Interpretations: mean and variance of each output, against exact values from the moments of the weights."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrostoch.distributions import CenteredNormal, MultiplicativeNormal, SymmetricUniform, TwoPoint
from pyrostoch.effects import (
    Flipout,
    LocalReparameterization,
    MeanPropagation,
    SharedSample,
    call_network,
    independent,
)

F64 = {"dtype": torch.float64}

LAYERS = {
    "linear": (lambda: nn.Linear(3, 4, **F64), (3,)),
    "linear, no bias": (lambda: nn.Linear(3, 4, bias=False, **F64), (3,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2, padding=1, **F64), (4, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, stride=2, bias=False, **F64), (2, 5, 5)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, (3, 2), padding=(1, 0), padding_mode="circular", **F64), (2, 4, 4)),
    "conv2d, same": (lambda: nn.Conv2d(2, 2, 3, padding="same", **F64), (2, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, **F64), (2, 3, 3, 2)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1, groups=2, **F64), (2, 3)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, padding=1, **F64), (2, 3, 3)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 2, 2, bias=False, **F64), (2, 2, 2, 2)),
}


def _positive(tensor):
    return tensor.detach().abs() + 0.1


DISTRIBUTIONS = {
    "normal": lambda w: dist.Normal(w.detach(), _positive(w)),
    "multiplicative": lambda w: MultiplicativeNormal(w.detach(), torch.tensor(0.5, **F64)),
    "centered": lambda w: CenteredNormal(_positive(w)),
    "two points": lambda w: TwoPoint(_positive(w)),
    "uniform": lambda w: SymmetricUniform(_positive(w)),
}


def run(net, distributions, x, interpretation):
    """Draw the weights and call the network under an interpretation."""
    with interpretation:
        mark = independent()
        weights = {
            name: pyro.sample(name, distribution.to_event(len(distribution.batch_shape)), infer=mark)
            for name, distribution in distributions.items()
        }
        return call_network(net, weights, (x,))


def exact_moments(net, distributions, x):
    """Mean and variance of each output of a linear layer, from the means and variances of its weights."""
    mean = torch.func.functional_call(
        net, {name: distribution.mean for name, distribution in distributions.items()}, (x,)
    )
    variances = {name: distribution.variance for name, distribution in distributions.items()}
    if net.bias is not None and "bias" not in distributions:
        variances["bias"] = torch.zeros_like(net.bias)
    return mean.detach(), torch.func.functional_call(net, variances, (x.square(),)).detach()


def assert_moments(outputs, mean, variance, sigmas=5.0):
    """Sample mean and variance over axis 0 within error bars computed from the sample itself."""
    count = len(outputs)
    error = outputs.mean(0) - mean
    assert (error.abs() <= sigmas * outputs.std(0) / math.sqrt(count) + 1e-12).all()
    squares = (outputs - mean).square()
    assert ((squares.mean(0) - variance).abs() <= sigmas * squares.std(0) / math.sqrt(count) + 1e-12).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_local_and_flipout_have_the_exact_marginal_moments(layer, distribution):
    make, shape = LAYERS[layer]
    net = make()
    x = torch.randn(1, *shape, **F64)
    distributions = {name: DISTRIBUTIONS[distribution](parameter) for name, parameter in net.named_parameters()}
    mean, variance = exact_moments(net, distributions, x)
    copies, rounds = 4000, 300
    local = run(net, distributions, x.expand(copies, *shape), LocalReparameterization())
    assert_moments(local.detach(), mean[0], variance[0])
    # The examples of a batch share one draw up to signs, so independent rounds are needed.
    flipped = torch.cat([run(net, distributions, x.expand(2, *shape), Flipout())[:1] for _ in range(rounds)])
    # With so few of them, a standard error of squares is itself uncertain.
    assert_moments(flipped.detach(), mean[0], variance[0], sigmas=8.0)


@pytest.mark.parametrize("interpretation", [SharedSample, LocalReparameterization, Flipout])
def test_only_the_bias_random(interpretation):
    net = nn.Linear(3, 2, **F64)
    x = torch.randn(1, 3, **F64)
    distributions = {"bias": DISTRIBUTIONS["normal"](net.bias)}
    outputs = torch.cat([run(net, distributions, x.expand(3, 3), interpretation())[:1] for _ in range(1500)])
    mean = net(x).detach()[0]
    assert_moments(outputs.detach(), mean, distributions["bias"].variance)


def test_local_draws_differ_between_examples_and_shared_ones_do_not():
    net = nn.Linear(2, 3, bias=False)
    distributions = {"weight": dist.Normal(torch.zeros(3, 2), 1.0)}
    x = torch.ones(50, 2)
    shared = run(net, distributions, x, SharedSample())
    assert (shared == shared[0]).all()
    assert run(net, distributions, x, LocalReparameterization()).unique(dim=0).shape[0] == 50
    flipped = run(net, distributions, x, Flipout())
    # Three signs of outputs and two of inputs: at most 2^5 different rows, and more than 2^2 from input signs alone.
    assert 2**2 < flipped.unique(dim=0).shape[0] <= 2**5


def test_flipout_decorrelates_examples():
    net = nn.Linear(2, 1, bias=False, **F64)
    distributions = {"weight": dist.Normal(torch.zeros(1, 2, **F64), 1.0)}
    x = torch.ones(2, 2, **F64)
    pairs = torch.stack([run(net, distributions, x, Flipout())[:, 0] for _ in range(1500)])
    product = pairs[:, 0] * pairs[:, 1]
    assert abs(product.mean()) < 5 * product.std() / math.sqrt(len(product))


def test_flipout_of_a_convolution_uses_one_weight_at_all_positions_of_an_example():
    """The joint distribution over the positions of an example is exact: one weight is used at all of them."""
    net = nn.Conv1d(1, 1, 1, bias=False, **F64)
    distributions = {"weight": dist.Normal(torch.zeros(1, 1, 1, **F64), 1.0)}
    x = torch.ones(64, 1, 5, **F64)
    out = run(net, distributions, x, Flipout())
    assert (out == out[:, :, :1]).all()
    assert (out.abs() == out.abs()[0]).all()


def test_local_over_conv_positions_is_factorized_and_the_gap_is_as_derived():
    """The mean over P positions of a 1x1 convolution has variance v exactly, and v / P with independent draws."""
    net = nn.Conv1d(1, 1, 1, bias=False, **F64)
    distributions = {"weight": dist.Normal(torch.zeros(1, 1, 1, **F64), 1.0)}
    x = torch.ones(20000, 1, 4, **F64)
    interpretation = LocalReparameterization()
    factorized = run(net, distributions, x, interpretation).mean(-1)
    assert interpretation.treatments == {"weight": "local (factorized over 4 positions)"}
    assert factorized.var().item() == pytest.approx(1 / 4, rel=0.05)
    exact = LocalReparameterization(factorized=False)
    draws = torch.stack([run(net, distributions, x[:1], exact).mean() for _ in range(2000)])
    assert exact.treatments == {"weight": "shared (convolution)"}
    assert draws.var().item() == pytest.approx(1.0, rel=0.1)


def test_local_of_a_convolution_with_one_position_is_exact_even_where_factorizing_is_forbidden():
    net = nn.Conv2d(2, 3, 4, **F64)
    distributions = {"weight": dist.Normal(net.weight.detach(), 0.5)}
    x = torch.randn(1, 2, 4, 4, **F64)
    mean, variance = exact_moments(net, distributions, x)
    interpretation = LocalReparameterization(factorized=False)
    assert_moments(run(net, distributions, x.expand(4000, 2, 4, 4), interpretation).detach(), mean[0], variance[0])
    assert interpretation.treatments == {"weight": "local (exact)"}


@pytest.mark.parametrize("interpretation", [LocalReparameterization, Flipout])
def test_sequences_share_one_draw(interpretation):
    net = nn.Linear(2, 1, bias=False)
    distributions = {"weight": dist.Normal(torch.zeros(1, 2), 1.0)}
    handler = interpretation()
    out = run(net, distributions, torch.ones(3, 5, 2), handler)
    assert (out == out[0, 0]).all()
    assert handler.treatments == {"weight": "shared (sequence)"}
    run(nn.Linear(2, 1, bias=False), distributions, torch.ones(3, 1, 2), handler)
    assert "shared" not in handler.treatments["weight"]


def test_unbatched_inputs():
    net = nn.Linear(2, 3)
    distributions = {"weight": dist.Normal(torch.zeros(3, 2), 1.0)}
    assert run(net, distributions, torch.ones(2), LocalReparameterization()).shape == (3,)
    flipout = Flipout()
    assert run(net, distributions, torch.ones(2), flipout).shape == (3,)
    assert flipout.treatments == {"weight": "shared (3 rows for 2 examples)"}
    conv = nn.Conv1d(2, 3, 1)
    assert run(conv, {"weight": dist.Normal(conv.weight.detach(), 1.0)}, torch.ones(2, 4), Flipout()).shape == (3, 4)


def test_distributions_without_a_rule_are_shared():
    net = nn.Linear(2, 1, bias=False)
    distributions = {"weight": dist.Laplace(torch.zeros(1, 2), 1.0)}
    interpretation = LocalReparameterization()
    out = run(net, distributions, torch.ones(4, 2), interpretation)
    assert (out == out[0]).all() and interpretation.treatments == {"weight": "shared (no rule for Laplace)"}


def test_mean_propagation():
    net = nn.Linear(2, 3, **F64)
    distributions = {name: DISTRIBUTIONS["normal"](p) for name, p in net.named_parameters()}
    x = torch.randn(5, 2, **F64)
    assert torch.equal(run(net, distributions, x, MeanPropagation()), net(x))
    with pytest.raises(ValueError, match=r"site 'weight'.*LogUniform.*mode='mc'"), MeanPropagation():
        from pyrostoch.distributions import LogUniform

        pyro.sample("weight", LogUniform())
    with MeanPropagation():
        assert pyro.sample(
            "s", dist.TransformedDistribution(dist.Normal(1.0, 1.0), dist.transforms.ExpTransform())
        ) == (torch.tensor(1.0).exp())


def test_gradient_of_local_draws_matches_finite_differences():
    net = nn.Linear(3, 2, **F64)
    x = torch.randn(4, 3, **F64)
    x[0] = 0  # an example with no input at all: variance zero
    loc = torch.randn(2, 3, **F64, requires_grad=True)
    log_scale = torch.randn(2, 3, **F64, requires_grad=True)

    def outputs(loc, log_scale):
        torch.manual_seed(0)
        return run(net, {"weight": dist.Normal(loc, log_scale.exp())}, x, LocalReparameterization())

    assert torch.autograd.gradcheck(outputs, (loc, log_scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradient_is_finite_where_the_variance_vanishes(dtype):
    net = nn.Linear(3, 2, bias=False, dtype=dtype)
    scale = torch.full((2, 3), 0.1, dtype=dtype, requires_grad=True)
    run(
        net, {"weight": CenteredNormal(scale)}, torch.zeros(4, 3, dtype=dtype), LocalReparameterization()
    ).sum().backward()
    assert torch.isfinite(scale.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_outputs_keep_their_spread_and_its_gradient(dtype):
    net = nn.Linear(4, 1, bias=False, dtype=dtype)
    scale = torch.full((1, 4), 0.1, dtype=dtype, requires_grad=True)
    x = torch.full((4000, 4), 1e-9, dtype=dtype)
    out = run(net, {"weight": CenteredNormal(scale)}, x, LocalReparameterization())
    assert out.std().item() == pytest.approx(2e-10, rel=0.1)
    out.square().sum().backward()
    assert (scale.grad > 0).all()


def test_the_inner_interpretation_wins():
    net = nn.Linear(2, 1, bias=False)
    distributions = {"weight": dist.Normal(torch.zeros(1, 2), 1.0)}
    with LocalReparameterization():
        out = run(net, distributions, torch.ones(8, 2), SharedSample())
    assert (out == out[0]).all()


def test_keyword_and_functional_calls_inside_user_code():
    class UserModule(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return torch.nn.functional.linear(weight=self.kernel, bias=torch.ones(3), input=x)

    interpretation = LocalReparameterization()
    out = run(UserModule(), {"kernel": dist.Normal(torch.zeros(3, 2), 1.0)}, torch.ones(6, 2), interpretation)
    assert out.unique(dim=0).shape[0] == 6 and interpretation.treatments == {"kernel": "local (exact)"}


def test_references_do_not_pile_up_over_steps():
    net = nn.Linear(2, 1, bias=False)
    distributions = {"weight": dist.Normal(torch.zeros(1, 2), 1.0)}
    with LocalReparameterization() as interpretation:
        for _ in range(5):
            weight = pyro.sample("weight", distributions["weight"].to_event(2), infer=independent())
            call_network(net, {"weight": weight}, (torch.ones(2, 2),))
    assert len(interpretation._draws) == 1


@pytest.mark.parametrize("distribution", [TwoPoint, SymmetricUniform])
def test_local_matches_moments_only_where_approximations_are_allowed(distribution):
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    x = torch.ones(500, 1, dtype=torch.float64)
    largest, treatments = {}, {}
    for factorized in (True, False):
        with LocalReparameterization(factorized=factorized) as local:
            weight = pyro.sample(
                "weight", distribution(torch.full((1, 1), 2.0).double()).to_event(2), infer=independent()
            )
            out = call_network(net, {"weight": weight}, (x,))
        largest[factorized], treatments[factorized] = out.abs().max().item(), local.treatments["weight"]
    assert largest[False] <= 2.0 < largest[True]  # weights are bounded by their width, a normal output is not
    assert treatments == {True: "local (matched moments)", False: f"shared (no rule for {distribution.__name__})"}
