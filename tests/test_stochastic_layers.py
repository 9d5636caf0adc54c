"""Stochastic layers: fused kernels, draws and their gradients against the truth, means, moments, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation, MomentPropagation, NoiseFree
from pyrostoch.layers import activations
from pyrostoch.layers.activations import ActivationDistribution
from pyrostoch.moments import MissingRuleError, Moments

F64 = torch.float64
DRAWS = 40_000

FAMILIES: dict[str, ActivationDistribution] = {
    "Gaussian": activations.Gaussian(),
    "Gaussian, exp": activations.Gaussian("exp"),
    "Gaussian, raw": activations.Gaussian("raw"),
    "Laplace": activations.Laplace(),
    "StudentT": activations.StudentT(9.0),
    "LogNormal": activations.LogNormal(),
    "Bernoulli": activations.Bernoulli(),
    "Binomial": activations.Binomial(3),
    "Categorical": activations.Categorical(),
    "Multinomial": activations.Multinomial(4),
    "Poisson": activations.Poisson(),
    "Gamma": activations.FromPyro(dist.Gamma, rate=2.0),
    "Beta": activations.FromPyro(dist.Beta),
    "Geometric": activations.FromPyro(dist.Geometric),
}
WITH_MOMENTS = ("Gaussian", "Gaussian, exp", "Gaussian, raw", "Laplace", "StudentT", "Bernoulli", "Binomial", "Poisson")
CASES = [(name, gradient) for name, family in FAMILIES.items() for gradient in family.gradients]


def random_outputs(family: ActivationDistribution, *shape: int) -> tuple[Tensor, ...]:
    return tuple(0.5 * torch.randn(shape, dtype=F64) for _ in family.links)


@pytest.mark.parametrize(
    ("make", "plain", "shape", "arguments"),
    [
        (ps.layers.StochasticLinear, nn.Linear, (3,), (3, 4)),
        (ps.layers.StochasticLinear, nn.Linear, (5, 3), (3, 4)),
        (ps.layers.StochasticConv1d, nn.Conv1d, (2, 7), (2, 4, 3)),
        (ps.layers.StochasticConv2d, nn.Conv2d, (2, 5, 5), (2, 3, 2)),
        (ps.layers.StochasticConv3d, nn.Conv3d, (1, 3, 3, 3), (1, 2, 2)),
        (ps.layers.StochasticConvTranspose1d, nn.ConvTranspose1d, (2, 4), (2, 3, 3)),
        (ps.layers.StochasticConvTranspose2d, nn.ConvTranspose2d, (2, 3, 3), (2, 3, 2)),
        (ps.layers.StochasticConvTranspose3d, nn.ConvTranspose3d, (2, 2, 2, 2), (2, 3, 2)),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_fused_kernels_are_separate_ones(
    make: Any, plain: Any, shape: tuple[int, ...], arguments: tuple[int, ...], groups: int
) -> None:
    options = {"groups": groups} if "Conv" in plain.__name__ else {}
    if groups > 1 and (not options or arguments[0] % groups):
        return
    arguments = (arguments[0], 4, *arguments[2:])
    fused = make(*arguments, **options).double()
    # The kernel's filters are compared by their effect: with all but one parameter's channels set to zero.
    x = torch.randn(6, *shape, dtype=F64)
    first, second = fused.outputs(x)
    weight, bias = fused.kernel.weight, fused.kernel.bias
    out_axis = 1 if "Transpose" in plain.__name__ else 0
    for index, found in enumerate((first, second)):
        kernel = plain(*arguments, **options).double()
        per_group = 4 // groups
        places = [g * 2 * per_group + index * per_group + i for g in range(groups) for i in range(per_group)]
        with torch.no_grad():
            kernel.bias.copy_(bias[places])
            if out_axis == 0:
                kernel.weight.copy_(weight[places])
            else:  # the second axis holds the channels of one group
                kernel.weight.copy_(weight[:, [index * per_group + i for i in range(per_group)]])
        assert torch.allclose(found, kernel(x), atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_have_the_mean_and_variance_of_the_distribution(name: str) -> None:
    family = FAMILIES[name]
    outputs = random_outputs(family, 1, 4)
    distribution = family.distribution(tuple(output.expand(DRAWS, 4) for output in outputs))
    draws = family.draw(tuple(output.expand(DRAWS, 4) for output in outputs), family.gradients[0], 0.5).detach()
    mean, variance = distribution.mean[0], distribution.variance[0]
    assert ((draws.mean(0) - mean).abs() <= 5.5 * (variance / DRAWS).sqrt()).all()
    fourth = (draws - mean).pow(4).mean(0)
    error = ((fourth - variance.square()).clamp_min(0.0) / DRAWS).sqrt()
    assert ((draws.var(0) - variance).abs() <= 7.0 * error + 0.05 * variance).all()


@pytest.mark.parametrize(("name", "gradient"), CASES)
def test_gradients_are_those_of_the_expectation(name: str, gradient: Any) -> None:
    """Of a square where draws are reparameterized; of a linear function, for which the others are made, elsewhere."""
    family = FAMILIES[name]
    outputs = tuple(output.requires_grad_() for output in random_outputs(family, 1, 4))
    coefficients = torch.randn(4, dtype=F64)
    exact = family.distribution(outputs)
    square = gradient == "reparameterized"
    truth = exact.mean.square() + exact.variance if square else coefficients * exact.mean
    expected = torch.autograd.grad(truth.sum(), outputs)
    copies = tuple(output.detach().expand(DRAWS, 4).clone().requires_grad_() for output in outputs)
    draws = family.draw(copies, gradient, 0.2)
    loss = draws.square().sum() if square else (coefficients * draws).sum()
    if gradient == "score":
        assert not draws.requires_grad
        gain = coefficients * (draws - exact.mean.detach())
        log_prob = family.distribution(copies).log_prob(draws)
        loss = ((gain.sum(-1) if family.event else gain) * log_prob).sum()
    for found, right in zip(torch.autograd.grad(loss, copies), expected, strict=True):
        error = 5.5 * found.std(0) / math.sqrt(DRAWS) + 1e-9
        if gradient == "relaxed":  # biased: the mean of a relaxed draw is not the probability
            error = error + 0.1 * right.abs() + 0.02
        assert ((found.mean(0) - right[0]).abs() <= error).all()


@pytest.mark.parametrize("name", ["Bernoulli", "Binomial", "Categorical", "Multinomial"])
def test_relaxed_draws_approach_discrete_ones(name: str) -> None:
    family = FAMILIES[name]
    outputs = random_outputs(family, 2000, 4)
    distances = []
    for temperature in (1.0, 0.01):
        draws = family.draw(outputs, "relaxed", temperature)
        distances.append((draws - draws.round()).abs().mean().item())
    assert distances[1] < 0.02 < distances[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_interpretations(name: str) -> None:
    layer = ps.layers.StochasticLinear(3, 4, distribution=FAMILIES[name]).double()
    x = torch.randn(5, 3, dtype=F64)
    distribution = layer.activation_distribution(x)
    with MeanPropagation():
        assert torch.equal(layer(x), distribution.mean)
    with NoiseFree():
        quiet = layer(x)
        assert torch.equal(quiet, layer(x)) and quiet.shape == (5, 4)
        if not name.startswith(("Multinomial", "Geometric")):
            distribution.log_prob(quiet)  # a value that the distribution takes


@pytest.mark.parametrize("name", WITH_MOMENTS)
@pytest.mark.parametrize("certain", [True, False])
def test_moments_are_those_of_draws(name: str, certain: bool) -> None:
    layer = ps.layers.StochasticLinear(3, 4, distribution=FAMILIES[name]).double()
    loc, std = torch.randn(1, 3, dtype=F64), torch.zeros(1, 3, dtype=F64) if certain else torch.rand(1, 3, dtype=F64)
    with torch.no_grad(), MomentPropagation():
        found = layer(Moments(loc, std.square()))
    draws = layer(loc + std * torch.randn(DRAWS, 3, dtype=F64)).detach()
    assert isinstance(found, Moments)
    assert ((draws.mean(0) - found.loc[0]).abs() <= 5.5 * draws.std(0) / math.sqrt(DRAWS)).all()
    # A kernel's outputs are Gaussian, so that the variance is exact up to the noise of the draws.
    fourth = (draws - draws.mean(0)).pow(4).mean(0)
    error = ((fourth - draws.var(0).square()).clamp_min(0.0) / DRAWS).sqrt()
    assert ((draws.var(0) - found.var[0]).abs() <= 6.0 * error).all()


@pytest.mark.parametrize("name", ["LogNormal", "Categorical", "Beta"])
def test_moments_without_a_rule_are_refused(name: str) -> None:
    layer = ps.layers.StochasticLinear(3, 4, distribution=FAMILIES[name])
    with (
        pytest.raises(MissingRuleError, match="activation depend on each other|none for a"),
        MomentPropagation(),
    ):
        layer(torch.randn(5, 3))


def test_categorical_channels_of_a_convolution_are_the_second_axis() -> None:
    layer = ps.layers.StochasticConv2d(1, 3, 2, distribution=activations.Categorical())
    drawn = layer(torch.randn(5, 1, 4, 4))
    assert drawn.shape == (5, 3, 3, 3) and torch.allclose(drawn.sum(1), torch.ones(5, 3, 3))
    with NoiseFree():
        assert set(layer(torch.randn(5, 1, 4, 4)).unique().tolist()) == {0.0, 1.0}


def test_any_module_is_a_kernel() -> None:
    def kernel() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    layer = ps.layers.StochasticLayer(kernel)
    assert len(layer.kernels) == 2 and layer(torch.randn(5, 3)).shape == (5, 2)
    first, second = layer.kernels
    assert not torch.equal(first[0].weight, second[0].weight)


class Weighted(nn.Module):
    """A kernel that takes a mask besides its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=F64)

    def forward(self, x: Tensor, mask: Tensor, *, shift: float = 0.0) -> Tensor:
        found: Tensor = self.linear(x * mask) + shift
        return found


def test_masks_reach_every_kernel() -> None:
    layer, x, mask = ps.layers.StochasticLayer(Weighted), torch.randn(5, 3, dtype=F64), torch.rand(5, 3, dtype=F64)
    loc, scale = (kernel(x, mask, shift=2.0) for kernel in layer.kernels)
    torch.manual_seed(1)
    expected = dist.Normal(loc, nn.functional.softplus(scale)).rsample()
    torch.manual_seed(1)
    assert torch.allclose(layer(x, mask, shift=2.0), expected, atol=1e-12)
    assert torch.allclose(layer.activation_distribution(x, mask, shift=2.0).mean, loc)
    with pytest.raises(TypeError, match="mask"):
        layer(x)


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 2), lambda: nn.MultiheadAttention(3, 1)])
def test_kernels_of_several_values_are_refused(make: Callable[[], nn.Module]) -> None:
    layer, x = ps.layers.StochasticLayer(make), torch.randn(4, 5, 3)
    inputs = (x, x, x) if isinstance(layer.kernels[0], nn.MultiheadAttention) else (x,)
    with pytest.raises(
        TypeError, match="StochasticLayer: .*got a tuple from (LSTM|MultiheadAttention); use Stoch.*LSTM"
    ):
        layer(*inputs)


def test_a_random_margin_is_a_linear_layer_with_the_hinge_loss() -> None:
    x, y = torch.randn(300, 2, dtype=F64), torch.randint(0, 2, (300,))
    layer = ps.layers.StochasticSVM(2).double()
    assert isinstance(layer, ps.layers.StochasticLinear) and layer.kernel.weight.shape == (2, 2)
    assert ps.layers.StochasticSVM(2, 3, bias=False).kernel.bias is None
    assert ps.layers.StochasticSVM(2, 3)(x.float()).shape == (300, 3)
    model = ps.BayesianModel(layer, likelihood=ps.likelihoods.BayesianSVM(), num_data=300)
    with torch.no_grad():
        losses = torch.stack([ps.ELBO()(model, ps.guides.Additive(model))(x, y) for _ in range(300)])
    # The mean of a hinge over a Gaussian decision is that of a rectified Gaussian.
    q = layer.activation_distribution(x)
    z = ((1.0 - (2.0 * y[:, None] - 1.0) * q.mean) / q.stddev).detach()
    normal = dist.Normal(torch.zeros((), dtype=F64), 1.0)
    hinge = q.stddev * (z * normal.cdf(z) + normal.log_prob(z).exp())
    assert abs(losses.mean() - 2.0 * hinge.sum()) <= 5.0 * losses.std() / math.sqrt(300)


def test_it_is_trained_inside_a_model_and_its_noise_narrows() -> None:
    x = torch.randn(200, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    net = nn.Sequential(ps.layers.StochasticLinear(3, 8), nn.Linear(8, 1))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(0.1), num_data=200)
    guide = ps.guides.Additive(model)  # no weight is random
    before = net[0].activation_distribution(x).stddev.mean().item()
    ps.fit(model, guide, (x, y), epochs=80, batch_size=50, lr=2e-2, seed=0, progress=False, compile=False)
    after = net[0].activation_distribution(x).stddev.mean().item()
    assert after < 0.7 * before
    scores = ps.compare(model, guide, (x, y), modes=("mean", "noise-free", "mc:1", "mc:20", "moments"), seed=0)
    assert scores["moments"].rmse < 0.6 and scores["mc:20"].rmse <= scores["mc:1"].rmse


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ps.layers.StochasticLinear(2, 3, distribution="cauchy"),
            ValueError,
            "'gaussian'.*'cauchy'",
        ),
        (lambda: ps.layers.StochasticLinear(2, 3, distribution=dist.Normal), TypeError, "layers.activations"),
        (
            lambda: ps.layers.StochasticLinear(2, 3, distribution="poisson", gradient="reparameterized"),
            ValueError,
            "expected one of 'straight-through', 'score' for a Poisson activation, got 'reparameterized'",
        ),
        (lambda: ps.layers.StochasticLinear(2, 3, temperature=0.0), ValueError, "StochasticLinear temperature"),
        (lambda: ps.layers.StochasticAdditive((3,), scale=0.0), ValueError, "StochasticAdditive scale"),
        (lambda: activations.Gaussian("sigmoid"), ValueError, "Gaussian scale"),
        (lambda: activations.StudentT(1.0), ValueError, "so that there is a mean"),
        (lambda: activations.Binomial(0), ValueError, "Binomial n"),
        (lambda: activations.FromPyro(dist.Normal, loc=0.0, scale=1.0), ValueError, "every parameter is fixed"),
        (lambda: activations.FromPyro(dist.Normal, mean=0.0), ValueError, r"no parameter\(s\) \['mean'\]"),
        (lambda: activations.FromPyro(dist.MultivariateNormal), ValueError, "vectors or matrices"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_wrong_shapes_are_refused() -> None:
    sizes = iter((2, 3))
    layer = ps.layers.StochasticLayer(lambda: nn.Linear(3, next(sizes)))
    with pytest.raises(ValueError, match=r"one for each of the parameters loc, scale, got \(5, 2\), \(5, 3\)"):
        layer(torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"expected examples of shape \(3,\), got inputs of shape \(5, 4\)"):
        ps.layers.StochasticAdditive(3)(torch.randn(5, 4))


def test_variances_of_deterministic_and_random_kernels_add() -> None:
    layer = ps.layers.StochasticLinear(3, 2).double()
    model = ps.BayesianModel(layer, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.5), num_data=4)
    guide = ps.guides.Additive(model, init_scale=0.4)
    x = torch.randn(4, 3, dtype=F64)
    # Each kernel's output is Gaussian: its mean by the means of the weights, its variance the sum of x^2 sigma^2.
    with torch.no_grad():
        spread = 0.4 * x.square().sum(1, keepdim=True).sqrt()
        before = nn.functional.linear(x, layer.kernel.weight, layer.kernel.bias)[:, 2:]
        z = torch.linspace(-8.0, 8.0, 4001, dtype=F64)[:, None, None]
        weight = torch.exp(-0.5 * z.square()) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
        noise = (nn.functional.softplus(before + spread * z).square() * weight).sum(0)
    expected = spread.square() + noise + 0.25
    by_moments = ps.predict(model, guide, x, mode="moments")
    assert torch.allclose(by_moments.total, expected, rtol=1e-3)
    by_draws = ps.predict(model, guide, x, mode="mc:4000", seed=0)
    # The variance of 4,000 draws of nearly Gaussian values has a relative error of sqrt(2 / 4000), 2.2 %.
    assert ((by_draws.total / expected - 1).abs() < 0.15).all()


@pytest.mark.parametrize("kind", ["StochasticConv1d", "StochasticConv2d", "StochasticConvTranspose2d"])
def test_an_example_without_a_batch_is_refused(kind: str) -> None:
    axes = int(kind[-2])
    layer = getattr(ps.layers, kind)(1, 3, 1)
    with pytest.raises(ValueError, match=f"{kind}: expected inputs with {axes + 2} axes, .*got shape"):
        layer(torch.randn(1, *[6] * axes))


@pytest.mark.parametrize("name", FAMILIES)
def test_drawing_and_mean_programs_are_exported(name: str) -> None:
    """With Pyro's validation on, as the test suite has it."""
    net = nn.Sequential(ps.layers.StochasticLinear(3, 4, distribution=FAMILIES[name]), nn.Linear(4, 2)).eval()
    x, other = torch.randn(5, 3), torch.randn(7, 3)
    batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        # torch 2.13 has no rule for the sizes of binomial draws, nor for those of a beta distribution.
        sizes = None if name in ("Binomial", "Beta") else batch
        drawing = torch.export.export(net, (x,), dynamic_shapes=sizes).module()
        with MeanPropagation():
            mean = torch.export.export(net, (x,), dynamic_shapes=batch).module()
            expected = net(x)
            assert torch.allclose(mean(other), net(other))
        many = torch.stack([drawing(x) for _ in range(200)])
    assert torch.allclose(mean(x), expected)
    assert many.std(0).max() > 0.0
    with torch.no_grad():
        eager = torch.stack([net(x) for _ in range(200)])
    error = (many.var(0) + eager.var(0)).sqrt() / math.sqrt(200)
    assert ((many.mean(0) - eager.mean(0)).abs() <= 6.0 * error + 1e-6).all()
