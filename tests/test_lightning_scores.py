"""Scores of a validation by Lightning, for missing targets and for several heads, against those of `compare`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps

pytest.importorskip("lightning.pytorch", reason="needs pyrostoch[lightning]")

from lightning.pytorch import Trainer

from pyrostoch.lightning import SVIModule

pytestmark = [
    # Lightning 2.6 under torch 2.13 asks a tree's leaf in the old way.
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\).:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers:UserWarning"),
]


def validated(model: Any, guide: Any, batches: Any) -> dict[str, float]:
    """What a validation logs."""
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **settings)
    return dict(trainer.validate(SVIModule(model, guide, mode="mean"), batches, verbose=False)[0])


def test_scores_leave_out_what_is_missing_as_compare_does() -> None:
    x, y = torch.randn(40, 3), torch.randint(0, 3, (40,))
    y[::3] = -100
    y[8:16] = -100  # a batch without any label
    likelihood = ps.likelihoods.Categorical(ignore_index=-100)
    model = ps.BayesianModel(nn.Linear(3, 3), prior=ps.priors.Normal(), likelihood=likelihood, num_data=40)
    guide = ps.guides.Additive(model)
    batches = DataLoader(TensorDataset(x, y), batch_size=8)
    found = validated(model, guide, batches)
    expected = ps.compare(model, guide, (x, y), modes="mean")["mean"]
    assert found["val_nll"] == pytest.approx(expected.nll, rel=1e-5)
    assert found["val_accuracy"] == pytest.approx(expected.accuracy)


def test_heads_are_scored_one_by_one() -> None:
    x, y = torch.randn(40, 3), {"a": torch.randint(0, 3, (40,)), "b": torch.randn(40, 1)}
    heads = ps.likelihoods.Joint(
        {"a": ps.likelihoods.Categorical(output=0), "b": ps.likelihoods.Gaussian(1.0, output=1)}
    )

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), self.b(x)

    model = ps.BayesianModel(Two(), prior=ps.priors.Normal(), likelihood=heads, num_data=40)
    guide = ps.guides.Additive(model)
    items = [(x[i], {name: part[i] for name, part in y.items()}) for i in range(40)]
    batches = DataLoader(items, batch_size=8)  # type: ignore[arg-type]
    found = validated(model, guide, batches)
    expected = ps.compare(model, guide, (x, y), modes="mean")
    assert found["val_nll"] == pytest.approx(expected["mean"].nll, rel=1e-5)
    assert found["val_a_accuracy"] == pytest.approx(expected.heads["a"]["mean"].accuracy)
    assert found["val_b_nll"] == pytest.approx(expected.heads["b"]["mean"].nll, rel=1e-5)
