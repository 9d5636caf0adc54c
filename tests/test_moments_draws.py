"""`moments:mc` averages over draws of the weights that moments cannot replace; what is refused, and what is advised."""

import math

import pytest
import torch
from torch import nn

import pyrostoch as ps
from pyrostoch.effects import MomentPropagation
from pyrostoch.prediction.readouts import MODES


class Products(nn.Module):
    """Weights in plain matrix products, which moments cannot replace."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        return torch.tanh(x @ self.first) @ self.second


class Half(nn.Module):
    """A product, and then a layer whose weight has moments."""

    def __init__(self, outputs=3):
        super().__init__()
        self.first, self.head = nn.Parameter(torch.randn(2, 8)), nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(torch.tanh(x @ self.first))


def build(net, likelihood, scale=0.5):
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=6)
    return model, ps.guides.Additive(model, init_scale=scale)


@pytest.mark.parametrize("make", [Products, Half])
@pytest.mark.parametrize("likelihood", ["classes", "numbers"])
def test_both_uncertainties_are_those_of_many_whole_draws(make, likelihood):
    x = torch.randn(6, 2)
    classes = likelihood == "classes"
    model, guide = build(make(), ps.likelihoods.Categorical() if classes else ps.likelihoods.Gaussian(1.0))
    count = 120 if classes else 1000
    # In the tails of its density a target's value would hang on a few of the draws.
    y = torch.randint(0, 3, (6,)) if classes else ps.predict(model, guide, x, mode="mean").mean.float()
    many = ps.predict(model, guide, x, y=y, mode="mc:4000")
    found = ps.predict(model, guide, x, y=y, mode=f"moments:mc:{count}")
    assert found.num_samples == count and found.epistemic.min() > 0
    for name in ("total", "aleatoric", "epistemic", "log_density"):
        torch.testing.assert_close(getattr(found, name), getattr(many, name), rtol=0.3, atol=0.05)
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
    if classes:
        torch.testing.assert_close(found.log_probs.logsumexp(1), torch.zeros(6, dtype=torch.float64))


def test_one_pass_is_what_it_was_where_nothing_is_drawn():
    model, guide = build(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), ps.likelihoods.Categorical())
    x, y = torch.randn(6, 2), torch.randint(0, 3, (6,))
    for options in ("", ":full", ":closed", ":full:closed"):
        plain = ps.predict(model, guide, x, y=y, mode=f"moments{options}")
        name = f"moments{options}".replace(":closed", "") + ":mc:7" + (":closed" if "closed" in options else "")
        drawn = ps.predict(model, guide, x, y=y, mode=name)
        assert drawn.num_samples == 1 and "one pass" in str(drawn)
        assert torch.equal(plain.log_probs, drawn.log_probs) and torch.equal(plain.epistemic, drawn.epistemic)
        assert torch.equal(plain.log_density, drawn.log_density)


def test_the_mean_over_passes_is_pooled_by_the_laws_of_total_variance_and_entropy():
    model, guide = build(Half(), ps.likelihoods.Categorical())
    x = torch.randn(6, 2)
    torch.manual_seed(1)
    one_by_one = [ps.predict(model, guide, x, mode="moments:mc:1") for _ in range(3)]
    torch.manual_seed(1)
    pooled = ps.predict(model, guide, x, mode="moments:mc:3")
    probs = torch.stack([each.probs for each in one_by_one]).mean(0)
    torch.testing.assert_close(pooled.probs, probs)
    torch.testing.assert_close(pooled.total, -(probs * probs.log()).sum(1))
    torch.testing.assert_close(pooled.aleatoric, torch.stack([each.aleatoric for each in one_by_one]).mean(0))
    model, guide = build(Half(), ps.likelihoods.Gaussian(0.2))
    torch.manual_seed(1)
    one_by_one = [ps.predict(model, guide, x, mode="moments:mc:1") for _ in range(3)]
    torch.manual_seed(1)
    pooled = ps.predict(model, guide, x, mode="moments:mc:3")
    means = torch.stack([each.mean for each in one_by_one])
    within = torch.stack([each.variance for each in one_by_one]).mean(0)
    torch.testing.assert_close(pooled.variance, within + means.var(0, correction=0))
    torch.testing.assert_close(pooled.aleatoric, torch.full_like(within, 0.04))


@pytest.mark.parametrize("verb", ["predict", "compare", "decompose"])
def test_each_verb_averages(verb):
    x, y = torch.randn(40, 2), torch.randn(40, 3)
    net = Half()
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.5), num_data=40)
    guide = ps.guides.Additive(model, init_scale=0.5)
    if verb == "predict":
        found = ps.predict(model, guide, x, mode="moments:mc", batch_size=9)
        assert len(found) == 40 and found.num_samples == 20
        assert found.treatments == {
            "first": "drawn (used in torch.Tensor.matmul)",
            "head.weight": "moments",
        }
    elif verb == "compare":
        rows = ps.compare(model, guide, (x, y), modes=("mc:400", "moments:mc:100"), seed=0)
        assert [row.num_samples for row in rows.rows] == [400, 100]
        assert rows["moments:mc:100"].nll == pytest.approx(rows["mc:400"].nll, rel=0.2)
    else:
        with_moments, with_draws = (
            ps.decompose(model, guide, (x, y), num_samples=100, estimator=name) for name in ("moments:mc", "shared")
        )
        error = math.hypot(with_moments.data_stderr, with_draws.data_stderr)
        assert abs(with_moments.data - with_draws.data) < 5 * error


def test_the_refusal_advises_what_works():
    model, guide = build(Products(), ps.likelihoods.Categorical())
    x = torch.randn(6, 2)
    with pytest.raises(ValueError, match="used in torch.Tensor.matmul") as caught:
        ps.predict(model, guide, x, mode="moments")
    advised = [
        word.strip("',.").removeprefix("mode='") for word in str(caught.value).split() if word.startswith("mode=")
    ]
    assert advised == ["mc", "moments:mc:20"]
    assert all((ps.predict(model, guide, x, mode=mode).epistemic > 0).all() for mode in advised)


def test_joint_draws_are_those_of_mc_alone():
    model, guide = build(Half(), ps.likelihoods.Categorical())
    found = ps.predict(model, guide, torch.randn(6, 2), mode="moments:mc:3", joint=True)
    assert found.treatments["head.weight"] == "moments"


def test_a_random_head_behind_a_fixed_network_reads_by_moments():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False
    )

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.encoder(x)[:, 0])

    prior = {"*": None, "head.weight": ps.priors.Normal()}
    model = ps.BayesianModel(Classifier(), prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=6)
    guide = ps.guides.Additive(model, init_scale=0.7)
    x = torch.randn(6, 5, 8)
    by_moments = ps.predict(model, guide, x, mode="moments:full")
    many = ps.predict(model, guide, x, mode="mc:4000")
    assert by_moments.treatments == {"head.weight": "moments"}
    torch.testing.assert_close(by_moments.probs, many.probs, rtol=0, atol=0.03)
    torch.testing.assert_close(by_moments.epistemic, many.epistemic, rtol=0.15, atol=0.01)


def test_every_mode_with_mc_is_sampled():
    assert {name for name, mode in MODES.items() if mode.sampled} == {name for name in MODES if "mc" in name.split(":")}
    with MomentPropagation(fallback="mc") as handler:
        assert handler.settings.sampled
