"""The loss of a detector: where objects are, how large, of which class, and which pixels they have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.data.objects import are_within, check_pixel_units, in_image
from pyrostoch.models.detector import LOG_DISTANCE, STRIDE, cell_boxes, cell_centers, full_precision

__all__ = ["DetectionLoss"]

# Width of the bump around a center in which cells are not counted as empty, beside the size of the object.
_BUMP = 1.0 / 6.0
_TINY = 1e-6
# Number of images whose pixels are compared with their boxes.
_LOOKED_AT = 100


@dataclass(frozen=True)
class DetectionLoss:
    r"""The loss of a `Detector`, summed over cells and objects: one number for each example.

    Of each class, cells are told from empty ones by the focal loss, in which cells near a center count less as empty;
    the boxes of the cells in the middle of an object cost one minus their generalized intersection over union. Where
    the detector has a head of pixels, the mean cross-entropy of their classes is added.

    It is called with the output of a `Detector` and a dictionary of targets: `boxes`, (batch, most, 4), as left, top,
    right and bottom edge in pixels, padded with NaN; `labels`, (batch, most), padded with -1; and, for a head of
    pixels, `pixels`, (batch, height, width), the class of each, with the number of classes for the background.
    `data.pad_objects` and `data.pixel_labels` make them.

    Args:
        pixel_weight: Weight of the classes of pixels.

    Example:
        >>> output = {"classes": torch.zeros(1, 2, 4, 4), "edges": torch.zeros(1, 4, 4, 4)}
        >>> targets = {"boxes": torch.tensor([[[2.0, 2.0, 10.0, 10.0]]]), "labels": torch.tensor([[1]])}
        >>> DetectionLoss()(output, targets).shape
        torch.Size([1])

    References:
        Zhou, Wang, Krähenbühl, "Objects as points", 2019; Rezatofighi et al., "Generalized intersection over union",
        2019.
    """

    pixel_weight: float = 10.0

    def __post_init__(self) -> None:
        if not self.pixel_weight > 0.0:
            raise ValueError(f"DetectionLoss pixel_weight: expected a positive number, got {self.pixel_weight}")

    def __call__(self, output: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """The loss, (batch,).

        Args:
            output: The output of a `Detector`.
            targets: The targets by name.
        """
        output = {name: full_precision(part) for name, part in output.items()}
        logits = output["classes"]
        labels = targets["labels"]
        if len(labels) != len(logits):
            raise ValueError(f"DetectionLoss: expected targets of {len(logits)} images, got those of {len(labels)}")
        there = labels >= 0
        boxes = torch.where(there[..., None], targets["boxes"].to(logits.dtype), 0.0)
        centers = cell_centers(logits.shape[-2], logits.shape[-1], logits)
        middle, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        away = centers - middle[:, :, None, None]  # (batch, most, height, width, 2)
        # The cell that holds the center, whose bump is 1 there and falls with the distance between cells.
        last = middle.new_tensor([logits.shape[-1] - 1, logits.shape[-2] - 1])
        cells = torch.minimum((middle / STRIDE).floor().clamp_min(0.0), last)
        steps = centers / STRIDE - 0.5 - cells[:, :, None, None]
        spread = (_BUMP * sizes.amax(-1) / STRIDE).clamp_min(0.5)[..., None, None]
        bumps = (-0.5 * steps.square().sum(-1) / spread.square()).exp() * there[..., None, None]
        own = labels[..., None] == torch.arange(logits.shape[1], device=labels.device)
        heat = (bumps[:, :, None] * own[..., None, None]).amax(1)
        is_center = heat >= 1.0
        found = logits.sigmoid()
        positive = -(1 - found).square() * F.logsigmoid(logits)
        negative = -(1 - heat).pow(4) * found.square() * F.logsigmoid(-logits)
        focal = torch.where(is_center, positive, negative).flatten(1).sum(1)

        inside = (away.abs() < sizes[:, :, None, None] / 4).all(-1) | (steps.abs() < 0.5).all(-1)
        inside = inside & there[..., None, None]
        costs = 1.0 - _generalized_overlap(cell_boxes(output["edges"])[:, None], boxes[:, :, None, None])
        by_object = torch.where(inside, costs, 0.0).sum((-1, -2)) / inside.sum((-1, -2)).clamp_min(1)
        total: Tensor = focal + by_object.sum(1)
        if "pixels" not in output:
            return total
        pixels = F.cross_entropy(output["pixels"], targets["pixels"], reduction="none")
        return total + self.pixel_weight * pixels.flatten(1).mean(1)

    def check_targets(self, output: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Raise an error for targets that are none; `likelihoods.Loss` calls it before training.

        Args:
            output: The output of a `Detector` for some images of the same size.
            targets: The targets by name.

        Raises:
            ValueError: Targets are missing, have another shape, a class is unknown, or a box has no area in the image.
        """
        wanted = ("boxes", "labels", "pixels") if "pixels" in output else ("boxes", "labels")
        if missing := [name for name in wanted if name not in targets]:
            raise ValueError(
                f"DetectionLoss: no targets {missing[0]!r}, but {name_list(targets)}; give Loss(DetectionLoss(), "
                f"targets={wanted}){see('how-to/detect_objects')}"
            )
        classes = output["classes"].shape[1]
        height, width = (STRIDE * size for size in output["classes"].shape[-2:])
        boxes, labels = targets["boxes"], targets["labels"]
        if labels.dim() != 2 or tuple(boxes.shape) != (*labels.shape, 4) or labels.is_floating_point():
            raise ValueError(
                "DetectionLoss: expected boxes of shape (batch, most, 4) and whole numbers as labels, (batch, most), "
                f"got {tuple(boxes.shape)} and {labels.dtype} of shape {tuple(labels.shape)}"
                f"{see('how-to/detect_objects')}"
            )
        there = labels >= 0
        area = (boxes[..., 2:] - boxes[..., :2]).nan_to_num(0.0).clamp_min(0.0).prod(-1)
        largest = STRIDE * math.exp(LOG_DISTANCE)
        check_pixel_units(boxes[there], "DetectionLoss")
        known = are_within(boxes, (height, width))
        for wrong, what in (
            ((labels < -1) | (labels >= classes), f"expected classes from 0 to {classes - 1}, and -1 as padding"),
            (there & ~known, f"expected {in_image((height, width))}"),
            (
                there & (boxes[..., 2:] - boxes[..., :2] > 2 * largest).any(-1),
                f"expected objects up to {largest:.0f} pixels to each side of their center; make the images smaller",
            ),
            (~there & (area > 0), "expected a class for each box; -1 is that of padding, whose boxes are NaN"),
        ):
            if bool(wrong.any()):
                image, number = wrong.nonzero()[0].tolist()
                raise ValueError(
                    f"DetectionLoss, image {image}, object {number}: {what}, got {boxes[image, number].tolist()} of "
                    f"class {int(labels[image, number])}{see('how-to/detect_objects')}"
                )
        if "pixels" in output:
            self._check_pixels(targets["pixels"], (len(labels), height, width), classes)
            _check_background(targets["pixels"][:_LOOKED_AT], boxes[:_LOOKED_AT], labels[:_LOOKED_AT], classes)
        elif "pixels" in targets:
            raise ValueError(
                "DetectionLoss: there are targets 'pixels', and a detector without such a head; give "
                f"Detector(pixels=True), or leave them out{see('how-to/detect_objects')}"
            )

    def _check_pixels(self, pixels: Tensor, shape: tuple[int, ...], classes: int) -> None:
        if tuple(pixels.shape) != shape or pixels.dtype != torch.int64:
            raise ValueError(
                f"DetectionLoss: expected pixels of shape {shape} and dtype int64, got {pixels.dtype} of shape "
                f"{tuple(pixels.shape)}{see('how-to/detect_objects')}"
            )
        if len(wrong := pixels[(pixels < 0) | (pixels > classes)]):
            raise ValueError(
                f"DetectionLoss: expected pixels from 0 to {classes}, which is the background, got {int(wrong[0])}"
                f"{see('how-to/detect_objects')}"
            )


def _check_background(pixels: Tensor, boxes: Tensor, labels: Tensor, classes: int) -> None:
    """Raise an error where most boxes have no pixel of their class, as with a background that is the first number."""
    places = [torch.arange(size, device=boxes.device) + 0.5 for size in pixels.shape[-2:]]
    left, top, right, bottom = (edge[..., None] for edge in boxes.unbind(-1))
    rows, columns = (places[0] > top) & (places[0] < bottom), (places[1] > left) & (places[1] < right)
    own = rows[..., :, None] & columns[..., None, :] & (pixels[:, None] == labels[..., None, None])
    there = labels >= 0
    with_pixels, count = int((own.flatten(2).any(2) & there).sum()), int(there.sum())
    if 2 * with_pixels < count:
        raise ValueError(
            f"DetectionLoss: of {count} boxes {with_pixels} have a pixel of their class; classes of pixels are those "
            f"of the boxes, from 0 up, and the background is the last one, {classes}{see('how-to/detect_objects')}"
        )


def _generalized_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, less the share of the smallest box around both that is in neither."""
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0.0)
    around = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared.prod(-1)
    whole = around.prod(-1).clamp_min(_TINY)
    return shared.prod(-1) / union.clamp_min(_TINY) - (whole - union) / whole
