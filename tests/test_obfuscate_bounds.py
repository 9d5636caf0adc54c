"""Bounds of what a client tells, against channels whose information is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.layers import Conditional, GatedSelection, StochasticAdditive, StochasticLinear, embody
from pyrostoch.obfuscate import (
    Client,
    Sender,
    contrast_bound,
    fisher_bound,
    gaussian_delta,
    gaussian_epsilon,
    rate_bound,
)

INPUTS, UNITS = 4, 3
NOISE = torch.tensor([0.5, 0.8, 1.0], dtype=torch.float64)


def client_of(net: nn.Module, at: str = "0", prior: Any = None) -> Client:
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=10)
    return Client(model, ps.guides.Additive(model), at)


def linear_channel() -> tuple[Client, Tensor]:
    """z = A x + noise of fixed size, and A."""
    torch.set_default_dtype(torch.float64)
    layer = StochasticLinear(INPUTS, UNITS)
    weight, bias = layer.get_parameter("kernel.weight"), layer.get_parameter("kernel.bias")
    with torch.no_grad():
        weight[:UNITS].normal_()
        weight[UNITS:].zero_()
        bias[:UNITS].zero_()
        bias[UNITS:] = NOISE.expm1().log()
    return client_of(nn.Sequential(layer, nn.Linear(UNITS, 2))), weight[:UNITS].detach().clone()


def test_the_information_of_a_linear_gaussian_channel_is_met_from_above() -> None:
    client, a = linear_channel()
    x, x_test = torch.randn(10000, INPUTS), torch.randn(3000, INPUTS)
    exact = 0.5 * torch.logdet(torch.eye(UNITS) + torch.diag(NOISE**-2) @ a @ a.T)
    found = rate_bound(client, x, x_test, draws=5)
    assert found.marginals == ("normal, all covariances",)
    # Above it but for the error of the mean, and not far above, as the marginal is of the right form.
    assert found.rate.value > exact - 5 * found.rate.stderr
    assert found.rate.value < exact + 5 * found.rate.stderr + 0.05


def test_the_information_of_that_channel_is_bounded_from_below_by_contrast() -> None:
    client, a = linear_channel()
    x = {part: torch.randn(count, INPUTS) for part, count in (("train", 1000), ("validation", 300), ("test", 1000))}
    exact = 0.5 * torch.logdet(torch.eye(UNITS) + torch.diag(NOISE**-2) @ a @ a.T)
    found = contrast_bound(lambda part, seed: client.send(x[part], seed=seed), x, epochs=8)
    assert 0.3 * float(exact) < found.value < float(exact) + 5 * found.stderr
    with pytest.raises(ValueError, match="at least 200 test examples"):
        contrast_bound(lambda part, seed: (x[part],), {**x, "test": x["test"][:150]}, epochs=1)


def test_what_an_attacker_reads_of_that_channel_is_below() -> None:
    from pyrostoch.obfuscate.attackers import Attribute, read_by, train_attacker

    client, a = linear_channel()
    x = torch.randn(3000, INPUTS)
    s = (x[:, 0] > 0).long()
    parts = {"train": slice(1000), "validation": slice(1000, 1500), "test": slice(1500, 3000)}

    def send(part: str, seed: int) -> tuple[Tensor, ...]:
        return client.send(x[parts[part]], seed=seed)

    attack = Attribute(2)
    wanted = {part: s[rows] for part, rows in parts.items()}
    trained = train_attacker(attack, send, wanted, epochs=15, until_it_stops=False)
    loss = attack.loss(read_by(trained.network, send("test", 9)), s[1500:])
    told = math.log(2.0) - float(loss.mean())
    exact = 0.5 * torch.logdet(torch.eye(UNITS) + torch.diag(NOISE**-2) @ a @ a.T)
    assert told < exact + 5 * float(loss.std()) / 1500**0.5


def test_fisher_information_of_a_linear_channel_is_exact() -> None:
    client, a = linear_channel()
    information = a.T @ torch.diag(NOISE**-2) @ a
    exact = INPUTS / float(information.trace())
    found = fisher_bound(client, torch.randn(500, INPUTS), probes=200)
    assert found.value == pytest.approx(exact, rel=0.02)
    assert fisher_bound(client, torch.randn(500, INPUTS), probes=200, queries=10).value == pytest.approx(
        exact / 10, rel=0.02
    )


def test_fisher_information_counts_noise_that_depends_on_the_input() -> None:
    torch.set_default_dtype(torch.float64)
    layer = StochasticLinear(3, 5)
    client = client_of(nn.Sequential(layer, nn.Linear(5, 2)))
    x = torch.randn(6, 3)

    def parameters(one: Tensor) -> Tensor:
        q: Any = layer.activation_distribution(one[None])
        return torch.stack([q.mean[0], q.stddev[0]])

    traces = []
    for one in x:
        mean, scale = torch.func.jacrev(parameters)(one).detach()
        sigma = parameters(one)[1].detach()
        traces.append(float(((mean.square() + 2 * scale.square()).sum(1) / sigma**2).sum()))
    expected = 3 * len(traces) / sum(traces)
    found = fisher_bound(client, x, probes=4000)
    assert found.value == pytest.approx(expected, rel=0.03)


def test_bits_tell_at_most_what_their_bound_says() -> None:
    layer = StochasticLinear(2, 2, distribution="bernoulli")
    client = client_of(nn.Sequential(layer, nn.Linear(2, 2)))
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    with torch.no_grad():
        p: Tensor = layer.activation_distribution(corners).probs.double()  # type: ignore[attr-defined]
    words = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    given = (words[None] * p[:, None] + (1 - words[None]) * (1 - p[:, None])).prod(-1)
    exact = float((given * (given / given.mean(0)).log()).sum(1).mean())
    x = corners.repeat(1000, 1)
    found = rate_bound(client, x, x, draws=5)
    assert found.rate.value > exact - 5 * found.rate.stderr
    assert found.marginals == ("independent bits",)


def test_known_classes_and_random_weights_have_bounds() -> None:
    layer = Conditional(lambda: StochasticAdditive(3, scale=0.5), 2, where="output")
    with torch.no_grad():
        layer.classes[1].get_parameter("loc").fill_(4.0)
    client = client_of(embody.prepend(nn.Linear(3, 2), layer), "stochastic")
    x, y = torch.zeros(400, 3), torch.arange(400) % 2
    found = rate_bound(client, x, x, y=y, labels=y, labels_test=y)
    # Which of two far apart means was chosen is all that is told: one bit.
    assert found.with_labels
    assert found.rate.value == pytest.approx(math.log(2.0), abs=0.05)
    assert str(found).startswith("I((x, c); z) <= ")
    net = nn.Sequential(nn.Linear(3, 4), StochasticAdditive(4, scale=0.5), nn.Linear(4, 2))
    assert rate_bound(client_of(net, "1", ps.priors.Normal()), torch.randn(50, 3), torch.randn(20, 3)).rate.value > 0


class Around(nn.Module):
    """Sends the input's first entry beside the draws."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.join, self.last = StochasticAdditive(3, scale=0.5), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.join(torch.cat([self.noise(x), x[:, :1]], 1)))


def test_where_there_is_no_bound_that_is_said() -> None:
    x = torch.randn(20, 3)
    with pytest.raises(ValueError, match="path around"):
        rate_bound(client_of(Around(), "join"), x, x)
    with pytest.raises(ValueError, match="path around"):
        fisher_bound(client_of(Around(), "join"), x)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="draws no activations"):
        rate_bound(client_of(plain), x, x)
    relaxed = nn.Sequential(StochasticLinear(3, 4, distribution="bernoulli", gradient="relaxed"), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="relaxed activations of Bernoulli"):
        rate_bound(client_of(relaxed), x, x)
    counts = nn.Sequential(StochasticLinear(3, 4, distribution="poisson"), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="Poisson"):
        rate_bound(client_of(counts), x, x)
    laplace = nn.Sequential(StochasticLinear(3, 4, distribution="laplace"), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="one layer of Gaussian"):
        fisher_bound(client_of(laplace), x)


def test_layers_behind_the_cut_do_not_count() -> None:
    net = nn.Sequential(StochasticAdditive(3, scale=0.5), nn.Linear(3, 4), StochasticAdditive(4, scale=1e-3))
    whole = nn.Sequential(net, nn.Linear(4, 2))
    x = torch.randn(200, 3)
    one = rate_bound(client_of(whole, "0.0"), x, x)
    alone = rate_bound(client_of(nn.Sequential(net[0], nn.Linear(3, 2))), x, x)
    assert one.rate.value == pytest.approx(alone.rate.value, abs=0.2)
    assert len(one.marginals) == 1


@pytest.mark.parametrize(("scale", "queries"), [(0.5, 1), (1.0, 3), (4.0, 100), (20.0, 10)])
def test_the_gaussian_mechanism_agrees_with_an_integral(scale: float, queries: int) -> None:
    mpmath = pytest.importorskip("mpmath")
    epsilon = 1.3
    size = mpmath.sqrt(queries) / scale

    def excess(t: Any) -> Any:
        # The largest probability under one input less e^epsilon times that under the other.
        return max(mpmath.npdf(t, size, 1) - mpmath.exp(epsilon) * mpmath.npdf(t, 0, 1), 0)

    edge = epsilon / size + size / 2
    exact = mpmath.quad(excess, [edge, edge + 2, edge + 6, edge + 20])
    assert gaussian_delta(epsilon, scale, 1.0, queries) == pytest.approx(float(exact), rel=1e-6, abs=1e-12)


def test_epsilon_is_that_of_its_delta() -> None:
    for scale, queries in ((0.3, 1), (2.0, 10), (9.0, 100)):
        epsilon = gaussian_epsilon(scale, 1.0, 1e-5, queries)
        assert gaussian_delta(epsilon, scale, 1.0, queries) == pytest.approx(1e-5, rel=1e-6)
    assert gaussian_epsilon(1e7, 1.0) == 0.0
    with pytest.raises(ValueError, match="delta"):
        gaussian_epsilon(1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="scale"):
        gaussian_epsilon(0.0, 1.0)


def test_draws_that_the_network_overwrites_are_counted_as_they_were_drawn() -> None:
    x = torch.randn(300, 3)
    found = [
        rate_bound(client_of(nn.Sequential(StochasticAdditive(3, scale=0.5), last, nn.Linear(3, 2))), x, x, draws=3)
        for last in (nn.ReLU(inplace=True), nn.ReLU())
    ]
    assert found[0].rate.value == pytest.approx(found[1].rate.value, abs=1e-5)


def test_small_copies_of_the_input_beside_the_draws_are_found() -> None:
    class Copy(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.join(torch.cat([self.noise(x), 1e-5 * x[:, :1]], 1)))

    x = torch.randn(50, 3)
    with pytest.raises(ValueError, match="path around"):
        rate_bound(client_of(Copy(), "join"), x, x)


def test_what_a_class_alone_sends_is_found_though_labels_are_sorted() -> None:
    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise = StochasticAdditive(3, scale=0.5)
            self.tell, self.last = Conditional(lambda: nn.Linear(3, 3), 2, where="output"), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.tell(self.noise(x)))

    x, y = torch.randn(100, 3), (torch.arange(100) >= 50).long()
    with pytest.raises(ValueError, match="path around"):
        rate_bound(client_of(Telling(), "tell"), x, x, y=y, labels=y, labels_test=y)


def test_absent_activations_mixtures_and_random_weights_have_no_such_bound() -> None:
    x = torch.randn(20, 3)
    layer = Conditional(lambda: StochasticAdditive(3, scale=0.5), 2, where="output", background="zero")
    mask = torch.zeros(20, 3, 3)
    mask[:, 0, 0] = mask[:, 2, 1:] = 1.0

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mask[:1].expand(len(x), 3, 3)

    layer.selection = Fixed()
    client = client_of(embody.prepend(nn.Linear(3, 2), layer), "stochastic")
    with pytest.raises(ValueError, match="absent"):
        rate_bound(client, x, x)
    sender = Sender(client, x)
    assert not sender.draws_alone
    assert bool((sender.send(1, seed=0)[0][:, 1:] == 0).all())
    mixed = Conditional(
        lambda: StochasticAdditive(3, scale=0.5), 2, GatedSelection(nn.Linear(3, 2)), where="output", combine="mixture"
    )
    with pytest.raises(ValueError, match="mixtures"):
        fisher_bound(client_of(embody.prepend(nn.Linear(3, 2), mixed), "stochastic"), x)
    net = nn.Sequential(nn.Linear(3, 4), StochasticAdditive(4, scale=0.5), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="random weights"):
        fisher_bound(client_of(net, "1", ps.priors.Normal()), x)

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise, self.last = StochasticAdditive(3, scale=0.5), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.noise(x.detach()))

    with pytest.raises(ValueError, match="no gradient"):
        fisher_bound(client_of(Detached(), "noise"), x)


@pytest.mark.parametrize("combine", ["mixture", "mixture-by-example"])
def test_mixtures_have_a_rate(combine: Any) -> None:
    mixed = Conditional(
        lambda: StochasticAdditive(3, scale=0.5), 2, GatedSelection(nn.Linear(3, 2)), where="output", combine=combine
    )
    x = torch.randn(200, 3)
    assert rate_bound(client_of(embody.prepend(nn.Linear(3, 2), mixed), "stochastic"), x, x).rate.value > 0.0


def test_extreme_arguments_of_the_mechanism_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        gaussian_delta(float("nan"), 1.0, 1.0)
    with pytest.raises(ValueError, match="hides nothing"):
        gaussian_epsilon(1e-9, 1.0)
