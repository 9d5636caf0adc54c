"""A loss that becomes NaN or infinite: its step and cause are named, and the last good state is restored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.infer.batches import epoch_order
from pyrostoch.safefile import read_file
from pyrostoch.training.fit import fit
from pyrostoch.training.trainer import NonFiniteLossError

X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(-1, keepdim=True)


class Net(nn.Module):
    """A linear layer, and a parameter that only the penalty uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 1)
        self.knob = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


def build(penalty: Any = None) -> tuple[ps.BayesianModel, ps.guides.Additive]:
    model = ps.BayesianModel(
        Net(),
        prior={"linear.weight": ps.priors.Normal()},
        likelihood=ps.likelihoods.Gaussian(1.0),
        num_data=20,
        penalty=penalty,
    )
    return model, ps.guides.Additive(model)


def train(model: ps.BayesianModel, guide: nn.Module, y: Tensor = Y, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 5, "lr": 0.01, "seed": 1, "progress": False}
    return fit(model, guide, (X, y), **{**settings, "schedule": "constant", **options})


def state(*modules: nn.Module) -> list[Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_data_term_is_named_with_its_step_and_all_is_restored() -> None:
    model, guide = build()
    before = state(model, guide)
    y = Y.clone()
    y[13] = 1e30  # finite, but its square is not
    step = 1 + next(i for i, rows in enumerate(epoch_order(1, 1, 20).split(5)) if 13 in rows)
    with pytest.raises(
        NonFiniteLossError, match=f"epoch 1, step {step} of 4: NaN or infinite: data term.*started"
    ) as info:
        train(model, guide, y)
    assert (info.value.epoch, info.value.step, info.value.where) == (1, step, ["data term"])
    assert isinstance(info.value, FloatingPointError)
    assert same(before, state(model, guide))
    assert all(parameter.grad is None for parameter in model.parameters())


def falling(net: nn.Module) -> Tensor:
    """Infinite once `knob`, which falls by 0.01 a step, is below -0.055: at the seventh step."""
    return net.knob + torch.where(net.knob < -0.055, torch.inf, 0.0)


def test_the_last_good_epoch_is_restored_and_stays_in_the_checkpoint(tmp_path: Path) -> None:
    model, guide = build(falling)
    good: list[list[Tensor]] = []
    path = tmp_path / "run"
    with pytest.raises(
        NonFiniteLossError, match="epoch 2, step 3 of 4: NaN or infinite: penalty.*where epoch 1"
    ) as info:
        train(model, guide, checkpoint=path, callback=lambda row: good.append(state(model, guide)))
    assert len(good) == 1 and same(good[0], state(model, guide))
    assert info.value.__notes__ == [f"The checkpoint {path} holds the end of epoch 1."]
    tensors, content = read_file(path)
    assert content["training"]["epoch"] == 1 and model.net.knob.item() == pytest.approx(-0.04)
    assert torch.equal(tensors["model.net.knob"], model.net.knob)
    with pytest.raises(NonFiniteLossError, match="epoch 2, step 3 of 4"):
        train(*build(falling), checkpoint=path, resume=True)


def test_the_site_is_named() -> None:
    model, guide = build()
    with pytest.raises(NonFiniteLossError, match=re.escape("KL of site 'linear.weight'")) as info:
        train(model, guide, lr=1000.0)
    assert info.value.step == 2


def test_a_gradient_that_is_nan_after_a_finite_last_loss_is_found() -> None:
    model, guide = build(lambda net: net.knob.square().sqrt())
    before = state(model, guide)
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 1 of 1, after its update: .*'model.net.knob'"):
        train(model, guide, batch_size=20)
    assert same(before, state(model, guide))


def test_a_parameter_that_is_nan_at_a_step_is_named() -> None:
    model, guide = build(lambda net: net.knob.square().sqrt())
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 2 of 4: ") as info:
        train(model, guide)
    assert info.value.where == ["parameter 'model.net.knob'", "penalty"]


def test_a_failure_that_does_not_repeat_is_reported_as_such() -> None:
    calls: list[int] = []

    def once(net: nn.Module) -> Tensor:
        calls.append(1)
        return net.knob + (torch.inf if len(calls) == 6 else 0.0)

    with pytest.raises(NonFiniteLossError, match="epoch 2, step 2 of 4: .*does not repeat"):
        train(*build(once))
