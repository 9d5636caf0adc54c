"""The record of a run: a realistic one for the tests of the report, and errors for invalid ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pyrostoch.report.record import check, floats, is_regression, mode_title, modes, number, row_of

LAYERS = {"fc1.weight": 64 * 100, "fc2.weight": 100 * 100, "head.weight": 100 * 10}
# name, title, final data term, final KL, accuracy by mean / 1 / 20 samples
GUIDES = [
    ("additive", "Additive N(μ, σ²)", -98.0, 6100.0, (0.9722, 0.9611, 0.9722)),
    ("weightwise", "Weight-wise alpha N(μ, αμ²)", -92.5, 5480.0, (0.9750, 0.9667, 0.9778)),
    ("neuronwise", "Neuron-wise alpha", -84.1, 5910.0, (0.9694, 0.9639, 0.9722)),
    ("layerwise", "Layer-wise alpha", -101.7, 6020.0, (0.9722, 0.9583, 0.9694)),
    ("variance", "Variance-only N(0, σ²)", -210.3, 0.0, (0.1028, 0.8917, 0.9667)),
]


def make_guide(index: int, regression: bool = False, epochs: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    name, title, data, kl, accuracies = GUIDES[index]
    t = np.arange(1, epochs + 1)
    weight = np.minimum(t / 10, 1.0)
    terms = {
        "data": (data - 3300 * np.exp(-t / 4) + rng.normal(0, 4, epochs)).tolist(),
        "kl": (kl * (1 + 3 * np.exp(-t / 12))).tolist(),
    }
    rows: list[dict[str, Any]] = []
    for mode, accuracy in zip(("mean", "mc:1", "mc:20"), accuracies, strict=True):
        row = {"mode": mode, "nll": 0.12 + 2 * (0.97 - accuracy), "nll_stderr": 0.013, "seconds": 0.05}
        if regression:
            row |= {"rmse": 0.5 - 0.2 * accuracy}
        else:
            row |= {"accuracy": accuracy, "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / 360)}
            row |= {"brier": 1.6 * (1 - accuracy), "ece": 0.011 + 0.3 * (1 - accuracy)}
        rows.append(row)
    samples = [1, 2, 5, 10, 20]
    curve = [accuracies[2] - (accuracies[2] - accuracies[1]) / s for s in samples]
    by_samples = {"samples": samples, "nll" if regression else "accuracy": curve, "stderr": [0.008] * 5}
    sites = [
        {
            "site": site,
            "kl": kl * count / sum(LAYERS.values()),
            "method": "exact" if site != "head.weight" else "monte carlo",
            "stderr": 0.0 if site != "head.weight" else 1.7,
            "weights": count,
            "treatment": "local (exact)",
        }
        for site, count in LAYERS.items()
    ]
    quantity = "log sigma" if name in ("additive", "variance") else "log alpha"
    posterior = []
    for j, site in enumerate(LAYERS):
        counts, edges = np.histogram(rng.normal(-2 + j, 1.0, 1 if name == "layerwise" else 4000), bins=40)
        posterior.append({"site": site, "quantity": quantity, "edges": edges.tolist(), "counts": counts.tolist()})
    guide: dict[str, Any] = {
        "name": name,
        "title": title,
        "seconds": 11.7 + index,
        "checkpoint": f"{name}.safetensors",
        "decomposition": {
            "elbo": data - kl,
            "data": data,
            "kl": kl,
            "elbo_stderr": 0.31,
            "improper": True,
            "num_data": 1437,
            "sites": sites,
            "penalty": {},
        },
        "rows": rows,
        "history": {
            "epoch": t.tolist(),
            "elbo": [d - k for d, k in zip(terms["data"], terms["kl"], strict=True)],
            **terms,
            "kl_weight": weight.tolist(),
        },
        "by_samples": by_samples,
        "posterior": posterior,
    }
    if not regression:
        guide["reliability"] = {"mean": make_bins(rng, 0.06), "mc:20": make_bins(rng, 0.01)}
    return guide


def make_bins(rng: np.random.Generator, gap: float) -> dict[str, list[Any]]:
    """Fifteen bins, the first three of them empty."""
    count = [0, 0, 0, 1, 2, 2, 4, 3, 5, 6, 5, 9, 13, 22, 288]
    confidence = [(i + 0.5) / 15 if n else None for i, n in enumerate(count)]
    accuracy = [
        None if c is None else float(np.clip(c - gap + rng.normal(0, 0.25 / math.sqrt(n)), 0, 1))
        for c, n in zip(confidence, count, strict=True)
    ]
    return {"confidence": confidence, "accuracy": accuracy, "count": count}


def make_record(guides: int = 5, regression: bool = False) -> dict[str, Any]:
    """A record as a run on the digits writes it, or a run on a regression set."""
    return {
        "schema": 1,
        "kind": "compare" if guides > 1 else "train",
        "command": "pyrostoch compare --data digits",
        "date": "2026-01-31T12:00:00+00:00",
        "seconds": 93.1,
        "versions": {"pyrostoch": "0.1.0", "torch": "2.13.0", "pyro": "1.9.2", "python": "3.11.7"},
        "device": "cpu",
        "seed": 0,
        "data": {
            "name": "digits",
            "title": "Optical digits, 8 × 8",
            "train": 1437,
            "test": 360,
            "classes": None if regression else 10,
            "task": "regression" if regression else "classification",
        },
        "model": {
            "name": "mlp",
            "description": "64-100-100-10, ReLU, BatchNorm",
            "random": list(LAYERS),
            "parameters": 18110,
        },
        "prior": {"text": "LogUniform()", "improper": True},
        "estimator": "local",
        "epochs": 60,
        "batch_size": 100,
        "guides": [make_guide(i, regression) for i in range(guides)],
    }


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("guides", [1, 5])
def test_records_are_readable(guides: int, regression: bool) -> None:
    record = make_record(guides, regression)
    check(record)
    assert is_regression(record) is regression
    assert modes(record) == ["mean", "mc:1", "mc:20"]
    del record["data"]
    assert is_regression(record) is regression


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema": 2}, "schema 2, this version of pyrostoch reads schema 1"),
        ({"schema": None}, "schema None"),
        ({"kind": "bench"}, "kind 'bench', expected one of compare, train"),
        ({"guides": []}, "no guides"),
        ({"guides": {"additive": {}}}, "no guides"),
        ({"guides": [{"name": "a"}, {"title": "b"}]}, "guide 1 of the record has no name"),
    ],
)
def test_invalid_records_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(make_record(1) | change)


def test_a_list_is_not_a_record() -> None:
    with pytest.raises(TypeError, match="got list"):
        check([make_record(1)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value, expected",
    [(3, 3.0), ("-inf", -math.inf), (None, None), (True, None), ("words", None), ([1], None), (2.5, 2.5)],
)
def test_numbers(value: Any, expected: float | None) -> None:
    assert number(value) == expected


def test_values_that_are_not_numbers() -> None:
    assert math.isnan(number("nan") or 0.0)
    series = floats([1, None, "inf", math.nan, 2.5])
    assert series[0] == 1.0 and series[4] == 2.5 and all(map(math.isnan, series[1:4]))


def test_mode_titles() -> None:
    assert [mode_title(m) for m in ("mean", "mc:1", "mc:20", "mc", "moments")] == [
        "mean",
        "1 sample",
        "20 samples",
        "mc",
        "moments",
    ]


def test_rows_by_mode() -> None:
    guide = make_guide(0)
    assert row_of(guide, "mc:20") is guide["rows"][2]
    assert row_of(guide, "moments") == {} == row_of({"name": "a"}, "mean")
