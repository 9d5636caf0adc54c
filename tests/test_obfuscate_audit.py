"""Attackers against the best that can be read, quick senders against whole networks, and what an audit says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.layers import Conditional, GatedSelection, StochasticAdditive, StochasticLinear, embody
from pyrostoch.metrics import psnr, ssim
from pyrostoch.obfuscate import Client, GaussianPrior, GenerativePrior, Sender, audit, invert, multiplications
from pyrostoch.obfuscate.attackers import Attribute, Reconstruction, read_by, train_attacker

PARTS = {"train": slice(3000), "validation": slice(3000, 4000), "test": slice(4000, 8000)}


def client_of(net: nn.Module, at: str = "0") -> Client:
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=10)
    return Client(model, ps.guides.Additive(model), at)


def trained_on(x: Tensor, wanted: Tensor, attack: Any, queries: int, scale: float = 1.0) -> Tensor:
    """The scores of an attacker on test examples under additive noise."""
    sender = {part: x[rows] for part, rows in PARTS.items()}
    generators: dict[int, Any] = {}

    def send(part: str, seed: int) -> tuple[Tensor, ...]:
        generators[seed] = torch.Generator().manual_seed(seed % 2**31)
        noise = torch.randn(sender[part].shape, generator=generators[seed])
        return (sender[part] + scale / queries**0.5 * noise,)

    targets = {part: wanted[rows] for part, rows in PARTS.items()}
    found = train_attacker(attack, send, targets, epochs=60, until_it_stops=True)
    assert found.stopped
    scores: Tensor = attack.score(read_by(found.network, send("test", 12345)), targets["test"])
    return scores


@pytest.mark.parametrize("queries", [1, 4])
def test_an_attribute_is_read_as_well_as_can_be(queries: int) -> None:
    s = torch.randint(2, (8000,))
    x = (2.0 * s - 1.0)[:, None].repeat(1, 2)
    scores = trained_on(x, s, Attribute(2), queries)
    best = 100 * 0.5 * (1 + math.erf(math.sqrt(2.0 * queries) / math.sqrt(2.0)))
    error = float(scores.std()) / 4000**0.5
    assert best - 5 * error - 1.0 < float(scores.mean()) < best + 5 * error


@pytest.mark.parametrize("queries", [1, 4])
def test_a_reconstruction_comes_near_the_posterior_mean(queries: int) -> None:
    x = torch.randn(8000, 2)
    scores = trained_on(x, x, Reconstruction((2,)), queries)
    best = (1 / queries) / (1 + 1 / queries)
    error = float(scores.std()) / 4000**0.5
    assert best - 5 * error < float(scores.mean()) < 1.1 * best + 5 * error


def test_training_ends_when_nothing_more_is_learned_or_says_that_it_has_not() -> None:
    x, s = torch.randn(600, 3), torch.randint(2, (600,))
    parts = {"train": slice(400), "validation": slice(400, 600)}
    targets = {part: s[rows] for part, rows in parts.items()}

    def send(part: str, seed: int) -> tuple[Tensor, ...]:
        return (x[parts[part]],)

    short = train_attacker(Attribute(2), send, targets, epochs=2, until_it_stops=True)
    assert (short.epochs, short.stopped) == (2, False)
    long = train_attacker(Attribute(2), send, targets, epochs=200, until_it_stops=True)
    assert long.stopped
    assert long.epochs < 200
    # The parameters are those of the best epoch.
    now = Attribute(2).loss(read_by(long.network, send("validation", 0)), targets["validation"]).mean()
    assert float(now) == pytest.approx(long.loss, rel=1e-5)


@pytest.mark.parametrize("distribution", ["gaussian", "laplace", "bernoulli"])
def test_a_sender_draws_what_the_network_would_send(distribution: str) -> None:
    client = client_of(nn.Sequential(StochasticLinear(3, 2, distribution=distribution), nn.Linear(2, 2)))
    x = torch.randn(1, 3).expand(4000, 3)
    sender = Sender(client, x)
    assert sender.draws_alone
    for queries in (1, 5):
        (quick,), (slow,) = sender.send(queries, seed=0), client.send(x, mode=f"mc:{queries}", seed=1)
        error = (quick.var(0) / 4000 + slow.var(0) / 4000).sqrt()
        assert bool(((quick.mean(0) - slow.mean(0)).abs() < 5 * error).all())
        # The error of a variance is at most that of a law with a kurtosis of 6, for a Laplace.
        assert bool((quick.var(0) / slow.var(0) - 1).abs().max() < 5 * (2 * 5 / 4000) ** 0.5)
    assert torch.equal(sender.send(1, seed=3)[0], sender.send(1, seed=3)[0])
    assert not torch.equal(sender.send(1, seed=3)[0], sender.send(1, seed=4)[0])
    torch.testing.assert_close(sender.noise_free()[0], client.send(x, mode="noise-free")[0])


def test_a_sender_runs_the_network_where_something_else_is_sent() -> None:
    behind = client_of(nn.Sequential(StochasticAdditive(3, scale=0.5), nn.Tanh(), nn.Linear(3, 2)), "1")
    sender = Sender(behind, torch.randn(10, 3))
    assert not sender.draws_alone
    assert sender.send(2, seed=0)[0].shape == (10, 3)
    net = nn.Sequential(nn.Linear(3, 3), StochasticAdditive(3, scale=0.5), nn.Linear(3, 2))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=10)
    random = Client(model, ps.guides.Additive(model), "1")
    assert not Sender(random, torch.randn(10, 3)).draws_alone


@pytest.mark.parametrize("combine", ["shared", "independent", "mixture"])
def test_a_sender_combines_classes_as_the_layer_does(combine: str) -> None:
    layer = Conditional(
        lambda: StochasticAdditive(2, scale=0.3),
        2,
        GatedSelection(nn.Linear(2, 2)),
        where="output",
        combine=combine,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        layer.classes[1].get_parameter("loc").fill_(3.0)
    client = client_of(nn.Sequential(layer, nn.Linear(2, 2)))
    x = torch.randn(1, 2).expand(4000, 2)
    sender = Sender(client, x)
    assert sender.draws_alone
    (quick,), (slow,) = sender.send(1, seed=0), client.send(x, seed=1)
    error = (quick.var(0) / 4000 + slow.var(0) / 4000).sqrt()
    assert bool(((quick.mean(0) - slow.mean(0)).abs() < 5 * error).all())
    assert bool((quick.std(0) / slow.std(0) - 1).abs().max() < 0.1)


def test_the_share_of_multiplications_is_that_counted_by_hand() -> None:
    net = nn.Sequential(nn.Linear(10, 20), StochasticAdditive(20, scale=0.5), nn.Linear(20, 5), nn.Linear(5, 2))
    client = client_of(net, "1")
    assert multiplications(client, torch.randn(1, 10)) == pytest.approx(200 / (200 + 100 + 10))


@pytest.mark.parametrize("queries", [1, 10])
def test_the_most_probable_input_of_a_linear_channel_is_its_posterior_mean(queries: int) -> None:
    torch.set_default_dtype(torch.float64)
    layer = StochasticLinear(4, 3)
    weight, bias = layer.get_parameter("kernel.weight"), layer.get_parameter("kernel.bias")
    noise = torch.tensor([0.5, 0.8, 1.0])
    with torch.no_grad():
        weight[3:].zero_()
        bias[3:] = noise.expm1().log()
    client = client_of(nn.Sequential(layer, nn.Linear(3, 2)))
    x = torch.randn(2000, 4) @ torch.randn(4, 4) + 1.0
    sent = client.send(x[:20], mode=f"mc:{queries}")
    a, b = weight[:3].detach(), bias[:3].detach()
    prior = GaussianPrior(x)
    covariance = prior.factor @ prior.factor.T
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + torch.diag(noise**2) / queries)
    exact = prior.mean + (sent[0] - prior.mean @ a.T - b) @ gain.T
    torch.testing.assert_close(invert(client, sent, prior, queries=queries), exact, rtol=1e-3, atol=1e-3)


def test_a_generative_prior_knows_what_inputs_look_like() -> None:
    (x, _, _), (x_test, _, _) = images(1000), images(30)
    client = client_of(nn.Sequential(StochasticAdditive((1, 6, 6), scale=1.0), nn.Flatten(), nn.Linear(36, 2)))
    sent = client.send(x_test)
    prior = GenerativePrior(x, latents=6, epochs=30)
    found = invert(client, sent, prior)
    assert (found - x_test).square().mean() < 0.5 * (sent[0] - x_test).square().mean()
    assert found.shape == x_test.shape
    assert not any(parameter.grad is not None for parameter in client.model.parameters())


def test_what_has_no_known_density_is_not_inverted() -> None:
    net = nn.Sequential(StochasticAdditive((1, 6, 6), scale=1.0), nn.Flatten(), nn.Tanh(), nn.Linear(36, 2))
    client, x = client_of(net, "2"), torch.rand(20, 1, 6, 6)
    with pytest.raises(ValueError, match="draws of one layer of normal activations"):
        invert(client, client.send(x), GaussianPrior(x))


def images(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images whose task label is their brightness, and whose private attribute is one bright corner of four."""
    x = 0.2 * torch.rand(count, 1, 6, 6)
    y, s = torch.randint(2, (count,)), torch.randint(4, (count,))
    x[:, 0, 2:4, 2:4] += 0.8 * y[:, None, None]
    x[torch.arange(count), 0, (s // 2) * 5, (s % 2) * 5] += 0.8
    return x, y, s


def audited(scale: float, **settings: Any) -> Any:
    (x, y, s), (x_test, y_test, s_test) = images(600), images(400)
    net = nn.Sequential(StochasticAdditive((1, 6, 6), scale=scale), nn.Flatten(), nn.Linear(36, 2))
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=600)
    guide = ps.guides.Additive(model)
    ps.fit(model, guide, (x, y), epochs=20, lr=0.02, progress=False, compile=False, seed=0)
    given: dict[str, Any] = {"queries": (1,), "epochs": 3, "most_epochs": 30, "inverted": 10, "steps": 5}
    given["private"] = {"corner": (s, s_test)}
    found = audit(Client(model, guide, "0"), (x, y), (x_test, y_test), **{**given, **settings})
    if found.reconstruction is not None:
        with torch.no_grad():
            noise: Any = net[0].activation_distribution(x[:1])  # type: ignore[operator]
        assert found.reconstruction.value == pytest.approx(36 / float(noise.stddev.pow(-2).sum()), rel=1e-4)
    return found


def test_an_audit_tells_small_noise_from_large() -> None:
    small, large = audited(0.3, most_epochs=100), audited(5.0, inverted=0)
    by_name = {row.attack: row for row in small.attacks}
    assert by_name["corner"].score.value > 90.0
    assert by_name["corner"].verdict == "reads more than the label tells"
    assert by_name["corner"].label < 40.0
    assert by_name["corner"].information.value > 1.0
    assert by_name["reconstruction"].score.value < by_name["reconstruction"].label
    assert by_name["reconstruction"].ssim > by_name["reconstruction"].ssim_label
    assert {"optimization, normal prior", "optimization, generative prior"} <= set(by_name)
    assert by_name["optimization, normal prior"].score.value < by_name["reconstruction"].label
    by_name = {row.attack: row for row in large.attacks}
    assert by_name["corner"].score.value < 45.0
    assert by_name["corner"].information.value < small.rate.rate.value
    assert large.rate.rate.value < small.rate.rate.value
    assert large.reconstruction.value > 10 * small.reconstruction.value
    text = str(small)
    assert "sent at 0; 400 test examples" in text
    assert "corner, 1 query: reads more" in text
    assert small.to_dict()["attacks"][1]["attack"] == "corner"


def test_an_attacker_that_ten_times_the_training_improves_is_too_weak() -> None:
    found = audited(5.0, epochs=1, most_epochs=3, bounds=False, inverted=0)
    assert any("too weak" in row.verdict or "still more" in row.verdict for row in found.attacks)
    assert found.rate is None
    assert "no bound: not asked for" in str(found)
    assert "not made: attacks by optimization: not asked for" in str(found)


def test_known_labels_are_said_first() -> None:
    (x, y, _), (x_test, y_test, _) = images(60), images(40)
    layer = Conditional(lambda: StochasticAdditive((1, 6, 6), scale=0.5), 2, where="output")
    net = embody.prepend(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), layer)
    client = client_of(net, "stochastic")
    found = audit(client, (x, y), (x_test, y_test), labels=True, queries=(1,), epochs=1, most_epochs=1, bounds=True)
    assert str(found).startswith("The client knows the label")
    assert found.rate.with_labels


def naive_ssim(x: Tensor, y: Tensor, size: int) -> float:
    """Place by place, with explicit weights."""
    places = [i - size // 2 for i in range(size)]
    weights = torch.tensor([[math.exp(-(a * a + b * b) / (2 * 1.5**2)) for b in places] for a in places]).double()
    weights /= weights.sum()
    found = []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            p, q = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            mx, my = (weights * p).sum(), (weights * q).sum()
            vx, vy = (weights * (p - mx) ** 2).sum(), (weights * (q - my) ** 2).sum()
            cov = (weights * (p - mx) * (q - my)).sum()
            found.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(torch.stack(found).mean())


@pytest.mark.parametrize(("height", "width", "size"), [(13, 15, 11), (8, 9, 7), (12, 6, 5)])
def test_structural_similarity_agrees_with_a_loop(height: int, width: int, size: int) -> None:
    x, y = torch.rand(2, 2, height, width).double(), torch.rand(2, 2, height, width).double()
    expected = [sum(naive_ssim(x[n, c], y[n, c], size) for c in range(2)) / 2 for n in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-6)
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0])


def test_peaks_are_in_decibels_and_other_shapes_are_refused() -> None:
    assert psnr(1e-3) == pytest.approx(30.0)
    assert psnr(255.0**2, value_range=255.0) == pytest.approx(0.0)
    assert psnr(0.0) == math.inf
    with pytest.raises(ValueError, match="of one shape"):
        ssim(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 9))


@pytest.mark.parametrize("kind", ["dropout", "noise", "batch", "clamp"])
def test_a_sender_draws_alone_only_where_nothing_else_is_random(kind: str) -> None:
    class Front(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if kind == "dropout":
                return nn.functional.dropout(x, 0.5, training=True)
            return x + torch.randn_like(x) if kind == "noise" else x

    front = nn.BatchNorm1d(3, track_running_stats=False) if kind == "batch" else Front()
    layer: nn.Module = StochasticAdditive(3, scale=0.1)
    layer = nn.Sequential(layer, nn.Hardtanh(-50.0, 50.0)) if kind == "clamp" else layer
    client = client_of(nn.Sequential(front, layer, nn.Linear(3, 2)), "1")
    assert not Sender(client, torch.randn(1500, 3)).draws_alone


def test_units_of_very_different_size_are_read() -> None:
    x = torch.randn(8000, 2)
    s = (x[:, 1] > 0).long()
    scores = trained_on(x * torch.tensor([1e4, 1.0]), s, Attribute(2), 1, scale=0.01)
    assert float(scores.mean()) > 95.0


def test_what_is_read_of_a_rare_attribute_counts_though_no_guess_changes() -> None:
    from pyrostoch.obfuscate.audit_record import Strength
    from pyrostoch.obfuscate.scores import attack_result

    hint = torch.randint(2, (4000,))
    s = (torch.rand(4000) < torch.where(hint == 1, 0.3, 0.02)).long()
    p = torch.where(hint == 1, 0.3, 0.02)
    output = torch.stack([(1 - p).log(), p.log()], 1)
    y = torch.zeros(4000).long()
    how: dict[str, Any] = {"queries": 1, "strength": Strength(99.0, 99.0, True), "epochs": 1, "stopped": True}
    found = attack_result("rare", Attribute(2), output, (s, s), (y, y), value_range=1.0, **how)
    assert found.score.value == pytest.approx(found.label)
    assert found.verdict == "reads more than the label tells"
    blind = torch.tensor([[0.84, 0.16]]).log().expand(4000, 2)
    none = attack_result("rare", Attribute(2), blind, (s, s), (y, y), value_range=1.0, **how)
    assert none.verdict == "reads no more than the label tells"
