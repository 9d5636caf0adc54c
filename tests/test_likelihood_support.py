"""Targets outside the support of a likelihood's distribution are refused, unless a mask leaves them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps

ONES = torch.ones(6, 1)
LAST_OUT = torch.tensor([[True]] * 5 + [[False]])


def fit(make: Callable[[Any], Any], y: Tensor) -> None:
    net = nn.Linear(2, y.shape[1])
    model = ps.BayesianModel(net, prior=ps.priors.Normal(0.0, 0.1), likelihood=make, num_data=6)
    ps.fit(model, ps.guides.Additive(model), (torch.randn(6, 2), y), epochs=1, progress=False, compile=False)


@pytest.mark.parametrize(
    ("make", "y", "message"),
    [
        (
            lambda out: dist.NegativeBinomial(5.0, logits=out),
            1.5 * ONES,
            "function: expected counts 0, 1.*6 others.* 1.5",
        ),
        (lambda out: dist.NegativeBinomial(5.0, logits=out), -ONES, "expected counts .* -1"),
        (lambda out: dist.LogNormal(out, 1.0), -ONES, "expected positive targets"),
        (lambda out: dist.Gamma(out.exp(), 1.0), -ONES, "expected targets from 0 up"),
        (lambda out: dist.Gamma(out.exp(), 1.0).mask(LAST_OUT), -ONES, "got 5 others"),
        (lambda out: dist.Beta(out.exp(), 1.0), 1.5 * ONES, "expected targets from 0 to 1"),
        (
            lambda out: dist.Dirichlet(out.exp()),
            torch.ones(6, 3),
            r"with the sum 1, got 6 others, among them \[1.0, 1.0",
        ),
        (lambda out: dist.OneHotCategorical(logits=out), torch.full((6, 2), 0.5), r"OneHot.*\(documentation: how-to"),
        (lambda out: dist.ZeroInflatedPoisson(out.exp(), gate=torch.tensor(0.2)), -ONES, "expected counts"),
    ],
)
def test_targets_outside_are_refused(make: Callable[[Any], Any], y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make, y)


@pytest.mark.parametrize(
    ("make", "y"),
    [
        (lambda out: dist.Gamma(out.exp(), 1.0).mask(LAST_OUT), torch.cat([ONES[:5], -ONES[:1]])),
        (lambda out: dist.Gamma(out.exp(), 1.0).to_event(1).mask(LAST_OUT[:, 0]), torch.cat([ONES[:5], -ONES[:1]])),
        (lambda out: dist.Gamma(out.exp(), 1.0).mask(LAST_OUT).mask(~LAST_OUT), -ONES),
        (lambda out: dist.Gamma(out.exp(), 1.0).mask(False), -ONES),
        (lambda out: dist.Dirichlet(out.exp()).mask(LAST_OUT[:, 0]), torch.tensor([[0.5, 0.5]] * 5 + [[7.0, 7.0]])),
        (lambda out: dist.Dirichlet(out.exp()), torch.full((6, 3), 0.33334)),  # rounded
        # Its support depends on the output: another draw of the weights may give another one.
        (lambda out: dist.Uniform(out - 5.0, out + 5.0), 2 * ONES),
        (lambda out: dist.MultivariateNormal(out, torch.eye(2)), torch.ones(6, 2)),
    ],
)
def test_targets_inside_or_left_out_are_taken(make: Callable[[Any], Any], y: Tensor) -> None:
    fit(make, y)


def test_masked_targets_of_the_first_batch_are_checked_and_other_batches_have_other_masks() -> None:
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(2, 1)

        def forward(self, x):
            return self.last(x), x[:, :1] > 0

    x = torch.randn(40, 2)
    outside = torch.where(x[:, :1] > 0, 1.0, -1.0)
    for y, refused in ((outside, False), (-outside, True)):
        model = ps.BayesianModel(
            Masked(),
            prior=ps.priors.Normal(0.0, 0.1),
            likelihood=lambda out: dist.Gamma(out[0].exp(), 1.0).mask(out[1]),
            num_data=40,
        )
        guide = ps.guides.Additive(model)

        def run(model: Any = model, guide: Any = guide, y: Tensor = y) -> None:
            ps.fit(model, guide, (x, y), epochs=1, batch_size=10, progress=False, compile=False)

        if refused:
            with pytest.raises(ValueError, match="expected targets from 0 up"):
                run()
        else:
            run()
