"""Guides of counts, binomial and multinomial: where they start, how a network treats them, what they refuse."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch import guides, priors
from pyrostoch.effects import independent
from pyrostoch.safefile import CheckpointError


def model_of(net, prior, noise=0.4, num_data=6):
    return ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(noise), num_data=num_data)


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(5, 3),
        nn.Conv2d(4, 6, 2, groups=2),
        nn.ConvTranspose1d(3, 4, 2),
        nn.Embedding(6, 3),
        nn.PReLU(4),
    ],
    ids=lambda net: type(net).__name__,
)
def test_guides_start_at_the_weights_of_the_network(net):
    with torch.no_grad():
        net.weight.normal_()
    weight = net.weight.detach().clone()
    by_output = weight.movedim(1, 0) if isinstance(net, nn.ConvTranspose1d) else weight
    many = guides.MultinomialWeights(model_of(net, {"weight": priors.UniformMultinomial()}))
    found = many.site_distribution("weight")
    torch.testing.assert_close(found.mean, weight, atol=1e-5, rtol=1e-5)
    assert found.n == 4 * by_output[0].numel()
    assert found.scale.item() == pytest.approx(1.1 * by_output.reshape(len(by_output), -1).abs().sum(1).max().item())
    assert guides.MultinomialWeights(model_of(net, {"weight": priors.UniformMultinomial()}), n=9).n == 9
    each = guides.BinomialWeights(model_of(net, {"weight": priors.Grid()}), n=4)
    mean, scale = each.site_distribution("weight").mean, each.site_distribution("weight").base_dist.scale
    expected = weight.clamp(-0.95 * scale, 0.95 * scale)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scale.square() / 2, weight.square().mean().expand_as(weight))  # mean square of levels


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(self.one(x).relu())


MAKE = {
    "binomial": (guides.BinomialWeights, priors.SymmetricBinomial),
    "multinomial": (guides.MultinomialWeights, priors.UniformMultinomial),
}
JOINT = "(entries of SignedMultinomial may depend on each other)"


@pytest.mark.parametrize(
    ("kind", "estimator", "treatment"),
    [
        ("binomial", "local", "local (matched moments)"),
        ("binomial", "flipout", "shared (no rule for BinomialLevels)"),
        ("binomial", "moments", "moments"),
        ("multinomial", "local", f"shared {JOINT}"),
        ("multinomial", "marginal", f"shared {JOINT}"),
        ("multinomial", "flipout", f"shared {JOINT}"),
        ("multinomial", "moments:mc", f"drawn {JOINT}"),
    ],
)
def test_treatments(kind, estimator, treatment):
    make, prior = MAKE[kind]
    model = model_of(TwoLayers(), prior())
    guide = make(model)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    terms = ps.ELBO(estimator).terms(model, guide, x, y)
    assert set(terms.treatments.values()) == {treatment}
    (terms.kl - terms.data).backward()
    assert all(parameter.grad.isfinite().all() for parameter in guide.parameters())


def test_moment_propagation_refuses_joint_distributions_by_name():
    model = model_of(TwoLayers(), priors.UniformMultinomial())
    guide = guides.MultinomialWeights(model)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    match = "site 'one.weight': moment propagation .*entries of SignedMultinomial may depend on each other"
    with pytest.raises(ValueError, match=match):
        ps.ELBO("moments")(model, guide)(x, y)
    with pytest.raises(ValueError, match=match):
        ps.predict(model, guide, x, mode="moments")

    net = nn.Linear(3, 2)
    with_bias = model_of(net, {"bias": priors.Normal()})

    def joint(*_):
        return pyro.sample("bias", dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 0.5), infer=independent())

    with pytest.raises(ValueError, match="site 'bias': .*entries of MultivariateNormal may depend on each other"):
        ps.ELBO("moments")(with_bias, joint)(x, y)

    def certain(*_):
        return pyro.sample("bias", dist.Delta(net.bias.detach(), event_dim=1), infer=independent())

    assert ps.ELBO("moments").terms(with_bias, certain, x, y).treatments == {"bias": "moments"}


@pytest.mark.parametrize("kind", MAKE)
def test_fit_predict_and_export(kind):
    torch.manual_seed(0)
    # Weights of equal size have no variance as binomials; those of a multinomial compete.
    truth = torch.tensor([[1.0, -1.0, 1.0, -1.0, -1.0, 1.0] if kind == "binomial" else [1.0, -0.5, 0.0, 0.5, 0.0, 0.0]])
    x = torch.randn(400, 6)
    y = x @ truth.T + 0.1 * torch.randn(400, 1)
    make, prior = MAKE[kind]
    model = model_of(nn.Linear(6, 1, bias=False), prior(), noise=0.1, num_data=400)
    guide = make(model, n=8)
    ps.fit(model, guide, (x, y), epochs=60, batch_size=100, lr=0.05, lr_alpha=0.1, compile=False, progress=False)
    assert (guide.site_distribution("weight").mean - truth).abs().max() < 0.2
    rows = ps.compare(model, guide, (x, y), modes=("mean", "mc:20")).rows
    assert all(row.rmse < 0.4 for row in rows)
    exported = guide.export(model)
    assert type(exported) is nn.Linear and (exported(x) - y).square().mean().sqrt() < 0.4
    distribution = guide.site_distribution("weight")
    scale = (distribution.base_dist.scale if kind == "binomial" else distribution.scale).max()
    steps = exported.weight.detach() / scale * (4 if kind == "binomial" else 8)
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0.0)
    assert (exported.weight - distribution.mean).abs().max() <= scale / 4


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    for kind, (make, prior) in MAKE.items():
        model = model_of(nn.Linear(3, 2), prior())
        with pytest.raises(ValueError, match=f"{make.__name__} n: expected a whole number from 1 up, got 0"):
            make(model, n=0)
        with pytest.raises(ValueError, match="n: expected a whole number"):
            make(model, n=2.5)
        ps.save(tmp_path / kind, model, make(model, n=4))
        with pytest.raises(CheckpointError, match="n=4"):
            ps.load(tmp_path / kind, model, make(model, n=5))
        zeros = nn.Linear(3, 2)
        nn.init.zeros_(zeros.weight)
        with pytest.raises(
            ValueError, match=f"{make.__name__}: all of the network's own weights at site 'weight' are 0"
        ):
            make(model_of(zeros, prior()))
    cut = nn.Linear(3, 2)
    nn.utils.prune.l1_unstructured(cut, "weight", amount=2)
    with pytest.raises(ValueError, match="MultinomialWeights: expected a site without constant .*'weight_orig'"):
        guides.MultinomialWeights(model_of(cut, priors.UniformMultinomial()))
    kept = guides.BinomialWeights(model_of(cut, priors.SymmetricBinomial()))
    assert ((kept()["weight_orig"] == cut.weight_orig) == (cut.weight_mask == 0)).sum() >= 2
