"""Noise that a key fixes: the same for the same input, fresh for any other, and averaged out by near-duplicates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.layers import StochasticAdditive
from pyrostoch.obfuscate import Client, KeyedClient, audit

KEY, OTHER = b"0123456789abcdef", b"0123456789abcdeg"


def client_of(net: nn.Module, at: str = "0") -> Client:
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=10)
    return Client(model, ps.guides.Additive(model), at)


def networks() -> dict[str, Client]:
    """One whose draws are sent, one that sends what it makes of them."""
    return {
        "draws": client_of(nn.Sequential(StochasticAdditive(3, scale=0.5), nn.Linear(3, 2))),
        "behind": client_of(
            nn.Sequential(StochasticAdditive(3, scale=0.5), nn.Identity(), nn.Tanh(), nn.Linear(3, 2)), "2"
        ),
    }


@pytest.mark.parametrize("kind", ["draws", "behind"])
def test_noise_depends_on_the_input_and_the_key_alone(kind: str) -> None:
    client = networks()[kind]
    x = torch.randn(5, 3)
    (one,) = KeyedClient(client, KEY).send(x)
    torch.manual_seed(99)
    (two,) = KeyedClient(client, KEY).send(x.flip(0))
    torch.testing.assert_close(one, two.flip(0))
    assert not bool((one == KeyedClient(client, OTHER).send(x)[0]).any())
    (near,) = KeyedClient(client, KEY).send(x + 1e-6)
    assert bool(((one - near).abs().amax(1) > 1e-3).all())


def test_its_noise_is_the_layers_and_near_duplicates_average_it_out() -> None:
    client = KeyedClient(networks()["draws"], KEY)
    x = torch.randn(3000, 3)
    error = client.send(x)[0] - x
    assert abs(error.double().std() - 0.5) < 5 * 0.5 / 18000**0.5
    assert abs(error.double().mean()) < 5 * 0.5 / 9000**0.5
    many = client.send_near(x, 25)[0] - x
    assert abs(many.double().std() - 0.1) < 5 * 0.1 / 18000**0.5
    # Asking again for the same input gives nothing new.
    assert torch.equal(client.send_near(x, 1)[0], client.send(x)[0])


def test_an_audit_of_keyed_noise_says_so_and_has_no_bound() -> None:
    x = torch.rand(90, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    net = nn.Sequential(StochasticAdditive((1, 6, 6), scale=0.5), nn.Flatten(), nn.Linear(36, 2))
    found: Any = audit(
        client_of(net),
        (x[:50], y[:50]),
        (x[50:], y[50:]),
        queries=(1, 2),
        epochs=1,
        most_epochs=1,
        key=KEY,
        inverted=5,
        steps=2,
    )
    assert str(found).startswith("Noise is fixed by a secret key")
    assert found.rate is None
    assert "fixed by a key" in found.no_bound
    assert [row.queries for row in found.attacks] == [1, 2] * 3
    with pytest.raises(TypeError, match="key="):
        audit(KeyedClient(client_of(net), KEY), (x, y), (x, y))  # type: ignore[arg-type]


def test_keys_that_are_none_are_refused() -> None:
    client = networks()["draws"]
    with pytest.raises(TypeError, match="bytes"):
        KeyedClient(client, "a password of some length")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="16 bytes"):
        KeyedClient(client, b"short")
