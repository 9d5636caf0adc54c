"""Where guides whose weights depend on each other could be wrong without a word."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.effects import LocalReparameterization, MomentPropagation, SharedSample
from pyrostoch.priors.base import tensors_of, values_of
from pyrostoch.training.checkpoint import CheckpointError


def chain() -> tuple[ps.BayesianModel, ps.guides.LowRank]:
    """Two weights near 1 whose changes are nearly the same."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.5), num_data=10)
    guide = ps.guides.LowRank(model, rank=1, init_loc=1.0, init_scale=0.1)
    with torch.no_grad():
        for name in guide.site_names:
            guide.parameters_for(name)["factor"].fill_(1.0)
    return model, guide


def test_weights_that_moments_cannot_replace_are_drawn_together() -> None:
    # w1 w2 with w = 1 + z + noise: the mean is 2.
    model, guide = chain()
    found = ps.predict(model, guide, torch.ones(1, 1).double(), mode="moments:mc:2000", seed=0)
    assert abs(found.mean.item() - 2.0) < 6.0 * math.sqrt(found.variance.item() / 2000)


@pytest.mark.parametrize("interpretation", [SharedSample, LocalReparameterization])
@pytest.mark.parametrize("lazy", [False, True])
def test_weights_given_a_value_are_drawn_given_it(interpretation: Any, lazy: bool) -> None:
    model, guide = chain()
    given = poutine.condition(guide, data={"0.weight": torch.tensor([[3.0]]).double()})
    drawn = []
    for _ in range(500):
        options = {"lazy": lazy} if interpretation is LocalReparameterization else {}
        with interpretation(**options), torch.no_grad():
            drawn.append(model.outputs(torch.ones(1, 1).double(), given()) / 3.0)  # type: ignore[operator]
    values = torch.cat(drawn)
    # z given w1 = 3 has precision 1 + 100 and mean 200 / 101.
    mean, spread = 1.0 + 200.0 / 101.0, math.sqrt(0.01 + 1.0 / 101.0)
    assert abs(values.mean().item() - mean) < 6.0 * spread / math.sqrt(500)
    assert abs(values.std().item() / spread - 1.0) < 0.3


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def tied_last(net: nn.Module, prefix: str) -> tuple[ps.BayesianModel, ps.guides.LastLayer]:
    """A bias that falls by 3 for each standard deviation of the weight."""
    model = ps.BayesianModel(
        net.double(), prior={"*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(0.5), num_data=10
    )
    guide = ps.guides.LastLayer(model, init_loc=1.0, init_scale=1.0)
    with torch.no_grad():
        guide.parameters_for(f"{prefix}weight")["tril"][0, 1, 0] = -3.0
    return model, guide


def test_weight_and_bias_of_tokens_are_drawn_together() -> None:
    model, guide = tied_last(Tokens(), "layer.")
    # w + b = 2 + (1 - 3) z + noise of variance 1, and .25 of the observation's.
    found = ps.predict(model, guide, torch.ones(1, 2, 1).double(), mode="moments:mc:4000", seed=0)
    assert found.variance.item() == pytest.approx(5.25, rel=0.2)


def test_moments_of_a_bias_whose_weight_is_given_are_refused() -> None:
    model, guide = tied_last(nn.Linear(1, 1), "")
    given = poutine.condition(guide, data={"weight": torch.tensor([[2.0]]).double()})
    with pytest.raises(ValueError, match="'bias'.*it depends on a value that is given"), MomentPropagation():
        model.outputs(torch.ones(1, 1).double(), given())  # type: ignore[operator]


def test_the_bound_of_noise_of_the_inputs_own_is_for_one_axis_of_outputs() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (2, 2)))
    likelihood = ps.likelihoods.HeteroscedasticGaussian(link="exp")
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=3)
    with pytest.raises(ValueError, match="no closed lower bound"):
        ps.decompose(
            model, ps.guides.MatrixNormal(model), (torch.randn(3, 2), torch.randn(3, 2, 1)), estimator="moments:bound"
        )


def permuted(size: int) -> list[Any]:
    scale = nn.Parameter(torch.rand(size) + 0.5)
    return [
        transforms.affine_autoregressive(size),
        transforms.Permute(torch.randperm(size)),
        transforms.AffineTransform(nn.Parameter(torch.randn(size)), scale),
    ]


def test_tensors_of_transforms_that_are_no_modules_are_saved_and_trained(tmp_path: Path) -> None:
    model = ps.BayesianModel(
        nn.Linear(5, 1, bias=False), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=10
    )
    guide, other = ps.guides.Flow(model, permuted, init_scale=1.0), ps.guides.Flow(model, permuted)
    ps.save(tmp_path / "flow.safetensors", model, guide)
    ps.load(tmp_path / "flow.safetensors", model, other)
    draws = []
    for each in (guide, other):
        torch.manual_seed(0)
        draws.append(each()["weight"])
    assert torch.equal(*draws)
    names = [name for name, _ in guide.named_parameters() if "tensor" in name]
    ps.ELBO()(model, guide)(torch.randn(10, 5), torch.randn(10, 1)).backward()
    assert len(names) == 2 and all(parameter.grad is not None for parameter in guide.parameters())


def test_several_draws_at_once_of_sites_that_depend_on_each_other_are_refused() -> None:
    net = nn.Linear(1, 1)
    model = ps.BayesianModel(net, prior={"*": ps.priors.RankOne()}, likelihood=ps.likelihoods.Gaussian(), num_data=10)
    guide = ps.guides.RankOne(model, components=2)
    with pytest.raises(ValueError, match="'weight', 'bias' depend on each other. Draw in a loop"):
        pyro.infer.Predictive(guide, num_samples=3, parallel=True, return_sites=("weight", "bias"))()


def test_a_last_layer_restricted_to_its_weight_has_the_marginal() -> None:
    _, guide = tied_last(nn.Linear(3, 2), "")
    with torch.no_grad():
        guide.parameters_for("weight")["tril"].add_(torch.randn(2, 4, 4))
    part = guide.restricted_to(["weight"])
    assert torch.allclose(part.site_distribution("weight").covariance, guide.site_distribution("weight").covariance)
    assert part()["weight"].shape == (2, 3)
    with pytest.raises(ValueError, match="expected the weight 'weight' among the sites"):
        guide.restricted_to(["bias"])


def test_a_flow_is_drawn_where_moments_may_be() -> None:
    model = ps.BayesianModel(
        nn.Linear(3, 1, bias=False), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=10
    )
    guide = ps.guides.Flow(model, transforms.affine_autoregressive)
    with pytest.raises(ValueError, match="no rule for FlowWeights"):
        ps.predict(model, guide, torch.ones(2, 3), mode="moments")
    assert torch.isfinite(ps.predict(model, guide, torch.ones(2, 3), mode="moments:mc:4").mean).all()


class _Reads(nn.Module):
    """A network that reads a value of its batch, so that draws cannot be vectorized, but for very few examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if len(x) > 3:
            hidden.sum().item()
        return self.second(hidden)


def _low_rank(model: ps.BayesianModel) -> Any:
    guide = ps.guides.LowRank(model, rank=2, init_scale=0.1)
    with torch.no_grad():
        for name in guide.site_names:
            guide.parameters_for(name)["factor"].normal_().mul_(0.5)
    return guide


def _components(model: ps.BayesianModel) -> Any:
    return ps.guides.RankOne(model, components=3, init_spread=0.6)


def _laplace(model: ps.BayesianModel, structure: str) -> Any:
    guide = ps.guides.Laplace(model, structure=structure, init_scale=0.3)
    with torch.no_grad():
        for name, buffer in guide.named_buffers():
            if buffer.dim() >= 2 and "root" in name:
                buffer.add_(0.3 * torch.randn_like(buffer).tril())
    return guide


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(
    ("make", "prior"),
    [
        (_low_rank, {"*": ps.priors.Normal()}),
        (_components, {"*": ps.priors.RankOne()}),
        (partial(_laplace, structure="full"), {"*": ps.priors.Normal()}),
        (partial(_laplace, structure="last_layer"), {"second.*": ps.priors.Normal(), "2.*": ps.priors.Normal()}),
    ],
    ids=["low rank", "rank 1", "full", "last layer"],
)
def test_first_prediction_of_a_network_draws_what_sites_share_anew(make: Any, prior: Any, reads: bool) -> None:
    # The first call finds out how the network uses its weights, which must leave no draw behind.
    net = _Reads() if reads else nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    noise = ps.likelihoods.Gaussian(1.0)
    model = ps.BayesianModel(
        net.double(),
        prior={name: p for name, p in prior.items() if name == "*" or name[0] == ("s" if reads else "2")},
        likelihood=noise,
        num_data=10,
    )
    guide, x = make(model), torch.randn(5, 3).double()
    first, second = (ps.predict(model, guide, x, mode="mc:1000", seed=0).variance - 1.0 for _ in range(2))
    with torch.no_grad():
        outputs = torch.stack([torch.func.functional_call(net, guide(), x) for _ in range(1000)])
    torch.testing.assert_close(first, second)
    ratio = first / outputs.var(0)
    assert 0.5 < ratio.min() and ratio.max() < 2.0


def test_a_prior_is_described_without_what_was_computed_from_it(tmp_path: Path) -> None:
    """A KL, another precision and a copy leave the prior as it is, for checkpoints too."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def later(old: Any) -> ps.BayesianModel:
        return ps.BayesianModel(net, prior=old, likelihood=ps.likelihoods.Gaussian(0.5), num_data=8)

    first = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.5), num_data=8)
    old, other = (ps.guides.LowRank(first, rank=2, scope="site", init_scale=0.3) for _ in range(2))
    data = torch.randn(8, 3), torch.randn(8, 1)
    model = later(old)
    guide = ps.guides.LowRank(model, rank=2, scope="site", init_scale=0.2)
    kl = ps.decompose(model, guide, data).kl
    ps.save(tmp_path / "one.pt", model, guide)
    again = later(old)
    ps.load(tmp_path / "one.pt", again, ps.guides.LowRank(again, rank=2, scope="site"))
    assert ps.decompose(model.double(), guide.double(), tuple(part.double() for part in data)).kl == pytest.approx(kl)  # type: ignore[arg-type]
    prior: Any = model.prior("0.weight")
    kept = set(vars(values_of(prior.base)))
    _ = prior.base.information
    assert "_terms" in vars(prior.base) and set(vars(values_of(prior.base))) == kept
    assert len(tensors_of(prior.base)) == 3
    wrong = later(other)
    with pytest.raises(CheckpointError, match=r"site '0.weight': expected the prior from_guide.*got from_gu") as error:
        ps.load(tmp_path / "one.pt", wrong, ps.guides.LowRank(wrong, rank=2, scope="site"))
    assert len(str(error.value)) < 1200
