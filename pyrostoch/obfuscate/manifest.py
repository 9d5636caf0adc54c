"""What a progressive training was begun with, so that it is not resumed with something else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.obfuscate.screening import Screening
from pyrostoch.safefile import read_file, write_file

__all__ = ["check_manifest", "fingerprint"]

_NAME = "progressive.safetensors"


def fingerprint(*tensors: Tensor) -> str:
    """A hash of the values of tensors.

    Args:
        tensors: The tensors.

    Example:
        >>> fingerprint(torch.arange(3)) == fingerprint(torch.arange(3)), len(fingerprint(torch.zeros(1)))
        (True, 64)
    """
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_manifest(
    folder: Path, *, resume: bool, shares: list[float], screening: Screening | None, **settings: Any
) -> None:
    """Write down what a training is begun with, or raise an error where it is resumed with something else.

    Args:
        folder: The folder of its checkpoints.
        resume: Whether it is resumed.
        shares: Its shares, of which there may be more or fewer than before.
        screening: What is hidden.
        **settings: All else that decides what it computes, ready for JSON.

    Raises:
        ValueError: It was begun with other ones; the first is named.
    """
    path = folder / _NAME
    now: Mapping[str, Any] = {"screening": None if screening is None else asdict(screening), **settings}
    if resume and path.exists():
        _, before = read_file(path)
        common = min(len(shares), len(before["shares"]))
        changed = [name for name in now if before.get(name) != now[name]]
        changed += ["shares"] if before["shares"][:common] != shares[:common] else []
        if changed:
            was, given = (
                str({**kept, "shares": own}[changed[0]]) for kept, own in ((before, before["shares"]), (now, shares))
            )
            raise ValueError(
                f"progressive resume: the training in {folder} was begun with another {changed[0]}, {was[:60]} and not "
                f"{given[:60]}; give that, or another folder{see('how-to/progressive_training')}"
            )
    write_file(path, {}, {**now, "shares": shares})
