"""What every streaming metric does, by the registry."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from common import COPIES, assert_documented, kinds
from registry import METRICS
from torch import Tensor

from pyrostoch import metrics

COUNT = 211
each_metric = pytest.mark.parametrize("name", METRICS)
#: Public classes of the package that are no metrics: results, and averages over the draws of one batch.
OTHERS = {
    *("ClassificationScores", "EntropyDecomposition", "Estimate", "MomentAverage", "PredictiveAverage"),
    *("RegressionScores", "Reliability"),
    "SegmentationScores",
    # What takes images or clips, one by one.
    *("AveragePrecision", "DetectionScores", "Tracking", "TrackingScores"),
}


def batch(name: str, count: int = COUNT, seed: int = 0) -> tuple[Tensor, ...]:
    return METRICS[name].batch(torch.Generator().manual_seed(seed), count)


def filled(name: str, data: tuple[Tensor, ...], size: int = COUNT) -> Any:
    metric = METRICS[name].make()
    for part in zip(*(tensor.split(size) for tensor in data), strict=True):
        metric.update(*part)
    return metric


def numbers(metric: Any) -> list[float]:
    """A result's numbers, with NaN as a number that compares."""
    found: list[float] = []

    def collect(thing: Any) -> None:
        if isinstance(thing, Tensor):
            found.extend(thing.flatten().nan_to_num(nan=-1.0).tolist())
        elif dataclasses.is_dataclass(thing):
            for field in dataclasses.fields(thing):
                collect(getattr(thing, field.name))
        elif isinstance(thing, (tuple, list)):
            for item in thing:
                collect(item)
        elif isinstance(thing, (int, float)):
            found.append(-1.0 if math.isnan(thing) else float(thing))

    collect(metric.compute())
    return found


def test_every_public_metric_is_registered() -> None:
    classes = {name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)}
    assert classes - OTHERS == kinds(METRICS)


@each_metric
@pytest.mark.parametrize("size", [1, 7, 100])
def test_pieces_are_one_pass(name: str, size: int) -> None:
    data = batch(name)
    assert numbers(filled(name, data, size)) == pytest.approx(numbers(filled(name, data)), rel=1e-11)


@each_metric
def test_merging_is_one_pass_and_leaves_the_other_as_it_was(name: str) -> None:
    data = batch(name)
    first, second = (filled(name, tuple(tensor[part] for tensor in data)) for part in (slice(30), slice(30, None)))
    before, whole = numbers(second), METRICS[name].make()
    for part in (first, METRICS[name].make(), second):
        whole.merge(part)
    assert numbers(whole) == pytest.approx(numbers(filled(name, data)), rel=1e-11)
    assert numbers(second) == before and whole.count == COUNT and first.count == 30


@each_metric
def test_the_order_of_the_examples_does_not_matter(name: str) -> None:
    data, order = batch(name), torch.randperm(COUNT)
    shuffled = tuple(tensor[order] for tensor in data)
    assert numbers(filled(name, shuffled, 50)) == pytest.approx(numbers(filled(name, data, 50)), rel=1e-10)


@each_metric
def test_memory_does_not_grow(name: str) -> None:
    def held(thing: Any) -> int:
        if isinstance(thing, Tensor):
            return thing.numel()
        if isinstance(thing, (tuple, list)):
            return sum(map(held, thing))
        return sum(map(held, vars(thing).values())) if hasattr(thing, "__dict__") else 0

    metric = filled(name, batch(name, 3))
    before = held(metric)
    for seed in range(3):
        metric.update(*batch(name, seed=seed))
    assert held(metric) == before > 0


@each_metric
def test_no_examples_is_an_error(name: str) -> None:
    metric = METRICS[name].make()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"has (seen )?no|no values"):
            metric.compute()
        metric.update(*batch(name, 0))


@each_metric
def test_computing_changes_nothing_and_more_may_follow(name: str) -> None:
    data = batch(name)
    metric = filled(name, tuple(tensor[:100] for tensor in data))
    assert numbers(metric) == numbers(metric)
    metric.update(*(tensor[100:] for tensor in data))
    assert numbers(metric) == pytest.approx(numbers(filled(name, data)), rel=1e-11)


@each_metric
def test_no_graph_is_kept(name: str) -> None:
    first, *rest = batch(name)
    metric = METRICS[name].make()
    metric.update(first.requires_grad_(), *rest)

    def tensors(thing: Any) -> list[Tensor]:
        if isinstance(thing, Tensor):
            return [thing]
        if isinstance(thing, (tuple, list)):
            return [tensor for item in thing for tensor in tensors(item)]
        return [t for value in vars(thing).values() for t in tensors(value)] if hasattr(thing, "__dict__") else []

    assert tensors(metric) and not any(tensor.requires_grad for tensor in tensors(metric))


@each_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_those_of_double_precision(name: str, dtype: torch.dtype) -> None:
    data = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in batch(name))
    wide = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in data)
    assert numbers(filled(name, data)) == pytest.approx(numbers(filled(name, wide)), rel=1e-12)


@each_metric
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_independent(name: str, way: str) -> None:
    metric = filled(name, batch(name))
    twin, before = COPIES[way](metric), numbers(metric)
    assert numbers(twin) == before
    twin.update(*batch(name, seed=1))
    assert numbers(metric) == before != numbers(twin)


@pytest.mark.gpu
@each_metric
def test_on_the_accelerator_it_is_what_it_is_on_the_cpu(name: str) -> None:
    data = batch(name)
    there = tuple(tensor.cuda() for tensor in data)
    assert numbers(filled(name, there, 50)) == pytest.approx(numbers(filled(name, data)), rel=1e-9)


@pytest.mark.parametrize("kind", sorted(kinds(METRICS)))
def test_documentation(kind: str) -> None:
    assert_documented(getattr(metrics, kind), source=False)
