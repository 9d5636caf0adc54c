"""Buffers of other layers in sets: fixed batch normalization, spectral normalization, and those of a user's own."""

from __future__ import annotations

import pytest
import torch
from statistics_twins import SETTINGS, SGD, data, dense, model_of, plain, state_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pyrostoch as ps
from pyrostoch.guides import Additive, Delta, Ensemble, Samples, Swag


def test_fixed_normalization_is_shared_by_all() -> None:
    net = dense()
    net[1].requires_grad_(False)  # type: ignore[index]
    with torch.no_grad():
        net(data()[0])
    model = ps.BayesianModel(net, prior={"*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(0.5), num_data=40)
    before, pair = net[1].running_mean.clone(), data()  # type: ignore[index,operator]
    swag = Swag(model, rank=2)
    ps.fit(model, swag, pair, epochs=3, **SGD)
    assert torch.equal(net[1].running_mean, before)  # type: ignore[index]
    torch.manual_seed(3)
    weights = {name: value.detach() for name, value in swag().items()}
    torch.manual_seed(3)
    found = ps.draws(model, swag, pair[0], num=1).outputs[0]
    torch.testing.assert_close(found, plain(net, weights)(pair[0]))
    with pytest.raises(ValueError, match="fit_statistics: expected batch normalization"):
        ps.fit_statistics(model, swag, pair)


class Following(nn.Module):
    """A mean of its own that follows the data; a new tensor takes its place, or the old one is written to."""

    mean: Tensor

    def __init__(self, replaces: bool) -> None:
        super().__init__()
        self.replaces = replaces
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                if self.replaces:
                    self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
                else:
                    self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - self.mean


@pytest.mark.parametrize("replaces", [True, False])
def test_other_buffers_belong_to_a_member_and_are_refused_for_draws(replaces: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 3), Following(replaces), nn.Tanh(), nn.Linear(3, 2)).double()
    model, (x, y) = model_of(net), data()
    guide = Ensemble.of(model, size=2)
    ps.fit(model, guide, (x, y), epochs=2, **SETTINGS)
    states = [state_of(member) for member in guide.members]
    assert not net[1].mean.any() and not torch.allclose(states[0]["1.mean"], states[1]["1.mean"])  # type: ignore[operator,union-attr]
    outputs = torch.stack([plain(net, state)(x) for state in states])
    torch.testing.assert_close(ps.predict(model, guide, x, mode="mc:2").mean, outputs.mean(0), atol=1e-6, rtol=0)
    for other, settings in ((Swag(model), SGD), (Samples.chain(model, 2), {**SETTINGS, "sampler": ps.SGHMC()})):
        with pytest.raises(ValueError, match="fit: expected buffers.*a pass in training mode changes '1.mean'"):
            ps.fit(model, other, (x, y), epochs=8, **settings)
    assert not net[1].mean.any()  # type: ignore[operator,union-attr]


def test_spectral_normalization_belongs_to_a_member_and_is_computed_for_draws() -> None:
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    model, (x, y) = model_of(net), data()
    guide = Ensemble(Delta(model, init_loc=lambda site: 0.5 * torch.randn_like(site.init)) for _ in range(2))
    ps.fit(model, guide, (x, y), epochs=30, **SETTINGS)
    for member in guide.members:
        weight = next(value for name, value in state_of(member).items() if name.startswith("0.") and value.dim() == 2)
        bias, last = (
            member.parameters_for("0.bias")["loc"],
            [member.parameters_for(n)["loc"] for n in ("2.weight", "2.bias")],
        )
        hidden = torch.tanh(nn.functional.linear(x, weight / torch.linalg.matrix_norm(weight, 2), bias))
        torch.testing.assert_close(
            ps.predict(model, member, x, mode="mean").mean,
            nn.functional.linear(hidden, *last).detach(),
            atol=1e-3,
            rtol=0,
        )
    samples = Samples.of(model, Additive(model, init_scale=0.3), 2)
    with pytest.raises(ValueError, match="guide Samples.*'0.parametrizations.weight.0'.*fit_statistics"):
        samples()
    ps.fit_statistics(model, samples, (x, y), batch_size=1)
    outputs = []
    for k in range(2):
        drawn = {name: samples.values(name)[k] for name in samples.site_names}
        weight = next(value for name, value in drawn.items() if name.startswith("0.") and value.dim() == 2)
        hidden = torch.tanh(nn.functional.linear(x, weight / torch.linalg.matrix_norm(weight, 2), drawn["0.bias"]))
        outputs.append(nn.functional.linear(hidden, drawn["2.weight"], drawn["2.bias"]))
    found = ps.predict(model, samples, x, mode="mc:2").mean
    torch.testing.assert_close(found, torch.stack(outputs).mean(0), atol=1e-3, rtol=0)
