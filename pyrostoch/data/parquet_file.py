"""Parquet files, read in blocks of rows as CSV files are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        for field in file.schema_arrow:
            _check_type(path, field.name, field.type)
        first = 1
        for batch in file.iter_batches(batch_size=rows):
            if not batch.num_rows:
                continue
            yield first, {name: _texts(batch.column(name)) for name in batch.schema.names}
            first += batch.num_rows
        if first == 1:
            yield 1, {name: [] for name in file.schema_arrow.names}


def _check_type(path: Path, name: str, kind: Any) -> None:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    if numbers or types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return
    what = "dates and times are not read" if types.is_temporal(kind) else f"values of type {kind} are not read"
    raise ValueError(
        f"{path}, column {name!r}: {what}; make numbers or texts of them, or write the file without it"
        f"{see('how-to/tables')}"
    )


def _texts(column: Any) -> list[str]:
    """The values as texts, as a CSV file would have them; what is missing is empty."""
    return ["" if value is None else str(value) for value in column.to_pylist()]
