"""A guide is not read silently with the running statistics that another guide's training left in the network."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.training import NonFiniteLossError

OTHER = "running statistics of its own training"


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 24)[:, None]
    return x, x.sin()


def build() -> ps.BayesianModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    likelihood = ps.likelihoods.Gaussian(0.3)
    return ps.BayesianModel(net, prior=lambda name, value: ps.priors.Normal(), likelihood=likelihood, num_data=24)


def run(model: ps.BayesianModel, guide: nn.Module, **settings: Any) -> None:
    options = {"epochs": 2, "batch_size": 12, "seed": 0, "progress": False, "compile": False, "lr": 1e-2, **settings}
    ps.fit(model, guide, data(), **options)


@pytest.mark.parametrize("verb", ["compare", "decompose", "predict", "draws", "to_arviz"])
def test_an_earlier_guide_is_read_with_a_warning_until_it_has_its_own(verb: str) -> None:
    model = build()
    first, second = ps.guides.Delta(model), ps.guides.Additive(model)
    run(model, first)
    run(model, second)
    x, _ = data()
    settings: Any = {"predict": (x,), "draws": (x,)}.get(verb, (data(),))
    getattr(ps, verb)(model, second, *settings)
    with pytest.warns(UserWarning, match=OTHER):
        getattr(ps, verb)(model, first, *settings)
    ps.fit_statistics(model, first, data())
    getattr(ps, verb)(model, first, *settings)


def test_chains_and_swag_leave_their_statistics_and_ensembles_do_not() -> None:
    kinds: dict[str, tuple[Any, dict[str, Any], bool]] = {
        "chain": (lambda m: ps.guides.Samples.chain(m, 2), {"sampler": ps.SGHMC(), "lr": 1e-6, "epochs": 8}, True),
        "swag": (lambda m: ps.guides.Swag(m, rank=2), {"optimizer": torch.optim.SGD, "schedule": "constant"}, True),
        "ensemble": (lambda m: ps.guides.Ensemble.of(m, size=2), {}, False),
    }
    for name, (make, settings, warns) in kinds.items():
        model = build()
        point = ps.guides.Delta(model)
        run(model, point)
        run(model, make(model), **{"lr": 1e-5, **settings})
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            ps.compare(model, point, data(), modes="mean")
        assert any(OTHER in str(one.message) for one in found) == warns, name


def test_a_laplace_approximation_around_an_earlier_point_warns() -> None:
    model = build()
    point = ps.guides.Delta(model)
    run(model, point)
    guide = ps.guides.Laplace(model, init_loc=point)
    run(model, ps.guides.Additive(model))
    with pytest.warns(UserWarning, match=OTHER):
        ps.compare(model, guide, data(), modes="mean")


def test_training_again_copies_files_and_a_run_that_failed_at_once_do_not_warn(tmp_path: Path) -> None:
    model = build()
    first, second = ps.guides.Delta(model), ps.guides.Delta(model)
    run(model, first)
    ps.save(tmp_path / "first.safetensors", model, first)
    with pytest.raises(NonFiniteLossError):
        run(model, second, lr=1e30)
    ps.compare(model, first, data())
    run(model, second)
    ps.compare(*copy.deepcopy((model, second)), data())
    run(model, first, callback=lambda row: ps.compare(model, first, data()))
    run(model, second)
    ps.load(tmp_path / "first.safetensors", model, first)
    ps.compare(model, first, data())
    with pytest.warns(UserWarning, match=OTHER):
        ps.compare(model, second, data())


def test_laplace_where_batch_statistics_made_the_point_says_what_to_do() -> None:
    model = build()
    point = ps.guides.Delta(model)
    run(model, point)
    with pytest.raises(
        ValueError, match=r"layer\(s\) '1' are trained with the statistics of each batch.*requires_grad_"
    ):
        ps.fit_laplace(model, ps.guides.Laplace(model, init_loc=point), data())
    net: Any = model.net
    with torch.no_grad():
        for name, value in point.draw().items():
            net.get_parameter(name).copy_(value)
    net[1].requires_grad_(False)
    likelihood = ps.likelihoods.Gaussian(0.3)
    fixed = ps.BayesianModel(net, prior={"*": ps.priors.Normal()}, likelihood=likelihood, num_data=24)
    point = ps.guides.Delta(fixed)
    run(fixed, point, epochs=800, batch_size=24, lr=3e-2, schedule="cosine")
    for structure in ("full", "kronecker"):
        ps.fit_laplace(fixed, ps.guides.Laplace(fixed, structure, init_loc=point), data())
