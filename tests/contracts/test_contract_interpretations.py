"""What every interpretation does, by the registry: on one linear layer, where all is known in closed form."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from common import assert_documented, kinds, public
from pyro import poutine
from registry import INTERPRETATIONS
from torch import Tensor, nn

from pyrostoch import effects
from pyrostoch.effects import Interpretation, SharedSample, call_network, independent
from pyrostoch.layers import Ternary
from pyrostoch.moments import Moments

F64 = {"dtype": torch.float64}
ROWS = 4000
each_interpretation = pytest.mark.parametrize("name", INTERPRETATIONS)


class Weights:
    """Two random tensors, as a guide draws them, and the network that uses them."""

    def __init__(self, **options: Any) -> None:
        options = {**F64, **options}
        self.net = nn.Linear(3, 2, **options)
        self.loc = {name: p.detach().clone().requires_grad_() for name, p in self.net.named_parameters()}
        self.scale = {name: (0.3 + 0.5 * torch.rand_like(p)).requires_grad_() for name, p in self.loc.items()}

    def __call__(self, x: Tensor) -> Any:
        drawn = {
            name: pyro.sample(name, dist.Normal(self.loc[name], self.scale[name]).to_event(), infer=independent())
            for name in self.loc
        }
        return call_network(self.net, drawn, (x,))


def moments_of(output: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance over the rows of an output for rows that are alike, or of its moments."""
    if isinstance(output, Moments):
        return output.loc[0], output.var[0]
    return output.mean(0), output.var(0)


def test_every_public_interpretation_is_registered() -> None:
    assert public(effects, Interpretation) == kinds(INTERPRETATIONS)


@each_interpretation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_a_treatment_for_every_site(name: str, dtype: torch.dtype) -> None:
    with INTERPRETATIONS[name].make() as how:
        output = Weights(dtype=dtype)(torch.randn(7, 3, dtype=dtype))
    assert output.shape == (7, 2) and output.dtype == dtype
    assert set(how.treatments) == {"weight", "bias"} and all(how.treatments.values())
    assert how.replaced <= set(how.treatments)
    assert how.name in how.treatments["weight"] or how.treatments["weight"] == "shared"


@each_interpretation
def test_the_mean_is_that_of_shared_draws_and_the_variance_the_exact_marginal(name: str) -> None:
    weights, x, member = Weights(), torch.randn(3, **F64), INTERPRETATIONS[name]
    mean = (weights.loc["weight"] @ x + weights.loc["bias"]).detach()
    by_bias = weights.scale["bias"].square()
    variance = (weights.scale["weight"].square() @ x.square() + by_bias).detach()
    outputs = []
    with torch.no_grad():
        for _ in range(1 if member.by_example or not member.draws else ROWS):
            with member.make():
                rows = ROWS if member.by_example else 1
                outputs.append(weights(x.expand(rows, 3)))
    if not member.draws:
        loc, var = moments_of(outputs[0].expand(2, 2) if isinstance(outputs[0], Tensor) else outputs[0])
        assert torch.allclose(loc, mean)
        assert torch.allclose(var, variance if member.carries else torch.zeros_like(var), atol=1e-14)
        return
    drawn = torch.cat(outputs)
    if name == "Flipout":
        # The bias, and the deviation's size, are drawn once for the batch: what its signs decide is exact given them.
        pairs = drawn[::2] + drawn[1::2] - 2 * drawn.mean(0)
        assert (pairs.mean(0).abs() <= 5.0 * pairs.std(0) / math.sqrt(len(pairs)) + 1e-12).all()
        return
    assert ((drawn.mean(0) - mean).abs() <= 5.0 * (variance / ROWS).sqrt()).all()
    assert ((drawn.var(0) - variance).abs() <= 5.0 * variance * math.sqrt(2.0 / ROWS)).all()


@each_interpretation
def test_rows_alike_are_drawn_apart_or_together_as_it_says(name: str) -> None:
    with INTERPRETATIONS[name].make():
        output = Weights()(torch.ones(50, 3, **F64))
    values = output.loc if isinstance(output, Moments) else output
    alike = bool((values == values[0]).all())
    assert alike != INTERPRETATIONS[name].by_example


@each_interpretation
def test_gradients_reach_what_it_reads(name: str) -> None:
    weights = Weights()
    with INTERPRETATIONS[name].make():
        output = weights(torch.randn(5, 3, **F64))
    total = output.square().sum() if isinstance(output, Tensor) else (output.loc.square() + output.var).sum()
    total.backward()
    spread = INTERPRETATIONS[name].draws or INTERPRETATIONS[name].carries
    for parameters, read in ((weights.loc, True), (weights.scale, spread)):
        for parameter in parameters.values():
            assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == read
    assert all(p.grad is None for p in weights.net.parameters())


@each_interpretation
def test_the_network_is_left_as_it_was(name: str) -> None:
    weights = Weights()
    before = {key: (id(p), p.detach().clone()) for key, p in weights.net.named_parameters()}

    def fail(module: nn.Module, inputs: Any, output: Any) -> None:
        raise KeyError("in the middle")

    with INTERPRETATIONS[name].make():
        weights(torch.randn(5, 3, **F64))
    hook = weights.net.register_forward_hook(fail)
    with pytest.raises(KeyError, match="in the middle"), INTERPRETATIONS[name].make():
        weights(torch.randn(5, 3, **F64))
    hook.remove()
    for key, p in weights.net.named_parameters():
        assert id(p) == before[key][0] and torch.equal(p, before[key][1])
    assert not poutine.runtime._PYRO_STACK and not effects.inside_network()


@each_interpretation
def test_the_one_entered_last_decides(name: str) -> None:
    with SharedSample() as outer, INTERPRETATIONS[name].make() as inner:
        Weights()(torch.randn(5, 3, **F64))
    assert set(inner.treatments) == {"weight", "bias"} and not outer.replaced
    assert not set(outer.treatments.values()) - {"shared", "shared (value given)"}


@each_interpretation
def test_it_may_be_entered_again_and_keeps_nothing_alive(name: str) -> None:
    how, weights = INTERPRETATIONS[name].make(), Weights()
    alive = []
    for _ in range(3):
        x = torch.randn(5, 3, **F64)
        alive.append(weakref.ref(x))
        with how:
            weights(x)
        del x
    # Without help from the garbage collector: nothing refers to the inputs in a circle.
    assert [reference() for reference in alive] == [None] * 3 and set(how.treatments) == {"weight", "bias"}


def reader(name: str) -> Callable[[Tensor], Any]:
    def read(x: Tensor) -> Any:
        with INTERPRETATIONS[name].make():
            return Ternary(noise=0.5)(x)

    return read


@each_interpretation
def test_random_activations_are_drawn_averaged_or_carried(name: str) -> None:
    x = torch.full((4000, 1), 0.4, **F64)
    if name == "Linearization":
        with pytest.raises(ValueError, match="whose weights alone are random, got random activations"):
            reader(name)(x)
        return
    output, expected = reader(name)(x), Ternary(noise=0.5).expected(x[:1])
    if name == "NoiseFree":
        assert (output == 0.0).all()
    elif name == "MeanPropagation":
        assert torch.equal(output, expected.expand_as(output))
    elif name == "MomentPropagation":
        assert torch.allclose(output.loc, expected) and torch.allclose(output.var, Ternary(noise=0.5).variance(x))
    else:
        assert set(output.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert abs(output.mean() - expected).item() <= 5.0 * output.std().item() / math.sqrt(len(x))


@pytest.mark.gpu
@each_interpretation
def test_on_the_device_of_its_inputs(name: str) -> None:
    with INTERPRETATIONS[name].make():
        output = Weights(device="cuda", dtype=torch.float32)(torch.randn(5, 3, device="cuda"))
    assert (output.loc if isinstance(output, Moments) else output).device.type == "cuda"


@pytest.mark.parametrize("kind", sorted(kinds(INTERPRETATIONS)))
def test_documentation(kind: str) -> None:
    assert_documented(getattr(effects, kind), source=INTERPRETATIONS[kind].source, shapes=False)
