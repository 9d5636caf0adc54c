"""Scenes and clips of several digits: what they hold, and that a seed makes the same ones everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pyrostoch.data import DigitClips, DigitScenes, load

SMALL: dict[str, Any] = {"data": "digits", "size": 32, "digits": (2, 4)}
INK = 64


def digest(item: dict[str, torch.Tensor]) -> str:
    content = b"".join(
        value.nan_to_num(-1.0).mul(255).round().to(torch.int32).numpy().tobytes()
        for name, value in item.items()
        if name != "pixels"  # follows from masks and labels
    )
    return hashlib.sha256(content).hexdigest()[:16]


def test_a_seed_makes_the_same_scenes_on_every_machine() -> None:
    assert digest(DigitScenes("train", 10, **SMALL)[3]) == "3871e872d0c4c60f"
    assert digest(DigitClips("test", 10, frames=3, **SMALL)[3]) == "a4f825b9ada6549c"
    scenes = DigitScenes("train", 10, **SMALL)
    torch.manual_seed(1)
    np.random.seed(1)
    assert digest(scenes[3]) == digest(scenes[3]) == digest(DigitScenes("train", 99, **SMALL)[3])
    assert digest(scenes[3]) == digest(DigitScenes("train", 10, **(SMALL | {"data": load("digits")}))[3])
    others = (DigitScenes("train", 10, seed=1, **SMALL)[3], scenes[4], DigitScenes("test", 10, **SMALL)[3])
    assert len({digest(item) for item in (scenes[3], *others)}) == 4


@pytest.mark.parametrize("part", ["train", "test"])
def test_boxes_are_those_of_digits_of_their_part_and_class(part: str) -> None:
    split = load("digits")
    x, y = (split.x_train, split.y_train) if part == "train" else (split.x_test, split.y_test)
    images = (255 * x[:, 0]).round().int()
    scenes = DigitScenes(part, 40, overlap=0.0, **SMALL)
    for index in range(40):
        item = scenes[index]
        canvas, count = (255 * item["image"][0]).round().int(), int(item["count"])
        assert 2 <= count <= 4
        total = torch.zeros_like(canvas)
        for box, label in zip(item["boxes"][:count].int().tolist(), item["labels"][:count].tolist(), strict=True):
            left, top, right, bottom = box
            crop = canvas[top:bottom, left:right]
            # The crop, with margins below the threshold of ink, is an image of the part and of the class.
            found = False
            for image in images[y == label]:
                rows, columns = (((image >= INK).any(axis)).nonzero().flatten() for axis in (1, 0))
                own = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                found = found or torch.equal(own, crop)
            assert found
            total[top:bottom, left:right] += crop
        assert torch.equal(total, canvas)  # nothing else is there
        assert item["boxes"][count:].isnan().all() and (item["labels"][count:] == -1).all()
        assert not item["masks"][count:].any()


def test_masks_are_the_pixels_that_are_seen() -> None:
    scenes = DigitScenes("train", 60, overlap=0.4, data="digits", size=20, digits=(3, 5))
    covered = 0
    for index in range(60):
        item = scenes[index]
        count, masks = int(item["count"]), item["masks"]
        assert int(masks.sum(0).max()) == 1  # no pixel belongs to two digits
        assert torch.equal(masks.any(0), (255 * item["image"][0]).round() >= INK)
        for number in range(count):
            left, top, right, bottom = item["boxes"][number].int().tolist()
            inside = torch.zeros_like(masks[number])
            inside[top:bottom, left:right] = True
            assert not (masks[number] & ~inside).any()
            rows, columns = (masks[number].any(axis).nonzero().flatten() for axis in (1, 0))
            tight = len(rows) and (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (top, bottom, left, right)
            covered += not tight
            for other in range(number):
                assert iou(item["boxes"][number], item["boxes"][other]) <= 0.4
    assert 0 < covered


def iou(one: torch.Tensor, other: torch.Tensor) -> float:
    """By counting pixels."""
    grids = []
    for left, top, right, bottom in (one.int().tolist(), other.int().tolist()):
        grid = torch.zeros(40, 40, dtype=torch.bool)
        grid[top:bottom, left:right] = True
        grids.append(grid)
    return float((grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum())


def test_digits_of_a_clip_keep_their_velocity_and_turn_at_the_border() -> None:
    clip = DigitClips("train", 20, frames=30, **SMALL)
    turns = 0
    for index in range(20):
        item = clip[index]
        boxes = item["boxes"][:, : int(item["count"])]
        assert (boxes[..., :2] >= 0).all() and (boxes[..., 2:] <= 32).all()
        assert (boxes[..., 2:] - boxes[..., :2]).std(0).max() == 0.0
        steps = boxes.diff(dim=0)[..., :2]
        assert steps.abs().max() <= 3
        same = (steps.diff(dim=0) == 0.0).float().mean()
        assert same > 0.5
        turns += int((steps[1:] * steps[:-1] < 0).sum())
        for frame in (0, 7):
            left, top, right, bottom = boxes[frame, 0].int().tolist()
            assert (item["images"][frame, 0, top:bottom, left:right] * 255 >= INK).any()
    assert turns > 0


def test_scenes_are_collated_by_loaders() -> None:
    batch = next(iter(DataLoader(DigitScenes("train", 8, **SMALL), batch_size=4)))
    assert batch["image"].shape == (4, 1, 32, 32)
    assert batch["boxes"].shape == (4, 4, 4)
    clips = next(iter(DataLoader(DigitClips("train", 8, frames=3, **SMALL), batch_size=2)))
    assert clips["images"].shape == (2, 3, 1, 32, 32)
    assert len(list(DataLoader(DigitScenes("train", 5, **SMALL), batch_size=2))) == 3


def test_settings_that_make_no_scenes_are_refused() -> None:
    for settings, message in (
        ({"part": "validation"}, "'train' or 'test'"),
        ({"count": 0}, "positive count"),
        ({"seed": -1}, "seed"),
        ({"digits": (3, 2)}, "the fewest, from 0 up"),
        ({"overlap": 1.0}, "overlap"),
        ({"size": 7}, "room"),
    ):
        given: dict[str, Any] = {"part": "train", "count": 3, **SMALL, **settings}
        with pytest.raises(ValueError, match=message):
            DigitScenes(given.pop("part"), given.pop("count"), **given)
    with pytest.raises(ValueError, match="frames"):
        DigitClips("train", 3, frames=0, **SMALL)
    crowded = DigitScenes("train", 3, data="digits", size=9, digits=(5, 5), overlap=0.0)
    with pytest.raises(ValueError, match="find no place on 9 x 9"):
        crowded[0]
    with pytest.raises(IndexError):
        crowded[3]


def test_images_that_are_not_from_0_to_1_are_refused() -> None:
    split = load("digits")
    for x in (255 * split.x_train, split.x_train - 0.1, (255 * split.x_train).to(torch.uint8), split.x_train / 0.0):
        with pytest.raises(ValueError, match="expected real images from 0 to 1"):
            DigitScenes("train", 3, **(SMALL | {"data": dataclasses.replace(split, x_train=x)}))
