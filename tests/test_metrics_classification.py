"""Classification metrics against plain Python loops and scikit-learn; batches and merging equal one pass."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrostoch import metrics
from pyrostoch.metrics import (
    Accuracy,
    Brier,
    Calibration,
    Classification,
    NegativeLogLikelihood,
    RunningMean,
    streaming,
)

MAKERS = {
    "accuracy": Accuracy,
    "nll": NegativeLogLikelihood,
    "brier": Brier,
    "calibration": Calibration,
    "classification": lambda: Classification(5),
}


def predictions(n: int = 211, classes: int = 5, seed: int = 0, sharp: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.6,
        logits.argmax(-1),
        torch.randint(classes, (n,), generator=generator),
    )
    return logits.log_softmax(-1), labels


def naive(log_probs: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """Every score by loops over Python floats."""
    rows, truth = log_probs.exp().tolist(), labels.tolist()
    n = len(rows)
    right = [float(max(range(len(p)), key=p.__getitem__) == y) for p, y in zip(rows, truth, strict=True)]
    losses = [-math.log(p[y]) for p, y in zip(rows, truth, strict=True)]
    nll = sum(losses) / n
    brier = sum(sum((q - (c == y)) ** 2 for c, q in enumerate(p)) for p, y in zip(rows, truth, strict=True)) / n
    gaps, weighted = [], 0.0
    for b in range(bins):
        inside = [(max(p), r) for p, r in zip(rows, right, strict=True) if b / bins < max(p) <= (b + 1) / bins]
        if inside:
            gap = abs(sum(c for c, _ in inside) - sum(r for _, r in inside)) / len(inside)
            gaps.append(gap)
            weighted += gap * len(inside) / n
    accuracy = sum(right) / n
    return {
        "count": n,
        "accuracy": accuracy,
        "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / n),
        "nll": nll,
        "nll_stderr": math.sqrt(sum((x - nll) ** 2 for x in losses) / (n - 1) / n),
        "brier": brier,
        "ece": weighted,
        "mce": max(gaps),
    }


def flat(result: object) -> dict[str, object]:
    """A result's fields, with NaN and `None` (an empty bin) replaced by -1 so that results can be compared."""
    return json.loads(json.dumps(result.to_dict()).replace("NaN", "-1").replace("null", "-1"))  # type: ignore[attr-defined]


def update_in_batches(metric: object, log_probs: Tensor, labels: Tensor, size: int) -> object:
    for x, y in zip(log_probs.split(size), labels.split(size), strict=True):
        metric.update(x, y)  # type: ignore[attr-defined]
    return metric


@pytest.mark.parametrize("sharp", [0.1, 2.0, 8.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_scores_equal_the_loops(classes: int, sharp: float) -> None:
    log_probs, labels = predictions(classes=classes, sharp=sharp, seed=classes)
    scores = update_in_batches(Classification(classes), log_probs, labels, 50).compute()
    assert scores.to_dict() == pytest.approx(naive(log_probs, labels), rel=1e-11)


def test_scores_equal_scikit_learn() -> None:
    from sklearn import metrics as oracle

    log_probs, labels = predictions()
    scores = update_in_batches(Classification(5), log_probs, labels, 64).compute()
    probs, truth = log_probs.exp().numpy(), labels.numpy()
    assert scores.accuracy == pytest.approx(oracle.accuracy_score(truth, probs.argmax(-1)))
    assert scores.nll == pytest.approx(oracle.log_loss(truth, probs, labels=range(5)), rel=1e-10)
    by_class = [oracle.brier_score_loss(truth == c, probs[:, c]) for c in range(5)]
    assert scores.brier == pytest.approx(sum(by_class), rel=1e-10)


def test_reliability_is_what_ece_is_made_of() -> None:
    log_probs, labels = predictions()
    metric = update_in_batches(Classification(5, bins=10), log_probs, labels, 40)
    scores, reliability = metric.compute(), metric.reliability()
    record = reliability.to_dict()
    assert sum(record["count"]) == 211
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert [c is None for c in record["confidence"]] == [n == 0 for n in record["count"]]
    gaps = [
        n * abs(a - c) for c, a, n in zip(record["confidence"], record["accuracy"], record["count"], strict=True) if n
    ]
    assert scores.ece == pytest.approx(sum(gaps) / 211)
    assert scores.mce == reliability.mce >= scores.ece
    assert str(sum(1 for n in record["count"] if n)) == str(len(str(reliability).splitlines()) - 1)


@pytest.mark.parametrize("confidence, bin_", [(0.5, 4), (0.5000001, 5), (0.6, 5), (1.0, 9)])
def test_bins_are_closed_on_the_right(confidence: float, bin_: int) -> None:
    metric = Calibration(bins=10)
    metric.update(torch.tensor([[confidence, 1 - confidence]], dtype=torch.float64).log(), torch.tensor([0]))
    # Log and exp may move a probability on an edge by one rounding.
    counts = metric.compute().count
    assert counts.index(1) in ((bin_, bin_ + 1) if confidence == 0.6 else (bin_,))


def test_impossible_label_is_infinite_not_nan() -> None:
    metric = Classification(2)
    metric.update(torch.tensor([[0.0, -math.inf], [0.0, -math.inf]]), torch.tensor([0, 1]))
    metric.update(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]))
    later = Classification(2)
    later.update(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]))
    metric.merge(later)
    scores = metric.compute()
    assert scores.nll == math.inf and scores.nll_stderr == math.inf
    assert scores.accuracy == 0.75
    assert scores.brier == pytest.approx((0 + 2 + 0.5 + 0.5) / 4)


def test_nan_predictions_count_as_wrong_and_make_other_scores_nan() -> None:
    log_probs, labels = predictions(20)
    log_probs[3] = math.nan
    metric = Classification(5)
    metric.update(log_probs, labels)
    scores = metric.compute()
    expected = [p.argmax().item() == y.item() for p, y in zip(log_probs, labels, strict=True)]
    expected[3] = False
    assert scores.accuracy == sum(expected) / 20
    assert all(math.isnan(value) for value in (scores.nll, scores.brier, scores.ece, scores.mce))
    assert sum(metric.reliability().count) == 19


def test_text_and_dict_hold_every_score() -> None:
    log_probs, labels = predictions()
    metric = Classification(5)
    metric.update(log_probs, labels)
    scores = metric.compute()
    text = str(scores)
    for word in ("examples", "accuracy", "NLL", "nats", "Brier", "ECE", "MCE", f"{scores.nll:.4f}"):
        assert word in text
    assert json.loads(json.dumps(scores.to_dict())) == scores.to_dict()


BAD = {
    "label too large": (torch.full((2, 5), 0.2).log(), torch.tensor([0, 7]), ValueError, "label 7 .* 0 to 4"),
    "label one too large": (torch.full((2, 5), 0.2).log(), torch.tensor([5, 0]), ValueError, "label 5 .* 0 to 4"),
    "label negative": (torch.full((2, 5), 0.2).log(), torch.tensor([-3, 0]), ValueError, "label -3 .* 0 to 4"),
    "one-hot labels": (torch.full((2, 5), 0.2).log(), torch.eye(2, 5, dtype=torch.int64), ValueError, r"\(2, 5\)"),
    "float labels": (torch.full((2, 5), 0.2).log(), torch.zeros(2), TypeError, "integer labels"),
    "bool labels": (torch.full((2, 5), 0.2).log(), torch.zeros(2) > 0, TypeError, "integer labels"),
    "too few labels": (torch.full((2, 5), 0.2).log(), torch.tensor([0]), ValueError, r"\(2, 5\) and \(1,\)"),
    "no class axis": (torch.zeros(2), torch.tensor([0, 0]), ValueError, r"shape \(n, C\)"),
    "other classes": (torch.full((2, 4), 0.25).log(), torch.tensor([0, 0]), ValueError, "expects 5 classes.*4 columns"),
    "logits beside NaN": (torch.tensor([[math.nan] * 5, [1.0] * 5]), torch.tensor([0, 0]), ValueError, "log_softmax"),
    "logits": (torch.full((2, 5), 1.0), torch.tensor([0, 0]), ValueError, "log_softmax"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", MAKERS)
def test_bad_batches_are_refused_and_change_nothing(name: str, case: str) -> None:
    log_probs, labels, error, words = BAD[case]
    metric = MAKERS[name]()
    metric.update(*predictions(20))
    before = flat(metric.compute())
    with pytest.raises(error, match=words):
        metric.update(log_probs, labels)
    assert flat(metric.compute()) == before


@pytest.mark.parametrize("case", ["label too large", "label negative", "logits"])
@pytest.mark.parametrize("merged", [False, True])
def test_on_an_accelerator_compute_reports_bad_batches(
    monkeypatch: pytest.MonkeyPatch, case: str, merged: bool
) -> None:
    monkeypatch.setattr(streaming, "_readable_without_sync", lambda tensor: False)
    log_probs, labels, error, words = BAD[case]
    metric, other = Classification(5), Classification(5)
    metric.update(*predictions(20))
    assert metric.compute().count == 20
    (other if merged else metric).update(log_probs, labels)
    metric.update(*predictions(20))
    if merged:
        metric.merge(other)
    with pytest.raises(error, match=words):
        metric.compute()
    with pytest.raises(error, match=words):
        metric.reliability()


def test_merging_another_class_or_size_is_refused() -> None:
    log_probs, labels = predictions(20)
    metric = Classification(5)
    metric.update(log_probs, labels)
    before = metric.compute()
    with pytest.raises(TypeError, match="got Accuracy"):
        metric.merge(Accuracy())
    with pytest.raises(ValueError, match="5 classes cannot merge one over 3"):
        metric.merge(Classification(3))
    with pytest.raises(ValueError, match="15 bins cannot merge one with 4"):
        other = Classification(5, bins=4)
        other.update(log_probs[:3], labels[:3])
        metric.merge(other)
    assert metric.compute() == before


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes >= 1, got 0"):
        Classification(0)
    with pytest.raises(ValueError, match="bins >= 1, got 0"):
        Calibration(bins=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_converted_exactly(dtype: torch.dtype) -> None:
    log_probs, labels = predictions()
    metric = Classification(5)
    metric.update(log_probs.to(dtype), labels.to(torch.int32))
    again = Classification(5)
    again.update(log_probs.to(dtype).double(), labels)
    assert metric.compute() == again.compute()
    assert metric.compute().nll == pytest.approx(naive(log_probs, labels)["nll"], rel=0.02)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_running_mean_is_stable(offset: float) -> None:
    values = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + offset
    running = RunningMean()
    for part in values.split(13):
        running.update(part)
    estimate = running.compute()
    assert estimate.value == pytest.approx(np.mean(values.numpy()), rel=1e-14)
    assert estimate.stderr == pytest.approx(np.std((values - offset).numpy(), ddof=1) / math.sqrt(1000), rel=1e-6)
    assert estimate.to_dict() == {"value": estimate.value, "stderr": estimate.stderr, "count": 1000}
    assert "±" in str(estimate)


def test_running_mean_of_one_and_of_none() -> None:
    running = RunningMean()
    with pytest.raises(ValueError, match="mean of no values"):
        running.compute()
    running.update(torch.tensor(3.0))
    assert running.compute().value == 3.0 and math.isnan(running.compute().stderr)
    running.update(torch.tensor([math.inf, -math.inf]))
    assert math.isnan(running.compute().value)


def test_every_public_name_exists() -> None:
    assert all(hasattr(metrics, name) for name in metrics.__all__)
