"""The picture of obfuscated detection: scenes, what the network sees, the selection, and what is found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrostoch.bench.files import save_figure
from pyrostoch.layers import Conditional
from pyrostoch.model import BayesianModel
from pyrostoch.models import detect
from pyrostoch.prediction.outputs import outputs
from pyrostoch.protocols import Guide

__all__ = ["draw_scenes"]

# Lowest score of a detection that is drawn.
_SHOWN = 0.4


@torch.no_grad()
def draw_scenes(
    model: BayesianModel, guide: Guide, layer: Conditional, scenes: Mapping[str, Tensor], path: Path
) -> None:
    """Write a picture with a row for each scene: with true boxes, under noise, by selected class, with what is found.

    Args:
        model: The model, whose layer is in front of the network.
        guide: Its guide.
        layer: The layer, with its selection.
        scenes: Few stored scenes.
        path: The file.
    """
    from matplotlib.figure import Figure

    device = layer.seen.device
    x = scenes["image"].to(device)
    layer.eval()
    drawn, selection = layer(x).cpu(), layer.selection(x).cpu()  # type: ignore[misc]
    found = detect(outputs(model, guide, x), threshold=_SHOWN)  # type: ignore[arg-type]
    background = selection.shape[1] - 1
    figure = Figure(figsize=(9.0, 2.3 * len(x)), layout="constrained")
    axes: Any = figure.subplots(len(x), 4, squeeze=False)
    for row, image in enumerate(x.cpu()[:, 0]):
        count = int(scenes["count"][row])
        panels = (image, drawn[row, 0], selection[row, :, 0].argmax(0), drawn[row, 0])
        for column, panel in enumerate(panels):
            gray = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0} if column == 0 else {"cmap": "gray"}
            colors = {"cmap": "tab20", "vmin": 0, "vmax": background} if column == 2 else gray
            axes[row, column].imshow(panel.numpy(), interpolation="nearest", **colors)
            axes[row, column].set(xticks=[], yticks=[])
        _boxes(axes[row, 0], scenes["boxes"][row, :count], scenes["labels"][row, :count], "tab:green")
        _boxes(axes[row, 3], found[row].boxes.cpu(), found[row].labels.cpu(), "tab:orange")
    for column, title in enumerate(("scene", "as the network sees it", "selected class", "found")):
        axes[0, column].set_title(title)
    save_figure(figure, path)


def _boxes(axis: Any, boxes: Iterable[Tensor], labels: Iterable[Tensor], color: str) -> None:
    from matplotlib.patches import Rectangle

    for box, label in zip(boxes, labels, strict=True):
        left, top, right, bottom = box.tolist()
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=color))
        axis.text(left, top - 1.5, str(int(label)), color=color, fontsize=8)
