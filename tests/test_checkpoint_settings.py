"""A checkpoint tells apart models and guides that differ in a value only: priors, penalties, classes of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.safefile import CheckpointError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class OwnPrior(ps.priors.Prior):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def distribution(self, name: str, shape: torch.Size) -> Any:
        return dist.Normal(0.0, self.scale).expand(shape)


class OwnGuide(ps.guides.Guide):
    def __init__(self, model: Any, family: str) -> None:
        self.family = family
        super().__init__(model)
        self.family = family

    def initial_parameters(self, site: Any) -> dict[str, Any]:
        return {"loc": site.init, "log_scale": torch.full_like(site.init, -3.0)}

    def distribution(self, site: str, **parameters: Any) -> Any:
        return getattr(dist, self.family)(parameters["loc"], parameters["log_scale"].exp())


def build(prior: Any = None, guide: Any = ps.guides.Additive, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    prior = ps.priors.Normal() if prior is None else prior
    likelihood = ps.likelihoods.Gaussian(0.5)
    model = ps.BayesianModel(nn.Linear(4, 3), prior=prior, likelihood=likelihood, num_data=6, **options)
    return model, guide(model)


def columns(last: float) -> Any:
    return torch.tensor([1.0, 1.0, 1.0, last])


def mixture(scale: float) -> Any:
    parts = dist.Normal(torch.zeros(2), torch.tensor([0.1, scale]))
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), parts)


def transformed(scale: float) -> Any:
    return dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(0.0, scale)])


def strength(value: float) -> Callable[[Any], Any]:
    return lambda net: value * net.bias.square().sum()


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a prior of tensors": (
        lambda: build(ps.priors.Normal(0.0, columns(1.0))),
        lambda: build(ps.priors.Normal(0.0, columns(2.0))),
    ),
    "Pyro's distribution of tensors": (
        lambda: build(dist.Normal(torch.zeros(3, 4), columns(1.0))),
        lambda: build(dist.Normal(torch.zeros(3, 4), columns(2.0))),
    ),
    "a mixture": (lambda: build(mixture(1.0)), lambda: build(mixture(2.0))),
    "a transformed distribution": (lambda: build(transformed(1.0)), lambda: build(transformed(2.0))),
    "a prior of one's own": (lambda: build(OwnPrior(1.0)), lambda: build(OwnPrior(2.0))),
    "a guide of one's own": (
        lambda: build(guide=lambda model: OwnGuide(model, "Laplace")),
        lambda: build(guide=lambda model: OwnGuide(model, "Cauchy")),
    ),
    "a penalty": (lambda: build(penalty=strength(1.0)), lambda: build(penalty=strength(2.0))),
    "no penalty": (lambda: build(penalty=strength(1.0)), lambda: build()),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_values_are_compared(kind: str, tmp_path: Path) -> None:
    one, other = PAIRS[kind]
    options: dict[str, Any] = {"checkpoint": tmp_path / "net", "progress": False, "seed": 0, "schedule": "constant"}
    data = (X, X[:, :3])
    ps.fit(*one(), data, epochs=1, **options)
    with pytest.raises(CheckpointError, match="expected the"):
        ps.load(tmp_path / "net", *other())
    with pytest.raises(CheckpointError, match="expected the"):
        ps.fit(*other(), data, epochs=2, resume=True, **options)
    ps.load(tmp_path / "net", *one())
    ps.fit(*one(), data, epochs=2, resume=True, **options)


@pytest.mark.parametrize("kind", ["a prior of tensors", "Pyro's distribution of tensors", "a mixture"])
def test_precision_is_no_other_value(kind: str, tmp_path: Path) -> None:
    model, guide = PAIRS[kind][0]()
    ps.save(tmp_path / "net", model, guide)
    # Values that have been used may be kept in other forms.
    model.prior("weight").distribution("weight", torch.Size([3, 4])).log_prob(torch.zeros(3, 4))
    ps.load(tmp_path / "net", model.double(), guide.double())


def test_no_prior_of_numbers_is_described_twice(tmp_path: Path) -> None:
    model, guide = build(dist.StudentT(3.0, 0.0, 1.0))
    ps.save(tmp_path / "net", model, guide)
    content = ps.load(tmp_path / "net", model, guide)
    assert content["sites"]["weight"]["prior"] == "StudentT(df=3, loc=0, scale=1)"
