"""What is known of the columns of a table: how they become numbers, in training and for new rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see

__all__ = ["MISSING_TEXTS", "Column", "Schema", "are_missing", "numbers_in"]

#: Texts that stand for a missing value, in lower case.
MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})

Task = Literal["classification", "regression"]


def are_missing(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which texts stand for a missing value.

    Args:
        texts: The texts.
    """
    # Most texts are longer than any of these.
    return np.array(
        [(len(t) < 5 or t[0] == " " or t[-1] == " ") and t.strip().lower() in MISSING_TEXTS for t in texts], dtype=bool
    )


def numbers_in(texts: Sequence[str]) -> NDArray[np.float64]:
    """The numbers that texts are; NaN for other texts.

    Args:
        texts: The texts.

    Example:
        >>> numbers_in([" 1e3 ", "three", ""]).tolist()
        [1000.0, nan, nan]
    """
    try:
        return np.array(texts, dtype=np.float64)  # at once, if all are numbers
    except ValueError:
        return np.array([_number(text) for text in texts], dtype=np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class Column:
    """A column of inputs.

    Args:
        name: Its name.
        kind: `"number"`, which is standardized, or `"category"`, which has an entry for each value.
        mean: Mean of the training rows, which takes the place of missing numbers.
        std: Their standard deviation, 1 for a constant column.
        values: The categories, in order.
        missing: Whether rows of the training file lack values: they have an entry that says so.
    """

    name: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    std: float = 1.0
    values: tuple[str, ...] = ()
    missing: bool = False

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of the inputs that the column becomes."""
        own = (self.name,) if self.kind == "number" else tuple(f"{self.name}={value}" for value in self.values)
        return (*own, f"{self.name} missing") if self.missing else own

    def encode(self, texts: Sequence[str], where: str, first: int) -> NDArray[np.float64]:
        """The inputs that values become, (rows, entries); a category that was not in the training rows has none.

        Args:
            texts: The values.
            where: Name of the file, for messages.
            first: Number of the first row, for messages.

        Raises:
            ValueError: A value is no finite number, where numbers are expected.
        """
        if self.kind == "category":
            absent = are_missing(texts)
            stripped = np.array([text.strip() for text in texts], dtype=object)
            parts = [(stripped == value).astype(np.float64) for value in self.values]
        else:
            numbers = numbers_in(texts)
            wrong = ~np.isfinite(numbers)
            absent = are_missing(texts) if wrong.any() else np.zeros(len(texts), dtype=bool)
            wrong &= ~absent
            if wrong.any():
                row = int(wrong.argmax())
                raise ValueError(
                    f"{where}, row {first + row}, column {self.name!r}: expected a number, got {texts[row]!r}"
                    f"{see('how-to/tables')}"
                )
            parts = [(np.where(np.isnan(numbers), self.mean, numbers) - self.mean) / self.std]
        if self.missing:
            parts.append(absent.astype(np.float64))
        elif absent.any():
            raise ValueError(
                f"{where}, row {first + int(absent.argmax())}, column {self.name!r}: the value is missing, and none "
                f"was in training{see('how-to/tables')}"
            )
        return np.stack(parts, 1) if parts else np.zeros((len(texts), 0))


@dataclass(frozen=True)
class Schema:
    """How rows of a table become inputs and targets of a network.

    Args:
        columns: The columns of inputs.
        target: Name of the column of the target.
        task: What it is.
        classes: Of a classification, the classes in order.
        target_mean: Of a regression, mean of the training targets.
        target_std: Of a regression, their standard deviation.

    Example:
        >>> columns = Column("rooms", "number", 3.0, 2.0), Column("city", "category", values=("A", "B"))
        >>> schema = Schema(columns, "price", "regression", target_mean=10.0, target_std=5.0)
        >>> schema.inputs({"rooms": ["5"], "city": ["B"]}).tolist()
        [[1.0, 0.0, 1.0]]
    """

    columns: tuple[Column, ...]
    target: str
    task: Task
    classes: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of the network's inputs."""
        return tuple(entry for column in self.columns for entry in column.entries)

    def check_header(self, header: Sequence[str], where: str) -> None:
        """Raise an error if columns of inputs are missing.

        Args:
            header: Names of the columns of a file.
            where: Name of the file, for the message.

        Raises:
            ValueError: There are such columns; they are named.
        """
        missing = [column.name for column in self.columns if column.name not in header]
        if missing:
            raise ValueError(
                f"{where}: no column(s) {name_list(missing)}, which the network was trained on; it has "
                f"{name_list(header, 30)}{suggest(missing[0], list(header))}{see('how-to/tables')}"
            )

    def inputs(self, columns: Mapping[str, Sequence[str]], where: str = "rows", first: int = 1) -> NDArray[np.float64]:
        """Inputs of rows, (rows, entries).

        Args:
            columns: Texts of each row, by column.
            where: Name of the file, for messages.
            first: Number of the first row, for messages.

        Raises:
            ValueError: A value is none of its column.
        """
        return np.concatenate([column.encode(columns[column.name], where, first) for column in self.columns], 1)

    def unseen(self, columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Categories that no training row had, by column.

        Args:
            columns: Texts of each row, by column.
        """
        found: dict[str, list[str]] = {}
        for column in (column for column in self.columns if column.kind == "category"):
            given = {text.strip() for text in columns[column.name]}
            if others := sorted(text for text in given - {*column.values} if text.lower() not in MISSING_TEXTS):
                found[column.name] = others
        return found

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Schema:
        """The schema from what `to_dict` returned, read back from JSON.

        Args:
            content: The content.

        Raises:
            ValueError: It is none.
        """
        try:
            columns = tuple(Column(**{**part, "values": tuple(part["values"])}) for part in content["columns"])
            return cls(**{**content, "columns": columns, "classes": tuple(content["classes"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"schema of a table: it is damaged, or of another version ({error})") from error
