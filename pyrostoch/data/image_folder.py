"""Images of one's own: a folder with a folder of images for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.data.image_schema import ImageSchema, mode_of, opened
from pyrostoch.data.split import DataSplit, stratified

__all__ = ["image_files", "load_images"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_PARTS = ("train", "test")
_GRAY = ("1", "L", "LA")


def load_images(
    folder: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    test: float = 0.2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> DataSplit:
    """Read images as a data set: each folder in the given one is a class, or `train` and `test` hold such folders.

    Inputs are (n, 1, height, width) where all images are gray, else (n, 3, height, width), from 0 to 1.

    Args:
        folder: The folder.
        image_size: Height and width, or one number for both, to which images are resized (bilinear); by default they
            must have one size.
        test: Share of each class that is the test part, where there are no folders `train` and `test`.
        seed: Seed of the draw of the test part.
        dtype: Type of inputs.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There is one class only; images differ in size; a file is no image, has transparent parts, several
            frames or more than 8 bits; or the images would fill more than half of this machine's memory.
        ImportError: Pillow is missing.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for index in range(10):
        ...         path = Path(folder) / "dark bright".split()[index % 2] / f"{index}.png"
        ...         path.parent.mkdir(exist_ok=True)
        ...         Image.new("L", (6, 4), 200 * (index % 2)).save(path)
        ...     split = load_images(folder)
        >>> split.input_shape, split.schema.classes, len(split.x_train), len(split.x_test)
        ((1, 4, 6), ('bright', 'dark'), 8, 2)
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder{see('how-to/images')}")
    parts = {name: folder / name for name in _PARTS if (folder / name).is_dir()}
    divided = len(parts) == len(_PARTS)
    if divided and (more := _folders_beside(folder)):
        raise ValueError(f"{folder}: beside train and test there is {name_list(more)}, which is not read; move it away")
    if not dtype.is_floating_point:
        raise TypeError(f"load_images: expected a floating dtype, got {dtype}")
    by_class = {name: _classes(path) for name, path in (parts if divided else {"train": folder}).items()}
    classes = tuple(sorted(by_class["train"]))
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: expected a folder of images for each class, got {name_list(classes) or 'no folder'}"
            f"{see('how-to/images')}"
        )
    if divided and (others := sorted(set(by_class["test"]) - set(classes))):
        raise ValueError(f"{parts['test']}: class(es) {name_list(others)} are not among those of {parts['train']}")
    files = {name: [path for each in classes for path in found.get(each, [])] for name, found in by_class.items()}
    labels = {
        name: torch.tensor([index for index, each in enumerate(classes) for _ in found.get(each, [])])
        for name, found in by_class.items()
    }
    schema = _schema([path for paths in files.values() for path in paths], classes, image_size)
    _check_memory(folder, sum(map(len, files.values())), schema, dtype)
    inputs = {name: _tensor(schema, paths, dtype) for name, paths in files.items()}
    if divided:
        held: tuple[Tensor, Tensor] = inputs["test"], labels["test"]
        train: tuple[Tensor, Tensor] = inputs["train"], labels["train"]
    else:
        if not isinstance(test, float) or not 0.0 < test < 1.0:
            raise ValueError(f"test: expected a fraction between 0 and 1 (both excluded), got {test!r}")
        chosen = _test_part(folder, classes, labels["train"], test, seed)
        held = inputs["train"][chosen], labels["train"][chosen]
        train = inputs["train"][~chosen], labels["train"][~chosen]
    return DataSplit(
        name=folder.name,
        title=folder.name,
        task="classification",
        x_train=train[0],
        y_train=train[1],
        x_test=held[0],
        y_test=held[1],
        num_classes=len(classes),
        input_shape=schema.shape,
        source=str(folder),
        schema=schema,
    )


def _folders_beside(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in _PARTS and p.name[0] != ".")


def image_files(folder: str | Path) -> list[Path]:
    """The image files in a folder and in those within it, in order; a single file is one.

    Args:
        folder: The folder, or file.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: There is no image.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder or file")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
    if not found:
        raise ValueError(f"{folder}: there is no image in it ({', '.join(_ENDINGS)})")
    return found


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class."""
    found: dict[str, list[Path]] = {}
    for own in sorted(folder.iterdir()):
        if own.name.startswith("."):
            continue
        if own.is_file() and own.suffix.lower() in _ENDINGS:
            raise ValueError(f"{own}: an image that is in no class's folder{see('how-to/images')}")
        if not own.is_dir():
            continue
        paths = sorted(path for path in own.iterdir() if not path.name.startswith("."))
        if wrong := [path for path in paths if path.suffix.lower() not in _ENDINGS or not path.is_file()]:
            raise ValueError(
                f"{wrong[0]}: expected images only ({', '.join(_ENDINGS)}) in a class's folder; move it away"
            )
        if not paths:
            raise ValueError(f"{own}: the class has no image")
        found[own.name] = paths
    return found


def _schema(paths: Sequence[Path], classes: tuple[str, ...], image_size: int | tuple[int, int] | None) -> ImageSchema:
    """Size and channels of all images; where they are not resized, the first one gives the size."""
    if image_size is None:
        width, height = opened(paths[0]).size
    else:
        sizes = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        if len(sizes) != 2 or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"image_size: expected one or two positive numbers of pixels, got {image_size}")
        height, width = sizes
    gray = True
    for path in paths:
        gray = gray and mode_of(path) in _GRAY
        if not gray:
            break
    return ImageSchema(classes, height, width, 1 if gray else 3, image_size is not None)


def _tensor(schema: ImageSchema, paths: Sequence[Path], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(schema.inputs(paths)).to(dtype).div_(255.0)


def _test_part(folder: Path, classes: tuple[str, ...], labels: Tensor, test: float, seed: int) -> Tensor:
    """Which images are the test part, about the same share of every class."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[stratified(labels, max(1, round(test * len(labels))), generator)] = True
    counts = torch.bincount(labels[~chosen], minlength=len(classes))
    if lacking := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        raise ValueError(f"{folder}: class(es) {name_list(lacking)} have no training image beside the test part")
    return chosen


def _check_memory(folder: Path, count: int, schema: ImageSchema, dtype: torch.dtype) -> None:
    needed = count * schema.channels * schema.height * schema.width * (dtype.itemsize + 1)
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # not known on every system
        return
    if needed > most:
        raise ValueError(
            f"{folder}: {count} images of {schema.width} x {schema.height} need {needed / 2**30:.1f} GiB, more than "
            "half of this machine's memory; give a smaller image_size, or train on a DataLoader that reads them batch "
            f"by batch{see('how-to/your_own_data')}"
        )
