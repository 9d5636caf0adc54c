"""How image files become inputs of a network, in training and for new files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrostoch._manual import see

__all__ = ["ImageSchema", "mode_of", "opened"]

# What Pillow raises depends on which part of a file is damaged.
_DAMAGED = (OSError, SyntaxError, ValueError)


@dataclass(frozen=True)
class ImageSchema:
    """How image files become inputs of a network.

    Args:
        classes: The classes in order, which are names of folders.
        height: Height of the images, in pixels.
        width: Their width.
        channels: 1 for gray images, 3 for colors.
        resized: Whether images of other sizes are resized; else they are refused.
    """

    classes: tuple[str, ...]
    height: int
    width: int
    channels: int
    resized: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an input."""
        return self.channels, self.height, self.width

    def inputs(self, paths: Sequence[Path]) -> NDArray[np.uint8]:
        """The images as numbers from 0 to 255, (images, channels, height, width).

        Args:
            paths: The files.

        Raises:
            ValueError: A file is no image, or is one that cannot be taken as it is; it is named.
        """
        found = np.empty((len(paths), *self.shape), np.uint8)
        for row, path in enumerate(paths):
            image = opened(path).convert("L" if self.channels == 1 else "RGB")
            if image.size != (self.width, self.height):
                if not self.resized:
                    raise ValueError(
                        f"{path}: it is {image.size[0]} x {image.size[1]}, other images are {self.width} x "
                        f"{self.height}; give one size to all, by image_size (--image-size 32){see('how-to/images')}"
                    )
                image = image.resize((self.width, self.height), _pillow().Resampling.BILINEAR)
            pixels = np.asarray(image)
            found[row] = pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ImageSchema:
        """The schema from what `to_dict` returned, read back from JSON.

        Args:
            content: The content.

        Raises:
            ValueError: It is none.
        """
        try:
            return cls(**{**content, "classes": tuple(content["classes"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"schema of images: it is damaged, or of another version ({error})") from error


def _pillow() -> Any:
    """Pillow's module of images.

    Raises:
        ImportError: It is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images need Pillow, which is missing: pip install 'pyrostoch[images]'") from error
    return Image


def mode_of(path: Path) -> str:
    """The mode of an image, as Pillow calls it, such as `"RGB"`, from the head of its file.

    Args:
        path: The file.

    Raises:
        ValueError: The file is no image.
    """
    try:
        with _pillow().open(path) as file:
            mode: str = file.mode
            return mode
    except _DAMAGED as error:
        raise ValueError(f"{path}: it is no image, or damaged: {error}") from error


def _bits(file: Any, path: Path) -> int:
    """Bits of a color in the file: Pillow cuts colors of 16 bits to 8 without a word."""
    if file.format == "PNG":
        with path.open("rb") as content:
            return content.read(25)[24]  # the depth, in the header that every PNG begins with
    tags = getattr(file, "tag_v2", None)
    depth: Any = 8 if tags is None else tags.get(258, 8)
    return max(depth) if isinstance(depth, tuple) else int(depth)


def opened(path: Path) -> Any:
    """An image of Pillow's, upright; one whose numbers would not be what they seem is refused.

    Args:
        path: The file.

    Raises:
        ValueError: The file is no image, or has transparent parts, several frames or more than 8 bits; it is named.
    """
    image_module = _pillow()
    from PIL import ImageOps

    try:
        with image_module.open(path) as file:
            frames = getattr(file, "n_frames", 1)
            bits = _bits(file, path)
            file.load()
            image = ImageOps.exif_transpose(file)
    except _DAMAGED as error:
        raise ValueError(f"{path}: it is no image, or damaged: {error}") from error
    if frames > 1:
        raise ValueError(f"{path}: it has {frames} frames; expected one")
    if image.mode[:1] in ("I", "F") or bits > 8:
        raise ValueError(f"{path}: it has more than 8 bits (mode {image.mode}), whose range is not known; convert it")
    if "A" in image.getbands() or "transparency" in image.info:
        alpha: Any = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] < 255:
            raise ValueError(f"{path}: it has transparent parts; put it on a background first")
    return image
