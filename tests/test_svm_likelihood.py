"""The Bayesian SVM: its density by hand, training with the pseudo-likelihood, and predictions with probabilities."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer import MCMC, NUTS, Predictive, TraceEnum_ELBO
from torch import nn

import pyrostoch as ps
from pyrostoch.infer.data_sets import as_batches
from pyrostoch.likelihoods import BayesianSVM, PseudoCategorical
from pyrostoch.likelihoods.pseudo import is_pseudo, normalized
from pyrostoch.prediction.decompose import decompose
from pyrostoch.prediction.validation import predictive_loss

F64 = {"dtype": torch.float64}


def by_hand(output, label, c=1.0):
    """The log pseudo-likelihood of one label for one example's output, a list of numbers."""
    if len(output) == 1:
        return -2.0 * c * max(0.0, 1.0 - (2 * label - 1) * output[0])
    others = [value for index, value in enumerate(output) if index != label]
    return -2.0 * c * max(0.0, 1.0 + max(others) - output[label])


def probabilities_by_hand(output, c=1.0):
    weights = [math.exp(by_hand(output, label, c)) for label in range(max(2, len(output)))]
    return torch.tensor([weight / sum(weights) for weight in weights], **F64)


def linear(classes=1, num_data=12, c=1.0, prior=None, likelihood=None, features=2):
    net = nn.Linear(features, classes, bias=False, **F64)
    likelihood = likelihood or BayesianSVM(c)
    return ps.BayesianModel(net, prior=prior or ps.priors.Normal(), likelihood=likelihood, num_data=num_data)


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("c", [1.0, 0.3])
def test_density_and_probabilities_by_hand(classes, c):
    output = 2.0 * torch.randn(7, classes, **F64)
    found = BayesianSVM(c)(output)
    for label in range(max(2, classes)):
        expected = torch.tensor([by_hand(row, label, c) for row in output.tolist()], **F64)
        assert torch.allclose(found.log_prob(torch.full((7,), label)), expected, rtol=1e-12)
    expected = torch.stack([probabilities_by_hand(row, c) for row in output.tolist()])
    assert torch.allclose(found.probs, expected, rtol=1e-12)
    assert torch.allclose(normalized(found).log_prob(torch.zeros(7, dtype=torch.int64)).exp(), expected[:, 0])
    sums = sum(normalized(found).log_prob(torch.full((7,), label)).exp() for label in range(max(2, classes)))
    assert torch.allclose(sums, torch.ones(7, **F64))
    unnormalized = sum(found.log_prob(torch.full((7,), label)).exp() for label in range(max(2, classes)))
    assert ((unnormalized - 1).abs() > 1e-6).any()


def test_two_outputs_are_a_single_one_and_one_axis_is_enough():
    output = torch.randn(9, 2, **F64)
    two, one = BayesianSVM()(output), BayesianSVM()(output[:, 1:] - output[:, :1])
    flat = BayesianSVM()(output[:, 1] - output[:, 0])
    assert torch.allclose(two.log_pseudo, one.log_pseudo) and torch.equal(one.log_pseudo, flat.log_pseudo)


def test_equal_outputs_lie_on_the_margin():
    found = BayesianSVM()(torch.full((2, 4), 3.0, requires_grad=True))
    assert found.log_pseudo.tolist() == [[-2.0] * 4] * 2
    assert torch.allclose(found.probs, torch.tensor(0.25))


@pytest.mark.parametrize("classes", [1, 4])
def test_gradient(classes):
    """Of -2c times hinge: 2c from the label's output, -2c from the largest other one, none beyond the margin."""
    output = (2.0 * torch.randn(30, classes, **F64)).requires_grad_()
    labels = torch.arange(30) % max(2, classes)
    BayesianSVM(0.7)(output).log_prob(labels).sum().backward()
    expected = torch.zeros_like(output)
    for row, (values, label) in enumerate(zip(output.tolist(), labels.tolist(), strict=True)):
        if by_hand(values, label) == 0.0:
            continue
        if classes == 1:
            expected[row] = 1.4 * (2 * label - 1)
        else:
            other = max((value, index) for index, value in enumerate(values) if index != label)[1]
            expected[row, label], expected[row, other] = 1.4, -1.4
    assert torch.allclose(output.grad, expected)


@pytest.mark.parametrize("c", [1.0, 0.6])
@pytest.mark.parametrize("label", [0, 1])
def test_location_scale_mixture_of_normals(c, label):
    r"""$L = \int_0^\infty (2 \pi t)^{-1/2} \exp(-(t + c (1 - s f))^2 / (2 t)) dt$ (Polson and Scott), with t = r^2."""
    r = torch.linspace(1e-9, 14.0, 40_001, **F64)
    for f in (-2.5, -1.0, -0.3, 0.4, 1.0, 1.7, 4.0):
        a = c * (1.0 - (2 * label - 1) * f)
        integrand = math.sqrt(2.0 / math.pi) * (-((r.square() + a) ** 2) / (2.0 * r.square())).exp()
        integral = torch.trapezoid(integrand, r)
        density = BayesianSVM(c)(torch.tensor([f], **F64)).log_prob(torch.tensor([label])).exp()
        assert integral.item() == pytest.approx(density.item(), rel=1e-8)


def test_draws_follow_the_normalized_probabilities():
    output = torch.tensor([[0.2, -0.4, 0.1], [2.0, 0.0, 1.5]], **F64)
    found = BayesianSVM(0.5)(output)
    draws = found.sample((20_000,))
    for label, row in itertools.product(range(3), range(2)):
        p = found.probs[row, label].item()
        assert (draws[:, row] == label).double().mean().item() == pytest.approx(p, abs=6 * math.sqrt(p * (1 - p) / 2e4))
    model = linear(3, c=0.5)
    drawn = Predictive(model, num_samples=4)(torch.randn(6, 2, **F64))["obs"]
    assert drawn.shape == (4, 6) and set(drawn.unique().tolist()) <= {0, 1, 2}


BAD = {
    "-1 and +1": (1, torch.tensor([-1, 1, -1]), r"labels from 0 to 1, got 2 outside, among them -1; use 0 and 1"),
    "a third of two": (1, torch.tensor([0, 1, 2]), r"got 1 outside, among them 2; give the network an output for each"),
    "a fourth of three": (3, torch.tensor([0, 1, 3]), r"labels from 0 to 2, got 1 outside, among them 3"),
    "unlabeled": (3, torch.tensor([0, 1, -1]), r"among them -1; leave unlabeled examples out"),
    "floats": (
        1,
        torch.tensor([-1.0, 1.0, 0.5]),
        r"integer class labels of shape \(3,\), got torch.float32.*\(y > 0\)",
    ),
    "floats of three": (3, torch.tensor([0.0, 1.0, 0.5]), r"convert with y.long\(\)"),
    "booleans": (2, torch.tensor([True, False, True]), r"got torch.bool"),
    "another shape": (1, torch.tensor([[0], [1], [1]]), r"expected targets of shape \(3,\).*got \(3, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_refused_by_training_and_scores(case):
    classes, labels, message = BAD[case]
    model = linear(classes, num_data=3)
    guide = ps.guides.Additive(model)
    x = torch.randn(3, 2, **F64)
    for call in (ps.ELBO()(model, guide), lambda x, y: ps.compare(model, guide, (x, y), modes="mean")):
        with pytest.raises((ValueError, TypeError), match=f"likelihood BayesianSVM: .*{message}"):
            call(x, labels)


def test_bad_settings_and_outputs_are_refused():
    for c in (0.0, -1.0, math.inf, dist.Gamma(1.0, 1.0)):
        with pytest.raises(ValueError, match="likelihood BayesianSVM c: expected a positive finite number"):
            BayesianSVM(c)
    for shape in ((), (3, 2, 2), (3, 0)):
        with pytest.raises(ValueError, match=r"likelihood BayesianSVM: expected a network output of shape"):
            BayesianSVM()(torch.zeros(shape))
    assert BayesianSVM(2.0).identity() == "BayesianSVM(c=2)" != BayesianSVM(3.0).identity()


class Cycle:
    """A guide that goes through given weights again and again: as many draws in a row as there are take each once."""

    def __init__(self, weights):
        self.weights = itertools.cycle(weights)

    def __call__(self, x, y=None):
        value = next(self.weights)
        pyro.sample("weight", dist.Delta(value, event_dim=value.dim()))


@pytest.mark.parametrize("classes", [1, 3])
def test_predict_and_compare_average_normalized_probabilities(classes):
    model, draws = linear(classes), [torch.randn(classes, 2, **F64) for _ in range(5)]
    x, y = torch.randn(12, 2, **F64), torch.arange(12) % max(2, classes)
    probs = torch.zeros(12, max(2, classes), **F64)
    for row, weight in itertools.product(range(12), draws):
        probs[row] += probabilities_by_hand((weight @ x[row]).tolist()) / len(draws)
    found = ps.predict(model, Cycle(draws), x, y=y, mode="mc:5")
    assert torch.allclose(found.probs, probs)
    assert torch.allclose(found.log_density.exp(), probs[range(12), y])
    assert torch.allclose(found.log_prob(y), found.log_density)
    scores = ps.compare(model, Cycle(draws), (x, y), modes=("mc:5",))["mc:5"]
    assert scores.nll == pytest.approx(-probs[range(12), y].log().mean().item())
    assert scores.accuracy == pytest.approx((probs.argmax(1) == y).double().mean().item())
    brier = (probs - nn.functional.one_hot(y, probs.shape[1])).square().sum(1).mean().item()
    assert scores.brier == pytest.approx(brier)


def test_the_validation_loss_is_that_of_compare():
    model = linear(3)
    guide, data = ps.guides.Additive(model, init_scale=1e-9), (torch.randn(12, 2, **F64), torch.arange(12) % 3)
    loss = predictive_loss(model, guide, as_batches(data, 5), torch.device("cpu"), estimator="local", draws=2)
    assert loss == pytest.approx(ps.compare(model, guide, data, modes=("mean",))["mean"].nll, rel=1e-4)


def test_masked_targets_are_left_out_and_still_normalized():
    svm, known = BayesianSVM(), torch.arange(12) % 4 > 0
    model = linear(3, likelihood=lambda out: svm(out).mask(known))
    guide, x, y = ps.guides.Additive(model, init_scale=1e-9), torch.randn(12, 2, **F64), torch.arange(12) % 3
    found = ps.predict(model, guide, x, y=y, mode="mean")
    expected = torch.stack([probabilities_by_hand(row) for row in (x @ model.net.weight.T).tolist()])
    assert torch.allclose(found.probs, expected)
    assert torch.allclose(found.log_density, torch.where(known, expected[range(12), y].log(), 0.0))
    scores = ps.compare(model, guide, (x, y), modes=("mean",))
    assert scores.num_examples == int(known.sum())
    assert scores["mean"].nll == pytest.approx(-expected[range(12), y].log()[known].mean().item())
    assert decompose(model, guide, (x, y)).pseudo


def test_wrappers_keep_their_shapes():
    pseudo = PseudoCategorical(torch.randn(4, 3, 5, **F64))
    mask, value = torch.rand(4, 3) > 0.4, torch.randint(5, (2, 4, 3))
    wrapped = pseudo.mask(mask).to_event(1).expand((2, 4))
    found = normalized(wrapped)
    assert found.batch_shape == (2, 4) and found.event_shape == (3,) and is_pseudo(wrapped) and not is_pseudo(found)
    logs = pseudo.logits.gather(-1, value.permute(1, 2, 0)).permute(2, 0, 1)
    assert torch.allclose(found.log_prob(value), torch.where(mask, logs, 0.0).sum(-1))
    logs = pseudo.log_pseudo.gather(-1, value.permute(1, 2, 0)).permute(2, 0, 1)
    assert torch.allclose(wrapped.log_prob(value), torch.where(mask, logs, 0.0).sum(-1))
    assert pseudo.expand((2, 4, 3)).log_prob(torch.tensor(0)).shape == (2, 4, 3)
    lazily = ExpandedDistribution(pseudo, (2, 4, 3))
    assert normalized(lazily).batch_shape == (2, 4, 3)
    assert torch.allclose(normalized(lazily).log_prob(value)[1], normalized(pseudo).log_prob(value[1]))
    normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    assert normalized(normal) is normal and not is_pseudo(normal)


POINTS = torch.linspace(-9.0, 9.0, 20_001, **F64)


def test_the_elbo_is_that_of_the_pseudo_likelihood():
    c, loc, scale = 0.4, 0.5, 0.8
    model = linear(num_data=8, c=c, prior=ps.priors.Normal(0.0, 1.5), features=1)
    x, y = torch.randn(8, 1, **F64), torch.tensor([0, 1] * 4)
    with torch.no_grad():
        model.net.weight.fill_(loc)
    guide = ps.guides.Additive(model, init_scale=scale)
    logs = (-2.0 * c * (1.0 - (2 * y - 1) * x[:, 0] * POINTS[:, None]).clamp_min(0.0)).sum(1)
    q = dist.Normal(loc, scale).log_prob(POINTS).exp()
    found = decompose(model, guide, (x, y), num_samples=400)
    assert found.data == pytest.approx(torch.trapezoid(q * logs, POINTS).item(), abs=5.5 * found.data_stderr)
    evidence = torch.trapezoid(dist.Normal(0.0, 1.5).log_prob(POINTS).exp() * logs.exp(), POINTS).log().item()
    assert found.elbo < evidence + 5.5 * found.elbo_stderr
    moments = decompose(model, guide, (x, y), estimator="moments")
    assert moments.data == pytest.approx(torch.trapezoid(q * logs, POINTS).item(), rel=0.02)
    assert found.pseudo and moments.pseudo and "Pseudo-likelihood, no probability of the targets" in str(found)
    model = linear(2, num_data=8, likelihood=ps.likelihoods.Categorical(), features=1)
    assert "Pseudo" not in str(decompose(model, ps.guides.Additive(model), (x, y)))


def test_moments_average_normalized_probabilities():
    model = linear()
    guide, x, y = ps.guides.Additive(model, init_scale=0.5), torch.randn(12, 2, **F64), torch.arange(12) % 2
    moments, sampled = (ps.predict(model, guide, x, y=y, mode=mode, seed=0) for mode in ("moments", "mc:4000"))
    assert torch.allclose(moments.probs, sampled.probs, atol=0.05)
    assert torch.allclose(moments.log_density, moments.log_prob(y))
    with pytest.raises(ValueError, match="no closed form"):
        ps.predict(model, guide, x, mode="moments:closed")


def test_leave_one_out_scores_are_refused_and_the_rest_is_there():
    pytest.importorskip("arviz")
    model = linear(3)
    guide, data = ps.guides.Additive(model), (torch.randn(12, 2, **F64), torch.arange(12) % 3)
    with pytest.raises(ValueError, match="log_likelihood: .*pseudo-likelihood.*log_likelihood=False"):
        ps.to_arviz(model, guide, data, draws=2)
    found = ps.to_arviz(model, guide, data, draws=2, log_likelihood=False)
    assert set(found.posterior_predictive["obs"].values.reshape(-1).tolist()) <= {0, 1, 2}


def test_labels_that_are_not_observed_are_refused_by_enumeration():
    def model(x):
        with pyro.plate("data", 3):
            pyro.sample("y", BayesianSVM()(x), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match="PseudoCategorical: expected observed labels"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, torch.randn(3, 1))
    with pytest.raises(ValueError, match="PseudoCategorical: expected observed labels"):
        MCMC(NUTS(linear()), num_samples=1, warmup_steps=1, disable_progbar=True).run(torch.randn(3, 2, **F64))


@pytest.mark.slow
def test_nuts_draws_from_the_pseudo_posterior():
    """Six labels 1 and two 0 at one point: with normalized probabilities the mean would be three spreads away."""
    model = linear(num_data=8, prior=ps.priors.Normal(0.0, 1.5), features=1)
    x, y = torch.ones(8, 1, **F64), torch.tensor([1] * 6 + [0] * 2)
    mcmc = MCMC(NUTS(model), num_samples=500, warmup_steps=200, disable_progbar=True)
    mcmc.run(x, y)
    hinges = 6 * (1.0 - POINTS).clamp_min(0.0) + 2 * (1.0 + POINTS).clamp_min(0.0)
    density = (dist.Normal(0.0, 1.5).log_prob(POINTS) - 2.0 * hinges).exp()
    density = density / torch.trapezoid(density, POINTS)
    mean = torch.trapezoid(density * POINTS, POINTS).item()
    spread = math.sqrt(torch.trapezoid(density * (POINTS - mean).square(), POINTS).item())
    assert mcmc.get_samples()["weight"].mean().item() == pytest.approx(mean, abs=0.5 * spread)


def hinge_minimum(x, y, steps=3000):
    """The weights of smallest mean hinge, by plain torch; the best of the path."""
    weight = torch.zeros(x.shape[1], **F64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    best, least = weight.detach().clone(), math.inf
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1.0 - step / steps)
        loss = (1.0 - (2 * y - 1) * (x @ weight)).clamp_min(0.0).mean()
        if loss.item() < least:
            best, least = weight.detach().clone(), loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


def trained(x, y):
    """The posterior mean of a linear SVM under a nearly flat prior."""
    model = linear(num_data=len(x), prior=ps.priors.Normal(0.0, 100.0))
    guide = ps.guides.Additive(model, init_scale=0.1)
    ps.fit(model, guide, (x, y), epochs=500, batch_size=len(x), lr=0.05, seed=0, progress=False, compile=False)
    return model, guide, guide.site_distribution("weight").mean.detach().reshape(-1)


def test_a_separable_set_is_separated_in_the_direction_of_the_hinge():
    angle = torch.rand(1, **F64).item() * 2 * math.pi
    normal = torch.tensor([math.cos(angle), math.sin(angle)], **F64)
    x = 2.0 * torch.randn(400, 2, **F64)
    x = x[(x @ normal).abs() > 0.2]
    y = (x @ normal > 0).long()
    model, guide, found = trained(x, y)
    expected = hinge_minimum(x, y)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.995
    assert torch.equal((x @ found > 0).long(), y) and torch.equal((x @ expected > 0).long(), y)
    assert ps.compare(model, guide, (x, y), modes=("mean",))["mean"].accuracy == 1.0


def test_an_overlapping_set_has_the_weights_of_the_hinge():
    x = torch.randn(1500, 2, **F64)
    y = (x @ torch.tensor([1.0, -0.5], **F64) + 0.7 * torch.randn(1500, **F64) > 0).long()
    _, _, found = trained(x, y)
    expected = hinge_minimum(x, y)
    assert torch.allclose(found, expected, atol=0.05 * expected.norm().item())


@pytest.mark.parametrize("classes", [1, 3])
def test_fit_warns_of_outputs_that_cannot_learn(classes):
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, classes))
    model = ps.BayesianModel(net, prior=ps.priors.LogUniform(), likelihood=BayesianSVM(), num_data=12)
    data = (torch.randn(12, 2), torch.arange(12) % max(2, classes))
    with pytest.warns(UserWarning, match="'2.weight' has mean zero.*the decision values of a BayesianSVM likelihood"):
        ps.fit(model, ps.guides.VarianceOnly(model), data, epochs=1, progress=False, compile=False)


def test_fit_warns_of_a_softmax():
    net = nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1))
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=BayesianSVM(), num_data=12)
    data = (torch.randn(12, 2), torch.arange(12) % 3)
    with pytest.warns(UserWarning, match="not the decision values of a BayesianSVM: leave out the last softmax"):
        ps.fit(model, ps.guides.Additive(model), data, epochs=1, progress=False, compile=False)
