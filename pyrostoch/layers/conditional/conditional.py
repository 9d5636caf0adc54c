"""Layers of which every class has its own: deterministic or stochastic, chosen by labels or combined by a selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count
from pyrostoch._manual import see
from pyrostoch.effects.activation import random_activation
from pyrostoch.effects.activation_sites import site_names
from pyrostoch.effects.checkpointing import inside_torch_checkpoint
from pyrostoch.layers.activations import Gradient
from pyrostoch.layers.conditional.activation import ConditionalActivation, is_traced
from pyrostoch.layers.conditional.classes import batch_axis, by_class, by_label, core_of
from pyrostoch.layers.conditional.combine import COMBINATIONS, Combination
from pyrostoch.layers.conditional.hard import HardSelection, check_classes, check_selection, known_selection
from pyrostoch.layers.conditional.reach import reach
from pyrostoch.layers.conditional.soft import GatedSelection, SoftSelection
from pyrostoch.layers.partial import Partial
from pyrostoch.moments import Moments
from pyrostoch.moments.table import refuse

__all__ = ["Conditional"]

# How far sums of probabilities may be from 1, in single precision.
_ROUNDING = 1e-3

#: What takes the place of a class where there is none.
Background = Literal["class", "zero", "pass"]


class Conditional(nn.Module):
    r"""A layer of its own for every class: $h \sim p(h; \theta_c(x))$ for an example of class c.

    With known classes, `layer(x, labels=y)`, each example runs through the layer of its class only. Where they are not
    known a selection $\pi$ combines the classes, `layer(x, selection=pi)`: with `where="input"` class c reads
    $x \otimes \pi_c$, with `where="output"` its distribution is weighted by $\pi_c$. A class that is selected nowhere
    in what an output depends on gives it neither mean nor noise.

    Inside a network nothing has to be handed on: the layer takes the classes that are known (`HardSelection`, entered
    by `with`, or as a further input of a network by `accept_labels`), else its own `selection`, else raises an error.

    The activations are a Pyro site `name.activation` where the layers have a prior, p(h), which all classes share.

    Args:
        make_layer: Makes the layer of one class: a stochastic one, or any module that returns one activation. It is
            called once for each class.
        num_classes: Number of classes.
        selection: The selection where classes are not known: `SoftSelection`, `GatedSelection`, or a module that maps
            the input to a tensor (batch, classes, \*shape).
        where: What the selection multiplies: the `"input"`, or the `"output"`.
        combine: How several classes become one distribution; see `Combined`. Deterministic layers are added.
        background: What there is at places without a class: `"class"`, one more class; `"zero"`, nothing; `"pass"`, the
            input itself, in clear text. Selections then have `num_classes + 1` tensors, the last for the background.
        gradient: How draws from a mixture are differentiated: `"straight-through"`, `"relaxed"` or `"score"`.
        by_example: Names of further inputs that have an entry for each example.

    Attributes:
        classes: The layer of each class.
        activation: The random activation; `None` for deterministic layers.
        selection: As given; it may be set later.

    Raises:
        ValueError: A setting does not fit the layers.

    References:
        Jacobs, Jordan, Nowlan, Hinton, "Adaptive mixtures of local experts", 1991; Yang, Bender, Le, Ngiam, "CondConv:
        conditionally parameterized convolutions for efficient inference", 2019.

    Example:
        >>> from pyrostoch.layers import GatedSelection, StochasticLinear
        >>> layer = Conditional(lambda: StochasticLinear(3, 2), 4, GatedSelection(nn.Linear(3, 4)), where="output")
        >>> x = torch.randn(5, 3)
        >>> layer(x).shape, layer(x, labels=torch.tensor([0, 3, 3, 1, 0])).shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    #: Classes that do not occur are not used; `fit` warns of those that never do.
    chooses_parts = True
    #: 1 for each class that has occurred in training with known labels; real, since whole numbers may tell which
    #: examples meet, and are looked at in each step.
    seen: Tensor

    def __init__(
        self,
        make_layer: Callable[[], nn.Module],
        num_classes: int,
        selection: nn.Module | None = None,
        *,
        where: Literal["input", "output"] = "input",
        combine: Combination = "shared",
        background: Background | None = None,
        gradient: Gradient | None = None,
        by_example: Sequence[str] = ("src_key_padding_mask",),
    ) -> None:
        super().__init__()
        if isinstance(make_layer, nn.Module) or not callable(make_layer):
            raise TypeError(
                f"Conditional make_layer: expected a function that makes the layer of one class, such as lambda: "
                f"StochasticLinear(3, 2), got {type(make_layer).__name__}"
            )
        self.num_classes = check_count("Conditional num_classes", num_classes)
        self.where = check_choice("Conditional where", where, ["input", "output"])
        self.combine: Combination = check_choice("Conditional combine", combine, list(COMBINATIONS))  # type: ignore[assignment]
        if background is not None:
            check_choice("Conditional background", background, ["class", "zero", "pass"])
        self.background, self.by_example = background, tuple(by_example)
        self.classes = nn.ModuleList(make_layer() for _ in range(num_classes + (background == "class")))
        self.selection = selection
        self._check_layers()
        self._check_mixture()
        self.batch_axis = batch_axis(self.classes[0])
        core = core_of(self.classes[0])
        self.activation = None if core is None else ConditionalActivation(core, combine, gradient)
        for layer in self.classes:
            if (own := core_of(layer)) is not None:  # the prior is that of the activation, whatever the class
                own.prior, own.gradient = None, own.family.gradients[0]
        self.register_buffer("seen", torch.zeros(len(self.classes)))

    def _check_mixture(self) -> None:
        if not self.combine.startswith("mixture"):
            return
        if self.where == "input" or self.background in ("zero", "pass"):
            raise ValueError(
                f"Conditional combine={self.combine!r}: a class is drawn with the probabilities that a selection of "
                "the output gives, which sum to 1; use where='output', and background=None or 'class'"
                f"{see('how-to/conditional_layers')}"
            )

    def _check_layers(self) -> None:
        first = self.classes[0]
        if len({id(layer) for layer in self.classes}) < len(self.classes):
            raise ValueError("Conditional: expected a new layer from every call of make_layer, got one twice")
        cores = [core_of(layer) for layer in self.classes]
        if any(not _alike(cores[0], core) for core in cores[1:]):
            raise ValueError(
                "Conditional: expected the layers of all classes to have one distribution, gradient, temperature, "
                "channels, noise_factor and kind of prior, since they make one activation"
                f"{see('how-to/conditional_layers')}"
            )
        if core_of(first) is None:
            if self.combine != "shared":
                raise ValueError(
                    f"Conditional combine: {type(first).__name__} layers have no distribution of their activations to "
                    f"combine by {self.combine!r}; they are added, which is the default"
                    f"{see('how-to/conditional_layers')}"
                )
            if inner := site_names(first):
                raise ValueError(
                    f"Conditional: {type(first).__name__} draws activations with a prior, or by the score function, "
                    f"inside ({', '.join(inner)}), of which each class would see some examples only; use prior=None, "
                    f"or a stochastic layer itself{see('how-to/conditional_layers')}"
                )
        elif self.background == "pass" and core_of(first).prior is not None:  # type: ignore[union-attr]
            raise ValueError(
                "Conditional background='pass': what passes in clear text has no finite rate; use prior=None, or "
                f"background='class'{see('how-to/conditional_layers')}"
            )

    @property
    def noise_factor(self) -> float:
        """Factor of the noise, 1 unless it is set; see `StochasticLayer`."""
        return 1.0 if self.activation is None else self.activation.noise_factor

    @noise_factor.setter
    def noise_factor(self, factor: float) -> None:
        if self.activation is None:
            raise ValueError("Conditional noise_factor: the layers of the classes are deterministic, or draw inside")
        self.activation.noise_factor = factor

    def forward(
        self,
        x: Tensor,
        *,
        labels: Tensor | None = None,
        selection: HardSelection | Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        r"""The activations: drawn, or what the interpretation puts in their place.

        Args:
            x: Inputs, as the layers of the classes take them.
            labels: The class of each example, (batch,).
            selection: In place of labels, a hard selection, or a tensor (batch, classes, \*shape).
            **inputs: Further inputs of the layers, such as masks.

        Raises:
            ValueError: No class is known and there is no selection; a class is unknown; or shapes do not fit.
        """
        if isinstance(x, Moments):
            refuse(type(self).forward, "the layers of several classes have no rule")
        ordered = x.transpose(0, 1) if self.batch_axis else x
        chosen, is_own = self._chosen(ordered, labels, selection)
        if isinstance(chosen, HardSelection) and chosen.labels is not None:
            h = self._activations(self._by_label(ordered, chosen, inputs))
        else:
            h = self._selected(ordered, chosen, inputs, is_own=is_own)
        return h.transpose(0, 1) if self.batch_axis else h

    def _chosen(
        self, x: Tensor, labels: Tensor | None, selection: HardSelection | Tensor | None
    ) -> tuple[HardSelection | Tensor, bool]:
        """The selection, and whether it is a sigmoid or a softmax of the layer's own."""
        if labels is not None and selection is not None:
            raise ValueError("Conditional: expected labels or a selection, got both")
        if labels is not None:
            return HardSelection(labels), False
        if selection is not None:
            return selection, False
        if (known := known_selection()) is not None:
            if inside_torch_checkpoint():
                raise ValueError(
                    "Conditional: it runs under torch.utils.checkpoint, which would run it again for the gradients "
                    "when the classes are not known any more; give them to the layer, layer(x, labels=y), or leave "
                    f"checkpointing out{see('how-to/conditional_layers')}"
                )
            return known, False
        if self.selection is None:
            raise ValueError(
                "Conditional: the class of each example is not known, and the layer has no selection to combine them; "
                "give labels=, enter HardSelection(labels) around the network, train by fit(labels='known'), or set "
                f"selection=SoftSelection(...) or GatedSelection(...){see('how-to/conditional_layers')}"
            )
        if not isinstance(self.selection, nn.Module):
            raise TypeError(
                f"Conditional selection: expected a module, such as SoftSelection or GatedSelection, got "
                f"{type(self.selection).__name__}; known classes are given by labels=, by HardSelection(labels) "
                f"entered around the network, or by labels='known'{see('how-to/conditional_layers')}"
            )
        found: Tensor = self.selection(x)
        return found, isinstance(self.selection, (SoftSelection, GatedSelection))

    def _by_label(self, x: Tensor, chosen: HardSelection, inputs: dict[str, Any]) -> tuple[Any, ...]:
        labels = torch.as_tensor(chosen.labels)
        if not len(x):
            raise ValueError("Conditional: expected at least one example, got none")
        if len(labels) != len(x):
            raise ValueError(
                f"Conditional labels: expected one for each of {len(x)} examples, got {len(labels)}"
                f"{see('how-to/conditional_layers')}"
            )
        check_classes(labels, len(self.classes), "Conditional labels")
        labels = labels.to(x.device, torch.int64)
        self._see(labels)
        found = by_label(list(self.classes), x, labels, inputs, self.by_example)
        if chosen.absent is not None and self.activation is not None:
            partial = Partial(found)
            partial.absent = chosen.absent.to(x.device)
            return partial
        return found

    def _see(self, classes: Tensor | list[int]) -> None:
        """Keep that classes have occurred in training."""
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.seen[classes] = 1.0

    def _activations(self, outputs: tuple[Any, ...]) -> Tensor:
        if self.activation is None:
            found: Tensor = outputs[0]
            return found
        drawn: Tensor = random_activation(outputs, self.activation)  # type: ignore[assignment]
        return drawn

    def _selected(self, x: Tensor, chosen: HardSelection | Tensor, inputs: dict[str, Any], *, is_own: bool) -> Tensor:
        """The activations for a selection of positions."""
        hard = isinstance(chosen, HardSelection)
        selection = torch.as_tensor(chosen.tensor if isinstance(chosen, HardSelection) else chosen).to(x.device)
        tensors = self.num_classes + (self.background is not None)
        if selection.dim() == 2:
            selection = selection.reshape(*selection.shape, *(1,) * (x.dim() - 1))
        if self.where == "input":
            if not x.is_floating_point():
                raise ValueError(
                    f"Conditional where='input': inputs of {x.dtype} cannot be multiplied by a selection; use "
                    f"where='output', or real inputs{see('how-to/conditional_layers')}"
                )
            check_selection(selection, (x.shape[0], tensors, *x.shape[1:]), "Conditional selection of the input")
        elif selection.dim() < 2 or tuple(selection.shape[:2]) != (x.shape[0], tensors):
            check_selection(
                selection, (x.shape[0], tensors, *selection.shape[2:]), "Conditional selection of the output"
            )
        selection = selection.to(x.dtype if x.is_floating_point() else torch.get_default_dtype())
        if not hard or self.combine.startswith("mixture"):  # a hard one has been checked
            self._check_numbers(selection, is_own=is_own)
        clear = selection[:, self.num_classes :] if self.background == "pass" else None
        selection = selection[:, : len(self.classes)]
        found = self._stack(x, selection, inputs, sparse=hard)
        h = self._activations(found) if self.activation is not None else (found[0] * found[-1]).sum(1)
        return h if clear is None else self._with_clear_text(h, x, clear[:, 0])

    def _check_numbers(self, selection: Tensor, *, is_own: bool) -> None:
        """Raise an error for numbers that are none of a selection, or no probabilities where a class is drawn."""
        mixture = self.combine.startswith("mixture")
        if is_own:
            if mixture and getattr(self.selection, "form", "") != "softmax":
                raise ValueError(
                    f"Conditional combine={self.combine!r}: expected a selection with form='softmax', whose classes "
                    f"sum to 1, got 'sigmoid'{see('how-to/conditional_layers')}"
                )
        elif bool(((selection < 0) | (selection > 1) | torch.isnan(selection)).any()):
            raise ValueError(
                f"Conditional selection: expected numbers from 0 to 1, got {selection.min().item():g} to "
                f"{selection.max().item():g}{see('how-to/conditional_layers')}"
            )
        elif mixture and bool(((selection.sum(1) - 1.0).abs() > _ROUNDING).any()):
            raise ValueError(
                f"Conditional combine={self.combine!r}: expected a selection whose classes sum to 1 at every place, "
                f"got sums from {selection.sum(1).min().item():g} to {selection.sum(1).max().item():g}"
                f"{see('how-to/conditional_layers')}"
            )
        if self.combine == "mixture-by-example" and selection[0, 0].numel() != 1:
            raise ValueError(
                "Conditional combine='mixture-by-example': expected one number for each example and class, got a "
                f"selection of shape {tuple(selection.shape)}{see('how-to/conditional_layers')}"
            )

    def _stack(self, x: Tensor, selection: Tensor, inputs: dict[str, Any], *, sparse: bool) -> tuple[Any, ...]:
        """The outputs of the selected classes, (batch, classes, ...), and the number of each class there."""
        layers = list(self.classes)
        if sparse:  # classes that occur at all
            chosen = (selection != 0).transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist() or [0]
            selection, layers = selection[:, chosen], [self.classes[c] for c in chosen]
            self._see(chosen)
        if self.where == "input":
            given = x[:, None] * selection
            outputs, absent = by_class(layers, given, inputs, own=True)
            weights = self._reached(layers, selection != 0, given.shape, outputs[0], inputs)
        else:
            outputs, absent = by_class(layers, x, inputs, own=False)
            if selection[0, 0].numel() == 1:
                selection = selection.reshape(x.shape[0], len(layers), *(1,) * (outputs[0].dim() - 2))
            check_selection(
                selection, (x.shape[0], len(layers), *outputs[0].shape[2:]), "Conditional selection of the output"
            )
            self._check_channels(selection)
            weights = selection.to(outputs[0].dtype).expand(outputs[0].shape)
        if self.activation is None:
            return (*outputs, weights)
        return self.activation.selected(outputs, weights, absent)

    def _check_channels(self, selection: Tensor) -> None:
        """Raise an error where channels that belong together have numbers of their own."""
        if self.activation is None or not self.activation.family.event:
            return
        channels = self.activation.channels
        size = selection.shape[channels + 1 if channels >= 0 else channels]
        if size != 1:
            raise ValueError(
                f"Conditional selection: the channels of {type(self.activation.family).__name__} activations belong "
                f"together; expected one number for all of them (a size of 1), got {size}"
                f"{see('how-to/conditional_layers')}"
            )

    def _reached(
        self, layers: list[Any], selected: Tensor, shape: torch.Size, output: Tensor, inputs: dict[str, Any]
    ) -> Tensor:
        """1 where a class that is selected reaches its output, (batch, classes, ...), else 0."""
        if not is_traced() and bool(selected.all()):
            return torch.ones_like(output)
        selected = selected.expand(shape)
        found = [reach(layer, selected[:, i], output[:, 0].shape, inputs) for i, layer in enumerate(layers)]
        return torch.stack(found, 1).to(output.dtype)

    def _with_clear_text(self, h: Tensor, x: Tensor, clear: Tensor) -> Tensor:
        if h.shape != x.shape:
            raise ValueError(
                f"Conditional background='pass': expected activations in the shape of the input {tuple(x.shape)}, got "
                f"{tuple(h.shape)}; use background='class' or 'zero'{see('how-to/conditional_layers')}"
            )
        return h + clear * x

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_classes}, where={self.where!r}, combine={self.combine!r}, background={self.background!r}"


def _alike(one: Any, other: Any) -> bool:
    """Whether two layers' activations have the same distribution but for its parameters."""
    if one is None or other is None:
        return one is other
    names = ("_family", "gradient", "temperature", "channels", "noise_factor")
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    return same and type(one.prior) is type(other.prior)
