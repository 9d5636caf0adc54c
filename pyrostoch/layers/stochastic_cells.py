"""Recurrent cells, one for each parameter of an activation's distribution, whose draw feeds the next step."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch.effects.activation import random_activation
from pyrostoch.layers.activations import ActivationDistribution, Gradient, PriorOfActivations
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.moments import Moments
from pyrostoch.moments.table import refuse

__all__ = ["CellKind", "RecurrentCells"]

CellKind = Literal["LSTM", "GRU"]

#: The number of gates of a cell, that of its candidate included.
_GATES: dict[CellKind, int] = {"LSTM": 4, "GRU": 3}


class RecurrentCells(StochasticLayer):
    r"""One layer and one direction of a recurrent network of cells, one cell for each parameter.

    $$ h_t \sim p(h; \theta_1, \theta_2, \ldots), \qquad \theta_i = l_i(\mathrm{cell}_i(x_t, h_{t-1})). $$

    All cells read the same input and the same last draw, so that their maps are one matrix each; the map of the input
    is one call for all steps. The cells of an LSTM have a memory $c_i$ each. Every step is a random activation: under a
    prior a Pyro site of its own, `name`, `name:2`, ...

    Args:
        kind: The kind of the cells, `"LSTM"` or `"GRU"`.
        input_size: Number of inputs.
        hidden_size: Number of activations.
        bias: Whether the cells have biases.
        distribution: The distribution of the activations; see `StochasticLayer`.
        prior: The prior of the activations of a step; see `StochasticLayer`.
        gradient: How draws are differentiated; see `StochasticLayer`.
        temperature: See `StochasticLayer`.
        device: Device of the parameters.
        dtype: Their dtype.

    Attributes:
        weight_ih: The maps of the input, (parameters * gates * hidden_size, input_size): for each parameter in turn
            what `torch.nn.LSTMCell` or `torch.nn.GRUCell` have under this name.
        weight_hh: The maps of the last draw, (parameters * gates * hidden_size, hidden_size).
        bias_ih: Biases of the first; `None` without biases.
        bias_hh: Biases of the second; `None` without biases.

    References:
        Chung, Kastner, Dinh, Goel, Courville, Bengio, "A recurrent latent variable model for sequential data", 2015;
        Fraccaro, Sonderby, Paquet, Winther, "Sequential neural models with stochastic layers", 2016, for draws that
        feed the next step.

    Example:
        >>> cells = RecurrentCells("LSTM", 3, 2)
        >>> h, last, memory = cells(torch.zeros(5, 7, 3), torch.zeros(5, 2), torch.zeros(5, 4))
        >>> h.shape, last.shape, memory.shape
        (torch.Size([5, 7, 2]), torch.Size([5, 2]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        kind: CellKind,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        distribution: ActivationDistribution | str = "gaussian",
        prior: PriorOfActivations = None,
        gradient: Gradient | None = None,
        temperature: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.cell: CellKind = kind
        self._set_distribution(distribution, prior, gradient, temperature, -1, (hidden_size,))
        self.blocks = (len(self.family.links), _GATES[kind], hidden_size)
        rows = math.prod(self.blocks)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.weight_ih, self.weight_hh = parameter(rows, input_size), parameter(rows, hidden_size)
        self.bias_ih = parameter(rows) if bias else None
        self.bias_hh = parameter(rows) if bias else None
        self.reset_parameters()

    @property
    def _title(self) -> str:
        return f"Stochastic{self.cell}"

    def reset_parameters(self) -> None:
        """Draw the parameters uniformly up to one over the root of the hidden size, as torch does."""
        bound = 1.0 / math.sqrt(self.blocks[-1])
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor | Moments, h: Tensor, c: Tensor | None = None) -> Any:
        """The activations of all steps, and the last state.

        Args:
            x: The sequences, (batch, steps, input_size).
            h: The activations before the first step, (batch, hidden_size).
            c: The memories of an LSTM's cells, (batch, parameters * hidden_size).

        Returns:
            The activations, (batch, steps, hidden_size); those of the last step; the last memories, or `None`.

        Raises:
            MissingRuleError: Moments are propagated.
        """
        drive: Any = F.linear(x, self.weight_ih, self.bias_ih)  # type: ignore[arg-type]  # moments are tensors to torch
        memory = None if c is None else c.unflatten(1, (self.blocks[0], self.blocks[2]))
        drawn = []
        for step in drive.unflatten(2, self.blocks).unbind(1):
            recurrent = F.linear(h, self.weight_hh, self.bias_hh).unflatten(1, self.blocks)
            outputs, memory = self._cells(step, recurrent, h, memory)
            activation: Any = random_activation(outputs.unbind(1), self)
            h = activation
            drawn.append(h)
        return torch.stack(drawn, 1), h, None if memory is None else memory.flatten(1)

    def _cells(self, step: Tensor, recurrent: Tensor, h: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The outputs of all cells, (batch, parameters, hidden_size), and their memories."""
        if memory is None:
            (r, z, n), (r_h, z_h, n_h) = step.unbind(2), recurrent.unbind(2)
            new = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
            keep = torch.sigmoid(z + z_h)
            return (1.0 - keep) * new + keep * h.unsqueeze(1), None
        i, f, g, o = (step + recurrent).unbind(2)
        memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(memory), memory

    def propagate(self, x: tuple[Moments, ...]) -> Moments:
        """Raise an error: there is no rule.

        Args:
            x: The moments of the cells' outputs.

        Raises:
            MissingRuleError: Always.
        """
        refuse(
            type(self).forward,
            f"the draws of a {self._title} with sample='state' feed the gates of the next step, and there is no rule "
            "for such a recurrence",
        )

    def extra_repr(self) -> str:
        """The sizes, the distribution and the gradient."""
        return f"{self.weight_ih.shape[1]}, {self.blocks[-1]}, {super().extra_repr()}"
