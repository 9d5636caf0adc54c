"""The report page of a model that was fitted in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from commands import call
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.likelihoods import Categorical, Gaussian, Joint, Loss, Weighted
from pyrostoch.runs.folder import RunError

N = 60


def fitted(likelihood: Any, net: nn.Module, x: Tensor, y: Any) -> tuple[Any, Any, Any]:
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=N)
    guide = ps.guides.Additive(model)
    return model, guide, ps.fit(model, guide, (x, y), epochs=3, seed=0, progress=False, compile=False)


def test_the_page_has_the_numbers_of_the_verbs(tmp_path: Path) -> None:
    x = torch.randn(2 * N, 3)
    y = (x[:, 0] > 0).long()
    train, test = (x[:N], y[:N]), (x[N:], y[N:])
    model, guide, fit = fitted(Categorical(), nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), *train)
    page = ps.write_report(model, guide, train, test, out=tmp_path / "run", fit=fit, title="Points & more", seed=3)
    record = json.loads((tmp_path / "run/results.json").read_text())
    result = record["guides"][0]
    expected = ps.compare(model, guide, test, modes=("mean", "moments"), seed=3)
    for row in expected.rows:
        found = next(each for each in result["rows"] if each["mode"] == row.mode)
        assert found["accuracy"] == row.accuracy
        assert found["nll"] == pytest.approx(row.nll, rel=1e-6)
    assert result["decomposition"]["kl"] == pytest.approx(ps.decompose(model, guide, train).kl)
    assert result["history"]["elbo"] == fit.history["elbo"]
    assert (record["data"]["train"], record["data"]["test"], record["data"]["classes"]) == (N, N, 2)
    text = page.read_text()
    assert "Points &amp; more" in text
    assert text.count("<svg") == 4  # training, samples, calibration, posterior
    ps.write_report(model, guide, train, test, out=tmp_path / "run")  # again, without curves of the training
    assert page.read_text().count("<svg") == 3
    # Commands that need the run say why they cannot have it.
    assert "pyrostoch.write_report wrote it in Python" in call("evaluate", str(tmp_path / "run"), code=2)


def test_scores_of_a_regression_are_in_the_original_units(tmp_path: Path) -> None:
    x = torch.randn(2 * N, 3)
    y = x.sum(1, keepdim=True)
    model, guide, _ = fitted(Gaussian(0.5), nn.Linear(3, 1), x[:N], y[:N])
    rows = {}
    for std in (1.0, 4.0):
        page = ps.write_report(model, guide, (x[:N], y[:N]), (x[N:], y[N:]), out=tmp_path / f"{std}", target_std=std)
        rows[std] = json.loads((tmp_path / f"{std}/results.json").read_text())["guides"][0]["rows"][0]
        assert ("standardized target" in page.read_text()) == (std != 1.0)
    assert rows[4.0]["rmse"] == pytest.approx(4.0 * rows[1.0]["rmse"])


class Sorting(nn.Module):
    """Has an operation that moments have no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(x).sort(1).values)
        return found


def test_what_is_left_out_and_what_is_no_posterior_of_the_data_is_said(tmp_path: Path) -> None:
    x, y = torch.randn(N, 3), torch.randint(0, 2, (N,))
    targets = {"target": y, "weight": torch.rand(N)}
    model, guide, _ = fitted(Weighted(Categorical()), Sorting(), x, targets)
    text = ps.write_report(model, guide, (x, targets), (x, targets), out=tmp_path).read_text()
    assert "Additive has no scores by moments: " in text
    assert "The likelihood is a pseudo-likelihood" in text


def test_what_a_page_cannot_show_is_refused(tmp_path: Path) -> None:
    x, y = torch.randn(N, 3), torch.randn(N, 1)

    class Heads(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"a": super().forward(x)}

    heads: Any = (x, {"a": y})
    model, guide, _ = fitted(Joint({"a": Gaussian(1.0)}), Heads(3, 1), *heads)
    with pytest.raises(ValueError, match="heads 'a'"):
        ps.write_report(model, guide, heads, heads, out=tmp_path)
    model, guide, _ = fitted(Loss(lambda out, y: (out - y).square().sum(1)), nn.Linear(3, 1), x, y)
    with pytest.raises(ValueError, match="a loss"):
        ps.write_report(model, guide, (x, y), (x, y), out=tmp_path)
    with pytest.raises(TypeError, match="BayesianModel"):
        ps.write_report(nn.Linear(1, 1), guide, (x, y), (x, y), out=tmp_path)  # type: ignore[arg-type]
    model, guide, _ = fitted(Gaussian(1.0), nn.Linear(3, 1), x, y)
    (tmp_path / "run").mkdir()
    record = {"schema": 1, "kind": "train", "config": {}, "guides": [], "data": {}, "seconds": 0.0}
    (tmp_path / "run/results.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="holds a run of the command line"):
        ps.write_report(model, guide, (x, y), (x, y), out=tmp_path / "run")


def test_a_scale_of_several_outputs_and_a_likelihood_without_a_mean(tmp_path: Path) -> None:
    x, y = torch.randn(N, 3), torch.randn(N, 2)
    model, guide, _ = fitted(Gaussian(1.0), nn.Linear(3, 2), x, y)
    with pytest.raises(ValueError, match="target_std is for a single output"):
        ps.write_report(model, guide, (x, y), (x, y), out=tmp_path, target_std=3.0)
    model, guide, _ = fitted(lambda output: dist.Cauchy(output, 1.0), nn.Linear(3, 2), x, y)
    assert ps.write_report(model, guide, (x, y), (x, y), out=tmp_path).is_file()
