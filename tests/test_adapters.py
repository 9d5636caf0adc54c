"""Adapters of fixed networks: what is random and trained, what is analyzed, and files without the fixed part."""

import math
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.effects import interpretation
from pyrostoch.effects.meeting import scrambled_examples_meet

N, TOKENS, WORDS, WIDTH = 24, 6, 30, 16
PRIOR = {"*.lora_[AB].weight": ps.priors.Normal(0, 0.5)}


class Adapted(nn.Module):
    """A fixed linear layer plus a product of two small ones, as in LoRA."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.layer(x) + 2.0 * self.lora_B(self.lora_A(x))


class Encoder(nn.Module):
    """Words, one layer of them with an adapter, their mean, and a head with one."""

    passes: list[int] = []  # of the class, since the analyses restore what a network itself holds

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH).requires_grad_(False)
        self.body = Adapted(nn.Linear(WIDTH, WIDTH))
        self.places = nn.Embedding(TOKENS, WIDTH).requires_grad_(False)
        self.register_buffer("order", torch.arange(TOKENS))
        self.norm = nn.LayerNorm(WIDTH).requires_grad_(False)
        self.head = Adapted(nn.Linear(WIDTH, 3))
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, tokens):
        self.passes.append(len(tokens))
        return (
            self.head(self.norm(torch.tanh(self.body(self.words(tokens) + self.places(self.order)))).mean(1))
            + self.shift
        )


def build(left_out=False, seed=0):
    torch.manual_seed(seed)
    model = ps.BayesianModel(Encoder(), prior=PRIOR, likelihood=ps.likelihoods.Categorical(), num_data=N)
    if left_out:
        ps.leave_out_fixed(model)
    return model, ps.guides.Additive(model, init_scale=0.1)


@pytest.fixture
def data():
    return torch.randint(0, WORDS, (N, TOKENS)), torch.randint(0, 3, (N,))


SETTINGS = dict(batch_size=8, lr=1e-2, schedule="constant", seed=0, compile=False, progress=False)


def test_adapters_are_random_and_what_is_fixed_stays_bit_for_bit(data):
    model, guide = build()
    assert list(model.sites) == [f"{part}.lora_{which}.weight" for part in ("body", "head") for which in "AB"]
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    ps.fit(model, guide, data, epochs=2, **SETTINGS)
    changed = [name for name, value in model.net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["shift"]  # the draws replace the adapters, whose own values are where the guide started
    treatments = {row.site: row.treatment for row in ps.decompose(model, guide, data).sites}
    assert [treatments[name] for name in model.sites] == ["shared (sequence)"] * 2 + ["local (exact)"] * 2


def test_a_step_is_the_one_by_hand(data):
    (model, guide), (x, y) = build(), data
    with torch.no_grad():
        for name in model.sites:
            guide.parameters_for(name)["loc"].normal_(0, 0.3)
    torch.manual_seed(3)
    loss = ps.ELBO(estimator="shared")(model, guide)(x[:8], y[:8])
    loss.backward()
    torch.manual_seed(3)
    by_hand, weights, kl = {}, {}, 0.0
    for name in model.sites:
        loc, log_scale = (guide.parameters_for(name)[key].detach().requires_grad_() for key in ("loc", "log_scale"))
        by_hand[name] = {"loc": loc, "log_scale": log_scale}
        scale = log_scale.exp()
        weights[name] = loc + scale * torch.randn(loc.shape)
        kl = kl + (((scale / 0.5) ** 2 + (loc / 0.5) ** 2 - 1) / 2 - (scale / 0.5).log()).sum()
    logits = torch.func.functional_call(model.net, weights, (x[:8],))
    expected = F.cross_entropy(logits, y[:8], reduction="sum") * N / 8 + kl
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameters in by_hand.items():
        for key, value in parameters.items():
            assert torch.allclose(guide.parameters_for(name)[key].grad, value.grad, rtol=1e-3, atol=1e-4), (name, key)


def test_local_draws_of_an_adapter_have_the_moments_of_whole_draws():
    draws, layer, x = 20_000, Adapted(nn.Linear(4, 2)), torch.randn(4)
    model = ps.BayesianModel(nn.Sequential(layer), prior=PRIOR, likelihood=ps.likelihoods.Gaussian(1.0), num_data=draws)
    guide = ps.guides.Additive(model, init_loc=0.4, init_scale=0.3)
    (a, b) = (guide.site_distribution(name) for name in model.sites)
    hidden = (a.mean @ x, a.variance @ x.square())
    mean = layer.layer(x) + 2 * (b.mean @ hidden[0])
    variance = 4 * (b.variance @ (hidden[0].square() + hidden[1]) + b.mean.square() @ hidden[1])
    with ps.effects.LocalReparameterization() as local, torch.no_grad():
        local_outputs = model.outputs(x.expand(draws, 4), guide())
    assert set(local.treatments.values()) == {"local (exact)"}
    whole = []
    with torch.no_grad():
        for _ in range(2000):
            w = {name.removeprefix("0."): value for name, value in guide().items()}
            whole.append(torch.func.functional_call(layer, w, (x,)))
    for outputs in (local_outputs, torch.stack(whole)):
        error = (variance / len(outputs)).sqrt()
        assert ((outputs.mean(0) - mean.detach()).abs() < 5 * error).all()
        fourth = (outputs - outputs.mean(0)).pow(4).mean(0)
        spread = ((fourth - variance.square()).clamp(min=0) / len(outputs)).sqrt()
        assert ((outputs.var(0) - variance.detach()).abs() < 5 * spread).all()


def test_only_weights_that_could_be_replaced_are_analyzed(monkeypatch, data):
    asked = []

    def recorded(net, weights, *rest):
        asked.append(list(weights))
        return found(net, weights, *rest)

    found = interpretation.obstacles
    monkeypatch.setattr(interpretation, "obstacles", recorded)
    (model, guide), (x, y) = build(), data
    tokens, head = ([name for name in model.sites if part in name] for part in ("body", "head"))
    for estimator, expected in (("local", [head]), ("local", []), ("flipout", [tokens]), ("flipout", [])):
        asked.clear()
        ps.ELBO(estimator=estimator)(model, guide)(x[:8], y[:8])
        assert asked == expected
    asked.clear()
    ps.ELBO(estimator="flipout")(model, guide)(x, y)  # more examples: all of its weights anew
    ps.ELBO(estimator="local")(model, guide)(x, y)
    assert asked == [[*tokens, *head]]


def test_whether_examples_meet_is_found_once_for_a_likelihood_of_the_library(data):
    model, guide = build()
    Encoder.passes.clear()
    assert not model.examples_meet(*data)
    assert len(Encoder.passes) > 10
    Encoder.passes.clear()
    ps.fit(model, guide, data, epochs=1, **SETTINGS)
    ps.predict(model, guide, data[0], mode="mc:2")
    Encoder.passes.clear()
    assert not model.examples_meet(data[0])
    assert Encoder.passes == []


def test_whole_numbers_are_not_run_again_in_another_order(data):
    Encoder.passes.clear()
    assert not scrambled_examples_meet(Encoder(), (data[0],))
    assert Encoder.passes == []


def test_a_run_without_the_fixed_part_ends_in_the_same_bits(tmp_path, data):
    sizes, ends = {}, {}
    for left_out in (False, True):
        path = tmp_path / f"{left_out}.safetensors"
        model, guide = build(left_out)
        ps.fit(model, guide, data, epochs=2, checkpoint=path, **SETTINGS)
        model, guide = build(left_out)
        ps.fit(model, guide, data, epochs=4, checkpoint=path, resume=True, **SETTINGS)
        sizes[left_out] = os.path.getsize(path)
        ends[left_out] = {**model.state_dict(), **guide.state_dict()}
        assert ps.load(path, *build(left_out))["training"]["epoch"] == 4
    assert all(torch.equal(value, ends[True][name]) for name, value in ends[False].items())
    fixed = [value for value in model.net.parameters() if not value.requires_grad]
    random = sum(math.prod(site.init.shape) for site in model.sites.values())
    assert sizes[False] - sizes[True] > 4 * (sum(value.numel() for value in fixed) - random) * 0.9


def test_files_without_the_fixed_part_belong_to_it(tmp_path):
    path = tmp_path / "net.safetensors"
    model, guide = build(left_out=True)
    with torch.no_grad():
        guide.parameters_for("head.lora_B.weight")["loc"].fill_(7.0)
    ps.save(path, model, guide)
    other, other_guide = build(left_out=True)
    ps.load(path, other, other_guide)
    assert (other_guide.parameters_for("head.lora_B.weight")["loc"] == 7).all()
    with pytest.raises(ps.training.CheckpointError, match="fixed parameters left out, of checksum"):
        ps.load(path, *build(left_out=True, seed=1))
    with pytest.raises(ps.training.CheckpointError, match="fixed parameters left out"):
        ps.load(path, *build())


def test_what_is_left_out_must_stay_fixed(data):
    model, guide = build(left_out=True)
    model.net.words.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'words.weight' were fixed .* and are trained now"):
        ps.fit(model, guide, data, epochs=1, **SETTINGS)
    with pytest.raises(ValueError, match="no parameter of Linear is fixed"):
        ps.leave_out_fixed(
            ps.BayesianModel(
                nn.Linear(2, 1), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=1
            )
        )
    with pytest.raises(TypeError, match="expected a BayesianModel, got Linear"):
        ps.leave_out_fixed(nn.Linear(2, 1))


def test_a_network_that_writes_into_what_is_left_out_is_refused(data):
    class Moving(Encoder):
        def forward(self, tokens):
            if self.training:
                self.words.weight.data.mul_(0.99)
            return super().forward(tokens)

    model = ps.BayesianModel(Moving(), prior=PRIOR, likelihood=ps.likelihoods.Categorical(), num_data=N)
    ps.leave_out_fixed(model)
    with pytest.raises(RuntimeError, match="the fixed parameters of Moving have changed"):
        ps.fit(model, ps.guides.Additive(model), data, epochs=1, **SETTINGS)
