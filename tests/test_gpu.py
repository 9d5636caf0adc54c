"""One step of every guide under every estimator: the GPU gives what the CPU gives."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.infer.elbo import ESTIMATORS

# Those that draw; the others have tests of their own.
DRAWN = [name for name in ESTIMATORS if not name.startswith("moments")]

GUIDES = {
    "additive": ps.guides.Additive,
    "weightwise": ps.guides.WeightwiseAlpha,
    "neuronwise": ps.guides.NeuronwiseAlpha,
    "layerwise": ps.guides.LayerwiseAlpha,
    "variance": ps.guides.VarianceOnly,
    "bernoulli": functools.partial(ps.guides.VarianceOnly, family="bernoulli"),
    "uniform": functools.partial(ps.guides.VarianceOnly, family="uniform"),
}

DRAWS = {"randn": torch.randn, "rand": torch.rand, "randint": torch.randint}


def step(guide: str, estimator: str, device: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Loss and gradients with noise that is the same on every device."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()
    model = ps.BayesianModel(
        net, prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=30
    ).to(device)
    loss = ps.ELBO(estimator)(model, GUIDES[guide](model))
    x = torch.randn(10, 1, 6, 6, dtype=torch.float64, generator=generator).to(device)
    y = torch.randint(0, 4, (10,), generator=generator).to(device)

    def on_the_cpu(name):
        make = DRAWS[name]

        def made(*args, dtype=None, device=None, **kwargs):
            noise = make(*args, generator=generator, **kwargs)
            return noise.to(dtype=dtype or noise.dtype, device=device)

        return made

    loss(x, y)  # the usage draws nothing of its own, but caches
    generator.manual_seed(1)
    for name in DRAWS:
        monkeypatch.setattr(torch, name, on_the_cpu(name))
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: on_the_cpu("randn")(shape, dtype=dtype, device=device),
    )
    value = loss(x, y)
    value.backward()
    monkeypatch.undo()
    found = {name: p.grad.cpu() for name, p in loss.named_parameters() if p.grad is not None}
    return {**found, "loss": value.detach().cpu()}


def compare(guide: str, estimator: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = step(guide, estimator, "cpu", monkeypatch)
    there = step(guide, estimator, device, monkeypatch)
    assert here.keys() == there.keys()
    for name in here:
        assert torch.allclose(here[name], there[name], rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("estimator", DRAWN)
@pytest.mark.parametrize("guide", GUIDES)
def test_the_comparison_itself_repeats_on_the_cpu(guide, estimator, monkeypatch):
    """Keeps the machinery of the GPU test honest where there is no GPU: the same noise gives the same step."""
    compare(guide, estimator, "cpu", monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", DRAWN)
@pytest.mark.parametrize("guide", GUIDES)
def test_one_step_equals_the_cpus(guide, estimator, monkeypatch):
    compare(guide, estimator, "cuda", monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", DRAWN)
def test_a_step_does_not_synchronize(estimator):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    model = ps.BayesianModel(
        net, prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=30
    ).cuda()
    loss = ps.ELBO(estimator)(model, ps.guides.LayerwiseAlpha(model))
    x, y = torch.randn(10, 1, 6, 6, device="cuda"), torch.randint(0, 4, (10,), device="cuda")
    with pyro.validation_enabled(False):
        loss(x, y).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss(x, y).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_fit_and_predict_on_the_gpu():
    digits = ps.data.load("digits")
    model = ps.BayesianModel(
        ps.models.MLP(64, hidden=(50,), out_features=10),
        prior=ps.priors.Normal(),
        likelihood=ps.likelihoods.Categorical(),
        num_data=len(digits.x_train),
    )
    guide = ps.guides.Additive(model)
    ps.fit(model, guide, (digits.x_train, digits.y_train), epochs=3, device="cuda", seed=0, progress=False)
    prediction = ps.predict(model, guide, digits.x_test.cuda(), mode="mc:5")
    assert prediction.probs.is_cuda and torch.isfinite(prediction.probs).all()


@pytest.mark.gpu
def test_a_narrow_vgg_with_crops_trains_and_is_converted_on_the_gpu():
    vgg = ps.models.VGG(width=0.125)
    net = nn.Sequential()
    net.add_module("augment", ps.models.CropAndFlip())
    net.add_module("vgg", vgg)
    priors = {f"vgg.{pattern}": ps.priors.LogUniform() for pattern in vgg.VARIATIONAL}
    x, y = torch.rand(40, 3, 32, 32), torch.arange(40) % 10
    model = ps.BayesianModel(net, prior=priors, likelihood=ps.likelihoods.Categorical(), num_data=40)
    guide = ps.guides.LayerwiseAlpha(model)
    ps.fit(model, guide, (x, y), epochs=2, batch_size=20, device="cuda", precision="bf16", seed=0, progress=False)
    limit = ps.guides.to_variance_only(guide)
    assert ps.predict(model, limit, x.cuda(), mode="mc:2").probs.is_cuda
    assert ps.guides.prune(guide).export(model)(x.cuda()).is_cuda
