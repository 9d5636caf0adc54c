"""Compiling a graph to machine code with torch's Inductor."""

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
    """What this machine lacks to compile for a device, or `None` if it can.

    Args:
        device: The device of the step.

    Returns:
        A sentence for a warning, or `None`.

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
    """Compile a graph for inputs of these shapes, dtypes and devices.

    Random numbers come from torch's own generators, in the graph's order, so that a seed gives the same numbers as
    without the compiler.

    Args:
        module: The graph.
        inputs: Its inputs.

    Returns:
        A function of the inputs; call it under `torch.no_grad()`.

    Raises:
        StagingError: The compiler failed.
    """
    import torch._inductor

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # warnings of torch about its own code
        try:
            # Not torch.compile: its guards would cost half a millisecond per step for networks of many layers.
            compiled: Compiled = torch._inductor.compile(module, list(inputs), options={"fallback_random": True})
        except Exception as error:  # a compiler can fail with any exception
            text = str(error).strip().splitlines()
            raise StagingError(f"the compiler failed: {type(error).__name__}: {text[0] if text else ''}") from error
    return compiled
