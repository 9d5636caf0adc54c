"""Which weights may be replaced by their output's distribution: networks of many kinds, judged as draws judge them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.effects.repeatable import separating_sets
from pyrostoch.effects.separation import obstacles
from pyrostoch.effects.usage import weight_usage
from pyrostoch.layers import Ternary


class Then(nn.Module):
    """A linear layer, and a function of its output and of the module."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.l, self.function = nn.Linear(3, 4), function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.l(x), self)


class Derivative(nn.Module):
    """Returns the derivative of an energy by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.o = nn.Linear(3, 6), nn.Linear(6, 1, bias=False)

    def energy(self, x: Tensor) -> Tensor:
        return self.o(self.l(x).tanh()).sum()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.energy(x), x, create_graph=True)[0]


class Functional(Derivative):
    """The same by torch.func."""

    def forward(self, x: Tensor) -> Tensor:
        return -torch.func.grad(self.energy)(x)


class Mapped(nn.Linear):
    """Calls the layer for each example by torch.vmap."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(super().forward)(x)


class Around(torch.autograd.Function):
    """A custom function around F.linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return Around.apply(x, self.l.weight).tanh()


class Prototypes(nn.Module):
    """A layer applied to rows that are not the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.l = nn.Parameter(torch.randn(6, 3)), nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.l(self.z).T


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Any = None


def mixup(h: Tensor, net: nn.Module) -> Tensor:
    return 0.7 * h + 0.3 * h[torch.randperm(len(h))] if net.training else h


def autocast_inside(h: Tensor, net: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(h.tanh(), torch.ones(2, 4, dtype=h.dtype)).float()


def shuffled_by_python(h: Tensor, net: nn.Module) -> Tensor:
    order = list(range(len(h)))
    random.shuffle(order)
    return h + h[order]


MEET: dict[str, Callable[..., Any]] = {
    "pairs a fixed distance apart": lambda h, net: h - h.roll(len(h) // 2, 0),
    "neighbors": lambda h, net: h + h.roll(2, 0),
    "beyond sixteen rows": lambda h, net: h if len(h) < 25 else h + h.roll(24, 0),
    "a detached mean": lambda h, net: h - h.mean(0).detach(),
    "ranks": lambda h, net: torch.cat([h, h.argsort(0).argsort(0).to(h)], 1),
    "a gate by the batch's sum": lambda h, net: h * (h.sum() > 0),
    "cumsum": lambda h, net: h.cumsum(0),
    "attention over the batch": lambda h, net: torch.softmax(h @ h.T, -1) @ h,
    "a maximum": lambda h, net: h / h.abs().amax(0),
    "batch statistics": lambda h, net: F.batch_norm(h, None, None, training=True),
    "in place": lambda h, net: h.sub_(h.mean(0)),
    "one number for the batch": lambda h, net: h.square().mean(),
    "an auxiliary loss": lambda h, net: (h, h.square().mean()),
    "mixup in training": mixup,
    "an order drawn by Python": shuffled_by_python,
}
MEET |= {
    "beside the logit of a masked class": lambda h, net: (h - h.mean(0)).masked_fill(
        torch.tensor([False, False, False, True]), -1e9
    ),
    "beside a large constant": lambda h, net: 1e6 + h - h.mean(0),
    "in half precision": lambda h, net: (
        (50 + h - h.mean(0)).bfloat16().float() if h.dtype != torch.float64 else h - h.mean(0)
    ),
    "behind a gate that is nearly closed": lambda h, net: h + 1e-6 * (h - h.mean(0)),
    "in some passes only": lambda h, net: h - h.mean(0) if torch.rand(()) < 0.5 else h,
    "in a complex output": lambda h, net: {"h": h, "spectrum": torch.fft.fft(h, dim=0)},
}
APART: dict[str, Callable[..., Any]] = {
    "softmax within an example": lambda h, net: h.softmax(-1),
    "in place": lambda h, net: h.mul_(2.0).relu_(),
    "a dictionary": lambda h, net: {"logits": h, "ids": torch.arange(len(h))},
    "a dataclass": lambda h, net: Output(h, (h.relu(),)),
    "dropout": lambda h, net: F.dropout(h, 0.4, net.training),
    "ternary neurons": lambda h, net: net.neurons(h),
    "a constant beside it": lambda h, net: (h, torch.ones(())),
    "masked by infinity": lambda h, net: h.masked_fill(torch.tensor([False, False, False, True]), -torch.inf),
    "autocast inside": lambda h, net: autocast_inside(h, net),
    "mixed precision inside": lambda h, net: h.bfloat16().float(),
}


def judged(net: nn.Module, x: Tensor, *, training: bool = True) -> dict[str, str]:
    """The reason for each weight that may not be replaced."""
    net.train(training)
    weights = {name: p.detach() for name, p in net.named_parameters() if name.endswith("weight")}
    uses = weight_usage(net, weights, (x,), {}).uses
    single = [name for name, found in uses.items() if len(found) == 1 and found[0].role != "other"]
    return obstacles(net, single, (x,), {}, len(x))


def test_models_that_count_examples_on_other_axes_do_not_share_results():
    net = Then(lambda h, net: h.softmax(1))
    treatments = []
    for in_dims in ((None,), 0):
        with ps.effects.LocalReparameterization() as local:
            value = pyro.sample("w", dist.Normal(torch.zeros(4, 3), 1.0).to_event(2), infer=ps.effects.independent())
            x = torch.randn(8, 3)
            ps.effects.call_network(net, {"l.weight": value}, (x,), sites={"l.weight": "w"}, in_dims=in_dims)
        treatments.append(local.treatments["w"])
    assert treatments == ["shared (sequence)", "local (exact)"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_networks_too_large_for_double_precision_are_judged_in_their_own(monkeypatch, dtype):
    monkeypatch.setattr("pyrostoch.effects.perturbed._MAX_DOUBLE", 10)
    x = torch.randn(20, 3, dtype=dtype)
    apart = Then(lambda h, net: h.softmax(1)).to(dtype)
    meet = Then(lambda h, net: h + 0.05 * h.mean(0)).to(dtype)
    assert judged(apart, x) == {}
    assert judged(meet, x) == {"l.weight": "examples meet"}


@pytest.mark.parametrize("count", [8, 60])
@pytest.mark.parametrize("name", MEET)
def test_examples_that_meet_are_found(name, count):
    if name == "beyond sixteen rows" and count == 8:
        assert not judged(Then(MEET[name]), torch.randn(count, 3))
        return
    assert set(judged(Then(MEET[name]), torch.randn(count, 3))) == {"l.weight"}


@pytest.mark.parametrize("count", [1, 2, 8, 60])
@pytest.mark.parametrize("name", APART)
def test_examples_that_stay_apart_are_shown_to(name, count):
    assert judged(Then(APART[name], neurons=Ternary()), torch.randn(count, 3)) == {}


def test_mixup_is_seen_in_training_only():
    assert judged(Then(mixup), torch.randn(8, 3), training=True) == {"l.weight": "examples meet"}
    assert judged(Then(mixup), torch.randn(8, 3), training=False) == {}


def test_a_branch_that_begins_at_zero_does_not_hide():
    def function(h: Tensor, net: Any) -> Tensor:
        return h + net.gate * (torch.softmax(h @ h.T, -1) @ h)

    assert judged(Then(function, gate=nn.Parameter(torch.zeros(()))), torch.randn(8, 3)) == {
        "l.weight": "examples meet"
    }


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Derivative, "read elsewhere"),
        (Functional, "inside torch.func"),
        (Mapped, "inside torch.func"),
        (Custom, "inside a custom autograd function"),
        (Prototypes, "6 rows for 8 examples"),
        (lambda: Then(lambda h, net: h / net.l.weight.detach().norm()), None),
        (lambda: Then(lambda h, net: h.detach() + net.l.bias), "no gradient"),
    ],
)
def test_weights_that_enter_otherwise_are_found(make, reason):
    found = judged(make(), torch.randn(8, 3))
    assert ("l.weight" not in found) if reason is None else reason in found.get("l.weight", found.get("weight", ""))


def test_rows_that_happen_to_be_as_many_as_examples_are_found():
    assert judged(Prototypes(), torch.randn(6, 3)) == {"l.weight": "examples meet"}


def test_only_the_layers_in_front_of_a_meeting_are_shared():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).tanh()
            return self.b(h - h.mean(0))

    assert judged(Net(), torch.randn(20, 3)) == {"a.weight": "examples meet"}


def test_batch_normalization_does_not_count_and_its_statistics_stay():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(20, 1, 8, 8)
    state = torch.get_rng_state()
    assert judged(net, x) == {}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and net[1].training


def test_what_cannot_be_analyzed_is_shared_and_says_so():
    class Fragile(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if bool(self.bias.detach().any()):
                raise KeyError("another bias")
            return super().forward(x)

    net = Fragile(3, 2)
    nn.init.zeros_(net.bias)
    assert judged(net, torch.randn(8, 3)) == {"weight": "cannot be analyzed: KeyError"}


@pytest.mark.parametrize("count", [2, 3, 6, 7, 16, 35, 100])
def test_sets_separate_every_ordered_pair(count):
    members = torch.stack(separating_sets(count)).double()
    assert ((members.T @ (1.0 - members)) + torch.eye(count) > 0).all()
    assert {16: 6, 100: 9}.get(count, len(members)) == len(members)


@pytest.mark.parametrize("make", [Derivative, Custom, Prototypes, Functional])
@pytest.mark.parametrize("estimator", ["local", "marginal", "flipout"])
def test_variances_are_those_of_whole_networks(make, estimator):
    x = torch.randn(8, 3)
    model = ps.BayesianModel(make(), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.1), num_data=8)
    guide = ps.guides.Additive(model, init_scale=0.3)
    with torch.no_grad():
        draws = torch.stack([model.outputs(x, guide()) for _ in range(500)])
    y = draws.mean(0)
    terms = torch.distributions.Normal(draws, 0.1).log_prob(y).sum((1, 2))
    found = ps.decompose(model, guide, (x, y), num_samples=500, estimator=estimator)
    error = ((terms.std() / 500**0.5) ** 2 + found.data_stderr**2) ** 0.5
    assert abs(found.data - terms.mean()) <= 5 * error
    assert all(row.treatment.startswith("shared") for row in found.sites)


def test_gradients_behind_a_custom_function_are_those_of_shared_draws():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(2, 8, bias=False), nn.Parameter(torch.randn(8, 8) * 0.3)
            self.o = nn.Linear(8, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(torch.tanh(Around.apply(torch.tanh(self.a(x)), self.w)))

    x = torch.randn(32, 2)
    model = ps.BayesianModel(Net(), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=32)
    guide = ps.guides.Additive(model, init_scale=0.1)
    found = {}
    for estimator in ("shared", "local"):
        guide.zero_grad()
        for _ in range(300):
            (-ps.ELBO(estimator).terms(model, guide, x, x[:, :1].sin()).data / 300).backward()
        found[estimator] = {site: guide.parameters_for(site)["loc"].grad.clone().flatten() for site in model.sites}
    for site, gradient in found["shared"].items():
        assert F.cosine_similarity(gradient, found["local"][site], dim=0) > 0.9, site


class Keeping(nn.Linear):
    """Keeps things between calls: a counter, a history, a cache by size, a running mean in a plain tensor."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.count, self.history, self.cache, self.mean = 0, [], {}, torch.zeros(2)
        self.register_buffer("factor", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if len(x) not in self.cache:
            self.cache[len(x)] = 2 * self.factor
        self.count += 1
        self.history.append(out.detach().mean())
        self.mean.mul_(0.9).add_(0.1 * out.detach().mean(0))
        return out * self.cache[len(x)]


def test_what_a_network_keeps_between_calls_is_restored():
    net = Keeping()
    judged(net, torch.randn(40, 3))
    assert (net.count, net.history, net.cache) == (0, [], {}) and not net.mean.any()


class Switched(nn.Linear):
    """Examples meet if a flag among the inputs says so, or in training of a part."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.part = nn.Dropout(0.0)

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        h = super().forward(x)
        return h - h.mean(0) if flag or self.part.training else h


def test_options_and_modes_of_parts_are_judged_apart():
    net = Switched().eval()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=8)
    guide, x, y = ps.guides.Additive(model), torch.randn(8, 3), torch.zeros(8, 2)

    def treatment(inputs: Any) -> str:
        return ps.ELBO("local").terms(model, guide, inputs, y).treatments["weight"]

    model.eval()
    assert treatment((x, False)) == "local (exact)" and treatment((x, True)) == "shared (examples meet)"
    net.part.train()
    assert treatment((x, False)) == "shared (examples meet)"
