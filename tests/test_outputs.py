"""What a network returns, averaged over draws, for models whose likelihood is a loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps

F64 = torch.float64


class Two(nn.Module):
    """Two outputs in a nested form."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4, dtype=F64), nn.Linear(4, 2, dtype=F64)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.body(x)
        return {"hidden": hidden, "heads": (self.head(hidden), hidden.sum(1))}


def model_of(net: nn.Module) -> tuple[ps.BayesianModel, ps.guides.Additive]:
    loss = ps.likelihoods.Loss(lambda output, y: (output["heads"][0] - y).square().sum(1))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=loss, num_data=5)
    return model, ps.guides.Additive(model, init_scale=0.3)


def test_mean_weights_give_the_output_of_the_network_with_them_in_its_own_form() -> None:
    model, guide = model_of(Two())
    x = torch.randn(7, 3, dtype=F64)
    found: Any = ps.outputs(model, guide, x, mode="mean", batch_size=3)
    wanted = model.net(x)
    assert list(found) == ["hidden", "heads"] and isinstance(found["heads"], tuple)
    for one, other in zip((found["hidden"], *found["heads"]), (wanted["hidden"], *wanted["heads"]), strict=True):
        torch.testing.assert_close(one, other)


def test_draws_have_the_mean_and_the_spread_of_the_weights() -> None:
    model, guide = model_of(Two())
    x = torch.randn(2, 3, dtype=F64)
    wanted = model.net.body(x)
    count = 4000
    averaged: Any = ps.outputs(model, guide, x, mode=f"mc:{count}")
    spread = 0.3 * x.square().sum(1, keepdim=True).sqrt()
    assert ((averaged["hidden"] - wanted).abs() < 5 * spread / count**0.5).all()
    singles = torch.stack([ps.outputs(model, guide, x, seed=seed)["hidden"] for seed in range(60)])  # type: ignore[call-overload, index]
    ratio = singles.sub(wanted).square().mean((0, 2)).sqrt() / spread[:, 0]
    assert ((ratio > 0.7) & (ratio < 1.35)).all()


def test_what_has_no_outputs_to_average_is_refused() -> None:
    model, guide = model_of(Two())
    x = torch.randn(2, 3, dtype=F64)
    with pytest.raises(ValueError, match="a loss reads no moments"):
        ps.outputs(model, guide, x, mode="moments")
    other = ps.BayesianModel(nn.Linear(3, 2, dtype=F64), likelihood=ps.likelihoods.Categorical(), num_data=2)
    with pytest.raises(TypeError, match="expected a model whose likelihood is a Loss, got Categorical"):
        ps.outputs(other, ps.guides.Additive(other), x)

    class Count(Two):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return super().forward(x) | {"count": 3}

    model, guide = model_of(Count())
    with pytest.raises(TypeError, match="expected tensors with 2 examples from the network, got int"):
        ps.outputs(model, guide, x)


def test_pieces_of_a_batch_have_the_same_weights() -> None:
    model, guide = model_of(Two())
    x = torch.randn(1, 3, dtype=F64).expand(6, 3)
    found: Any = ps.outputs(model, guide, x, mode="mc:3", batch_size=2)
    torch.testing.assert_close(found["hidden"], found["hidden"][:1].expand(6, 4))
    assert not torch.equal(found["hidden"][0], ps.outputs(model, guide, x, mode="mc:3", seed=1)["hidden"][0])  # type: ignore[call-overload, index]


class Chosen(Two):
    """The class, too, a whole number."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        found = super().forward(x)
        return found | {"class": found["hidden"].argmax(1)}


class Anchored(Two):
    """A tensor that belongs to all examples."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return super().forward(x) | {"anchors": torch.arange(4.0)}


def test_whole_numbers_are_not_averaged() -> None:
    model, guide = model_of(Chosen())
    x = torch.randn(5, 3, dtype=F64)
    found: Any = ps.outputs(model, guide, x, batch_size=2)
    assert torch.equal(found["class"], found["hidden"].argmax(1)) and found["class"].dtype == torch.int64
    with pytest.raises(TypeError, match="torch.int64 has no mean over several draws"):
        ps.outputs(model, guide, x, mode="mc:2")


def test_a_tensor_of_all_examples_is_not_repeated() -> None:
    model, guide = model_of(Anchored())
    with pytest.raises(TypeError, match="expected tensors with 3 examples from the network, got a tensor of shape"):
        ps.outputs(model, guide, torch.randn(8, 3, dtype=F64), batch_size=4)
