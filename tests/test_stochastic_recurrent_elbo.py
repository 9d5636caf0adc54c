"""Stochastic recurrent layers in models: rates of steps, ELBOs against Pyro's, random weights, score gradients."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from stochastic import F64, B, N, assert_same_mean, mean_and_error, model_of
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyrostoch as ps
from pyrostoch.effects import LocalReparameterization
from pyrostoch.layers import StochasticGRU, StochasticLSTM

T, IN, H = 3, 3, 2
KINDS: dict[str, Any] = {"LSTM": StochasticLSTM, "GRU": StochasticGRU}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_sample = pytest.mark.parametrize("sample", ["output", "state"])


class Reader(nn.Module):
    """A recurrent layer whose last activations are read by a linear one."""

    def __init__(self, kind: str, width: int = H, **options: Any) -> None:
        super().__init__()
        self.recurrent = KINDS[kind](IN, width, **options)
        self.out = nn.Linear((2 if options.get("bidirectional") else 1) * width, 2)

    def forward(self, x: Tensor) -> Any:
        h, _ = self.recurrent(x if self.recurrent.batch_first else x.transpose(0, 1))
        return self.out(h[:, -1] if self.recurrent.batch_first else h[-1])


def data(batch: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, T, IN, dtype=F64), torch.randint(0, 2, (batch,))


@each_kind
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_rate_of_each_step_is_that_by_hand(kind: str, batch_first: bool) -> None:
    net = Reader(kind, sample="state", prior=dist.Normal(0.2, 1.5), batch_first=batch_first)
    model = model_of(net)
    x, y = data(T)  # as many examples as steps
    torch.manual_seed(3)
    terms = ps.ELBO().terms(model, ps.guides.Additive(model), x, y)
    cells = net.recurrent.l0
    h, memory = x.new_zeros(T, H), None if kind == "GRU" else x.new_zeros(T, 2, H)
    torch.manual_seed(3)
    for t in range(T):
        step = (x[:, t] @ cells.weight_ih.T + cells.bias_ih).unflatten(1, cells.blocks)
        outputs, memory = cells._cells(
            step, (h @ cells.weight_hh.T + cells.bias_hh).unflatten(1, cells.blocks), h, memory
        )
        q = torch.distributions.Normal(outputs[:, 0], nn.functional.softplus(outputs[:, 1]))
        h = q.rsample()
        name = "recurrent.l0" if t == 0 else f"recurrent.l0:{t + 1}"
        expected = N / T * kl_divergence(q, torch.distributions.Normal(0.2, 1.5)).sum()
        assert torch.allclose(torch.as_tensor(terms.rates[name].rate), expected, rtol=1e-6)
    assert len(terms.rates) == T
    expected = N / T * dist.Categorical(logits=net.out(h)).log_prob(y).sum()
    assert torch.allclose(torch.as_tensor(terms.data), expected, rtol=1e-6)


@each_kind
def test_sites_are_named_by_layer_direction_and_step(kind: str) -> None:
    net = Reader(kind, num_layers=2, bidirectional=True, sample="state", prior="learned")
    x, y = data()
    trace = poutine.trace(ps.guides.Amortised(model_of(net))).get_trace(x, y)
    found = [name for name, node in trace.nodes.items() if node["type"] == "sample" and name != "data"]
    places = [f"recurrent.{place}" for place in ("l0", "l0_reverse", "l1", "l1_reverse")]
    assert found == [name for place in places for name in (place, *(f"{place}:{t}" for t in range(2, T + 1)))]
    assert all(trace.nodes[name]["value"].shape == (B, H) for name in found)
    whole = Reader(kind, bidirectional=True, prior="learned")
    nodes = poutine.trace(ps.guides.Amortised(model_of(whole))).get_trace(x, y).nodes
    assert nodes["recurrent.output"]["value"].shape == (B, T, 2 * H)  # examples first, whatever the input's order


CASES: dict[str, dict[str, Any]] = {
    "Gaussian": {"prior": "standard"},
    "Gaussian, learned, both directions": {"prior": "learned", "bidirectional": True},
    "Bernoulli": {"prior": "standard", "distribution": "bernoulli"},
    "Bernoulli, score": {"prior": dist.Bernoulli(0.3), "distribution": "bernoulli", "gradient": "score"},
    "Laplace, time first": {"distribution": "laplace", "prior": dist.Normal(0.0, 1.0), "batch_first": False},
}


@each_sample
@each_kind
@pytest.mark.parametrize("case", CASES)
def test_elbo_has_the_expectation_of_pyros(kind: str, sample: str, case: str) -> None:
    model = model_of(Reader(kind, sample=sample, **{"batch_first": True, **CASES[case]}))
    guide = ps.guides.Amortised(model)
    x, y = data()
    with torch.no_grad():
        ours = mean_and_error(lambda: ps.ELBO()(model, guide)(x, y), 100)
        assert_same_mean(ours, mean_and_error(lambda: Trace_ELBO().loss(model, guide, x, y), 150))
        if case.startswith("Gaussian"):
            assert_same_mean(ours, mean_and_error(lambda: TraceMeanField_ELBO().loss(model, guide, x, y), 100))


@each_sample
@each_kind
def test_decompose_agrees_with_pyro_and_weights_are_shared_by_name(kind: str, sample: str) -> None:
    net = Reader(kind, sample=sample, prior="standard", batch_first=True)
    model = model_of(net, prior=ps.priors.Normal())
    weights = ps.guides.Additive(model, init_scale=0.4)
    guide = ps.guides.Amortised(model, weights=weights)
    x, y = data(N)
    with LocalReparameterization() as local, torch.no_grad():
        weights(x, y)
        model(x, y)
    found = {name.rpartition(".")[2]: text for name, text in local.treatments.items() if name != "out.weight"}
    assert found and all(text.startswith("shared (") for text in found.values()), found
    assert sample == "output" or set(found) == {"weight_ih", "weight_hh"}
    assert local.treatments["out.weight"].startswith("local")
    with torch.no_grad():
        pyros = mean_and_error(lambda: Trace_ELBO().loss(model, guide, x, y), 150)
        for estimator in ("local", "shared", "flipout"):
            ours = mean_and_error(lambda: ps.ELBO(estimator)(model, guide)(x, y), 100)  # noqa: B023
            assert_same_mean(ours, pyros)
        parts = ps.decompose(model, guide, (x, y), num_samples=60)
    assert parts.elbo_stderr is not None and len(parts.rates) == (1 if sample == "output" else T)
    split = (torch.tensor(-parts.elbo, dtype=F64), torch.tensor(parts.elbo_stderr, dtype=F64))
    assert_same_mean(pyros, split)
    with pytest.raises(ValueError, match=r"recurrent\..*moment propagation"):
        ps.predict(model, weights, x, mode="moments")


@each_kind
def test_score_gradients_of_steps_are_those_of_enumeration(kind: str) -> None:
    """The baseline is the cost of the training step before: one that depended on the present draws would show."""
    net = Reader(kind, 1, sample="state", distribution="bernoulli", gradient="score", prior=dist.Bernoulli(0.3))
    model = model_of(net)
    cells = net.recurrent.l0
    cells.baseline_decay = 0.0
    with torch.no_grad():  # outputs of gates alone would hardly depend on the draws
        cells.weight_hh.mul_(3.0)
        net.out.weight.mul_(4.0)
    x, y = data(2)
    names = [name for name, _ in net.named_parameters()]

    def gradients(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [net.get_parameter(n) for n in names])])

    p, truth = torch.tensor(0.3, dtype=F64), torch.zeros((), dtype=F64)
    for values in itertools.product((0.0, 1.0), repeat=T):
        h, memory = x.new_zeros(2, 1), None if kind == "GRU" else x.new_zeros(2, 1, 1)
        weight: Any = 1.0
        cost: Any = 0.0
        for t, value in enumerate(values):
            step = (x[:, t] @ cells.weight_ih.T + cells.bias_ih).unflatten(1, cells.blocks)
            recurrent = (h @ cells.weight_hh.T + cells.bias_hh).unflatten(1, cells.blocks)
            outputs, memory = cells._cells(step, recurrent, h, memory)
            q = outputs[:, 0, 0].sigmoid()
            cost = cost + q * (q / p).log() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).log()
            weight = weight * (q if value else 1.0 - q)
            h = torch.full_like(h, value)
        cost = cost - dist.Categorical(logits=net.out(h)).log_prob(y)
        truth = truth + N / 2 * (weight * cost).sum()
    loss = ps.ELBO()(model, ps.guides.Additive(model))
    expected = gradients(truth)
    found = mean_and_error(lambda: gradients(loss(x, y)), 400)
    assert_same_mean(found, (expected, torch.zeros_like(expected)))
    assert (expected.abs() > 5.0 * found[1]).float().mean() > 0.3  # the comparison says something


@each_sample
@each_kind
def test_save_load_copy_and_pickle(tmp_path: Any, kind: str, sample: str) -> None:
    def build() -> tuple[ps.BayesianModel, nn.Module]:
        net = Reader(kind, sample=sample, prior="learned", bidirectional=True, num_layers=2)
        model = model_of(net, prior={"out.weight": ps.priors.Normal()})
        return model, ps.guides.Amortised(model, weights=ps.guides.Additive(model))

    (model, guide), (other, other_guide) = build(), build()
    x, y = data(N)
    ps.fit(model, guide, (x, y), epochs=1, batch_size=20, progress=False, compile=False)
    ps.save(tmp_path / "a.safetensors", model, guide)
    ps.load(tmp_path / "a.safetensors", other, other_guide)
    pairs = [(other, other_guide), copy.deepcopy((model, guide)), pickle.loads(pickle.dumps((model, guide)))]
    torch.manual_seed(1)
    loss = ps.ELBO()(model, guide)(x, y)
    for copied, copied_guide in pairs:
        torch.manual_seed(1)
        assert torch.equal(loss, ps.ELBO()(copied, copied_guide)(x, y))


@each_sample
def test_training_narrows_the_rate_and_predictions_are_of_draws(sample: str) -> None:
    x = torch.randn(N, T, IN, dtype=F64)
    y = (x.sum((1, 2)) > 0).long()
    model = model_of(Reader("GRU", 8, sample=sample, prior="standard", batch_first=True))
    guide = ps.guides.Amortised(model)
    run = ps.fit(model, guide, (x, y), epochs=60, lr=0.03, seed=0, progress=False, compile=False, rate_weight=0.1)
    assert run.history["loss"][-1] < 0.8 * run.history["loss"][0]
    scores = ps.compare(model, guide, (x, y), modes=("mean", "noise-free", "mc:20"), seed=0)
    assert scores["mean"].accuracy > 0.7 and scores["mc:20"].accuracy > 0.7
