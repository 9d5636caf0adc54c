"""What an audit is given, and when its attackers are strong enough for a verdict."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.layers import StochasticAdditive
from pyrostoch.metrics.running import Estimate
from pyrostoch.obfuscate import Client, audit


def client_of(net: nn.Module, at: str = "0") -> Client:
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=10)
    return Client(model, ps.guides.Additive(model), at)


def test_data_that_do_not_fit_are_named() -> None:
    client = client_of(nn.Sequential(StochasticAdditive(3, scale=0.5), nn.Linear(3, 2)))
    x, y = torch.randn(80, 3), torch.zeros(80).long()
    own, test = (x[:40], y[:40]), (x[40:], y[40:])
    with pytest.raises(TypeError, match=r"audit data: expected tensors \(x, y\)"):
        audit(client, x, test)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="audit test"):
        audit(client, own, (x, y[1:]))
    with pytest.raises(ValueError, match="no classification"):
        audit(client, (x[:40], x[:40, 0]), test)
    with pytest.raises(ValueError, match="audit test: expected at least 30 examples, got 10"):
        audit(client, own, (x[:10], y[:10]))
    with pytest.raises(ValueError, match="got the same"):
        audit(client, own, own)
    for queries in ((0,), (), 1, "1"):
        with pytest.raises(ValueError, match="queries"):
            audit(client, own, test, queries=queries)  # type: ignore[arg-type]


def test_attributes_that_do_not_fit_are_named() -> None:
    client = client_of(nn.Sequential(StochasticAdditive(3, scale=0.5), nn.Linear(3, 2)))
    x, y = torch.randn(80, 3), torch.zeros(80).long()
    s = torch.arange(40) % 2

    def refused(private: Any, message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            audit(client, (x[:40], y[:40]), (x[40:], y[40:]), private=private)

    refused((s, s), "attributes by name", TypeError)
    refused({"s": s}, "private='s': expected a pair", TypeError)
    refused({"s": (s, s[1:])}, "40 examples of test")
    refused({"s": (s.double(), s)}, "float64.*unique")
    refused({"s": (s - 1, s)}, "numbered 0, 1, 2.*from -1 to 0")
    refused({"s": (s * 1_000_000, s)}, "numbered 0, 1, 2.*1000000")
    refused({"s": (s, s + 1)}, "have the values '2'")
    refused({"s": (s * 0, s * 0)}, "nothing to read")
    refused({"reconstruction": (s, s)}, "another one")


def test_an_attribute_may_be_true_or_false() -> None:
    client = client_of(nn.Sequential(StochasticAdditive(3, scale=0.5), nn.Linear(3, 2)))
    x = torch.randn(80, 3)
    y, s = (x[:, 0] > 0).long(), x[:, 1] > 0
    found = audit(
        client,
        (x[:40], y[:40]),
        (x[40:], y[40:]),
        private={"s": (s[:40], s[40:])},
        queries=(1,),
        epochs=1,
        most_epochs=1,
        inverted=0,
        bounds=False,
    )
    assert [row.attack for row in found.attacks] == ["reconstruction", "s"]


def test_an_attacker_that_reads_nothing_without_noise_gives_no_verdict() -> None:
    """The parity of signs is nothing that a few epochs find, and little noise hides nothing of it."""
    torch.manual_seed(0)
    x = torch.randn(300, 6)
    y, s = (x[:, 0] > 0).long(), (x > 0).sum(1) % 2
    client = client_of(nn.Sequential(StochasticAdditive(6, scale=0.01), nn.Linear(6, 2)))
    found = audit(
        client,
        (x[:200], y[:200]),
        (x[200:], y[200:]),
        private={"parity": (s[:200], s[200:])},
        queries=(1,),
        epochs=1,
        most_epochs=50,
        inverted=0,
        bounds=False,
    )
    (row,) = [row for row in found.attacks if row.attack == "parity"]
    assert not row.verdict.startswith("reads no more")
    assert row.verdict.startswith("attacker too weak")


@pytest.mark.parametrize(("free", "label", "reads"), [(90.0, 50.0, True), (51.0, 50.0, False), (100.0, 100.0, True)])
def test_a_verdict_needs_an_attacker_that_reads_without_noise(free: float, label: float, reads: bool) -> None:
    from pyrostoch.obfuscate.audit_record import AttackResult, Strength

    nothing = Estimate(0.0, 1.0, 100)
    row = AttackResult(
        attack="s",
        unit="right %",
        queries=1,
        score=nothing,
        label=label,
        blind=50.0,
        beyond=nothing,
        beyond_nats=nothing,
        psnr=None,
        ssim=None,
        ssim_label=None,
        strength=Strength(free, free, True, 2.0),
        epochs=1,
        stopped=True,
        information=nothing,
    )
    assert row.reads_without_noise == reads
    assert row.verdict.startswith("reads no more" if reads else "attacker too weak: even without noise")
    errors = dataclasses.replace(row, information=None, label=1.0, strength=Strength(0.1, 0.1, True, 0.01))
    assert errors.reads_without_noise
    assert not dataclasses.replace(errors, strength=Strength(0.99, 0.99, True, 0.01)).reads_without_noise
