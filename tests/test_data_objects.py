"""Lists of boxes, classes and masks as padded targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrostoch.data import DigitScenes, pad_objects, pixel_labels
from pyrostoch.layers import PixelClasses

ONE, NONE = torch.tensor([[1.0, 2.0, 5.0, 4.0]]), torch.zeros(0, 4)


def classes(*labels: int) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)


def test_padded_objects_are_those_of_scenes() -> None:
    scenes = DigitScenes("train", 8, data="digits", size=32, digits=(0, 4))
    stored = scenes.stored()
    counts = stored["count"].tolist()
    assert 0 in counts
    lists: dict[str, Any] = {
        name: [each[:n] for each, n in zip(stored[name], counts, strict=True)] for name in ("boxes", "labels", "masks")
    }
    found = pad_objects(**lists, size=(32, 32), most=4)
    assert found.keys() == {"boxes", "labels", "masks", "count"}
    for name, value in found.items():
        torch.testing.assert_close(value, stored[name], equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most": 1}, "image 1: it has 2 objects, and there is room for 1; give most=2"),
        (
            {"boxes": [NONE, torch.tensor([[1.0, 2, 1, 4], [0, 0, 1, 1]])]},
            r"image 1: .* within 8 x 6 .*\[1.0, 2.0, 1.0",
        ),
        ({"boxes": [NONE, torch.tensor([[8.0, 2, 9, 4], [0, 0, 1, 1]])]}, "image 1"),
        ({"boxes": [NONE, torch.tensor([[torch.nan, 2, 9, 4], [0, 0, 1, 1]])]}, "image 1"),
        ({"boxes": [NONE, torch.tensor([[0.0, 2, torch.inf, 4], [0, 0, 1, 1]])]}, "image 1"),
        ({"boxes": [ONE]}, "as many images, got"),
        ({"boxes": [], "labels": []}, "as many images, got"),
        ({"labels": [classes(), classes(1)]}, "a whole number for each"),
        ({"labels": [classes(), torch.tensor([0.5, 1.0])]}, "a whole number for each"),
        ({"labels": [classes(), classes(-1, 1)]}, "classes from 0 up, got -1"),
        ({"masks": [torch.zeros(0, 6, 8), torch.zeros(2, 8, 6)]}, r"masks of shape \(2, 6, 8\), got \(2, 8, 6\)"),
        ({"masks": [torch.zeros(0, 6, 8)]}, "as many images, got"),
    ],
)
def test_objects_that_cannot_be_padded_are_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"boxes": [NONE, torch.cat([ONE, ONE])], "labels": [classes(), classes(3, 4)]}
    pad_objects(**given, size=(6, 8))
    with pytest.raises(ValueError, match=message):
        pad_objects(**(given | changes), size=(6, 8))


def test_pixels_have_the_class_of_the_first_mask_that_covers_them() -> None:
    masks, labels = torch.rand(3, 4, 5, 6) < 0.4, torch.randint(-1, 3, (3, 4))
    found = pixel_labels(masks, labels, 3)
    for image in range(3):
        for row in range(5):
            for column in range(6):
                own = [
                    int(labels[image, k]) for k in range(4) if masks[image, k, row, column] and labels[image, k] >= 0
                ]
                assert int(found[image, row, column]) == (own or [3])[0]
    assert torch.equal(pixel_labels(masks[1], labels[1], 3), found[1])


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected masks"):
        pixel_labels(torch.zeros(3, 5, 6), classes(1, 2), 3)
    with pytest.raises(ValueError, match="classes from 0 to 2, got 3"):
        pixel_labels(torch.zeros(1, 5, 6), classes(3), 3)


def test_pairs_are_items_without_what_was_not_asked_for() -> None:
    scenes = DigitScenes("train", 3, data="digits", size=32, digits=(1, 2))
    image, targets = scenes.pairs("labels", "boxes")[2]
    assert torch.equal(image, scenes[2]["image"]) and list(targets) == ["labels", "boxes"]
    assert len(scenes.pairs("pixels")) == 3
    with pytest.raises(ValueError, match="among 'boxes', .* got 'box'"):
        scenes.pairs("box")
    with pytest.raises(ValueError, match="got 'none'"):
        scenes.pairs()


def test_soft_masks_are_refused_and_ink_is_not() -> None:
    mask = torch.tensor([[[0, 255], [255, 0]]], dtype=torch.uint8)
    wanted = [[1, 0], [0, 1]]
    assert pixel_labels(mask, classes(0), 1).tolist() == wanted
    found = pad_objects([ONE], [classes(0)], masks=[mask.repeat(1, 3, 4)], size=(6, 8))
    assert torch.equal(found["masks"][0, 0], mask.repeat(1, 3, 4)[0] > 0)
    soft = torch.tensor([[[0.0, 0.3], [1.0, 0.0]]])
    for refused in (
        lambda: pixel_labels(soft, classes(0), 1),
        lambda: pad_objects([ONE], [classes(0)], masks=[soft.repeat(1, 3, 4)], size=(6, 8)),
        lambda: PixelClasses(1, "masks")({"masks": soft[None], "labels": classes(0)[None]}),
    ):
        with pytest.raises(ValueError, match="compare soft masks with a threshold"):
            refused()
    for refused in (
        lambda: pixel_labels(mask, torch.tensor([0.5]), 1),
        lambda: PixelClasses(1, "masks")({"masks": mask[None], "labels": torch.tensor([[0.5]])}),
    ):
        with pytest.raises(ValueError, match="whole numbers"):
            refused()


def test_other_things_than_tensors_and_sizes_are_named() -> None:
    with pytest.raises(TypeError, match="a tensor for each image, got list"):
        pad_objects([[[0.0, 0.0, 2.0, 2.0]]], [torch.tensor([0])], size=(8, 8))  # type: ignore[list-item]
    with pytest.raises(TypeError, match="height, width"):
        pad_objects([torch.zeros(0, 4)], [torch.zeros(0).long()], size=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"torch\.zeros\(0, 4\)"):
        pad_objects([torch.tensor([])], [torch.tensor([])], size=(8, 8))
