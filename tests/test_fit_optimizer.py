"""`fit` with optimizers, schedules and temperatures of the user's."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.safefile import CheckpointError

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "sgd, momentum": partial(torch.optim.SGD, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "adam, amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
    "nadam": torch.optim.NAdam,
}


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 24)[:, None].double() * torch.ones(1, 3).double()
    return x, x[:, :1].sin()


def build() -> tuple[ps.BayesianModel, ps.guides.Additive]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.3), num_data=24)
    return model, ps.guides.Additive(model)


def run(**settings: Any) -> tuple[ps.guides.Additive, ps.Fit]:
    model, guide = build()
    options: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 1e-3, "seed": 0, "progress": False, "compile": False}
    return guide, ps.fit(model, guide, data(), **{**options, **settings})


class Stop(Exception):
    pass


def stop(row: dict[str, Any]) -> None:
    if row["epoch"] == 1:
        raise Stop


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_goes_on_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": OPTIMIZERS[name], "checkpoint": tmp_path / "run.safetensors"}
    whole, _ = run(optimizer=OPTIMIZERS[name])
    assert any(
        not torch.equal(one, other) for one, other in zip(whole.parameters(), build()[1].parameters(), strict=True)
    )
    with pytest.raises(Stop):
        run(callback=stop, **settings)
    resumed, _ = run(resume=True, **settings)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        run(callback=stop, optimizer=torch.optim.SGD, checkpoint=path)
    with pytest.raises(CheckpointError, match="optimizer="):
        run(resume=True, optimizer=torch.optim.AdamW, checkpoint=path)


def test_the_learning_rate_of_log_alpha_is_a_group_of_the_optimizer() -> None:
    seen: list[Any] = []

    def make(groups: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups)
        seen.append(optimizer)
        return optimizer

    model, _ = build()
    guide = ps.guides.LayerwiseAlpha(model)
    ps.fit(model, guide, data(), epochs=1, lr=1e-4, lr_alpha=1e-2, optimizer=make, schedule="constant", progress=False)
    assert [group["lr"] for group in seen[0].param_groups] == [1e-4, 1e-2]


def test_optimizers_that_cannot_be_used_are_refused() -> None:
    class Counts(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step()
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["count"] = 1

    other = nn.Parameter(torch.zeros(1))
    for make, error, message in (
        (torch.optim.LBFGS, TypeError, "LBFGS computes the loss several times in a step"),
        (lambda groups: 3, TypeError, "makes a int"),
        (lambda groups: torch.optim.SGD([other], lr=0.1), ValueError, "must use the groups that it is called with"),
        (Counts, TypeError, "keeps a int of each parameter, 'count', that cannot be put back"),
    ):
        with pytest.raises(error, match=message):
            run(optimizer=make)


def test_a_schedule_of_the_users_sets_the_rates() -> None:
    _, found = run(schedule=lambda done: 1.0 + done, epochs=4)
    # The last step of each epoch of three steps.
    assert found.history["lr"] == pytest.approx([1e-3 * (1 + step / 12) for step in (2, 5, 8, 11)])
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="schedule: expected a factor from 0 up"):
            run(schedule=lambda done, wrong=wrong: wrong)


def test_a_temperature_weighs_the_divergence() -> None:
    # Of one weight with a normal prior and noise: precision 1 + n x^2 / (T s^2).
    x = torch.ones(10, 1).double()
    model = ps.BayesianModel(
        nn.Linear(1, 1, bias=False).double(),
        prior=ps.priors.Normal(),
        likelihood=ps.likelihoods.Gaussian(2.0),
        num_data=10,
    )
    guide = ps.guides.Additive(model, init_scale=0.3)
    settings: dict[str, Any] = {"epochs": 3000, "lr": 0.02, "batch_size": 10, "estimator": "moments", "compile": False}
    found = ps.fit(model, guide, (x, x), temperature=0.25, seed=0, progress=False, **settings)
    exact = 1.0 / (1.0 + 10 / (0.25 * 4.0))
    assert guide.site_distribution("weight").variance.item() == pytest.approx(exact, rel=1e-3)
    assert found.temperature == 0.25 and "temperature 0.25, which maximizes no ELBO" in str(found)
    assert found.history["kl_weight"][-1] == 0.25
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            run(temperature=wrong)
