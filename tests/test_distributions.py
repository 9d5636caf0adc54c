"""One table of distributions, and the properties that each of them must have."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrostoch.distributions import (
    ARD,
    CenteredNormal,
    ImproperPrior,
    LogUniform,
    MultiplicativeNormal,
    ScaleMixture,
    SymmetricDistribution,
    SymmetricUniform,
    TwoPoint,
)

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """A distribution and its parameters, with moments computed independently."""

    name: str
    build: Callable[..., dist.TorchDistribution]
    parameters: tuple[Tensor, ...]
    mean: Tensor
    variance: Tensor
    fourth: Tensor  # fourth central moment, for the standard error of the sample variance
    zero_mean: bool
    discrete: bool = False

    def distribution(self, dtype: torch.dtype = F64) -> dist.TorchDistribution:
        return self.build(*(p.to(dtype) for p in self.parameters))


def _f(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


LOC, LOG_ALPHA, SCALE = _f(-1.5, 0.4, 3.0), _f(-3.0, 0.0, 2.0), _f(0.2, 1.0, 7.0)
MIX, SCALE2 = _f(0.25, 0.5, 0.9), _f(2.0, 0.1, 1.0)
MULTIPLICATIVE = LOG_ALPHA.exp() * LOC**2
MIXED = MIX * SCALE**2 + (1 - MIX) * SCALE2**2
ZERO = torch.zeros(3, dtype=F64)

CASES = [
    Case("multiplicative", MultiplicativeNormal, (LOC, LOG_ALPHA), LOC, MULTIPLICATIVE, 3 * MULTIPLICATIVE**2, False),
    Case(
        "multiplicative, one alpha",
        MultiplicativeNormal,
        (LOC, torch.tensor(-1.0, dtype=F64)),
        LOC,
        math.exp(-1) * LOC**2,
        3 * math.exp(-2) * LOC**4,
        False,
    ),
    Case("centered", CenteredNormal, (SCALE,), ZERO, SCALE**2, 3 * SCALE**4, True),
    Case("uniform", SymmetricUniform, (SCALE,), ZERO, SCALE**2 / 3, SCALE**4 / 5, True),
    Case("two points", TwoPoint, (SCALE,), ZERO, SCALE**2, SCALE**4, True, discrete=True),
    Case(
        "mixture",
        ScaleMixture,
        (MIX, SCALE, SCALE2),
        ZERO,
        MIXED,
        3 * (MIX * SCALE**4 + (1 - MIX) * SCALE2**4),
        True,
    ),
]
each_distribution = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_reparameterized = pytest.mark.parametrize(
    "case", [case for case in CASES if case.build is not ScaleMixture], ids=lambda case: case.name
)


@each_distribution
def test_moments_are_those_of_the_draws(case: Case) -> None:
    pyro.set_rng_seed(0)
    distribution, n = case.distribution(), 200_000
    torch.testing.assert_close(distribution.mean.expand(3), case.mean)
    torch.testing.assert_close(distribution.variance.expand(3), case.variance)
    torch.testing.assert_close(distribution.stddev.expand(3), case.variance.sqrt())
    draws = distribution.sample((n,))
    assert draws.shape == (n, 3) and not draws.requires_grad
    assert ((draws.mean(0) - case.mean).abs() < 4.5 * (case.variance / n).sqrt()).all()
    spread = (draws - case.mean).square().mean(0)
    error = ((case.fourth - case.variance**2).clamp_min(0) / n).sqrt()
    assert ((spread - case.variance).abs() <= 4.5 * error + 1e-12 * case.variance).all()
    # Symmetric distributions: no third moment.
    assert ((draws - case.mean).sign().mean(0).abs() < 4.5 / math.sqrt(n)).all()


@each_distribution
def test_zero_mean_attribute_is_correct(case: Case) -> None:
    distribution = case.distribution()
    assert distribution.zero_mean is case.zero_mean
    assert bool((distribution.mean == 0).all()) is case.zero_mean


@each_reparameterized
def test_draw_gradient_against_finite_differences_with_fixed_noise(case: Case) -> None:
    def draw(*parameters: Tensor) -> Tensor:
        pyro.set_rng_seed(3)
        return case.build(*parameters).rsample((5,))

    assert case.distribution().has_rsample
    parameters = tuple(p.clone().requires_grad_() for p in case.parameters)
    assert torch.autograd.gradcheck(draw, parameters)


@each_distribution
def test_log_prob_integrates_to_one(case: Case) -> None:
    distribution = case.distribution()
    if case.discrete:
        points = torch.stack([-distribution.scale, distribution.scale])
        torch.testing.assert_close(distribution.log_prob(points).exp().sum(0), torch.ones(3, dtype=F64))
        return
    # The midpoint rule: spectrally accurate for Gaussians, exact for a density constant between the grid's ends.
    half = distribution.scale if isinstance(distribution, SymmetricUniform) else 12 * case.variance.sqrt() + 12 * SCALE2
    n = 40_000
    grid = case.mean + half * ((torch.arange(n, dtype=F64)[:, None] + 0.5) / n * 2 - 1)
    mass = distribution.log_prob(grid).exp().sum(0) * (2 * half / n)
    torch.testing.assert_close(mass, torch.ones(3, dtype=F64), rtol=1e-9, atol=0)
    second = (distribution.log_prob(grid).exp() * (grid - case.mean) ** 2).sum(0) * (2 * half / n)
    torch.testing.assert_close(second, case.variance, rtol=1e-8, atol=0)


@pytest.mark.parametrize("case", [case for case in CASES if not case.discrete], ids=lambda case: case.name)
def test_log_prob_gradient(case: Case) -> None:
    value = (0.3 * case.variance.sqrt()).requires_grad_()
    parameters = tuple(p.clone().requires_grad_() for p in case.parameters)
    assert torch.autograd.gradcheck(lambda v, *p: case.build(*p).log_prob(v), (value, *parameters))


@each_distribution
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_shapes_and_dtypes(case: Case, dtype: torch.dtype) -> None:
    pyro.set_rng_seed(0)
    distribution = case.distribution(dtype)
    assert distribution.batch_shape == (3,) and distribution.event_shape == ()
    wide = distribution.expand((2, 3))
    assert type(wide) is type(distribution) and wide.batch_shape == (2, 3)
    joint = wide.to_event(1)
    assert joint.batch_shape == (2,) and joint.event_shape == (3,)
    draw = joint((4,))
    assert draw.shape == (4, 2, 3) and draw.dtype == dtype
    assert wide.log_prob(draw).shape == (4, 2, 3) and joint.log_prob(draw).shape == (4, 2)
    for moment in (wide.mean, wide.variance, wide.stddev):
        assert moment.shape == (2, 3) and moment.dtype == dtype
    assert wide.mask(False).log_prob(draw).abs().sum() == 0
    assert torch.equal(wide.log_prob(draw[0]), distribution.log_prob(draw[0]))


@each_distribution
def test_float_parameters(case: Case) -> None:
    distribution = case.build(*(0.5 for _ in case.parameters))
    assert (
        distribution.batch_shape == ()
        and distribution.sample().shape == ()
        and distribution.sample().dtype == torch.get_default_dtype()
    )


@each_distribution
@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda distribution: pickle.loads(pickle.dumps(distribution))], ids=["copy", "pickle"]
)
def test_copies_draw_the_same(case: Case, through: Callable) -> None:
    distribution = case.distribution().expand((2, 3))
    twin = through(distribution)
    pyro.set_rng_seed(5)
    expected = distribution.sample()
    pyro.set_rng_seed(5)
    assert type(twin) is type(distribution) and torch.equal(twin.sample(), expected)
    assert torch.equal(twin.log_prob(expected), distribution.log_prob(expected))


@each_distribution
def test_a_pyro_sample_site(case: Case) -> None:
    trace = pyro.poutine.trace(lambda: pyro.sample("w", case.distribution().expand((4, 3)).to_event(2))).get_trace()
    value = trace.nodes["w"]["value"]
    trace.compute_log_prob()
    assert value.shape == (4, 3)
    torch.testing.assert_close(trace.nodes["w"]["log_prob"], case.distribution().log_prob(value).sum())


@each_reparameterized
def test_draw_and_sample_use_the_same_noise(case: Case) -> None:
    distribution = case.distribution()
    pyro.set_rng_seed(1)
    first = distribution.sample((2,))
    pyro.set_rng_seed(1)
    assert torch.equal(distribution.rsample((2,)), first)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (CenteredNormal, (-1.0,)),
        (SymmetricUniform, (0.0,)),
        (TwoPoint, (math.nan,)),
        (ScaleMixture, (1.5, 1.0, 1.0)),
        (ScaleMixture, (0.5, 0.0, 1.0)),
        (MultiplicativeNormal, (math.nan, 0.0)),
        (MultiplicativeNormal, (0.0, math.nan)),
    ],
)
def test_bad_parameters_are_refused(build: Callable, parameters: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        build(*(torch.tensor(p) for p in parameters), validate_args=True)
    build(*(torch.tensor(p) for p in parameters), validate_args=False)


def test_validation_of_values_follows_the_support() -> None:
    for distribution in (
        SymmetricUniform(torch.tensor(1.0), validate_args=True),
        TwoPoint(torch.tensor(1.0), validate_args=True),
    ):
        assert distribution.expand((2,))._validate_args
        with pytest.raises(ValueError, match="within the support"):
            distribution.log_prob(torch.tensor(1.5))
    for distribution in (SymmetricUniform(torch.tensor(1.0), validate_args=False), TwoPoint(1.0, validate_args=False)):
        assert (distribution.log_prob(torch.tensor([1.5, -1.001])) == -math.inf).all()


def test_two_points_tolerate_only_rounding() -> None:
    distribution = TwoPoint(torch.tensor(0.3, dtype=F64), validate_args=False)
    value = torch.tensor([0.3 * (1 + 1e-15), -0.3 * (1 - 1e-15), 0.3 * (1 + 1e-13)], dtype=F64)
    assert distribution.log_prob(value).tolist() == [-math.log(2), -math.log(2), -math.inf]
    assert distribution.log_prob(torch.tensor(0.3)) == -math.log(2)  # a value rounded to float32
    assert distribution.entropy() == math.log(2) and distribution.support.is_discrete


def test_entropies() -> None:
    torch.testing.assert_close(SymmetricUniform(SCALE).entropy(), (2 * SCALE).log())
    distribution = MultiplicativeNormal(LOC, LOG_ALPHA)
    torch.testing.assert_close(distribution.entropy(), dist.Normal(LOC, MULTIPLICATIVE.sqrt()).entropy())


def test_gaussians_behave_like_a_pyro_normal() -> None:
    for distribution in (MultiplicativeNormal(LOC, LOG_ALPHA), CenteredNormal(SCALE)):
        twin = dist.Normal(distribution.mean, distribution.stddev)
        value = LOC + 0.7
        assert isinstance(distribution, dist.Normal)
        for name in ("log_prob", "cdf"):
            torch.testing.assert_close(getattr(distribution, name)(value), getattr(twin, name)(value))


def test_multiplicative_noise_is_finite_at_zero_mean() -> None:
    loc = torch.zeros(3, dtype=F64, requires_grad=True)
    distribution = MultiplicativeNormal(loc, torch.tensor(1.0, dtype=F64), validate_args=True)
    for quantity in (distribution.rsample((2,)), distribution.variance, distribution.scale):
        (gradient,) = torch.autograd.grad(quantity.sum(), loc)
        assert quantity.isfinite().all() and gradient.isfinite().all()
    # A point mass at zero.
    assert distribution.log_prob(torch.tensor([0.0, 1e-9, -2.0], dtype=F64)).tolist() == [
        math.inf,
        -math.inf,
        -math.inf,
    ]


def test_one_alpha_for_many_weights_is_stored_once() -> None:
    log_alpha = torch.tensor(0.5)
    distribution = MultiplicativeNormal(torch.ones(40, 50), log_alpha).expand((3, 40, 50))
    assert distribution.unexpanded_log_alpha is log_alpha and distribution.log_alpha.shape == (3, 40, 50)
    assert MultiplicativeNormal(torch.ones(4, 1), torch.zeros(5)).batch_shape == (4, 5)
    assert MultiplicativeNormal(2.0, torch.zeros(5, dtype=F64)).sample().dtype == F64
    assert CenteredNormal(torch.ones(40, 50)).loc.stride() == (0, 0)


def test_mixture_at_its_ends_is_a_gaussian() -> None:
    value = torch.linspace(-3, 3, 7, dtype=F64)
    for mix, scale in ((1.0, 0.5), (0.0, 2.0)):
        distribution = ScaleMixture(
            torch.tensor(mix, dtype=F64), torch.tensor(0.5, dtype=F64), torch.tensor(2.0, dtype=F64)
        )
        torch.testing.assert_close(
            distribution.log_prob(value), dist.Normal(0.0, torch.tensor(scale, dtype=F64)).log_prob(value)
        )


# The improper priors.


def test_log_uniform_density() -> None:
    gamma = 0.57721566490153286
    value = torch.tensor([1.0, -1.0, 1e-12, -3e8], dtype=F64)
    expected = -value.abs().log() - (math.log(2 * math.pi * math.e) + gamma + math.log(2)) / 2
    torch.testing.assert_close(LogUniform().log_prob(value), expected, rtol=1e-15, atol=0)
    assert LogUniform().log_prob(torch.tensor(1.0, dtype=F64)).item() == pytest.approx(-2.0541199559, abs=1e-10)
    assert LogUniform().expand((2, 3)).log_prob(torch.tensor(1.0)).shape == (2, 3)
    assert LogUniform().expand((2, 3)).to_event(2).log_prob(torch.ones(2, 3)).shape == ()
    assert LogUniform(validate_args=False).log_prob(torch.tensor(0.0)) == math.inf
    with pytest.raises(ValueError, match="within the support"):
        LogUniform(validate_args=True).log_prob(torch.tensor(math.nan))


@pytest.mark.parametrize("prior", [LogUniform(), LogUniform("molchanov").expand((2,)), ARD(), ARD().expand((3, 1))])
def test_improper_priors_refuse_samples_and_moments(prior: ImproperPrior) -> None:
    name = type(prior).__name__
    assert prior.improper and not prior.has_rsample
    for requested, attempt in {
        "samples": lambda: pyro.sample("w", prior),
        "mean": lambda: prior.mean,
        "variance": lambda: prior.stddev,
    }.items():
        with pytest.raises(ValueError, match=f"{name} is an improper prior and has no {requested}.*Use a proper prior"):
            attempt()
    with pytest.raises(ValueError, match="has no samples"):
        prior.rsample()


def test_improper_priors_keep_their_arguments() -> None:
    prior = LogUniform(approximation="molchanov", validate_args=True).expand((4, 5))
    for twin in (prior, copy.deepcopy(prior), pickle.loads(pickle.dumps(prior)), prior.expand((2, 4, 5))):
        assert twin.approximation == "molchanov" and twin._validate_args and twin.batch_shape[-2:] == (4, 5)
    with pytest.raises(ValueError, match="unknown approximation 'usual'.*'molchanov'"):
        LogUniform(approximation="usual")  # type: ignore[arg-type]


def test_ard_refuses_its_density_by_name() -> None:
    with pytest.raises(ValueError, match="ARD has no density of its own.*Trace_ELBO.*NUTS"):
        ARD().log_prob(torch.tensor(1.0))


def test_a_symmetric_distribution_needs_noise() -> None:
    class Noiseless(SymmetricDistribution):
        noise_variance = 1.0

    with pytest.raises(TypeError, match="Noiseless.*define _noise"):
        Noiseless(1.0).sample()
