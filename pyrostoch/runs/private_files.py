"""Private attributes of the examples of a run, from files of the user's own."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrostoch._checks import name_list
from pyrostoch._manual import see

__all__ = ["read_private"]

_PARTS = ("train", "test")


def read_private(files: Sequence[Path]) -> dict[str, tuple[Tensor, Tensor]]:
    """The attributes in NumPy files, each with arrays `train` and `test` of whole numbers.

    Args:
        files: The files; the name of a file is that of its attribute.

    Returns:
        The values of each attribute for training and test examples, numbered from 0 up.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is no such archive, or two have one name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "age.npz"
        ...     np.savez(path, train=np.array([20, 40, 20]), test=np.array([40]))
        ...     read_private([path])
        {'age': (tensor([0, 1, 0]), tensor([1]))}
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for file in files:
        path = file.expanduser()
        if path.stem in found:
            raise ValueError(f"private {file}: two files are named {path.stem}, and an attribute is named as its file")
        train, test = (_whole_numbers(file, part, values) for part, values in zip(_PARTS, _arrays(file), strict=True))
        _, numbered = torch.unique(torch.cat([train, test]), return_inverse=True)
        found[path.stem] = numbered[: len(train)], numbered[len(train) :]
    return found


def _arrays(file: Path) -> list[Any]:
    try:
        with file.expanduser().open("rb") as opened:
            content = np.load(opened, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            if missing := [part for part in _PARTS if part not in content.files]:
                raise ValueError(f"it has no {missing[0]}, but {name_list(content.files) or 'nothing'}")
            return [content[part] for part in _PARTS]
    except FileNotFoundError:
        raise FileNotFoundError(f"private {file}: there is no such file") from None
    except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"private {file}: expected the arrays train and test in a file of numpy.savez(FILE, train=..., test=...): "
            f"{error or type(error).__name__}{see('how-to/audit_a_layer')}"
        ) from error


def _whole_numbers(file: Path, part: str, values: Any) -> Tensor:
    if values.dtype.kind not in "iub" or values.ndim != 1:
        raise ValueError(
            f"private {file}: expected whole numbers in {part}, one for each example, got {values.dtype} of shape "
            f"{values.shape}; number the values, as numpy.unique(values, return_inverse=True) does"
            f"{see('how-to/audit_a_layer')}"
        )
    return torch.from_numpy(values.astype(np.int64))
