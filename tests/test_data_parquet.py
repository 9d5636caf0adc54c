"""Parquet files as tables: the same data set as the CSV file with the same rows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import torch
from commands import call
from pyarrow import parquet

from pyrostoch.data import load_table, read_table


def columns(count: int = 60) -> dict[str, list[Any]]:
    generator = np.random.default_rng(0)
    return {
        "rooms": generator.integers(1, 9, count).tolist(),
        "area": [None if index % 7 == 0 else float(value) for index, value in enumerate(generator.normal(size=count))],
        "city": generator.choice(["Berlin", "Paris"], count).tolist(),
        "new": (generator.random(count) < 0.5).tolist(),
        "price": generator.normal(size=count).tolist(),
    }


def write(path: Path, content: dict[str, Any], **settings: Any) -> None:
    parquet.write_table(arrow.table(content), path, **settings)


def test_a_parquet_file_is_read_as_the_csv_file_with_its_rows(tmp_path: Path) -> None:
    content = columns()
    encoded = arrow.array(content["city"]).dictionary_encode()
    write(tmp_path / "a.parquet", {**content, "city": encoded}, row_group_size=9)
    rows = zip(*content.values(), strict=True)
    texts = ["" if value is None else str(value) for row in rows for value in row]
    lines = [",".join(texts[i : i + 5]) for i in range(0, len(texts), 5)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(content), *lines]))
    one, other = (load_table(tmp_path / name, "price", dtype=torch.float64) for name in ("a.parquet", "a.csv"))
    # Sums over blocks of other sizes differ in their last bits.
    assert one.schema.target_mean == pytest.approx(other.schema.target_mean, rel=1e-12)
    assert one.schema.entries == ("rooms", "area", "area missing", "city=Berlin", "city=Paris", "new=False", "new=True")
    for name in ("x_train", "y_train", "x_test", "y_test"):
        torch.testing.assert_close(getattr(one.split, name), getattr(other.split, name))
    blocks = list(read_table(tmp_path / "a.parquet", rows=25))
    assert [first for first, _ in blocks][:2] == [1, 1 + len(blocks[0][1]["rooms"])]
    assert sum(len(block["rooms"]) for _, block in blocks) == 60


def test_the_command_line_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.parquet", columns())
    settings = ("--target", "price", "--hidden", "4", "--epochs", "1", "--random", "fc1.weight", "--out", "run")
    call("train", "--data", "a.parquet", *settings)
    call("predict", "run", "a.parquet", "--out", "p.csv", "--samples", "3")
    assert len(Path("p.csv").read_text().splitlines()) == 61


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([datetime.date(2020, 1, 1)] * 60, "column 'other': dates and times are not read"),
        ([[1, 2]] * 60, "column 'other': values of type list"),
        ([b"a"] * 60, "column 'other': values of type binary"),
        ([None] * 60, "column 'other': every value is missing"),
        ([1.0] * 59 + [float("inf")], "column 'other': expected finite numbers, got 'inf'"),
    ],
)
def test_columns_that_are_neither_numbers_nor_texts_are_named(tmp_path: Path, values: Any, message: str) -> None:
    write(tmp_path / "a.parquet", {**columns(), "other": values})
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / "a.parquet", "price", test=0.1)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="it is no Parquet file"):
        load_table(path, "b")
    write(path, {"a": [], "b": []})
    with pytest.raises(ValueError, match="no rows"):
        load_table(path, "b")


def test_the_index_of_a_data_frame_is_no_input(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(columns())
    frame[frame["rooms"] > 2].to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", {**columns(), "__index_level_0__": list(range(60))})
    for name in "ab":
        assert not any("index" in entry for entry in load_table(tmp_path / f"{name}.parquet", "price").schema.entries)


def test_whole_numbers_are_the_same_category_in_every_type(tmp_path: Path) -> None:
    content = columns(30)
    write(tmp_path / "a.parquet", {**content, "rooms": [1, 2, 3] * 10})
    write(tmp_path / "b.parquet", {**content, "rooms": [1.0, 2.0, 3.0] * 10})
    split = load_table(tmp_path / "a.parquet", "price", test=tmp_path / "b.parquet", categorical=["rooms"]).split
    assert (split.x_test[:, :3].sum(1) == 1).all()


def test_names_that_are_given_twice_and_folders(tmp_path: Path) -> None:
    table = arrow.Table.from_arrays([arrow.array([1]), arrow.array([2])], names=["a", "a"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="got 'a' twice"):
        load_table(tmp_path / "a.parquet", "a")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ValueError, match="expected a file, got a folder"):
        load_table(tmp_path / "folder.parquet", "a")
