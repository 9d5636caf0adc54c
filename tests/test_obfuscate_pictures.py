"""Pictures of an audit, and what it says of noise, of random weights and of how far it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.layers import StochasticAdditive, StochasticLinear
from pyrostoch.obfuscate import Audit, Client, Sender, audit
from pyrostoch.obfuscate.pictures import Pictures, rounded

QUICK: dict[str, Any] = {"queries": (1, 3), "epochs": 1, "most_epochs": 1, "inverted": 0, "bounds": False}


def client_of(net: nn.Module, at: str, prior: Any = None) -> Client:
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=10)
    return Client(model, ps.guides.Additive(model), at)


def images(count: int, shape: tuple[int, ...] = (1, 6, 6)) -> tuple[Tensor, Tensor]:
    """Images sorted by class, the second one brighter."""
    y = (torch.arange(count) >= count // 2).long()
    return 0.5 * torch.rand(count, *shape) + 0.5 * y.reshape(-1, *[1] * len(shape)), y


def audited(shape: tuple[int, ...] = (1, 6, 6), dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    (x, y), (x_test, y_test) = images(60, shape), images(30, shape)
    size = torch.Size(shape).numel()
    net = nn.Sequential(StochasticAdditive(shape, scale=0.3), nn.Flatten(), nn.Linear(size, 2)).to(dtype)
    found = audit(client_of(net, "0"), (x.to(dtype), y), (x_test.to(dtype), y_test), **{**QUICK, **settings})
    return found, x_test.to(dtype), y_test


def test_pictures_are_of_test_images_from_all_over() -> None:
    found, x_test, y_test = audited(queries=(1, 100), inverted=4, steps=5)
    pictures = found.pictures
    rows = [int((x_test.double() - image).abs().flatten(1).amax(1).argmin()) for image in pictures.originals]
    assert len(set(rows)) == 6
    torch.testing.assert_close(pictures.originals, x_test[rows].double(), atol=1e-3, rtol=0)
    assert set(y_test[rows].tolist()) == {0, 1}
    assert pictures.low >= 0 and 0.5 < pictures.high <= 1
    # One query has the layer's noise, the mean of a hundred a tenth of it.
    noise = {count: float((sent - pictures.originals).std()) for count, sent in pictures.sent.items()}
    assert noise[1] == pytest.approx(0.3, rel=0.3)
    assert noise[100] == pytest.approx(0.03, rel=0.3)
    # Of the attacks by optimization there are as many as were made.
    counts = {name: [len(part) for part in by.values()] for name, by in pictures.found.items()}
    assert counts == {
        "reconstruction": [6, 6],
        "optimization, normal prior": [4, 4],
        "optimization, generative prior": [4, 4],
    }
    searched, images = pictures.found["optimization, normal prior"][100], pictures.originals[:4]
    error, other = ((searched - part).square().mean() for part in (images, images.flip(0)))
    assert error < 0.5 * other


def test_an_audit_becomes_json_with_its_verdicts() -> None:
    found, _, _ = audited(bounds=True)
    plain = json.loads(json.dumps(found.to_dict()))
    assert [row["verdict"] for row in plain["attacks"]] == [row.verdict for row in found.attacks]
    assert plain["task"] == {"value": found.task.value, "stderr": found.task.stderr, "count": 30}
    assert plain["pictures"]["sent"]["3"] == found.pictures.sent[3].tolist()


def test_other_inputs_than_images_have_no_pictures() -> None:
    assert audited((5,))[0].pictures is None
    assert audited((2, 5, 5))[0].pictures is None
    assert audited((3, 5, 5))[0].pictures.originals.shape == (6, 3, 5, 5)


def test_many_channels_are_cut_and_digits_are_few() -> None:
    pictures = Pictures(0.0, 1.0, torch.rand(2, 1, 4, 4))
    pictures.keep_sent(1, (torch.rand(2, 7), torch.rand(2, 40, 3, 3)))
    pictures.keep_sent(10, (torch.rand(2, 7),))
    assert {count: part.shape for count, part in pictures.sent.items()} == {1: (2, 16, 3, 3)}
    for size in (1e-6, 1.0, 255.0, 1e6):
        values = size * torch.rand(100)
        assert float((rounded(values) - values).abs().max()) < 6e-3 * size
        assert max(len(str(value)) for value in rounded(values).tolist()) < 12
    assert rounded(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_networks_of_double_precision_are_audited() -> None:
    found, _, _ = audited(dtype=torch.float64, inverted=2, steps=2, bounds=True)
    assert len(found.attacks) == 6 and found.least is None


def test_parts_are_told_as_they_begin() -> None:
    told: list[tuple[str, int, int]] = []
    audited(inverted=2, steps=2, bounds=True, callback=lambda *part: told.append(part))
    assert [part for part, _, _ in told] == [
        "reconstruction, without noise",
        "reconstruction, 1 query",
        "reconstruction, 3 queries",
        "attacks by optimization",
        "bounds from above",
        "bound from below",
    ]
    assert [done for _, done, _ in told] == list(range(6)) and {total for _, _, total in told} == {6}


def test_a_cut_without_noise_and_random_weights_are_said() -> None:
    (x, y), test = images(60, (4,)), images(30, (4,))
    net = nn.Sequential(nn.Linear(4, 3), StochasticAdditive(3, scale=0.5), nn.Linear(3, 2))

    def found(at: str, prior: Any = None) -> Audit:
        return audit(client_of(net, at, prior), (x, y), test, **QUICK)

    assert str(found("0")).startswith("Two queries of the same examples sent the same: what is sent has no noise.")
    assert "no noise" not in str(found("1"))
    random = found("0", {"0.weight": ps.priors.Normal(), "2.weight": ps.priors.Normal()})
    assert random.noisy and random.weights == ("0.weight",)
    assert "Weights are random (0.weight): a query draws them once for all examples" in str(random)


def test_random_weights_behind_the_cut_leave_a_sender_quick() -> None:
    net = nn.Sequential(StochasticLinear(3, 2), nn.Linear(2, 2))
    prior = {"1.weight": ps.priors.Normal()}
    x = torch.randn(1, 3).expand(4000, 3)
    client = client_of(net, "0", prior)
    sender = Sender(client, x)
    assert sender.draws_alone
    (quick,), (slow,) = sender.send(1, seed=0), client.send(x, seed=1)
    error = (quick.var(0) / 4000 + slow.var(0) / 4000).sqrt()
    assert bool(((quick.mean(0) - slow.mean(0)).abs() < 5 * error).all())
    assert not Sender(client_of(net, "0", {"0.kernel.weight": ps.priors.Normal()}), x).draws_alone
    assert not Sender(client_of(net, "1", prior), x).draws_alone


def test_an_attribute_is_not_named_as_an_attack() -> None:
    (x, y), (x_test, y_test) = images(60), images(30)
    net = nn.Sequential(StochasticAdditive((1, 6, 6), scale=0.3), nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(ValueError, match="'reconstruction' is the name of an attack"):
        audit(client_of(net, "0"), (x, y), (x_test, y_test), private={"reconstruction": (y, y_test)}, **QUICK)
