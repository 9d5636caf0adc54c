"""The published files themselves; skipped unless `PYROSTOCH_DATA` is a folder that holds them."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrostoch.data import NAMES, CorruptDataError, DataNotFoundError, DataSplit, load, locate
from pyrostoch.data.cifar import read_cifar
from pyrostoch.data.download import SOURCES, _is_valid
from pyrostoch.data.uci import UCI_SETS, read_uci

pytestmark = pytest.mark.skipif("PYROSTOCH_DATA" not in os.environ, reason="PYROSTOCH_DATA is not set")

MNIST_CLASSES = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST_CLASSES = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def folder_of(name: str) -> Path:
    try:
        return Path(locate(name))
    except DataNotFoundError:
        pytest.skip(f"{name} is not in PYROSTOCH_DATA")


def load_or_skip(name: str) -> DataSplit:
    folder_of(name)
    return load(name)


def test_mnist_has_the_published_values() -> None:
    split = load_or_skip("mnist")
    assert split.x_train.shape == (60_000, 1, 28, 28) and split.x_test.shape == (10_000, 1, 28, 28)
    assert split.y_train.bincount().tolist() == MNIST_CLASSES
    assert split.y_test.bincount().tolist() == MNIST_TEST_CLASSES
    assert split.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert split.y_test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert split.x_train.mean().item() == pytest.approx(0.1307, abs=5e-5)  # the well-known normalization constants
    assert split.x_train.std().item() == pytest.approx(0.3081, abs=5e-5)


def test_fashion_mnist_is_balanced() -> None:
    split = load_or_skip("fashion-mnist")
    assert split.y_train.bincount().tolist() == [6000] * 10 and split.y_test.bincount().tolist() == [1000] * 10
    assert split.y_train[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert split.x_train.mean().item() == pytest.approx(0.2860, abs=5e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_download_sizes_and_checksums_are_those_of_the_published_files(name: str) -> None:
    folder = folder_of(name)
    for remote in SOURCES[name].files:
        if not (folder / remote.name).is_file():
            pytest.skip(f"{name} is not compressed")
        assert _is_valid(folder / remote.name, remote)
        md5 = hashlib.md5((folder / remote.name).read_bytes(), usedforsecurity=False)
        assert md5.hexdigest() == remote.md5


def test_the_two_sets_are_not_confused(tmp_path: Path) -> None:
    for name, other in (("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")):
        folder = tmp_path / name
        folder.mkdir()
        for file in folder_of(name).iterdir():
            (folder / file.name).symlink_to(file.resolve())
        with pytest.raises(CorruptDataError, match="The two sets share their file names"):
            load(other, folder)


def test_the_jpeg_archive_decodes_to_the_published_pixels() -> None:
    folder = folder_of("cifar10")
    if not (folder / "test.npz").is_file():
        pytest.skip("CIFAR-10 is in its original format")
    images, labels = read_cifar(folder, "test")
    digest = hashlib.sha256(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes()).hexdigest()
    assert digest == "5fce8f6a84d7de12f276662376ce80f5f19c236502ddae2e16c3f187c0386c13"
    np.testing.assert_array_equal(labels, np.arange(10_000) % 10)
    split = load("cifar10", limit=20)
    assert split.title == "CIFAR-10 (JPEG q75)" and split.x_train.shape == (20, 3, 32, 32)
    assert split.y_train.bincount().tolist() == [2] * 10


SIZES = {
    "bostonHousing": (455, 51, 13),
    "concrete": (927, 103, 8),
    "energy": (691, 77, 8),
    "kin8nm": (7373, 819, 8),
    "power-plant": (8611, 957, 4),
    "wine-quality-red": (1439, 160, 11),
    "yacht": (277, 31, 6),
}


@pytest.mark.parametrize("name", UCI_SETS)
def test_every_uci_split_is_a_partition(name: str) -> None:
    folder = folder_of(f"uci:{name}")
    data = next(path for path in (folder / "data.txt.gz", folder / "data.txt") if path.is_file())
    table = np.loadtxt(data)
    wanted = np.sort(table.view([("", table.dtype)] * table.shape[1]).ravel())
    train_size, test_size, features = SIZES[name]
    for number in (0, 7, 19):
        rows = read_uci(folder, number)
        assert rows.x_train.shape == (train_size, features) and rows.x_test.shape == (test_size, features)
        joined = np.hstack(
            [np.vstack([rows.x_train, rows.x_test]), np.concatenate([rows.y_train, rows.y_test])[:, None]]
        )
        joined = np.ascontiguousarray(joined)
        np.testing.assert_array_equal(np.sort(joined.view(wanted.dtype).ravel()), wanted)
    with pytest.raises(ValueError, match="expected 0 to 19"):
        read_uci(folder, 20)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("uci:")])
def test_uci_sets_are_standardized(name: str) -> None:
    folder_of(name)
    split = load(name, dtype=torch.float64, split=3)
    assert split.target_scale is not None and all(math.isfinite(value) for value in split.target_scale)
    for values in (split.x_train, split.y_train):
        torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), atol=1e-9, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones_like(values[0]), atol=1e-9, rtol=0)
