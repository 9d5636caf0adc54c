"""Priors around the weights of a network (MOPED): their means, their scales, and which parameters they are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch import priors


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def model_of(net: nn.Module, prior: Any) -> ps.BayesianModel:
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(0.3), num_data=20)


def test_it_covers_what_a_single_prior_covers() -> None:
    net = network()
    alone = model_of(net, priors.around(net, 0.1))
    assert list(alone.sites) == list(model_of(network(), priors.Normal()).sites) == ["0.weight", "3.weight"]
    with_biases = model_of(net, {"*": priors.around(net, 0.1)})
    assert list(with_biases.sites) == list(model_of(network(), {"*": priors.Normal()}).sites)
    assert "1.weight" in model_of(net, {"*": priors.around(net, 0.1), "1.*": priors.around(net, 0.2)}).sites
    own = nn.Sequential(ps.layers.Linear(3, 2, prior=priors.Normal(0.0, 5.0)), nn.Linear(2, 1))
    assert repr(model_of(own, priors.around(own, 0.1)).prior("0.weight")) == "Normal(loc=0, scale=5)"


def test_values_are_copied() -> None:
    net = network()
    model = model_of(net, priors.around(net, 0.1))
    before = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    prior: Any = model.prior("0.weight")
    assert torch.equal(prior.loc, before) and prior.scale.item() == pytest.approx(0.1)
    distribution = prior.distribution("0.weight", before.shape)
    value = torch.randn_like(before)
    by_hand = (
        -0.5 * ((value - before) / 0.1).square() - torch.tensor(0.1).log() - 0.5 * torch.tensor(torch.pi * 2).log()
    )
    assert torch.allclose(distribution.log_prob(value), by_hand, rtol=1e-4)


def test_a_guide_at_the_networks_weights_pays_for_its_width_only() -> None:
    net = network().double()
    model = model_of(net, priors.around(net, 0.1))
    guide = ps.guides.Additive(model, init_scale=0.1)
    data = (torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64))
    assert ps.decompose(model, guide, data).kl == pytest.approx(0.0, abs=1e-9)


def test_scales_in_proportion_have_a_least_one() -> None:
    net = nn.Linear(3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, 0.0, -4.0]]))
        net.bias.zero_()
    model = model_of(net, priors.around(net, 0.2, relative=True))
    least = 0.2 * 0.01 * (25.0 / 3.0) ** 0.5
    prior: Any = model.prior("weight")
    assert torch.allclose(prior.scale, torch.tensor([[0.6, least, 0.8]]))
    with pytest.raises(
        ValueError, match=r"parameter 'bias' of the network Linear is 0 everywhere, so .*relative=False"
    ):
        model_of(net, {"*": priors.around(net, 0.2, relative=True)})


def test_another_network_of_the_same_body() -> None:
    trained, fresh = network(), nn.Sequential(*network()[:3], nn.Linear(8, 5))
    with pytest.raises(ValueError, match=r"parameter '3.weight': expected shape \(5, 8\), the network Sequential has"):
        model_of(fresh, priors.around(trained, 0.1))
    found = model_of(fresh, {"*": priors.Normal(), "0.*": priors.around(trained, 0.1)})
    prior: Any = found.prior("0.weight")
    assert torch.equal(prior.loc, trained[0].weight)
    with pytest.raises(ValueError, match=r"the network Sequential has nothing of '4.weight'\. Say by rules .*around"):
        model_of(nn.Sequential(*network(), nn.Linear(2, 2)), priors.around(trained, 0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net[0].weight.data.fill_(torch.nan), r"'0.weight' of the network Sequential has values that are"),
        (lambda net: net.__setitem__(3, nn.LazyLinear(2)), r"'3.weight' .*has no shape yet: run the network once"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_faults_are_named(change: Any, message: str) -> None:
    net = network()
    change(net)
    with pytest.raises(ValueError, match=message):
        model_of(net, priors.around(net, 0.1))


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"priors.around: expected a torch.nn.Module, got Tensor"):
        priors.around(torch.zeros(2), 0.1)  # type: ignore[arg-type]
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"priors.around scale: expected a positive finite number"):
            priors.around(network(), scale)


def test_a_compiled_network_and_a_function_of_ones_own() -> None:
    net = network()
    compiled: Any = torch.compile(net)
    assert list(model_of(net, priors.around(compiled, 0.1)).sites) == ["0.weight", "3.weight"]
    rule = priors.around(net, 0.1)

    def first_only(name: str, weight: Tensor) -> Any:
        return rule(name, weight) if name.startswith("0.") else None

    assert list(model_of(net, first_only).sites) == ["0.weight", "0.bias"]
