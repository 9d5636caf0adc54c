"""Parquet files, read in blocks of rows as CSV files are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrostoch._checks import name_list
from pyrostoch._manual import see

__all__ = ["read_parquet"]


def read_parquet(path: Path, rows: int) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """A Parquet file in blocks of rows: the number of the first row, from 1, and the texts of each column.

    Args:
        path: The file.
        rows: Number of rows of a block.

    Raises:
        ValueError: It is no Parquet file, or a column has neither numbers nor texts.
        ImportError: The package pyarrow is missing.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path}: Parquet files need the package pyarrow, which is missing: pip install 'pyrostoch[parquet]'"
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: it is no Parquet file: {error}{see('how-to/tables')}") from error
    with file:
        schema = file.schema_arrow
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: expected columns of different names, got {name_list(twice)} twice")
        names = [name for name in schema.names if name not in _index_columns(schema)]
        for name in names:
            _check_type(path, name, schema.field(name).type)
        first = 1
        for batch in file.iter_batches(batch_size=rows, columns=names):
            if not batch.num_rows:
                continue
            yield first, {name: _texts(batch.column(name)) for name in names}
            first += batch.num_rows
        if first == 1:
            yield 1, {name: [] for name in names}


def _index_columns(schema: Any) -> set[str]:
    """Columns that are the index of a data frame, the numbers of its rows: no data, as for pandas itself."""
    known = (schema.pandas_metadata or {}).get("index_columns", [])
    named = {name for name in known if isinstance(name, str)}
    return named | {name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)}


def _check_type(path: Path, name: str, kind: Any) -> None:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    texts = types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"
    if numbers or texts or types.is_null(kind):
        return
    what = "dates and times are not read" if types.is_temporal(kind) else f"values of type {kind} are not read"
    raise ValueError(
        f"{path}, column {name!r}: {what}; make numbers or texts of them, or write the file without it"
        f"{see('how-to/tables')}"
    )


def _texts(column: Any) -> list[str]:
    """The values as texts, as a CSV file would have them; what is missing is empty.

    Whole numbers are the same in every type, since a column that lacks one is read as real numbers.
    """
    return ["" if value is None else _text(value) for value in column.to_pylist()]


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
