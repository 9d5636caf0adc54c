"""Laplace approximations with Kronecker factors, beside their definition by hand and beside the library laplace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laplace_twins import NOISE, Meeting, Twice, classes, ggn_by_hand, model_of, small, train, weights_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.guides import Laplace
from pyrostoch.likelihoods import Bernoulli, Categorical, Gaussian
from pyrostoch.training.kronecker_factors import kronecker_factors
from pyrostoch.training.log_joint import DataPasses

# The library laplace takes its factors from others, which warn of their own use of torch.
by_library = pytest.mark.filterwarnings("ignore")
EVERYWHERE: dict[str, Any] = {"*": ps.priors.Normal(0.0, 0.7), "*bias": ps.priors.Normal(0.0, 0.7)}


class Mean(nn.Module):
    """The mean over positions, after an operation in place."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x).flatten(2).mean(2)


class Attention(nn.Module):
    """Self-attention of one head, with a linear layer for each projection."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values, self.last = (nn.Linear(4, width) for width in (3, 3, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last((self.queries(x) @ self.keys(x).mT).softmax(-1) @ self.values(x))
        return found


def convolution(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, (3, 2), **settings), Mean(), nn.Linear(4, 3))


def images(*shape: int) -> Tensor:
    return torch.randn(8, *shape).double()


def cases() -> dict[str, tuple[nn.Module, Any, Tensor, Tensor]]:
    labels, x = torch.randint(3, (8,)), images(2, 5, 6)
    first = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 3, padding=1))
    normalized = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), Mean(), nn.Linear(4, 3))
    normalized.double()(1.0 + 2.0 * images(2, 5, 6))
    line = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), Mean(), nn.Linear(4, 3))
    volume = nn.Sequential(nn.Conv3d(1, 2, 2, padding=1), Mean(), nn.Linear(2, 3))
    noise = Gaussian(torch.tensor([0.3, 0.5, 1.0]).double())
    return {
        "convolution": (convolution(), Categorical(), x, labels),
        "stride, padding, dilation": (convolution(stride=2, padding=(1, 2), dilation=2), Categorical(), x, labels),
        "padding same, no bias": (convolution(padding="same", bias=False), Categorical(), x, labels),
        "circular padding": (convolution(padding=1, padding_mode="circular"), noise, x, torch.randn(8, 3).double()),
        "batch normalization": (normalized, Categorical(), x, labels),
        "one dimension": (line, Categorical(), images(2, 9), labels),
        "three dimensions": (volume, Bernoulli(), images(1, 3, 3, 3), torch.randint(2, (8, 3)).double()),
        "a class at each position": (first, Categorical(axis=1), x, torch.randint(3, (8, 5, 6))),
        "noise at each position": (nn.Conv2d(2, 3, 3), Gaussian(0.3), x, images(3, 3, 4)),
        "attention": (Attention(), Categorical(axis=-1), images(5, 4), torch.randint(3, (8, 5))),
    }


def keeping(name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> Any:
    def keep(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen[name] = (args[0].detach().clone(), output)
        return output.clone()

    return keep


def factors_by_hand(model: ps.BayesianModel, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Example by example, from exact Hessians of the loss and the derivatives by each layer's output."""
    layers = {name.rpartition(".")[0]: model.net.get_submodule(name.rpartition(".")[0]) for name in model.sites}
    sums: dict[str, list[Any]] = {name: [0.0, 0.0, 0.0, 0] for name in layers}
    model.net.eval().requires_grad_(True)
    for one, target in zip(x.split(1), y.split(1), strict=True):
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        handles = [layer.register_forward_hook(keeping(name, seen)) for name, layer in layers.items()]
        output = model.net(one)
        for handle in handles:
            handle.remove()

        def loss(values: Tensor, target: Tensor = target, shape: Any = output.shape) -> Tensor:
            return -model.likelihood(values.reshape(shape)).log_prob(target).sum()  # type: ignore[attr-defined,no-any-return]

        inner: Any = torch.autograd.functional.hessian(loss, output.detach().flatten())
        values, vectors = torch.linalg.eigh(inner)
        for value, vector in zip(values, vectors.mT, strict=True):
            of_output = (output.flatten() @ vector) * value.clamp_min(0.0).sqrt()
            found = torch.autograd.grad(of_output, [y for _, y in seen.values()], retain_graph=True)
            for name, slope in zip(seen, found, strict=True):
                channels = 1 if isinstance(layers[name], nn.modules.conv._ConvNd) else slope.dim() - 1
                rows = slope.movedim(channels, -1).reshape(-1, slope.shape[channels])
                sums[name][0] = sums[name][0] + rows.mT @ rows
                sums[name][1] = sums[name][1] + torch.outer(rows.sum(0), rows.sum(0))
        for name, (given, _) in seen.items():
            patches = patches_of(layers[name], given)
            sums[name][2] = sums[name][2] + patches.mT @ patches
            sums[name][3] += len(patches)
    found = {}
    for site in model.sites:
        layer, _, kind = site.rpartition(".")
        weight, bias, inputs, count = sums[layer]
        found[site] = (weight, inputs / count) if kind == "weight" else (bias, torch.ones(1, 1).double())
    model.net.requires_grad_(False)
    return found


def patches_of(layer: Any, x: Tensor) -> Tensor:
    """What the weight is multiplied with at each position, by convolutions with kernels of a single one."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    size = layer.weight[0].numel()
    ones = torch.eye(size).double().reshape(size, *layer.weight.shape[1:])
    return layer._conv_forward(x, ones, None).flatten(2).movedim(1, 2).reshape(-1, size)


def found_for(model: ps.BayesianModel, x: Tensor, y: Tensor, batch_size: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    passes = DataPasses(model, Laplace(model, "kronecker"), (x, y), batch_size)
    return kronecker_factors(passes, weights_of(model))


@pytest.mark.parametrize("name", list(cases()))
def test_factors_are_those_of_their_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, likelihood, x, y = cases()[name]
    model = model_of(net.double(), likelihood, 8, EVERYWHERE)
    found = found_for(model, x, y)
    expected = factors_by_hand(model, x, y)
    assert found.keys() == expected.keys()
    for site, pair in expected.items():
        for one, other in zip(found[site], pair, strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, site=site: f"{site}: {text}")
    monkeypatch.setattr("pyrostoch.training.kronecker_factors._MOST_ENTRIES", 1)  # one example at a time
    for site, pair in found_for(model, x, y, 8).items():
        for one, other in zip(pair, expected[site], strict=True):
            torch.testing.assert_close(one, other)


def test_the_block_of_a_bias_is_exact_and_that_of_a_convolution_where_positions_are_unrelated() -> None:
    net, likelihood, x, y = cases()["stride, padding, dilation"]
    model = model_of(net.double(), likelihood, 8, EVERYWHERE)
    exact, start = ggn_by_hand(model, x, y), 0
    for site, (outputs, inputs) in found_for(model, x, y).items():
        size = len(outputs) * len(inputs)
        block = exact[start : start + size, start : start + size]
        start += size
        if site.endswith("bias"):
            torch.testing.assert_close(outputs, block)
    # A convolution whose outputs are the observations: all of H is the product.
    net, likelihood, x, y = cases()["noise at each position"]
    model = model_of(net.double(), likelihood, 8, {"weight": ps.priors.Normal(0.0, 0.7)})
    outputs, inputs = found_for(model, x, y)["weight"]
    torch.testing.assert_close(torch.kron(outputs, inputs), ggn_by_hand(model, x, y))


@pytest.mark.filterwarnings("ignore:fit_laplace")
def test_a_convolution_of_one_position_is_a_linear_layer() -> None:
    x, y = torch.randn(20, 3).double(), torch.randint(3, (20,))
    linear = small(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.Flatten()).double()
    found = []
    for number in (0, 2):
        linear[number].weight.data = net[number].weight.data.flatten(1)  # type: ignore[operator,union-attr]
        linear[number].bias.data = net[number].bias.data  # type: ignore[union-attr]
    for module, inputs in ((net, x[:, :, None, None]), (linear, x)):
        model = model_of(module, Categorical(), 20, EVERYWHERE)
        guide = Laplace(model, "kronecker")
        found.append(ps.fit_laplace(model, guide, (inputs, y), not_optimum="warn", curvature_steps=0))
        found.append(ps.predict(model, guide, inputs, mode="linearized", seed=0).probs)
    assert found[0].log_marginal_likelihood == pytest.approx(found[2].log_marginal_likelihood, rel=1e-9)
    torch.testing.assert_close(found[1], found[3])


@pytest.mark.parametrize("kind", ["gaussian", "categorical, one example", "bernoulli, one example"])
def test_where_the_kronecker_structure_is_exact(kind: str) -> None:
    net, count = nn.Linear(3, 2, bias=False).double(), 30 if kind == "gaussian" else 1
    x = torch.randn(count, 3).double()
    cases: dict[str, tuple[Any, Tensor]] = {
        "gaussian": (Gaussian(NOISE), torch.randn(count, 2).double()),
        "categorical, one example": (Categorical(), torch.tensor([1])),
        "bernoulli, one example": (Bernoulli(), torch.tensor([[0.0, 1.0]]).double()),
    }
    likelihood, y = cases[kind]
    model = model_of(net, likelihood, count)
    train(model, (x, y))
    guide, full = Laplace(model, "kronecker"), Laplace(model, "full")
    if kind.startswith("bernoulli"):
        # Of one example the curvature of independent targets is no product; that of one of them is.
        model = model_of(nn.Linear(3, 1, bias=False).double(), likelihood, 1)
        y = y[:, :1]
        train(model, (x, y))
        guide, full = Laplace(model, "kronecker"), Laplace(model, "full")
    one = ps.fit_laplace(model, guide, (x, y), batch_size=8)
    other = ps.fit_laplace(model, full, (x, y))
    if kind == "gaussian":
        assert one.log_det == pytest.approx(other.log_det, rel=1e-9)
    assert one.log_marginal_likelihood == pytest.approx(other.log_marginal_likelihood, abs=1e-8)
    assert torch.allclose(guide.site_distribution("weight").covariance, full.factor() @ full.factor().mT, rtol=1e-6)


def test_weights_that_the_kronecker_structure_does_not_see_are_refused() -> None:
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    model = model_of(Twice().double(), Gaussian(0.3), 20)
    with pytest.raises(ValueError, match="'first.weight' is used 2 times.*take structure='diagonal'"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))
    model = model_of(Meeting().double(), Gaussian(0.3), 20)
    with pytest.raises(ValueError, match="a network that keeps examples apart"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))
    model = model_of(
        small(),
        Gaussian(0.3),
        20,
        {"*": ps.priors.Normal(0.0, torch.tensor(0.5)), "0.weight": ps.priors.Normal(0.0, 0.5 + torch.rand(4, 3))},
    )
    with pytest.raises(ValueError, match="site '0.weight'.*expects a prior with one standard deviation"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (x, y))


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), Mean()), (2, 5, 5), "a weight of a Conv2d with groups=2"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3), Mean()), (2, 5, 5), "a weight of a ConvTranspose2d"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), (5, 4), "'self_attn.in_proj_weight' is"),
    ],
)
def test_layers_whose_factors_are_not_known_are_refused(net: Any, x: Any, message: str) -> None:
    inputs = images(*x)
    made = net().double().eval()
    model = model_of(made, Gaussian(0.3), 8, {"*": ps.priors.Normal(), "*.bias": None})
    y = made(inputs).detach()
    with pytest.raises(ValueError, match=f"{message}.*take structure='diagonal'"):
        ps.fit_laplace(model, Laplace(model, "kronecker"), (inputs, y), not_optimum="warn", curvature_steps=0)


@by_library
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize(
    ("subset", "theirs", "ours"),
    [
        ("all", "full", "full"),
        ("all", "diag", "diagonal"),
        ("all", "kron", "kronecker"),
        ("last_layer", "full", "last_layer"),
        ("last_layer", "kron", "kronecker"),
    ],
)
def test_the_marginal_likelihood_is_that_of_the_library_laplace(kind: str, subset: str, theirs: str, ours: Any) -> None:
    library = pytest.importorskip("laplace")
    x, labels = classes()
    y = labels if kind == "classification" else torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1)
    net = small(3 if kind == "classification" else 2)
    prior = {"2.*": ps.priors.Normal()} if subset == "last_layer" else {"*": ps.priors.Normal()}
    prior = prior if subset == "last_layer" else {"*": ps.priors.Normal(), "*.bias": ps.priors.Normal()}
    model = model_of(net, Categorical() if kind == "classification" else Gaussian(0.3), 60, prior)
    train(model, (x, y))
    found = ps.fit_laplace(model, Laplace(model, ours), (x, y), batch_size=25)
    options = {} if kind == "classification" else {"sigma_noise": 0.3}
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    other = library.Laplace(
        net, kind, subset_of_weights=subset, hessian_structure=theirs, prior_precision=1.0, **options
    )
    other.fit(DataLoader(TensorDataset(x, y), batch_size=25))
    assert found.log_marginal_likelihood == pytest.approx(float(other.log_marginal_likelihood()), abs=1e-4)
