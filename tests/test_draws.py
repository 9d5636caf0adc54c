"""Draws of outputs, which keep what examples have in common: against closed forms and finite differences."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.likelihoods import Categorical, Gaussian

F64 = torch.float64
N = 12


def build(net: nn.Module, likelihood: Any, guide: Any = None, **options: Any) -> tuple[ps.BayesianModel, Any]:
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=N, **options)
    return model, (guide or ps.guides.Additive)(model)


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, outputs)).double()


X = torch.randn(N, 2, dtype=F64)


def test_the_covariance_between_examples_is_that_of_the_weights() -> None:
    net = nn.Linear(2, 1, bias=False).double()
    model, guide = build(net, Gaussian(0.3))
    guide = ps.guides.Additive(model, init_scale=0.7)
    scale = guide.site_distribution("weight").stddev.detach()[0].double()
    exact = X @ torch.diag(scale.square()) @ X.T
    means = ps.draws(model, guide, X, 4000, seed=0).means[..., 0].double()
    assert means.shape == (4000, N)
    found = means.T.cov()
    sizes = exact.diagonal().sqrt()
    assert ((found - exact).abs() < 0.14 * sizes[:, None] * sizes).all()
    prediction = ps.predict(model, guide, X, mode="mc:1500", joint=True, covariance=True, seed=1)
    assert prediction.covariance is not None and prediction.covariance.shape == (N, N)
    assert ((prediction.covariance - exact).abs() < 0.22 * sizes[:, None] * sizes).all()
    epistemic = prediction.epistemic[:, 0]  # type: ignore[index]
    assert torch.allclose(prediction.covariance.diagonal(), epistemic, rtol=0.25)


def test_a_draw_is_the_same_for_all_examples_and_batches() -> None:
    model, guide = build(network(), Categorical())
    whole = ps.draws(model, guide, X, 3, seed=0)
    assert torch.allclose(ps.draws(model, guide, X, 3, seed=0, batch_size=5).outputs, whole.outputs)
    twice = ps.draws(model, guide, X[[0, 0, 1]], 3, seed=0).outputs
    assert torch.allclose(twice[:, 0], twice[:, 1]) and torch.allclose(twice[:, 2], whole.outputs[:, 1])
    assert torch.allclose(whole.probs, whole.outputs.softmax(-1))
    assert torch.allclose(whole.distribution(1).probs, whole.probs[1])  # type: ignore[attr-defined]
    assert str(whole) == "3 draws of outputs of shape (12, 3)" and len(whole) == 3
    assert model.training and model.net.training  # put back


def test_mutual_information_of_draws_is_that_of_predictions() -> None:
    model, guide = build(network(), Categorical())
    guide = ps.guides.Additive(model, init_scale=1.0)
    probs = ps.draws(model, guide, X, 1500, seed=0).probs
    entropy = torch.distributions.Categorical(probs=probs.mean(0)).entropy()
    bald = entropy - torch.distributions.Categorical(probs=probs).entropy().mean(0)
    expected = ps.predict(model, guide, X, mode="mc:1500", seed=1)
    assert torch.allclose(bald, expected.epistemic, atol=0.07)  # type: ignore[arg-type]
    # Two copies of an example tell no more than one: what BatchBALD counts, and averages cannot.
    pair = torch.einsum("kc,kd->cd", probs[:, 0], probs[:, 0]) / len(probs)
    joint = -(pair * pair.log()).sum() - 2 * torch.distributions.Categorical(probs=probs[:, 0]).entropy().mean()
    assert bald[0] < joint < 0.98 * 2 * bald[0]


def test_derivatives_by_the_inputs() -> None:
    model, guide = build(network(1), Gaussian(0.3))
    x = X.clone().requires_grad_()
    outputs = ps.draws(model, guide, x, 4, seed=0, differentiable=True).outputs
    (gradient,) = torch.autograd.grad(outputs.sum(), x)
    step = 1e-6
    for row, column in ((0, 0), (5, 1)):
        moved = X.clone()
        moved[row, column] += step
        other = ps.draws(model, guide, moved, 4, seed=0).outputs
        assert (other - outputs).sum().item() / step == pytest.approx(gradient[row, column].item(), rel=1e-4)
    assert not ps.draws(model, guide, x, 2, seed=0).outputs.requires_grad


def test_random_quantities_belong_to_their_draw() -> None:
    net = nn.Linear(2, 1).double()
    model, guide = build(net, Gaussian(dist.HalfNormal(torch.tensor(1.0, dtype=F64))))
    found = ps.draws(model, guide, X, 3, seed=0)
    scales = [float(part["scale"]) for part in found.quantities]
    assert len(set(scales)) == 3
    assert [found.distribution(k).stddev[0].item() for k in range(3)] == pytest.approx(scales)


def test_random_activations_are_drawn_anew_for_each_example() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(ps.layers.StochasticLinear(2, 4, prior="standard"), nn.Linear(4, 3))
    model = ps.BayesianModel(net, likelihood=Categorical(), num_data=N)
    for guide in (ps.guides.Additive(model), ps.guides.Amortised(model)):
        found = ps.draws(model, guide, X[[0, 0]].float(), 5, seed=0).outputs
        assert not torch.allclose(found[:, 0], found[:, 1])


def test_dictionaries_and_fields() -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(x), "x": x}

    model, guide = build(Keyed(), Categorical(output="logits"))
    assert ps.draws(model, guide, {"x": X.float()}, 2).outputs.shape == (2, N, 3)


class Parts(nn.Module):
    """A network that returns several tensors, by name or by position."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.layer, self.named = nn.Linear(2, 4).double(), named

    def forward(self, x: Tensor) -> Any:
        kind, size = self.layer(x).split([3, 1], 1)
        return {"kind": kind, "size": size} if self.named else (size, kind)


@pytest.mark.parametrize("output", ["kind", 1])
def test_distributions_of_one_part_of_the_output(output: Any) -> None:
    model, guide = build(Parts(isinstance(output, str)), Categorical(output=output))
    found = ps.draws(model, guide, X, 3, seed=0)
    assert torch.allclose(found.probs, found.outputs.softmax(-1)) and found.likelihood.output == output
    prior = ps.prior_predictive(model, X, num_samples=3, seed=0)
    assert prior.observations.shape == (3, N) and "3 classes" in str(prior)


def test_heads_read_their_part_and_have_their_own_quantities() -> None:
    noise = Gaussian(dist.LogNormal(torch.tensor(0.0, dtype=F64), 1.0), output="size")
    joint = ps.likelihoods.Joint({"label": Categorical(output="kind"), "length": noise})
    model, guide = build(Parts(True), joint)
    label, length = (ps.draws(model, guide, X, 4, seed=0, head=head) for head in ("label", "length"))
    assert torch.allclose(label.probs, label.outputs.softmax(-1)) and not label.quantities[0]
    assert torch.equal(length.means, length.outputs)
    # The scale is drawn from the guide, with a deviation of its logarithm of 0.1, not from its prior, of 1.
    site = "likelihood.length.scale"
    scales = torch.stack(
        [torch.as_tensor(part["scale"]) for part in ps.draws(model, guide, X, 8, head="length").quantities]
    )
    assert scales.unique().numel() == 8
    assert torch.allclose(scales.log(), guide.parameters_for(site)["loc"].detach().expand(8), atol=0.6)
    prior = ps.prior_predictive(model, X, num_samples=5, seed=0, head="length")
    assert prior.observations.shape == (5, N, 1)


def test_what_has_no_draws_is_refused() -> None:
    model, guide = build(network(), Categorical())
    with pytest.raises(ValueError, match="the observations have no mean; for classes, there are probs"):
        _ = ps.draws(model, guide, X, 2).means
    numbers, own = build(network(1), Gaussian())
    with pytest.raises(ValueError, match="the observations are not classes"):
        _ = ps.draws(numbers, own, X, 2).probs
    with pytest.raises(ValueError, match="give joint=True"):
        ps.predict(numbers, own, X, mode="mc:4", covariance=True)
    with pytest.raises(ValueError, match="40000 means have a covariance of 11.9 GiB"):
        ps.predict(numbers, own, torch.zeros(40_000, 2, dtype=F64), mode="mc:2", joint=True, covariance=True)
    with pytest.raises(TypeError, match="expected a BayesianModel, got Linear"):
        ps.draws(nn.Linear(2, 1), guide, X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num: expected a whole number from 1 up"):
        ps.draws(model, guide, X, 0)
    two, its_guide = build(network(2), lambda out: dist.Normal(out[:, :1], out[:, 1:].exp()))
    assert ps.draws(two, its_guide, X, 2).means.shape == (2, N, 1)
