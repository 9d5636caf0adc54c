"""Mean intersection over union, and the scores of tracking, against naive twins."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrostoch.metrics import MeanIoU, Tracking, box_overlaps, mask_overlaps


def test_mean_overlap_is_that_of_sets_of_positions() -> None:
    log_probs, labels = torch.randn(300, 5).log_softmax(-1), torch.randint(0, 4, (300,))
    log_probs[:, 4] = -torch.inf  # a class that never occurs
    metric = MeanIoU(5)
    for part, own in zip(log_probs.log_softmax(-1).split(70), labels.split(70), strict=True):
        metric.update(part, own)
    found = metric.compute()
    guess = log_probs.argmax(-1)
    overlaps = [int(((guess == c) & (labels == c)).sum()) / int(((guess == c) | (labels == c)).sum()) for c in range(4)]
    assert found.by_class[:4] == pytest.approx(overlaps)
    assert math.isnan(found.by_class[4])
    assert found.mean_iou == pytest.approx(sum(overlaps) / 4)
    assert found.accuracy == pytest.approx(float((guess == labels).float().mean()))


Clip = tuple[list[Tensor], list[Tensor], list[Tensor]]


def clip(frames: int = 8) -> Clip:
    """Objects that are followed, lost, doubled and exchanged."""
    overlaps, tracks, objects = [], [], []
    names = list(range(10, 14))
    for _ in range(frames):
        if torch.rand(()) < 0.3:
            names[0], names[1] = names[1], names[0]
        there = [k for k in range(4) if torch.rand(()) < 0.8]
        found = [k for k in range(4) if torch.rand(()) < 0.8]
        table = 0.6 * torch.rand(len(found), len(there), dtype=torch.float64)
        for row, k in enumerate(found):
            if k in there:
                table[row, there.index(k)] = 0.4 + 0.6 * torch.rand((), dtype=torch.float64)
        overlaps.append(table)
        tracks.append(torch.tensor([names[k] for k in found]))
        objects.append(torch.tensor(there))
    return overlaps, tracks, objects


def naive(clips: list[Clip], least: float) -> dict[str, float]:
    """Every assignment is tried."""
    misses = false = switches = total = detections = agreeing = 0
    for overlaps, tracks, objects in clips:
        before: dict[int, int] = {}
        latest: dict[int, int] = {}
        for frame, (table, own, given) in enumerate(zip(overlaps, tracks, objects, strict=True)):
            names, truths = own.tolist(), given.tolist()
            fixed: dict[int, int] = {}
            for row, name in enumerate(names):
                held = [c for c, t in enumerate(truths) if before.get(t) == name and table[row, c] >= least]
                if held:
                    fixed[max(held, key=lambda c: latest[truths[c]])] = row
            free = [column for column in range(len(truths)) if column not in fixed]
            rows = [row for row in range(len(names)) if row not in fixed.values()]
            best: tuple[float, dict[int, int]] = (-1.0, {})
            for choice in itertools.product([None, *rows], repeat=len(free)):
                used = [row for row in choice if row is not None]
                pairs = {column: row for column, row in zip(free, choice, strict=True) if row is not None}
                if len(set(used)) < len(used) or any(table[row, column] < least for column, row in pairs.items()):
                    continue
                worth = float(sum(table[row, column] for column, row in pairs.items()))
                best = max(best, (worth, pairs), key=lambda pair: pair[0])
            pairs = fixed | best[1]
            for column, row in pairs.items():
                switches += before.get(truths[column], names[row]) != names[row]
                before[truths[column]], latest[truths[column]] = names[row], frame
            misses, false = misses + len(truths) - len(pairs), false + len(names) - len(pairs)
            total, detections = total + len(truths), detections + len(names)
        seen_tracks = sorted({int(t) for own in tracks for t in own})
        seen_objects = sorted({int(o) for own in objects for o in own})
        most = 0
        for choice in itertools.permutations([*seen_tracks, *[None] * len(seen_objects)], len(seen_objects)):
            count = 0
            for table, own, given in zip(overlaps, tracks, objects, strict=True):
                names, truths = own.tolist(), given.tolist()
                for truth, track in zip(seen_objects, choice, strict=True):
                    if truth in truths and track in names:
                        count += bool(table[names.index(track), truths.index(truth)] >= least)
            most = max(most, count)
        agreeing += most
    mota = 1 - (misses + false + switches) / total
    return {"mota": mota, "idf1": 2 * agreeing / (total + detections), "misses": misses, "switches": switches}


def test_scores_of_tracking_are_those_of_the_naive_twin() -> None:
    clips = [clip() for _ in range(4)]
    metric = Tracking(0.5)
    for each in clips:
        metric.update(*each)
    found, expected = metric.compute(), naive(clips, 0.5)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value), name
    assert found.switches > 0 and found.misses > 0 and found.false_positives > 0
    first, second = Tracking(0.5), Tracking(0.5)
    for number, each in enumerate(clips):
        (first if number < 2 else second).update(*each)
    first.merge(second)
    assert first.compute() == found


def test_tracks_that_are_perfect_or_exchanged() -> None:
    same = [torch.tensor([1, 2])] * 6
    metric = Tracking()
    metric.update([torch.eye(2)] * 6, same, [torch.tensor([5, 6])] * 6)
    assert (metric.compute().mota, metric.compute().idf1) == (1.0, 1.0)
    # Two objects that exchange their tracks halfway: two switches, and half of the frames agree.
    metric = Tracking()
    metric.update([torch.eye(2)] * 3 + [torch.eye(2).flip(0)] * 3, same, [torch.tensor([5, 6])] * 6)
    found = metric.compute()
    assert found.switches == 2
    assert found.mota == pytest.approx(1 - 2 / 12)
    assert found.idf1 == pytest.approx(0.5)


def test_a_detection_is_matched_with_one_object_only() -> None:
    """A track passes from one object to another, and then both are there."""
    tables = [torch.tensor([[1.0]]), torch.tensor([[0.8]]), torch.tensor([[0.8, 0.9]])]
    metric = Tracking()
    metric.update(tables, [torch.tensor([7])] * 3, [torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 1])])
    found = metric.compute()
    assert (found.misses, found.false_positives, found.switches) == (1, 0, 0)


def test_a_clip_that_is_refused_leaves_nothing() -> None:
    metric, two = Tracking(), torch.tensor([0, 1])
    metric.update([torch.eye(2)], [two], [two])
    before = metric.compute()
    for wrong in (torch.nan, 1.5, -0.1):
        with pytest.raises(ValueError, match="frame 1: expected overlaps from 0 to 1, .* leave padded objects out"):
            metric.update([torch.eye(2), torch.full((2, 2), wrong)], [two] * 2, [two] * 2)
    assert metric.compute() == before


def test_clips_that_do_not_fit_are_refused() -> None:
    table, two = torch.eye(2), torch.tensor([0, 1])
    cases: list[tuple[Any, str]] = [
        (([table] * 2, [two], [two]), "one entry for each frame"),
        (([table[:1]], [two], [two]), "frame 0: expected overlaps"),
        (([table], [torch.tensor([3, 3])], [two]), "there twice"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            Tracking().update(*given)
    with pytest.raises(ValueError, match="no objects"):
        Tracking().compute()
    with pytest.raises(ValueError, match="overlap"):
        Tracking(0.0)
    with pytest.raises(ValueError, match="cannot merge"):
        Tracking(0.5).merge(Tracking(0.6))


def test_overlaps_of_other_shapes_are_refused() -> None:
    box, mask = torch.tensor([2.0, 2.0, 8.0, 8.0]), torch.zeros(8, 8, dtype=torch.bool)
    for wrong in (box, box[None, None], torch.zeros(1, 5)):
        with pytest.raises(ValueError, match=r"boxes \(number, 4\)"):
            box_overlaps(wrong, box[None])
    for wrong in (mask, torch.zeros(1, 4, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="of one size"):
            mask_overlaps(mask[None], wrong)
