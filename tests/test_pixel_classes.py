"""Known classes of pixels, read from targets with boxes or masks, and handed to conditional layers by every verb."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.data import DigitScenes
from pyrostoch.layers import Conditional, GatedSelection, HardSelection, PixelClasses, StochasticAdditive
from pyrostoch.models import DetectionLoss, Detector

SIZE = (9, 12)
SMALL: dict[str, Any] = {"data": "digits", "size": 32, "digits": (1, 3)}


def random_objects() -> dict[str, Tensor]:
    """Four images with up to three boxes each, some partly outside, some without the center of any pixel."""
    low = 8.0 * torch.rand(4, 3, 2, dtype=torch.float64) - 1.0
    size = 1.1 + 6.0 * torch.rand(4, 3, 2, dtype=torch.float64)
    low[0, 0], size[0, 0] = low[0, 0].abs(), 0.05
    boxes = torch.cat([low, low + size], -1)
    labels = torch.randint(0, 4, (4, 3))
    for image, count in enumerate((3, 1, 0, 2)):
        boxes[image, count:], labels[image, count:] = torch.nan, -1
    return {"boxes": boxes, "labels": labels, "masks": torch.rand(4, 3, *SIZE) < 0.3}


def test_pixels_are_those_of_boxes_and_masks_image_by_image() -> None:
    for _ in range(20):
        targets = random_objects()
        counts = (targets["labels"] >= 0).sum(1).tolist()
        lists = {name: [each[:n] for each, n in zip(value, counts, strict=True)] for name, value in targets.items()}
        boxes = HardSelection.from_boxes(lists["boxes"], lists["labels"], 4, SIZE)
        assert torch.equal(PixelClasses(4, size=SIZE)(targets), torch.as_tensor(boxes.tensor))
        masks = HardSelection.from_masks(lists["masks"], lists["labels"], 4)
        assert torch.equal(PixelClasses(4, "masks")(targets), torch.as_tensor(masks.tensor))


def test_positions_of_a_smaller_layer_are_those_of_its_own_pixels() -> None:
    size = (8, 12)
    boxes = torch.tensor([[[0.0, 0.0, 5.0, 4.0], [6.5, 2.0, 7.5, 3.0]]])
    targets = {"boxes": boxes, "labels": torch.tensor([[1, 0]])}
    found = PixelClasses(2, size=size, stride=2)(targets)
    halved = HardSelection.from_boxes([boxes[0] / 2], [torch.tensor([1, 0])], 2, (4, 6))
    assert torch.equal(found, torch.as_tensor(halved.tensor))
    masks = torch.zeros(1, 2, *size, dtype=torch.bool)
    masks[0, 0, 3, 5] = masks[0, 1, 6:, :] = True
    found = PixelClasses(2, "masks", stride=2)({"masks": masks, "labels": torch.tensor([[1, 0]])})[0, :, 0]
    assert found[1].nonzero().tolist() == [[1, 2]] and found[0].nonzero()[:, 0].unique().tolist() == [3]
    assert torch.equal(found[2], ~(found[0] | found[1]))


def test_an_image_without_objects_is_background() -> None:
    targets = {"boxes": torch.full((1, 2, 4), torch.nan), "labels": torch.full((1, 2), -1)}
    found = PixelClasses(3, size=(4, 5))(targets)
    assert found[0, 3].all() and not found[0, :3].any()


def targets_with(box: list[float], label: int = 1) -> dict[str, Tensor]:
    boxes = torch.tensor([[[1.0, 1.0, 3.0, 3.0]] * 2, [[1.0, 1.0, 3.0, 3.0], box]])
    return {"boxes": boxes, "labels": torch.tensor([[0, 1], [0, label]])}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (targets_with([3.0, 1.0, 3.0, 2.0]), r"boxes of image 1: .* got \[3.0, 1.0, 3.0, 2.0\] as box 1"),
        (targets_with([20.0, 1.0, 23.0, 2.0]), "within 12 x 9 pixels"),
        (targets_with([torch.nan, 1.0, 23.0, 2.0]), "boxes of image 1"),
        (targets_with([1.0, 1.0, torch.inf, 2.0]), "boxes of image 1"),
        (targets_with([1.0, 1.0, 2.0, 2.0], 4), "classes from 0 to 3, got 4"),
        (targets_with([1.0, 1.0, 2.0, 2.0], -2), "classes from 0 to 3, got -2"),
        ({"boxes": torch.zeros(2, 2, 4)}, "no targets 'labels', but 'boxes'"),
        ({"boxes": torch.zeros(2, 3, 4), "labels": torch.zeros(2, 2).long()}, r"got \(2, 3, 4\) and \(2, 2\)"),
    ],
)
def test_objects_that_are_none_are_refused_by_name(targets: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelClasses(4, size=SIZE)(targets)


def test_a_box_without_an_end_is_refused_in_lists_too() -> None:
    with pytest.raises(ValueError, match="boxes of image 0: .* got .*inf"):
        HardSelection.from_boxes([torch.tensor([[0.0, 0.0, torch.inf, 2.0]])], [torch.tensor([1])], 2, SIZE)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="size: expected height and width"):
        PixelClasses(4)
    for by, given in (("boxes", {"size": SIZE}), ("masks", {})):
        with pytest.raises(ValueError, match="a divisor of the"):
            PixelClasses(4, by, stride=2, **given)(random_objects())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none for masks"):
        PixelClasses(4, "masks", size=SIZE)
    with pytest.raises(TypeError, match="expected targets by name"):
        PixelClasses(4, size=SIZE)(torch.zeros(3))  # type: ignore[arg-type]


def few_scenes() -> tuple[Tensor, dict[str, Tensor]]:
    found = DigitScenes("train", 3, **SMALL).stored()
    return found["image"], {name: found[name] for name in ("boxes", "labels")}


def detector() -> tuple[ps.BayesianModel, ps.guides.Additive, Conditional]:
    layer = Conditional(lambda: StochasticAdditive((1, 32, 32), scale=0.2), 10, where="output", background="class")
    net = ps.layers.embody.prepend(Detector(width=4), layer)
    loss = ps.likelihoods.Loss(DetectionLoss(), targets=("boxes", "labels"))
    model = ps.BayesianModel(net, likelihood=loss, num_data=3)
    return model, ps.guides.Additive(model), layer


def test_verbs_hand_the_pixels_of_targets_to_the_layer() -> None:
    model, guide, layer = detector()
    x, y = few_scenes()
    classes = PixelClasses(10, size=(32, 32))
    model.net.eval()
    with torch.no_grad():
        for number, each in enumerate(layer.classes):
            each.get_parameter("loc").fill_(float(number))
            each.get_parameter("log_scale").fill_(-20.0)
    with HardSelection(tensor=classes(y)), torch.no_grad():
        wanted = DetectionLoss()(model.net(x), y).sum().item()
    (row,) = ps.compare(model, guide, (x, y), modes=("mc:1",), labels=classes).rows
    assert row.labels == "known" and 3 * row.nll == pytest.approx(wanted, rel=1e-4)
    terms = ps.decompose(model, guide, (x, y), labels=classes, num_samples=2)
    assert terms.labels == "known" and -terms.data == pytest.approx(wanted, rel=1e-4)
    assert ps.activation_noise(model, guide, (x, y), labels=classes).labels == "known"
    output = ps.outputs(model, guide, x, labels=classes(y))
    assert DetectionLoss()(output, y).sum().item() == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ValueError, match="the class of each example is not known"):
        ps.compare(model, guide, (x, y), modes=("mc:1",))


def test_two_steps_begin_with_pixels_and_end_without() -> None:
    model, guide, layer = detector()
    scenes = DigitScenes("train", 3, digits=(1, 3), data="digits", size=32).pairs("boxes", "labels")

    class Gate(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :, None]

    settings: dict[str, Any] = {"batch_size": 2, "seed": 0, "progress": False, "compile": False}
    classes = PixelClasses(10, size=(32, 32))
    with pytest.warns(UserWarning, match="never occurred in training"):  # three scenes do not have all digits
        few = ps.fit(model, guide, scenes, epochs=1, labels=classes, **settings)
    assert few.labels == "known"
    gate = GatedSelection(Gate(1, 11, 5, padding=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*never occurred in training")
        found = ps.fit_two_steps(model, guide, scenes, selection=gate, epochs=(2, 2), labels=classes, **settings)
    assert found.classes.labels == "known" and found.selection is not None and found.selection.labels is None
    shown = {int(label) for i in range(3) for label in scenes[i][1]["labels"] if label >= 0}
    assert set(layer.seen.nonzero().flatten().tolist()) == shown | {10}
    with pytest.raises(TypeError, match="labels are known in the first step"):
        ps.fit_two_steps(model, guide, scenes, selection=None, epochs=(1, 1), labels=None)


def by_batch(targets: dict[str, Tensor]) -> Tensor:
    return torch.unique(targets["labels"][:, 0], return_inverse=True)[1].flip(0)


def changing(targets: dict[str, Tensor]) -> Tensor:
    targets["labels"][targets["labels"] < 0] = 0
    return targets["labels"][:, 0]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (by_batch, ValueError, "other classes for half of the examples"),
        (changing, ValueError, "changed the targets in place"),
        ("known", TypeError, r"got dict; of several targets a function makes classes, such as labels=PixelClasses"),
        (lambda targets: targets["boxes"], ValueError, "got torch.float32 of shape"),
        (lambda targets: torch.zeros(2, dtype=torch.int64), ValueError, "expected those of 3 examples, got 2"),
        (PixelClasses, TypeError, "expected 'known', .* or a function of the targets"),
        (PixelClasses(10, size=(31, 32)), ValueError, "selection of the "),
        (PixelClasses(9, size=(32, 32)), ValueError, "expected classes from 0 to 8|selection of the "),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, error: type[Exception], message: str) -> None:
    model, guide, _ = detector()
    with pytest.raises(error, match=message):
        ps.fit(model, guide, few_scenes(), epochs=1, labels=labels, progress=False, compile=False)


@pytest.mark.filterwarnings("ignore:.*never occurred in training")
def test_a_run_is_not_resumed_with_other_labels(tmp_path: Path) -> None:
    def run(labels: Any, epochs: int, resume: bool = True) -> None:
        model, guide, _ = detector()
        settings: dict[str, Any] = {"checkpoint": tmp_path / "run", "resume": resume, "schedule": "constant"}
        ps.fit(
            model, guide, few_scenes(), epochs=epochs, labels=labels, seed=0, progress=False, compile=False, **settings
        )

    classes = PixelClasses(10, size=(32, 32))
    run(classes, 1, resume=False)
    run(PixelClasses(10, size=(32, 32)), 2)
    for other in (lambda targets: classes(targets), functools.partial(classes)):
        with pytest.raises(ps.training.CheckpointError, match="cannot be resumed with labels="):
            run(other, 3)
