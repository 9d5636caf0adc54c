"""CIFAR-10 in both its formats, and the reader of untrusted pickles, on files written by the tests."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrostoch.data import CorruptDataError, DataNotFoundError, load
from pyrostoch.data.restricted_pickle import read_pickle


class Python2Pickler(pickle._Pickler):
    """Writes protocol 2 as Python 2 with NumPy 1 did: every string as a byte string, and the old module names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, obj: Any) -> None:
        raw = obj if isinstance(obj, bytes) else obj.encode("latin1")
        self.write(b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(obj)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = "numpy" if obj in (np.ndarray, np.dtype) else "numpy.core.multiarray"
        self.write(f"c{module}\n{name or obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[bytes] = save_string
    dispatch[str] = save_string
    dispatch[type] = save_global


def python2_dumps(value: Any) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, 2).dump(value)
    return stream.getvalue()


def dumps_numpy1(value: Any) -> bytes:
    """Protocol 3 with the module name NumPy had before version 2."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core", b"numpy.core")


WRITERS = {
    "python 2": python2_dumps,
    "python 3, numpy 1": dumps_numpy1,
    **{f"protocol {p}": lambda value, p=p: pickle.dumps(value, protocol=p) for p in (3, 4, 5)},
}


def batch(count: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, 3072)).astype(np.uint8)
    labels = rng.integers(0, 10, count).tolist()
    return {"batch_label": "a batch", "labels": labels, "data": data, "filenames": [f"{i}.png" for i in range(count)]}


def write_batches(folder: Path, writer: str, count: int = 2) -> dict[str, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    content = {f"data_batch_{i}": batch(count, i) for i in range(1, 6)} | {"test_batch": batch(count, 6)}
    for name, value in content.items():
        (folder / name).write_bytes(WRITERS[writer](value))
    return content


@pytest.mark.parametrize("writer", WRITERS)
def test_batches_of_every_version_load(tmp_path: Path, writer: str) -> None:
    content = write_batches(tmp_path / "cifar-10-batches-py", writer)
    split = load("cifar10", tmp_path)
    assert split.title == "CIFAR-10" and split.x_train.shape == (10, 3, 32, 32)
    wanted = np.concatenate([content[f"data_batch_{i}"]["data"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    np.testing.assert_allclose(split.x_train.numpy(), wanted / 255, atol=1e-7)
    assert split.y_test.tolist() == content["test_batch"]["labels"]
    assert load("cifar10", tmp_path, limit=3).y_train.tolist() == split.y_train[:3].tolist()


def test_fortran_order_keeps_the_values(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    for writer, dumps in WRITERS.items():
        path = tmp_path / writer.replace(" ", "_")
        path.write_bytes(dumps({"data": values}))
        np.testing.assert_array_equal(read_pickle(path)["data"], values)


class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "os.system": (lambda flag: pickle.dumps({"data": Calls(os.mkdir, flag)}), f"{os.mkdir.__module__}.mkdir"),
    "eval": (lambda flag: pickle.dumps({"data": Calls(eval, f"__import__('os').mkdir({flag!r})")}), "builtins.eval"),
    "a NumPy function": (lambda flag: pickle.dumps(Calls(np.save, flag, [1])), "numpy.save"),
    "a dotted name": (lambda flag: b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.__new\x93.", "numpy.ndarray.__new"),
    "ndarray called": (lambda flag: pickle.dumps(Calls(np.ndarray, (4,))), "calls numpy.ndarray"),
    "state of a function": (lambda flag: b"cnumpy\ndtype\n}b.", "sets the state of a function"),
    "an array of objects": (lambda flag: pickle.dumps({"data": np.array([{}], dtype=object)}), "not of unsigned bytes"),
    "an array of floats": (lambda flag: pickle.dumps({"data": np.zeros(2)}), "not of unsigned bytes"),
    "an array short of bytes": (
        lambda flag: pickle.dumps({"data": np.full(9, 7, np.uint8)}, 3).replace(b"K\x09\x85", b"K\x63\x85"),
        r"shape \(99,\) without the 99 bytes",
    ),
    "an array in odd order": (
        lambda flag: pickle.dumps({"data": np.zeros(2, np.uint8)}, 5).replace(b"\x8c\x01C", b"\x8c\x01K"),
        "memory order 'K'",
    ),
    "a set": (lambda flag: pickle.dumps({"data": {1}}), "type set"),
    "a list": (lambda flag: pickle.dumps([1]), "expected a pickled dictionary, found a list"),
    "truncated": (lambda flag: pickle.dumps(batch(2, 0))[:-100], "cannot be read as one"),
    "empty": (lambda flag: b"", "found 0 bytes"),
    "something else": (lambda flag: b"PK\x03\x04 a zip file", "cannot be read as one"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_damaged_pickles_are_refused_and_do_nothing(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE[case]
    flag, path = tmp_path / "flag", tmp_path / "test_batch"
    path.write_bytes(make(str(flag)))
    with pytest.raises(CorruptDataError, match=message) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["test_batch"]


WRONG_BATCHES = {
    "no labels": ({"data": np.zeros((2, 3072), np.uint8)}, "expected the keys 'data' and 'labels'"),
    "labels beyond 9": (batch(2, 0) | {"labels": [3, 12]}, "from 3 to 12"),
    "empty": ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "expected labels 0 to 9"),
    "too few labels": (batch(2, 0) | {"labels": [1]}, r"shape \(1, 3072\).*found \(2, 3072\)"),
    "small images": (batch(2, 0) | {"data": np.zeros((2, 64), np.uint8)}, r"found \(2, 64\)"),
    "no array": (batch(2, 0) | {"data": [1, 2]}, r"found \(2,\)"),
}


@pytest.mark.parametrize("case", WRONG_BATCHES)
def test_wrong_batches_are_refused_by_file(tmp_path: Path, case: str) -> None:
    content, message = WRONG_BATCHES[case]
    write_batches(tmp_path, "protocol 4")
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content))
    with pytest.raises(CorruptDataError, match=message) as caught:
        load("cifar10", tmp_path)
    assert "data_batch_3" in str(caught.value)


def write_archive(path: Path, count: int, **changes: Any) -> np.ndarray:
    """Write `count` small JPEG images; return their decoded pixels (count, 3, 32, 32)."""
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(count)
    files, pixels = [], []
    for _ in range(count):
        stream = io.BytesIO()
        image_module.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(stream, "JPEG", quality=75)
        files.append(stream.getvalue())
        pixels.append(np.asarray(image_module.open(io.BytesIO(files[-1]))).transpose(2, 0, 1))
    content = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *(len(file) for file in files)]),
        "label": (np.arange(count) % 10).astype(np.uint8),
    }
    content |= {key: change(content[key]) for key, change in changes.items() if change is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in content.items() if changes.get(key, 0) is not None})
    return np.stack(pixels)


@pytest.mark.parametrize("inside", ["CIFAR10-jpeg", ""])
def test_the_jpeg_archive_loads_and_is_titled_as_such(tmp_path: Path, inside: str) -> None:
    pixels = write_archive(tmp_path / inside / "train.npz", 12)
    write_archive(tmp_path / inside / "test.npz", 3)
    split = load("cifar10", tmp_path)
    assert split.title == "CIFAR-10 (JPEG q75)" and "CIFAR-10 (JPEG q75)" in str(split)
    np.testing.assert_allclose(split.x_train.numpy(), pixels / 255, atol=1e-7)
    assert split.y_train.tolist() == [*range(10), 0, 1] and split.x_test.shape == (3, 3, 32, 32)
    assert load("cifar10", tmp_path, limit=2).x_train.shape == (2, 3, 32, 32)


def test_the_original_batches_are_preferred(tmp_path: Path) -> None:
    write_archive(tmp_path / "CIFAR10-jpeg" / "train.npz", 2)
    write_archive(tmp_path / "CIFAR10-jpeg" / "test.npz", 2)
    write_batches(tmp_path / "cifar-10-batches-py", "python 2")
    assert load("cifar10", tmp_path).title == "CIFAR-10"


WRONG_ARCHIVES = {
    "a key missing": ({"label": None}, r"missing \['label'\]"),
    "pickled objects": ({"label": lambda v: v.astype(object)}, "without pickles"),
    "an offset short": ({"offset": lambda v: v[:-1]}, "expected 4 increasing offsets"),
    "offsets beyond the end": ({"offset": lambda v: v + (v > 0) * 10}, "increasing offsets"),
    "offsets going back": ({"offset": lambda v: v[[0, 2, 1, 3]]}, "increasing offsets"),
    "a broken image": ({"jpeg": lambda v: np.where(np.arange(v.size) < 300, 0, v).astype(np.uint8)}, "image 0 to be"),
    "labels beyond 9": ({"label": lambda v: v + np.uint8(9)}, "from 9 to 11"),
}


@pytest.mark.parametrize("case", WRONG_ARCHIVES)
def test_wrong_archives_are_refused_by_file(tmp_path: Path, case: str) -> None:
    changes, message = WRONG_ARCHIVES[case]
    write_archive(tmp_path / "train.npz", 3)
    write_archive(tmp_path / "test.npz", 3, **changes)
    with pytest.raises(CorruptDataError, match=message) as caught:
        load("cifar10", tmp_path)
    assert "test.npz" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "an .npy file", "empty"])
def test_damaged_archives_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "train.npz"
    write_archive(path, 3)
    write_archive(tmp_path / "test.npz", 3)
    if damage == "an .npy file":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[: 900 if damage == "truncated" else 0])
    with pytest.raises(CorruptDataError, match="expected a NumPy archive"):
        load("cifar10", tmp_path)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image_module.new("L", (16, 32)).save(stream, "JPEG")
    raw = np.frombuffer(stream.getvalue(), np.uint8)
    for name in ("train.npz", "test.npz"):
        np.savez(tmp_path / name, jpeg=raw, offset=np.array([0, raw.size]), label=np.zeros(1, np.uint8))
    with pytest.raises(CorruptDataError, match=r"32 x 32 RGB JPEG, found L of size \(16, 32\)"):
        load("cifar10", tmp_path)


def test_without_pillow_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "train.npz", 1)
    write_archive(tmp_path / "test.npz", 1)
    real = builtins.__import__

    def without_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "PIL":
            raise ImportError("No module named 'PIL'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ImportError, match="pip install pillow"):
        load("cifar10", tmp_path)


def test_missing_names_both_forms(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        load("cifar10", tmp_path)
    text = str(caught.value)
    assert "data_batch_5, test_batch" in text and "train.npz, test.npz" in text
    assert str(tmp_path / "cifar-10-batches-py") in text and str(tmp_path / "CIFAR10-jpeg") in text
