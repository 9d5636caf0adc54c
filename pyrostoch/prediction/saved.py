"""Predictions of a whole data set in a folder: numbered NumPy files with an index, continued after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from pyrostoch._inputs import count_examples, take_examples
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch.infer.items import reader_of
from pyrostoch.prediction.prediction import Prediction
from pyrostoch.protocols import FlatInputs
from pyrostoch.records import Record
from pyrostoch.safefile import only_writer, remove_abandoned, temporary_name

__all__ = ["SavedPrediction", "parts_of", "write_parts"]

_INDEX = "index.json"
_FIELDS = ("log_probs", "mean", "variance", "total", "aleatoric", "epistemic")


@dataclass(frozen=True, eq=False)
class SavedPrediction(Record):
    """A prediction in a folder, one file for each field and part: `00003.log_probs.npy`.

    Args:
        folder: The folder.
        settings: Mode, number of samples and seed with which it was made.
        counts: The number of examples of each part.
        fields: What was predicted, by the names of `Prediction`; of several heads with the head's name and a dot
            before.

    Example:
        >>> import tempfile
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = ps.predict(model, ps.guides.Additive(model), torch.zeros(5, 2), out=folder, batch_size=2)
        ...     len(saved), saved.counts, saved.array("log_probs").shape
        (5, (2, 2, 1), (5, 3))
    """

    folder: Path
    settings: Mapping[str, Any]
    counts: tuple[int, ...]
    fields: tuple[str, ...]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> SavedPrediction:
        """Open a folder.

        Args:
            folder: The folder.

        Raises:
            FileNotFoundError: It has no index.
            ValueError: The prediction is not complete.
        """
        index = _read_index(Path(folder))
        if index is None:
            raise FileNotFoundError(f"prediction {folder}: expected a folder that predict(..., out=) has written")
        if not index["complete"]:
            raise ValueError(
                f"prediction {folder}: it was interrupted after {len(index['parts'])} parts; call predict(..., out=) "
                "with the same settings again, which makes the rest"
            )
        counts = tuple(part["examples"] for part in index["parts"])
        return cls(Path(folder), index["settings"], counts, tuple(index["fields"]))

    def array(self, field: str) -> np.ndarray[Any, Any]:
        """All values of a field, (n, ...), in memory.

        Args:
            field: One of `fields`.

        Raises:
            ValueError: There is no such field.
        """
        return np.concatenate(list(self.parts(field)))

    def parts(self, field: str) -> Iterator[np.ndarray[Any, Any]]:
        """The values of a field, part by part, each read from its file as it is used.

        Args:
            field: One of `fields`.

        Raises:
            ValueError: There is no such field.
        """
        if field not in self.fields:
            raise ValueError(f"field {field!r}: expected one of {', '.join(self.fields)}")
        yield from (np.load(_file(self.folder, k, field), mmap_mode="r") for k in range(len(self.counts)))

    def load(self) -> Prediction:
        """The whole prediction, in memory."""
        heads = list(dict.fromkeys(field.rpartition(".")[0] for field in self.fields))
        how: dict[str, Any] = {"mode": self.settings["mode"], "num_samples": self.settings["num_samples"]}
        found: dict[str, Prediction] = {}
        for head in heads:
            own = [field for field in self.fields if field.rpartition(".")[0] == head]
            values: dict[str, Any] = {field.rpartition(".")[2]: torch.from_numpy(self.array(field)) for field in own}
            found[head] = Prediction(**how, **values)
        return found[""] if heads == [""] else Prediction(**how, heads=found)

    def __len__(self) -> int:
        return sum(self.counts)

    def __str__(self) -> str:
        parts = f"{len(self.counts)} part" + "s" * (len(self.counts) != 1)
        return f"Prediction of {len(self)} examples in {parts}, {', '.join(self.fields)}, in {self.folder}"


def parts_of(model: Any, data: Any, size: int) -> Iterable[FlatInputs]:
    """Inputs in parts, in an order that is the same each time.

    Args:
        model: The model, which tells how items are read.
        data: Inputs, or a `DataLoader` of inputs, perhaps with targets, which are left out.
        size: Number of examples of a part; a loader decides itself.

    Raises:
        ValueError: The loader has a random order.
    """
    if isinstance(data, DataLoader):
        if not _keeps_order(data):
            raise ValueError(
                "predict out=: the DataLoader has an order of its own at each pass, so that nobody could tell which "
                f"prediction belongs to which example; use shuffle=False{see('how-to/predictor')}"
            )
        reader = reader_of(model)
        return (reader.inputs(item, "data") for item in data)
    in_dims = getattr(model, "in_dims", 0)
    count = count_examples(data, in_dims) or 1
    return (take_examples(data, slice(start, start + size), in_dims) for start in range(0, count, size))


def _keeps_order(loader: DataLoader[Any]) -> bool:
    if isinstance(loader.dataset, IterableDataset):
        return True
    inner = loader.batch_sampler if loader.batch_size is None else loader.sampler
    inner = inner.sampler if isinstance(inner, BatchSampler) else inner
    # Other samplers may have a fixed order: the checksums of a continued prediction tell.
    return isinstance(inner, SequentialSampler) or not isinstance(inner, RandomSampler)


def write_parts(
    folder: Path,
    parts: Iterable[FlatInputs],
    predict: Callable[[FlatInputs, int], Prediction],
    modules: Iterable[object],
    settings: Mapping[str, Any],
) -> SavedPrediction:
    """Predict part by part, and write each as it is made; parts that are there already are left.

    Args:
        folder: The folder, made if it is missing.
        parts: The inputs.
        predict: Predicts a part with a seed of its own.
        modules: Model and guide, of whose numbers the index has a checksum.
        settings: What the prediction depends on, as plain data; `seed` is drawn where it is `None`.

    Returns:
        The prediction.

    Raises:
        BlockingIOError: Another process writes it.
        ValueError: The folder holds something else, or a prediction of other data, weights or settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = f"prediction {folder}"
    with only_writer(folder / ".lock", place, "choose another folder, or wait", lambda error: error):
        remove_abandoned(folder)
        index = _read_index(folder)
        if index is None and any(path.name != ".lock" for path in folder.iterdir()):
            raise ValueError(f"{place}: the folder holds other files; choose an empty one")
        wanted = {**settings, "weights": _checksum(modules)}
        seed = settings["seed"] if index is None or settings["seed"] is not None else index["settings"]["seed"]
        wanted["seed"] = int(torch.randint(2**31, ())) if seed is None else seed
        if index is None:
            index = {"settings": wanted, "fields": [], "parts": [], "complete": False}
            _write_index(folder, index)
        changed = [name for name in wanted if wanted[name] != index["settings"].get(name)]
        if changed:
            raise ValueError(
                f"{place}: it was made with other {', '.join(changed)}; choose another folder, or remove this one"
            )
        done = 0
        for k, x in enumerate(parts):
            part = {"examples": count_examples(x) or 1, "inputs": _checksum_of_inputs(x)}
            if k < len(index["parts"]):
                if index["parts"][k] != part:
                    raise ValueError(f"{place}: part {k} was made of other inputs; choose another folder")
            else:
                _write_part(folder, k, index, predict(x, mixed_seed(wanted["seed"], k)))
                index["parts"].append(part)
                index["complete"] = False
                _write_index(folder, index)
            done = k + 1
        if done != len(index["parts"]) or not done:
            raise ValueError(f"{place}: expected {len(index['parts']) or 'some'} parts of inputs, got {done}")
        if not index["complete"]:
            index["complete"] = True
            _write_index(folder, index)
    return SavedPrediction.read(folder)


def _write_part(folder: Path, number: int, index: dict[str, Any], found: Prediction) -> None:
    values: dict[str, Tensor] = {}
    for head, one in (found.heads or {"": found}).items():
        own = {name: getattr(one, name) for name in _FIELDS if getattr(one, name) is not None}
        values |= {f"{head}.{name}" if head else name: value for name, value in own.items()}
    if index["fields"] and index["fields"] != list(values):
        raise ValueError(f"prediction {folder}: part {number} has {', '.join(values)}, the first {index['fields']}")
    index["fields"] = list(values)
    for name, value in values.items():
        _write(_file(folder, number, name), lambda stream, value=value: np.save(stream, value.cpu().numpy()))  # type: ignore[misc]


def _file(folder: Path, number: int, field: str) -> Path:
    return folder / f"{number:05d}.{field}.npy"


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    _write(folder / _INDEX, lambda stream: stream.write(json.dumps(index, indent=1).encode()))


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all."""
    temporary = temporary_name(path)
    with open(temporary, "xb") as stream:
        fill(stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _read_index(folder: Path) -> dict[str, Any] | None:
    path = folder / _INDEX
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        if {"settings", "fields", "parts", "complete"} <= set(found):
            return dict(found)
    except (ValueError, TypeError):
        pass
    raise ValueError(f"prediction {folder}: its {_INDEX} is not one that predict(..., out=) has written")


def _checksum(modules: Iterable[object]) -> str:
    """A checksum of all parameters and buffers."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items() if isinstance(module, nn.Module) else ():
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(_bytes_of(value))
    return digest.hexdigest()[:32]


def _checksum_of_inputs(x: FlatInputs) -> int:
    found = 0
    for part in x if isinstance(x, tuple) else (x,):
        found = zlib.crc32(_bytes_of(part) if isinstance(part, Tensor) else repr(part).encode(), found)
    return found


def _bytes_of(value: Tensor) -> memoryview:
    dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    flat: Any = dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
