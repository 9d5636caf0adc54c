"""The version of pyrostoch, and of what it computes with."""

from __future__ import annotations

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of what decides a result, by name: for records.

    Example:
        >>> list(versions())
        ['pyrostoch', 'torch', 'pyro', 'python']
    """
    # Here, since tools read the version without torch.
    import pyro
    import torch

    return {
        "pyrostoch": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }
