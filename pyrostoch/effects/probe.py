"""The linear operations with random weights in one pass of a network: recorded, and given other outputs.

The analysis of weights in `separation` runs a network with a `Probe` around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrostoch._ops import LinearOp, bind

__all__ = ["Change", "Operation", "Probe"]


@dataclass(eq=False)
class Operation:
    """One linear operation with random weights, as a pass found it.

    Args:
        weight: Parameter name of its random weight, if the weight is random.
        bias: The same of its bias.
        op: The operation.
        output: Its output.
        grad_enabled: Whether gradients were enabled there.
        level: The level of torch.func's transformations around it.
    """

    weight: str | None
    bias: str | None
    op: LinearOp
    output: Tensor
    grad_enabled: bool
    level: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its random parameters."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def gradients(self, cotangent: Tensor) -> dict[str, Tensor]:
        """Gradients by its random parameters for a gradient by its output."""
        # In double precision: the network may have cast its operands itself.
        leaves = {"weight": self.op.weight.detach().double().requires_grad_()}
        if self.op.bias is not None:
            leaves["bias"] = self.op.bias.detach().double().requires_grad_()
        with torch.enable_grad():
            output = self.op(self.op.input.detach().double(), leaves["weight"], leaves.get("bias"))
        found = dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), cotangent.double()), strict=True))
        names = {"weight": self.weight, "bias": self.bias}
        return {name: found[role] for role, name in names.items() if name is not None}


#: Puts another tensor in place of an operation's output.
Change = Callable[[Operation], Tensor]


class Probe(TorchFunctionMode):
    """Records the operations with random weights, or puts other outputs in place of theirs.

    Args:
        weights: The random weights, by their parameter names.
        change: Gives the output in place of an operation's; if there is one, no operation is recorded.
    """

    def __init__(self, weights: Mapping[str, Tensor], change: Change | None = None) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in weights.items()}
        self.change = change
        self.found: list[Operation] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        op = bind(func, args, kwargs or {})
        if op is None:
            return result
        weight, bias = self.names.get(id(op.weight)), self.names.get(id(op.bias))
        if weight is None and bias is None:
            return result
        level = torch._C._functorch.maybe_current_level()
        operation = Operation(weight, bias, op, result, torch.is_grad_enabled(), level)
        if self.change is not None:
            return self.change(operation)
        self.found.append(operation)
        return result.clone()  # the network may change it in place
