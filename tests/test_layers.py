"""Random layers: they compute what torch's layers compute with the drawn weights, in a `BayesianModel` and alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import layers
from pyrostoch.effects import LocalReparameterization, MeanPropagation
from pyrostoch.priors import EmpiricalBayes, Hierarchical, Normal


def plain(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


def attend(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, value=x, need_weights=False)[0]


@dataclass(frozen=True)
class Case:
    kind: str
    args: tuple
    shape: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: Callable[[nn.Module, Tensor], Tensor] = plain
    eval: bool = False
    local: bool = True

    def inputs(self) -> Tensor:
        return torch.randint(0, 6, (5, *self.shape)) if self.kind == "Embedding" else torch.randn(5, *self.shape)

    def torch_layer(self) -> nn.Module:
        return getattr(nn, self.kind)(*self.args, **self.kwargs).train(not self.eval)

    def layer(self, prior: Any = None, name: str | None = None) -> Any:
        return getattr(layers, self.kind)(*self.args, **self.kwargs, prior=prior, name=name).train(not self.eval)


BATCHED = {"batch_first": True}
CASES = {
    "linear": Case("Linear", (3, 4), (3,)),
    "linear, no bias": Case("Linear", (3, 4), (3,), {"bias": False}),
    "conv1d": Case("Conv1d", (2, 4, 3), (2, 6), {"groups": 2, "dilation": 2}),
    "conv2d": Case("Conv2d", (2, 3, (3, 2)), (2, 5, 4), {"padding": 1, "padding_mode": "circular"}),
    "conv3d": Case("Conv3d", (1, 2, 2), (1, 3, 3, 3), {"stride": 2}),
    "conv_transpose1d": Case("ConvTranspose1d", (2, 4, 3), (2, 4), {"stride": 2, "groups": 2}),
    "conv_transpose2d": Case("ConvTranspose2d", (2, 3, 2), (2, 3, 3), {"stride": 2, "output_padding": 1}),
    "conv_transpose3d": Case("ConvTranspose3d", (2, 1, 2), (2, 2, 2, 2)),
    "embedding": Case("Embedding", (6, 4), (3,), local=False),
    "lstm": Case("LSTM", (3, 4), (6, 3), BATCHED, first, local=False),
    "lstm, deep": Case(
        "LSTM", (3, 4), (6, 3), {**BATCHED, "num_layers": 2, "bidirectional": True, "proj_size": 2}, first, local=False
    ),
    "gru": Case("GRU", (3, 4), (6, 3), {**BATCHED, "num_layers": 2}, first, local=False),
    "attention": Case("MultiheadAttention", (4, 2), (6, 4), BATCHED, attend, local=False),
    "attention, eval": Case("MultiheadAttention", (4, 2), (6, 4), BATCHED, attend, eval=True, local=False),
}
EVERYTHING = {"*": Normal()}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_setting = pytest.mark.parametrize("setting", ["inside", "alone"])
# A case has `proj_size`, about which torch warns.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


class Holder(nn.Module):
    """A user's network around the layer."""

    def __init__(self, case: Case, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.call = layer, case.call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


class Alone(nn.Module):
    """A user's Pyro model around the layer."""

    def __init__(self, case: Case, layer: Any) -> None:
        super().__init__()
        self.layer, self.call = layer, case.call

    @property
    def sites(self) -> dict[str, Any]:
        return self.layer.sites

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.call(self.layer, x)
        with pyro.plate("data", 10 * len(x), subsample=torch.arange(len(x))):
            return pyro.sample("obs", dist.Normal(out, 0.5).to_event(out.dim() - 1), obs=y)


def build(case: Case, setting: str, prior: Any = None) -> Any:
    """A model of one layer whose sites start with `layer.` in both settings."""
    prior = EVERYTHING if prior is None else prior
    if setting == "alone":
        return Alone(case, case.layer(prior, "layer"))
    net = Holder(case, case.layer(prior))
    return ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(0.5), num_data=50)


def output(model: Any, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    trace = poutine.trace(poutine.condition(model, data=weights)).get_trace(x)
    return trace.nodes["obs"]["fn"].mean


def some_weights(model: Any) -> dict[str, Tensor]:
    return {name: torch.randn_like(site.init) for name, site in model.sites.items()}


@each_setting
@each_case
def test_computes_what_torchs_layer_computes_with_the_drawn_weights(case, setting):
    model, x, torch_layer = build(case, setting), case.inputs(), case.torch_layer()
    outputs = []
    for _ in range(2):
        weights = some_weights(model)
        assert list(weights) == [f"layer.{name}" for name, _ in torch_layer.named_parameters()]
        torch_layer.load_state_dict({name.removeprefix("layer."): value for name, value in weights.items()})
        outputs.append(output(model, x, weights))
        assert torch.allclose(outputs[-1], case.call(torch_layer, x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])
@each_setting
@each_case
def test_the_gradient_reaches_every_parameter_of_the_guide(case, setting, estimator):
    model, x = build(case, setting), case.inputs()
    guide = ps.guides.Additive(model, init_scale=0.1)
    terms = ps.ELBO(estimator).terms(model, guide, x, torch.zeros_like(output(model, x, {})))
    assert set(terms.treatments) == set(terms.sites) == set(model.sites)
    assert all(term.exact for term in terms.sites.values())
    treated = [treatment.startswith(("local", "flipout")) for treatment in terms.treatments.values()]
    assert any(treated) == (case.local and estimator != "shared")
    terms.data.backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


@pytest.mark.parametrize("estimator", ["shared", "local"])
@each_case
def test_alone_and_inside_a_model_are_the_same_model(case, estimator):
    inside, alone, x = build(case, "inside"), build(case, "alone"), case.inputs()
    # A `BayesianModel` draws weights lazily. A subclass, which may read its weights, draws them all, as a layer does.
    inside.__class__ = type("Subclass", (ps.BayesianModel,), {})
    alone.layer.load_state_dict(inside.net.layer.state_dict())
    y = torch.randn_like(output(inside, x, {}))
    losses = []
    for model in (inside, alone):
        guide = ps.guides.Additive(model, init_scale=0.1)
        torch.manual_seed(1)
        losses.append(ps.ELBO(estimator).differentiable_loss(model, guide, x, y))
    assert torch.allclose(*losses)


@each_case
def test_state_dict_and_signature_and_output_without_a_prior_are_torchs(case):
    layer, torch_layer = case.layer(EVERYTHING), case.torch_layer()
    assert isinstance(layer, type(torch_layer))
    torch_layer.load_state_dict(layer.state_dict())
    layer.load_state_dict(torch_layer.state_dict())
    x = case.inputs()
    without = case.layer()
    without.load_state_dict(torch_layer.state_dict())
    assert torch.equal(case.call(without, x), case.call(torch_layer, x)) and without.sites == {}
    taken = [name for name in inspect.signature(type(torch_layer)).parameters if name != "kwargs"]
    shown = inspect.signature(type(layer)).parameters
    assert [name for name in shown if name != "kwargs"] == [*taken, "prior", "name"]
    assert shown["prior"].kind is shown["name"].kind is inspect.Parameter.KEYWORD_ONLY


@each_setting
@each_case
def test_copies_are_independent_and_dtypes_follow(case, setting):
    model = build(case, setting)
    twin = copy.deepcopy(model).to(torch.float64)
    x = case.inputs()
    wide = x.double() if x.is_floating_point() else x
    weights = some_weights(twin)
    assert all(value.dtype == torch.float64 for value in weights.values())
    drawn = poutine.trace(twin).get_trace(wide)
    assert all(drawn.nodes[name]["value"].dtype == torch.float64 for name in weights)
    narrow = output(model, x, {name: value.float() for name, value in weights.items()})
    assert torch.allclose(output(twin, wide, weights).float(), narrow, atol=1e-5)
    assert all(site.init.dtype == torch.float32 for site in model.sites.values())


@each_case
def test_a_single_prior_goes_to_the_weights(case):
    layer = case.layer(Normal())
    assert list(layer.priors) == [name for name, _ in layer.named_parameters() if "bias" not in name]
    for name, parameter in layer.named_parameters():
        assert parameter.requires_grad == (name not in layer.priors)


def test_the_priors_of_attention_reach_the_module_that_holds_the_parameter():
    layer = layers.MultiheadAttention(4, 2, prior={"out_proj.weight": Normal(scale=3.0)})
    assert list(ps.priors.assign(layer, None)) == ["out_proj.weight"]
    twin = copy.deepcopy(layer)
    assert twin.out_proj.priors["weight"] is twin.priors["out_proj.weight"]
    assert twin.priors["out_proj.weight"] is not layer.priors["out_proj.weight"]


def test_the_layers_own_prior_holds_against_a_single_prior_of_the_model():
    net = nn.Sequential(layers.Linear(2, 3, prior=Normal(scale=2.0), name="ignored"), nn.Linear(3, 1))
    model = ps.BayesianModel(net, prior=Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=5)
    assert [site.prior for site in model.sites.values()] == ["Normal(loc=0, scale=2)", "Normal(loc=0, scale=1)"]


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])
def test_a_layer_inside_a_model_draws_nothing_itself(estimator):
    class Counting(layers.Linear):
        draws = 0

        def draw(self):
            Counting.draws += 1
            return super().draw()

    net = nn.Sequential(Counting(2, 3, prior=Normal()), nn.ReLU(), Counting(3, 1, prior=Normal()))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Gaussian(1.0), num_data=5)
    x = torch.randn(5, 2)
    terms = ps.ELBO(estimator).terms(model, ps.guides.Additive(model), x, torch.zeros(5, 1))
    assert list(terms.sites) == ["0.weight", "2.weight"] and Counting.draws == 0
    net(x)
    assert Counting.draws == 2


def test_interpretations_apply_to_a_layer_alone():
    layer = layers.Linear(3, 2, prior=Normal(), name="a")
    x = torch.ones(4, 3)
    with LocalReparameterization() as local:
        out = layer(x)
    assert local.treatments == {"a.weight": "local (exact)"} and len(out.unique()) == 8
    with MeanPropagation():
        assert torch.equal(layer(x), layer.bias.expand(4, 2))
    assert len(layer(x).unique()) == 2


def test_hierarchical_prior_alone():
    layer = layers.Linear(2, 1, prior=Hierarchical(), name="a")
    assert list(layer.sites) == ["a.weight_prior_scale", "a.weight"]
    model = Alone(CASES["linear"], layer)
    guide = ps.guides.Additive(model)
    loss = ps.ELBO().differentiable_loss(model, guide, torch.randn(5, 2), torch.zeros(5, 1))
    loss.backward()
    assert all(parameter.grad is not None for parameter in guide.parameters())


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"'wieght'.*matches no parameter.*'weight', 'bias'"):
        layers.Linear(2, 1, prior={"wieght": Normal()})
    with pytest.raises(ValueError, match="name: expected the prefix"):
        layers.Linear(2, 1, prior=Normal(), name="")
    with pytest.raises(ValueError, match="max_norm"):
        layers.Embedding(5, 2, max_norm=1.0, prior=Normal())
    layers.Embedding(5, 2, max_norm=1.0)
    with pytest.raises(ValueError, match=r"'a': the prior of 'weight' has a parameter to be fitted"):
        layers.Linear(2, 1, prior=EmpiricalBayes(), name="a")(torch.ones(1, 2))
    layer = layers.Linear(2, 1, prior=Normal(), name="a")
    with pytest.raises(ValueError, match=r"'a.weight'.*\(1, 2\), got \(3, 1, 2\).*plate"), pyro.plate("data", 3):
        layer(torch.ones(3, 2))


class Regression(nn.Module):
    def __init__(self, **names: str) -> None:
        super().__init__()
        self.fc1 = layers.Linear(2, 8, prior=Normal(), name=names.get("fc1"))
        self.plain = nn.Linear(8, 8)
        self.fc2 = layers.Linear(8, 1, prior=Normal(), name=names.get("fc2"))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.fc2(torch.tanh(self.plain(self.fc1(x))))
        with pyro.plate("data", 20, subsample=torch.arange(len(x))):
            return pyro.sample("obs", dist.Normal(out, 0.1).to_event(1), obs=y)


@pytest.mark.parametrize(
    "elbo", [ps.ELBO("local"), ps.ELBO("shared"), pyro.infer.Trace_ELBO()], ids=["local", "shared", "trace"]
)
def test_a_pyro_network_trains_random_and_plain_parameters_by_svi(elbo):
    model = layers.PyroNetwork(Regression(fc2="head"))
    assert list(model.sites) == ["fc1.weight", "head.weight"]
    guide = ps.guides.Additive(model)
    before = copy.deepcopy([dict(model.named_parameters()), dict(guide.named_parameters())])
    x = torch.randn(20, 2)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step(x, x.sum(1, keepdim=True)) for _ in range(60)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    for held, old in zip((model, guide), before, strict=True):
        for name, parameter in held.named_parameters():
            assert torch.equal(parameter, old[name]) == (name in {"module.fc1.weight", "module.fc2.weight"}), name


@pytest.mark.parametrize("elbo", [ps.ELBO("local"), pyro.infer.Trace_ELBO()], ids=["pyrostoch", "pyro"])
def test_svi_trains_parameters_without_a_prior_of_a_layer_alone(elbo):
    layer = layers.Linear(2, 1, prior=Normal(), name="a")
    model, guide = Alone(CASES["linear"], layer), ps.guides.Additive(layer)
    svi = pyro.infer.SVI(lambda x, y: model(x, y), guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    weight, bias = layer.weight.clone(), layer.bias.detach().clone()
    svi.step(torch.randn(5, 2), torch.zeros(5, 1))
    assert torch.equal(layer.weight, weight) and not torch.equal(layer.bias, bias)
    assert not pyro.get_param_store().keys()


def test_a_pyro_network_refuses_missing_priors_and_repeated_names():
    with pytest.raises(ValueError, match="Sequential has no layer with a prior"):
        layers.PyroNetwork(nn.Sequential(nn.Linear(2, 1), layers.Linear(2, 1)))
    with pytest.raises(ValueError, match=r"share the name\(s\) 'a'"):
        layers.PyroNetwork(Regression(fc1="a", fc2="a"))
