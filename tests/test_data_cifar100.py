"""CIFAR-100 with either kind of labels, on files written by the tests."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_cifar import WRITERS, Calls, write_batches

from pyrostoch.cli.inventory import data_sets
from pyrostoch.data import CorruptDataError, DataNotFoundError, load, locate
from pyrostoch.data.cifar100 import read_cifar100

CASES = {
    "cifar100-coarse": ("coarse_labels", 20, "CIFAR-100 (20 coarse labels)"),
    "cifar100-fine": ("fine_labels", 100, "CIFAR-100 (100 fine labels)"),
}


def part(count: int, seed: int) -> dict[str, Any]:
    """A part whose coarse and fine labels differ for every image, with the largest label of each kind among them."""
    rng = np.random.default_rng(seed)
    fine = [99, *rng.integers(20, 99, count - 1).tolist()]
    return {
        "filenames": [f"{i}.png" for i in range(count)],
        "batch_label": "a part",
        "fine_labels": fine,
        "coarse_labels": [label // 5 for label in fine],
        "data": rng.integers(0, 256, (count, 3072)).astype(np.uint8),
    }


def write_parts(folder: Path, writer: str = "python 2") -> dict[str, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"train": part(7, 1), "test": part(4, 2)}
    names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    for name, value in {**content, "meta": names}.items():
        (folder / name).write_bytes(WRITERS[writer](value))
    return content


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("writer", WRITERS)
def test_each_name_loads_its_own_labels(tmp_path: Path, writer: str, name: str) -> None:
    key, classes, title = CASES[name]
    folder = tmp_path / "cifar-100-python"
    content = write_parts(folder, writer)
    split = load(f" {name.upper()} ", tmp_path)
    assert (split.name, split.title, split.num_classes) == (name, title, classes) and title in str(split)
    assert split.source == str(folder) == locate(name, tmp_path) and split.input_shape == (3, 32, 32)
    assert split.y_train.tolist() == content["train"][key] and split.y_test.tolist() == content["test"][key]
    assert split.y_train.max() == classes - 1
    np.testing.assert_allclose(split.x_train.numpy(), content["train"]["data"].reshape(-1, 3, 32, 32) / 255, atol=1e-7)
    np.testing.assert_allclose(split.x_test.numpy(), content["test"]["data"].reshape(-1, 3, 32, 32) / 255, atol=1e-7)


def test_arrays_are_writable(tmp_path: Path) -> None:
    write_parts(tmp_path)
    assert all(values.flags.writeable for values in read_cifar100("cifar100-fine", tmp_path, "test"))


def test_a_limit_keeps_the_first_of_each_part(tmp_path: Path) -> None:
    content = write_parts(tmp_path)
    split = load("cifar100-fine", tmp_path, limit=5)
    assert split.y_train.tolist() == content["train"]["fine_labels"][:5] and split.num_classes == 100
    assert len(split.x_train) == 5 and len(split.x_test) == len(split.y_test) == 4


@pytest.mark.parametrize("inside", ["cifar-100-python", "CIFAR100/cifar-100-python", ""])
def test_the_folders_searched(tmp_path: Path, inside: str) -> None:
    write_parts(tmp_path / inside)
    write_batches(tmp_path / "cifar-10-batches-py", "python 2")
    for name in CASES:
        assert locate(name, tmp_path) == str(tmp_path / inside)
    found = dict(data_sets(str(tmp_path)))
    assert found["cifar100-coarse"] == found["cifar100-fine"] == str(tmp_path / inside)
    assert load("cifar10", tmp_path).num_classes == 10


@pytest.mark.parametrize("name", ["cifar100", "CIFAR-100", " cifar100 ", "cifar100-corse"])
def test_the_kind_of_labels_must_be_named(tmp_path: Path, name: str) -> None:
    write_parts(tmp_path)
    for function in (load, locate):
        with pytest.raises(ValueError, match=r"'cifar100-coarse' \(20 classes\) or 'cifar100-fine' \(100 classes\)"):
            function(name, tmp_path)


@pytest.mark.parametrize("missing", ["train", "test", "meta"])
def test_missing_files_are_named_with_the_folders(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "cifar-100-python"
    write_parts(folder)
    (folder / missing).unlink()
    with pytest.raises(DataNotFoundError, match="CIFAR-100 was not found") as caught:
        load("cifar100-fine", tmp_path)
    text = str(caught.value)
    assert "train, test, meta  (python version)" in text and str(folder) in text
    assert str(tmp_path / "CIFAR100" / "cifar-100-python") in text


def changed(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (part(4, 3) | changes).items() if value is not None}


WRONG_PARTS = {
    "CIFAR-10's": (changed(fine_labels=None, coarse_labels=None, labels=[1] * 4), "'data', 'coarse_labels' and"),
    "no coarse labels": (changed(coarse_labels=None), "'coarse_labels' and 'fine_labels' of CIFAR-100, found"),
    "no images": (changed(data=None), "expected the keys 'data', "),
    "labels exchanged": (changed(coarse_labels=part(4, 3)["fine_labels"]), "expected coarse_labels 0 to 19 of"),
    "a label too large": (changed(fine_labels=[1, 2, 3, 100]), "fine_labels 0 to 99 .* from 1 to 100"),
    "a negative label": (changed(fine_labels=[1, 2, 3, -1]), "fine_labels 0 to 99 .* from -1 to 3"),
    "labels that are not numbers": (changed(fine_labels=["a", "b", "c", "d"]), "expected fine_labels 0 to 99"),
    "fine labels short": (changed(fine_labels=[1, 2]), r"shape \(2, 3072\).* the fine_labels; found \(4, 3072\)"),
    "coarse labels short": (changed(coarse_labels=[1]), r"shape \(1, 3072\).* the coarse_labels; found \(4, 3072\)"),
    "small images": (changed(data=np.zeros((4, 64), np.uint8)), r"found \(4, 64\)"),
    "no pickle": (b"PK\x03\x04", "cannot be read as one"),
    "truncated": (pickle.dumps(part(4, 3))[:-50], "cannot be read as one"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("case", WRONG_PARTS)
def test_wrong_parts_are_refused_by_file(tmp_path: Path, case: str, name: str) -> None:
    content, message = WRONG_PARTS[case]
    write_parts(tmp_path)
    (tmp_path / "test").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(CorruptDataError, match=message) as caught:
        load(name, tmp_path)
    assert str(tmp_path / "test") in str(caught.value)


def test_nothing_that_a_file_names_is_called(tmp_path: Path) -> None:
    write_parts(tmp_path)
    flag = tmp_path / "flag"
    (tmp_path / "train").write_bytes(pickle.dumps(changed(batch_label=Calls(os.mkdir, str(flag)))))
    with pytest.raises(CorruptDataError, match="mkdir, which is refused"):
        load("cifar100-coarse", tmp_path)
    assert not flag.exists()
