"""Tables in CSV files: what columns become, what is refused by name, and how much memory a large file takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyrostoch as ps
from pyrostoch.data import Schema, load_table, read_table

HEADER = "rooms,area,city,price"


def written(folder: Path, rows: list[str], header: str = HEADER, name: str = "houses.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


def houses(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    rooms, area = generator.integers(1, 9, count), generator.uniform(20, 200, count)
    city = generator.choice(["Berlin", "Paris", "Rome"], count)
    noise = 10.0 * generator.normal(size=count)
    price = 50.0 + 20.0 * rooms + 1.5 * area + 40.0 * (city == "Paris") + noise
    return [f"{r},{a:.3f},{c},{p:.2f}" for r, a, c, p in zip(rooms, area, city, price, strict=True)]


def test_columns_are_standardized_by_the_training_rows(tmp_path: Path) -> None:
    path = written(tmp_path, houses(50))
    table = load_table(path, "price", seed=3, dtype=torch.float64)
    split, schema = table.split, table.schema
    assert schema.entries == ("rooms", "area", "city=Berlin", "city=Paris", "city=Rome")
    assert (len(split.x_train), len(split.x_test), split.task) == (40, 10, "regression")
    assert torch.allclose(split.x_train[:, :2].mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(split.x_train[:, :2].std(0, correction=0), torch.ones(2, dtype=torch.float64))
    assert bool((split.x_train[:, 2:].sum(1) == 1).all())
    rows = np.array([[float(v) for v in row.split(",")[:2]] + [float(row.split(",")[3])] for row in houses(50)])
    held = torch.randperm(50, generator=torch.Generator().manual_seed(3))[:10].sort().values.numpy()
    kept = np.setdiff1d(np.arange(50), held)
    mean, std = rows[kept].mean(0), rows[kept].std(0)
    assert np.allclose(split.x_test[:, :2].numpy(), (rows[held, :2] - mean[:2]) / std[:2])
    assert split.target_scale == pytest.approx((mean[2], std[2]))
    assert np.allclose(split.y_test[:, 0].numpy() * std[2] + mean[2], rows[held, 2])
    again = load_table(path, "price", seed=3, dtype=torch.float64).split
    other = load_table(path, "price", seed=4, dtype=torch.float64).split
    assert torch.equal(again.x_test, split.x_test) and not torch.equal(other.x_test, split.x_test)


def test_missing_values_have_an_entry_that_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, ["1,?,A,1", ",10,,2", "3,30,B,3", "NA,20,A,", "5,40,n/a,5", "4,20,B,4"])
    test = written(tmp_path, ["2,,C,7"], name="test.csv")
    with pytest.warns(UserWarning, match="column 'city': no training row had 'C'"):
        table = load_table(path, "price", test=test, dtype=torch.float64)
    assert table.schema.entries == (
        *("rooms", "rooms missing", "area", "area missing"),
        *("city=A", "city=B", "city missing"),
    )
    assert table.without_target == 1 and len(table.split.x_train) == 5
    first, second = table.split.x_train[0], table.split.x_train[1]
    assert first[2:4].tolist() == [0.0, 1.0] and second[:2].tolist() == [0.0, 1.0]
    assert second[4:].tolist() == [0.0, 0.0, 1.0]
    assert table.split.x_test[0, 3:].tolist() == [1.0, 0.0, 0.0, 0.0]  # a category that no training row had
    assert table.schema.unseen({"city": ["A", "C", "", "D"]}) == {"city": ["C", "D"]}


def test_classes_are_those_of_a_text_target(tmp_path: Path) -> None:
    rows = [f"{i},{i * i},{'AB'[i % 2]},{['low', 'mid', 'high'][i % 3]}" for i in range(30)]
    table = load_table(written(tmp_path, rows), "price")
    assert table.split.task == "classification" and table.schema.classes == ("high", "low", "mid")
    assert table.split.num_classes == 3 and table.split.y_train.dtype == torch.int64
    numbers = [f"{i},{i * i},{'AB'[i % 2]},{i % 2}" for i in range(30)]
    path = written(tmp_path, numbers)
    assert load_table(path, "price").split.task == "regression"
    assert load_table(path, "price", task="classification").schema.classes == ("0", "1")
    with pytest.raises(ValueError, match="row 1: the target 'price' is 'low', no number, for a regression"):
        load_table(written(tmp_path, rows), "price", task="regression")


def test_parts_by_a_column_or_a_file(tmp_path: Path) -> None:
    rows = [f"{i},1.{i},A,{i},{'test' if i % 5 == 0 else 'train'}" for i in range(20)]
    path = written(tmp_path, rows, f"{HEADER},part")
    table = load_table(path, "price", test="part")
    assert len(table.split.x_test) == 4 and "part" not in table.schema.entries
    assert table.split.y_test[:, 0].mul(table.schema.target_std).add(table.schema.target_mean).round().tolist() == [
        *(0, 5, 10, 15)
    ]
    with pytest.raises(ValueError, match="row 2, column 'part': expected 'train' or 'test', got 'valid'"):
        load_table(
            written(tmp_path, [rows[0], rows[1].replace("train", "valid")], f"{HEADER},part"), "price", test="part"
        )
    with pytest.raises(ValueError, match=r"test.csv: no column\(s\) 'area', which the network was trained on"):
        load_table(
            path, "price", test=written(tmp_path, ["1,A,2,x"], "rooms,city,price,part", "test.csv"), drop=["part"]
        )


def test_settings_survive_json(tmp_path: Path) -> None:
    table = load_table(written(tmp_path, houses(30)), "price")
    again = Schema.from_dict(json.loads(json.dumps(table.schema.to_dict())))
    assert again == table.schema
    block = next(read_table(tmp_path / "houses.csv"))[1]
    assert np.array_equal(again.inputs(block), table.schema.inputs(block))
    with pytest.raises(ValueError, match="schema of a table: it is damaged"):
        Schema.from_dict({"columns": []})


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_quotes_and_byte_order_marks(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = ["name,x,y", '"a, b",1,2', "c,3,4", "c,5,6", '"a, b",7,8']
    if separator != ",":
        lines = [line.replace(",", separator) for line in lines]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")
    table = load_table(path, "y", test=0.3)
    assert table.schema.columns[0].values == tuple(
        sorted({f"a{separator} b" if separator == "," else f"a{separator} b", "c"})
    )


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no such target": (
        houses(9),
        {"target": "prices"},
        "no target 'prices'; its columns are 'rooms'.*did you mean 'price'",
    ),
    "no column to drop": (houses(9), {"drop": ["zip"]}, "no column to drop 'zip'"),
    "text among numbers": ([*houses(9), "many,10,Rome,3"], {}, "row 10, column 'rooms': 'many' is no number, as 9 of"),
    "dates": (
        [f"1,2020-01-{i:02d},Rome,{i}" for i in range(1, 9)],
        {},
        "column 'area': dates, such as '2020-01-01', are not read",
    ),
    "names": ([f"1,1,name {i},{i}" for i in range(300)], {}, "column 'city': more than 100 different texts"),
    "codes": (
        [f"{i},1,A,{i}" for i in range(300)],
        {"categorical": ["rooms"]},
        "column 'rooms': more than 100 categories",
    ),
    "one class": ([f"{i},1,A,yes" for i in range(9)], {}, "has one class only in the training rows, 'yes'"),
    "no target at all": ([f"{i},1,A," for i in range(9)], {}, "every value of the target 'price' is missing"),
    "a column of nothing": ([f"{i},,A,{i}" for i in range(9)], {}, "column 'area': every value is missing"),
    "a short row": ([*houses(4), "1,2"], {}, "row 5: expected 4 values, as in the header, got 2"),
    "infinite": ([*houses(9), "inf,10,Rome,3"], {"test": 0.01}, "'rooms': expected finite numbers|expected a number"),
    "no rows": ([], {}, "it has a header, but no rows"),
    "nothing left": (houses(9), {"drop": ["rooms", "area", "city"]}, "no column of inputs is left"),
    "a fraction": (houses(9), {"test": 1.5}, "expected a fraction between 0 and 1"),
    "one row": (houses(1), {}, "0 training and 1 test rows|one class only"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    rows, options, message = BAD[name]
    path = written(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        load_table(path, **{"target": "price", **options})


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file"):
        load_table(tmp_path / "nowhere.csv", "y")
    empty = tmp_path / "empty.csv"
    empty.touch()
    with pytest.raises(ValueError, match="the file is empty"):
        load_table(empty, "y")
    with pytest.raises(ValueError, match="'x' twice"):
        load_table(written(tmp_path, ["1,2,3"], "x,x,y"), "y")
    with pytest.raises(ValueError, match="an empty name"):
        load_table(written(tmp_path, ["1,2,3"], "x,,y"), "y")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"x,y\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="it is no CSV file in UTF-8"):
        load_table(binary, "y")


def test_a_large_file_is_read_in_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    rows = [f"{row}{'0' * 60}" for row in houses(2000)]  # many digits
    with path.open("w") as file:
        file.write(HEADER + "\n")
        block = "\n".join(rows) + "\n"
        for _ in range(20_000_000 // len(block) + 1):
            file.write(block)
    assert path.stat().st_size > 20_000_000
    code = (
        "import resource, sys; from pyrostoch.data import load_table; import torch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "table = load_table(sys.argv[1], 'price')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(table.split.x_train))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    kibibytes, count = map(int, done.stdout.split())
    numbers = count * 5 / 4 * 6 * 4 / 1024  # the tensors that are kept, in single precision
    assert kibibytes < 4 * numbers + 30_000


def test_intervals_of_house_prices_cover(tmp_path: Path) -> None:
    table = load_table(written(tmp_path, houses(4000)), "price", test=0.5)
    split = table.split
    model = ps.BayesianModel(
        ps.models.MLP(5, (20,), 1),
        prior=ps.priors.Normal(),
        likelihood=ps.likelihoods.Gaussian(0.3, learn=True),
        num_data=len(split.x_train),
    )
    guide = ps.guides.Additive(model, init_scale=0.05)
    ps.fit(model, guide, (split.x_train, split.y_train), epochs=40, lr=0.01, seed=0, progress=False, compile=False)
    found = ps.predict(model, guide, split.x_test, mode="mc:20", seed=0)
    inside = (split.y_test - found.mean).abs() < 1.645 * found.variance.sqrt()  # type: ignore[operator, union-attr]
    assert 0.85 < inside.float().mean() < 0.95


def test_a_class_that_looks_like_none_is_said_to_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,damage\n" + "\n".join(f"{i},{['none', 'minor', 'severe'][i % 3]}" for i in range(30)))
    with pytest.warns(UserWarning, match="rows whose target 'damage' is 'none' are left out"):
        table = load_table(path, "damage")
    assert table.schema.classes == ("minor", "severe")
    assert table.without_target == 10
