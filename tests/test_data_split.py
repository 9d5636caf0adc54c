"""`load` and `DataSplit`: names, the bundled digits, options, and the held-out split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrostoch.data import NAMES, DataNotFoundError, DataSplit, load, locate
from pyrostoch.data.digits import read_digits


def test_digits_are_the_published_ones() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    published = datasets.load_digits()
    images, labels, test = read_digits()
    np.testing.assert_array_equal(images, published.images)
    np.testing.assert_array_equal(labels, published.target)
    assert test.sum() == 360
    assert np.abs(np.bincount(labels[test]) - np.bincount(labels) * 360 / 1797).max() < 1.0


def test_digits_load_with_fixed_parts() -> None:
    split = load(" Digits ")
    assert split.name == "digits" and split.task == "classification" and split.source == locate("digits") == "bundled"
    assert split.x_train.shape == (1437, 1, 8, 8) and split.x_test.shape == (360, 1, 8, 8)
    assert split.x_train.dtype == torch.float32 and split.y_train.dtype == torch.int64
    assert split.x_train.min() == 0.0 and split.x_train.max() == 1.0
    assert split.num_classes == 10 and split.input_shape == (1, 8, 8) and split.target_scale is None
    images, labels, test = read_digits()
    np.testing.assert_array_equal(split.x_test[:, 0].numpy() * 16, images[test])
    np.testing.assert_array_equal(split.y_train.numpy(), labels[~test])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_limit(dtype: torch.dtype) -> None:
    split = load("digits", dtype=dtype, limit=400)
    assert split.x_train.dtype == split.x_test.dtype == dtype
    assert len(split.x_train) == len(split.y_train) == 400 and len(split.x_test) == 360
    torch.testing.assert_close(split.x_train, load("digits").x_train[:400].to(dtype))


BAD_CALLS = {
    "near miss": (("mnits",), {}, ValueError, "Did you mean 'mnist'"),
    "unknown": (
        ("imagenet",),
        {},
        ValueError,
        "Known: digits, mnist, fashion-mnist, cifar10, cifar100-coarse, cifar100-fine, uci:bostonHousing",
    ),
    "path in a name": (("uci:../secret",), {}, ValueError, "There is no data set"),
    "empty set name": (("uci:",), {}, ValueError, "There is no data set"),
    "a split": (("digits",), {"split": 1}, ValueError, "digits has one standard split"),
    "limit": (("digits",), {"limit": 0}, ValueError, "at least 1 example, got 0"),
    "dtype": (("digits",), {"dtype": torch.int64}, TypeError, "floating dtype"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused(case: str) -> None:
    args, options, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        load(*args, **options)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_error_without_any_data_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYROSTOCH_DATA", raising=False)
    for function in (load, locate):
        with pytest.raises(DataNotFoundError, match="No folder was searched: no data folder was given"):
            function(name)


def test_argument_overrides_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROSTOCH_DATA", str(tmp_path / "variable"))
    with pytest.raises(FileNotFoundError, match="variable.*no such folder"):
        load("mnist")
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist", tmp_path / "argument")
    assert "argument" in str(caught.value) and str(tmp_path / "variable") not in str(caught.value)


def regression(rows: int) -> DataSplit:
    x = torch.arange(rows, dtype=torch.float64)[:, None]
    return DataSplit("toy", "Toy", "regression", x, 2 * x, x[:2] + 100, x[:2] + 200, None, (1,), "bundled", (1.5, 2.0))


def test_holdout_partitions_the_training_part() -> None:
    whole = regression(50)
    inner = whole.holdout(0.2, seed=3)
    assert len(inner.x_train) == 40 and len(inner.x_test) == 10
    assert sorted(torch.cat([inner.x_train, inner.x_test]).flatten().tolist()) == list(range(50))
    torch.testing.assert_close(inner.y_test, 2 * inner.x_test)
    torch.testing.assert_close(inner.y_train, 2 * inner.x_train)
    assert inner.target_scale == whole.target_scale and inner.title == "Toy, held-out training part"
    assert inner.name == whole.name and inner.input_shape == whole.input_shape


def test_holdout_depends_on_its_seed_and_keeps_the_global_random_state() -> None:
    whole = regression(50)
    before = torch.get_rng_state()
    first, again, other = (whole.holdout(0.2, seed=seed).x_test.flatten().tolist() for seed in (1, 1, 2))
    assert first == again and first != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.37, 0.999])
def test_holdout_keeps_the_classes_in_proportion(fraction: float) -> None:
    whole = load("digits")
    inner = whole.holdout(fraction, seed=0)
    assert len(inner.y_test) == round(fraction * 1437) and len(inner.y_train) + len(inner.y_test) == 1437
    share = whole.y_train.bincount(minlength=10) * len(inner.y_test) / 1437
    assert (inner.y_test.bincount(minlength=10) - share).abs().max() < 1.0
    both = torch.cat([inner.x_train, inner.x_test]).flatten(1)
    torch.testing.assert_close(both.sum(0), whole.x_train.flatten(1).sum(0))


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, float("nan"), 0.001, 0.999])
def test_holdout_refuses_empty_parts(fraction: float) -> None:
    with pytest.raises(ValueError, match="toy"):
        regression(10).holdout(fraction, seed=0)


def test_split_is_frozen_and_prints_its_sizes() -> None:
    split = regression(1200)
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.name = "other"  # type: ignore[misc]
    assert str(split) == "Toy [toy]: regression, input 1; 1,200 training and 2 test examples; bundled"
    assert repr(split) == f"DataSplit({split})"
