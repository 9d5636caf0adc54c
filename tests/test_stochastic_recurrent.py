"""Stochastic recurrent layers against the same written by hand with torch's cells and networks, and refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from stochastic import F64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pack_sequence

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation, MomentPropagation, NoiseFree
from pyrostoch.layers import StochasticGRU, StochasticLSTM, activations
from pyrostoch.moments import MissingRuleError, Moments

B, T, IN, H = 4, 5, 3, 2
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "LSTM": (StochasticLSTM, nn.LSTM, nn.LSTMCell),
    "GRU": (StochasticGRU, nn.GRU, nn.GRUCell),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
Draw = Callable[[list[Tensor]], Tensor]


def normal(outputs: list[Tensor]) -> Tensor:
    return torch.distributions.Normal(outputs[0], softplus(outputs[1])).rsample()


def by_hand(kind: str, layer: Any, x: Tensor, draw: Draw, parameters: int = 2, start: Any = None) -> tuple[Tensor, Any]:
    """The draws of a layer with `sample="state"`, its last draws and its last memories, by torch's cells."""
    last, memories = [], []
    for level in range(layer.num_layers):
        directions = []
        for suffix in layer.suffixes:
            own = getattr(layer, f"l{level}{suffix}")
            rows = own.weight_ih.shape[0] // parameters
            cell = KINDS[kind][2](own.weight_ih.shape[1], H, own.bias_ih is not None, dtype=F64, device="meta")
            parts = [
                {name: getattr(own, name)[k * rows : (k + 1) * rows] for name, _ in cell.named_parameters()}
                for k in range(parameters)
            ]
            h = x.new_zeros(len(x), H) if start is None else start[0][len(last)]
            c = [x.new_zeros(len(x), H)] * parameters
            if start is not None and len(start) > 1:
                c = list(start[1][len(last)].chunk(parameters, 1))
            steps = range(x.shape[1])
            found = {}
            for t in reversed(steps) if suffix else steps:
                if kind == "LSTM":
                    pairs = [functional_call(cell, own, (x[:, t], (h, m))) for own, m in zip(parts, c, strict=True)]
                    outputs, c = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
                else:
                    outputs = [functional_call(cell, own, (x[:, t], h)) for own in parts]
                found[t] = h = draw(outputs)
            directions.append(torch.stack([found[t] for t in steps], 1))
            last.append(h)
            memories.append(torch.cat(c, 1))
        x = torch.cat(directions, -1)
    return x, (torch.stack(last), torch.stack(memories))


def state_of(kind: str, states: Any) -> tuple[Tensor, ...]:
    return tuple(states) if kind == "LSTM" else (states,)


@each_kind
@pytest.mark.parametrize(
    ("layers", "bidirectional", "bias"), [(1, False, True), (1, False, False), (2, False, True), (2, True, True)]
)
def test_draws_that_feed_the_next_step_are_those_of_torchs_cells(
    kind: str, layers: int, bidirectional: bool, bias: bool
) -> None:
    layer = KINDS[kind][0](
        IN, H, layers, bias, batch_first=True, bidirectional=bidirectional, sample="state", dtype=F64
    )
    x = torch.randn(B, T, IN, dtype=F64)
    count = layers * (1 + bidirectional)
    start = (torch.randn(count, B, H, dtype=F64), torch.randn(count, B, 2 * H, dtype=F64))
    for given in (None, start):
        hx = given if given is None or kind == "LSTM" else given[0]
        torch.manual_seed(1)
        h, states = layer(x, hx)
        torch.manual_seed(1)
        expected, ends = by_hand(kind, layer, x, normal, start=given if kind == "LSTM" else given and given[:1])
        assert h.shape == (B, T, H * (1 + bidirectional)) and torch.allclose(h, expected, atol=1e-12)
        found = state_of(kind, states)
        assert [state.shape for state in found] == [(count, B, H), (count, B, 2 * H)][: len(found)]
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, ends, strict=False))
    layer.batch_first = False
    torch.manual_seed(1)
    first, _ = layer(x.transpose(0, 1), hx)
    assert torch.equal(first, h.transpose(0, 1))


@each_kind
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_outputs_are_those_of_torchs_networks(kind: str, layers: int, bidirectional: bool) -> None:
    layer = KINDS[kind][0](IN, H, layers, bidirectional=bidirectional, dtype=F64)
    x = torch.randn(T, B, IN, dtype=F64)
    networks = []
    for kernel in layer.output.kernels:
        networks.append(KINDS[kind][1](IN, H, layers, bidirectional=bidirectional, dtype=F64))
        networks[-1].load_state_dict(kernel.state_dict())
    torch.manual_seed(1)
    h, states = layer(x)
    (loc, first), (scale, second) = (network(x) for network in networks)
    torch.manual_seed(1)
    expected = normal([loc.transpose(0, 1), scale.transpose(0, 1)]).transpose(0, 1)
    assert h.shape == (T, B, H * (1 + bidirectional)) and torch.allclose(h, expected, atol=1e-12)
    for mine, torchs in zip(states, (first, second), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(state_of(kind, mine), state_of(kind, torchs), strict=True))
    again, _ = networks[1](x, second)
    q = layer.output.activation_distribution(x.transpose(0, 1), states)
    assert torch.allclose(q.stddev, softplus(again.transpose(0, 1)), atol=1e-12)


@each_kind
@pytest.mark.parametrize("sample", ["output", "state"])
@pytest.mark.parametrize("name", ["mean", "noise-free", "drawn"])
def test_a_sequence_in_two_parts_is_one(kind: str, sample: str, name: str) -> None:
    drawn = name == "drawn"
    if drawn and sample == "output":
        return  # the noise of all steps is one draw
    layer = KINDS[kind][0](IN, H, 1 if drawn else 2, batch_first=True, sample=sample, dtype=F64)
    x = torch.randn(B, T, IN, dtype=F64)

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        whole, end = layer(x)
        torch.manual_seed(2)
        first, state = layer(x[:, :2])
        second, last = layer(x[:, 2:], state)
        flat = [
            torch.cat([t.flatten() for t in (s if isinstance(s, tuple) else (s,))])
            for s in ((end, last) if sample == "state" else (*end, *last))
        ]
        half = len(flat) // 2
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(flat[:half], flat[half:], strict=True))
        return whole, torch.cat([first, second], 1)

    if drawn:
        whole, parts = run()
    else:
        with MeanPropagation() if name == "mean" else NoiseFree():
            whole, parts = run()
    assert torch.allclose(whole, parts, atol=1e-12)
    assert not torch.allclose(layer(x[:, 2:])[0], parts[:, 2:])


@each_kind
@pytest.mark.parametrize("sample", ["output", "state"])
def test_gradients_are_those_of_finite_differences(kind: str, sample: str) -> None:
    layer = KINDS[kind][0](2, 2, 2, bidirectional=True, sample=sample, dtype=F64)
    x = torch.randn(3, 2, 2, dtype=F64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters() if "l0" in name or name.startswith("l1.")]
    values = [layer.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def run(x: Tensor, *values: Tensor) -> Any:
        torch.manual_seed(5)
        h, states = functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        flat = states if sample == "output" or kind == "LSTM" else (states,)
        return h, *(t for s in flat for t in (s if isinstance(s, tuple) else (s,)))

    assert torch.autograd.gradcheck(run, (x, *values))


@each_kind
@pytest.mark.parametrize("name", ["mean", "noise-free"])
def test_the_interpretation_takes_the_draws_place_at_each_step(kind: str, name: str) -> None:
    layer = KINDS[kind][0](IN, H, batch_first=True, sample="state", distribution="bernoulli", dtype=F64)
    x = torch.randn(B, T, IN, dtype=F64)

    def place(outputs: list[Tensor]) -> Tensor:
        return outputs[0].sigmoid() if name == "mean" else (outputs[0] > 0).to(F64)

    with MeanPropagation() if name == "mean" else NoiseFree():
        h, _ = layer(x)
    assert torch.allclose(h, by_hand(kind, layer, x, place, 1)[0], atol=1e-12)
    if name == "noise-free":
        assert set(h.unique().tolist()) <= {0.0, 1.0}


@each_kind
@pytest.mark.parametrize("gradient", ["straight-through", "relaxed"])
def test_discrete_draws_feed_the_next_step_with_their_gradient(kind: str, gradient: Any) -> None:
    layer = KINDS[kind][0](
        IN, H, batch_first=True, sample="state", distribution="bernoulli", gradient=gradient, dtype=F64
    )
    x = torch.randn(B, T, IN, dtype=F64)

    def draw(outputs: list[Tensor]) -> Tensor:
        return activations.Bernoulli().draw((outputs[0],), gradient, 0.5)

    torch.manual_seed(1)
    h, _ = layer(x)
    torch.manual_seed(1)
    expected, _ = by_hand(kind, layer, x, draw, 1)
    assert torch.allclose(h, expected, atol=1e-12)
    weights = (layer.l0.weight_ih, layer.l0.weight_hh)
    found, right = (torch.autograd.grad(value.square().sum(), weights) for value in (h, expected))
    assert all(torch.allclose(a, b, atol=1e-12) and bool(a.any()) for a, b in zip(found, right, strict=True))
    with torch.no_grad():
        assert set(layer(x)[0].unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match=f"Stochastic{kind} gradient: expected one of 'straight-through'"):
        KINDS[kind][0](IN, H, sample="state", distribution="bernoulli", gradient="reparameterized")


@each_kind
def test_categorical_draws_choose_a_unit_of_each_step(kind: str) -> None:
    layer = KINDS[kind][0](IN, 4, sample="state", distribution=activations.Categorical(), batch_first=True)
    h, _ = layer(torch.randn(B, T, IN))
    assert torch.allclose(h.sum(-1), torch.ones(B, T))


def test_projections_and_dropout_are_torchs() -> None:
    layer = StochasticLSTM(IN, 6, 2, dropout=0.5, proj_size=H, dtype=F64)
    x = torch.randn(T, B, IN, dtype=F64)
    h, states = layer(x)
    assert h.shape == (T, B, H) and [state.shape[-1] for state in states[0]] == [H, 6]
    for sample in ("output", "state"):
        layer = StochasticLSTM(IN, 6, 2, dropout=0.5, sample=sample, dtype=F64)  # type: ignore[arg-type]
        with MeanPropagation():
            assert not torch.equal(layer(x)[0], layer(x)[0])
            layer.eval()
            assert torch.equal(layer(x)[0], layer(x)[0])
    with pytest.warns(UserWarning, match="StochasticLSTM dropout: it acts between layers"):
        StochasticLSTM(IN, H, dropout=0.5)


@each_kind
def test_moments_of_outputs_are_exact_and_those_of_states_are_refused(kind: str) -> None:
    x = torch.randn(B, T, IN, dtype=F64)
    layer = KINDS[kind][0](IN, H, batch_first=True, dtype=F64)
    q = layer.output.activation_distribution(x)
    with torch.no_grad(), MomentPropagation():
        found, _ = layer(x)
        assert torch.allclose(found.loc, q.mean) and torch.allclose(found.var, q.variance)
        with pytest.raises(MissingRuleError, match="lstm|gru"):
            layer(Moments(x, torch.ones_like(x)))
    refused = KINDS[kind][0](IN, H, batch_first=True, sample="state", dtype=F64)
    for given in (x, Moments(x, torch.ones_like(x))):
        with MomentPropagation(), pytest.raises(MissingRuleError, match=f"Stochastic{kind} with sample='state'"):
            refused(given)
    net = nn.Sequential(refused)
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(1.0), num_data=B)
    for mode in ("moments", "moments:mc:3"):
        with pytest.raises(MissingRuleError, match=r"module '0\.l0': .*recurrence"):
            ps.predict(model, ps.guides.Additive(model), x, mode=mode)


@each_kind
@pytest.mark.parametrize("sample", ["output", "state"])
def test_refusals(kind: str, sample: Any) -> None:
    make = KINDS[kind][0]
    name = f"Stochastic{kind}"
    layer = make(IN, H, sample=sample)
    with pytest.raises(TypeError, match=f"{name}: expected a tensor, got a PackedSequence.*pad"):
        layer(pack_sequence([torch.randn(3, IN), torch.randn(2, IN)]))
    for shape in ((T, IN), (T, B, IN + 1), (0, B, IN), (T, 0, IN)):
        with pytest.raises(
            ValueError, match=rf"{name}: expected inputs of shape \(steps, batch, 3\), got \({shape[0]}"
        ):
            layer(torch.randn(*shape))
    x, good = torch.randn(T, B, IN), layer(torch.randn(T, B, IN))[1]
    wrong: list[Any] = [torch.zeros(1, B, H)] if kind == "LSTM" or sample == "output" else [(good, good)]
    wrong += [(torch.zeros(1, B, H), torch.zeros(1, B, H)), torch.zeros(1, B + 1, H), (good,)]
    for hx in wrong:
        if kind == "GRU" and sample == "output" and isinstance(hx, tuple) and len(hx) == 2:
            continue  # those are the states of two networks
        with pytest.raises(ValueError, match=f"{name} hx: expected .*give back the states that the layer returns"):
            layer(x, hx)
    for arguments, options, message in (
        ((0, H), {}, f"{name} input_size"),
        ((IN, H, 0), {}, f"{name} num_layers"),
        ((IN, H), {"dropout": 2.0}, f"{name} dropout"),
        ((IN, H), {"distribution": "cauchy"}, f"{name} distribution"),
        ((IN, H), {"prior": "laplace"}, f"{name} prior"),
        ((IN, H), {"temperature": 0.0}, f"{name} temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            make(*arguments, sample=sample, **options)
    with pytest.raises(ValueError, match=f"{name} sample: expected.*'outputs'"):
        make(IN, H, sample="outputs")
    if kind == "GRU" or sample == "state":
        with pytest.raises(ValueError, match=f"{name} proj_size: expected 0, got 1"):
            make(IN, H, proj_size=1, sample=sample)


@each_kind
@pytest.mark.parametrize("sample", ["output", "state"])
def test_more_noise_in_all_layers(kind: str, sample: Any) -> None:
    layer = KINDS[kind][0](IN, H, 2, bidirectional=True, sample=sample, batch_first=True, dtype=F64)
    x = torch.randn(B, T, IN, dtype=F64)
    assert layer.noise_factor == 1.0
    layer.noise_factor = 1e-9
    with MeanPropagation():
        mean, _ = layer(x)
    assert layer.noise_factor == 1e-9 and torch.allclose(layer(x)[0], mean, atol=1e-6)


def test_every_layer_and_direction_has_its_own_learned_prior() -> None:
    layer = StochasticGRU(IN, H, 2, bidirectional=True, sample="state", prior="learned")
    priors = {name for name, _ in layer.named_parameters() if ".prior." in name}
    places = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert priors == {f"{place}.prior.outputs.{k}" for place, k in itertools.product(places, range(2))}
    assert StochasticLSTM(IN, H, bidirectional=True, prior="learned").output.prior.outputs[0].shape == (2 * H,)
    given = StochasticGRU(IN, H, sample="state", prior=dist.Normal(0.0, 2.0))
    assert isinstance(given.l0.prior, activations.ActivationPrior)
