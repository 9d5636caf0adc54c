"""Examples of which some are clean and the others obfuscated, with parts of these hidden at every reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrostoch._manual import see
from pyrostoch.effects.trees import tensors_in
from pyrostoch.obfuscate.screening import Screening
from pyrostoch.protocols import Data

__all__ = ["MixedExamples", "indexed", "tensors_of"]


class _Pairs(Dataset[tuple[Tensor, Any]]):
    """Tensors as examples that can be picked by number."""

    def __init__(self, x: Tensor, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        own = {name: part[index] for name, part in self.y.items()} if isinstance(self.y, Mapping) else self.y[index]
        return self.x[index], own


def indexed(data: Data, what: str) -> Any:
    """Data as pairs `(x, y)` that can be picked by number.

    Args:
        data: Tensors `(x, y)`, or a map-style data set of such pairs.
        what: Name of the data in error messages.

    Returns:
        A data set.

    Raises:
        TypeError: They are a loader, a stream, dictionaries, or have several inputs.
        ValueError: There are not as many inputs as targets.

    Example:
        >>> import torch
        >>> data = indexed((torch.zeros(3, 2), torch.arange(3)), "data")
        >>> len(data), data[2][1]
        (3, tensor(2))
    """
    if isinstance(data, (DataLoader, IterableDataset)):
        raise TypeError(
            f"{what}: examples are picked by number, which a {type(data).__name__} cannot do; give tensors (x, y) or a "
            f"map-style data set{see('how-to/progressive_training')}"
        )
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        x, y = data
        counts = {len(part) for part in (y.values() if isinstance(y, Mapping) else (y,))}
        if counts != {len(x)}:
            raise ValueError(f"{what}: expected as many targets as inputs, {len(x)}, got {sorted(counts)}")
        return _Pairs(x, y)  # type: ignore[arg-type]
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (tuple, list, Mapping)):
        if not len(data):
            raise ValueError(f"{what}: expected at least one example, got none")
        first = data[0]
        if isinstance(first, (tuple, list)) and len(first) == 2 and isinstance(first[0], Tensor):
            return data
        got = f"items of type {type(first).__name__}"
    else:
        got = type(data).__name__
    raise TypeError(
        f"{what}: expected tensors (x, y) or a map-style data set of pairs (x, y), whose input x is one tensor, got "
        f"{got}{see('how-to/progressive_training')}"
    )


def tensors_of(data: Any) -> list[Tensor]:
    """The tensors of data that are held in memory; none of a data set of the user's own.

    Args:
        data: As `indexed` returns it.
    """
    return list(tensors_in((data.x, data.y))) if isinstance(data, _Pairs) else []


class MixedExamples(Dataset[tuple[Tensor, Any]]):
    """Clean examples, and behind them obfuscated ones, in which parts are hidden anew at each reading.

    Args:
        clean: The clean examples, a data set of pairs.
        obfuscated: The inputs of the others, as they were sent.
        targets: Their targets.
        screening: What hides parts of them; `None` for nothing.

    Example:
        >>> import torch
        >>> clean = indexed((torch.ones(2, 3), torch.arange(2)), "data")
        >>> mixed = MixedExamples(clean, torch.full((1, 3), 5.0), [torch.tensor(7)], None)
        >>> len(mixed), mixed[0], mixed[2]
        (3, (tensor([1., 1., 1.]), tensor(0)), (tensor([5., 5., 5.]), tensor(7)))
    """

    def __init__(self, clean: Any, obfuscated: Tensor, targets: list[Any], screening: Screening | None) -> None:
        self._clean, self._obfuscated, self._targets, self._screening = clean, obfuscated, targets, screening

    def __len__(self) -> int:
        return len(self._clean) + len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index < len(self._clean):
            x, y = self._clean[index]
            return x, y
        row = index - len(self._clean)
        hidden = self._obfuscated[row]
        if self._screening is not None:
            hidden = self._screening(hidden[None])[0]
        return hidden, self._targets[row]
