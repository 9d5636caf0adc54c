"""What the zoo needs to know of a network: how to make it, its inputs, and which weights are random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Made = tuple[nn.Module, Any]

#: The networks of the zoo by name.
ZOO: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Args:
        make: Makes the network and its inputs.
        random: Patterns of the random parameters; all of them if empty.
        in_dims: The axis of each input that counts the examples.
        training: Whether it runs in training mode.
        scale: Standard deviation of the random weights.
        requires: A package that it needs.
        approximate: Why no mode promises exact marginal distributions here, if so.
    """

    make: Callable[[], Made]
    random: tuple[str, ...] = ()
    in_dims: Any = 0
    training: bool = False
    scale: float = 0.2
    requires: str = ""
    approximate: str = ""


def network(name: str, **options: Any) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Enter a function that makes a network and its inputs into the zoo.

    Args:
        name: Its name.
        options: The other fields of its `Entry`.
    """

    def enter(make: Callable[[], Made]) -> Callable[[], Made]:
        assert name not in ZOO
        ZOO[name] = Entry(make, **options)
        return make

    return enter


class Then(nn.Module):
    """A layer, and a function of its output and of the module."""

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None, **parts: Any) -> None:
        super().__init__()
        self.l = nn.Linear(3, 4) if layer is None else layer
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.l, self, *inputs)
