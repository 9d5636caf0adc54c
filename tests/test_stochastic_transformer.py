"""Stochastic encoder layers against torch's, masks and padding, and their rate in ELBOs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from stochastic import F64, B, N, assert_same_mean, mean_and_error, model_of
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import softplus

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation, MomentPropagation, NoiseFree
from pyrostoch.layers import StochasticTransformerEncoderLayer, activations
from pyrostoch.moments import MissingRuleError, Moments

T, E = 5, 4
CAUSAL = nn.Transformer.generate_square_subsequent_mask(T, dtype=F64)


def layer_of(**options: Any) -> StochasticTransformerEncoderLayer:
    return StochasticTransformerEncoderLayer(E, 2, 8, **{"dropout": 0.0, "batch_first": True, "dtype": F64, **options})


def padding(count: int = B) -> Tensor:
    """The first example has no padding, the others have some of their last tokens."""
    mask = torch.arange(T) >= torch.randint(1, T, (count, 1))
    mask[0] = False
    return mask


def tokens(count: int = B) -> Tensor:
    return torch.randn(count, T, E, dtype=F64)


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}, {"bias": False}])
@pytest.mark.parametrize("masks", ["none", "causal", "scores", "padding", "both", "float padding"])
def test_outputs_are_those_of_torchs_layers_in_every_mode(options: dict[str, Any], masks: str) -> None:
    layer, x, pad = layer_of(**options), tokens(), padding()
    given: dict[str, Any] = {}
    if masks in ("causal", "both"):
        given.update(src_mask=CAUSAL, is_causal=True)
    if masks == "scores":
        given.update(src_mask=torch.randn(T, T, dtype=F64))
    if masks == "padding":
        given.update(src_key_padding_mask=pad)
    elif masks in ("both", "float padding"):  # what is added to scores need not be padding
        given.update(src_key_padding_mask=torch.randn(B, T, dtype=F64).masked_fill(pad, -torch.inf))
    outputs = []
    for kernel in layer.kernels:
        plain = nn.TransformerEncoderLayer(E, 2, 8, 0.0, batch_first=True, dtype=F64, **options)
        plain.load_state_dict(kernel.state_dict())
        outputs.append(plain(x, **given))
    torch.manual_seed(1)
    expected = torch.distributions.Normal(outputs[0], softplus(outputs[1])).rsample()
    if "src_key_padding_mask" in given:
        expected = expected.masked_fill(pad[..., None], 0.0)
    for training in (True, False):  # without gradients, and in evaluation, torch takes its fast path
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                torch.manual_seed(1)
                assert torch.allclose(layer.train(training)(x, **given), expected, atol=1e-10)
    layer.batch_first = False
    torch.manual_seed(1)
    assert torch.allclose(layer(x.transpose(0, 1), **given), expected.transpose(0, 1), atol=1e-10)


def test_drawn_weights_reach_evaluation_without_gradients() -> None:
    layer, x = layer_of(distribution="bernoulli"), tokens()
    model = model_of(layer, prior=ps.priors.Normal())
    layer.eval()
    weights = {name: torch.randn_like(site.init) for name, site in model.sites.items()}
    own = layer.kernels[0].state_dict() | {name.partition(".0.")[2]: value for name, value in weights.items()}
    plain = nn.TransformerEncoderLayer(E, 2, 8, 0.0, batch_first=True, dtype=F64)
    plain.load_state_dict(own)
    with torch.no_grad(), MeanPropagation():
        assert torch.allclose(model.outputs(x, weights), plain(x).sigmoid(), atol=1e-10)  # type: ignore[arg-type]


def test_dropout_of_the_kernels_follows_the_mode() -> None:
    layer, x = layer_of(dropout=0.5), tokens()
    with MeanPropagation():
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def test_padding_reaches_nothing_under_any_interpretation() -> None:
    layer, x, pad = layer_of(), tokens(), padding()
    other = torch.where(pad[..., None], torch.randn_like(x), x)
    for handler in (MeanPropagation(), NoiseFree(), MomentPropagation()):
        with torch.no_grad(), handler:
            one: Any = layer(x, src_key_padding_mask=pad)
            two: Any = layer(other, src_key_padding_mask=pad)
        if isinstance(one, Moments):
            assert torch.allclose(one.var, two.var) and not one.var[pad].any() and bool((one.var[~pad] > 0).all())
            one, two = one.loc, two.loc
        assert torch.allclose(one, two, atol=1e-12) and not one[pad].any() and bool(one[~pad].all())


class Padded(nn.Module):
    """Its inputs end where an input feature says; all positions are read, those that are padding, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer, self.out = layer_of(**options), nn.Linear(E, 2, dtype=F64)

    def forward(self, x: Tensor) -> Any:
        pad = x[..., 0] > 0.5
        return self.out(self.layer(x, src_key_padding_mask=pad).sum(1))


def padded_data(count: int = B) -> tuple[Tensor, Tensor, Tensor]:
    x, pad = tokens(count), padding(count)
    x[..., 0] = pad.to(F64)
    return x, torch.randint(0, 2, (count,)), pad


PRIORS: dict[str, dict[str, Any]] = {
    "standard": {"prior": "standard"},
    "learned": {"prior": "learned"},
    "fixed": {"prior": dist.Normal(0.3, 2.0)},
    "of vectors": {"prior": dist.MultivariateNormal(torch.zeros(E, dtype=F64), torch.eye(E, dtype=F64))},
    "categorical": {"distribution": activations.Categorical(), "prior": "learned"},
    "score": {"distribution": "bernoulli", "gradient": "score", "prior": dist.Bernoulli(0.3)},
}


@pytest.mark.parametrize("name", PRIORS)
def test_padding_costs_no_rate(name: str) -> None:
    net = Padded(**PRIORS[name])
    with torch.no_grad():
        for parameter in net.layer.prior.parameters():  # type: ignore[union-attr]
            parameter.copy_(torch.randn_like(parameter))
    model = model_of(net)
    guide = ps.guides.Amortised(model)
    x, y, pad = padded_data()
    if name != "of vectors":
        q = net.layer.family.distribution(tuple(k(x, src_key_padding_mask=pad) for k in net.layer.kernels))
        p = net.layer.prior(net.layer._distribution(net.layer.outputs(x)).to_event(1))  # type: ignore[misc, attr-defined]
        kl = kl_divergence(q, p.base_dist)
        expected = N / B * kl[~pad].sum()
        found = torch.as_tensor(ps.ELBO().terms(model, guide, x, y).rate)
        assert torch.allclose(found, expected, rtol=1e-6)
    with torch.no_grad():
        ours = mean_and_error(lambda: ps.ELBO()(model, guide)(x, y), 80)
        assert_same_mean(ours, mean_and_error(lambda: Trace_ELBO().loss(model, guide, x, y), 150))
        if name in ("standard", "fixed"):
            assert_same_mean(ours, mean_and_error(lambda: TraceMeanField_ELBO().loss(model, guide, x, y), 80))


def test_gradients_are_those_of_finite_differences() -> None:
    layer, x, pad = layer_of(), tokens(2).requires_grad_(), padding(2)
    names = [name for name, _ in layer.named_parameters() if "in_proj" in name or "norm2" in name]
    values = [layer.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def run(x: Tensor, *values: Tensor) -> Any:
        torch.manual_seed(5)
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, parameters, (x,), {"src_key_padding_mask": pad})

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("estimator", ["shared", "local"])
def test_random_weights_and_random_activations_together(estimator: Any) -> None:
    net = Padded(prior="standard")
    model = model_of(net, prior=ps.priors.Normal())
    weights = ps.guides.Additive(model, init_scale=0.2)
    guide = ps.guides.Amortised(model, weights=weights)
    x, y, _ = padded_data()
    with torch.no_grad():
        pyros = mean_and_error(lambda: Trace_ELBO().loss(model, guide, x, y), 150)
        assert_same_mean(mean_and_error(lambda: ps.ELBO(estimator)(model, guide)(x, y), 80), pyros)
    with pytest.raises(ValueError, match="moment propagation"):
        ps.predict(model, weights, x, mode="moments")


def test_copies_draw_alike() -> None:
    model = model_of(Padded(prior="learned"))
    x, y, _ = padded_data()
    losses = []
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(1)
        losses.append(ps.ELBO()(each, ps.guides.Additive(each))(x, y))
    assert losses[0] == losses[1] == losses[2]


def test_refusals() -> None:
    layer, x, pad = layer_of(), tokens(), padding()
    name = "StochasticTransformerEncoderLayer"
    for shape in ((T, E), (B, T, E + 1)):
        with pytest.raises(ValueError, match=rf"{name} src: expected shape \(batch, steps, 4\), got \({shape[0]}"):
            layer(torch.randn(*shape, dtype=F64))
    with pytest.raises(ValueError, match=rf"{name} src_key_padding_mask: .*\({B}, {T}\), got \({T}, {B}\)"):
        layer(x, src_key_padding_mask=pad.T)
    with pytest.raises(TypeError, match=f"{name}: expected a tensor, got a nested one"):
        layer(torch.nested.as_nested_tensor([x[0], x[1, :2]], layout=torch.jagged))
    with pytest.raises(ValueError, match=f"{name}: is_causal=True .*src_mask is missing"):
        layer(x, is_causal=True)
    with MomentPropagation(), pytest.raises(MissingRuleError, match="attention"):
        layer(Moments(x, torch.ones_like(x)))
    net = Padded(prior=activations.Mixture(2, (T, E)))
    model = model_of(net)
    x, y, _ = padded_data()
    with pytest.raises(ValueError, match=f"{name}: where there is padding.*got Mixture"):
        ps.ELBO().terms(model, ps.guides.Additive(model), x, y)
    with pytest.raises(ValueError, match=f"{name} gradient"):
        layer_of(gradient="score")
