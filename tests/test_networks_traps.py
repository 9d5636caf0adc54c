"""Networks that could be wrong silently: checkpointing, changing control flow, mixed precision, unusable parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import pyrostoch as ps
from pyrostoch.effects import checkpoint
from pyrostoch.layers import Linear, MCDropout
from pyrostoch.priors import Normal

each_estimator = pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])


def make_model(net: nn.Module, prior: Any = None) -> ps.BayesianModel:
    prior = {"*": Normal()} if prior is None else prior
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(0.5), num_data=60)


class Parts(nn.Module):
    """A network in three parts whose middle may be checkpointed."""

    def __init__(self, middle: nn.Module, checkpointing: Callable[..., Tensor] | None, width: int = 3) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(width, width), middle, nn.Linear(width, 2)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = self.middle(h) if self.checkpointing is None else self.checkpointing(self.middle, h)
        return self.last(h)


class MeanOverTokens(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1)


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), MCDropout(0.5), nn.Linear(8, 3)),
    # The first linear layer is applied to a sequence, so it falls back to one shared draw.
    "sequence": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Linear(1, 8), nn.Tanh(), MeanOverTokens(), nn.Linear(8, 3), nn.Tanh()
    ),
    "random layers": lambda: nn.Sequential(Linear(3, 8, prior=Normal()), nn.Tanh(), Linear(8, 3, prior=Normal())),
}


def gradients(
    middle: str, estimator: str, checkpointing: Callable[..., Tensor] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    net = Parts(MIDDLES[middle](), checkpointing).double()
    model = make_model(net)
    guide = ps.guides.Additive(model, init_scale=0.3)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    loss = ps.ELBO(estimator, num_particles=2)(model, guide)
    torch.manual_seed(1)
    value = loss(x, y)
    value.backward()
    return value.detach(), {name: parameter.grad for name, parameter in guide.named_parameters()}


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout", "marginal"])
@pytest.mark.parametrize("middle", MIDDLES)
def test_checkpointing_changes_no_gradient(middle, estimator):
    value, expected = gradients(middle, estimator, None)
    checkpointed_value, checkpointed = gradients(middle, estimator, checkpoint)
    assert checkpointed_value == value
    for name, gradient in expected.items():
        assert gradient.any() and torch.allclose(checkpointed[name], gradient, rtol=1e-12, atol=1e-12), name


@each_estimator
@pytest.mark.parametrize("reentrant", [True, False])
def test_torchs_checkpointing_is_refused(estimator, reentrant):
    net = Parts(MIDDLES["dense"](), lambda middle, h: torch_checkpoint(middle, h, use_reentrant=reentrant))
    model = make_model(net)
    loss = ps.ELBO(estimator)(model, ps.guides.Additive(model))
    x, y = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2)
    with pytest.raises(RuntimeError, match=r"wrong gradients.*pyrostoch\.effects\.checkpoint"):
        loss(x, y)
    if not reentrant:  # the reentrant form warns if nothing needs a gradient
        with torch.no_grad():
            assert torch.isfinite(loss(x, y))


def test_checkpoint_outside_a_model_is_torchs():
    x = torch.randn(4, 3, requires_grad=True)
    net = Parts(MIDDLES["dense"](), checkpoint)
    net(x).sum().backward()
    kept = x.grad
    x.grad = None
    net.checkpointing = None
    net(x).sum().backward()
    assert torch.allclose(kept, x.grad)


class Changing(nn.Module):
    """Applies its layer `repeat` times."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.repeat = nn.Linear(3, 3), 1

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.repeat):
            x = self.fc(x)
        return x


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_second_use_in_a_later_pass_is_refused(estimator):
    net = Changing()
    model = make_model(net)
    loss = ps.ELBO(estimator)(model, ps.guides.Additive(model))
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    loss(x, y)
    net.repeat = 2
    with pytest.raises(RuntimeError, match=r"'fc.weight' 2 times.*use estimator='shared'"):
        loss(x, y)
    net.repeat = 0
    assert torch.isfinite(loss(x, y))  # a pass that leaves a weight out needs none of its draws
    net.repeat = 1
    loss(x, y)


def test_changing_control_flow_is_followed_by_the_shared_sample():
    net = Changing()
    model = make_model(net)
    loss = ps.ELBO("shared")(model, ps.guides.Additive(model))
    for net.repeat in (1, 2, 3):
        assert torch.isfinite(loss(torch.randn(6, 3), torch.randn(6, 3)))


@each_estimator
def test_bfloat16_autocast(estimator):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 16), nn.Tanh(), nn.Linear(16, 2))
    model = make_model(net)
    guide = ps.guides.Additive(model, init_scale=0.05)
    loss = ps.ELBO(estimator)(model, guide)
    x, y = torch.randn(16, 1, 6, 6), torch.randn(16, 2)
    found = []
    for enabled in (False, True):
        guide.zero_grad()
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(x, y)
        value.backward()
        found.append((value.item(), {name: parameter.grad.clone() for name, parameter in guide.named_parameters()}))
    (exact, expected), (close, gradients) = found
    assert exact != close and abs(close / exact - 1) < 0.02
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32 and torch.isfinite(gradient).all(), name
        assert (gradient - expected[name]).norm() < 0.1 * expected[name].norm(), name


def refuse_to_compile(graph, inputs):
    raise AssertionError("compiled the interception of torch functions")


WRAPPED = {
    "whole": lambda net: torch.compile(net, backend=refuse_to_compile),
    "part": lambda net: nn.Sequential(net[0], torch.compile(net[1], backend=refuse_to_compile), net[2]),
    "in place": lambda net: net.compile(backend=refuse_to_compile) or net,
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_compiled_network_keeps_its_names_and_numbers(wrap):
    net = nn.Sequential(nn.Linear(3, 8), ps.layers.StochasticLinear(8, 8, prior="standard"), nn.Linear(8, 2))
    found = {}
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    for name, used in {"eager": net, "compiled": WRAPPED[wrap](net)}.items():
        for estimator in ("shared", "local"):
            model = make_model(used)
            guide = ps.guides.Additive(model, init_scale=0.1)
            assert list(model.sites)[:2] == ["0.weight", "0.bias"] and list(model.sites)[-1] == "2.bias"
            torch.manual_seed(1)
            terms = ps.ELBO(estimator).terms(model, guide, x, y)
            terms.data.backward()
            gradient = guide.parameters_for("0.weight")["loc"].grad
            rows = ps.compare(model, guide, (x, y), modes=("mean", "noise-free", "moments", "mc:3"), seed=0).rows
            found[name, estimator] = terms.data.detach(), gradient, terms.treatments, [row.nll for row in rows]
    for estimator in ("shared", "local"):
        one, two = found["eager", estimator], found["compiled", estimator]
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and one[2:] == two[2:]


class Holding(nn.Module):
    """Has a parameter that its forward pass never uses, or that cannot be random."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.fc, self.odd = nn.Linear(3, 2), parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "'0.weight' of LazyLinear.*no shape yet"),
        (lambda: Holding(nn.Parameter(torch.zeros(2, dtype=torch.complex64))), "'odd' of Holding.*complex64"),
        (lambda: Holding(nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)), "'odd'.*int32"),
        (lambda: Holding(nn.Parameter(torch.zeros(0, 3))), r"'odd' of Holding.*empty, of shape \(0, 3\)"),
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 2))), "'0.weight'.*scripted module"),
        (lambda: nn.Sequential(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3))), "'0.weight'.*scripted module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:DeprecationWarning")
def test_parameters_that_cannot_be_drawn_are_refused_by_name(make, message):
    net = make()
    with pytest.raises(ValueError, match=message):
        make_model(net, {"odd": Normal()}) if isinstance(net, Holding) else make_model(net)
    assert all(p.requires_grad for p in net.parameters() if p.is_floating_point()), "a refusal changes nothing"


@each_estimator
def test_unused_parameters_are_warned_of_by_name(estimator):
    model = make_model(Holding(nn.Parameter(torch.zeros(2))))
    loss = ps.ELBO(estimator)(model, ps.guides.Additive(model))
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    for _ in range(99):
        loss(x, y)
    assert model.unused_weights() == ["odd"]
    with pytest.warns(
        UserWarning, match=r"'odd' of Holding: the first 100 forward passes did not use.*\{'odd': None\}"
    ):
        loss(x, y)
    net = Holding(nn.Parameter(torch.zeros(2)))
    model = make_model(net, {"*": Normal(), "odd": None})
    ps.ELBO(estimator)(model, ps.guides.Additive(model))(torch.randn(6, 3), torch.randn(6, 2)).backward()


def _block() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0)


class HeldTwice(nn.Module):
    """A module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def _twice() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


HELD = {
    "Sequential": (_twice, (3,)),
    "two names": (HeldTwice, (3,)),
    "a block three times": (lambda: nn.Sequential(*[_block()] * 3), (2, 4)),
}


@pytest.mark.parametrize("name", HELD)
def test_a_module_in_two_places_keeps_its_parameters_whatever_happens(name):
    make, shape = HELD[name]
    net, x = make(), torch.randn(6, *shape)
    before = {key: (p, p.detach().clone()) for key, p in net.named_parameters()}
    model = ps.BayesianModel(net, prior=Normal(), likelihood=ps.likelihoods.Gaussian(1.0), num_data=6)
    guide = ps.guides.Additive(model, init_scale=0.1)
    twin = copy.deepcopy(net)
    for estimator in ("shared", "local", "flipout"):
        ps.ELBO(estimator)(model, guide)(x, torch.zeros(6, *shape)).backward()
    draw = {site: value.detach() for site, value in guide().items()}
    twin.load_state_dict({**twin.state_dict(), **draw}, strict=False)
    with torch.no_grad():
        for alias, value in twin.named_parameters(remove_duplicate=False):
            assert alias in dict(net.named_parameters(remove_duplicate=False)) and value is not None
        assert torch.allclose(model.outputs(x, draw), twin(x), atol=1e-5)

    def fail(*_):
        raise KeyError("in the middle")

    # The layers; what lies inside a fused attention is not called.
    for part in (part for part in net.modules() if type(part) in (nn.Linear, nn.LayerNorm)):
        hook = part.register_forward_pre_hook(fail)
        with pytest.raises(KeyError):
            model.outputs(x, draw)
        hook.remove()
    assert dict(net.named_parameters()).keys() == before.keys()
    for key, p in net.named_parameters():
        assert p is before[key][0] and torch.equal(p, before[key][1])
