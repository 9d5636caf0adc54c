"""Hard selection: which class every example, or every pixel, belongs to, where that is known."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch._structure import KnownClasses, Structure
from pyrostoch.data.objects import are_within, in_image

__all__ = [
    "HardSelection",
    "accept_labels",
    "accepting_labels",
    "check_classes",
    "check_selection",
    "covered",
    "known_selection",
    "labels_are_given",
]

_STATE = threading.local()


def _stack() -> list[HardSelection | None]:
    if not hasattr(_STATE, "selections"):
        _STATE.selections = []
    found: list[HardSelection | None] = _STATE.selections
    return found


def known_selection() -> HardSelection | None:
    """The selection that is known in this thread: the innermost one that has been entered by `with`.

    Example:
        >>> with HardSelection(torch.tensor([0, 2])):
        ...     known_selection().labels
        tensor([0, 2])
        >>> known_selection() is None
        True
    """
    return next((selection for selection in reversed(_stack()) if selection is not None), None)


class HardSelection:
    r"""Known classes for `Conditional` layers: a label for each example, or for each pixel 0 or 1 for every class.

    Give it to a layer, `layer(x, selection=HardSelection(y))`, or enter it around a network whose layers are to find
    it, `with HardSelection(y): network(x)`, in the same thread. Nothing is taken from the targets of training by
    itself.

    Args:
        labels: Class indices, (batch,).
        tensor: In place of labels, 0 or 1 for each class, (batch, classes, \*shape), where an axis of `shape` may have
            size 1. More than one class may be 1 at a place: they all contribute.

    Raises:
        ValueError: Both or neither are given, labels are not whole numbers, or the tensor has other values.

    Example:
        >>> HardSelection(torch.tensor([1, 0])).dense(2, (3,)).tolist()
        [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]
    """

    def __init__(self, labels: Tensor | None = None, *, tensor: Tensor | None = None) -> None:
        if (labels is None) == (tensor is None):
            raise ValueError("HardSelection: expected either labels, one for each example, or tensor=, one for pixels")
        if labels is not None and (labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool):
            raise ValueError(
                f"HardSelection labels: expected class indices of shape (batch,), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}{see('how-to/conditional_layers')}"
            )
        if tensor is not None and (tensor.dim() < 3 or not _is_binary(tensor)):
            raise ValueError(
                "HardSelection tensor: expected 0 or 1 of shape (batch, classes, *shape of an example), got shape "
                f"{tuple(tensor.shape)}{see('how-to/conditional_layers')}"
            )
        self.labels, self.tensor = labels, tensor
        #: Examples of which nothing is selected, if they are known; set by `SelectedAt`.
        self.absent: Tensor | None = None

    @classmethod
    def from_boxes(
        cls, boxes: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int, size: tuple[int, int]
    ) -> HardSelection:
        """Pixels selected by boxes; what no box covers is the last class, the background.

        A pixel belongs to a box if its center lies in it. A box without a center selects the pixel it lies in.

        Args:
            boxes: For each image its boxes, (number, 4), as left, top, right, bottom in pixels.
            labels: For each image the class of each box, (number,).
            num_classes: Number of classes without the background.
            size: Height and width.

        Returns:
            A selection whose `tensor` is boolean, of shape (batch, num_classes + 1, 1, height, width).

        Raises:
            ValueError: Numbers do not fit, a class is unknown, or a box is empty or outside of the image.

        Example:
            >>> box = torch.tensor([[0.0, 0.0, 2.0, 1.0]])
            >>> HardSelection.from_boxes([box], [torch.tensor([1])], 2, (2, 3)).tensor[0, :, 0].int().tolist()
            [[[0, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 1, 1]]]
        """
        height, width = size
        masks = []
        for index, given in enumerate(boxes):
            if given.dim() != 2 or given.shape[1] != 4:
                raise ValueError(f"boxes of image {index}: expected shape (number, 4), got {tuple(given.shape)}")
            left, top, right, bottom = (edge[:, None] for edge in given.to(torch.float64).unbind(1))
            known = are_within(given, size)
            if not bool(known.all()):
                wrong = given[~known][0].tolist()
                raise ValueError(f"boxes of image {index}: expected {in_image(size)}, got {wrong}")
            columns, rows = covered(left, right, width), covered(top, bottom, height)
            masks.append(rows[:, :, None] & columns[:, None, :])
        return cls.from_masks(masks, labels, num_classes)

    @classmethod
    def from_masks(cls, masks: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int) -> HardSelection:
        """Pixels selected by masks of objects; what no mask covers is the last class, the background.

        Args:
            masks: For each image the masks of its objects, (number, height, width), 0 or 1 or boolean.
            labels: For each image the class of each object, (number,).
            num_classes: Number of classes without the background.

        Returns:
            A selection of shape (batch, num_classes + 1, 1, height, width).

        Raises:
            ValueError: Numbers or sizes do not fit, or a class is unknown.

        Example:
            >>> mask = torch.tensor([[[True, False]]])
            >>> HardSelection.from_masks([mask], [torch.tensor([0])], 1).tensor.flatten(1).tolist()
            [[True, False, False, True]]
        """
        check_count("num_classes", num_classes)
        if len(masks) != len(labels) or not len(masks):
            raise ValueError(f"selection: expected labels for each of {len(masks)} images, got {len(labels)}")
        sizes = {tuple(mask.shape[1:]) for mask in masks}
        if len(sizes) != 1 or any(mask.dim() != 3 for mask in masks):
            raise ValueError(
                f"masks: expected shape (number, height, width) of one size for all images, got "
                f"{', '.join(str(tuple(mask.shape)) for mask in masks[:3])}"
            )
        images = []
        for index, (mask, own) in enumerate(zip(masks, labels, strict=True)):
            if own.dim() != 1 or len(own) != len(mask):
                raise ValueError(
                    f"labels of image {index}: expected one for each of {len(mask)} objects, got shape "
                    f"{tuple(own.shape)}"
                )
            check_classes(own, num_classes, f"labels of image {index}")
            image = torch.zeros(num_classes + 1, *mask.shape[1:], dtype=torch.int64, device=mask.device)
            image.index_put_((own.long(),), (mask != 0).long(), accumulate=True)
            image[-1] = image[:-1].sum(0) == 0
            images.append(image > 0)  # not real, as experiments on a network move real inputs
        return cls(tensor=torch.stack(images)[:, :, None])

    def dense(self, num_classes: int, shape: tuple[int, ...]) -> Tensor:
        r"""The selection as a tensor of 0 and 1, (batch, classes, \*shape).

        Args:
            num_classes: Number of classes.
            shape: Shape of an example.

        Raises:
            ValueError: A class is unknown, or the selection of pixels has another shape.
        """
        if self.labels is not None:
            check_classes(self.labels, num_classes, "HardSelection labels")
            chosen = nn.functional.one_hot(self.labels.long(), num_classes).to(torch.get_default_dtype())
            return chosen.reshape(*chosen.shape, *(1,) * len(shape)).expand(*chosen.shape, *shape)
        given = torch.as_tensor(self.tensor)
        check_selection(given, (len(given), num_classes, *shape), "HardSelection tensor")
        return given.to(torch.get_default_dtype()).expand(len(given), num_classes, *shape)

    def clear_text(self) -> Tensor:
        """The share of each example's places that belong to the last class, the background, (batch,).

        In a layer with `background="pass"` that part of the input goes on as it is, without noise.

        Raises:
            ValueError: The selection has labels, and no background.

        Example:
            >>> mask = torch.tensor([[[True, False, False, False]]])
            >>> HardSelection.from_masks([mask], [torch.tensor([0])], 1).clear_text()
            tensor([0.7500])
        """
        if self.tensor is None:
            raise ValueError("HardSelection clear_text: a selection by labels has no background; give boxes or masks")
        return self.tensor[:, -1].flatten(1).to(torch.get_default_dtype()).mean(1)

    def __enter__(self) -> HardSelection:
        _stack().append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack = _stack()
        del stack[len(stack) - 1 - stack[::-1].index(self)]


def _is_binary(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool or not bool(((tensor != 0) & (tensor != 1)).any())


def covered(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Which of so many pixels have their center between two edges, or hold the middle where none has.

    Args:
        low: Lower edges, (boxes, 1).
        high: Upper edges, (boxes, 1).
        size: Number of pixels.

    Returns:
        Booleans, (boxes, size).
    """
    centers = torch.arange(size, dtype=low.dtype, device=low.device) + 0.5
    inside = (centers >= low) & (centers < high)
    middle = (0.5 * (low.clamp_min(0) + high.clamp_max(size))).floor().clamp(0, size - 1) + 0.5
    return torch.where(inside.any(1, keepdim=True), inside, centers == middle)


def check_classes(labels: Tensor, num_classes: int, what: str) -> None:
    """Raise an error for labels that are no classes.

    Args:
        labels: Class indices.
        num_classes: Number of classes.
        what: What they are, for the message.

    Raises:
        ValueError: There are others; the first is named.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"{what}: expected classes from 0 to {num_classes - 1}, got {int(wrong[0])}"
            f"{see('how-to/conditional_layers')}"
        )


def check_selection(selection: Tensor, expected: tuple[int, ...], what: str) -> None:
    """Raise an error for a selection of another shape; sizes of 1 stand for all positions.

    Args:
        selection: The selection.
        expected: The shape, (batch, classes, ...).
        what: What it is, for the message.

    Raises:
        ValueError: The shape does not fit.
    """
    shape = tuple(selection.shape)
    fits = len(shape) == len(expected) and shape[:2] == expected[:2]
    if not fits or any(size not in (1, wanted) for size, wanted in zip(shape[2:], expected[2:], strict=True)):
        raise ValueError(
            f"{what}: expected shape (batch, classes, *shape), here {expected}, where sizes of 1 stand for all "
            f"positions, got {shape}{see('how-to/conditional_layers')}"
        )


class _Enter:
    """Takes a network's last input as known classes, if there is one more than the network has."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs

    def __call__(self, module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        given, own = (args[self.inputs], args[: self.inputs]) if len(args) == self.inputs + 1 else (None, args)
        if args and isinstance(args[-1], KnownClasses):
            given, own = args[-1].labels, args[:-1]
        _stack().append(None)  # before anything that may raise an error, since the hook behind always takes it away
        if not isinstance(given, Tensor):
            return args
        if torch.compiler.is_exporting():
            raise ValueError(
                "labels: which classes occur is read from them, which a program that is exported cannot do; export the "
                f"network without labels, with its selection{see('how-to/conditional_layers')}"
            )
        _stack()[-1] = HardSelection(tensor=given) if given.dim() > 1 else HardSelection(given)
        return own


def _leave(module: nn.Module, args: object, output: object) -> None:
    _stack().pop()


def accept_labels(network: nn.Module, inputs: int = 1) -> nn.Module:
    """Let a network be called with known classes as one more input, without a change of its code.

    `network(x, labels)` then is `network(x)` within `HardSelection(labels)`, and `network(x)` what it was. As an input,
    the labels are cut into batches, moved and checked with the others.

    Args:
        network: A network with `Conditional` layers.
        inputs: Number of its own inputs.

    Returns:
        The network.

    Example:
        >>> from pyrostoch.layers import Conditional
        >>> network = accept_labels(nn.Sequential(Conditional(lambda: nn.Linear(2, 2), 3), nn.ReLU()))
        >>> network(torch.zeros(4, 2), torch.tensor([0, 1, 2, 1])).shape
        torch.Size([4, 2])
    """
    if (known := _hook_of(network)) is not None:
        known.inputs = inputs
    else:
        _register(network, inputs)
    return network


def _hook_of(network: nn.Module) -> _Enter | None:
    return next((hook for hook in network._forward_pre_hooks.values() if isinstance(hook, _Enter)), None)


def _register(network: nn.Module, inputs: int) -> list[RemovableHandle]:
    return [
        network.register_forward_pre_hook(_Enter(check_count("inputs", inputs))),
        network.register_forward_hook(_leave, always_call=True),
    ]


def labels_are_given(network: nn.Module, x: object) -> bool:
    """Whether classes are known to a network's conditional layers in a call: from around it, or as an input.

    Args:
        network: The network.
        x: Its input, or a tuple of inputs.
    """
    hook, count = _hook_of(network), len(x) if isinstance(x, tuple) else 1
    if isinstance(x, tuple) and x and isinstance(x[-1], Structure):
        return x[-1].labels or known_selection() is not None
    return known_selection() is not None or (hook is not None and count == hook.inputs + 1)


@contextlib.contextmanager
def accepting_labels(network: nn.Module) -> Iterator[None]:
    """Take labels that come with the inputs (`with_labels`) within the block; the network is as it was behind it.

    Args:
        network: The network.
    """
    handles = [] if _hook_of(network) is not None else _register(network, 1)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
