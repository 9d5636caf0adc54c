"""The IDX reader and the two data sets in this format, on files written by the tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pyrostoch.data import CorruptDataError, DataNotFoundError, load, locate
from pyrostoch.data import mnist as mnist_module
from pyrostoch.data.idx import read_idx

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


def idx_bytes(values: np.ndarray, code: int) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    return header + values.astype(np.dtype(TYPES[code]).newbyteorder(">")).tobytes()


def write_set(folder: Path, *, suffix: str = "", train: int = 6, test: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Write four small files in the format of MNIST, and return their arrays by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    content = {}
    for part, count in (("train", train), ("t10k", test)):
        content[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28))
        content[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count)
    for name, values in content.items():
        raw = idx_bytes(values, 0x08)
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)
    return content


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_reads_every_type_and_shape(tmp_path: Path, code: int, shape: tuple[int, ...], packed: bool) -> None:
    low = 0 if code == 0x08 else -100
    values = np.random.default_rng(code).integers(low, 100, shape).astype(TYPES[code])
    raw = idx_bytes(values, code)
    path = tmp_path / "values"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    found = read_idx(path)
    assert found.dtype == np.dtype(TYPES[code]) and found.dtype.isnative
    np.testing.assert_array_equal(found, values)


GOOD = idx_bytes(np.arange(12).reshape(3, 4), 0x08)
DAMAGED = {
    "empty": (b"", "found 0 bytes"),
    "short header": (GOOD[:6], "header of 12 bytes for 2 dimensions, found 6 bytes"),
    "truncated": (GOOD[:-5], r"expected 24 bytes \(unpacked\) for values of shape \(3, 4\), found 19 bytes"),
    "extra bytes": (GOOD + b"x", "expected 24 bytes .* found 25 bytes"),
    "foreign": (b"\x89PNG\r\n\x1a\n", "found the first bytes 89 50 4e 47"),
    "no dimensions": (b"\x00\x00\x08\x00", "found the first bytes 00 00 08 00"),
    "unknown type": (b"\x00\x00\x0a\x01" + GOOD[4:], "found the first bytes 00 00 0a 01"),
    "truncated gzip": (gzip.compress(GOOD)[:-9], "expected a whole gzip file"),
    "damaged gzip": (gzip.compress(GOOD)[:15] + b"\xff" * 20, "expected a whole gzip file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_named_with_expected_and_found(tmp_path: Path, case: str) -> None:
    content, message = DAMAGED[case]
    path = tmp_path / "damaged-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_gz_file_that_is_not_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CorruptDataError, match="expected a gzip file .* starting 3c 68 74 6d"):
        read_idx(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["MNIST/raw", "MNIST", "raw", ""])
def test_every_layout_loads(tmp_path: Path, inside: str, suffix: str) -> None:
    content = write_set(tmp_path / inside, suffix=suffix)
    split = load("mnist", tmp_path)
    assert split.x_train.shape == (6, 1, 28, 28) and split.x_test.shape == (3, 1, 28, 28)
    np.testing.assert_allclose(split.x_train[:, 0].numpy(), content["train-images-idx3-ubyte"] / 255, atol=1e-7)
    assert split.y_test.tolist() == content["t10k-labels-idx1-ubyte"].tolist()
    assert split.source == locate("mnist", tmp_path) == str(tmp_path / inside)


def test_the_two_sets_are_told_apart_by_folder(tmp_path: Path) -> None:
    digits = write_set(tmp_path / "MNIST" / "raw", seed=1)
    clothes = write_set(tmp_path / "FashionMNIST" / "raw", seed=2)
    for name, content in (("mnist", digits), ("fashion-mnist", clothes)):
        assert load(name, tmp_path).y_train.tolist() == content["train-labels-idx1-ubyte"].tolist()
    assert load("fashion-mnist", tmp_path).title == "Fashion-MNIST"


def test_files_of_the_other_set_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    content = write_set(tmp_path)
    digest = hashlib.sha256(content["t10k-labels-idx1-ubyte"].astype("u1").tobytes()).hexdigest()
    monkeypatch.setitem(mnist_module._TEST_LABELS, "fashion-mnist", digest)
    with pytest.raises(CorruptDataError, match="expected MNIST, found the labels of Fashion-MNIST"):
        load("mnist", tmp_path)
    assert load("fashion-mnist", tmp_path).title == "Fashion-MNIST"


WRONG = {
    "labels beyond 9": ("train-labels-idx1-ubyte", np.array([0, 1, 10, 3, 4, 5]), 0x08, "largest value 10"),
    "no labels": ("train-labels-idx1-ubyte", np.zeros(0), 0x08, r"found shape \(0,\)"),
    "too few images": (
        "t10k-images-idx3-ubyte",
        np.zeros((2, 28, 28)),
        0x08,
        r"\(3, 28, 28\).*found shape \(2, 28, 28\)",
    ),
    "small images": ("t10k-images-idx3-ubyte", np.zeros((3, 8, 8)), 0x08, r"found shape \(3, 8, 8\)"),
    "float images": ("train-images-idx3-ubyte", np.zeros((6, 28, 28)), 0x0D, "float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, case: str) -> None:
    name, values, code, message = WRONG[case]
    write_set(tmp_path)
    (tmp_path / name).write_bytes(idx_bytes(values, code))
    with pytest.raises(CorruptDataError, match=message) as caught:
        load("mnist", tmp_path)
    assert name in str(caught.value)


def test_one_missing_file_means_not_found_with_files_folders_and_advice(tmp_path: Path) -> None:
    write_set(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataNotFoundError) as caught:
        load("mnist", tmp_path)
    text = str(caught.value)
    for part in ("train", "t10k"):
        assert f"{part}-labels-idx1-ubyte.gz or {part}-labels-idx1-ubyte" in text
    assert str(tmp_path / "MNIST" / "raw") + "\n" in text
    assert str(tmp_path / "raw") + "  (no such folder)" in text
    assert "--data-dir" in text and "PYROSTOCH_DATA" in text and "pyrostoch download mnist --data-dir DIR" in text
