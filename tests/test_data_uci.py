"""The UCI folders: standardizing by the training part, and refusal of wrong splits, on files written by the tests."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrostoch.cli.inventory import data_sets
from pyrostoch.data import CorruptDataError, DataNotFoundError, load, locate

ROWS, TEST = 23, [3, 17, 5]


def write_uci(folder: Path, *, packed: bool = False, **changes: str) -> np.ndarray:
    """Write a set of 23 rows, three features (one constant) and a target in column 1; `changes` replace whole files."""
    folder.mkdir(parents=True)
    table = np.random.default_rng(0).normal(3.0, 5.0, (ROWS, 4)).round(3)
    table[:, 3] = 0.1
    train = [i for i in reversed(range(ROWS)) if i not in TEST]
    text = {
        "data": "\n".join(" ".join(f"{v:.18e}" for v in row) for row in table) + "\n\n",
        "index_features": "0\n2\n3\n",
        "index_target": "1\n",
        "index_train_0": "\n".join(map(str, train)),
        "index_test_0": "\n".join(map(str, TEST)),
        "index_train_1": "0\n1\n2\n3\n",
        "index_test_1": "4\n5\n",
    } | changes
    for name, content in text.items():
        path = folder / f"{name}.txt"
        if packed and name == "data":
            path.with_name("data.txt.gz").write_bytes(gzip.compress(content.encode()))
        else:
            path.write_text(content)
    return table


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", ["UCI/yacht", "yacht"])
def test_data_are_standardized_by_the_training_part(tmp_path: Path, inside: str, packed: bool) -> None:
    table = write_uci(tmp_path / inside, packed=packed)
    split = load("uci:Yacht", tmp_path, dtype=torch.float64)
    assert split.name == "uci:yacht" and split.task == "regression" and split.num_classes is None
    assert split.x_train.shape == (20, 3) and split.y_train.shape == (20, 1) and split.input_shape == (3,)
    assert split.source == locate("uci:yacht", tmp_path) == str(tmp_path / inside)
    train = [i for i in reversed(range(ROWS)) if i not in TEST]
    assert split.target_scale is not None
    mean, std = split.target_scale
    np.testing.assert_allclose(mean, table[train, 1].mean(), rtol=1e-12)
    np.testing.assert_allclose(std, table[train, 1].std(), rtol=1e-12)
    # Undoing the scale, as documented, gives the file's numbers back: both parts by the training part's statistics.
    np.testing.assert_allclose(split.y_train[:, 0].numpy() * std + mean, table[train, 1], rtol=1e-12)
    np.testing.assert_allclose(split.y_test[:, 0].numpy() * std + mean, table[TEST, 1], rtol=1e-12)
    wanted = (table[TEST][:, [0, 2]] - table[train][:, [0, 2]].mean(0)) / table[train][:, [0, 2]].std(0)
    np.testing.assert_allclose(split.x_test[:, :2].numpy(), wanted, rtol=1e-11)
    np.testing.assert_allclose(split.x_train[:, :2].numpy().std(0), 1.0, rtol=1e-12)
    # A constant feature is centered; the rounding error of its mean is not scaled up.
    np.testing.assert_allclose(split.x_train[:, 2].numpy(), 0.0, atol=1e-15)


def test_splits_and_limit(tmp_path: Path) -> None:
    table = write_uci(tmp_path / "UCI" / "mine")
    split = load("uci:mine", tmp_path, split=1, limit=3, dtype=torch.float64)
    assert split.title == "UCI mine, split 1" and len(split.x_train) == 3 and len(split.x_test) == 2
    assert split.target_scale is not None
    np.testing.assert_allclose(split.target_scale, (table[:3, 1].mean(), table[:3, 1].std()), rtol=1e-12)
    for number in (-1, 2):
        with pytest.raises(ValueError, match=f"no split {number}: expected 0 to 1"):
            load("uci:mine", tmp_path, split=number)


WRONG = {
    "ragged": ({"data": "1 2 3 4\n1 2 3\n"}, "data.txt", "the same count in each row"),
    "words": ({"data": "a b c d\n"}, "data.txt", "expected numbers"),
    "binary": ({"data": "é 1 2 3\n"}, "data.txt", "expected numbers"),
    "empty": ({"data": "\n\n"}, "data.txt", "no numbers"),
    "not finite": ({"data": "1 2 3 nan\n" * ROWS}, "data.txt", f"expected finite numbers, found {ROWS}"),
    "row too large": ({"index_test_0": "3\n23\n"}, "index_test_0.txt", "from 0 to 22 .* found 3 to 23"),
    "negative row": ({"index_test_0": "-1\n"}, "index_test_0.txt", "found -1 to -1"),
    "half a row": ({"index_train_0": "0.5\n"}, "index_train_0.txt", "whole numbers"),
    "repeated row": ({"index_train_0": "1\n1\n2\n"}, "index_train_0.txt", "found 1 repeated"),
    "row in both": ({"index_train_0": "1\n3\n5\n"}, "yacht", "found 2 rows in both, the first 3"),
    "no such column": ({"index_features": "0\n4\n"}, "index_features.txt", "from 0 to 3"),
    "target is a feature": ({"index_target": "2\n"}, "index_target.txt", "one column that is no feature"),
    "two targets": ({"index_target": "1\n2\n", "index_features": "0\n3\n"}, "index_target.txt", "expected one column"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    changes, name, message = WRONG[case]
    write_uci(tmp_path / "UCI" / "yacht", **changes)
    with pytest.raises(CorruptDataError, match=message) as caught:
        load("uci:yacht", tmp_path)
    assert name in str(caught.value)


def test_a_split_without_its_test_part_is_refused(tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    (tmp_path / "yacht" / "index_test_1.txt").unlink()
    with pytest.raises(CorruptDataError, match="index_test_1.txt: expected this file"):
        load("uci:yacht", tmp_path, split=1)


def test_missing_sets_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="data.txt.gz or data.txt") as caught:
        load("uci:yacht", tmp_path)
    assert str(tmp_path / "UCI" / "yacht") in str(caught.value) and "download(" not in str(caught.value)
    with pytest.raises(DataNotFoundError, match="none of the standard sets bostonHousing, concrete"):
        load("uci:yatch", tmp_path)


def test_info_lists_sets_of_ones_own(tmp_path: Path) -> None:
    write_uci(tmp_path / "UCI" / "mine")
    write_uci(tmp_path / "other", packed=True)
    write_uci(tmp_path / "UCI" / "yacht")
    (tmp_path / "UCI" / "incomplete").mkdir()
    (tmp_path / "UCI" / "incomplete" / "data.txt").touch()
    names = [name for name, _ in data_sets(str(tmp_path))]
    assert names[-2:] == ["uci:mine", "uci:other"]
    assert names.count("uci:yacht") == 1
    assert load("uci:mine", tmp_path).task == "regression"
