"""Targets as known classes: the labels become one more input, which `Conditional` layers find."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor, nn

from pyrostoch._checks import check_choice, name_list
from pyrostoch._manual import see
from pyrostoch.layers.conditional import Conditional
from pyrostoch.layers.conditional.hard import accepting_labels, known_selection, labels_are_given
from pyrostoch.model import BayesianModel

__all__ = [
    "GivenLabels",
    "KnownLabels",
    "check_labels_around",
    "check_no_labels_around",
    "conditional_layers",
    "known_labels",
    "marked",
    "warn_of_unseen_classes",
]

#: Whether layers that are conditional on the class were given it; `None` for not at all.
KnownLabels = Literal["known"] | None

#: What a verb hands to layers that are conditional on the class: `"known"`, the targets, which are classes; what a
#: function makes of the targets, such as `layers.PixelClasses`; or nothing.
GivenLabels = KnownLabels | Callable[[Any], Tensor]


def conditional_layers(net: nn.Module) -> dict[str, Conditional]:
    """The conditional layers of a network by name.

    Args:
        net: The network.
    """
    return {name or "network": part for name, part in net.named_modules() if isinstance(part, Conditional)}


@contextlib.contextmanager
def known_labels(model: object, labels: GivenLabels) -> Iterator[None]:
    """Within the block, what reads data for a model hands their targets to its conditional layers, too.

    Args:
        model: A `BayesianModel` whose network has conditional layers.
        labels: `"known"`; a function of the targets; or `None`, where nothing of the targets reaches the network.

    Raises:
        ValueError: The network has no conditional layer.
        TypeError: The model is no `BayesianModel`.

    Example:
        >>> import torch, pyrostoch as ps
        >>> from pyrostoch.infer.items import reader_of
        >>> net = ps.layers.Conditional(lambda: nn.Linear(2, 3), 3)
        >>> model = BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> with known_labels(model, "known"):
        ...     x, y = reader_of(model).split((torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])))
        >>> x[1] is y
        True
    """
    if labels is None:  # also within a training that has them, in its callback
        before = getattr(model, "labels_from", None)
        if before is None:
            yield
            return
        try:
            model.labels_from = None  # type: ignore[attr-defined]
            yield
        finally:
            model.labels_from = before  # type: ignore[attr-defined]
        return
    if not isinstance(labels, str) and (isinstance(labels, type) or not callable(labels)):
        raise TypeError(
            "labels: expected 'known', for which the targets of the data are taken, or a function of the targets, such "
            f"as PixelClasses(...), got {type(labels).__name__}; predict(..., labels=) takes a tensor"
            f"{see('how-to/conditional_layers')}"
        )
    if isinstance(labels, str):
        check_choice("labels", labels, ["known"])
    if not isinstance(model, BayesianModel):
        raise TypeError(f"labels: expected a BayesianModel, got {type(model).__name__}")
    if not conditional_layers(model.net):
        raise ValueError(
            f"labels: {type(model.net).__name__} has no Conditional layer that could use them; leave it out"
            f"{see('how-to/conditional_layers')}"
        )
    before = model.labels_from
    with accepting_labels(model.net):
        try:
            model.labels_from = (lambda targets: targets) if isinstance(labels, str) else labels
            yield
        finally:
            model.labels_from = before


def check_no_labels_around(verb: str, model: object) -> None:
    """Raise an error inside of a `HardSelection`, whose labels are not those of the batches that a verb makes.

    Args:
        verb: Name of the verb.
        model: The model.

    Raises:
        ValueError: It runs inside of one, and the network has conditional layers.
    """
    net = getattr(model, "net", None)
    if known_selection() is not None and isinstance(net, nn.Module) and conditional_layers(net):
        raise ValueError(
            f"{verb}: it runs inside of a HardSelection, whose labels are those of one batch, while {verb} makes "
            f"batches of its own; use {verb}(labels='known'), or make the labels an input by layers.accept_labels"
            f"{see('how-to/conditional_layers')}"
        )


def check_labels_around(model: object, count: int | None) -> None:
    """Raise an error inside of a `HardSelection` for another number of examples, whose labels would be used again.

    Args:
        model: The model.
        count: Number of examples; `None` where it is not known.

    Raises:
        ValueError: It runs inside of one, the numbers differ, and the network has conditional layers.
    """
    net, selection = getattr(model, "net", None), known_selection()
    if selection is None or not isinstance(net, nn.Module) or not conditional_layers(net):
        return
    given: Any = selection.tensor if selection.labels is None else selection.labels
    if len(given) != count:
        raise ValueError(
            f"labels: it runs inside of a HardSelection of {len(given)} examples, and there are {count}; give labels= "
            f"instead, for all of them{see('how-to/conditional_layers')}"
        )


def marked(model: object, x: Any) -> KnownLabels:
    """`"known"` where a model's conditional layers are given classes in a call, whichever way; else `None`.

    Args:
        model: The model.
        x: Its inputs.
    """
    net = getattr(model, "net", None)
    return "known" if isinstance(net, nn.Module) and labels_are_given(net, x) else None


def warn_of_unseen_classes(net: nn.Module) -> None:
    """Warn of classes that never occurred in training with known labels: their kernels are as they started.

    Args:
        net: The network.

    Raises:
        ValueError: No label has reached a conditional layer at all.
    """
    for name, layer in conditional_layers(net).items():
        if not bool(layer.seen.any()):
            raise ValueError(
                f"layer {name!r}: labels='known', but no label has reached it; the network must call it with the "
                f"labels of its own batch{see('how-to/conditional_layers')}"
            )
        missing = (layer.seen == 0).nonzero().flatten().tolist()
        if missing:
            warnings.warn(
                f"layer {name!r}: class(es) {name_list([str(c) for c in missing], 20)} never occurred in training; "
                "their kernels are as they started",
                UserWarning,
                stacklevel=3,
            )
