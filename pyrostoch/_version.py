"""The versions of pyrostoch and of the libraries that it computes with."""

from __future__ import annotations

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of the software that numerical results depend on, by name, for saved records.

    Example:
        >>> list(versions())
        ['pyrostoch', 'torch', 'pyro', 'python']
    """
    # Imported here, so that tools can read the version without torch.
    import pyro
    import torch

    return {
        "pyrostoch": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }
