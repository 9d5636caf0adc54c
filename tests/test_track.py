"""Objects followed from frame to frame, against every assignment, and through gaps and crossings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pyrostoch.data import DigitClips
from pyrostoch.metrics import Tracking, box_overlaps
from pyrostoch.models import Detections, track

F64 = torch.float64


def found(boxes: Sequence[Sequence[float]]) -> Detections:
    given = torch.tensor(boxes, dtype=F64).reshape(-1, 4)
    return Detections(given, torch.ones(len(given)), torch.zeros(len(given)))


def test_the_sum_of_overlaps_is_that_of_the_best_assignment() -> None:
    for _ in range(20):
        first, second = (8.0 * torch.rand(n, 2, dtype=F64).repeat(1, 2) for n in (4, 3))
        size = torch.tensor([0.0, 0.0, 4.0, 4.0], dtype=F64)
        first, second = first + size, second + size
        numbers = track([found(first.tolist()), found(second.tolist())], overlap=0.2)
        close = box_overlaps(first, second)
        kept = [(int(n), c) for c, n in enumerate(numbers[1].tolist()) if n < 4]
        total = sum(float(close[pair]) for pair in kept)
        assert all(float(close[pair]) >= 0.2 for pair in kept)
        best = 0.0
        for columns in itertools.permutations([0, 1, 2, None], 4):
            pairs = [(row, column) for row, column in enumerate(columns) if column is not None]
            best = max(best, sum(float(close[pair]) for pair in pairs if close[pair] >= 0.2))
        assert total == pytest.approx(best)


def moving(start: float, step: float, frames: int) -> list[list[float]]:
    return [[start + step * t, 0.0, start + step * t + 6.0, 6.0] for t in range(frames)]


def test_objects_keep_their_numbers_where_they_cross() -> None:
    one, other = moving(0.0, 2.0, 12), moving(22.0, -2.0, 12)
    for t in range(12):  # the second one passes a little below
        other[t][1] += 2.0
        other[t][3] += 2.0
    numbers = track([found([a, b]) for a, b in zip(one, other, strict=True)])
    assert all(each.tolist() == [0, 1] for each in numbers)


def test_a_gap_keeps_the_number_and_a_longer_one_does_not() -> None:
    boxes = moving(0.0, 1.0, 10)
    for missed in (1, 2, 3):
        frames = [found([box]) for box in boxes]
        for t in range(4, 4 + missed):
            frames[t] = found([])
        last = int(track(frames, gap=2)[-1])
        assert last == (0 if missed <= 2 else 1)
    assert track([found([])])[0].tolist() == [] and track([]) == []


def test_true_boxes_of_clips_are_followed() -> None:
    clips, metric = DigitClips("train", 6, data="digits", size=64, digits=(2, 4), overlap=0.0), Tracking()
    for index in range(6):
        clip = clips[index]
        count = int(clip["count"])
        frames = [found(boxes[:count].tolist()) for boxes in clip["boxes"]]
        numbers = track(frames)
        truths: list[Tensor] = [torch.arange(count)] * len(frames)
        metric.update([box_overlaps(each.boxes, each.boxes) for each in frames], numbers, truths)
    assert metric.compute().mota > 0.9 and metric.compute().idf1 > 0.9


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="overlap"):
        track([], overlap=0.0)
    with pytest.raises(ValueError, match="gap"):
        track([], gap=-1)
