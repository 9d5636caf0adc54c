"""The code in the README and in the site's tour runs as it stands, block after block, for an epoch on few examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps

ROOT = Path(__file__).resolve().parent.parent
README, TOUR = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "tour.md"))
BLOCKS = re.findall(r"^```python\n(.*?)^```", README + TOUR, flags=re.DOTALL | re.MULTILINE)


def digits() -> dict[str, Any]:
    """What the README's first block leaves behind."""
    torch.manual_seed(0)
    data = ps.data.load("digits", limit=60)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    likelihood = ps.likelihoods.Categorical()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(0, 1), likelihood=likelihood, num_data=len(data.x_train))
    x, y = data.x_train, data.y_train
    # One batch, since the second step is compiled, which has tests of its own.
    return {
        **{"data": data, "net": net, "model": model, "guide": ps.guides.LayerwiseAlpha(model), "x": x, "y": y},
        **{"train": (x, y), "test": (data.x_test, data.y_test), "loader": DataLoader(TensorDataset(x, y), 100)},
    }


def laplace() -> dict[str, Any]:
    return {"pyro": pyro, **digits()}


def rates() -> dict[str, Any]:
    """A network of groups of its own learning rates."""
    found = digits()
    return {**found, "loss": ps.ELBO()(found["model"], found["guide"])}


def binary() -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(6, 9), ps.layers.ThresholdNeuron(9), nn.Linear(9, 3))
    return {"net": net, "x": torch.randn(50, 6)}


def pixels() -> dict[str, Any]:
    return {"x": torch.randint(0, 256, (40, 784)) / 255, "y": torch.randint(0, 10, (40,))}


# Each block by words of it, with what stands before it for a reader.
KNOWN = {
    'ps.data.load("digits")': dict,
    "pyro.infer.SVI": digits,
    "prior = {": dict,
    "class LaplaceGuide": laplace,
    "ps.compile_step": digits,
    'parameter_groups()["alpha"]': rates,
    "in_dims=": lambda: {"net": torch.nn.Linear(2, 2)},
    "ps.moments_error": digits,
    "ps.Homeostasis": binary,
    "ps.estimators.surrogate": dict,
    "export_integer": pixels,
    "GridUpdates": dict,
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit for one epoch and without a bar, whatever the README says."""
    fit = ps.fit
    monkeypatch.setattr(ps, "fit", lambda *args, **kept: fit(*args, **{**kept, "epochs": 1, "progress": False}))


@pytest.mark.parametrize("words", KNOWN)
def test_code_of_the_readme_runs(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in BLOCKS if words in block]
    names = {"torch": torch, "ps": ps, **KNOWN[words]()}
    exec(compile(block, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert bool(shown) == ("print(" in block)
    if words == "class LaplaceGuide":
        guide = names["LaplaceGuide"](names["model"])
        ps.fit(names["model"], guide, names["train"], epochs=1)


def test_every_block_is_known() -> None:
    assert len(BLOCKS) == len(KNOWN)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 200
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) > 5 and [link for link in links if not (ROOT / link).exists()] == []
