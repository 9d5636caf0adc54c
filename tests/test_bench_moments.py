"""The benches `moments` and `homeostasis`: their formulas, and small runs from end to end."""

from __future__ import annotations

import math

import pytest
import torch

import pyrostoch as ps
from pyrostoch.bench.case import Setting, TrialContext
from pyrostoch.bench.published.binary import binary_cnn, binary_mlp
from pyrostoch.bench.published.gaps import random_network, unit_covariances, wu_ramp, wu_step
from pyrostoch.bench.published.homeostasis import COMPENSATIONS, FACTORS, HOMEOSTASIS, homeostasis_trial
from pyrostoch.bench.published.moments import MOMENTS
from pyrostoch.bench.published.posterior import Problem, fit_posteriors
from pyrostoch.bench.recipe import Recipe
from pyrostoch.moments import Knot, Piecewise

F64 = {"dtype": torch.float64}


def context(tmp_path, bench, case, recipe, split=None):
    return TrialContext(bench.case(case), recipe, Setting("quick", tmp_path), 0, lambda row: None, split)


@pytest.mark.parametrize(("unit", "approximation"), [("jump", wu_step), ("kink", wu_ramp)])
def test_the_approximations_from_the_literature_are_exact_to_second_order(unit, approximation):
    exact = Piecewise((Knot(**{unit: 1.0}),))
    one, rho = torch.ones((), **F64), torch.tensor([-0.7, 0.3, 0.9], **F64)

    def both(a, b):
        a, b = (torch.full_like(rho, value) for value in (a, b))
        return exact.covariance((a, b), (one, one), rho), approximation(a, b, rho)

    torch.testing.assert_close(*both(0.0, 0.0), atol=1e-12, rtol=1e-10)
    small = [(one - other).abs().max().item() for one, other in (both(0.1, -0.05), both(0.2, -0.1))]
    # The error is of fourth order: twice the distance, sixteen times the error.
    assert 8.0 < small[1] / small[0] < 32.0


@pytest.mark.parametrize("kind", ["threshold", "relu"])
def test_exact_covariances_beat_the_approximations(tmp_path, kind):
    found = unit_covariances(kind)(context(tmp_path, MOMENTS, f"covariance/{kind}", Recipe(epochs=1)))
    assert found["covariance/exact"] < 1e-8 < found["covariance/wu"] < found["covariance/linear"]


def test_full_covariances_reduce_the_error_in_a_random_network(tmp_path):
    trial = context(tmp_path, MOMENTS, "random/2x50/full", Recipe(epochs=6))
    full, diagonal = (random_network(2, 50, full)(trial) for full in (True, False))
    assert abs(full["gap/variance"]) < 0.5 * abs(diagonal["gap/variance"])


def test_the_figure_has_the_random_networks_that_were_run():
    scores = {"gap/variance": -0.1, "gap/mean": 0.2, "gap/draws": None, "time/moments": 3.0}
    figure = MOMENTS.figure({"random/1x50/diagonal": scores, "random/2x50/diagonal": {**scores, "gap/draws": 25.0}})
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[10.0, 10.0]]
    assert figure.axes[2].lines[0].get_ydata().tolist() == [25.0]
    assert MOMENTS.figure({"covariance/relu": {}}) is None


def test_posteriors_are_those_of_bayes_rule():
    problem = Problem.draw(4, 0)
    assert problem.images.shape == (4, 4) and problem.covariance.shape == (4, 4, 4)
    # More contrast, less uncertainty; at contrast 0 the posterior is the prior.
    traces = problem.covariance.diagonal(dim1=1, dim2=2).sum(1)
    assert (traces.diff() < 0).all()
    torch.testing.assert_close(problem.mean[0], torch.full((4,), 2.0, **F64))


def test_training_on_frozen_noise_reduces_the_distance_from_the_posteriors():
    found = fit_posteriors(3, epochs=4, lr=0.02, runs=10)
    assert found.mean_error < 0.7 * found.untrained_mean_error
    assert math.isfinite(found.covariance_error) and found.moments_mean_error < found.untrained_mean_error


def test_networks_of_binary_neurons_have_the_shapes_of_their_data():
    split = ps.data.load("digits")
    assert binary_mlp(split, (7,))(split.x_test[:5]).shape == (5, 10)
    images = type("Split", (), {"input_shape": (1, 28, 28), "num_classes": 10})
    assert binary_cnn(images, (3, 4), 9)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_homeostasis_runs_from_end_to_end(tmp_path):
    recipe = Recipe(epochs=20, batch_size=50, lr=1e-2, estimator="moments:closed", examples=600)
    found = homeostasis_trial(context(tmp_path, HOMEOSTASIS, "mnist/dense", recipe, ps.data.load("digits")))
    assert {f"accuracy/{compensation}/noise-{factor:g}" for compensation in COMPENSATIONS for factor in FACTORS} <= set(
        found
    )
    assert found["accuracy/off/noise-1"] > 0.85
    assert found["accuracy/oracle/noise-4"] > found["accuracy/off/noise-4"]
    assert found["transfer/gain-and-bias/noise-4"] < 0.3 * found["transfer/off/noise-4"]
    assert found["distance/gain-and-bias/noise-4"] < found["distance/bias/noise-4"]
    assert found["scores/noise-after"] < found["scores/noise-before"]
    assert (tmp_path / "figures" / "homeostasis-quick.png").stat().st_size > 10_000
