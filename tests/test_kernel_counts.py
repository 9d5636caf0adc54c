"""Kernels of counts, binomial and multinomial: distributions, KLs, gradients and objective against enumeration."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal, kl_divergence

import pyrostoch as ps
from pyrostoch import guides, priors
from pyrostoch.distributions import (
    BinomialLevels,
    Grid,
    Levels,
    SignedMultinomial,
    SymmetricBinomial,
    UniformMultinomial,
    kl_sum,
)

F64 = {"dtype": torch.float64}


def model_of(net, prior, noise=0.4, num_data=6):
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(noise), num_data=num_data)


def binomial_table(logit, n):
    """Values of 2k/n - 1, (n + 1,), and their probabilities, (n + 1, ...), from the definition."""
    p = logit.sigmoid()
    probs = torch.stack([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    return torch.tensor([2 * k / n - 1 for k in range(n + 1)], **F64), probs


def multinomial_table(cell_logits, n):
    """All counts of one kernel, (m, 2 F), and their probabilities, (m,), from the definition."""
    p = cell_logits.softmax(-1)
    counts = [c for c in itertools.product(range(n + 1), repeat=len(p)) if sum(c) == n]
    ways = [math.factorial(n) / math.prod(math.factorial(k) for k in c) for c in counts]
    table = torch.tensor(counts, **F64)
    return table, torch.tensor(ways, **F64) * (p**table).prod(-1)


def kernel_values(counts):
    """(C+ - C-) / n of each row of counts."""
    positive, negative = counts.chunk(2, -1)
    return (positive - negative) / counts[0].sum()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_binomial_weights_are_those_of_the_enumeration(n):
    logit, scale = torch.tensor([-1.3, 0.0, 0.4, 3.0], **F64), torch.tensor(0.7, **F64)
    q, (values, probs) = BinomialLevels(logit, n, scale), binomial_table(logit, n)
    mean = scale * (probs * values[:, None]).sum(0)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, (probs * (scale * values[:, None] - mean) ** 2).sum(0))
    torch.testing.assert_close(q.probs, probs.movedim(0, -1))
    for value, p in zip(values, probs, strict=True):
        torch.testing.assert_close(q.log_prob((scale * value).expand(4)).exp(), p)
    torch.testing.assert_close(q.mode, scale * values[probs.argmax(0)])
    torch.testing.assert_close(kl_divergence(q, Grid()), (probs * (probs * (n + 1)).log()).sum(0))
    reference = torch.tensor([math.comb(n, k) / 2**n for k in range(n + 1)], **F64)
    by_hand = (probs * (probs / reference[:, None]).log()).sum(0)
    torch.testing.assert_close(kl_divergence(q, SymmetricBinomial()), by_hand)
    general = Levels(q.logits, q.levels, scale)
    torch.testing.assert_close(kl_divergence(general, SymmetricBinomial()), by_hand)
    torch.testing.assert_close(general.variance, q.variance)
    drawn = q.sample((30_000,))
    for value, p in zip(values, probs, strict=True):
        share = ((drawn / scale - value).abs() < 1e-9).double().mean(0)
        assert ((share - p).abs() < 5 * (p * (1 - p) / len(drawn)).sqrt() + 1e-4).all()
    wide = q.expand((3, 4))
    assert wide.sample((2,)).shape == (2, 3, 4) and torch.equal(wide.mean[2], q.mean)


def test_multinomial_kernels_are_those_of_the_enumeration():
    n, scale, logits = 3, 0.7, torch.randn(2, 2, 2, **F64)
    q = SignedMultinomial(logits, n, scale)
    drawn = q.sample((30_000,))
    assert drawn.shape == (30_000, 2, 2)
    total = 0.0
    for row in range(2):
        counts, probs = multinomial_table(logits[:, row].flatten(), n)
        weights = scale * kernel_values(counts)
        mean = probs @ weights
        covariance = (weights - mean).T @ (probs[:, None] * (weights - mean))
        torch.testing.assert_close(q.mean[row], mean)
        torch.testing.assert_close(q.variance[row], covariance.diagonal())
        total += (probs * (probs / multinomial_table(torch.zeros(4, **F64), n)[1]).log()).sum()
        d = mean / scale
        assert covariance[0, 1].item() == pytest.approx((-(scale**2) * d[0] * d[1] / n).item())
        for value in weights.unique(dim=0):
            p = probs[((weights - value).abs() < 1e-9).all(-1)].sum()
            share = ((drawn[:, row] - value).abs() < 1e-9).all(-1).double().mean()
            assert (share - p).abs() < 5 * (p * (1 - p) / len(drawn)).sqrt() + 1e-4
    torch.testing.assert_close(kl_sum(q, UniformMultinomial().expand((2, 2)).to_event(2)), total)
    # Kernels are independent of each other.
    centered = drawn - q.mean
    for i, j in itertools.product(range(2), repeat=2):
        products = centered[:, 0, i] * centered[:, 1, j]
        assert products.mean().abs() < 5 * products.std() / math.sqrt(len(drawn)) + 1e-4


def test_the_kl_of_counts_is_at_least_that_of_the_weights():
    n, logits = 4, torch.tensor([0.4, -0.9, 1.1, 0.2], **F64)
    counts, probs = multinomial_table(logits, n)
    reference = multinomial_table(torch.zeros(4, **F64), n)[1]
    values, index = kernel_values(counts).unique(dim=0, return_inverse=True)
    merged, merged_reference = (torch.zeros(len(values), **F64).index_add(0, index, p) for p in (probs, reference))
    of_weights = (merged * (merged / merged_reference).log()).sum()
    of_counts = kl_divergence(SignedMultinomial(logits.reshape(2, 1, 2), n), UniformMultinomial())
    torch.testing.assert_close(of_counts, (probs * (probs / reference).log()).sum())
    assert of_weights < of_counts - 1e-3
    # With one entry nothing is hidden: it is the binomial, logit and KL included.
    one = SignedMultinomial(logits[:2], n, 0.3)
    twin = BinomialLevels(logits[0] - logits[1], n, 0.3)
    torch.testing.assert_close((one.mean, one.variance), (twin.mean, twin.variance))
    torch.testing.assert_close(kl_sum(one, UniformMultinomial()), kl_sum(twin, SymmetricBinomial()))


@pytest.mark.parametrize(("shape", "out_axis"), [((3, 2, 2), 0), ((2, 3, 2), 1), ((2, 2, 3), 2), ((3,), 0), ((), 0)])
def test_kernels_of_any_layout(shape, out_axis):
    """Kernel by kernel the same as with the axis of outputs in front, and batches of them."""
    n, logits = 5, torch.randn(2, *shape, **F64)
    q = SignedMultinomial(logits, n, 0.6, out_axis=out_axis)
    front = logits.movedim(1 + out_axis, 1).reshape(2, shape[out_axis], -1) if shape else logits.reshape(2, 1, 1)
    plain = SignedMultinomial(front, n, 0.6)

    def in_front(weight):
        return weight.movedim(out_axis - len(shape), -len(shape)).flatten(-len(shape)) if shape else weight[..., None]

    torch.testing.assert_close(in_front(q.mean), plain.mean.flatten())
    torch.testing.assert_close(in_front(q.variance), plain.variance.flatten())
    torch.testing.assert_close(kl_divergence(q, UniformMultinomial()), kl_divergence(plain, UniformMultinomial()))
    drawn = q.sample((7, 2))
    assert drawn.shape == (7, 2, *shape) and q.support.event_dim == len(shape)
    sums = in_front(drawn).reshape(7, 2, plain.event_shape[0], -1).abs().sum(-1)
    assert (sums <= 0.6 + 1e-9).all()
    assert q.support.check(drawn).shape == (7, 2) and q.support.check(drawn).all()
    wide = q.expand((4,))
    assert wide.batch_shape == (4,) and wide.event_shape == shape and wide.sample((3,)).shape == (3, 4, *shape)
    torch.testing.assert_close(wide.mean, q.mean.expand(4, *shape))
    torch.testing.assert_close(
        kl_divergence(wide, UniformMultinomial()), kl_divergence(q, UniformMultinomial()).expand(4)
    )
    draws = q.sample((20_000,))
    error = 5 * (q.variance / len(draws)).sqrt() + 1e-9
    assert ((draws.mean(0) - q.mean).abs() <= error).all()


def binomial(logits, scale):
    return BinomialLevels(logits[0, 0] - logits[1, 0], 3, scale)


def multinomial(logits, scale):
    return SignedMultinomial(logits, 3, scale)


def expected_linear(make, logits, scale, direction):
    if make is binomial:
        values, probs = binomial_table(logits[0, 0] - logits[1, 0], 3)
        return (scale * (probs * values[:, None]).sum(0) * direction).sum()
    counts, probs = multinomial_table(logits[:, 0].flatten(), 3)
    return scale * (probs @ kernel_values(counts)) @ direction


@pytest.mark.parametrize("make", [binomial, multinomial])
def test_the_gradient_of_a_mean_linear_function_is_exact(make):
    logits, scale = torch.randn(2, 1, 2, **F64, requires_grad=True), torch.tensor(0.7, **F64, requires_grad=True)
    direction = torch.tensor([1.5, -0.4], **F64)
    exact = torch.autograd.grad(expected_linear(make, logits, scale, direction), (logits, scale))
    drawn = make(logits, scale).rsample((20_000,))
    values = (drawn * direction).flatten(1).sum(1)
    found = torch.autograd.grad(values.mean(), (logits, scale))
    torch.testing.assert_close(found[0], exact[0])
    error = (values.detach() / scale.detach()).std() / math.sqrt(len(values))
    assert (found[1] - exact[1]).abs() <= 5 * error
    single = torch.autograd.grad((make(logits, scale).rsample() * direction).sum(), logits)
    torch.testing.assert_close(single[0], exact[0])


def test_the_elbo_is_that_of_the_enumeration_of_all_kernels():
    torch.manual_seed(0)
    x, y = torch.randn(3, 2, **F64), torch.randn(3, 1, **F64)
    cases = [
        (partial(guides.BinomialWeights, n=2), priors.SymmetricBinomial(), ("moments", "shared", "local")),
        (partial(guides.MultinomialWeights, n=3), priors.UniformMultinomial(), ("shared",)),
    ]
    for make, prior, estimators in cases:
        model = model_of(nn.Linear(2, 1, bias=False, **F64), prior)
        guide = make(model)
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        logits, log_scale = (guide.parameters_for("weight")[name].detach() for name in ("logits", "log_scale"))
        if isinstance(guide, guides.BinomialWeights):
            values, table = binomial_table(logits[0], 2)
            pairs = list(itertools.product(range(3), repeat=2))
            weights = torch.stack([torch.stack([values[a], values[b]]) for a, b in pairs])
            probs = torch.stack([table[a, 0] * table[b, 1] for a, b in pairs])
            reference = torch.tensor([math.comb(2, a) * math.comb(2, b) / 16 for a, b in pairs], **F64)
        else:
            counts, probs = multinomial_table(logits[:, 0].flatten(), 3)
            weights, reference = kernel_values(counts), multinomial_table(torch.zeros(4, **F64), 3)[1]
        outputs = x @ (log_scale.exp() * weights).T
        likelihoods = Normal(outputs, torch.tensor(0.4, **F64)).log_prob(y).sum(0) * 2  # 6 examples, 3 at once
        kl = (probs * (probs / reference).log()).sum()
        for estimator in estimators:
            elbo = ps.ELBO(estimator)
            terms = elbo.terms(model, guide, x, y)
            assert terms.sites["weight"].exact and terms.sites["weight"].kl.item() == pytest.approx(kl.item())
            if estimator == "moments":
                assert terms.data.item() == pytest.approx((probs @ likelihoods).item(), rel=1e-6)
                continue
            with torch.no_grad():
                found = torch.stack([elbo.terms(model, guide, x, y).data for _ in range(800)])
            assert (found.mean() - probs @ likelihoods).abs() <= 5 * found.std() / math.sqrt(len(found))


def test_saturated_logits_stay_finite_in_single_precision():
    logit = torch.tensor([1e4, -1e4, 90.0, -90.0, 17.0], requires_grad=True)
    q = BinomialLevels(logit, 6, 2.0)
    expected = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    torch.testing.assert_close(q.mean, expected)
    assert torch.equal(q.sample((50,))[:, :4], expected[:4].expand(50, 4))
    kls = (kl_divergence(q, SymmetricBinomial()), kl_divergence(q, Grid()))
    torch.testing.assert_close(kls[0], torch.full((5,), 6 * math.log(2.0)))
    torch.testing.assert_close(kls[1], torch.full((5,), math.log(7.0)), atol=1e-4, rtol=1e-4)
    total = sum(kl.sum() for kl in kls) + q.variance.sum() + q.rsample().sum() + q.log_prob(expected).sum()
    assert torch.isfinite(torch.autograd.grad(total, logit)[0]).all()
    assert torch.isfinite(total) and (q.variance >= 0).all()

    cells = torch.zeros(2, 3, 2)
    cells[0, 0, 1], cells[1, 1, 0], cells[1, 2, 1] = 1e4, 90.0, -torch.inf
    cells.requires_grad_()
    kernel = SignedMultinomial(cells, 6, 2.0)
    kl = kl_divergence(kernel, UniformMultinomial())
    assert kl.item() == pytest.approx(6 * (2 * math.log(4.0) + math.log(4 / 3)), rel=1e-5)
    torch.testing.assert_close(kernel.mean[:2], torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))
    assert torch.equal(kernel.sample()[:2], kernel.mean[:2].detach()) and (kernel.variance >= 0).all()
    total = kl + kernel.variance.sum() + kernel.rsample().sum()
    assert torch.isfinite(total) and torch.isfinite(torch.autograd.grad(total, cells)[0]).all()


@pytest.mark.parametrize("prior", [Normal(0.0, 1.0), Laplace(0.0, 1.0), Grid(), SymmetricBinomial()])
@pytest.mark.parametrize("shape", [(3, 2), ()])
def test_a_kl_of_counts_to_another_prior_is_refused(prior, shape):
    kernel, name = SignedMultinomial(torch.zeros(2, *shape), 4), type(prior).__name__
    match = rf"KL\(SignedMultinomial \|\| {name}\) is infinite or unknown.*UniformMultinomial"
    with pytest.raises(ValueError, match=match):
        kl_sum(kernel, torch.distributions.Independent(prior.expand(shape), len(shape)))
    if isinstance(prior, (Normal, Laplace)):
        with pytest.raises(ValueError, match=rf"KL\(BinomialLevels \|\| {name}\) is infinite.*SymmetricBinomial"):
            kl_sum(BinomialLevels(torch.zeros(shape), 4), prior)


def test_what_is_no_kernel_is_refused():
    with pytest.raises(ValueError, match=r"SignedMultinomial logits: expected shape \(2, .*got \(3, 2\)"):
        SignedMultinomial(torch.zeros(3, 2), 4)
    with pytest.raises(ValueError, match=r"SignedMultinomial logits: .*got \(\)"):
        SignedMultinomial(torch.zeros(()), 4)
    kernel = SignedMultinomial(torch.zeros(2, 3, 2), 4)
    with pytest.raises(ValueError, match="SignedMultinomial has no log probability"):
        kernel.log_prob(kernel.sample())
