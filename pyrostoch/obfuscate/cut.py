"""The place where a network is cut: tensors that modules return are collected there, or given in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see
from pyrostoch.effects.checkpointing import inside_torch_checkpoint
from pyrostoch.effects.trees import map_tensors

__all__ = ["Cut"]


class Cut:
    """Collects what some modules of a network return in a pass, or returns what is given in their place.

    It comes behind every hook of these modules, so that it sees what the rest of the network reads: behind a merge with
    another branch, too. Of several passes, as in a first one that looks at how weights are used, the last one counts.

    Args:
        net: The network.
        names: Names of the modules.
        given: What to return in place of their outputs, by name; `None` to collect.
        done: Called when all of them have returned, in every pass.

    Attributes:
        outputs: What the modules have returned, by name.

    Raises:
        ValueError: There is no such module; or, at the end, one was not called exactly once in the last pass.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> with Cut(net, ["1"]) as cut:
        ...     y = net(torch.ones(4, 3))
        >>> with Cut(net, ["1"], cut.outputs):
        ...     torch.equal(net(torch.zeros(4, 3)), y)
        True
    """

    def __init__(
        self,
        net: nn.Module,
        names: Sequence[str],
        given: Mapping[str, Any] | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        known = dict(net.named_modules())
        for name in names:
            if name not in known:
                raise ValueError(
                    f"at: {type(net).__name__} has no module {name!r}{suggest(name, known)}; it has "
                    f"{name_list([part for part in known if part])}{see('how-to/audit_a_layer')}"
                )
        self._net, self._modules = net, {name: known[name] for name in names}
        self._given, self._handles, self._done = given, list[RemovableHandle](), done
        self._calls = dict.fromkeys(names, 0)
        self.outputs: dict[str, Any] = {}

    def __enter__(self) -> Cut:
        self._handles.append(self._net.register_forward_pre_hook(self._begin))
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(partial(self._arm, name)))
        return self

    def _begin(self, net: nn.Module, args: Any) -> None:
        self._calls, self.outputs = dict.fromkeys(self._modules, 0), {}

    def _arm(self, name: str, module: nn.Module, args: Any) -> None:
        """Register the hook when the module is called, behind those that the pass itself has registered."""
        self._calls[name] += 1
        if inside_torch_checkpoint():
            raise ValueError(
                f"at={name!r}: the module runs under torch.utils.checkpoint, where it is called again for the "
                f"gradients; cut elsewhere{see('how-to/audit_a_layer')}"
            )
        handles: list[RemovableHandle] = []
        handles.append(module.register_forward_hook(partial(self._take, name, handles)))
        self._handles += handles

    def _take(self, name: str, handles: list[RemovableHandle], module: nn.Module, args: Any, output: Any) -> Any:
        handles.pop().remove()
        # Copies, since the network may write into what it is given.
        self.outputs[name] = map_tensors(torch.clone, output if self._given is None else self._given[name])
        if self._done is not None and len(self.outputs) == len(self._modules):
            self._done()
        return output if self._given is None else map_tensors(torch.clone, self.outputs[name])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if error is not None:
            return
        for name, calls in self._calls.items():
            if calls != 1:
                raise ValueError(
                    f"at={name!r}: {type(self._net).__name__} calls this module {calls} times in a pass; a network "
                    f"can be cut only at modules that are called once{see('how-to/audit_a_layer')}"
                )
