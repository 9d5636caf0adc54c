"""Unchanged torch networks of many kinds with random weights: the drawn weights are the ones that are used."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import pyrostoch as ps
from pyrostoch.effects import SharedSample
from pyrostoch.priors import Normal


class FunctionNetwork(nn.Module):
    """A network whose forward pass is a function of itself and its input."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 2)


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    return net


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)


def attend(net: nn.Module, x: Tensor) -> Tensor:
    return net.attention(x, x, x, need_weights=False)[0]


# The network, the shape of one example, and how the treatment of each site begins with the estimator "local".
SHARED = "shared"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str] | str]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), "local (exact)"),
    "in-place relu": (
        lambda: nn.Sequential(nn.Linear(3, 9), nn.ReLU(inplace=True), nn.Linear(9, 2)),
        (3,),
        "local (exact)",
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="circular"),
            nn.ELU(),
            nn.Conv2d(4, 3, (2, 3), dilation=(2, 1), stride=(1, 2)),
            nn.Flatten(),
            nn.Linear(18, 2),
        ),
        (2, 5, 6),
        {"0": "local (factorized", "2": "local (factorized", "4": "local (exact)"},
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2, output_padding=1), nn.Conv2d(4, 1, 8)),
        (2, 3, 3),
        {"0": "local (factorized", "1": "local (exact)"},
    ),
    "lstm": (lambda: FunctionNetwork(lambda n, x: n.rnn(x)[0], rnn=nn.LSTM(3, 4, 2, batch_first=True)), (5, 3), SHARED),
    "gru": (
        lambda: FunctionNetwork(lambda n, x: n.rnn(x)[0], rnn=nn.GRU(3, 4, bidirectional=True, batch_first=True)),
        (5, 3),
        SHARED,
    ),
    "rnn": (lambda: FunctionNetwork(lambda n, x: n.rnn(x)[1][0], rnn=nn.RNN(3, 4, batch_first=True)), (5, 3), SHARED),
    "attention": (
        lambda: FunctionNetwork(attend, attention=nn.MultiheadAttention(4, 2, batch_first=True)),
        (5, 4),
        SHARED,
    ),
    "attention, eval": (
        lambda: FunctionNetwork(attend, attention=nn.MultiheadAttention(4, 2, batch_first=True)).eval(),
        (5, 4),
        SHARED,
    ),
    "transformer": (encoder, (5, 4), SHARED),
    "transformer, eval": (lambda: encoder().eval(), (5, 4), SHARED),
    "embedding": (
        lambda: FunctionNetwork(
            lambda n, x: n.out(n.table(x.abs().long()).mean(1)), table=nn.Embedding(9, 4), out=nn.Linear(4, 2)
        ),
        (3,),
        {"table": SHARED, "out": "local (exact)"},
    ),
    "bilinear": (lambda: FunctionNetwork(lambda n, x: n.pair(x, x), pair=nn.Bilinear(3, 3, 2)), (3,), SHARED),
    "tied": (tied, (3,), {"0.weight": "shared (used 2 times)", "0.bias": "local", "2.bias": "local"}),
    "loop": (
        lambda: FunctionNetwork(lambda n, x: n.fc(torch.tanh(n.fc(x))), fc=nn.Linear(3, 3)),
        (3,),
        "shared (used 2 times)",
    ),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 2, bias=False)), (3,), SHARED),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(3, 3, bias=False)), (3,), SHARED),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)),
        (3,),
        "local (exact)",
    ),
    "transpose": (lambda: FunctionNetwork(lambda n, x: x @ n.w.T, w=weights(2, 3)), (3,), SHARED),
    "matmul": (lambda: FunctionNetwork(lambda n, x: torch.matmul(x, n.w), w=weights(3, 2)), (3,), SHARED),
    "einsum": (lambda: FunctionNetwork(lambda n, x: torch.einsum("bi,oi->bo", x, n.w), w=weights(2, 3)), (3,), SHARED),
    "addmm": (
        lambda: FunctionNetwork(lambda n, x: torch.addmm(n.b, x, n.w), w=weights(3, 2), b=weights(2)),
        (3,),
        SHARED,
    ),
    "functional, keywords": (
        lambda: FunctionNetwork(lambda n, x: F.linear(bias=n.b, weight=n.w, input=x), w=weights(2, 3), b=weights(2)),
        (3,),
        "local (exact)",
    ),
    "functional convolution": (
        lambda: FunctionNetwork(lambda n, x: torch.conv1d(x, weight=n.w, padding=1).sum(2), w=weights(2, 3, 3)),
        (3, 4),
        "local (factorized over 4",
    ),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


def build(network: str) -> tuple[ps.BayesianModel, Tensor, Tensor]:
    make, shape, _ = NETWORKS[network]
    net, x = make(), 2 * torch.randn(6, *shape)
    out = copy.deepcopy(net)(x)
    model = ps.BayesianModel(net, prior={"*": Normal()}, likelihood=ps.likelihoods.Gaussian(0.5), num_data=60)
    return model, x, torch.randn(out.shape)


def expected_treatment(site: str, treatments: dict[str, str] | str) -> str:
    if isinstance(treatments, str):
        return treatments
    return treatments[site] if site in treatments else treatments[site.rpartition(".")[0]]


@each_network
def test_every_parameter_is_a_site_and_the_drawn_weights_are_used(network):
    model, x, _ = build(network)
    twin = copy.deepcopy(model.net)
    norms = {f"{name}.{own}" for name, part in twin.named_modules() if "Norm" in type(part).__name__
             for own, _ in part.named_parameters(recurse=False)}  # fmt: skip
    names = [name for name, _ in twin.named_parameters() if name not in norms]
    assert list(model.sites) == names
    outputs = []
    for _ in range(2):
        draw = {name: 0.5 * torch.randn_like(site.init) for name, site in model.sites.items()}
        with SharedSample(), poutine.condition(data=draw), torch.no_grad():
            outputs.append(model.observation(x).mean)
            for name, value in draw.items():
                twin.get_parameter(name).copy_(value)
            assert torch.allclose(outputs[-1], twin(x), atol=1e-5)
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])
@each_network
def test_gradients_reach_the_guide_with_every_estimator(network, estimator):
    model, x, y = build(network)
    guide = ps.guides.Additive(model, init_scale=0.3)
    terms = ps.ELBO(estimator).terms(model, guide, x, y)
    assert set(terms.treatments) == set(model.sites)
    if estimator == "local":
        for site, treatment in terms.treatments.items():
            assert treatment.startswith(expected_treatment(site, NETWORKS[network][2])), f"{site}: {treatment}"
    elif estimator == "shared":
        assert set(terms.treatments.values()) == {"shared"}
    else:
        flipped = {site for site, treatment in terms.treatments.items() if treatment == "flipout"}
        local = {site for site in model.sites if expected_treatment(site, NETWORKS[network][2]).startswith("local")}
        assert flipped == {site for site in local if not site.endswith(("bias", "b"))}
    terms.data.backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    assert all(parameter.grad is None for name, parameter in model.net.named_parameters() if name in model.sites)


@each_network
def test_the_gradient_of_a_shared_draw_is_the_networks_own(network):
    """With the noise known, the gradient of the mean is that of the plain network at the drawn weights."""
    model, x, y = build(network)
    guide = ps.guides.Additive(model, init_scale=0.1)
    twin = copy.deepcopy(model.net)
    torch.manual_seed(3)
    ps.ELBO("shared").terms(model, guide, x, y).data.backward()
    torch.manual_seed(3)
    for name, value in guide().items():
        twin.get_parameter(name).data.copy_(value)
        twin.get_parameter(name).requires_grad_(True)
    data = torch.distributions.Normal(twin(x), 0.5).log_prob(y).sum() * 10
    data.backward()
    for name in model.sites:
        gradient = guide.parameters_for(name)["loc"].grad
        expected = twin.get_parameter(name).grad
        assert torch.allclose(gradient, expected, atol=1e-5 * float(1 + expected.abs().max())), name


def test_tied_weights_are_one_site_and_both_uses_see_the_draw():
    model, x, _ = build("tied")
    assert list(model.sites) == ["0.weight", "0.bias", "2.bias"]
    zero = {name: torch.zeros_like(site.init) for name, site in model.sites.items()}
    draw = zero | {"0.weight": torch.randn(3, 3)}
    with poutine.condition(data=draw):
        out = model.observation(x).mean
    assert torch.allclose(out, torch.tanh(x @ draw["0.weight"].T) @ draw["0.weight"].T, atol=1e-6)
    assert model.net[0].weight is model.net[2].weight


@pytest.mark.parametrize("estimator", ["shared", "local", "flipout"])
@pytest.mark.parametrize("way", ["svi", "module"])
def test_batch_norm_sees_each_step_once(estimator, way):
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = ps.BayesianModel(net, prior=Normal(), likelihood=ps.likelihoods.Gaussian(0.5), num_data=60)
    guide = ps.guides.Additive(model)
    x, y = torch.randn(6, 3) + 5, torch.randn(6, 1)
    elbo = ps.ELBO(estimator)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    loss = elbo(model, guide)
    for count in (1, 2):
        if way == "svi":
            svi.step(x, y)
        else:
            loss(x, y).backward()
        assert [int(net[index].num_batches_tracked) for index in (0, 2)] == [count, count]
        assert torch.allclose(net[0].running_mean, x.mean(0) * (1 - 0.9**count), atol=1e-5)
    net.eval()
    before = copy.deepcopy(dict(net.named_buffers()))
    loss(x, y)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
