"""The optimizer's update as tensor operations that a graph can hold, on the very state that the optimizer keeps.

An optimizer's own `step` reads its counters as Python numbers, which a graph would keep for ever. Here every number
that may change between steps (rates, betas, momentum, counters) is a tensor. The state stays in `optimizer.state`, so
that staged and eager steps may follow each other and checkpoints are the optimizer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as _optimizer

__all__ = ["Update"]

# What a graph reads anew at each step; the other options of a group are part of what is staged.
_NUMBERS = {"adam": ("lr", "beta1", "beta2"), "sgd": ("lr", "momentum", "dampening")}
_STATE = {"adam": ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"), "sgd": ("momentum_buffer",)}
_KINDS: dict[type, str] = {torch.optim.Adam: "adam", torch.optim.AdamW: "adam", torch.optim.SGD: "sgd"}


class Update:
    """The update of Adam, AdamW or SGD.

    Args:
        optimizer: The optimizer.

    Raises:
        ValueError: There is no update for its type; ask `supports` before.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> update = Update(optimizer)
        >>> update.refresh()
        >>> with torch.no_grad():
        ...     update.apply([torch.ones(1)])
        >>> weight.item()
        0.5
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.supports(optimizer):
            raise ValueError(f"update: expected Adam, AdamW or SGD without hooks, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.kind = _KINDS[type(optimizer)]
        numbers = _NUMBERS[self.kind]
        self._entries: list[Any] = []
        self._memory: list[tuple[Any, str, Tensor | None]] = []
        self._layout: tuple[Any, ...] = ((),) * len(self.parameters)
        self._numbers = [torch.zeros(len(numbers), dtype=torch.float64) for _ in optimizer.param_groups]

    @staticmethod
    def supports(optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer's update is known here, and is all that its `step` does.

        Args:
            optimizer: The optimizer.
        """
        hooked = (
            *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
            *(_optimizer._global_optimizer_pre_hooks, _optimizer._global_optimizer_post_hooks),
        )
        return type(optimizer) in _KINDS and not any(hooked)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters, group by group."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def tensors(self) -> list[Tensor]:
        """What the update reads and writes besides parameters and gradients, in a fixed order."""
        self._look()
        return [*self._numbers, *(tensor for _, _, tensor in self._memory if tensor is not None)]

    def layout(self) -> tuple[Any, ...]:
        """Which tensors there are, of those that `tensors` gives."""
        self._look()
        return self._layout

    def _look(self) -> None:
        """Find the optimizer's memory, anew only where it has been replaced: this is asked at each step."""
        entries = list(self.optimizer.state.values())
        same = len(entries) == len(self._entries) and all(map(is_, entries, self._entries))
        if same and all(entry.get(name) is tensor for entry, name, tensor in self._memory):
            return
        state, names = self.optimizer.state, _STATE[self.kind]
        found = [state.get(parameter) or {} for parameter in self.parameters]
        self._entries = entries
        self._memory = [(entry, name, entry.get(name)) for entry in found for name in names]
        self._layout = tuple(tuple(name for name in names if entry.get(name) is not None) for entry in found)

    def key(self) -> tuple[Any, ...]:
        """The options that a staged update keeps as they are."""
        return tuple(
            (
                group["weight_decay"],
                group.get("eps"),
                group.get("amsgrad"),
                group["maximize"],
                group.get("decoupled_weight_decay"),
                group.get("nesterov"),
                group.get("momentum") == 0,
            )
            for group in self.optimizer.param_groups
        )

    def refresh(self) -> None:
        """Copy the groups' numbers to where the update reads them."""
        while len(self._numbers) < len(self.optimizer.param_groups):
            self._numbers.append(torch.zeros_like(self._numbers[0]))
        for group, numbers in zip(self.optimizer.param_groups, self._numbers, strict=True):
            if self.kind == "adam":
                row = (float(group["lr"]), float(group["betas"][0]), float(group["betas"][1]))
            else:
                row = (float(group["lr"]), float(group["momentum"]), float(group["dampening"]))
            numbers.copy_(torch.tensor(row, dtype=torch.float64))

    def apply(self, gradients: Sequence[Tensor | None]) -> None:
        """Make one update in place, without gradients.

        Args:
            gradients: One for each parameter; a parameter without one is left alone.
        """
        rest = iter(gradients)
        for group, numbers in zip(self.optimizer.param_groups, self._numbers, strict=True):
            for parameter in group["params"]:
                gradient = next(rest)
                if gradient is not None:
                    state = self.optimizer.state.get(parameter) or {}
                    step = _adam if self.kind == "adam" else _sgd
                    step(parameter, gradient, state, group, numbers.unbind())


def _adam(parameter: Tensor, gradient: Tensor, state: Any, group: Any, numbers: Sequence[Tensor]) -> None:
    """Kingma, Ba 2015; with decoupled decay Loshchilov, Hutter 2019; AMSGrad of Reddi, Kale, Kumar 2018."""
    rate, beta1, beta2 = numbers
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"] and group.get("decoupled_weight_decay"):
        parameter.mul_(1 - rate * group["weight_decay"])
    elif group["weight_decay"]:
        gradient = gradient + parameter * group["weight_decay"]
    first, second = state["exp_avg"], state["exp_avg_sq"]
    state["step"].add_(1)
    count = state["step"].to(torch.float64)
    first.add_((gradient - first) * (1 - beta1))
    second.copy_(second * beta2 + gradient * gradient * (1 - beta2))
    spread = second
    if group["amsgrad"]:
        state["max_exp_avg_sq"].copy_(torch.maximum(state["max_exp_avg_sq"], second))
        spread = state["max_exp_avg_sq"]
    denominator = spread.sqrt() / (1 - beta2.pow(count)).sqrt() + group["eps"]
    parameter.sub_(first / denominator * (rate / (1 - beta1.pow(count))))


def _sgd(parameter: Tensor, gradient: Tensor, state: Any, group: Any, numbers: Sequence[Tensor]) -> None:
    """Stochastic gradients with momentum, as torch defines it."""
    rate, momentum, dampening = numbers
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"]:
        gradient = gradient + parameter * group["weight_decay"]
    if group["momentum"]:
        buffer = state["momentum_buffer"]
        buffer.copy_(buffer * momentum + gradient * (1 - dampening))
        gradient = gradient + buffer * momentum if group["nesterov"] else buffer
    parameter.sub_(gradient * rate)
