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
from pyrostoch.models import DetectionLoss, Detections, Detector, detect, nms, object_masks

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
    found = DetectionLoss()({"classes": logits, "edges": edges}, {"boxes": boxes, "labels": labels})
    expected = [naive_loss(logits[k], edges[k], boxes[k], labels[k]) for k in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-6, atol=1e-6)


def test_a_box_whose_center_is_outside_has_a_cell_at_the_border() -> None:
    edges = torch.zeros(1, 4, 4, 4, dtype=F64)
    targets = {"boxes": torch.tensor([[[-9.0, 3.0, 4.0, 6.0]]], dtype=F64), "labels": torch.tensor([[0]])}
    empty = torch.full((1, 1, 4, 4), -6.0, dtype=F64)
    found = empty.clone()
    found[0, 0, 1, 0] = 6.0
    losses = [float(DetectionLoss()({"classes": logits, "edges": edges}, targets)) for logits in (empty, found)]
    assert losses[1] < losses[0] - 5.0


def test_classes_of_pixels_are_added_by_their_mean() -> None:
    net = Detector(num_classes=2, width=4, pixels=True).double()
    output = {name: part.detach() for name, part in net(torch.rand(2, 1, 8, 12, dtype=F64)).items()}
    assert output["pixels"].shape == (2, 3, 8, 12)
    boxes, labels = torch.full((2, 1, 4), torch.nan, dtype=F64), torch.full((2, 1), -1)
    targets = {"boxes": boxes, "labels": labels, "pixels": torch.randint(0, 3, (2, 8, 12))}
    for image in range(2):
        wanted = 0.0
        for row in range(8):
            for column in range(12):
                logits = output["pixels"][image, :, row, column].tolist()
                own = logits[int(targets["pixels"][image, row, column])]
                wanted += math.log(sum(math.exp(each) for each in logits)) - own
        without = {name: part for name, part in output.items() if name != "pixels"}
        total = DetectionLoss(pixel_weight=3.0)(output, targets) - DetectionLoss()(without, targets)
        assert float(total[image]) == pytest.approx(3.0 * wanted / 96, rel=1e-9)


BOX = [1.0, 2.0, 9.0, 10.0]


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([5.0, 2.0, 5.0, 9.0], 1, r"image 1, object 0: expected left < right .* within 32 x 16 pixels, got \[5.0"),
        ([5.0, 9.0, 7.0, 2.0], 1, "top < bottom"),
        ([33.0, 2.0, 35.0, 9.0], 1, "image 1, object 0"),
        ([5.0, 17.0, 7.0, 19.0], 1, "image 1, object 0"),
        ([torch.nan] * 4, 1, "image 1, object 0"),
        (BOX, 3, "classes from 0 to 2, and -1 as padding"),
        (BOX, -2, "classes from 0 to 2"),
        (BOX, -1, "expected a class for each box"),
        ([-2000.0, 1.0, 20.0, 9.0], 0, "expected objects up to 594 pixels to each side"),
    ],
)
def test_objects_that_are_none_are_refused_before_training(box: list[float], label: int, message: str) -> None:
    boxes, labels = torch.tensor([[BOX], [box], [BOX]]), torch.tensor([[0], [label], [0]])
    model = ps.BayesianModel(
        Detector(num_classes=3, width=4),
        likelihood=ps.likelihoods.Loss(DetectionLoss(), targets=("boxes", "labels")),
        num_data=3,
        target=("boxes", "labels"),
    )
    x = torch.rand(3, 1, 16, 32)
    items = [{"x": x[image], "boxes": boxes[image], "labels": labels[image]} for image in range(3)]
    settings: Any = {"epochs": 1, "batch_size": 1, "progress": False, "compile": False}
    for data in ((x, {"boxes": boxes, "labels": labels}), items):
        numbered = message if data is not items else message.replace("image 1", "image 0")  # of its batch
        with pytest.raises(ValueError, match=numbered):
            ps.fit(model, ps.guides.Additive(model), data, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pixels", "changes", "message"),
    [
        (True, {"pixels": None}, "no targets 'pixels', but 'boxes', 'labels'"),
        (True, {"pixels": torch.zeros(1, 16, 31).long()}, r"pixels of shape \(1, 16, 32\)"),
        (True, {"pixels": torch.zeros(1, 16, 32)}, "dtype int64"),
        (True, {"pixels": torch.full((1, 16, 32), 4)}, "from 0 to 3, which is the background, got 4"),
        (False, {}, "a detector without such a head"),
        (True, {"boxes": torch.zeros(1, 2, 4)}, r"boxes of shape \(batch, most, 4\)"),
        (True, {"labels": torch.zeros(1, 1)}, "whole numbers as labels"),
    ],
)
def test_targets_that_do_not_fit_the_detector_are_refused(pixels: bool, changes: Any, message: str) -> None:
    targets = {"boxes": torch.tensor([[BOX]]), "labels": torch.tensor([[1]]), "pixels": torch.zeros(1, 16, 32).long()}
    targets = {name: part for name, part in (targets | changes).items() if part is not None}
    output = Detector(num_classes=3, width=4, pixels=pixels)(torch.zeros(1, 1, 16, 32))
    with pytest.raises(ValueError, match=message):
        DetectionLoss().check_targets(output, targets)


def test_boxes_in_parts_of_the_image_are_refused() -> None:
    output = Detector(num_classes=3, width=4)(torch.zeros(2, 1, 16, 32))
    boxes, labels = torch.tensor([[[0.1, 0.2, 0.5, 0.9]], [[0.0, 0.0, 1.0, 0.4]]]), torch.zeros(2, 1).long()
    with pytest.raises(ValueError, match="DetectionLoss: all boxes lie within the first pixel"):
        DetectionLoss().check_targets(output, {"boxes": boxes, "labels": labels})
    with pytest.raises(ValueError, match="PixelClasses: all boxes lie within the first pixel"):
        ps.layers.PixelClasses(3, size=(16, 32))({"boxes": boxes, "labels": labels})
    with pytest.raises(ValueError, match="pad_objects: all boxes lie within the first pixel"):
        ps.data.pad_objects(list(boxes), list(labels), size=(16, 32))
    single = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])  # an object of one pixel
    DetectionLoss().check_targets(output, {"boxes": single.expand(2, 1, 4), "labels": labels})


def test_objects_of_other_sizes_cannot_be_collated_in_silence() -> None:
    model = ps.BayesianModel(
        Detector(width=4),
        likelihood=ps.likelihoods.Loss(DetectionLoss(), targets=("boxes", "labels")),
        num_data=2,
        target=("boxes", "labels"),
    )
    items = [{"x": torch.rand(1, 16, 16), "boxes": torch.zeros(n, 4), "labels": torch.zeros(n).long()} for n in (1, 2)]
    with pytest.raises((ValueError, RuntimeError), match="equal size|same shape"):
        ps.fit(model, ps.guides.Additive(model), items, epochs=1, progress=False)  # type: ignore[arg-type]


def test_masks_of_objects_are_the_pixels_of_their_class_in_their_box() -> None:
    for _ in range(5):
        pixels = torch.randn(2, 4, 9, 7)
        found = [
            Detections(5.0 * torch.rand(n, 2).repeat(1, 2) + torch.tensor([0, 0, 3.0, 2.0]), torch.rand(n),
                       torch.randint(0, 3, (n,)))
            for n in (3, 0)
        ]  # fmt: skip
        masks = object_masks({"pixels": pixels}, found)
        assert masks[1].shape == (0, 9, 7)
        for number in range(3):
            left, top, right, bottom = found[0].boxes[number].tolist()
            for row in range(9):
                for column in range(7):
                    inside = left < column + 0.5 < right and top < row + 0.5 < bottom
                    own = int(pixels[0, :, row, column].argmax()) == int(found[0].labels[number])
                    assert bool(masks[0][number, row, column]) == (inside and own)


def test_gradients_of_the_loss_are_finite_also_beside_padding() -> None:
    net = Detector(num_classes=3, width=4).double()
    boxes, labels = torch.full((2, 3, 4), torch.nan, dtype=F64), torch.full((2, 3), -1)
    boxes[0, :2], labels[0, :2] = random_boxes(2), torch.tensor([0, 2])
    DetectionLoss()(net(torch.rand(2, 1, 32, 32, dtype=F64)), {"boxes": boxes, "labels": labels}).sum().backward()
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


def test_settings_and_outputs_that_tell_of_nothing_are_refused() -> None:
    output = {"classes": torch.randn(1, 2, 4, 4), "edges": torch.zeros(1, 4, 4, 4)}
    for threshold in (0.0, -1.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            detect(output, threshold=threshold)
    with pytest.raises(ValueError, match="the training has diverged"):
        detect(output | {"classes": torch.full((1, 2, 4, 4), torch.nan)})


def test_many_candidates_of_a_class_do_not_hide_another() -> None:
    classes = torch.full((1, 2, 16, 16), -9.0)
    classes[0, 0], classes[0, 1, 3, 3] = 9.0, 2.0
    (found,) = detect({"classes": classes, "edges": torch.full((1, 4, 16, 16), -3.0)}, most=50)
    assert (found.labels == 1).sum() == 1 and (found.labels == 0).sum() == 50
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_half_precision_keeps_the_cells_of_a_wide_image_apart() -> None:
    classes, edges = torch.full((1, 1, 2, 250), -9.0), torch.zeros(1, 4, 2, 250)
    classes[0, 0, 1, 201] = 4.0
    halved = {"classes": classes.bfloat16(), "edges": edges.bfloat16()}
    (one,), (other,) = detect(halved), detect({"classes": classes, "edges": edges})
    assert torch.equal(one.boxes, other.boxes) and one.boxes.dtype == torch.float32
    targets = {"boxes": torch.tensor([[[802.0, 2.0, 810.0, 10.0]]]), "labels": torch.tensor([[0]])}
    losses = [float(DetectionLoss()(each, targets)) for each in (halved, {"classes": classes, "edges": edges})]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_targets_of_another_batch_are_refused() -> None:
    output = {"classes": torch.zeros(4, 1, 4, 4), "edges": torch.zeros(4, 4, 4, 4)}
    with pytest.raises(ValueError, match="expected targets of 4 images, got those of 1"):
        DetectionLoss()(output, {"boxes": torch.tensor([[BOX]]), "labels": torch.tensor([[0]])})


def test_a_detector_learns_from_padded_boxes_with_a_count() -> None:
    scenes = DigitScenes("train", 100, data="digits", size=32, digits=(1, 3))
    items = [scenes[index] for index in range(100)]
    x, boxes, labels = (torch.stack([item[name] for item in items]) for name in ("image", "boxes", "labels"))
    torch.manual_seed(0)
    likelihood = ps.likelihoods.Loss(DetectionLoss(), targets=("boxes", "labels"))
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


@pytest.mark.parametrize(
    ("targets", "change", "message"),
    [
        (("boxes", "labels"), {}, "no targets 'pixels'"),
        (("boxes", "labels", "pixels"), {"pixels": torch.zeros(4, 8, 8).long()}, r"pixels of shape \(4, 16, 16\)"),
        (("boxes", "labels", "pixels"), {"pixels": torch.full((4, 16, 16), -1)}, "the background, got -1"),
        (("boxes", "labels", "pixels"), {"pixels": torch.zeros(4, 16, 16).long()}, "the background is the last one, 2"),
    ],
)
def test_fit_names_targets_of_pixels_that_do_not_fit(
    targets: tuple[str, ...], change: dict[str, Tensor], message: str
) -> None:
    boxes = torch.tensor([[[2.0, 2.0, 8.0, 8.0]]]).expand(4, 1, 4).contiguous()
    pixels = torch.full((4, 16, 16), 2)
    pixels[:, 2:8, 2:8] = 1
    y = {"boxes": boxes, "labels": torch.ones(4, 1).long(), "pixels": pixels, **change}
    likelihood = ps.likelihoods.Loss(ps.models.DetectionLoss(), targets=targets)
    net = ps.models.Detector(num_classes=2, width=2, pixels=True)
    model = ps.BayesianModel(net, likelihood=likelihood, num_data=4)
    data = torch.rand(4, 1, 16, 16), {name: y[name] for name in targets}
    with pytest.raises(ValueError, match=message):
        ps.fit(model, ps.guides.Additive(model), data, epochs=1, progress=False, compile=False)


def test_predict_of_a_loss_names_outputs() -> None:
    likelihood = ps.likelihoods.Loss(ps.models.DetectionLoss(), targets=("boxes", "labels"))
    model = ps.BayesianModel(ps.models.Detector(num_classes=2, width=2), likelihood=likelihood, num_data=4)
    with pytest.raises(ValueError, match=r"outputs\(\)"):
        ps.predict(model, ps.guides.Additive(model), torch.rand(4, 1, 16, 16))


def test_masks_of_an_output_without_pixels_are_refused() -> None:
    output = ps.models.Detector(num_classes=2, width=2)(torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match="Detector\\(pixels=True\\)"):
        ps.models.object_masks(output, ps.models.detect(output))
