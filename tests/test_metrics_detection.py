"""Average precision of detections, against a naive twin and COCO's own evaluation."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrostoch.metrics import AveragePrecision, box_overlaps, mask_overlaps

CLASSES = 3
Image = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def image() -> Image:
    """Objects, and detections that are near them, elsewhere, doubled, or of another class."""
    objects = int(torch.randint(0, 5, ()))
    corners = 40.0 * torch.rand(objects, 2)
    boxes = torch.cat([corners, corners + 5.0 + 20.0 * torch.rand(objects, 2)], 1)
    targets = torch.randint(0, CLASSES, (objects,))
    near = boxes.repeat(2, 1) + 3.0 * torch.randn(2 * objects, 4)
    labels = torch.where(torch.rand(2 * objects) < 0.8, targets.repeat(2), torch.randint(0, CLASSES, (2 * objects,)))
    others = torch.cat([40.0 * torch.rand(3, 2), 41.0 + 20.0 * torch.rand(3, 2)], 1)
    found = torch.cat([near, others])
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1.0)
    return boxes, targets, found, torch.cat([labels, torch.randint(0, CLASSES, (3,))]), torch.rand(2 * objects + 3)


def overlap(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def naive(images: list[Image], label: int, threshold: float) -> float:
    """The definition, detection by detection and recall by recall, with the recalls of COCO as it computes them."""
    ranked = sorted(
        (
            (-score, number, row)
            for number, (_, _, found, labels, scores) in enumerate(images)
            for row, (score, own) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True))
            if own == label
        ),
    )
    taken: set[tuple[int, int]] = set()
    right = []
    for _, number, row in ranked:
        boxes, targets, found, _, _ = images[number]
        options = [
            (overlap(found[row].tolist(), boxes[k].tolist()), k)
            for k in range(len(boxes))
            if targets[k] == label and (number, k) not in taken
        ]
        best = max(options, default=(0.0, -1))
        right.append(best[0] >= threshold)
        if right[-1]:
            taken.add((number, best[1]))
    total = sum(int((targets == label).sum()) for _, targets, *_ in images)
    points = [(sum(right[: k + 1]) / total, sum(right[: k + 1]) / (k + 1)) for k in range(len(right))]
    heights = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
    return sum(heights) / 101


def filled(images: list[Image]) -> AveragePrecision:
    metric = AveragePrecision(CLASSES)
    for boxes, targets, found, labels, scores in images:
        metric.update(box_overlaps(found, boxes), scores, labels, targets)
    return metric


def test_average_precision_is_that_of_the_naive_twin() -> None:
    images = [image() for _ in range(12)]
    found = filled(images).compute()
    for label in range(CLASSES):
        assert found.by_class[label] == pytest.approx(naive(images, label, 0.5))
    table = [naive(images, label, t) for label in range(CLASSES) for t in np.linspace(0.5, 0.95, 10)]
    assert found.ap == pytest.approx(sum(table) / len(table))
    assert found.ap50 == pytest.approx(sum(found.by_class) / CLASSES)
    assert 0.0 < found.ap < found.ap50 < 1.0
    assert found.num_images == 12 and found.num_objects == sum(len(targets) for _, targets, *_ in images)


def test_average_precision_is_that_of_cocos_evaluation() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    images = [image() for _ in range(40)]

    def entries(boxes: Tensor, labels: Tensor, number: int, scores: Tensor | None = None) -> list[dict[str, Any]]:
        rows = []
        for row, (left, top, right, bottom) in enumerate(boxes.double().tolist()):
            entry = {"image_id": number, "category_id": int(labels[row]) + 1, "iscrowd": 0}
            entry |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            rows.append(entry if scores is None else {**entry, "score": float(scores[row])})
        return rows

    truth = [entry for n, (boxes, targets, *_) in enumerate(images) for entry in entries(boxes, targets, n)]
    detections = [entry for n, (_, _, f, labels, s) in enumerate(images) for entry in entries(f, labels, n, s)]
    with contextlib.redirect_stdout(io.StringIO()):
        given = coco.COCO()
        given.dataset = {
            "info": {},
            "images": [{"id": n} for n in range(len(images))],
            "annotations": [{**entry, "id": number + 1} for number, entry in enumerate(truth)],
            "categories": [{"id": label + 1} for label in range(CLASSES)],
        }
        given.createIndex()
        run = evaluation.COCOeval(given, given.loadRes(detections), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    found = filled(images).compute()
    assert found.ap == pytest.approx(run.stats[0], abs=1e-4)
    assert found.ap50 == pytest.approx(run.stats[1], abs=1e-4)


def test_overlaps_are_those_of_single_pairs() -> None:
    one, other = (image()[2] for _ in range(2))
    expected = [[overlap(a, b) for b in other.tolist()] for a in one.tolist()]
    torch.testing.assert_close(box_overlaps(one, other), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    masks, others = torch.rand(4, 6, 5) < 0.5, torch.rand(3, 6, 5) < 0.5
    masks[0] = others[0] = False
    for row in range(4):
        for column in range(3):
            union = int((masks[row] | others[column]).sum())
            share = int((masks[row] & others[column]).sum()) / union if union else 0.0
            assert float(mask_overlaps(masks, others)[row, column]) == pytest.approx(share)


def test_parts_are_merged() -> None:
    images = [image() for _ in range(10)]
    first, second = filled(images[:4]), filled(images[4:])
    first.merge(second)
    assert first.compute() == filled(images).compute()
    assert second.compute() == filled(images[4:]).compute()
    with pytest.raises(ValueError, match="3 classes"):
        first.merge(AveragePrecision(2))


def test_images_without_objects_or_detections() -> None:
    metric = AveragePrecision(2)
    none = torch.zeros(0)
    assert math.isnan(metric.compute().ap)
    metric.update(torch.zeros(0, 0), none, none.long(), none.long())
    metric.update(torch.zeros(0, 2), none, none.long(), torch.tensor([0, 0]))
    found = metric.compute()
    assert found.ap50 == 0.0 and math.isnan(found.by_class[1]) and found.num_images == 2
    # A detection in an image without objects is a false one, also of a class that has objects elsewhere.
    metric.update(torch.zeros(1, 0), torch.tensor([0.9]), torch.tensor([0]), none.long())
    metric.update(torch.ones(1, 1), torch.tensor([0.5]), torch.tensor([0]), torch.tensor([0]))
    assert metric.compute().ap50 == pytest.approx(0.5 * 34 / 101)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlaps": torch.zeros(1, 2)}, "expects overlaps"),
        ({"labels": torch.tensor([-1])}, "classes from 0 to 2"),
        ({"targets": torch.tensor([3])}, "leave padding out"),
        ({"scores": torch.tensor([torch.nan])}, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    good = {
        "overlaps": torch.zeros(1, 1),
        "scores": torch.ones(1),
        "labels": torch.tensor([0]),
        "targets": torch.tensor([0]),
    }
    with pytest.raises(ValueError, match=message):
        AveragePrecision(CLASSES).update(**{**good, **change})
    with pytest.raises(ValueError, match="num_classes"):
        AveragePrecision(0)


def test_overlaps_of_other_numbers_are_right_or_refused() -> None:
    one, other = torch.tensor([[0, 0, 4, 4]]), torch.tensor([[10, 10, 20, 20], [2, 0, 6, 4]])
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.float64):
        found = box_overlaps(one.to(dtype), other.to(dtype))
        torch.testing.assert_close(found, torch.tensor([[0.0, 1 / 3]], dtype=found.dtype))
    large = torch.tensor([[0.0, 0.0, 400.0, 400.0]], dtype=torch.float16)
    assert box_overlaps(large, large).item() == 1.0
    masks = torch.rand(3, 5, 5) < 0.5
    ink = masks.to(torch.uint8) * 255
    torch.testing.assert_close(mask_overlaps(ink, masks), mask_overlaps(masks, masks))
    for wrong in (torch.tensor([[[0.2, 1.0]]]), torch.tensor([[[0, -1]]]), torch.tensor([[[torch.nan, 1.0]]])):
        with pytest.raises(ValueError, match="expected masks that are boolean, or have 0 and one positive value"):
            mask_overlaps(wrong, wrong)
    metric, ones = AveragePrecision(2), torch.ones(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="overlaps from 0 to 1, got 5"):
        metric.update(torch.tensor([[5.0]]), torch.ones(1), ones, ones)
    with pytest.raises(ValueError, match="whole numbers as classes"):
        metric.update(torch.tensor([[0.5]]), torch.ones(1), torch.tensor([0.6]), ones)
    assert metric.num_images == 0
