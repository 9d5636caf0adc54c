"""Stochastic recurrent layers of torch's kinds, whose draws are their outputs, or feed the next step, too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from pyrostoch._checks import check_choice, check_count
from pyrostoch._manual import see
from pyrostoch.effects.activation import random_activation
from pyrostoch.layers.activations import ActivationDistribution, Gradient, PriorOfActivations
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.layers.stochastic_cells import CellKind, RecurrentCells
from pyrostoch.moments import Moments

__all__ = ["RecurrentKernels", "StochasticGRU", "StochasticLSTM"]


class RecurrentKernels(StochasticLayer):
    """Recurrent networks, one for each parameter, that read the same sequence; all steps are one activation.

    Args:
        title: Name of the layer that it is part of, for messages.
        make_kernel: Makes one network, with `batch_first=True`.
        width: Number of its outputs.
        distribution: The distribution of the activations; see `StochasticLayer`.
        prior: The prior of the activations; see `StochasticLayer`.
        gradient: How draws are differentiated; see `StochasticLayer`.
        temperature: See `StochasticLayer`.

    Example:
        >>> layer = RecurrentKernels("mine", lambda: nn.GRU(3, 2, batch_first=True), 2)
        >>> h, states = layer(torch.zeros(5, 7, 3))
        >>> h.shape, len(states)
        (torch.Size([5, 7, 2]), 2)
    """

    def __init__(
        self,
        title: str,
        make_kernel: Callable[[], nn.Module],
        width: int,
        distribution: ActivationDistribution | str = "gaussian",
        *,
        prior: PriorOfActivations = None,
        gradient: Gradient | None = None,
        temperature: float = 0.5,
    ) -> None:
        nn.Module.__init__(self)
        self.title = title
        self._set_distribution(distribution, prior, gradient, temperature, -1, (width,))
        self.kernels = nn.ModuleList(make_kernel() for _ in self.family.links)

    @property
    def _title(self) -> str:
        return self.title

    def forward(self, x: Tensor | Moments, hx: tuple[Any, ...] | None = None) -> Any:
        """The activations of all steps, and the last states.

        Args:
            x: The sequences, (batch, steps, inputs).
            hx: A state for each kernel.

        Returns:
            The activations, (batch, steps, width), and a state for each kernel.
        """
        outputs, states = zip(*self._run(x, hx), strict=True)
        return random_activation(outputs, self), states

    def outputs(self, x: Tensor | Moments, hx: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """The kernels' outputs, one for each parameter.

        Args:
            x: The sequences, (batch, steps, inputs).
            hx: A state for each kernel.
        """
        return tuple(output for output, _ in self._run(x, hx))

    def _run(self, x: Tensor | Moments, hx: tuple[Any, ...] | None) -> list[Any]:
        given = (None,) * len(self.kernels) if hx is None else hx
        return [kernel(x, state) for kernel, state in zip(self.kernels, given, strict=True)]


class _StochasticRecurrent(nn.Module):
    """What both kinds have: checks, torch's order of axes, and layers and directions on top of each other."""

    _kind: ClassVar[CellKind]
    _make: ClassVar[Callable[..., nn.Module]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        sample: Literal["output", "state"] = "output",
        distribution: ActivationDistribution | str = "gaussian",
        prior: PriorOfActivations = None,
        gradient: Gradient | None = None,
        temperature: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_choice(f"{name} sample", sample, ["output", "state"])
        for what, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_count(f"{name} {what}", value)
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"{name} dropout: expected a probability from 0 to 1, got {dropout!r}")
        if dropout and num_layers == 1:
            warnings.warn(
                f"{name} dropout: it acts between layers, of which there is one, so that {dropout} has no effect",
                UserWarning,
                stacklevel=3,
            )
        if proj_size and (self._kind != "LSTM" or sample == "state"):
            raise ValueError(
                f"{name} proj_size: expected 0, got {proj_size}: only a StochasticLSTM with sample='output' has "
                "projections; put a linear layer behind it"
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.sample = batch_first, float(dropout), sample
        self.suffixes = ("", "_reverse") if bidirectional else ("",)
        settings: Any = {"distribution": distribution, "prior": prior, "gradient": gradient, "temperature": temperature}
        factory: Any = {"device": device, "dtype": dtype}
        if sample == "output":
            projected = {"proj_size": proj_size} if proj_size else {}
            options = (num_layers, bias, True, dropout if num_layers > 1 else 0.0, bidirectional)
            width = len(self.suffixes) * (proj_size or hidden_size)

            def make_kernel() -> nn.Module:
                return self._make(input_size, hidden_size, *options, **projected, **factory)

            self.output = RecurrentKernels(name, make_kernel, width, **settings)
            return
        for layer in range(num_layers):
            read = input_size if layer == 0 else len(self.suffixes) * hidden_size
            for suffix in self.suffixes:
                cells = RecurrentCells(self._kind, read, hidden_size, bias, **settings, **factory)
                self.add_module(f"l{layer}{suffix}", cells)

    @property
    def noise_factor(self) -> float:
        """Factor of the noise in all layers and directions, 1 unless it is set; see `StochasticLayer`."""
        first: Any = next(self.children())
        return float(first.noise_factor)

    @noise_factor.setter
    def noise_factor(self, factor: float) -> None:
        part: Any
        for part in self.children():
            part.noise_factor = factor

    def forward(self, x: Tensor | Moments, hx: Any = None) -> Any:
        """The activations of all steps, and the last states.

        Args:
            x: The sequences, (steps, batch, input_size), or (batch, steps, input_size) with `batch_first`; or moments.
            hx: The states before the first step, as they are returned; zeros by default.

        Returns:
            The activations, in the order of the input's axes, and the last states. These are, with `sample="output"`, a
            tuple of what torch returns for each kernel. With `sample="state"` they are the last draws, of torch's shape
            (layers * directions, batch, hidden_size), and for an LSTM a pair of these and of the cells' memories,
            (layers * directions, batch, parameters * hidden_size).

        Raises:
            TypeError: The input is a packed sequence.
            ValueError: Shapes do not fit.
            MissingRuleError: Moments are propagated through states.
        """
        self._check(x)
        ordered: Any = x if self.batch_first else x.transpose(0, 1)
        if self.sample == "output":
            h, states = self.output(ordered, self._checked_states(hx))
        else:
            h, states = self._stacked(ordered, hx)
        return h if self.batch_first else h.transpose(0, 1), states

    def outputs(self, x: Tensor | Moments) -> tuple[Any, ...]:
        """The kernels' outputs with `sample="output"`, (batch, steps, width), one for each parameter.

        Args:
            x: The sequences, as the layer is called with.

        Raises:
            ValueError: The layer draws its states, on which the outputs depend.
        """
        if self.sample != "output":
            raise ValueError(f"{type(self).__name__}: with sample='state' the kernels' outputs depend on earlier draws")
        self._check(x)
        ordered: Any = x if self.batch_first else x.transpose(0, 1)
        return self.output.outputs(ordered)

    def _stacked(self, x: Any, hx: Any) -> tuple[Tensor, Any]:
        """The draws of the last layer, and the last state of each layer and direction."""
        starts = self._starts(x, hx)
        last: list[Tensor] = []
        memories: list[Any] = []
        for layer in range(self.num_layers):
            parts = []
            for suffix in self.suffixes:
                h, c = starts[len(last)]
                h, end, memory = self.get_submodule(f"l{layer}{suffix}")(x.flip(1) if suffix else x, h, c)
                parts.append(h.flip(1) if suffix else h)
                last.append(end)
                memories.append(memory)
            x = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        states = torch.stack(last)
        return x, (states, torch.stack(memories)) if self._kind == "LSTM" else states

    def _starts(self, x: Tensor | Moments, hx: Any) -> list[tuple[Tensor, Tensor | None]]:
        """The state before the first step for each layer and direction, checked."""
        count = self.num_layers * len(self.suffixes)
        first: Any = self.get_submodule("l0")
        widths = [self.hidden_size] + [first.blocks[0] * self.hidden_size] * (self._kind == "LSTM")
        like: Any = x if isinstance(x, Tensor) else x.loc
        expected = [(count, like.shape[0], width) for width in widths]
        if hx is None:
            given = [like.new_zeros(shape) for shape in expected]
        else:
            given = list(hx) if self._kind == "LSTM" and isinstance(hx, (tuple, list)) else [hx]
        found = [tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__ for state in given]
        if found != expected:
            raise ValueError(
                f"{type(self).__name__} hx: expected state(s) of shape {_listed(expected)}, (layers * directions, "
                f"batch, features), got {_listed(found)}; give back the states that the layer returns"
            )
        memories = given[1].unbind() if len(given) > 1 else (None,) * count
        return list(zip(given[0].unbind(), memories, strict=True))

    def _checked_states(self, hx: Any) -> Any:
        """The states of the kernels, which torch checks one by one."""
        count = len(self.output.kernels)
        if hx is None:
            return None
        each = Tensor if self._kind == "GRU" else tuple
        if not isinstance(hx, (tuple, list)) or len(hx) != count or not all(isinstance(state, each) for state in hx):
            what = "a tensor" if self._kind == "GRU" else "a tuple of two tensors"
            raise ValueError(
                f"{type(self).__name__} hx: expected a tuple of {count} states, one for each of the parameters "
                f"{', '.join(self.output.family.links)}, each {what}; give back the states that the layer returns"
            )
        return hx

    def _check(self, x: Any) -> None:
        name, order = type(self).__name__, "batch, steps" if self.batch_first else "steps, batch"
        if isinstance(x, PackedSequence):
            raise TypeError(
                f"{name}: expected a tensor, got a PackedSequence, which is not supported; give sequences of one "
                "length, or pad them, and leave the steps behind their ends out of what follows"
                f"{see('how-to/stochastic_layers')}"
            )
        shape = tuple(x.shape)
        if len(shape) != 3 or shape[2] != self.input_size or 0 in shape:
            raise ValueError(f"{name}: expected inputs of shape ({order}, {self.input_size}), got {shape}")

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, sample={self.sample!r}"


class StochasticLSTM(_StochasticRecurrent):
    r"""A long short-term memory whose activations are drawn.

    With `sample="output"` a network for each parameter reads the sequence, and their outputs are the parameters:

    $$ h_t \sim p(h; \theta_{t1}, \theta_{t2}, \ldots), \qquad \theta_{ti} = l_i(\mathrm{LSTM}_i(x_1 \ldots x_t)). $$

    With `sample="state"` the draw feeds the next step:
    $\theta_{ti} = l_i(\mathrm{cell}_i(x_t, h_{t-1}))$, where each cell has a memory of its own, and a layer above reads
    the draws of the layer below.

    What an LSTM gives lies between -1 and 1: with `distribution="gaussian"` so does the mean, and the standard
    deviation lies between 0.31 and 1.31. `layers.activations.Gaussian("raw")` has narrower noise, down to 0;
    `proj_size` leaves the range.

    Sequences are (steps, batch, input_size), or (batch, steps, input_size) with `batch_first`, and have one length:
    under a prior the rate counts every step. A layer is called with `(x, hx)` and returns activations and states; see
    `forward`. Under a prior, the Pyro site is `name.output`, or there is one for each layer, direction and step:
    `name.l0`, `name.l0:2`, ..., `name.l0_reverse`, .... As in torch, dropout depends on `train()` and `eval()`.

    Args:
        input_size: Number of inputs.
        hidden_size: Number of activations of a direction.
        num_layers: Number of layers.
        bias: Whether there are biases.
        batch_first: Whether the first axis counts the examples, and not the steps.
        dropout: Probability of dropout between layers.
        bidirectional: Whether a second direction reads the sequence from its end.
        proj_size: Number of outputs of a projection of each network; with `sample="output"` only.
        sample: `"output"` or `"state"`.
        distribution: The distribution of the activations; see `StochasticLayer`.
        prior: The prior of the activations, of the whole sequence with `sample="output"`, else of a step; see
            `StochasticLayer`. With `"state"` all layers and directions share one that is given as an object.
        gradient: How draws are differentiated; see `StochasticLayer`.
        temperature: See `StochasticLayer`.
        device: Device of the parameters.
        dtype: Their dtype.

    Raises:
        ValueError: A setting is out of range, or the distribution has no such gradient.

    References:
        Hochreiter, Schmidhuber, "Long short-term memory", 1997; Chung, Kastner, Dinh, Goel, Courville, Bengio, "A
        recurrent latent variable model for sequential data", 2015, for draws that feed the next step.

    Example:
        >>> layer = StochasticLSTM(3, 2, batch_first=True, sample="state", prior="standard")
        >>> h, (last, memory) = layer(torch.zeros(5, 7, 3))
        >>> h.shape, last.shape, memory.shape, bool((h[:, -1] == last[0]).all())
        (torch.Size([5, 7, 2]), torch.Size([1, 5, 2]), torch.Size([1, 5, 4]), True)
    """

    _kind = "LSTM"
    _make = nn.LSTM


class StochasticGRU(_StochasticRecurrent):
    r"""A gated recurrent network whose activations are drawn; arguments of `StochasticLSTM` without `proj_size`.

    With `sample="state"` the cells are $\theta_{ti} = l_i((1 - z_i)\,n_i + z_i\,h_{t-1})$, with the last draw in the
    place of the last state; states are the last draws, (layers * directions, batch, hidden_size).

    References:
        Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio, "Learning phrase representations using RNN
        encoder-decoder for statistical machine translation", 2014.

    Example:
        >>> layer = StochasticGRU(3, 2, bidirectional=True, distribution="bernoulli")
        >>> h, states = layer(torch.zeros(7, 5, 3))
        >>> h.shape, [state.shape for state in states]
        (torch.Size([7, 5, 4]), [torch.Size([2, 5, 2])])
    """

    _kind = "GRU"
    _make = nn.GRU


def _listed(shapes: list[Any]) -> str:
    return " and ".join(map(str, shapes))
