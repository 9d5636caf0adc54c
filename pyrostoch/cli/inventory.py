"""Versions, devices and data sets on this machine, for `pyrostoch info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform

__all__ = ["data_sets", "devices", "versions"]

_PACKAGES = ("torch", "pyro-ppl", "numpy", "arviz", "safetensors", "matplotlib", "pillow")


def versions() -> list[tuple[str, str]]:
    """Names and versions of pyrostoch, Python and the packages that pyrostoch uses."""
    from pyrostoch._version import __version__

    rows = [("pyrostoch", __version__), ("Python", f"{platform.python_version()} on {platform.platform()}")]
    for name in _PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def devices() -> list[tuple[str, str]]:
    """The devices that torch sees."""
    import torch

    rows = [("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            rows.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    else:
        rows.append(("cuda", "none"))
    return rows


def data_sets(data_dir: str | None) -> list[tuple[str, str]]:
    """The standard data sets, sets of the user's own that are laid out like UCI's, and their folders.

    Args:
        data_dir: The data folder; default: the environment variable `PYROSTOCH_DATA`.

    Returns:
        Pairs of a name and a folder, after the folder that was searched.
    """
    from pyrostoch import data
    from pyrostoch.data.files import data_root
    from pyrostoch.data.uci import own_uci_folders

    root = data_dir or os.environ.get("PYROSTOCH_DATA")
    searched = "no data folder: give --data-dir DIR or set PYROSTOCH_DATA" if not root else str(root)
    if root and not os.path.isdir(os.path.expanduser(root)):
        searched += " (no such folder)"
    rows = [("searched", searched)]
    for name in data.NAMES:
        try:
            rows.append((name, data.locate(name, root)))
        except FileNotFoundError:
            rows.append((name, "not found"))
    rows += [(f"uci:{name}", data.locate(f"uci:{name}", root)) for name in own_uci_folders(data_root(root))]
    return rows
