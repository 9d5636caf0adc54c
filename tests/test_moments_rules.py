"""Each moment rule against a reference: a Jacobian for linear operations, draws for others."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrostoch.moments import Moments, MomentSettings
from pyrostoch.moments.gaussian import cross_covariance

F64 = {"dtype": torch.float64}
COVARIANCES = pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])


def weights(dtype, *shape, seed=0):
    """Fixed weights, different for each seed."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(shape, generator=generator, **F64).to(dtype)


def call(source):
    """The operation written in a table, a function of x and of weights w(shape) in its dtype."""
    function = eval(f"lambda x, w: {source}", globals())
    return lambda x: function(x, partial(weights, x.dtype))


def gaussian(shape, *, full, batch=2, spread=1.0, dtype=torch.float64, settings=None):
    """Moments with a random mean, and a random covariance or random variances."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    loc = 0.6 * torch.randn(batch, *shape, generator=generator, **F64)
    n = loc[0].numel()
    root = torch.randn(batch, n, n, generator=generator, **F64) * spread / math.sqrt(n)
    cov = root @ root.mT + 0.4 * spread**2 * torch.eye(n, **F64)
    var = cov.diagonal(dim1=1, dim2=2).reshape(loc.shape).clone()
    return Moments(loc.to(dtype), var.to(dtype), cov.to(dtype) if full else None, settings or MomentSettings(full=full))


def draws(x, count):
    """Draws from moments, (count, B, ...)."""
    noise = torch.randn(count, *x.shape, **F64).flatten(2)
    return x.loc + torch.einsum("bij,kbj->kbi", torch.linalg.cholesky(x.covariance()), noise).unflatten(2, x.shape[1:])


def assert_like(y, function, x, tolerances=None, count=100_000):
    """Check mean, variance and covariance: within 4.5 standard errors of draws, or within relative tolerances."""
    torch.manual_seed(1)
    with torch.no_grad():
        found = function(draws(x, count).flatten(0, 1)).to(x.dtype).unflatten(0, (count, len(x))).flatten(2)
    apart, s = found - found.mean(0), found.std(0)
    rows = [(y.loc.flatten(1), found, s), (y.var.flatten(1), apart.square(), s.square())]
    if y.cov is not None:
        rows += [(y.cov, apart.unsqueeze(2) * apart.unsqueeze(3), s.unsqueeze(1) * s.unsqueeze(2))]
        torch.testing.assert_close(y.cov.diagonal(dim1=1, dim2=2), y.var.flatten(1), rtol=1e-9, atol=1e-12)
    for index, (value, sampled, scale) in enumerate(rows):
        assert value.shape == sampled.shape[1:]
        bound = tolerances[index] * scale if tolerances else 4.5 / math.sqrt(count) * sampled.std(0)
        assert ((sampled.mean(0) - value).abs() <= bound + 1e-12).all()


PLAIN = ["F.linear(x, w(4, 3), w(4))", "x @ w(3, 2)", "torch.addmm(w(2), x, w(3, 2))", "x.sum(1) * 2.0", "x - x"]
PLAIN += ["((2.0 - x) * -3.0 + 1.0) / 4.0 - 2.0", "w(3) + w(3, seed=1) * (-x / w(3, seed=2))", "torch.rsub(x, w(3))"]
PLAIN += ["torch.sub(1.5, torch.sub(torch.add(x, w(3), alpha=2.0), w(3, seed=1), alpha=0.5), alpha=3.0)", "x.mul(0.5)"]
PLAIN += ["torch.add(x[:, :2], x[:, 1:], alpha=3.0)", "torch.sub(x[:, :2], x[:, 1:], alpha=2.0)"]
PLAIN += ["torch.cat([x, w(len(x), 2), x[:, :1]], dim=-1)", "torch.stack([x, F.linear(x, w(3, 3))], dim=2)"]
PLAIN += ["F.linear(x, w(4, 3)) - F.linear(x, w(4, 3, seed=1))", "x + F.linear(x, w(3, 3))"]
# Operations by the shape of an example.
LINEAR = dict.fromkeys(PLAIN, (3,)) | {
    "F.linear(x, w(4, 3))": (2, 3),
    "F.conv1d(x, w(4, 1, 3), w(4), padding=2, dilation=2, groups=2)": (2, 6),
    "F.conv2d(x, w(3, 2, 3, 2), w(3), stride=(2, 1), padding=(1, 0))": (2, 5, 4),
    "F.conv2d(x, w(2, 1, 3, 3), padding='same', dilation=2, groups=2)": (2, 4, 3),
    "F.conv3d(x, w(2, 1, 2, 2, 2), stride=(1, 2, 1))": (1, 3, 4, 2),
    "F.conv_transpose1d(x, w(2, 2, 3), w(4), stride=2, output_padding=1, groups=2)": (2, 3),
    "F.conv_transpose2d(x, w(2, 3, 2, 3), stride=2, padding=1)": (2, 3, 2),
    "F.conv_transpose3d(x, w(1, 2, 2, 2, 2), dilation=2)": (1, 2, 2, 2),
    "F.batch_norm(x, w(2), w(2, seed=1).exp(), w(2, seed=2), w(2, seed=3), eps=0.5)": (2, 3, 2),
    "F.batch_norm(x, w(2), w(2, seed=1).exp())": (2,),
    "F.avg_pool1d(x, 3, 2, 1)": (2, 6),
    "F.avg_pool2d(x, (3, 2), stride=1, padding=1)": (2, 3, 3),
    "F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)": (1, 4, 5),
    "nn.AvgPool3d(2)(x)": (2, 4, 2, 2),
    "F.adaptive_avg_pool1d(x, 3)": (2, 6),
    "nn.AdaptiveAvgPool2d((2, None))(x)": (2, 4, 3),
    "F.adaptive_avg_pool3d(x, 1)": (2, 2, 2, 2),
    "torch.sum(x, 2, keepdim=True).mean((-1, 1))": (2, 3, 2),
    "x.mT.real.mean(axis=2, dtype=x.dtype)": (2, 3),
    "nn.Unflatten(1, (2, 3))(torch.flatten(x, 1))": (3, 2),
    "x.view(len(x), -1, 4).reshape(x.size(0), x.shape[-1], 4)": (4, 2),
    "x.permute(0, 3, 1, 2).contiguous().transpose(1, 2).movedim(1, -1).swapaxes(1, 2)": (2, 3, 2),
    "x[:, 1:, ::2][..., [1, 0, 0]]": (3, 3),
    "x.unsqueeze(1).expand(-1, 2, -1)[:, None].squeeze(1).flip(2).narrow(2, 1, 2).clone()": (4,),
    "torch.split(x.chunk(2, dim=1)[1], [1, 2], dim=1)[1].unbind(1)[0]": (6, 2),
    "F.pad(F.pad(x, (1, 0, 2, 1)), (1, 2), value=3.0)": (2, 3),
    "F.pad(F.pad(x, (1, 2), mode='circular'), (2, 1), mode='reflect')": (1, 3),
    "F.interpolate(x, scale_factor=2, mode='nearest')": (1, 2, 2),
    "(w(3) - x) * w(2, 1, seed=1) + w(1, 3, seed=2)": (2, 3),
    "F.dropout2d(F.dropout(x, 0.4, training=False), training=False)": (2, 2, 2),
    "x - F.conv1d(x, w(2, 2, 3), padding=1)": (2, 4),
}


@COVARIANCES
@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_equal_their_matrix(name, full):
    function, x = call(name), gaussian(LINEAR[name], full=full)
    y, start = function(x), function(torch.zeros_like(x.loc))
    matrix = torch.autograd.functional.jacobian(lambda row: function(row.unsqueeze(0))[0], x.loc[0])
    matrix = matrix.reshape(-1, x.loc[0].numel())
    cov = matrix @ x.covariance() @ matrix.mT
    close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)
    assert y.shape == start.shape and (y.cov is not None) == full
    close(y.loc.reshape(len(x), -1), x.loc.flatten(1) @ matrix.mT + start.reshape(len(x), -1))
    close(y.var.reshape(len(x), -1), cov.diagonal(dim1=1, dim2=2))
    close(cross_covariance(x, y), x.covariance() @ matrix.mT)
    if full:
        close(y.cov, cov)


def test_a_chain_is_exact_with_the_full_covariance():
    def function(x):
        h = F.avg_pool1d(F.conv1d(x, weights(x.dtype, 3, 2, 2)), 2, 1)
        return F.linear(torch.cat([h.transpose(1, 2).flatten(1), h.flatten(1)], 1), weights(x.dtype, 2, 18))

    x = gaussian((2, 5), full=True)
    matrix = torch.autograd.functional.jacobian(lambda row: function(row.unsqueeze(0))[0], x.loc[0]).flatten(1)
    torch.testing.assert_close(function(x).cov, matrix @ x.cov @ matrix.mT, rtol=1e-11, atol=1e-12)


def test_variances_keep_the_covariance_of_a_last_linear_layer():
    x, weight = gaussian((3,), full=False), torch.randn(4, 3, **F64)
    y = (F.linear(x, weight).view(-1, 2, 2).flatten(1) + 1.0) * 2.0
    torch.testing.assert_close(y.covariance(), 4.0 * weight @ torch.diag_embed(x.var) @ weight.T)
    z = F.log_softmax(y, dim=-1)
    torch.testing.assert_close(z.loc, y.loc.log_softmax(-1))
    torch.testing.assert_close(z.covariance(), y.covariance())


NAMES = "F.relu torch.abs torch.sign torch.erf torch.special.ndtr torch.tanh torch.sigmoid torch.sin torch.cos F.gelu"
NAMES += " F.silu F.selu F.mish F.softplus F.softsign F.logsigmoid F.hardsigmoid F.hardswish F.tanhshrink torch.square"
UNITS = [f"{name}(x)" for name in NAMES.split()]
UNITS += ["F.relu(x * 1.0, inplace=True)", "(x + 0.3).relu_()", "nn.LeakyReLU(0.2)(x)", "F.leaky_relu_(x * 1.0, 0.3)"]
UNITS += ["F.prelu(x, w(1).abs())", "F.relu6(8.0 * x)", "nn.ReLU6()(6.0 * x)", "F.hardtanh(x, -0.5, 1.5)"]
UNITS += ["x.clamp(-0.5, 0.75)", "torch.clamp(x, min=0.3)", "torch.clamp_max(x, 0.3)", "abs(x.sub(0.3))"]
UNITS += ["(x > 0.0) * 2.0", "torch.ge(x, 0.4)", "torch.heaviside(x, torch.zeros((), **F64))", "nn.GELU('tanh')(x)"]
UNITS += ["torch.ge(x, w(3)) * w(3, seed=1)", "torch.clamp(x, w(3) - 0.7, w(3) + 0.5)", "torch.clamp_min(x, w(3))"]
UNITS += ["nn.ELU(0.5, inplace=True)(x * 1.0)", "F.dropout(x, 0.3)", "F.celu(x, 1.5)"]
# Moments that meet again: exact where one of them is Gaussian, or both for a product.
UNITS += ["x + F.relu(x)", "F.relu(x) - x", "x + F.relu(F.linear(x, w(3, 3)))", "torch.cat([x, F.relu(x)], 1)"]
UNITS += [
    "(x[:, :2] > x[:, 1:]) * 1.0",
    "x + F.dropout(x, 0.3)",
    "x * x",
    "x ** 2",
    "x * F.linear(x, w(3, 3))",
    "x[:, :2] * x[:, 1:]",
]
UNITS += ["F.linear(x, w(3, 3)) * F.linear(x, w(3, 3, seed=1))", "x + x * F.linear(x, w(3, 3))", "x - (x > 0.0) * 2.0"]
NONLINEAR = dict.fromkeys(UNITS, (3,)) | {
    "F.prelu(x, w(2))": (2, 2),
    "F.dropout1d(x, 0.3)": (2, 2),
    "nn.Dropout2d(0.4)(x)": (2, 1, 2),
    "F.max_pool2d(x, (1, 2))": (1, 1, 2),
    "torch.tanh(F.conv1d(x, w(1, 1, 3), padding=1)).add_(x)": (1, 3),
}


@COVARIANCES
@pytest.mark.parametrize("name", NONLINEAR)
def test_other_operations_have_the_moments_of_draws(name, full):
    function, x = call(name), gaussian(NONLINEAR[name], full=full)
    assert_like(function(x), function, x)


# Approximations: the shape, the deviation of the input, and the tolerances.
APPROXIMATE = {
    "F.layer_norm(x, (40,), w(40), w(40, seed=1))": ((40,), 0.1, (0.05, 0.1, 0.1)),
    "F.layer_norm(x, (8, 6))": ((8, 6), 0.1, (0.05, 0.1, 0.1)),
    "F.layer_norm(x, (8,))": ((8,), 0.2, (0.2, 0.2, 0.25)),
    "F.max_pool1d(x, 3, 2, 1)": ((2, 5), 1.0, (0.02, 0.07, 0.16)),
    "F.max_pool1d(x, 2, stride=1)": ((1, 4), 1.0, (0.02, 0.03, 0.18)),
    "nn.MaxPool2d(2)(x)": ((1, 4, 4), 1.0, (0.02, 0.14, 0.14)),
    "F.max_pool2d(x, 3, 2, padding=1)": ((1, 4, 3), 1.0, (0.04, 0.2, 0.4)),
    "x * torch.sigmoid(x)": ((3,), 0.5, (0.02, 0.07, 0.07)),
    "F.relu(x) + torch.tanh(x)": ((3,), 0.5, (0.02, 0.05, 0.05)),
    "torch.tanh(x[:, :2]) * torch.sigmoid(x[:, 1:])": ((3,), 0.5, (0.02, 0.15, 0.15)),
}


@COVARIANCES
@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations_are_near_the_moments_of_draws(name, full):
    shape, spread, tolerances = APPROXIMATE[name]
    function, x = call(name), gaussian(shape, full=full, spread=spread)
    assert_like(function(x), function, x, tolerances, count=20_000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_max_pooling_of_inputs_without_variance_is_the_plain_maximum(dtype):
    x = torch.randn(2, 2, 6, 5, dtype=dtype)
    y = F.max_pool2d(Moments(x, torch.zeros_like(x)), 3, 2, padding=1)
    torch.testing.assert_close(y.loc, F.max_pool2d(x, 3, 2, padding=1), rtol=1e-6, atol=1e-6)
    assert y.var.max() < 1e-12


@COVARIANCES
@pytest.mark.parametrize("shape", [(3,), (2, 3, 2)], ids=str)
def test_batch_statistics_are_those_of_a_large_sample(shape, full):
    x = gaussian(shape, full=full, batch=600)
    kind = nn.BatchNorm2d if len(shape) > 1 else nn.BatchNorm1d
    ours, theirs = (kind(shape[0], momentum=0.25, eps=0.1, **F64) for _ in range(2))
    with torch.no_grad():
        for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
            twin.copy_(parameter.uniform_(0.5, 1.5))
        y, z = ours(x), draws(x, 100)
        sampled = theirs(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=0, atol=0.01)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0.01, atol=0)
        assert ((sampled.mean(0) - y.loc) / sampled.std(0)).square().mean() == pytest.approx(0.01, rel=0.2)
        assert (sampled.var(0) / y.var).mean() == pytest.approx(1.0, abs=0.02)
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(Moments(x.loc[:3], 0.0 * x.var[:3])).loc, theirs(x.loc[:3]))
        torch.testing.assert_close(ours.running_var, theirs.running_var)


@COVARIANCES
@pytest.mark.parametrize("name", LINEAR | NONLINEAR | APPROXIMATE)
def test_the_dtype_stays(name, full):
    shape = APPROXIMATE[name][0] if name in APPROXIMATE else (LINEAR | NONLINEAR)[name]
    y, exact = (call(name)(gaussian(shape, full=full, dtype=dtype)) for dtype in (torch.float32, torch.float64))
    for part in ("loc", "var", "cov")[: 2 + full]:
        assert getattr(y, part).dtype == torch.float32 and getattr(exact, part).dtype == torch.float64
        torch.testing.assert_close(getattr(y, part).double(), getattr(exact, part), rtol=5e-4, atol=5e-4)


DIFFERENTIABLE = [*PLAIN[:3], *UNITS[:5], "F.batch_norm(x, None, None, training=True)", "x * x", "F.gelu(x)"]
DIFFERENTIABLE += ["nn.GELU('tanh')(x)", "F.dropout(x, 0.3)", "x + F.relu(F.linear(x, w(3, 3)))", *APPROXIMATE]


@COVARIANCES
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_moments_are_differentiable(name, full):
    shape = APPROXIMATE[name][0] if name in APPROXIMATE else (LINEAR | NONLINEAR).get(name, (3,))
    x = gaussian(shape, full=True)

    def parts(loc, root):
        cov = root @ root.mT
        var = cov.diagonal(dim1=1, dim2=2).reshape(loc.shape)
        y = call(name)(Moments(loc, var, cov if full else None))
        return (y.loc, y.var, y.cov) if full else (y.loc, y.var)

    inputs = (x.loc.requires_grad_(), torch.linalg.cholesky(x.cov).requires_grad_())
    assert torch.autograd.gradcheck(parts, inputs, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_an_operation_in_place_changes_the_object_and_not_earlier_results():
    x = gaussian((3,), full=False)
    start, alias, child, relu = x.loc, x, 2.0 * x, F.relu(Moments(x.loc, x.var))
    assert nn.ReLU(inplace=True)(x) is F.leaky_relu_(x, 1.0) is x
    torch.testing.assert_close(alias.var, relu.var)
    x += 1.0
    x *= torch.full((3,), 2.0, **F64)
    x -= child
    x /= 2.0
    assert x is alias
    torch.testing.assert_close(x.loc, relu.loc + 1.0 - start)


ATTRIBUTES = [
    "x.mT",
    "x.real",
    "x.data",
    "x.T",
    "x != 0.0",
    "x == x",
    "bool(x)",
    "w(2, 3, 3).add_(x)",
    "F.dropout(x, 1.0)",
]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_give_moments_or_are_refused(name):
    x = gaussian((3, 3), full=False)
    if name in ATTRIBUTES[3:8]:
        with pytest.raises(TypeError, match="^moments: "):
            call(name)(x)
    else:
        assert isinstance(call(name)(x), Moments)


def test_dropout_of_everything_leaves_nothing_random():
    x = gaussian((3,), full=True)
    assert not any(part.any() for part in (F.dropout(x, 1.0).loc, F.dropout(x, 1.0).cov))
    assert F.dropout(x, 1.0, inplace=True) is x and not x.var.any()


@COVARIANCES
def test_a_residual_link_in_place_equals_one_out_of_place(full):
    x, twin = (gaussian((3,), full=full) for _ in range(2))
    expected = twin + F.relu(twin) - 0.5 * twin
    branch = F.relu(x).add_(x)
    torch.testing.assert_close((branch - 0.5 * x).var, expected.var)


@COVARIANCES
def test_earlier_results_keep_their_covariance_after_an_operation_in_place(full):
    x = gaussian((3,), full=full)
    start, child = x.var, x * 1.0
    x *= 2.0
    torch.testing.assert_close((x + child).var, 9.0 * start)


def test_entries_after_a_layer_norm_add_up_to_zero():
    y = F.layer_norm(gaussian((2, 3), full=True), (2, 3))
    torch.testing.assert_close(y.cov.sum(2), torch.zeros(2, 6, **F64))


def test_mixing_branches_of_many_entries_count_as_uncorrelated():
    x = gaussian((1024,), full=False, batch=1)
    torch.testing.assert_close((x - x.flip(1).flip(1)).var, torch.zeros(1, 1024, **F64))
    x = torch.cat([x, x], 1)
    torch.testing.assert_close((x - x.flip(1).flip(1)).var, 2.0 * x.var)


MIXING = ["torch.cat([x, x])", "torch.cat([x, x], dim=-3)", "torch.stack([x, x])", "x.mean()", "x.mean((0, 1))"]
MIXING += ["torch.sum(x, -3, keepdim=True)", "x.view(-1, 2)", "torch.flatten(x)", "x[1:]", "x.transpose(0, 2)"]
MIXING += ["x.chunk(3)", "F.pad(x, (0, 0, 0, 0, 1, 1))", "x.transpose(0, 1)", "x[0]", "x.flip(0)"]


@COVARIANCES
@pytest.mark.parametrize("name", MIXING)
def test_mixing_examples_is_refused(name, full):
    with pytest.raises(ValueError, match="the first axis counts examples"):
        call(name)(gaussian((3, 2), full=full, batch=3))
