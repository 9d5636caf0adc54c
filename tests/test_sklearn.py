"""The estimators in scikit-learn's own checks, in pipelines, on data frames, and beside the library's other verbs."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyrostoch as ps

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_iris, make_regression  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from pyrostoch.sklearn import BayesianClassifier, BayesianRegressor  # noqa: E402

IRIS = load_iris(return_X_y=True)


@pytest.mark.parametrize("kind", [BayesianClassifier, BayesianRegressor])
def test_scikit_learns_own_checks(kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(kind((10,), epochs=15, lr=0.1, batch_size=50, num_samples=5), on_fail=None)
    failed = [result["check_name"] for result in results if result["status"] not in ("passed", "skipped")]
    assert not failed and len(results) > 40


def test_pipelines_and_searches() -> None:
    x, y = IRIS
    settings: dict[str, Any] = {"epochs": 150, "num_samples": 10, "random_state": 0}
    pipeline = make_pipeline(MinMaxScaler(), BayesianClassifier((10,), **settings))
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.85
    settings["epochs"] = 5
    search = GridSearchCV(BayesianClassifier(**settings), {"hidden": [(5,), (10,)]}, cv=2).fit(x, y)
    assert search.best_params_["hidden"] in ((5,), (10,))
    one = BayesianClassifier((10,), **settings).fit(x, y)
    other = clone(one).fit(x, y)
    assert np.array_equal(one.predict_proba(x), other.predict_proba(x))
    assert np.array_equal(pickle.loads(pickle.dumps(one)).predict_proba(x), one.predict_proba(x))


def test_data_frames_and_names_of_classes() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = IRIS
    frame = pandas.DataFrame(x, columns=["a", "b", "c", "d"])
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    estimator = BayesianClassifier((10,), epochs=30, random_state=0).fit(frame, names)
    assert list(estimator.feature_names_in_) == ["a", "b", "c", "d"]
    assert set(estimator.predict(frame)) <= set(names) and list(estimator.classes_) == sorted(set(names))
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame.rename(columns={"a": "z"}))


def test_standard_deviations_are_those_of_the_predictions() -> None:
    generator = np.random.default_rng(0)
    x = generator.uniform(-2, 2, (500, 1))
    y = 100.0 + 30.0 * np.sin(x[:, 0]) + 5.0 * generator.normal(size=500)
    estimator = BayesianRegressor((30,), epochs=150, random_state=0).fit(x, y)
    mean, std = estimator.predict(x, return_std=True)
    inputs = estimator._inputs(x)
    expected = ps.predict(estimator.model_, estimator.guide_, inputs, mode="mc:2000", joint=True, seed=1)
    assert np.allclose(mean, expected.mean[:, 0].numpy() * estimator.target_scale_ + estimator.target_mean_, atol=1.0)
    assert np.allclose(std, expected.variance[:, 0].sqrt().numpy() * estimator.target_scale_, rtol=0.1)
    fresh = generator.uniform(-2, 2, (2000, 1))
    truth = 100.0 + 30.0 * np.sin(fresh[:, 0]) + 5.0 * generator.normal(size=2000)
    mean, std = estimator.predict(fresh, return_std=True)
    covered = (np.abs(truth - mean) < 1.645 * std).mean()
    assert 0.82 < covered < 0.97
    far = estimator.predict(np.array([[0.0], [30.0]]), return_std=True)[1]
    assert far[1] > 2 * far[0]


def test_several_targets_and_networks_of_ones_own() -> None:
    x, y = make_regression(n_samples=120, n_features=3, n_targets=2, random_state=0)
    settings: dict[str, Any] = {"epochs": 400, "random_state": 0, "dtype": "float32"}
    estimator = BayesianRegressor(
        net=lambda inputs, outputs: nn.Linear(inputs, outputs),
        prior=ps.priors.Normal(0, 3),
        guide=lambda model: ps.guides.Additive(model, init_scale=0.01),
        **settings,
    ).fit(x, y)
    mean, std = estimator.predict(x, return_std=True)
    assert mean.shape == std.shape == (120, 2) and estimator.score(x, y) > 0.8
    assert isinstance(estimator.model_.net, nn.Linear) and estimator.model_.net.weight.dtype == torch.float32
    terms = ps.decompose(
        estimator.model_,
        estimator.guide_,
        (estimator._inputs(x), torch.tensor((y - estimator.target_mean_) / estimator.target_scale_).float()),
    )
    assert np.isfinite(terms.elbo)


def test_bad_input_is_named() -> None:
    x, y = IRIS
    with pytest.raises(ValueError, match="at least two classes, got one class"):
        BayesianClassifier(epochs=1).fit(x, np.zeros(len(x)))
    with pytest.raises(ValueError, match="dtype: expected one of 'float32', 'float64'"):
        BayesianClassifier(epochs=1, dtype="half").fit(x, y)
    with pytest.raises(ValueError, match="Unknown label type"):
        BayesianClassifier(epochs=1).fit(x, np.linspace(0, 1, len(x)))


def test_importing_pyrostoch_does_not_import_it() -> None:
    code = "import sys, pyrostoch as ps; assert 'sklearn' not in sys.modules; print(ps.sklearn.BayesianClassifier)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "BayesianClassifier" in done.stdout, done.stderr
