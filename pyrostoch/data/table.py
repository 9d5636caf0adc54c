"""Tables in CSV files: read in a stream, their columns understood, split, and made tensors."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrostoch._checks import check_choice, name_list, suggest
from pyrostoch._manual import see
from pyrostoch.data.csv_file import read_table
from pyrostoch.data.schema import MISSING_TEXTS, Column, Schema, Task, are_missing, numbers_in
from pyrostoch.data.split import DataSplit

__all__ = ["Table", "load_table"]

# A column of text with more values is a name or a number of the row, of which nothing can be learned.
_MOST_CATEGORIES = 100
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ].*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}")
_TASKS = ("classification", "regression")
_PARTS = ("train", "test")
_ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".pq")


@dataclass(frozen=True, eq=False)
class Table:
    """A table, split and made tensors.

    Args:
        split: Training and test part, with standardized inputs.
        schema: How rows became inputs and targets.
        without_target: Number of rows that were left out, since their target is missing.
    """

    split: DataSplit
    schema: Schema
    without_target: int = 0


@dataclass
class _Seen:
    """What has been seen of a column."""

    numbers: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    first_text: tuple[int, str] = (0, "")
    missing_texts: set[str] = field(default_factory=set)

    def add(self, texts: Sequence[str], first: int) -> None:
        numbers = numbers_in(texts)
        others = np.flatnonzero(np.isnan(numbers))
        self.numbers += len(texts) - len(others)
        for row in others:
            text = texts[int(row)].strip()
            if text.lower() in MISSING_TEXTS:
                self.missing += 1
                self.missing_texts |= {text} - {""}
                continue
            if not self.texts:
                self.first_text = first + int(row), text
            # Beyond the limit it is enough to know that there are more.
            if len(self.texts) <= _MOST_CATEGORIES or text in self.texts:
                self.texts[text] += 1


def load_table(
    path: str | Path,
    target: str,
    *,
    test: float | str | Path = 0.2,
    task: Task | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Table:
    r"""Read a CSV or Parquet file as a data set.

    Columns of numbers are standardized with mean and standard deviation of the training rows. Columns of text become an
    entry for each category of the training rows. Where values of a column are missing, it has one more entry that says
    so, and a number is replaced by the mean. A target of numbers is a regression, one of text a classification. The
    file is read three times, block by block, so that no more than the numbers are in memory.

    Args:
        path: A CSV file with a header, or a Parquet file.
        target: Name of the column of the target. Rows whose target is missing are left out.
        test: What the test part is: a fraction of the rows, drawn by the seed; the name of a column with `"train"` or
            `"test"` in each row; or the path of another file with the same columns.
        task: `"classification"` or `"regression"`, where the target is not what it looks like.
        drop: Columns to leave out.
        categorical: Columns of numbers that stand for categories, such as codes.
        seed: Seed of the draw of the test rows.
        dtype: Type of inputs and regression targets.

    Returns:
        The data set, and how its rows became numbers.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column does not exist, has text among numbers, dates or too many categories; there is one class
            only, or no row; or the file is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "houses.csv"
        ...     rows = [f"{i},{'AB'[i % 2]},{10 * i}" for i in range(20)]
        ...     _ = path.write_text("\n".join(["rooms,city,price", *rows]))
        ...     table = load_table(path, "price")
        >>> print(table.split)
        houses.csv [houses.csv]: regression, input 3; 16 training and 4 test examples; houses.csv
        >>> table.schema.entries
        ('rooms', 'city=A', 'city=B')
    """
    path = Path(path)
    other = _other_file(path, test)
    column = test if isinstance(test, str) and other is None else None
    seen, header, count = _look(path)
    kept = _check_columns(path, header, target, drop, column, categorical)
    if count == 0:
        raise ValueError(f"{path}: it has a header, but no rows")
    if seen[target].missing == count:
        raise ValueError(f"{path}: every value of the target {target!r} is missing")
    found_task = task or ("regression" if seen[target].numbers and not seen[target].texts else "classification")
    check_choice("task", found_task, _TASKS)
    if found_task == "regression" and seen[target].texts:
        row, text = seen[target].first_text
        raise ValueError(f"{path}, row {row}: the target {target!r} is {text!r}, no number, for a regression")
    if found_task == "classification" and seen[target].missing_texts:
        warnings.warn(
            f"{path}: rows whose target {target!r} is {name_list(sorted(seen[target].missing_texts))} are left out, as "
            "those that lack one; if that is a class, give it another name",
            UserWarning,
            stacklevel=2,
        )
    kinds = {name: "category" if name in categorical else _kind_of(path, name, seen[name]) for name in kept}
    in_test = _test_rows(path, count, test, column, seed) if other is None else np.zeros(count, dtype=bool)
    missing = {name for name in kinds if seen[name].missing}
    columns, classes, scale = _statistics(path, target, found_task, kinds, missing, in_test)
    schema = Schema(columns, target, found_task, classes, *scale)
    x, y, rows = _encoded(path, schema, count, dtype)
    without = count - len(rows)
    train, held = ~in_test[rows], in_test[rows]
    x_test, y_test = x[torch.from_numpy(held)], y[torch.from_numpy(held)]
    if other is not None:
        others = sum(len(next(iter(block.values()))) for _, block in read_table(other))
        x_test, y_test, its_rows = _encoded(other, schema, others, dtype)
        _warn_of_unseen(other, schema)
        without += others - len(its_rows)
    x, y = x[torch.from_numpy(train)], y[torch.from_numpy(train)]
    if not len(x) or not len(x_test):
        raise ValueError(f"{path}: {len(x)} training and {len(x_test)} test rows; expected some of both")
    split = DataSplit(
        name=path.name,
        title=path.name,
        task=found_task,
        x_train=x,
        y_train=y,
        x_test=x_test,
        y_test=y_test,
        num_classes=len(classes) or None,
        input_shape=(x.shape[1],),
        source=path.name,
        target_scale=scale if found_task == "regression" else None,
        schema=schema,
    )
    return Table(split, schema, without)


def _other_file(path: Path, test: object) -> Path | None:
    """The file of the test rows, if they have one."""
    if isinstance(test, Path) or (isinstance(test, str) and test.lower().endswith(_ENDINGS)):
        return Path(test)
    if isinstance(test, float) and not 0.0 < test < 1.0:
        raise ValueError(f"test: expected a fraction between 0 and 1 (both excluded), a column or a file, got {test}")
    if not isinstance(test, (float, str)):
        raise TypeError(f"test: expected a fraction, the name of a column or a file, got {test!r}")
    return None


def _warn_of_unseen(path: Path, schema: Schema) -> None:
    """Warn of categories in a file that no training row had: they count as none."""
    found: dict[str, set[str]] = {}
    for _, block in read_table(path):
        for name, others in schema.unseen(block).items():
            found.setdefault(name, set()).update(others)
    for name, values in found.items():
        warnings.warn(
            f"{path}, column {name!r}: no training row had {name_list(sorted(values))}; they count as none of its "
            "categories",
            UserWarning,
            stacklevel=3,
        )


def _look(path: Path) -> tuple[dict[str, _Seen], list[str], int]:
    """What the columns hold, their names, and the number of rows."""
    seen: dict[str, _Seen] = {}
    count = 0
    for first, columns in read_table(path):
        for name, texts in columns.items():
            seen.setdefault(name, _Seen()).add(texts, first)
        count += len(next(iter(columns.values())))
    return seen, list(seen), count


def _check_columns(
    path: Path, header: list[str], target: str, drop: Sequence[str], part: str | None, categorical: Sequence[str]
) -> list[str]:
    """The columns of inputs."""
    named = [(target, "target"), (part, "column of the parts"), *((name, "column to drop") for name in drop)]
    for name, what in (*named, *((name, "column of categories") for name in categorical)):
        if name is not None and name not in header:
            raise ValueError(
                f"{path}: no {what} {name!r}; its columns are {name_list(header, 30)}{suggest(name, header)}"
                f"{see('how-to/tables')}"
            )
    kept = [name for name in header if name not in {target, part, *drop}]
    if not kept:
        raise ValueError(f"{path}: no column of inputs is left beside the target {target!r}")
    return kept


def _kind_of(path: Path, name: str, seen: _Seen) -> str:
    """Whether a column holds numbers or categories."""
    texts = sum(seen.texts.values())
    if not texts and seen.numbers:
        return "number"
    advice = f"correct the file, or leave the column out by drop=[{name!r}]{see('how-to/tables')}"
    if not texts:
        raise ValueError(f"{path}, column {name!r}: every value is missing; {advice}")
    row, text = seen.first_text
    if seen.numbers > texts:
        raise ValueError(
            f"{path}, row {row}, column {name!r}: {text!r} is no number, as {seen.numbers} of its values are; {advice}"
        )
    if not seen.numbers and all(_DATE.fullmatch(value) for value in seen.texts):
        raise ValueError(
            f"{path}, column {name!r}: dates, such as {text!r}, are not read; make numbers of them, such as days or "
            f"months, or leave the column out by drop=[{name!r}]{see('how-to/tables')}"
        )
    if len(seen.texts) > _MOST_CATEGORIES:
        raise ValueError(
            f"{path}, column {name!r}: more than {_MOST_CATEGORIES} different texts, such as {text!r}; a name or a "
            f"number of the row tells nothing: {advice}"
        )
    return "category"


def _test_rows(path: Path, count: int, test: Any, column: str | None, seed: int) -> NDArray[np.bool_]:
    """Which rows are the test part."""
    if column is None:
        held = np.zeros(count, dtype=bool)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
        held[order[: max(1, round(float(test) * count))]] = True
        return held
    parts = [text.strip().lower() for _, columns in read_table(path) for text in columns[column]]
    wrong = next(((number, part) for number, part in enumerate(parts, 1) if part not in _PARTS), None)
    if wrong is not None:
        raise ValueError(f"{path}, row {wrong[0]}, column {column!r}: expected 'train' or 'test', got {wrong[1]!r}")
    return np.array([part == "test" for part in parts])


def _statistics(
    path: Path,
    target: str,
    task: str,
    kinds: Mapping[str, str],
    missing: set[str],
    in_test: NDArray[np.bool_],
) -> tuple[tuple[Column, ...], tuple[str, ...], tuple[float, float]]:
    """Statistics of the training rows: of each column, the classes, and the scale of the target."""
    numeric = [name for name in kinds if kinds[name] == "number"] + [target] * (task == "regression")
    sums = {name: np.zeros(3) for name in [*kinds, target]}  # number, mean, sum of squared distances
    categories: dict[str, set[str]] = {name: set() for name in [*kinds, target]}
    for first, block in read_table(path):
        held = in_test[first - 1 : first - 1 + len(block[target])]
        rows = np.flatnonzero(~held & ~are_missing(block[target]))
        for name in sums:
            texts = block[name] if len(rows) == len(block[name]) else [block[name][row] for row in rows]
            numbers = numbers_in(texts) if name in numeric else None
            if numbers is not None and np.isfinite(numbers).all():
                _add(sums[name], path, name, numbers, texts)
                continue
            absent = are_missing(texts)
            if numbers is not None:
                given = [text for text, gone in zip(texts, absent, strict=True) if not gone]
                _add(sums[name], path, name, numbers[~absent], given)
            else:
                categories[name] |= {text.strip() for text, gone in zip(texts, absent, strict=True) if not gone}
    columns = []
    for name, kind in kinds.items():
        mean, std = _scale(sums[name])
        values = tuple(sorted(categories[name]))
        if len(values) > _MOST_CATEGORIES:
            raise ValueError(
                f"{path}, column {name!r}: more than {_MOST_CATEGORIES} categories; leave it out by drop=[{name!r}]"
                f"{see('how-to/tables')}"
            )
        own: dict[str, Any] = {"mean": mean, "std": std} if kind == "number" else {"values": values}
        columns.append(Column(name, kind, missing=name in missing, **own))  # type: ignore[arg-type]
    classes = tuple(sorted(categories[target])) if task == "classification" else ()
    if task == "classification" and len(classes) < 2:
        only = classes[0] if classes else "no value"
        raise ValueError(f"{path}: the target {target!r} has one class only in the training rows, {only!r}")
    return tuple(columns), classes, _scale(sums[target])


def _add(sums: NDArray[np.float64], path: Path, name: str, values: NDArray[np.float64], texts: Sequence[str]) -> None:
    """Add values to their number, mean, and sum of squared distances from it, by Chan's rule."""
    if not np.isfinite(values).all():
        text = texts[int((~np.isfinite(values)).argmax())]
        raise ValueError(f"{path}, column {name!r}: expected finite numbers, got {text!r}{see('how-to/tables')}")
    if not len(values):
        return
    count, mean = len(values), values.mean()
    total, step = sums[0] + count, mean - sums[1]
    sums[2] += ((values - mean) ** 2).sum() + step**2 * sums[0] * count / total
    sums[1] += step * count / total
    sums[0] = total


def _scale(sums: NDArray[np.float64]) -> tuple[float, float]:
    std = float(np.sqrt(sums[2] / max(sums[0], 1)))
    return float(sums[1]), std if std > 1e-12 * max(abs(float(sums[1])), 1e-300) else 1.0


def _encoded(
    path: Path, schema: Schema, count: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]:
    """Inputs and targets of the rows that have a target, and their numbers."""
    x = torch.zeros(count, len(schema.entries), dtype=dtype)
    regression = schema.task == "regression"
    y = torch.zeros(count, 1, dtype=dtype) if regression else torch.zeros(count, dtype=torch.int64)
    kept: list[NDArray[np.int64]] = []
    index_of = {name: index for index, name in enumerate(schema.classes)}
    place = 0
    for first, block in read_table(path):
        schema.check_header([*block, schema.target] if schema.target not in block else [*block], str(path))
        if schema.target not in block:
            raise ValueError(
                f"{path}: no target {schema.target!r}; its columns are {name_list(block, 30)}{see('how-to/tables')}"
            )
        rows = np.flatnonzero(~are_missing(block[schema.target]))
        texts = [block[schema.target][row].strip() for row in rows]
        inputs = schema.inputs(block, str(path), first)[rows]
        x[place : place + len(rows)] = torch.from_numpy(inputs)
        if regression:
            values = numbers_in(texts)
            if np.isnan(values).any():
                row = int(np.isnan(values).argmax())
                raise ValueError(
                    f"{path}, row {first + int(rows[row])}: the target {schema.target!r} is {texts[row]!r}, no number"
                )
            scaled = (values - schema.target_mean) / schema.target_std
            y[place : place + len(rows), 0] = torch.from_numpy(scaled)
        else:
            unknown = next(((row, text) for row, text in zip(rows, texts, strict=True) if text not in index_of), None)
            if unknown is not None:
                raise ValueError(
                    f"{path}, row {first + int(unknown[0])}: the class {unknown[1]!r} of {schema.target!r} is in no "
                    f"training row; the classes are {name_list(schema.classes, 20)}{see('how-to/tables')}"
                )
            y[place : place + len(rows)] = torch.tensor([index_of[text] for text in texts], dtype=torch.int64)
        kept.append(rows + first - 1)
        place += len(rows)
    return x[:place], y[:place], np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
