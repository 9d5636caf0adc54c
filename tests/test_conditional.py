"""Conditional layers: by label against each class by itself, combinations against draws, and where a class reaches."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import cells
import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.effects import MeanPropagation, NoiseFree
from pyrostoch.layers import (
    Conditional,
    GatedSelection,
    HardSelection,
    SoftSelection,
    StochasticAdditive,
    StochasticConv1d,
    StochasticConv2d,
    StochasticConvTranspose2d,
    StochasticGRU,
    StochasticLayer,
    StochasticLinear,
    StochasticLSTM,
    StochasticTransformerEncoderLayer,
    activations,
)

F64 = torch.float64
DRAWS = 1_000_000

#: A layer of one class, the shape of an example, and the axis of the batch in its input.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: StochasticLinear(3, 2), (3,), 0),
    "linear, positions": (lambda: StochasticLinear(3, 2), (4, 3), 0),
    "linear, without bias": (lambda: StochasticLinear(3, 2, bias=False), (3,), 0),
    "conv1d": (lambda: StochasticConv1d(2, 3, 3, padding=1), (2, 6), 0),
    "conv2d": (lambda: StochasticConv2d(2, 3, 3, stride=2, padding=1, dilation=1), (2, 6, 6), 0),
    "conv2d, groups": (lambda: StochasticConv2d(2, 4, 3, groups=2), (2, 6, 6), 0),
    "conv2d, circular": (lambda: StochasticConv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 6), 0),
    "transposed": (lambda: StochasticConvTranspose2d(2, 3, 2, stride=2), (2, 4, 4), 0),
    "additive": (lambda: StochasticAdditive((2, 4)), (2, 4), 0),
    "lstm": (lambda: StochasticLSTM(3, 2, batch_first=True), (5, 3), 0),
    "lstm, time first": (lambda: StochasticLSTM(3, 2, bidirectional=True), (5, 3), 1),
    "gru": (lambda: StochasticGRU(3, 2, batch_first=True), (5, 3), 0),
    "transformer": (lambda: StochasticTransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), (5, 4), 0),
    "transformer, time first": (lambda: StochasticTransformerEncoderLayer(4, 2, 8, 0.0), (5, 4), 1),
    "any": (lambda: StochasticLayer(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), (3,), 0),
    "plain linear": (lambda: nn.Linear(3, 2), (3,), 0),
    "plain conv": (lambda: nn.Conv2d(2, 3, 3), (2, 6, 6), 0),
    "plain lstm": (lambda: nn.LSTM(3, 2), (5, 3), 1),
    "network": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), 0),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str, classes: int = 4, **settings: Any) -> Conditional:
    return Conditional(LAYERS[name][0], classes, **settings).double().eval()


def inputs(name: str, batch: int = 7) -> Tensor:
    x = torch.randn(batch, *LAYERS[name][1], dtype=F64)
    return x.transpose(0, 1) if LAYERS[name][2] else x


def ahead(name: str, value: Tensor) -> Tensor:
    """The batch on the first axis."""
    return value.transpose(0, 1) if LAYERS[name][2] else value


def activation_of(layer: nn.Module, x: Tensor) -> Tensor:
    found = layer(x)
    return found[0] if isinstance(found, tuple) else found


@each_layer
def test_an_example_runs_through_the_layer_of_its_class(name: str) -> None:
    layer, x = make(name), inputs(name)
    labels = torch.tensor([2, 0, 3, 2, 2, 0, 3])
    with torch.no_grad(), MeanPropagation():
        found = layer(x, labels=labels)
        for index, label in enumerate(labels.tolist()):
            row = ahead(name, x)[index : index + 1]
            expected = activation_of(layer.classes[label], ahead(name, row))
            assert torch.allclose(ahead(name, found)[index], ahead(name, expected)[0], atol=1e-10)
        with HardSelection(labels):
            assert torch.equal(layer(x), found)
        assert torch.allclose(layer(x, selection=HardSelection(labels)), found)


@each_layer
def test_absent_classes_have_no_gradient_and_cost_nothing(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counted = []
    for classes in (2, 100):
        layer = make(name, classes)
        with FlopCounterMode(display=False) as counter:
            layer(inputs(name), labels=torch.tensor([0, 1, 1, 0, 1, 0, 0])).sum().backward()
        counted.append(counter.get_total_flops())
        for index, own in enumerate(layer.classes):
            assert all((p.grad is not None) == (index < 2) for p in own.parameters()), index
    assert counted[0] == counted[1]


def selection_of(name: str, classes: int = 4, batch: int = 7) -> Tensor:
    """Two classes at one place each, far from each other where there are positions, and two nowhere."""
    shape = LAYERS[name][1]
    selection = torch.zeros(batch, classes, *shape, dtype=F64)
    positions = selection if len(shape) == 1 else selection.movedim(2 if "conv" in name or "trans" in name else -1, -1)
    selection[:, 1] = 1.0
    selection[:, 3] = 1.0
    if len(shape) > 1:
        axis = 2 if name.startswith(("lstm", "gru", "transformer", "plain lstm", "linear")) else -1
        selection.select(axis, 0)[:, 3] = 0.0
        selection.narrow(axis, 1, selection.shape[axis] - 1)[:, 1] = 0.0
    assert positions.shape
    return selection


@each_layer
@pytest.mark.parametrize("combine", ["shared", "independent"])
def test_a_selection_is_the_sum_over_classes_where_they_reach(name: str, combine: Any) -> None:
    """Against one class after another, with those outputs left out that no change of the selected inputs moves."""
    if "plain" in name or name == "network":
        combine = "shared"
    layer, x = make(name, combine=combine), inputs(name)
    selection = selection_of(name)
    batch_first = ahead(name, x)
    means: Any = 0.0
    spread: Any = 0.0
    for c, own in enumerate(layer.classes):
        given = batch_first * selection[:, c]

        def run(value: Tensor, own: nn.Module = own) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), MeanPropagation():
                mean = ahead(name, activation_of(own, ahead(name, value)))
            core = getattr(own, "output", own)
            if layer.activation is None:
                return mean, torch.zeros_like(mean)
            with torch.no_grad():
                ordered = value if core is not own else ahead(name, value)
                scale = core.activation_distribution(ordered).stddev
            return mean, scale

        mean, scale = run(given)
        moved = [run(given + 3.0 * torch.randn_like(given) * selection[:, c]) for _ in range(4)]
        reached = torch.stack([(m != mean) | (s != scale) for m, s in moved]).any(0)
        assert reached.any() == bool(selection[:, c].any())
        means = means + torch.where(reached, mean, 0.0)
        spread = spread + torch.where(reached, scale if combine == "shared" else scale.square(), 0.0)
    spread = spread if combine == "shared" else spread.sqrt()
    with torch.no_grad(), MeanPropagation():
        assert torch.allclose(ahead(name, layer(x, selection=selection)), means, atol=1e-9)
    with torch.no_grad(), NoiseFree():
        assert torch.allclose(ahead(name, layer(x, selection=selection)), means, atol=1e-9)
    if layer.activation is not None:
        with torch.no_grad():
            many = torch.stack([ahead(name, layer(x, selection=selection)) for _ in range(100)])
        error = spread / math.sqrt(100)
        assert ((many.mean(0) - means).abs() <= 6.0 * error + 1e-9).all()
        assert torch.allclose(many.std(0), spread, rtol=0.6, atol=1e-9)
        assert (many.std(0) == 0).equal(spread == 0)


COMBINED: dict[str, Any] = {
    "shared": activations.Gaussian(),
    "independent": activations.Gaussian(),
    "mixture": activations.Gaussian(),
    "mixture-by-example": activations.Gaussian(),
    "shared, Laplace": activations.Laplace(),
    "shared, raw": activations.Gaussian("raw"),
    "mixture, Laplace": activations.Laplace(),
    "mixture, Bernoulli": activations.Bernoulli(),
    "mixture, Poisson": activations.Poisson(),
    "mixture, Categorical": activations.Categorical(),
    "mixture-by-example, Categorical": activations.Categorical(),
}


@pytest.mark.parametrize("name", COMBINED)
def test_means_and_variances_are_those_of_a_million_draws(name: str) -> None:
    layer = Conditional(
        lambda: StochasticLinear(3, 2, distribution=COMBINED[name]),
        3,
        where="output",
        combine=name.partition(",")[0],  # type: ignore[arg-type]
    ).double()
    x = torch.randn(1, 3, dtype=F64)
    pi = torch.tensor([[0.2, 0.5, 0.3]], dtype=F64)
    with torch.no_grad():
        outputs = layer._stack(x, pi[..., None], {}, sparse=False)
        distribution = layer.activation.posterior(outputs)
        draws = layer(x.expand(DRAWS, 3), selection=pi.expand(DRAWS, 3))
    mean, variance = distribution.mean[0], distribution.variance[0]
    by_hand_mean, by_hand = moments_by_hand(layer, x, pi[0], name.partition(",")[0])
    assert torch.allclose(mean, by_hand_mean) and torch.allclose(variance, by_hand)
    assert ((draws.mean(0) - mean).abs() <= 5.0 * (variance / DRAWS).sqrt()).all()
    fourth = (draws - mean).pow(4).mean(0)
    assert ((draws.var(0) - variance).abs() <= 6.0 * ((fourth - variance.square()) / DRAWS).sqrt()).all()


def moments_by_hand(layer: Conditional, x: Tensor, pi: Tensor, how: str) -> tuple[Tensor, Tensor]:
    parts = [own.activation_distribution(x) for own in layer.classes]  # type: ignore[operator]
    means, variances = torch.stack([p.mean[0] for p in parts]), torch.stack([p.variance[0] for p in parts])
    mean = (pi[:, None] * means).sum(0)
    if how == "shared":
        return mean, (pi[:, None] * variances.sqrt()).sum(0).square()
    if how == "independent":
        return mean, (pi.square()[:, None] * variances).sum(0)
    return mean, (pi[:, None] * (variances + means.square())).sum(0) - mean.square()


def test_entries_of_a_mixture_by_example_are_of_one_class() -> None:
    layers = iter(range(2))

    def of_class() -> nn.Module:
        layer = StochasticLinear(1, 5, distribution=activations.Gaussian("exp"))
        with torch.no_grad():
            layer.kernel.weight.zero_()
            layer.kernel.bias.copy_(torch.tensor([10.0 * next(layers)] * 5 + [-3.0] * 5))
        return layer

    x, pi = torch.zeros(4000, 1), torch.tensor([0.3, 0.7]).expand(4000, 2)
    for how, together in (("mixture", False), ("mixture-by-example", True)):
        layers = iter(range(2))
        layer = Conditional(of_class, 2, where="output", combine=how)  # type: ignore[arg-type]
        high = layer(x, selection=pi) > 5.0
        agree = (high == high[:, :1]).all(1)
        assert bool(agree.all()) is together
        assert abs(high.double().mean().item() - 0.7) < 0.05


@pytest.mark.parametrize("gradient", ["score", "straight-through", "relaxed"])
def test_gradients_of_a_mixture(gradient: Any) -> None:
    """Under the score function the gradient is that of quadrature; the others are finite, and biased."""
    layer = Conditional(
        lambda: StochasticLinear(2, 1, prior="standard"), 2, where="output", combine="mixture", gradient=gradient
    )
    layer.selection = GatedSelection(nn.Linear(2, 2))
    out = nn.Linear(1, 2)
    net = nn.Sequential(layer, nn.Tanh(), out).double()
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=3)
    guide = ps.guides.Additive(model)
    x, y = torch.randn(3, 2, dtype=F64), torch.tensor([0, 1, 1])
    parameters = list(net.parameters())
    if gradient != "score":
        with pytest.raises(ValueError, match="no closed form.*use gradient='score'"):
            ps.ELBO()(model, guide)(x, y)
        return
    z = torch.linspace(-12.0, 12.0, 6001, dtype=F64)[:, None]
    q = layer.activation.posterior(layer._stack(x, layer.selection(x)[..., None], {}, sparse=False))
    log_q = q.log_prob(z[:, None].expand(-1, 3, 1))
    log_p = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    log_lik = out(z.tanh()).log_softmax(-1)[:, y]
    truth = ((log_q.exp() * (log_q - log_p - log_lik)).sum(0) * (z[1] - z[0])).sum()
    expected = torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(
                truth,
                parameters,
                allow_unused=True,
                materialize_grads=True,
            )
        ]
    )
    found = []
    for _ in range(600):
        loss = ps.ELBO()(model, guide)(x, y)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([g.flatten() for g in grads]))
    many = torch.stack(found)
    assert ((many.mean(0) - expected).abs() <= 5.5 * many.std(0) / math.sqrt(600) + 1e-9).all()


@pytest.mark.parametrize("combine", ["shared", "independent"])
def test_the_elbo_and_pyros_agree(combine: Any) -> None:
    from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

    layer = Conditional(
        lambda: StochasticConv2d(1, 2, 3, prior="learned"), 3, SoftSelection(3, (1, 4, 4)), combine=combine
    )
    net = ps.layers.accept_labels(nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 3)).double())
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=5)
    guide = ps.guides.Amortised(model)
    x, y = torch.randn(5, 1, 4, 4, dtype=F64), torch.tensor([0, 1, 1, 2, 0])
    for given in (x, (x, y)):
        with torch.no_grad():
            pyros = [loss().loss(model, guide, given, y) for _ in range(150) for loss in (Trace_ELBO,)]
            fields = [TraceMeanField_ELBO().loss(model, guide, given, y) for _ in range(60)]
            ours = torch.stack([ps.ELBO()(model, guide)(given, y) for _ in range(150)])
        for other in (torch.tensor(pyros), torch.tensor(fields)):
            error = math.sqrt(ours.var().item() / len(ours) + other.var().item() / len(other))
            assert abs(ours.mean().item() - other.mean().item()) < 5.0 * error
    parts = ps.decompose(model, guide, ((x, y), y))
    assert [row.layer for row in parts.rates] == ["0.activation"] and parts.rates[0].method == "exact"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_labels_are_one_more_input_of_a_network(copied: Any) -> None:
    net = nn.Sequential(Conditional(lambda: nn.Linear(3, 2), 3), nn.Tanh())
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    with HardSelection(y):
        expected = net(x)
    net = copied(ps.layers.accept_labels(net))
    assert torch.equal(net(x, y), expected)
    with pytest.raises(ValueError, match="the class of each example is not known"):
        net(x)
    with pytest.raises(ValueError, match="expected classes from 0 to 2, got 3"):
        net(x, y + 1)
    with pytest.raises(ValueError, match="the class of each example is not known"):
        net(x)  # what an error interrupted is known no more


def test_refusals() -> None:
    layer = make("linear")
    x = inputs("linear")
    with pytest.raises(ValueError, match="one for each of 7 examples, got 3"):
        layer(x, labels=torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"class indices of shape \(batch,\), got torch.float64"):
        layer(x, labels=torch.zeros(7, dtype=F64))
    with pytest.raises(
        ValueError, match=r"expected shape \(batch, classes, \*shape\), here \(7, 4, 3\).*got \(7, 4, 2\)"
    ):
        layer(x, selection=torch.ones(7, 4, 2))
    with pytest.raises(ValueError, match=r"here \(7, 4, 3\).*got \(7, 5, 3\)"):
        layer(x, selection=torch.ones(7, 5, 3))
    with pytest.raises(ValueError, match="labels or a selection, got both"):
        layer(x, labels=torch.zeros(7).long(), selection=torch.ones(7, 4, 3))
    with pytest.raises(ValueError, match="a weighted sum of Bernoulli activations"):
        Conditional(lambda: StochasticLinear(3, 2, distribution="bernoulli"), 2)(
            x.float(), selection=torch.ones(7, 2, 1)
        )
    with pytest.raises(ValueError, match="no distribution of their activations to combine"):
        Conditional(lambda: nn.Linear(3, 2), 2, combine="mixture")
    with pytest.raises(ValueError, match="passes in clear text has no finite rate"):
        Conditional(lambda: StochasticLinear(3, 3, prior="standard"), 2, background="pass")
    with pytest.raises(ValueError, match="draws activations with a prior"):
        Conditional(lambda: nn.Sequential(StochasticLinear(3, 3, prior="standard")), 2)
    for settings in ({}, {"where": "output", "background": "zero"}):
        with pytest.raises(ValueError, match="which sum to 1; use where='output', and background=None or 'class'"):
            Conditional(lambda: StochasticLinear(3, 2), 2, combine="mixture", **settings)  # type: ignore[arg-type]
    mixture = Conditional(lambda: StochasticLinear(3, 2), 2, SoftSelection(2, 2), where="output", combine="mixture")
    with pytest.raises(ValueError, match="form='softmax', whose classes sum to 1, got 'sigmoid'"):
        mixture(x.float())
    with pytest.raises(ValueError, match="whose classes sum to 1 at every place, got sums from 1.2 to 1.2"):
        mixture(x.float(), selection=torch.full((7, 2), 0.6))
    for_all = Conditional(lambda: StochasticLinear(3, 2), 2, where="output", combine="mixture-by-example")
    with pytest.raises(ValueError, match="one number for each example and class, got a selection of shape"):
        for_all(x.float(), selection=torch.full((7, 2, 2), 0.5))
    with pytest.raises(ValueError, match="expected numbers from 0 to 1, got 0 to 3"):
        layer(x, selection=torch.tensor([0.0, 1.0, 3.0, 0.5]).expand(7, 4))
    shared = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="a new layer from every call"):
        Conditional(lambda: shared, 2)
    with pytest.raises(ps.moments.MissingRuleError, match="several classes"), ps.effects.MomentPropagation():
        layer(ps.moments.Moments(x, torch.ones_like(x)), labels=torch.zeros(7).long())


@pytest.mark.parametrize("embodiment", ["prepend", "merge_then_sample", "sample_then_merge"])
@pytest.mark.parametrize("name", cells.ARCHITECTURES)
def test_every_architecture_in_every_embodiment(name: str, embodiment: str) -> None:
    """By labels, as one more input of the whole network, and under a soft selection; both are differentiated."""
    architecture = cells.ARCHITECTURES[name]
    size = architecture.shape[architecture.axis]
    layer = Conditional(lambda: architecture.stochastic(size, distribution=activations.Gaussian()), 3)
    net = ps.layers.accept_labels(cells.embodied(architecture, layer, embodiment).double())
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=4)
    guide = ps.guides.Additive(model)
    x, y = torch.randn(4, *architecture.shape, dtype=F64), torch.tensor([0, 1, 1, 0])
    ps.ELBO()(model, guide)((x, torch.tensor([0, 2, 2, 0])), y).backward()
    for c, own in enumerate(layer.classes):
        assert all((p.grad is None) == (c == 1) for p in own.parameters())
    layer.selection = GatedSelection(nn.Sequential(nn.Flatten(), nn.LazyLinear(3))).double()
    with torch.no_grad():
        model.net(x)
    ps.ELBO()(model, guide)(x, y).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())
