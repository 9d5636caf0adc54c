"""Gradient checkpointing: pyrostoch's own, and torch's, which is refused where it would recompute something random."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from pyrostoch._manual import see
from pyrostoch.effects.active import active_call, inside_network

__all__ = ["checkpoint", "checkpointed_function", "explain_refusal", "inside_torch_checkpoint", "modules_of"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def inside_torch_checkpoint() -> bool:
    """Whether a function runs under torch's checkpointing, which may run it again when this pass is over."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def checkpoint(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Checkpoint a part of a network: recompute its activations in the backward pass instead of storing them.

    Use it in place of `torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)`. In a network with
    random weights torch's function would recompute with other weights; this one recomputes with the same.

    Args:
        function: The part of the network.
        args: Its inputs.
        kwargs: Its keyword inputs.

    Returns:
        The result of `function`.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> checkpoint(torch.sin, x).sum().backward()
        >>> bool(torch.allclose(x.grad, torch.cos(x)))
        True
    """
    call, options = active_call(), cast(Any, kwargs)
    if call is None and inside_network():
        return function(*args, **kwargs)  # the analysis of weight usage, whose weights a recomputation would not see
    if call is None:
        return cast(_T, torch_checkpoint(function, *args, use_reentrant=False, **options))
    contexts = call.checkpoint_contexts
    return cast(_T, torch_checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **options))


def checkpointed_function() -> Any:
    """The function that torch's checkpointing is running now, an object of unknown content, or `None`.

    Example:
        >>> checkpointed_function() is None
        True
    """
    if torch.is_grad_enabled():
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is None or getattr(hooks[0], "__module__", "") != "torch.utils.checkpoint":
            return None
    # Reentrant checkpointing, which runs with gradients off, sets no hook and can only be found on the call stack.
    frame = sys._getframe(1)
    found: Any = object() if torch.is_grad_enabled() else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            found = object()
            for name in ("function", "run_function"):
                if name in frame.f_locals:
                    return frame.f_locals[name]
        frame = frame.f_back  # type: ignore[assignment]
    return found


def modules_of(function: Any) -> list[nn.Module]:
    """The modules that a function holds: itself, those it is bound to, and those in its arguments or its closure.

    Args:
        function: A module, a method, a `functools.partial`, or a function with a closure.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> modules_of(functools.partial(layer.forward)) == modules_of([layer]) == [layer]
        True
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    held = [function]
    while held:
        item = held.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found.append(item)
        elif isinstance(item, functools.partial):
            held += [item.func, *item.args, *item.keywords.values()]
        elif isinstance(item, (list, tuple)):
            held += item
        elif callable(item):
            held.append(getattr(item, "__self__", None))
            for cell in getattr(item, "__closure__", None) or ():
                if cell.cell_contents is not item:
                    held.append(cell.cell_contents)
    return found


def explain_refusal(reason: str) -> RuntimeError:
    """The error for torch's checkpointing of a part in which something is random.

    Args:
        reason: What is random there.
    """
    return RuntimeError(
        f"torch.utils.checkpoint of a part with something random in it ({reason}) gives wrong gradients: it recomputes "
        "the forward pass after the drawn weights have been removed again. Replace it in the network by "
        "pyrostoch.effects.checkpoint, which recomputes with the same weights and noise (and also works outside "
        "pyrostoch's models); in a network of HuggingFace, leave gradient_checkpointing_enable() out, and "
        f"hand it to the parts{see('how-to/adapters')}"
    )
