"""Neurons with k states: distribution, gradient, moments and learned values, each against an exact reference."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import mpmath
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation, MomentPropagation, NoiseFree
from pyrostoch.layers import Binary, KState, Ternary, ThresholdNeuron
from pyrostoch.layers.noise import NOISE_DISTRIBUTIONS
from pyrostoch.moments import Moments, MomentSettings
from pyrostoch.staging import missing

F64 = {"dtype": torch.float64}
DISTRIBUTIONS = pytest.mark.parametrize("distribution", NOISE_DISTRIBUTIONS)
DRAWS = 100_000


def four(noise_distribution="gaussian", **settings):
    """Four states at uneven distances."""
    states, thresholds = (-1.0, 0.0, 0.5, 2.0), (-0.8, 0.1, 1.1)
    return KState(states, thresholds, 0.7, noise_distribution=noise_distribution, **settings).double()


def density(distribution):
    """The density of a noise distribution of variance 1, independent of the library."""
    root = mpmath.sqrt
    return {
        "gaussian": mpmath.npdf,
        "logistic": lambda z: mpmath.sech(mpmath.pi * z / (2 * root(3))) ** 2 * mpmath.pi / (4 * root(3)),
        "uniform": lambda z: (abs(z) <= root(3)) / (2 * root(3)),
        "laplace": lambda z: mpmath.exp(-root(2) * abs(z)) / root(2),
    }[distribution]


@DISTRIBUTIONS
def test_each_distribution_has_variance_one_and_its_draws_follow_it(distribution):
    found, pdf = NOISE_DISTRIBUTIONS[distribution], density(distribution)
    edges = [-mpmath.inf, -mpmath.sqrt(3), 0, mpmath.sqrt(3), mpmath.inf]
    assert float(mpmath.quad(lambda z: z * z * pdf(z), edges)) == pytest.approx(1.0, abs=1e-9)
    torch.manual_seed(0)
    drawn = found.draw(torch.empty(DRAWS, **F64))
    for z in (-4.0, -1.7, -0.4, 0.0, 0.9, 1.7):
        at = torch.tensor(z, **F64)
        below = [edge for edge in edges if edge < z]
        expected = float(mpmath.quad(pdf, [*below, z]))
        assert found.cdf(at).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert found.pdf(at).item() == pytest.approx(float(pdf(z)), rel=1e-12)
        share = (drawn <= z).double().mean().item()
        assert abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / DRAWS) + 1e-12


@DISTRIBUTIONS
def test_states_are_drawn_with_their_probabilities(distribution):
    layer = four(distribution)
    torch.manual_seed(1)
    x = torch.linspace(-1.5, 2.0, 5, **F64)
    drawn = layer(x.expand(DRAWS, 5))
    probabilities = layer.probabilities(x)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5, **F64))
    for index, state in enumerate(layer.states):
        share, p = (drawn == state).double().mean(0), probabilities[:, index]
        assert ((share - p).abs() <= 4.5 * (p * (1 - p) / DRAWS).sqrt() + 1e-9).all()
    values = torch.tensor(layer.states, **F64)
    torch.testing.assert_close(layer.expected(x), probabilities @ values)
    torch.testing.assert_close(layer.variance(x), probabilities @ values**2 - (probabilities @ values) ** 2)


def test_probabilities_keep_their_digits_far_out():
    layer = KState((0.0, 1.0, 2.0), (5.0, 6.0), 1.0).double()
    found = layer.probabilities(torch.tensor([-25.0, 40.0], **F64))
    with mpmath.workdps(50):
        left = float(mpmath.ncdf(-30) - mpmath.ncdf(-31))
        right = float(mpmath.ncdf(-34) - mpmath.ncdf(-35))
    assert found[0, 1].item() == pytest.approx(left, rel=1e-12, abs=0)
    assert found[1, 1].item() == pytest.approx(right, rel=1e-12, abs=0)


@DISTRIBUTIONS
@pytest.mark.parametrize("num", [None, 3])
def test_the_backward_pass_is_the_derivative_of_the_expected_state(distribution, num):
    layer = four(distribution, learn=("thresholds", "noise"), num=num)
    x = torch.tensor([[-0.93, 0.21, 0.77], [0.34, 1.52, -0.11]], **F64, requires_grad=True)
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, 1.1]], **F64)
    inputs = [x, *layer.parameters()]
    drawn = torch.autograd.grad((layer(x) * weights).sum(), inputs)
    mean = torch.autograd.grad((layer.expected(x) * weights).sum(), inputs)
    for one, other in zip(drawn, mean, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)

    def expected(x, *parameters):
        own = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, own, (x,), {})

    with MeanPropagation():
        assert torch.autograd.gradcheck(expected, tuple(inputs), atol=1e-7)


def test_three_states_have_the_gradient_of_the_note():
    layer, x = Ternary(0.4, 0.6).double(), torch.linspace(-2, 2, 9, **F64).reshape(1, 9).requires_grad_()
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    normal = [torch.distributions.Normal(x.detach(), 0.6).log_prob(torch.tensor(at, **F64)).exp() for at in (-0.4, 0.4)]
    torch.testing.assert_close(found, sum(normal))


def test_learned_thresholds_stay_in_order_and_noise_above_zero():
    torch.manual_seed(0)
    layer = KState((0.0, 1.0, 2.0), (-0.1, 0.1), 0.2, learn=("thresholds", "noise"))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        low, high = layer.thresholds
        (high - low + layer.noise).backward()
        optimizer.step()
    low, high = (at.item() for at in layer.thresholds)
    assert low < high < low + 5e-3 and 0.0 < layer.noise.item() < 5e-3


@DISTRIBUTIONS
@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_moments_are_those_of_draws_from_gaussian_inputs(distribution, full):
    torch.manual_seed(2)
    layer, loc = four(distribution), torch.tensor([[-0.6, 0.3, 1.2]], **F64)
    root = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.2, 0.8]], **F64)
    cov = root @ root.T if full else torch.diag((root @ root.T).diagonal())
    states = layer(torch.distributions.MultivariateNormal(loc[0], cov).sample((DRAWS,)))
    found = layer(Moments(loc, cov.diagonal()[None], cov[None] if full else None, MomentSettings(full=full)))
    apart = states - found.loc
    assert (apart.mean(0).abs() < 4.5 * states.std(0) / DRAWS**0.5).all()
    products = apart.unsqueeze(1) * apart.unsqueeze(2)
    bound = 4.5 * products.std(0) / DRAWS**0.5
    expected = found.cov[0] if full else torch.diag(found.var[0])
    assert ((products.mean(0) - expected).abs() < bound).all()


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
def test_moments_of_learned_neurons_are_differentiable_by_what_is_learned(distribution):
    layer = four(distribution, learn=("thresholds", "noise"), num=2)
    loc, var = torch.tensor([[0.2, -0.4]], **F64), torch.tensor([[0.5, 0.3]], **F64)

    def parts(*parameters):
        own = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        y = torch.func.functional_call(layer, own, (Moments(loc, var, torch.diag_embed(var)),))
        return y.loc, y.cov

    assert torch.autograd.gradcheck(parts, tuple(layer.parameters()), atol=1e-7)


def test_neurons_with_learned_values_and_laplace_noise_have_moments_without_gradients():
    x = Moments(torch.tensor([[0.2, -0.4]], **F64), torch.tensor([[0.5, 0.3]], **F64))
    layer = four("laplace", learn=("thresholds", "noise"))
    with torch.no_grad():
        layer.log_noise.add_(0.2)
        fixed = KState(
            layer.states, [float(at) for at in layer.thresholds], float(layer.noise), noise_distribution="laplace"
        ).double()
    with MomentPropagation():
        with torch.no_grad():
            found, expected = layer(x), fixed(x)
        torch.testing.assert_close(found.loc, expected.loc)
        torch.testing.assert_close(found.var, expected.var)
        with pytest.raises(ValueError, match="KState: moments under laplace noise are computed by quadrature"):
            layer(x)
        with torch.no_grad(), pytest.raises(ValueError, match="nor separate values for each neuron"):
            four("laplace", learn="noise", num=2)(x)


def test_interpretations_decide_what_the_layer_returns():
    layer, x = Ternary(0.5, 0.4), torch.tensor([[-0.6, 0.2, 0.7]])
    with MeanPropagation():
        torch.testing.assert_close(layer(x), layer.expected(x))
    with NoiseFree():
        assert layer(x).tolist() == [[-1.0, 0.0, 1.0]]
    with MomentPropagation():
        y = layer(x)
    torch.testing.assert_close(y.loc, layer.expected(x))
    torch.testing.assert_close(y.var, layer.variance(x))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 5), (4, 3, 5, 2), (2, 4, 3, 2, 2)], ids=str)
def test_any_shape_and_dtype_goes_through(shape):
    layer = KState(learn="thresholds", num=3) if len(shape) > 1 and shape[1] == 3 else KState()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.randn(shape, dtype=dtype).requires_grad_()
        y = layer(x)
        assert y.shape == shape and y.dtype == dtype and set(y.unique().tolist()) <= {-1.0, 0.0, 1.0}
        y.sum().backward()
        assert x.grad.dtype == dtype and x.grad.isfinite().all()


def test_it_works_under_autocast_and_vmap():
    layer, linear = Ternary(noise=0.3), nn.Linear(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(linear(torch.randn(8, 4)))
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and linear.weight.grad.isfinite().all()
    x = torch.randn(5, 8, 4)
    each = torch.vmap(lambda x: torch.func.grad(lambda x: layer(x).sum())(x), randomness="different")(x)
    torch.testing.assert_close(each, torch.autograd.grad(layer.expected(x.requires_grad_()).sum(), x)[0])


@pytest.mark.skipif(missing(torch.device("cpu")) is not None, reason="nothing to compile with")
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # raised by torch while it compiles
def test_torch_compile_keeps_the_distribution_of_the_states_and_their_gradient():
    torch.manual_seed(0)
    layer = KState((-1.0, 0.0, 2.0), (-0.5, 0.5), 0.7, learn=("thresholds", "noise")).double()
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.linspace(-2.0, 2.0, 9, **F64).repeat(DRAWS // 10, 1).requires_grad_()
    states = compiled(x)
    assert set(states.detach().unique().tolist()) == {-1.0, 0.0, 2.0}
    error = (layer.variance(x[0]) / len(x)).sqrt()
    assert ((states.mean(0) - layer.expected(x[0])).abs() <= 4.5 * error + 1e-12).all()
    weights = torch.randn(9, **F64)
    leaves = [x, *layer.parameters()]
    compiled_grads = torch.autograd.grad((states * weights).sum(), leaves)
    exact_grads = torch.autograd.grad((layer.expected(x) * weights).sum(), leaves)
    for one, other in zip(compiled_grads, exact_grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_network_of_ternary_neurons_learns_and_reads_three_ways():
    torch.manual_seed(0)
    x = torch.randn(400, 5)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(5, 100), nn.BatchNorm1d(100), Ternary(), nn.Linear(100, 2))
    model = ps.BayesianModel(net, prior={}, likelihood=ps.likelihoods.Categorical(), num_data=400)
    guide = ps.guides.Additive(model)
    ps.fit(model, guide, (x, y), epochs=60, lr=0.02, batch_size=100, compile=False, progress=False, seed=0)
    rows = ps.compare(model, guide, (x, y), modes=("mc:20", "mean", "noise-free", "moments"), seed=0)
    assert all(rows[mode].accuracy > 0.9 for mode in ("mc:20", "mean", "noise-free", "moments"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": (0.0, 0.0, 1.0)}, "rising states"),
        ({"thresholds": (0.5, -0.5)}, "rising threshold"),
        ({"thresholds": (0.5,)}, "one rising threshold fewer"),
        ({"states": (1.0,), "thresholds": ()}, "at least two"),
        ({"noise": 0.0}, "noise: expected a positive"),
        ({"noise_distribution": "cauchy"}, "noise_distribution: expected one of"),
        ({"learn": "threshold"}, "did you mean 'thresholds'"),
        ({"num": 3}, "name them by learn="),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"KState.*{message}"):
        KState(**settings)


def test_a_layer_is_copied_and_pickled_with_its_learned_values():
    layer = KState(noise_distribution="laplace", learn=("thresholds", "noise"), num=2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.rand_like(parameter))
    x = torch.randn(3, 2)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other.expected(x), layer.expected(x), rtol=0, atol=0)
    fresh = KState(noise_distribution="laplace", learn=("thresholds", "noise"), num=2)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.expected(x), layer.expected(x))


def test_states_and_text_of_the_subclasses():
    assert (Ternary().states, Binary().states, ThresholdNeuron().states) == ((-1.0, 0.0, 1.0), (-1.0, 1.0), (0.0, 1.0))
    assert "learn=('noise',)" in repr(Binary(learn="noise")) and "laplace" in repr(
        Ternary(noise_distribution="laplace")
    )
    assert all(one < other for one, other in itertools.pairwise(KState(range(5), range(4)).thresholds))
