"""Scores of a detector on scenes and clips: average precision of boxes and masks, mean IoU, MOTA and IDF1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.data import DigitClips
from pyrostoch.layers import Conditional
from pyrostoch.metrics import AveragePrecision, MeanIoU, Tracking, box_overlaps, mask_overlaps
from pyrostoch.model import BayesianModel
from pyrostoch.models import Detections, detect, object_masks, track
from pyrostoch.prediction.outputs import outputs
from pyrostoch.protocols import Guide

__all__ = ["Labels", "gate_scores", "scene_scores", "tracking_scores"]

#: Makes known classes of pixels from targets; `None` where none are known.
Labels = Callable[[Mapping[str, Tensor]], Tensor] | None

# As in training, so that what is found about the network there needs not be found again for more examples.
_BATCH = 16
# Detections with lower scores are not followed from frame to frame.
_TRACKED = 0.3


def _output(model: BayesianModel, guide: Guide, x: Tensor, mode: str, seed: int, known: Tensor | None) -> Any:
    return outputs(model, guide, x, mode=mode, seed=seed, labels=known, batch_size=_BATCH)


def scene_scores(
    model: BayesianModel,
    guide: Guide,
    scenes: Mapping[str, Tensor],
    num_classes: int,
    *,
    mode: str,
    seed: int,
    labels: Labels = None,
) -> dict[str, float]:
    """Average precision of boxes and of masks, and the mean IoU of pixels, in percent.

    Args:
        model: The model of a `Detector` with a head of pixels.
        guide: Its guide.
        scenes: Stored scenes.
        num_classes: Number of classes without the background.
        mode: Mode of the outputs.
        seed: Seed of the draws.
        labels: Known classes of pixels.
    """
    device = next(model.parameters()).device
    by_box, by_mask, pixels = AveragePrecision(num_classes), AveragePrecision(num_classes), MeanIoU(num_classes + 1)
    for start in range(0, len(scenes["image"]), _BATCH):
        some = {name: part[start : start + _BATCH].to(device) for name, part in scenes.items()}
        output = _output(model, guide, some["image"], mode, seed + start, None if labels is None else labels(some))
        found = detect(output)
        classes = output["pixels"].log_softmax(1).movedim(1, -1).flatten(0, 2)
        pixels.update(classes, some["pixels"].flatten())
        for image, (each, masks) in enumerate(zip(found, object_masks(output, found), strict=True)):
            count = int(some["count"][image])
            boxes, own, targets = (some[name][image, :count] for name in ("boxes", "masks", "labels"))
            by_box.update(box_overlaps(each.boxes, boxes), each.scores, each.labels, targets)
            by_mask.update(mask_overlaps(masks, own), each.scores, each.labels, targets)
    boxes_found, masks_found = by_box.compute(), by_mask.compute()
    return {
        "ap50": 100 * boxes_found.ap50,
        "ap": 100 * boxes_found.ap,
        "mask-ap50": 100 * masks_found.ap50,
        "mask-ap": 100 * masks_found.ap,
        "miou": 100 * pixels.compute().mean_iou,
    }


def tracking_scores(
    model: BayesianModel, guide: Guide, clips: DigitClips, *, mode: str, seed: int, labels: Labels = None
) -> dict[str, float]:
    """MOTA and IDF1 of objects that are followed by what is found in each frame, in percent.

    Args:
        model: The model.
        guide: Its guide.
        clips: The clips.
        mode: Mode of the outputs.
        seed: Seed of the draws.
        labels: Known classes of pixels.
    """
    device = next(model.parameters()).device
    metric = Tracking()
    for index in range(len(clips)):
        clip = {name: part.to(device) for name, part in clips[index].items()}
        count, frames = int(clip["count"]), len(clip["images"])
        by_frame = {"boxes": clip["boxes"], "labels": clip["labels"].expand(frames, -1)}
        known = None if labels is None else labels(by_frame)
        found = detect(_output(model, guide, clip["images"], mode, seed + index, known), threshold=_TRACKED)
        found = [Detections(each.boxes.cpu(), each.scores.cpu(), each.labels.cpu()) for each in found]
        close = [
            box_overlaps(each.boxes, boxes[:count].cpu()) for each, boxes in zip(found, clip["boxes"], strict=True)
        ]
        metric.update(close, track(found), [torch.arange(count)] * frames)
    scores = metric.compute()
    return {"mota": 100 * scores.mota, "idf1": 100 * scores.idf1}


@torch.no_grad()
def gate_scores(
    network: nn.Module, layer: Conditional, scenes: Mapping[str, Tensor], labels: Callable[[Any], Tensor]
) -> dict[str, float]:
    """Mean IoU, in percent, of the class that the selection has most of, with the pixels that boxes select.

    Args:
        network: The network.
        layer: Its conditional layer, with a selection.
        scenes: Stored scenes.
        labels: Classes of pixels by the boxes; of pixels in several boxes the first class counts.
    """
    device = layer.seen.device
    metric, selections = MeanIoU(layer.seen.numel()), list[Tensor]()
    handle = layer.get_submodule("selection").register_forward_hook(
        lambda module, args, output: selections.append(output)
    )
    network.eval()
    try:
        for start in range(0, len(scenes["image"]), _BATCH):
            some = {name: part[start : start + _BATCH].to(device) for name, part in scenes.items()}
            network(some["image"])
            chosen = selections.pop()[:, :, 0].clamp_min(1e-9).log().movedim(1, -1).flatten(0, 2)
            metric.update(chosen, labels(some)[:, :, 0].int().argmax(1).flatten())
    finally:
        handle.remove()
    return {"gate-miou": 100 * metric.compute().mean_iou}
