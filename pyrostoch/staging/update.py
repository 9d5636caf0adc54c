"""An optimizer's update as tensor operations, which a graph can contain, on the optimizer's own state.

An optimizer's `step` reads numbers such as the learning rate as Python numbers, which become constants of a graph. Here
every number that may change between steps (learning rates, betas, momentum, counters) is a tensor. The state stays in
`optimizer.state`, so that compiled and eager steps can alternate and checkpoints are those of the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as _optimizer

__all__ = ["Update"]

# Options of a group that a graph reads at each step; the others become constants of the graph.
_NUMBERS = {"adam": ("lr", "beta1", "beta2"), "sgd": ("lr", "momentum", "dampening")}
_STATE = {"adam": ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"), "sgd": ("momentum_buffer",)}
_KINDS: dict[type, str] = {torch.optim.Adam: "adam", torch.optim.AdamW: "adam", torch.optim.SGD: "sgd"}


class Update:
    """The update of Adam, AdamW or SGD as tensor operations.

    Args:
        optimizer: The optimizer.

    Raises:
        ValueError: The optimizer is of another type or has hooks; see `supports`.

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
        self._state: list[tuple[Any, str, Tensor | None]] = []
        self._layout: tuple[Any, ...] = ((),) * len(self.parameters)
        self._numbers = [torch.zeros(len(numbers), dtype=torch.float64) for _ in optimizer.param_groups]

    @staticmethod
    def supports(optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer is Adam, AdamW or SGD (no subclass), and its `step` runs no hooks.

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
        """The tensors that the update reads or writes besides parameters and gradients, in a fixed order."""
        self._find_state()
        return [*self._numbers, *(tensor for _, _, tensor in self._state if tensor is not None)]

    def layout(self) -> tuple[Any, ...]:
        """For each parameter, the names of the tensors that the optimizer's state has."""
        self._find_state()
        return self._layout

    def _find_state(self) -> None:
        """Look up the optimizer's state again if it was replaced; this runs at each step, so the check is cheap."""
        entries = list(self.optimizer.state.values())
        same = len(entries) == len(self._entries) and all(map(is_, entries, self._entries))
        if same and all(entry.get(name) is tensor for entry, name, tensor in self._state):
            return
        state, names = self.optimizer.state, _STATE[self.kind]
        by_parameter = [state.get(parameter) or {} for parameter in self.parameters]
        self._entries = entries
        self._state = [(entry, name, entry.get(name)) for entry in by_parameter for name in names]
        self._layout = tuple(tuple(name for name in names if entry.get(name) is not None) for entry in by_parameter)

    def key(self) -> tuple[Any, ...]:
        """The options that are constants of a graph of the update."""
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
        """Copy the groups' present numbers into the tensors that the update reads."""
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
            gradients: One for each parameter; a parameter whose gradient is `None` does not change.
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
    """Adam (Kingma, Ba 2015), AdamW (Loshchilov, Hutter 2019) and AMSGrad (Reddi, Kale, Kumar 2018)."""
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
    variance = second
    if group["amsgrad"]:
        state["max_exp_avg_sq"].copy_(torch.maximum(state["max_exp_avg_sq"], second))
        variance = state["max_exp_avg_sq"]
    denominator = variance.sqrt() / (1 - beta2.pow(count)).sqrt() + group["eps"]
    parameter.sub_(first / denominator * (rate / (1 - beta1.pow(count))))


def _sgd(parameter: Tensor, gradient: Tensor, state: Any, group: Any, numbers: Sequence[Tensor]) -> None:
    """Stochastic gradient descent with momentum, as torch defines it."""
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
