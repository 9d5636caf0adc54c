"""Masked targets are left out of scores, distributions without a mean have log densities only, no NaN is returned."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.metrics import Regression


class Segmenter(nn.Module):
    """Logits of three classes for each pixel, and which pixels have labels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x, labeled):
        return self.conv(x).permute(0, 2, 3, 1), labeled


def segmentation():
    x, y = torch.randn(6, 2, 5, 5), torch.randint(0, 3, (6, 5, 5))
    labeled = torch.rand(6, 5, 5) > 0.3
    labeled[2] = False
    labeled[0, 0, 0] = True
    model = ps.BayesianModel(
        Segmenter(),
        prior=ps.priors.Normal(),
        likelihood=lambda out: dist.Categorical(logits=out[0]).mask(out[1]),
        num_data=6,
    )
    return model, ps.guides.Additive(model), (x, labeled), y


def linear(likelihood, outputs=1, inputs=2):
    model = ps.BayesianModel(nn.Linear(inputs, outputs), prior=ps.priors.Normal(), likelihood=likelihood, num_data=6)
    return model, ps.guides.Additive(model)


@pytest.mark.parametrize("mode", ["mean", "mc:5"])
def test_masked_labels_have_probabilities_and_are_not_scored(mode):
    model, guide, x, y = segmentation()
    ps.fit(model, guide, (x, y), epochs=2, seed=0, progress=False, compile=False)
    prediction = ps.predict(model, guide, x, y=y, mode=mode, seed=1)
    assert prediction.probs.shape == (6, 5, 5, 3) and prediction.total.shape == (6, 5, 5)
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(6, 5, 5, dtype=torch.float64))
    scores = ps.compare(model, guide, (x, y), modes=(mode,), batch_size=1000, seed=1)
    labeled, row = x[1], scores.rows[0]
    assert scores.num_examples == 5 and row.rmse is None
    right = prediction.probs.argmax(-1)[labeled] == y[labeled]
    assert row.accuracy == pytest.approx(right.double().mean().item())
    assert row.nll == pytest.approx(-prediction.log_density[labeled.flatten(1).any(1)].mean().item())
    # The log density of an example is that of its labeled pixels.
    if mode == "mean":
        of_pixels = prediction.log_probs.gather(-1, y[..., None]).squeeze(-1)
        torch.testing.assert_close(prediction.log_density, (of_pixels * labeled).sum((1, 2)), rtol=1e-4, atol=1e-4)
    curve = ps.accuracy_by_samples(model, guide, (x, y), samples=(1,), seed=1)
    assert curve.num_examples == 5


def test_batches_of_any_size_give_the_same_masked_scores():
    model, guide, x, y = segmentation()
    one, many = (ps.compare(model, guide, (x, y), modes=("mean",), batch_size=size).rows[0] for size in (6, 1))
    for name in ("nll", "accuracy", "brier", "nll_stderr"):
        assert getattr(one, name) == pytest.approx(getattr(many, name), rel=1e-5), name


def test_masked_numbers_are_not_scored():
    observed = torch.tensor([[True, False], [True, True], [False, False]])
    model, guide = linear(lambda out: dist.Normal(out, 1.0).mask(observed), outputs=2)
    x, y = torch.randn(3, 2), torch.randn(3, 2)
    row = ps.compare(model, guide, (x, y), modes=("mean",)).rows[0]
    error = (guide.site_distribution("weight").mean @ x.T).T + model.net.bias - y
    assert row.rmse == pytest.approx(error[observed].square().mean().sqrt().item(), rel=1e-5)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(error) * observed
    assert row.nll == pytest.approx(-density.sum(1)[:2].mean().item(), rel=1e-5)
    moments = ps.compare(model, guide, (x, y), modes=("moments",)).rows[0]
    assert moments.rmse == pytest.approx(row.rmse, rel=1e-3)
    everything = linear(lambda out: dist.Normal(out, 1.0).mask(False), outputs=2)
    with pytest.raises(ValueError, match="masks every target"):
        ps.compare(*everything, (x, y))


def test_a_mask_with_all_targets_changes_no_score():
    log_density, mean, y = -torch.rand(5), torch.randn(5, 3), torch.randn(5, 3)
    plain, masked = Regression(), Regression()
    plain.update(log_density, mean, y)
    masked.update(log_density, mean, y, torch.ones(5, 3, dtype=torch.bool))
    assert plain.compute() == masked.compute()


class NoMean(dist.TorchDistribution):
    """A density of a user's own, without mean and draws."""

    arg_constraints = {}
    support = dist.constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=False)

    def log_prob(self, value):
        return -(value - self.loc).abs().sum(-1)

    def expand(self, batch_shape, _instance=None):
        return self


@pytest.mark.parametrize("make", [lambda out: NoMean(out), lambda out: dist.Cauchy(out, 1.0)], ids=["own", "cauchy"])
@pytest.mark.parametrize("mode", ["mean", "mc:3", "moments"])
def test_a_distribution_without_a_mean_has_log_densities(make, mode):
    model, guide = linear(make, outputs=2)
    x, y = torch.randn(6, 2), torch.randn(6, 2)
    prediction = ps.predict(model, guide, x, y=y, mode=mode, seed=3)
    assert prediction.mean is None and prediction.total is None and len(prediction) == 6
    assert bool(torch.isfinite(prediction.log_density).all()) and "without a mean" in str(prediction)
    if mode == "mean":
        out = (guide.site_distribution("weight").mean @ x.T).T + model.net.bias
        exact = make(out).log_prob(y)
        exact = exact if exact.dim() == 1 else exact.sum(-1)
        torch.testing.assert_close(prediction.log_density, exact.double(), rtol=1e-4, atol=1e-4)
    scores = ps.compare(model, guide, (x, y), modes=(mode,), seed=3)
    assert scores.rows[0].rmse is None and "no RMSE" in str(scores) and "nan" not in str(scores)
    assert scores.rows[0].nll == pytest.approx(-prediction.log_density.mean().item())
    with pytest.raises(ValueError, match="give (targets )?y= for"):
        ps.predict(model, guide, x, mode=mode)
    with pytest.raises(ValueError, match="a log density of the targets only"):
        _ = prediction.probs


@pytest.mark.parametrize("mode", ["mean", "moments"])
def test_a_weight_without_a_mean_is_named(mode):
    class CauchyGuide(ps.guides.Guide):
        def initial_parameters(self, site):
            return {"loc": site.init}

        def distribution(self, site, loc):
            return dist.Cauchy(loc, 1.0)

    model, _ = linear(ps.likelihoods.Gaussian())
    with pytest.raises(ValueError, match="site 'weight': Cauchy has no known mean"):
        ps.predict(model, CauchyGuide(model), torch.randn(3, 2), mode=mode)


def test_nan_does_not_leave_the_library():
    model, guide = linear(ps.likelihoods.Categorical(), outputs=3)
    with torch.no_grad():
        model.net.bias.fill_(torch.nan)
    x, y = torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    for mode in ("mean", "mc:3", "moments"):
        # The analysis of the network, which moments need, meets the NaN first.
        reason = "cannot be analyzed" if mode == "moments" else "NaN|nan"
        for call in (
            lambda mode=mode: ps.predict(model, guide, x, mode=mode),
            lambda mode=mode: ps.compare(model, guide, (x, y), modes=(mode,)),
        ):
            with pytest.raises(ValueError, match=reason):
                call()


def test_infinite_variances_are_reported_as_such():
    model, guide = linear(lambda out: dist.StudentT(1.5, out, 1.0))
    prediction = ps.predict(model, guide, torch.randn(6, 2), mode="mc:3")
    assert bool(torch.isinf(prediction.total).all()) and bool(torch.isfinite(prediction.epistemic).all())


def test_placeholders_of_masked_targets_are_named():
    model, guide, x, y = segmentation()
    with pytest.raises(ValueError, match="labels from 0 to 2.* -100; where a mask leaves them out, put any class"):
        ps.compare(model, guide, (x, torch.where(x[1], y, -100)))
    model, guide = linear(lambda out: dist.Normal(out, 1.0).mask(out > 0))
    with pytest.raises(ValueError, match="NaN or infinite; where a mask leaves them out"):
        ps.compare(model, guide, (torch.randn(3, 2), torch.full((3, 1), math.nan)))
    model, guide = linear(ps.likelihoods.Categorical(), outputs=2)
    with pytest.raises(ValueError, match="leave unlabeled examples out"):
        ps.compare(model, guide, (torch.randn(3, 2), torch.tensor([0, -1, 1])))


def test_the_error_of_one_example_is_not_printed_as_nan():
    model, guide = linear(ps.likelihoods.Gaussian())
    scores = ps.compare(model, guide, (torch.randn(1, 2), torch.randn(1, 1)), modes=("mean",))
    assert "nan" not in str(scores)


def test_a_seed_makes_predictions_repeatable():
    model, guide = linear(ps.likelihoods.Gaussian())
    x = torch.randn(5, 2)
    state = torch.get_rng_state()
    first, second = (ps.predict(model, guide, x, mode="mc:4", seed=7).mean for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, ps.predict(model, guide, x, mode="mc:4", seed=8).mean)


def test_an_output_that_is_no_tensor_is_named():
    class Wrapped(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x), "inputs": x}

    model = ps.BayesianModel(
        Wrapped(2, 2), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=6
    )
    with pytest.raises(
        TypeError, match="expected a network output with one tensor, got a dict with several.*give a function"
    ):
        ps.predict(model, ps.guides.Additive(model), torch.randn(3, 2))
