"""A compact detector without anchors: where objects are, how large, and of which class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch.metrics import box_overlaps

__all__ = ["Detections", "Detector", "detect", "detection_loss", "nms"]

#: Pixels of the image to a cell of the output, along each axis.
STRIDE = 4
# Logit of a cell without an object before training: a probability of 1 %, so that the many empty cells cost little.
_EMPTY = -4.6
# Limits of the logarithm of a distance, in cells.
_LOG_DISTANCE = 5.0
# Width of the bump around a center in which cells are not counted as empty, beside the size of the object.
_BUMP = 1.0 / 6.0
_TINY = 1e-6


class Detector(nn.Module):
    r"""Six convolutions and two heads: class scores and distances to the edges of a box, for each cell of 4 x 4 pixels.

    It returns `classes`, logits (batch, classes, height / 4, width / 4), and `edges`, (batch, 4, height / 4,
    width / 4): the logarithms of the distances from a cell's center to the left, top, right and bottom edge, in
    cells.
    `detection_loss` trains it, in a `likelihoods.Loss(detection_loss, targets=("boxes", "labels"))`; `detect` makes
    boxes of its output.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        width: Channels of the first convolution; the last ones have four times as many.

    Example:
        >>> output = Detector(num_classes=3, width=8)(torch.zeros(2, 1, 32, 48))
        >>> output["classes"].shape, output["edges"].shape
        (torch.Size([2, 3, 8, 12]), torch.Size([2, 4, 8, 12]))

    References:
        Zhou, Wang, Krähenbühl, "Objects as points", 2019; Tian, Shen, Chen, He, "FCOS: fully convolutional one-stage
        object detection", 2019.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 24) -> None:
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

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Scores and edges for each cell.

        Args:
            x: Images, (batch, channels, height, width), whose sizes are multiples of 4.
        """
        if x.shape[-1] % STRIDE or x.shape[-2] % STRIDE:
            raise ValueError(f"Detector: expected height and width that are multiples of 4, got {tuple(x.shape[-2:])}")
        for number in range(1, self.depth + 1):
            x = getattr(self, f"norm{number}")(getattr(self, f"conv{number}")(x)).relu()
        return {"classes": self.classes(x), "edges": self.edges(x).clamp(-_LOG_DISTANCE, _LOG_DISTANCE)}


def _centers(height: int, width: int, like: Tensor) -> Tensor:
    """The centers of the cells, in pixels, (height, width, 2) as x and y."""
    x, y = (STRIDE * (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) for size in (width, height))
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], -1)


def _boxes(edges: Tensor) -> Tensor:
    """Boxes in pixels, (batch, height, width, 4), of the output `edges`."""
    distances = STRIDE * edges.exp().movedim(1, -1)
    centers = _centers(edges.shape[-2], edges.shape[-1], edges)
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], -1)


def detection_loss(output: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    r"""The loss of a `Detector`, summed over cells and objects: one number for each example.

    Of each class, cells are told from empty ones by the focal loss, in which cells near a center count less as empty;
    the boxes of the cells in the middle of an object cost one minus their generalized intersection over union.

    Args:
        output: The output of a `Detector`.
        targets: `boxes`, (batch, most, 4), padded with NaN, and `labels`, (batch, most), padded with -1.

    Returns:
        The loss, (batch,).

    Example:
        >>> output = {"classes": torch.zeros(1, 2, 4, 4), "edges": torch.zeros(1, 4, 4, 4)}
        >>> targets = {"boxes": torch.tensor([[[2.0, 2.0, 10.0, 10.0]]]), "labels": torch.tensor([[1]])}
        >>> detection_loss(output, targets).shape
        torch.Size([1])

    References:
        Zhou, Wang, Krähenbühl, "Objects as points", 2019; Rezatofighi et al., "Generalized intersection over union",
        2019.
    """
    logits = output["classes"]
    labels = targets["labels"]
    there = labels >= 0
    boxes = torch.where(there[..., None], targets["boxes"].to(logits.dtype), 0.0)
    centers = _centers(logits.shape[-2], logits.shape[-1], logits)
    middle, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    away = centers - middle[:, :, None, None]  # (batch, most, height, width, 2)
    # The cell that holds the center, whose bump is 1 there and falls with the distance between cells.
    cells = (middle / STRIDE).floor()
    steps = centers / STRIDE - 0.5 - cells[:, :, None, None]
    spread = (_BUMP * sizes.amax(-1) / STRIDE).clamp_min(0.5)[..., None, None]
    bumps = (-0.5 * steps.square().sum(-1) / spread.square()).exp() * there[..., None, None]
    one_hot = F.one_hot(labels.clamp_min(0), logits.shape[1]).to(logits.dtype) * there[..., None]
    heat = (bumps[:, :, None] * one_hot[..., None, None]).amax(1)
    is_center = heat >= 1.0
    found = logits.sigmoid()
    positive = -(1 - found).square() * F.logsigmoid(logits)
    negative = -(1 - heat).pow(4) * found.square() * F.logsigmoid(-logits)
    focal = torch.where(is_center, positive, negative).flatten(1).sum(1)

    inside = (away.abs() < sizes[:, :, None, None] / 4).all(-1) | (steps.abs() < 0.5).all(-1)
    inside = inside & there[..., None, None]
    costs = 1.0 - _generalized_overlap(_boxes(output["edges"])[:, None], boxes[:, :, None, None])
    by_object = torch.where(inside, costs, 0.0).sum((-1, -2)) / inside.sum((-1, -2)).clamp_min(1)
    return focal + by_object.sum(1)


def _generalized_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, less the share of the smallest box around both that is in neither."""
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0.0)
    around = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared.prod(-1)
    whole = around.prod(-1).clamp_min(_TINY)
    return shared.prod(-1) / union.clamp_min(_TINY) - (whole - union) / whole


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
    overlap, the one with the best score is kept.

    Args:
        output: The output, or the mean of several.
        threshold: Smallest score.
        most: Largest number of candidates in an image.
        overlap: Largest intersection over union of two objects of a class.

    Example:
        >>> output = {"classes": torch.full((1, 2, 4, 4), -9.0), "edges": torch.zeros(1, 4, 4, 4)}
        >>> output["classes"][0, 1, 2, 1] = 9.0
        >>> found, = detect(output)
        >>> found.boxes.tolist(), found.labels.tolist()
        ([[2.0, 6.0, 10.0, 14.0]], [1])
    """
    scores, boxes = output["classes"].sigmoid(), _boxes(output["edges"])
    peaks = scores * (F.max_pool2d(scores, 3, 1, 1) == scores)
    found = []
    for each, places in zip(peaks, boxes.flatten(1, 2), strict=True):
        flat = each.flatten()
        order = flat.argsort(descending=True, stable=True)[:most]
        order = order[flat[order] >= threshold]
        cells = each.shape[-2] * each.shape[-1]
        labels, own = order // cells, places[order % cells]
        kept = nms(own, flat[order], labels, overlap)
        found.append(Detections(own[kept], flat[order][kept], labels[kept]))
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
