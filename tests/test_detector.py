"""The detector: its loss and its suppression against naive twins, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrostoch as ps
from pyrostoch.data import DigitScenes
from pyrostoch.metrics import AveragePrecision, box_overlaps
from pyrostoch.models import Detector, detect, detection_loss, nms

F64 = torch.float64


def random_boxes(count: int) -> Tensor:
    corners = 20.0 * torch.rand(count, 2, dtype=F64)
    return torch.cat([corners, corners + 2.0 + 8.0 * torch.rand(count, 2, dtype=F64)], 1)


def overlap(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Intersection over union, and the generalized one."""
    a, b = one.tolist(), other.tolist()
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union, shared / union - (around - union) / around


def test_suppression_is_that_of_the_naive_twin() -> None:
    for _ in range(5):
        boxes, scores, labels = random_boxes(60), torch.rand(60), torch.randint(0, 3, (60,))
        kept: list[int] = []
        for row in sorted(range(60), key=lambda row: -float(scores[row])):
            if all(labels[row] != labels[k] or overlap(boxes[row], boxes[k])[0] <= 0.3 for k in kept):
                kept.append(row)
        assert nms(boxes, scores, labels, 0.3).tolist() == kept
        assert 5 < len(kept) < 60
    assert nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.5).tolist() == []


def naive_loss(logits: Tensor, edges: Tensor, boxes: Tensor, labels: Tensor) -> float:
    """The definition, cell by cell, for one image."""
    classes, height, width = logits.shape
    total = 0.0
    objects = [(box.tolist(), int(label)) for box, label in zip(boxes, labels, strict=True) if label >= 0]
    for c in range(classes):
        for i in range(height):
            for j in range(width):
                heat = 0.0
                for (left, top, right, bottom), label in objects:
                    column, row = math.floor((left + right) / 8), math.floor((top + bottom) / 8)
                    spread = max(max(right - left, bottom - top) / 24, 0.5)
                    bump = math.exp(-0.5 * ((i - row) ** 2 + (j - column) ** 2) / spread**2)
                    heat = max(heat, bump if label == c else 0.0)
                p = 1 / (1 + math.exp(-float(logits[c, i, j])))
                total -= (1 - p) ** 2 * math.log(p) if heat >= 1 else (1 - heat) ** 4 * p**2 * math.log(1 - p)
    for (left, top, right, bottom), _ in objects:
        costs = []
        for i in range(height):
            for j in range(width):
                x, y = 4 * j + 2, 4 * i + 2
                middle = (
                    abs(x - (left + right) / 2) < (right - left) / 4
                    and abs(y - (top + bottom) / 2) < (bottom - top) / 4
                )
                center = j == math.floor((left + right) / 8) and i == math.floor((top + bottom) / 8)
                if middle or center:
                    d = [4 * math.exp(float(edges[k, i, j])) for k in range(4)]
                    own = torch.tensor([x - d[0], y - d[1], x + d[2], y + d[3]], dtype=F64)
                    costs.append(1 - overlap(own, torch.tensor([left, top, right, bottom], dtype=F64))[1])
        total += sum(costs) / len(costs)
    return total


def test_the_loss_is_that_of_the_naive_twin() -> None:
    logits, edges = torch.randn(4, 3, 8, 6, dtype=F64), 0.5 * torch.randn(4, 4, 8, 6, dtype=F64)
    boxes, labels = torch.full((4, 3, 4), torch.nan, dtype=F64), torch.full((4, 3), -1)
    for row, count in enumerate((0, 1, 2, 3)):  # an image without any object, too
        boxes[row, :count], labels[row, :count] = random_boxes(count), torch.randint(0, 3, (count,))
    found = detection_loss({"classes": logits, "edges": edges}, {"boxes": boxes, "labels": labels})
    expected = [naive_loss(logits[k], edges[k], boxes[k], labels[k]) for k in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-6, atol=1e-6)


def test_gradients_of_the_loss_are_finite_also_beside_padding() -> None:
    net = Detector(num_classes=3, width=4).double()
    boxes, labels = torch.full((2, 3, 4), torch.nan, dtype=F64), torch.full((2, 3), -1)
    boxes[0, :2], labels[0, :2] = random_boxes(2), torch.tensor([0, 2])
    detection_loss(net(torch.rand(2, 1, 32, 32, dtype=F64)), {"boxes": boxes, "labels": labels}).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


def test_detections_are_the_boxes_that_an_output_holds() -> None:
    boxes = torch.tensor([[2.0, 3.0, 15.0, 17.0], [16.0, 1.0, 29.0, 9.0], [3.0, 18.0, 30.0, 31.0]])
    labels = torch.tensor([1, 0, 1])
    classes, edges = torch.full((1, 2, 8, 8), -9.0), torch.zeros(1, 4, 8, 8)
    for box, label in zip(boxes, labels, strict=True):
        column, row = (int((box[k] + box[k + 2]) / 8) for k in (0, 1))
        center = torch.tensor([4.0 * column + 2, 4.0 * row + 2])
        classes[0, label, row, column] = 5.0
        classes[0, label, row, column + 1] = 4.0  # a neighbor, which is no peak
        edges[0, :, row, column] = (torch.cat([center - box[:2], box[2:] - center]) / 4).log()
    (found,) = detect({"classes": classes, "edges": edges})
    order = found.boxes[:, 0].argsort()
    torch.testing.assert_close(found.boxes[order], boxes[boxes[:, 0].argsort()])
    assert found.labels[order].tolist() == labels[boxes[:, 0].argsort()].tolist()
    assert detect({"classes": torch.full((2, 2, 4, 4), -9.0), "edges": torch.zeros(2, 4, 4, 4)})[1].boxes.shape == (
        0,
        4,
    )


def test_a_detector_learns_from_padded_boxes_with_a_count() -> None:
    scenes = DigitScenes("train", 100, data="digits", size=32, digits=(1, 3))
    items = [scenes[index] for index in range(100)]
    x, boxes, labels = (torch.stack([item[name] for item in items]) for name in ("image", "boxes", "labels"))
    torch.manual_seed(0)
    likelihood = ps.likelihoods.Loss(detection_loss, targets=("boxes", "labels"))
    model = ps.BayesianModel(Detector(width=12), likelihood=likelihood, num_data=100)
    guide = ps.guides.Additive(model)
    data: Any = (x, {"boxes": boxes, "labels": labels})
    ps.fit(model, guide, data, epochs=25, batch_size=20, lr=1e-2, seed=0, progress=False, compile=False)
    metric = AveragePrecision(10)
    with torch.no_grad():
        found = detect(model.net.eval()(x))
    for item, own in zip(items, found, strict=True):
        count = int(item["count"])
        metric.update(box_overlaps(own.boxes, item["boxes"][:count]), own.scores, own.labels, item["labels"][:count])
    assert metric.compute().ap50 > 0.5


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        Detector(width=4)(torch.zeros(1, 1, 30, 32))
    with pytest.raises(ValueError, match="positive in_channels"):
        Detector(width=0)
