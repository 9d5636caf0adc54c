"""Machine code for a graph, by torch's Inductor."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from pyrostoch.staging.graph import StagingError

__all__ = ["lower", "missing"]

Compiled = Callable[..., Sequence[Tensor]]


def missing(device: torch.device) -> str | None:
    """What this machine lacks to compile for a device, in words, or `None`.

    Args:
        device: Where the step computes.

    Example:
        >>> missing(torch.device("meta"))
        "no compiler for the device type 'meta'"
    """
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if device.type != "cpu":
        return f"no compiler for the device type {device.type!r}"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if any(name and shutil.which(name) for name in names):
        return None
    return "no C++ compiler was found (install g++, or name one in the variable CXX)"


def lower(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Compile a graph for inputs of these shapes, types and places.

    Random numbers are drawn by torch's own generators in the graph's order, so that a seed means the same as without
    the compiler.

    Args:
        module: The graph.
        inputs: Its inputs.

    Returns:
        A function of the inputs, to be called without gradients.

    Raises:
        StagingError: The compiler failed.
    """
    import torch._inductor

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own making
        try:
            # Not torch.compile, whose guards would cost half a millisecond a step for networks of many layers.
            compiled: Compiled = torch._inductor.compile(module, list(inputs), options={"fallback_random": True})
        except Exception as error:  # a compiler fails in many ways
            text = str(error).strip().splitlines()
            raise StagingError(f"the compiler failed: {type(error).__name__}: {text[0] if text else ''}") from error
    return compiled
