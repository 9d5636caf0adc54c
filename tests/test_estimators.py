"""Gradient estimators for neurons with states, against a sum over all configurations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrostoch.effects.activation import random_activation
from pyrostoch.estimators import ESTIMATORS, enumerated, gradient_quality, surrogate
from pyrostoch.layers import Binary, KState, Ternary, ThresholdNeuron

F64 = {"dtype": torch.float64}


def network(*layers, inputs=3, outputs=2, units=3):
    """Linear layers with neurons between them."""
    torch.manual_seed(1)
    sizes = [inputs, *[units] * len(layers), outputs]
    parts = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*itertools.zip_longest(parts, layers, fillvalue=nn.Identity()))).double()


def problem(batch=3):
    torch.manual_seed(2)
    x, y = torch.randn(batch, 3, **F64), torch.tensor([0, 1, 1, 0])[:batch]
    return x, lambda out: F.cross_entropy(3.0 * out, y, reduction="none")


def squared(out):
    """A nonlinear loss; the straight-through gradient misses the effect of a neuron's variance on it."""
    return out.square().sum(1)


NETWORKS = {
    "binary": lambda: network(Binary(noise=0.8)),
    "ternary": lambda: network(Ternary(noise=0.7)),
    "uneven": lambda: network(KState((0.0, 1.0, 3.0), (-0.3, 0.6), 0.8, noise_distribution="laplace")),
    "deep": lambda: network(ThresholdNeuron(0.7), Ternary(noise=0.9), units=2),
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def sum_over_configurations(net, x, loss, average="loss"):
    """The expectation as a plain sum over configurations, layer by layer, without the estimators' handlers."""

    def from_layer(parts, h, example):
        if not parts:
            value = loss(h.expand(len(x), -1))[example]
            return value if average == "loss" else (-value).exp()
        part, *more = parts
        if not isinstance(part, KState):
            return from_layer(more, part(h), example)
        p, total = part.probabilities(h)[0], 0.0
        for config in itertools.product(range(len(part.states)), repeat=h.shape[1]):
            weight = math.prod([p[unit, state] for unit, state in enumerate(config)])
            states = torch.tensor([[part.states[state] for state in config]], **F64)
            total = total + weight * from_layer(more, states, example)
        return total

    means = torch.stack([from_layer(list(net), x[i : i + 1], i) for i in range(len(x))])
    return (means if average == "loss" else -means.log()).mean()


def gradient(value, net):
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, net.parameters())])


@EVERY
@pytest.mark.parametrize("average", ["loss", "probability"])
def test_enumeration_is_the_sum_over_configurations(name, average):
    net, (x, loss) = NETWORKS[name](), problem()
    value = enumerated(net, x, loss, log_mean_exp=average == "probability")
    truth = sum_over_configurations(net, x, loss, average)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(value, net), gradient(truth, net), rtol=1e-10, atol=1e-13)


UNBIASED = [(name, estimator) for name in NETWORKS for estimator in ("score", "arm")]
UNBIASED += [(name, "path-sample-analytic") for name in ("binary", "ternary", "uneven")]


@pytest.mark.parametrize(("name", "estimator"), UNBIASED)
def test_unbiased_estimators_have_the_exact_mean(name, estimator):
    net, (x, loss) = NETWORKS[name](), problem(2)
    exact = gradient(enumerated(net, x, loss), net)
    torch.manual_seed(3)
    drawn = torch.stack([gradient(surrogate(net, x, loss, estimator=estimator, samples=2), net) for _ in range(250)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    assert (error < 0.15 * exact.norm()).all()


def test_the_value_of_a_surrogate_is_the_mean_loss():
    net, (x, loss) = NETWORKS["deep"](), problem()
    truth = enumerated(net, x, loss).item()
    for estimator in set(ESTIMATORS) - {"enumeration", "log-mean-exp"}:
        torch.manual_seed(0)
        values = torch.stack([surrogate(net, x, loss, estimator=estimator, samples=2).detach() for _ in range(200)])
        assert abs(values.mean().item() - truth) < 4.5 * values.std().item() / 200**0.5


def test_straight_through_is_exact_for_a_linear_loss_of_one_layer_only():
    net, x = network(Ternary(noise=0.7)), torch.randn(4, 3, **F64)

    def linear(out):
        return out.sum(1)

    torch.manual_seed(0)
    straight = gradient(surrogate(net, x, linear), net)[:12]
    torch.testing.assert_close(straight, gradient(enumerated(net, x, linear), net)[:12])
    quality = gradient_quality(net, x, squared, repeats=400)
    assert quality.bias > 0.05 and quality.bias**2 > 4 * quality.bias_stderr and quality.cosine > 0.5


def test_paths_of_two_layers_have_a_smaller_bias_than_straight_through():
    net, (x, loss) = NETWORKS["deep"](), problem()
    straight, paths = (
        gradient_quality(net, x, loss, estimator=name, repeats=800)
        for name in ("straight-through", "path-sample-analytic")
    )
    assert paths.bias < 0.5 * straight.bias and paths.deviation < straight.deviation and paths.cosine > straight.cosine


def test_log_mean_exp_of_many_samples_approaches_the_log_of_the_mean_likelihood():
    net, (x, loss) = NETWORKS["ternary"](), problem()
    few, many = (gradient_quality(net, x, loss, estimator="log-mean-exp", samples=m, repeats=400) for m in (1, 30))
    assert many.bias < few.bias and many.cosine > few.cosine


def test_estimators_work_with_convolutions_and_batch_normalization():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), Binary(noise=0.5), nn.Conv2d(2, 1, 2), Binary(noise=0.5), nn.Flatten()
    )
    net[1].running_var.fill_(0.5)
    net, x = net.append(nn.Linear(1, 2)).double().eval(), torch.randn(3, 1, 3, 3, **F64)

    exact = gradient(enumerated(net, x, squared), net)
    for name in ("arm", "score", "path-sample-analytic"):
        torch.manual_seed(1)
        drawn = torch.stack([gradient(surrogate(net, x, squared, estimator=name, samples=2), net) for _ in range(300)])
        assert torch.cosine_similarity(drawn.mean(0), exact, dim=0) > 0.97


class Bernoulli(nn.Module):
    """A random activation of another kind."""

    def forward(self, x):
        return random_activation(x, self)

    def draw(self, x):
        return torch.bernoulli(x.sigmoid())


REFUSALS = {
    "kind": (
        nn.Sequential(Bernoulli(), Binary()),
        "score",
        2,
        TypeError,
        "expected neurons with states .* Bern",
    ),
    "correlated": (network(ThresholdNeuron(1.0, correlation=0.5)), "arm", 1, ValueError, "noise .* is correlated"),
    "one": (network(Binary()), "score", 1, ValueError, "samples=1"),
    "many": (network(Binary(), units=16), "enumeration", 1, ValueError, r"1 \* 2\^16"),
    "none": (nn.Linear(3, 2).double(), "score", 2, ValueError, "no neurons"),
    "batch": (nn.Sequential(nn.BatchNorm1d(3), Binary()).double(), "arm", 1, ValueError, "'0' is a BatchNorm1d"),
    "curved": (
        nn.Sequential(Binary(), nn.Linear(3, 2), nn.Tanh()).double(),
        "path-sample-analytic",
        1,
        ValueError,
        "affine",
    ),
    "name": (network(Binary()), "straight", 1, ValueError, "did you mean 'straight-through'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_networks_that_an_estimator_cannot_take_are_refused(name):
    net, estimator, samples, error, message = REFUSALS[name]
    x, loss = problem()
    with pytest.raises(error, match=message):
        surrogate(net.double(), x, loss, estimator=estimator, samples=samples)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_losses_without_one_value_per_example_are_refused(estimator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), Ternary(), nn.Linear(2, 2))
    x, y = torch.randn(4, 3), torch.randint(0, 2, (4,))
    with pytest.raises(ValueError, match=r"one value per example, of shape \(4,\), got \(\); use reduction='none'"):
        surrogate(net, x, lambda out: F.cross_entropy(out, y), estimator=estimator, samples=2)


@pytest.mark.parametrize("estimator", ["arm", "path-sample-analytic", "enumeration"])
def test_estimators_that_run_the_network_again_refuse_dropout_in_training(estimator):
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), Ternary(), nn.Linear(2, 2))
    x, y = torch.randn(4, 3), torch.randint(0, 2, (4,))

    def loss(out):
        return F.cross_entropy(out, y, reduction="none")

    with pytest.raises(ValueError, match="'1' is a Dropout in training mode"):
        surrogate(net, x, loss, estimator=estimator)
    surrogate(net.eval(), x, loss, estimator=estimator).backward()
