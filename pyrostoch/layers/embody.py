r"""Stochastic layers around an existing network: in front of it, or at a place inside it.

With a network N, regular layers L and a stochastic layer S, and with N split in two at one of its modules:

| function | what is computed |
| --- | --- |
| `prepend(N, S, L)` | $x \to L \to S \to N$ |
| `insert(N, at, S)` | $N_1(x) \to S \to N_2$ |
| `merge_then_sample(N, at, S, L, ...)` | merge($N_1(x)$, $L(x)$) $\to S \to N_2$ |
| `sample_then_merge(N, at, S, L, ...)` | merge($N_1(x)$, $S(L(x))$) $\to N_2$ |

The network is called as it is, with the output of the module `at` replaced while it runs; its own code stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, name_list
from pyrostoch._manual import see
from pyrostoch._seeds import forked
from pyrostoch.effects.checkpointing import inside_torch_checkpoint
from pyrostoch.layers.conditional import Conditional, HardSelection

__all__ = ["Embodied", "Merge", "Prepended", "insert", "merge_then_sample", "prepend", "sample_then_merge"]

#: How two tensors become one: by name, or by a function of the main branch and the other one.
Merge = Literal["add", "multiply", "concatenate"] | Callable[[Tensor, Tensor], Tensor]


def prepend(network: nn.Module, stochastic: nn.Module, layers: nn.Module | None = None) -> Prepended:
    r"""A stochastic layer in front of a network: $x \to L \to S \to N$.

    Args:
        network: The network N.
        stochastic: The stochastic layer S, whose output has the shape of the network's input.
        layers: Regular layers L in front of it; none by default.

    Example:
        >>> from pyrostoch.layers import StochasticAdditive
        >>> prepend(nn.Linear(3, 2), StochasticAdditive(3))(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """
    return Prepended(network, stochastic, layers)


class Prepended(nn.Module):
    """A network with a stochastic layer in front of it; made by `prepend`.

    Args:
        network: The network.
        stochastic: The stochastic layer.
        layers: Regular layers in front of it.

    Attributes:
        bypassed: Whether the network reads its input as it is; `obfuscate.bypassed` sets it.
    """

    bypassed: bool = False

    def __init__(self, network: nn.Module, stochastic: nn.Module, layers: nn.Module | None) -> None:
        super().__init__()
        self.layers, self.stochastic, self.network = layers, stochastic, network

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the network on the activations of the stochastic layer.

        Args:
            x: Its first input, which passes through the layers.
            *args: Its further inputs.
            **kwargs: The same by name.
        """
        if not self.bypassed:
            x = x if self.layers is None else _activation(self.layers(x))
            x = _activation(self.stochastic(x))
        return self.network(x, *args, **kwargs)


def _activation(output: Any) -> Any:
    """The activation among a module's outputs: the first, where it returns states besides, as recurrent ones do."""
    return output[0] if isinstance(output, tuple) else output


def insert(network: nn.Module, at: str, stochastic: nn.Module, *, example: Tensor) -> Embodied:
    r"""A stochastic layer behind one of a network's modules: $N_1(x) \to S \to N_2$.

    Args:
        network: The network N.
        at: Name of the module after whose output N is split.
        stochastic: The stochastic layer S, whose output has the shape that the rest of N expects.
        example: An input of the network, on which shapes are checked.

    Returns:
        The network with the layer, a module.

    Raises:
        ValueError: There is no such module, it is not called exactly once, or shapes do not fit.

    Example:
        >>> from pyrostoch.layers import StochasticLinear
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> insert(net, "1", StochasticLinear(4, 4), example=torch.zeros(5, 3))(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    return Embodied(network, at, stochastic, None, merge=_main, channels=None, sample_first=False, example=example)


def _main(main: Tensor, other: Tensor) -> Tensor:
    return main


def merge_then_sample(
    network: nn.Module,
    at: str,
    stochastic: nn.Module,
    layers: nn.Module | None = None,
    *,
    merge: Merge = "add",
    channels: int | None = None,
    example: Tensor,
) -> Embodied:
    """A stochastic layer inside a network, on what a module of it and other layers give together.

    Args:
        network: The network N.
        at: Name of the module after whose output N is split, such as `"features.3"`.
        stochastic: The stochastic layer S, whose output has the shape that the rest of N expects.
        layers: Regular layers L on the network's input; none by default, so that the input itself is merged.
        merge: `"add"`, `"multiply"`, `"concatenate"` (along the channels, with a learned 1x1 projection back to as many
            as the main branch has), or a function.
        channels: The axis of the channels for `"concatenate"`; the last of two axes, the second of four or five, and to
            be given for others, such as three: tokens have it last, sequences of a convolution second.
        example: An input of the network, on which shapes are checked.

    Returns:
        The network with the layer, a module.

    Raises:
        ValueError: There is no such module, it is not called exactly once, or shapes do not fit.

    Example:
        >>> from pyrostoch.layers import StochasticLinear
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.zeros(5, 3)
        >>> merge_then_sample(net, "1", StochasticLinear(4, 4), nn.Linear(3, 4), example=x)(x).shape
        torch.Size([5, 2])
    """
    return Embodied(
        network, at, stochastic, layers, merge=merge, channels=channels, sample_first=False, example=example
    )


def sample_then_merge(
    network: nn.Module,
    at: str,
    stochastic: nn.Module,
    layers: nn.Module | None = None,
    *,
    merge: Merge = "add",
    channels: int | None = None,
    example: Tensor,
) -> Embodied:
    """A stochastic layer beside a network, whose draws are merged with the output of one of its modules.

    Args:
        network: The network N.
        at: Name of the module after whose output N is split.
        stochastic: The stochastic layer S, on the output of the other layers.
        layers: Regular layers L on the network's input; none by default.
        merge: As in `merge_then_sample`.
        channels: As in `merge_then_sample`.
        example: An input of the network, on which shapes are checked.

    Returns:
        The network with the layer, a module.

    Raises:
        ValueError: There is no such module, it is not called exactly once, or shapes do not fit.

    Example:
        >>> from pyrostoch.layers import StochasticLinear
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> sample_then_merge(net, "1", StochasticLinear(3, 4), example=torch.zeros(5, 3))(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    return Embodied(network, at, stochastic, layers, merge=merge, channels=channels, sample_first=True, example=example)


class Embodied(nn.Module):
    """A network with a stochastic layer inside it; made by `merge_then_sample` and `sample_then_merge`.

    Args:
        network: The network.
        at: Name of the module after whose output it is split.
        stochastic: The stochastic layer.
        layers: Regular layers on the network's input.
        merge: How the two branches become one.
        channels: The axis of the channels, or `None` to find it.
        sample_first: Whether the other branch is sampled before it is merged.
        example: An input of the network, on which shapes are checked.

    Raises:
        ValueError: There is no such module, it is not called exactly once, or shapes do not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        at: str,
        stochastic: nn.Module,
        layers: nn.Module | None,
        *,
        merge: Merge,
        channels: int | None,
        sample_first: bool,
        example: Tensor,
    ) -> None:
        super().__init__()
        names = [name for name, _ in network.named_modules() if name]
        if at not in names:
            raise ValueError(f"embody: {type(network).__name__} has no module {at!r}; it has {name_list(names)}")
        if isinstance(merge, str):
            check_choice("embody merge", merge, ["add", "multiply", "concatenate"])
        self.network, self.stochastic, self.layers = network, stochastic, layers
        self.at, self.merge, self.channels, self.sample_first = at, merge, channels, sample_first
        self.projection: nn.Module | None = None
        self._try(example)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the network, with the output of the split module merged and sampled.

        Args:
            x: Its first input, which the other branch gets, too.
            *args: Its further inputs.
            **kwargs: The same by name.

        Raises:
            ValueError: The split module is not called exactly once, or shapes do not fit.
        """
        calls = 0
        # Before the network runs, which may write into its input.
        other = x.clone() if self.layers is None else _activation(self.layers(x))

        def replace(module: nn.Module, given: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            self._refuse_checkpointing()
            # Modules of other libraries return tuples, whose first entry is the activation.
            if isinstance(output, tuple):
                return (self._meet(output[0], other), *output[1:])
            return self._meet(output, other)

        handle = self.network.get_submodule(self.at).register_forward_hook(replace)
        try:
            result = self.network(x, *args, **kwargs)
        finally:
            handle.remove()
        if calls != 1:
            raise ValueError(
                f"embody: {type(self.network).__name__} calls its module {self.at!r} {calls} times in a pass; a "
                f"network can be split only at a module that is called once{see('how-to/stochastic_layers')}"
            )
        return result

    def _refuse_checkpointing(self) -> None:
        """Raise an error inside `torch.utils.checkpoint`, whose second run comes when the hook is gone."""
        if inside_torch_checkpoint():
            raise ValueError(
                f"embody: {type(self.network).__name__} runs its module {self.at!r} under torch.utils.checkpoint, "
                "which would run it again for the gradients without the stochastic layer; split elsewhere or leave "
                f"checkpointing out{see('how-to/stochastic_layers')}"
            )

    def _meet(self, main: Tensor, other: Tensor) -> Tensor:
        """What takes the place of the split module's output."""
        if self.sample_first:
            return self._merged(main, _activation(self.stochastic(other)))
        return _activation(self.stochastic(self._merged(main, other)))

    def _merged(self, main: Tensor, other: Tensor) -> Tensor:
        if callable(self.merge):
            return self.merge(main, other)
        if self.merge == "concatenate":
            axis = self._axis(main)
            self._check(main, other, except_axis=axis)
            joined = torch.cat([main, other], axis)
            if self.projection is None:
                raise RuntimeError("embody: the projection of a concatenation is made on the example")
            return self._projected(joined)
        self._check(main, other, except_axis=None)
        return main + other if self.merge == "add" else main * other

    def _projected(self, joined: Tensor) -> Tensor:
        """A learned linear map of the channels, the same at each position."""
        axis = self._axis(joined)
        projection: Any = self.projection
        return projection(joined.movedim(axis, -1)).movedim(-1, axis)

    def _axis(self, main: Tensor) -> int:
        """The axis of the channels."""
        if self.channels is not None:
            return self.channels % main.dim()
        if main.dim() not in (2, 4, 5):
            raise ValueError(
                f"embody: concatenation at {self.at!r} expects channels=, the axis of the channels, for an output with "
                f"{main.dim()} axes, {tuple(main.shape)}: -1 for tokens, 1 for sequences of a convolution"
            )
        return 1

    def _check(self, main: Tensor, other: Tensor, except_axis: int | None) -> None:
        shapes = [list(tensor.shape) for tensor in (main, other)]
        if except_axis is not None and len(shapes[0]) == len(shapes[1]):
            for shape in shapes:
                shape.pop(except_axis)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"embody: merging by {self.merge!r} at {self.at!r} expects branches of equal shapes"
                f"{'' if except_axis is None else ' but for their channels'}, got {tuple(main.shape)} from the "
                f"network and {tuple(other.shape)} from the other layers"
            )

    def _try(self, example: Tensor) -> None:
        """Make the projection and check the shapes, on an example."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()  # statistics of batch normalization stay as they are
            # Shapes are those of any class.
            axis = next((part.batch_axis for part in self.modules() if isinstance(part, Conditional)), 0)
            labels = HardSelection(torch.zeros(example.shape[axis], dtype=torch.int64, device=example.device))
            with torch.no_grad(), forked(example.device), labels:
                if self.merge == "concatenate":
                    self.projection = self._new_projection(example)
                self(example)
        except RuntimeError as error:  # of torch, which names neither the layer nor the place
            raise ValueError(
                f"embody: with {type(self.stochastic).__name__} at {self.at!r}, {type(self.network).__name__} does not "
                f"run on the example of shape {tuple(example.shape)}: {str(error).splitlines()[0]}; what is merged "
                "must fit the stochastic layer, and its output the rest of the network"
            ) from error
        finally:
            for module, training in modes:
                module.training = training

    def _new_projection(self, example: Tensor) -> nn.Module:
        sizes: list[tuple[int, int]] = []

        def measure(module: nn.Module, given: Any, output: Any) -> None:
            main = _activation(output)
            other = example if self.layers is None else _activation(self.layers(example))
            other = _activation(self.stochastic(other)) if self.sample_first else other
            self._check(main, other, except_axis=self._axis(main))
            sizes.append((main.shape[self._axis(main)], other.shape[self._axis(main)]))

        handle = self.network.get_submodule(self.at).register_forward_hook(measure)
        try:
            self.network(example)
        finally:
            handle.remove()
        if not sizes:
            raise ValueError(f"embody: {type(self.network).__name__} never calls its module {self.at!r} on the example")
        main, other = sizes[0]
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        return nn.Linear(main + other, main).to(like.device, like.dtype)

    def extra_repr(self) -> str:
        """The place and the merge."""
        return f"at={self.at!r}, merge={self.merge!r}, sample_first={self.sample_first}"
