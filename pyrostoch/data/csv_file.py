"""Tables in CSV and Parquet files, read in blocks of rows."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.data.parquet_file import read_parquet

__all__ = ["read_table"]


def read_table(path: str | Path, rows: int = 4096) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """A table in blocks of rows: the number of the first row, from 1, and the texts of each column.

    Args:
        path: A CSV file, with a header, in UTF-8, whose columns are separated by commas, semicolons or tabs; or a
            Parquet file, which needs the extra `parquet`.
        rows: Number of rows of a block.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, or of another kind, its header has a name twice, or a row has more or fewer values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.csv"
        ...     _ = path.write_text("x;y" + chr(10) + "1;2")
        ...     print(list(read_table(path)))
        [(1, {'x': ['1'], 'y': ['2']})]
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, got a folder{see('how-to/tables')}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file{see('how-to/tables')}")
    if path.suffix.lower() in (".parquet", ".pq"):
        yield from read_parquet(path, rows)
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, separator = _header(path, file.readline())
            block: list[list[str]] = []
            number = first = 1
            for values in csv.reader(file, delimiter=separator):
                if not values:
                    continue
                if len(values) != len(header):
                    raise ValueError(
                        f"{path}, row {number}: expected {len(header)} values, as in the header, got {len(values)}"
                        f"{see('how-to/tables')}"
                    )
                block.append(values)
                number += 1
                if len(block) == rows:
                    yield first, _by_column(header, block)
                    block, first = [], number
            if block or first == 1:
                yield first, _by_column(header, block)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: it is no CSV file in UTF-8: {error}{see('how-to/tables')}") from error


def _header(path: Path, line: str) -> tuple[list[str], str]:
    if not line.strip():
        raise ValueError(f"{path}: the file is empty; expected a header with the names of the columns")
    separator = max(",;\t", key=line.count)
    header = [name.strip() for name in next(csv.reader([line], delimiter=separator))]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice or "" in header:
        raise ValueError(
            f"{path}: expected a header with a name for each column, got "
            f"{'an empty name' if '' in header else f'{name_list(twice)} twice'}{see('how-to/tables')}"
        )
    return header, separator


def _by_column(header: list[str], block: list[list[str]]) -> dict[str, list[str]]:
    columns = zip(*block, strict=True) if block else [()] * len(header)
    return {name: list(values) for name, values in zip(header, columns, strict=True)}
