"""Soft selection: numbers between 0 and 1 that say how much of each class there is, static or by the input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count
from pyrostoch._manual import see

__all__ = ["GatedSelection", "SoftSelection"]

#: How logits become numbers between 0 and 1: each class by itself, or all classes together, which sum to 1.
Form = Literal["sigmoid", "softmax"]
_FORMS = ("sigmoid", "softmax")


def _between(logits: Tensor, form: str) -> Tensor:
    return logits.sigmoid() if form == "sigmoid" else logits.softmax(1)


class SoftSelection(nn.Module):
    r"""Learned tensors in (0, 1), one for each class, the same for every input: $\pi_c \in (0, 1)^{\text{shape}}$.

    They cannot follow the input: that is `GatedSelection`.

    Args:
        num_classes: Number of classes, with the background where the layer has one.
        shape: Shape of what is selected, without the batch: of the layer's input, or of its output with
            `where="output"`.
        form: `"sigmoid"`, each class by itself, or `"softmax"`, where the classes sum to 1 at each place.

    Example:
        >>> selection = SoftSelection(4, (3,), "softmax")
        >>> selection(torch.zeros(2, 3)).shape, selection(torch.zeros(2, 3)).unique().item()
        (torch.Size([2, 4, 3]), 0.25)
    """

    def __init__(self, num_classes: int, shape: tuple[int, ...] | int, form: Form = "sigmoid") -> None:
        super().__init__()
        self.form = check_choice("SoftSelection form", form, list(_FORMS))
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.logits = nn.Parameter(torch.zeros(check_count("SoftSelection num_classes", num_classes), *shape))

    @property
    def tensors(self) -> Tensor:
        r"""The tensors, (classes, \*shape)."""
        return _between(self.logits[None], self.form)[0]

    def forward(self, x: Tensor) -> Tensor:
        r"""The selection, (batch, classes, \*shape).

        Args:
            x: The layer's input, of which only the number of examples matters.
        """
        return self.tensors.expand(x.shape[0], *self.logits.shape)

    def extra_repr(self) -> str:
        """The settings."""
        return f"{len(self.logits)}, shape={tuple(self.logits.shape[1:])}, form={self.form!r}"


class GatedSelection(nn.Module):
    r"""A selection that a gate, a network of its own, computes from the layer's input: $\pi(x)$.

    Args:
        gate: A network from the layer's input to logits, (batch, classes), or, for a selection by position,
            (batch, classes, \*positions), where a size of 1 stands for all positions.
        form: `"softmax"`, where the classes sum to 1 at each place, or `"sigmoid"`.

    Example:
        >>> GatedSelection(nn.Linear(3, 4))(torch.zeros(2, 3)).shape
        torch.Size([2, 4])

    References:
        Jacobs, Jordan, Nowlan, Hinton, "Adaptive mixtures of local experts", 1991.
    """

    def __init__(self, gate: nn.Module, form: Form = "softmax") -> None:
        super().__init__()
        self.gate, self.form = gate, check_choice("GatedSelection form", form, list(_FORMS))

    def logits(self, x: Tensor) -> Tensor:
        """The gate's output.

        Args:
            x: The layer's input.

        Raises:
            ValueError: It has no axis of classes.
        """
        try:
            found = self.gate(x)
        except RuntimeError as error:
            error.add_note(
                f"GatedSelection: the gate reads what its layer reads, here inputs of shape {tuple(x.shape)}."
            )
            raise
        if not isinstance(found, Tensor) or found.dim() < 2 or found.shape[0] != x.shape[0]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"GatedSelection: expected a gate that gives (batch, classes) or (batch, classes, *positions), got "
                f"{shape} for {len(x)} examples{see('how-to/conditional_layers')}"
            )
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The selection, in the shape of the gate's output.

        Args:
            x: The layer's input.
        """
        return _between(self.logits(x), self.form)

    def extra_repr(self) -> str:
        """The form."""
        return f"form={self.form!r}"
