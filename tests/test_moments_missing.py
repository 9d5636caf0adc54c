"""Operations without a rule: refused with names and reasons, or done by Monte Carlo; and choices by a mask."""

from __future__ import annotations

import pytest
import torch
from test_moments_rules import COVARIANCES, F64, assert_like, call, gaussian
from torch import nn

from pyrostoch.moments import MissingRuleError, MomentSettings

REFUSED = {
    "x + x[:, :, :1]": "operands of the same shape",
    "F.max_pool1d(x, 2, ceil_mode=True)": "without dilation, ceil_mode or indices",
    "F.interpolate(x, scale_factor=2, mode='linear')": "interpolation has a rule only for",
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"^moments: .*{REFUSED[name]}"):
        call(name)(gaussian((3, 4), full=False))


MISSING = {
    "torch.exp(x)": "torch.exp, called in Block",
    "x.cumsum(1)": r"torch.Tensor.cumsum, called in Block",
    "x / x": r"__truediv__, called in Block: a Gaussian's reciprocal",
    "torch.div(2.0, x)": r"div, called in Block: a Gaussian's reciprocal",
    "torch.where(x > 0.0, x, 2.0 * x)": r"where, called in Block: its condition is random",
    "x < 0.0": "torch.Tensor.__lt__, called in Block",
    "1.0 / x": "__rtruediv__, called in Block",
    "nn.GroupNorm(1, 3, **F64)(x)": "group_norm, called in GroupNorm",
    "x.softmax(-1)": r"softmax, called in Block \(attention",
    "F.scaled_dot_product_attention(x, x, x)": r"scaled_dot_product_attention, called in Block \(attention",
    "nn.MultiheadAttention(4, 2, **F64)(x, x, x)": r"multi_head_attention_forward, .* MultiheadAttention \(attention",
    "nn.MultiheadAttention(4, 2, batch_first=True, **F64)(x, x, x)": r" MultiheadAttention \(attention",
    "nn.LSTM(4, 2, batch_first=True, **F64)(x)": r"lstm, called in LSTM \(a recurrent",
}


class Block(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", MISSING)
def test_a_function_without_a_rule_is_named_with_its_module(name):
    block = Block(call(name))
    with pytest.raises(MissingRuleError, match=f"^moments: no rule for .*{MISSING[name]}.*mode='mc'") as caught:
        Block(nn.Sequential(nn.ReLU(), block))(gaussian((3, 4), full=False))
    assert caught.value.module is block or type(caught.value.module).__module__.startswith("torch.nn")


@COVARIANCES
@pytest.mark.parametrize("name", ["torch.exp(x)", "x.softmax(-1)", "torch.einsum('bi,bi->bi', x, x)"])
def test_operations_without_a_rule_by_monte_carlo(name, full):
    x = gaussian((3,), full=full, spread=0.25, settings=MomentSettings(full=full, sampled=True, draws=20_000))
    y = call(name)(x)
    assert (y.cov is not None) == full and y.settings is x.settings
    assert_like(y, call(name), x, (0.05, 0.12, 0.12), count=20_000)
    with pytest.raises(MissingRuleError, match="argmax: it returns no tensor of real numbers"):
        x.argmax(1)


@COVARIANCES
def test_inputs_that_depend_on_each_other_are_drawn_jointly(full):
    torch.manual_seed(0)
    x = gaussian((3,), full=full, spread=0.4, settings=MomentSettings(full=full, sampled=True, draws=20_000))
    z = gaussian((3,), full=full, spread=0.4, settings=x.settings)

    def function(x, z):
        return torch.hypot(2.0 * x + 0.3 * z, x - 1.0)  # independent draws of the two would be another distribution

    y = function(x, z)
    chosen = [torch.distributions.MultivariateNormal(m.loc, m.covariance()).sample((20_000,)) for m in (x, z)]
    drawn = function(*chosen)
    apart = drawn.std(0) / 20_000**0.5
    assert ((y.loc - drawn.mean(0)).abs() <= 6.0 * apart).all()
    torch.testing.assert_close(y.var, drawn.var(0), rtol=0.08, atol=0.0)
    wide = gaussian((600,), full=False, settings=MomentSettings(sampled=True, draws=10))
    with pytest.raises(MissingRuleError, match="hypot: its inputs depend on each other, and 1200 entries"):
        torch.hypot(wide, 2.0 * wide)


@COVARIANCES
def test_a_choice_by_a_fixed_mask_is_linear(full):
    x, z = gaussian((4,), full=full), gaussian((4,), full=full)
    mask = torch.tensor([True, False, True, False])
    for found, exact in (
        (torch.where(mask, x, z), x * mask.double() + z * (~mask).double()),
        (x.where(mask, 2.0), x * mask.double() + torch.tensor([0.0, 2.0, 0.0, 2.0], **F64)),
        (torch.where(mask, 0.5, x), x * (~mask).double() + torch.tensor([0.5, 0.0, 0.5, 0.0], **F64)),
    ):
        torch.testing.assert_close(found.loc, exact.loc)
        torch.testing.assert_close(found.covariance(), exact.covariance())


def test_attention_that_moves_examples_is_refused_also_with_monte_carlo():
    x = gaussian((3, 4), full=False, settings=MomentSettings(sampled=True, draws=10))
    attention = nn.MultiheadAttention(4, 2, batch_first=True, **F64)
    with pytest.raises(
        MissingRuleError, match="moves the examples from the first axis.*mode='mc', which draws the whole"
    ):
        attention(x, x, x)
