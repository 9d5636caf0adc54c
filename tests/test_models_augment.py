"""Random crops and flips: against loops, their frequencies, and in front of a Bayesian network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.models import CropAndFlip


def crop_with_loops(x: Tensor, padding: int, shifts: Tensor, flips: Tensor) -> Tensor:
    """Crop and flip pixel by pixel; pixels outside of the image are zero."""
    out = torch.zeros_like(x)
    count, channels, height, width = x.shape
    for n in range(count):
        top, left = (int(shift[n, 0]) - padding for shift in shifts)
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    row, column = top + i, left + (width - 1 - j if flips[n, 0] else j)
                    if 0 <= row < height and 0 <= column < width:
                        out[n, c, i, j] = x[n, c, row, column]
    return out


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("shape", [(7, 3, 5, 4), (5, 1, 3, 6), (1, 2, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_loops(
    padding: int, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, flip: bool
) -> None:
    x = torch.randn(shape, dtype=dtype).to(memory_format=layout)
    before = x.clone()
    torch.manual_seed(5)
    cropped = CropAndFlip(padding, flip)(x)
    torch.manual_seed(5)
    shifts = torch.randint(0, 2 * padding + 1, (2, shape[0], 1))
    flips = torch.rand(shape[0], 1) < 0.5 if flip else torch.zeros(shape[0], 1, dtype=torch.bool)
    assert cropped.dtype == dtype and cropped.shape == x.shape
    assert torch.equal(cropped, crop_with_loops(x, padding, shifts, flips))
    assert torch.equal(x, before) and cropped.data_ptr() != x.data_ptr()


def test_images_are_channels_last_in_memory() -> None:
    assert CropAndFlip(2)(torch.randn(4, 3, 6, 6)).is_contiguous(memory_format=torch.channels_last)


def test_crops_and_flips_are_equally_frequent() -> None:
    image = torch.arange(1.0, 7.0).reshape(1, 1, 2, 3)
    kinds = [(top, left, flip) for top in range(3) for left in range(3) for flip in (False, True)]
    shifts = torch.tensor([[top for top, _, _ in kinds], [left for _, left, _ in kinds]])[:, :, None]
    flips = torch.tensor([flip for _, _, flip in kinds])[:, None]
    known = crop_with_loops(image.expand(len(kinds), -1, -1, -1), 1, shifts, flips)
    assert len(known.flatten(1).unique(dim=0)) == 18
    count = 9000
    cropped = CropAndFlip(1)(image.expand(count, -1, -1, -1))
    which = (cropped.flatten(1)[:, None] == known.flatten(1)).all(-1)
    assert bool((which.sum(1) == 1).all())
    kind = which.float().argmax(1)
    # Chi-squared with 17 degrees of freedom, and for pairs of neighbors with 323: five standard deviations above.
    each = kind.bincount(minlength=18).double()
    assert ((each - 500) ** 2 / 500).sum() < 17 + 5 * 34**0.5
    pairs = (18 * kind[:-1] + kind[1:]).bincount(minlength=324).double()
    expected = (count - 1) / 324
    assert ((pairs - expected) ** 2 / expected).sum() < 323 + 5 * 646**0.5


def test_gradient_reaches_the_pixels_that_were_used() -> None:
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    layer = CropAndFlip(2)

    def repeated(images: Tensor) -> Tensor:
        torch.manual_seed(2)
        return layer(images)

    assert torch.autograd.gradcheck(repeated, (x,))
    repeated(x).sum().backward()
    used = repeated(torch.ones_like(x)).flatten(1).sum(1)
    assert x.grad is not None and torch.equal(x.grad.flatten(1).sum(1), used)
    assert set(x.grad.unique().tolist()) == {0.0, 1.0}


def test_evaluation_is_identity_and_draws_nothing() -> None:
    layer, x = CropAndFlip().eval(), torch.randn(3, 1, 5, 5)
    state = torch.get_rng_state()
    assert layer(x) is x and torch.equal(torch.get_rng_state(), state)
    assert repr(layer) == "CropAndFlip(padding=4, flip=True)" and list(layer.state_dict()) == []


@pytest.mark.parametrize("padding", [-1, 1.5, True, None])
def test_padding_is_checked(padding: object) -> None:
    with pytest.raises(ValueError, match="CropAndFlip: expected a whole number of pixels from 0 up, got"):
        CropAndFlip(padding)  # type: ignore[arg-type]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images \(batch, channels, height, width\), got shape \(3, 5, 5\)"):
        CropAndFlip()(torch.zeros(3, 5, 5))


def bayesian(augment: nn.Module) -> tuple[ps.BayesianModel, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(augment, nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    prior = {"1.weight": ps.priors.LogUniform(), "5.weight": ps.priors.LogUniform()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=40)
    return model, ps.guides.LayerwiseAlpha(model)


DATA = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


@pytest.mark.parametrize("estimator", ["local", "shared", "flipout", "marginal"])
def test_weight_usage_is_found_behind_it_without_changing_the_draws(estimator: str) -> None:
    terms = []
    model, guide = bayesian(CropAndFlip(2))
    elbo = ps.ELBO(estimator)  # type: ignore[arg-type]
    for _ in range(2):  # the first call analyzes weight usage, the second does not
        torch.manual_seed(8)
        terms.append(elbo.terms(model, guide, *DATA))
    plain_model, plain_guide = bayesian(nn.Identity())
    plain = elbo.terms(plain_model, plain_guide, *DATA)
    assert terms[0].treatments == terms[1].treatments == plain.treatments
    assert torch.equal(terms[0].data, terms[1].data) and not torch.equal(terms[0].data, plain.data)


def test_training_is_reproducible_and_predictions_use_unchanged_images() -> None:
    fits = []
    for seed in (1, 1, 2):
        model, guide = bayesian(CropAndFlip(2))
        settings = {"epochs": 3, "batch_size": 20, "lr": 0.01, "seed": seed, "progress": False}
        fits.append(ps.fit(model, guide, DATA, **settings).history["loss"])
    assert fits[0] == fits[1] != fits[2]
    once, twice = (ps.predict(model, guide, DATA[0], mode="mean").probs for _ in range(2))
    assert torch.equal(once, twice)
    plain_model, plain_guide = bayesian(nn.Identity())
    plain_model.load_state_dict(model.state_dict())
    plain_guide.load_state_dict(guide.state_dict())
    assert torch.equal(ps.predict(plain_model, plain_guide, DATA[0], mode="mean").probs, once)
    assert model.training and model.net[0].training
