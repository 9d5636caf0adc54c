"""Quantized gradients: their values and means, in activations and parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrostoch.quantize import BinaryGradient, KBitGradient, TernaryGradient

F64 = {"dtype": torch.float64}
KINDS = {"ternary": TernaryGradient, "binary": BinaryGradient, "3 bits": lambda **settings: KBitGradient(3, **settings)}
EVERY = pytest.mark.parametrize("kind", KINDS)
PER = pytest.mark.parametrize("per", ["tensor", "neuron"])


def levels(kind, scale):
    return {"ternary": [-scale, 0.0, scale], "binary": [-scale, scale]}.get(
        kind, [-scale + 2 * scale * k / 7 for k in range(8)]
    )


@EVERY
@PER
def test_gradients_are_on_their_grid_and_unbiased(kind, per):
    torch.manual_seed(0)
    gradient = torch.tensor([[0.3, -0.02, 0.0], [-0.9, 0.01, 0.4]], **F64)
    quantize = KINDS[kind](per=per)
    drawn = torch.stack([quantize.quantized(gradient, 1) for _ in range(4000)])
    scales = gradient.abs().amax(0) if per == "neuron" else gradient.abs().max().expand(3)
    for neuron, scale in enumerate(scales):
        grid = torch.tensor(levels(kind, scale.item()), **F64)
        distance = (drawn[..., neuron].unsqueeze(-1) - grid).abs().amin(-1)
        assert distance.max() < 1e-12
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - gradient).abs() <= 4.5 * error + 1e-12).all()


@EVERY
def test_the_gradient_is_changed_and_the_activation_is_not(kind):
    torch.manual_seed(0)
    x, weights = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    layer = KINDS[kind]()
    y = layer(x)
    assert torch.equal(y, x)
    (y * weights).sum().backward()
    grid = torch.tensor(levels(kind, weights.abs().max().item()))
    assert (x.grad.unsqueeze(-1) - grid).abs().amin(-1).max() < 1e-6


@EVERY
@PER
def test_gradients_of_parameters_are_changed_until_the_handles_are_removed(kind, per):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    x = torch.randn(8, 5)

    def gradients():
        net.zero_grad()
        net(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    plain = gradients()
    handles = KINDS[kind](per=per).attach(net[0])
    quantized = gradients()
    assert not torch.equal(quantized[0], plain[0]) and all(map(torch.equal, quantized[2:], plain[2:]))
    rows = plain[0] if per == "neuron" else plain[0].reshape(1, -1)
    for row, discrete in zip(rows, quantized[0].reshape(rows.shape), strict=True):
        grid = torch.tensor(levels(kind, row.abs().max().item()))
        assert (discrete.unsqueeze(-1) - grid).abs().amin(-1).max() < 1e-5
    for handle in handles:
        handle.remove()
    assert all(map(torch.equal, gradients(), plain))


def test_clipping_adds_a_bias_towards_zero_and_lowers_the_noise():
    torch.manual_seed(0)
    gradient = torch.cat([torch.full((99,), 0.1, **F64), torch.tensor([10.0], **F64)])
    exact, clipped = (
        torch.stack([TernaryGradient(clip=clip).quantized(gradient, 0) for _ in range(3000)]) for clip in (None, 2.5)
    )
    assert clipped[:, -1].mean() < 0.3 * exact[:, -1].mean()
    assert clipped[:, :-1].std() < 0.7 * exact[:, :-1].std()
    assert (clipped[:, :-1].mean() - 0.1).abs() < 0.005


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_other_dtypes_and_zero_gradients_are_supported(kind, dtype):
    x = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    (KINDS[kind](per="neuron")(x) * torch.tensor([0.0, 2.0], dtype=dtype)).sum().backward()
    assert x.grad.dtype == dtype and x.grad[:, 0].tolist() == [0.0] * 3 and x.grad[:, 1].tolist() == [2.0] * 3


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="TernaryGradient per: .*did you mean 'neuron'"):
        TernaryGradient("neurons")
    with pytest.raises(ValueError, match="BinaryGradient clip"):
        BinaryGradient(clip=0.0)
    with pytest.raises(ValueError, match="KBitGradient bits"):
        KBitGradient(0)
    assert repr(KBitGradient(2, clip=2.5)) == "KBitGradient(bits=2, per='tensor', clip=2.5)"
