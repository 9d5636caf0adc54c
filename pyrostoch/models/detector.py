"""A compact detector without anchors: where objects are, how large, of which class, and which pixels they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.metrics import box_overlaps

__all__ = [
    "LOG_DISTANCE",
    "STRIDE",
    "Detections",
    "Detector",
    "cell_boxes",
    "cell_centers",
    "detect",
    "full_precision",
    "nms",
    "object_masks",
]

#: Pixels of the image to a cell of the output, along each axis.
STRIDE = 4
# Logit of a cell without an object before training: a probability of 1 %, so that the many empty cells cost little.
_EMPTY = -4.6
#: Limits of the logarithm of a distance, in cells.
LOG_DISTANCE = 5.0


class Detector(nn.Module):
    r"""Six convolutions and two heads: class scores and distances to the edges of a box, for each cell of 4 x 4 pixels.

    It returns `classes`, logits (batch, classes, height / 4, width / 4), and `edges`, (batch, 4, height / 4,
    width / 4): the logarithms of the distances from a cell's center to the left, top, right and bottom edge, in
    cells; and, with `pixels=True`, `pixels`, logits of the class of each pixel, (batch, classes + 1, height, width),
    the last for the background.

    `DetectionLoss` trains it, in a `likelihoods.Loss(DetectionLoss(), targets=("boxes", "labels"))`; `detect` makes
    boxes of its output, `object_masks` the pixels of each.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        width: Channels of the first convolution; the last ones have four times as many.
        pixels: Whether it tells the class of each pixel, too.

    Example:
        >>> output = Detector(num_classes=3, width=8)(torch.zeros(2, 1, 32, 48))
        >>> output["classes"].shape, output["edges"].shape
        (torch.Size([2, 3, 8, 12]), torch.Size([2, 4, 8, 12]))

    References:
        Zhou, Wang, Krähenbühl, "Objects as points", 2019; Tian, Shen, Chen, He, "FCOS: fully convolutional one-stage
        object detection", 2019.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 24, *, pixels: bool = False) -> None:
        super().__init__()
        if min(in_channels, num_classes, width) < 1:
            raise ValueError(
                f"Detector: expected positive in_channels, num_classes and width, got {in_channels}, {num_classes} and "
                f"{width}"
            )
        widths = (width, 2 * width, 2 * width, 4 * width, 4 * width, 4 * width)
        for number, (inputs, outputs) in enumerate(zip((in_channels, *widths), widths, strict=False), 1):
            stride = 2 if number in (2, 4) else 1
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
            setattr(self, f"norm{number}", nn.BatchNorm2d(outputs))
        self.depth = len(widths)
        self.classes, self.edges = nn.Conv2d(widths[-1], num_classes, 1), nn.Conv2d(widths[-1], 4, 1)
        nn.init.constant_(self.classes.bias, _EMPTY)  # type: ignore[arg-type]
        self.coarse = nn.Conv2d(widths[-1], STRIDE**2 * (num_classes + 1), 1) if pixels else None
        self.fine = nn.Conv2d(widths[2], 4 * (num_classes + 1), 3, padding=1) if pixels else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Scores and edges for each cell, and classes of pixels.

        Args:
            x: Images, (batch, channels, height, width), whose sizes are multiples of 4.
        """
        if x.shape[-1] % STRIDE or x.shape[-2] % STRIDE:
            raise ValueError(f"Detector: expected height and width that are multiples of 4, got {tuple(x.shape[-2:])}")
        early = x
        for number in range(1, self.depth + 1):
            x = getattr(self, f"norm{number}")(getattr(self, f"conv{number}")(x)).relu()
            early = x if number == 3 else early  # before the second stride
        output = {"classes": self.classes(x), "edges": self.edges(x).clamp(-LOG_DISTANCE, LOG_DISTANCE)}
        if self.coarse is None or self.fine is None:
            return output
        return output | {"pixels": F.pixel_shuffle(self.coarse(x), STRIDE) + F.pixel_shuffle(self.fine(early), 2)}


def full_precision(part: Tensor) -> Tensor:
    """An output in single precision where it has less, in which neighboring cells of a large image are the same.

    Args:
        part: The output.
    """
    return part.float() if part.dtype in (torch.float16, torch.bfloat16) else part


def cell_centers(height: int, width: int, like: Tensor) -> Tensor:
    """The centers of the cells, in pixels, (height, width, 2) as x and y.

    Args:
        height: Number of rows of cells.
        width: Number of columns.
        like: A tensor of their dtype, on their device.
    """
    x, y = (STRIDE * (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) for size in (width, height))
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], -1)


def cell_boxes(edges: Tensor) -> Tensor:
    """Boxes in pixels, (batch, height, width, 4), of the output `edges`.

    Args:
        edges: The output, (batch, 4, height, width).
    """
    distances = STRIDE * edges.exp().movedim(1, -1)
    centers = cell_centers(edges.shape[-2], edges.shape[-1], edges)
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], -1)


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in an image.

    Args:
        boxes: Boxes, (found, 4), as left, top, right and bottom edge in pixels.
        scores: Scores from 0 to 1, (found,), falling.
        labels: Classes, (found,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def detect(
    output: Mapping[str, Tensor], *, threshold: float = 0.05, most: int = 100, overlap: float = 0.5
) -> list[Detections]:
    """The objects that an output of a `Detector` tells of, for each image.

    Of each class, cells whose score is the largest among its neighbors are candidates; of candidates of a class that
    overlap, the one with the best score is kept. Boxes may reach beyond the image.

    An object whose class is uncertain may be found in several classes. For one detection of each object, as `track`
    wants it: `nms(found.boxes, found.scores, torch.zeros_like(found.labels), 0.5)` says which to keep.

    Args:
        output: The output, or the mean of several.
        threshold: Smallest score, above 0.
        most: Largest number of candidates of a class in an image.
        overlap: Largest intersection over union of two objects of a class.

    Example:
        >>> output = {"classes": torch.full((1, 2, 4, 4), -9.0), "edges": torch.zeros(1, 4, 4, 4)}
        >>> output["classes"][0, 1, 2, 1] = 9.0
        >>> found, = detect(output)
        >>> found.boxes.tolist(), found.labels.tolist()
        ([[2.0, 6.0, 10.0, 14.0]], [1])
    """
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"detect threshold: expected a number between 0 and 1, got {threshold}")
    scores, boxes = full_precision(output["classes"]).sigmoid(), cell_boxes(full_precision(output["edges"]))
    if not bool(scores.isfinite().all()) or not bool(boxes.isfinite().all()):
        raise ValueError("detect: expected finite scores and boxes, got NaN or infinity; the training has diverged")
    peaks = scores * (F.max_pool2d(scores, 3, 1, 1) == scores)
    found = []
    for each, places in zip(peaks.flatten(2), boxes.flatten(1, 2), strict=True):
        values, cells = (part[:, :most].flatten() for part in each.sort(dim=1, descending=True, stable=True))
        labels = torch.arange(len(each), device=each.device).repeat_interleave(len(values) // len(each))
        is_peak = values >= threshold
        labels, own, values = labels[is_peak], places[cells[is_peak]], values[is_peak]
        kept = nms(own, values, labels, overlap)
        found.append(Detections(own[kept], values[kept], labels[kept]))
    return found


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """Non-maximum suppression: the boxes that overlap no better one of their class.

    Args:
        boxes: Boxes, (found, 4).
        scores: Their scores, (found,).
        labels: Their classes, (found,).
        overlap: Largest intersection over union of two that are kept.

    Returns:
        Indices of those that are kept, in falling order of scores.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [8.0, 8.0, 9.0, 9.0]])
        >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), torch.zeros(3), 0.5).tolist()
        [1, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    close = box_overlaps(boxes[order], boxes[order]) > overlap
    close = (close & (labels[order][:, None] == labels[order][None])).cpu()
    kept = torch.ones(len(order), dtype=torch.bool)
    for row in range(len(order)):
        if kept[row]:
            kept[row + 1 :] &= ~close[row, row + 1 :]
    return order[kept.to(order.device)]


@torch.no_grad()
def object_masks(output: Mapping[str, Tensor], found: Sequence[Detections]) -> list[Tensor]:
    """The pixels of each object that was found: those in its box whose most probable class is its own.

    Args:
        output: The output of a `Detector` with `pixels=True`, or the mean of several.
        found: What `detect` has found in it.

    Returns:
        For each image booleans (found, height, width).

    Raises:
        ValueError: The output has no classes of pixels.

    Example:
        >>> output = {"classes": torch.full((1, 2, 4, 4), -9.0), "edges": torch.zeros(1, 4, 4, 4)}
        >>> output["classes"][0, 1, 2, 1] = 9.0
        >>> output["pixels"] = torch.zeros(1, 3, 16, 16)
        >>> output["pixels"][0, 1, 6:9] = 1.0
        >>> mask, = object_masks(output, detect(output))
        >>> mask.shape, int(mask.sum())
        (torch.Size([1, 16, 16]), 24)
    """
    if "pixels" not in output:
        raise ValueError(
            f"object_masks: there is no output 'pixels', but {name_list(output)}; use Detector(pixels=True)"
            f"{see('how-to/detect_objects')}"
        )
    classes = output["pixels"].argmax(1)
    masks = []
    for image, each in zip(classes, found, strict=True):
        places = [torch.arange(size, device=image.device) + 0.5 for size in image.shape]
        left, top, right, bottom = (edge[:, None] for edge in each.boxes.unbind(1))
        rows, columns = (places[0] > top) & (places[0] < bottom), (places[1] > left) & (places[1] < right)
        masks.append(rows[:, :, None] & columns[:, None, :] & (image == each.labels[:, None, None]))
    return masks
