"""Figure of an audit: images, what was sent of them, and what attackers make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrostoch.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["audit_pictures"]

# Size of an image and width of the labels, in inches; the space between images as a share of their width.
_SIZE, _LABELS, _SPACE = 0.72, 1.9, 0.125
# What is sent is shown without its largest and smallest values, which would leave gray all others.
_QUANTILES = (0.01, 0.99)

Images = NDArray[np.float64]


def audit_pictures(found: Record | Mapping[str, Any], figure: Figure | None = None) -> Figure:
    """Draw a few images, what was sent of them, and reconstructions, for the fewest and for the most queries.

    What was sent has a gray scale of its own; of more channels than an image has they are tiles. Images have that of
    the attacker's examples.

    Args:
        found: What `obfuscate.audit` returns, or its `to_dict()`.
        figure: An empty figure to draw in, such as one of pyplot; a new one by default.

    Returns:
        A figure with one axes for each row and number of queries.

    Raises:
        ValueError: The audit has no pictures: its inputs are no images.

    Example:
        >>> pictures = {"low": 0.0, "high": 1.0, "originals": [[[[0.0, 1.0]]]], "sent": {"1": [[[[0.2, 0.7]]]]},
        ...             "found": {"reconstruction": {"1": [[[[0.1, 0.9]]]]}}}
        >>> [axes.get_ylabel() for axes in audit_pictures({"pictures": pictures}).axes][::2]
        ['original', 'reconstruction']
    """
    from matplotlib.figure import Figure

    record = found.to_dict() if isinstance(found, Record) else found
    pictures = record.get("pictures")
    if not pictures:
        raise ValueError("audit_pictures: the audit has no pictures; only those of images of 1 or 3 channels have some")
    attacks = {str(name): _by_queries(images) for name, images in pictures["found"].items()}
    originals, sent = _images(pictures["originals"]), _by_queries(pictures["sent"])
    every = sorted({count for images in (*attacks.values(), sent) for count in images})
    counts = every[:1] + every[-1:] if len(every) > 1 else every
    rows: dict[str, list[Images | None]] = {"original": [originals for _ in counts]}
    if sent:
        shown = [_sent(sent[count], originals) if count in sent else None for count in counts]
        rows["sent,\nown gray scale"] = shown
    scale = float(pictures["low"]), float(pictures["high"])
    rows |= {name.replace(", ", ",\n"): [images.get(count) for count in counts] for name, images in attacks.items()}
    width = _SIZE * len(originals) * (1 + _SPACE)
    size = (_LABELS + width * len(counts), 0.3 + _SIZE * (1 + _SPACE) * len(rows))
    figure = figure or Figure()
    figure.set_size_inches(*size)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(rows), len(counts), squeeze=False)
    for row, (title, blocks) in enumerate(rows.items()):
        line = grid[row]
        for column, images in enumerate(blocks):
            _show(line[column], images, None if title.startswith("sent") else scale, f"row-{row}-{column}")
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
    for axes, count in zip(grid[0], counts, strict=True):
        axes.set_title("one query" if count == 1 else f"mean of {count} queries", fontsize=10)
    return figure


def _by_queries(images: Mapping[Any, Any]) -> dict[int, Images]:
    return {int(count): _images(values) for count, values in images.items()}


def _images(values: Any) -> Images:
    """Images of a record, in which NaN and infinite numbers are strings."""
    return np.nan_to_num(np.asarray(values, dtype=np.float64))


def _sent(sent: Images, originals: Images) -> Images:
    """What was sent as images of one channel, its channels as tiles, or as it is where it has the shape of an image."""
    if sent.shape[1:] == originals.shape[1:]:
        return sent
    count, channels, height, width = sent.shape
    side = math.ceil(math.sqrt(channels))
    lines = math.ceil(channels / side)
    # With a line of nothing between tiles; all else that is not finite has been replaced.
    tiles = np.full((count, lines * side, height + 1, width + 1), np.nan)
    tiles[:, :channels, :height, :width] = sent
    whole = (
        tiles.reshape(count, lines, side, height + 1, width + 1)
        .swapaxes(2, 3)
        .reshape(count, 1, -1, side * (width + 1))
    )
    return whole[:, :, :-1, :-1]


def _show(axes: Axes, images: Images | None, scale: tuple[float, float] | None, name: str) -> None:
    """Show images side by side, without ticks; nothing where there are none."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if images is None:
        return
    low, high = scale or tuple(np.nanquantile(images, _QUANTILES).tolist())
    there = np.isfinite(images[:, :1])
    gray = np.nan_to_num((images - low) / (high - low or 1.0)).clip(0.0, 1.0)
    count, channels, height, width = gray.shape
    colors = np.broadcast_to(gray, (count, 3, height, width)) if channels == 1 else gray
    opaque = np.concatenate([colors, there], 1)
    space = np.zeros((count, 4, height, max(1, round(_SPACE * width))))
    strip = np.concatenate([opaque, space], 3).transpose(2, 0, 3, 1).reshape(height, -1, 4)
    # An SVG names an image by its content, unless told otherwise, and originals are shown twice.
    axes.imshow((255 * strip).round().astype(np.uint8), interpolation="none", gid=name)
