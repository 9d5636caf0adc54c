"""What there is on this machine: versions, devices, data sets."""

from __future__ import annotations

import importlib.metadata
import os
import platform

__all__ = ["data_sets", "devices", "versions"]

_PACKAGES = ("torch", "pyro-ppl", "numpy", "arviz", "safetensors", "matplotlib", "pillow")


def versions() -> list[tuple[str, str]]:
    """Names and versions of pyrostoch, Python and the packages that it uses."""
    from pyrostoch._version import __version__

    found = [("pyrostoch", __version__), ("Python", f"{platform.python_version()} on {platform.platform()}")]
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found


def devices() -> list[tuple[str, str]]:
    """The devices that torch sees."""
    import torch

    found = [("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found.append((f"cuda:{index}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"))
    else:
        found.append(("cuda", "none"))
    return found


def data_sets(data_dir: str | None) -> list[tuple[str, str]]:
    """Each standard data set and where it is.

    Args:
        data_dir: The data folder; without it, the variable `PYROSTOCH_DATA`.

    Returns:
        Names and places.
    """
    from pyrostoch import data

    root = data_dir or os.environ.get("PYROSTOCH_DATA")
    place = "no data folder: give --data-dir DIR or set PYROSTOCH_DATA" if not root else str(root)
    if root and not os.path.isdir(os.path.expanduser(root)):
        place += " (no such folder)"
    found = [("searched", place)]
    for name in data.NAMES:
        try:
            found.append((name, data.locate(name, root)))
        except FileNotFoundError:
            found.append((name, "not found"))
    return found
