"""Inputs and settings that prediction accepts or refuses, and its result as text and plain data."""

from __future__ import annotations

import json
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.prediction import Prediction, predict
from pyrostoch.prediction.readouts import parse_mode

F64 = {"dtype": torch.float64}


def network(likelihood=None, outputs=1):
    net = nn.Linear(3, outputs, bias=False, **F64)
    likelihood = ps.likelihoods.Gaussian(0.3) if likelihood is None else likelihood
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=10)
    return model, ps.guides.Additive(model, init_scale=0.4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("mc", None), ("mc", 20)),
        (("mc", 7), ("mc", 7)),
        (("mc:5", None), ("mc", 5)),
        (("mc:5", 5), ("mc", 5)),
        (("mean", None), ("mean", 1)),
        (("moments:mc", None), ("moments:mc", 20)),
        (("moments:full:mc:7:closed", None), ("moments:full:mc:closed", 7)),
        (("moments:mc:closed", 3), ("moments:mc:closed", 3)),
        (("moments:closed", None), ("moments:closed", 1)),
    ],
)
def test_modes(given, expected):
    assert parse_mode(*given) == expected


@pytest.mark.parametrize(
    ("mode", "num_samples", "message"),
    [
        ("mc:5", 10, "'mc:5' and num_samples=10 contradict"),
        ("mc:0", None, "from 1 up"),
        ("mc:", None, "from 1 up"),
        ("mc:2.5", None, "got '2.5'"),
        ("mc", 0, "num_samples: .* got 0"),
        ("mc", True, "num_samples: .* got True"),
        ("mean", 3, "draws nothing"),
        ("mean:3", None, "draws nothing"),
        ("means", None, "expected one of 'mean', 'mc', .*got 'means'; did you mean 'mean'"),
        ("md:3", None, "'mc:K', .*got 'md:3'"),
        ("moments:7", None, "'moments:mc:K', .*got 'moments:7'"),
        ("moments:mc:0", None, "from 1 up"),
        ("moments:mc:closed:7", None, "got 'moments:mc:closed:7'"),
        ("moments:mc:7", 8, "contradict"),
        ("mc:closed", None, "got 'mc:closed'"),
    ],
)
def test_wrong_modes_are_refused(mode, num_samples, message):
    with pytest.raises(ValueError, match=message):
        parse_mode(mode, num_samples)


def _nan():
    x = torch.zeros(4, 3, **F64)
    x[2, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (_nan(), {}, ValueError, "inputs x: .* 1 NaN or infinite .* row 2"),
        (torch.zeros(0, 3, **F64), {}, ValueError, "at least one example"),
        ("text", {}, TypeError, "got str"),
        (torch.zeros(4, 3, **F64), {"batch_size": 0}, ValueError, "batch_size: .* got 0"),
        (torch.zeros(4, 3, **F64), {"y": torch.zeros(3, 1)}, ValueError, "4 targets, one per example, got 3"),
        (torch.zeros(4, 3, **F64), {"y": torch.zeros(4, **F64)}, ValueError, r"targets of shape \(4, 1\)"),
        (torch.zeros(4, 3, **F64), {"y": torch.full((4, 1), math.nan)}, ValueError, "4 target.* NaN"),
        (torch.zeros(4, 3, **F64), {"device": "meta"}, ValueError, "device 'meta': the model is on cpu"),
        (torch.zeros(4, 3, device="meta"), {}, ValueError, "inputs x are on meta, .* give device='cpu'"),
        (torch.zeros(4, 3, **F64), {"mode": "moment"}, ValueError, "mode: expected one of"),
    ],
)
def test_bad_inputs_are_refused(x, options, error, message):
    model, guide = network()
    with pytest.raises(error, match=message):
        predict(model, guide, x, **options)


def test_unsuitable_models_and_guides_are_refused():
    model, guide = network()
    x = torch.zeros(4, 3, **F64)
    with pytest.raises(TypeError, match="method observation.*got Linear"):
        predict(nn.Linear(3, 1), guide, x)
    net = nn.Sequential(nn.Linear(3, 1, **F64))
    other = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=4)
    with pytest.raises(ValueError, match="no draw for the model's site.* '0.weight'; the guide has 'weight'"):
        predict(other, guide, x, mode="mean")
    batched = ps.likelihoods.Likelihood()
    batched.distribution = lambda output, **_: dist.Normal(output, 1.0)
    with pytest.raises(ValueError, match=r"one batch axis, the examples, got batch shape \(4, 1\)"):
        predict(*network(batched), x)
    with pytest.raises(ValueError, match="LowRank.* has no known mean or variance"):
        LowRank = type("LowRank", (dist.Normal,), {"mean": property(_not_known)})
        predict(*network(lambda out: LowRank(out, 1.0)), x)


def _not_known(self):
    raise NotImplementedError


def test_a_prediction_is_printed_as_a_table_and_converted_to_plain_data():
    model, guide = network(ps.likelihoods.Categorical(), outputs=3)
    found = predict(model, guide, torch.randn(4, 3, **F64), y=torch.tensor([0, 1, 2, 0]), mode="mc:2")
    text = str(found)
    for part in ("4 examples, 3 classes, mode 'mc' (2 samples)", "epistemic entropy, nats", "log density"):
        assert part in text
    plain = json.loads(json.dumps(found.to_dict()))
    assert torch.allclose(torch.tensor(plain["log_probs"], **F64), found.log_probs) and plain["num_samples"] == 2
    assert "variance" in str(predict(*network(), torch.zeros(2, 3, **F64), mode="mean"))
    with pytest.raises(AttributeError):
        found.mode = "mean"
    assert isinstance(found, Prediction)
    with pytest.raises(ValueError, match="expected 4 labels"):
        found.log_prob(torch.zeros(3, dtype=torch.long))
