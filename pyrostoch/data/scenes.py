"""Scenes and clips of several digits, with boxes, classes and masks, composed from a data set of single ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyrostoch._checks import name_list
from pyrostoch.data.load import load
from pyrostoch.data.objects import pixel_labels
from pyrostoch.data.split import DataSplit

__all__ = ["DigitClips", "DigitScenes"]

# Brightness, of 255, from which a pixel belongs to a digit.
_INK = 64
# Tries of a place for a digit before the scene is begun again, and of scenes.
_PLACES, _SCENES = 50, 200
# Pixels that a digit of a clip moves from one frame to the next, at most, along each axis.
_FASTEST = 3


@dataclass(frozen=True)
class _Object:
    """A digit in a scene: its pixels without margins, its class, and its place and velocity."""

    ink: NDArray[np.uint8]
    label: int
    top: int
    left: int
    down: int = 0
    right: int = 0

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge."""
        return self.left, self.top, self.left + self.ink.shape[1], self.top + self.ink.shape[0]


class _Composed(Dataset[dict[str, Tensor]]):
    """What scenes and clips have in common: digits of one part of a data set, placed by a seed."""

    def __init__(
        self,
        part: str,
        count: int,
        *,
        seed: int = 0,
        data: str | DataSplit = "mnist",
        data_dir: str | None = None,
        size: int = 96,
        digits: tuple[int, int] = (2, 5),
        overlap: float = 0.1,
    ) -> None:
        if part not in ("train", "test"):
            raise ValueError(f"part: expected 'train' or 'test', got {part!r}")
        if count < 1 or not 0 <= seed < 2**31:
            raise ValueError(f"scenes: expected a positive count and a seed from 0 up, got {count} and {seed}")
        if not 0 <= digits[0] <= digits[1] or digits[1] < 1:
            raise ValueError(f"digits: expected the fewest, from 0 up, and the most, from 1 up, got {digits}")
        if not 0.0 <= overlap < 1.0:
            raise ValueError(f"overlap: expected a number from 0 to below 1, got {overlap}")
        split = load(data, data_dir) if isinstance(data, str) else data
        x, y = (split.x_train, split.y_train) if part == "train" else (split.x_test, split.y_test)
        if split.input_shape[0] != 1 or split.num_classes is None:
            raise ValueError(
                f"data {split.name!r}: expected gray images with a class, got inputs of shape {split.input_shape}"
            )
        if not x.is_floating_point() or not bool(((x >= 0.0) & (x <= 1.0)).all()):
            raise ValueError(
                f"data {split.name!r}: expected real images from 0 to 1, got {x.dtype} from {x.min().item():g} to "
                f"{x.max().item():g}"
            )
        # As whole numbers, so that scenes are the same on every machine.
        self._images: NDArray[np.uint8] = (x[:, 0] * 255.0).round().to(torch.uint8).numpy()
        self._labels: list[int] = y.tolist()
        self.num_classes = split.num_classes
        self.part, self.count, self.seed, self.size, self.most = part, count, seed, size, digits[1]
        self._fewest, self._overlap = digits[0], overlap
        if max(self._images.shape[1:]) > size:
            raise ValueError(f"size: expected room for images of {self._images.shape[1:]}, got {size}")

    def __len__(self) -> int:
        return self.count

    def pairs(self, *targets: str) -> _Pairs:
        """The same as pairs of images and a dictionary of targets, as `fit` takes them, made on the fly.

        Args:
            *targets: Names of targets, such as `"boxes"` and `"labels"`.
        """
        return _Pairs(self, targets)

    def stored(self) -> dict[str, Tensor]:
        """All items in memory, each entry as one tensor with them on its first axis."""
        items: list[dict[str, Tensor]] = [self[index] for index in range(self.count)]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _objects(self, index: int, fastest: int) -> list[_Object]:
        """The digits of a scene, from its number and the seed alone."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index}: there are {self.count}")
        # NumPy keeps this generator's stream for ever, and torch's permutations depend on its version.
        random = np.random.RandomState([self.seed, index, 0 if self.part == "train" else 1])
        for _ in range(_SCENES):
            found: list[_Object] = []
            wanted = int(random.randint(self._fewest, self.most + 1))
            for _ in range(wanted):
                placed = self._placed(random, found, fastest)
                if placed is None:
                    break
                found.append(placed)
            if len(found) == wanted:
                return found
        raise ValueError(
            f"scenes: {self._fewest} digits find no place on {self.size} x {self.size} pixels with an overlap of at "
            f"most {self._overlap:g}; give a larger size, or fewer digits"
        )

    def _placed(self, random: np.random.RandomState, others: list[_Object], fastest: int) -> _Object | None:
        which = int(random.randint(len(self._labels)))
        image = self._images[which]
        rows, columns = ((image >= _INK).any(axis).nonzero()[0] for axis in (1, 0))
        if not len(rows):  # an image without a digit
            return None
        ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for _ in range(_PLACES):
            top, left = (int(random.randint(self.size - length + 1)) for length in ink.shape)
            down, right = (int(random.randint(-fastest, fastest + 1)) for _ in range(2)) if fastest else (0, 0)
            placed = _Object(ink, self._labels[which], top, left, down, right)
            if all(_overlap(placed.box, other.box) <= self._overlap for other in others):
                return placed
        return None

    def _drawn(self, objects: list[_Object]) -> dict[str, Tensor]:
        """Image, boxes, labels and masks; what is above the number of digits is padding."""
        canvas = np.zeros((self.size, self.size), np.uint8)
        top_of = np.full((self.size, self.size), -1)
        for number, each in enumerate(objects):
            left, top, right, bottom = each.box
            below = canvas[top:bottom, left:right]
            top_of[top:bottom, left:right][(each.ink > below) & (each.ink >= _INK)] = number
            np.maximum(below, each.ink, out=below)
        boxes, labels = torch.full((self.most, 4), torch.nan), torch.full((self.most,), -1)
        masks = torch.zeros(self.most, self.size, self.size, dtype=torch.bool)
        for number, each in enumerate(objects):
            boxes[number], labels[number] = torch.tensor(each.box, dtype=boxes.dtype), each.label
            masks[number] = torch.from_numpy(top_of == number)
        return {
            "image": torch.from_numpy(canvas)[None].to(boxes.dtype) / 255.0,
            "boxes": boxes,
            "labels": labels,
            "count": torch.tensor(len(objects)),
            "masks": masks,
            "pixels": pixel_labels(masks, labels, self.num_classes),
        }


class _Pairs(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Scenes or clips as pairs of images and targets."""

    def __init__(self, scenes: _Composed, targets: tuple[str, ...]) -> None:
        first = scenes[0]
        if unknown := [name for name in targets if name not in first] or (not targets and ["none"]):
            raise ValueError(f"pairs: expected names of targets among {name_list(list(first)[1:])}, got {unknown[0]!r}")
        self._scenes, self._targets, self._image = scenes, targets, next(iter(first))

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """An item.

        Args:
            index: Its number.
        """
        item = self._scenes[index]
        return item[self._image], {name: item[name] for name in self._targets}


class DigitScenes(_Composed):
    """Images of several digits on a dark canvas, made on the fly, the same for a seed on every machine.

    An item has the `image`, (1, size, size); `boxes`, (most, 4), as left, top, right and bottom edge in pixels;
    `labels`, (most,); `masks`, (most, size, size), the pixels of each digit that no other covers; `pixels`, (size,
    size), the class of each pixel, with the number of classes for the background; and the `count` of digits. Beyond it
    boxes are NaN, labels -1 and masks empty. Scenes of `"train"` and `"test"` are made of the digits
    of that part.

    Args:
        part: `"train"` or `"test"`.
        count: Number of scenes.
        seed: Seed of the scenes.
        data: The data set of single digits: a name of `pyrostoch.data.load`, or one that has been loaded.
        data_dir: Its folder, as for `load`.
        size: Height and width of a scene.
        digits: The fewest and the most digits of a scene.
        overlap: Largest intersection over union of two boxes.

    Raises:
        ValueError: A setting is out of range; or, when an item is made, its digits find no place.

    Example:
        >>> scenes = DigitScenes("train", 100, data="digits", size=32, digits=(2, 3))
        >>> item = scenes[0]
        >>> item["image"].shape, item["boxes"].shape, 2 <= int(item["count"]) <= 3
        (torch.Size([1, 32, 32]), torch.Size([3, 4]), True)
        >>> image, targets = scenes.pairs("boxes", "labels")[0]
        >>> list(targets), scenes.stored()["image"].shape
        (['boxes', 'labels'], torch.Size([100, 1, 32, 32]))
    """

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A scene.

        Args:
            index: Its number.
        """
        return self._drawn(self._objects(index, 0))


class DigitClips(_Composed):
    """Clips of digits that move, each with a constant velocity, and turn back at the border; else as `DigitScenes`.

    An item has the `images`, (frames, 1, size, size); `boxes`, `masks` and `pixels` with an axis of frames first; and
    `labels` and `count`, since the digits of a clip are the same in all frames, and in the same order.

    Args:
        part: `"train"` or `"test"`.
        count: Number of clips.
        frames: Number of frames of a clip.
        seed: Seed of the clips.
        data: The data set of single digits: a name of `pyrostoch.data.load`, or one that has been loaded.
        data_dir: Its folder, as for `load`.
        size: Height and width of a frame.
        digits: The fewest and the most digits of a clip.
        overlap: Largest intersection over union of two boxes in the first frame.

    Raises:
        ValueError: A setting is out of range; or, when an item is made, its digits find no place.

    Example:
        >>> clip = DigitClips("test", 5, data="digits", size=32, digits=(2, 2), frames=4)[0]
        >>> clip["images"].shape, clip["boxes"].shape, clip["labels"].shape
        (torch.Size([4, 1, 32, 32]), torch.Size([4, 2, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        part: str,
        count: int,
        *,
        frames: int = 20,
        seed: int = 0,
        data: str | DataSplit = "mnist",
        data_dir: str | None = None,
        size: int = 96,
        digits: tuple[int, int] = (2, 5),
        overlap: float = 0.1,
    ) -> None:
        super().__init__(
            part, count, seed=seed, data=data, data_dir=data_dir, size=size, digits=digits, overlap=overlap
        )
        if frames < 1:
            raise ValueError(f"frames: expected a number from 1 up, got {frames}")
        self.frames = frames

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A clip.

        Args:
            index: Its number.
        """
        objects = self._objects(index, _FASTEST)
        drawn: list[dict[str, Any]] = []
        for _ in range(self.frames):
            drawn.append(self._drawn(objects))
            objects = [self._moved(each) for each in objects]
        by_clip = {name: drawn[0][name] for name in ("labels", "count")}
        by_frame = {name: torch.stack([frame[name] for frame in drawn]) for name in drawn[0] if name not in by_clip}
        return {"images": by_frame.pop("image"), **by_frame, **by_clip}

    def _moved(self, each: _Object) -> _Object:
        top, down = _reflected(each.top, each.down, self.size - each.ink.shape[0])
        left, right = _reflected(each.left, each.right, self.size - each.ink.shape[1])
        return _Object(each.ink, each.label, top, left, down, right)


def _reflected(place: int, velocity: int, last: int) -> tuple[int, int]:
    """A place after a step, and the velocity, which turns at the border."""
    after = place + velocity
    if 0 <= after <= last:
        return after, velocity
    back = -after if after < 0 else 2 * last - after
    return min(max(back, 0), last), -velocity


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
