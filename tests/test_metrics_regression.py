"""Regression scores and averages over draws against plain loops and exact mixtures."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from pyrostoch.metrics import MomentAverage, PredictiveAverage, Regression, decompose_entropy


def regression_batch(n: int = 97, outputs: tuple[int, ...] = (3,), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, *outputs, generator=generator, dtype=torch.float64)
    target = mean + 0.5 * torch.randn(n, *outputs, generator=generator, dtype=torch.float64)
    density = torch.distributions.Normal(mean, 0.7).log_prob(target)
    return (density.reshape(n, -1).sum(-1) if outputs else density), mean, target


def naive(density: Tensor, mean: Tensor, target: Tensor) -> dict[str, float]:
    n = len(density)
    rows = [
        [(a - b) ** 2 for a, b in zip(m, t, strict=True)]
        for m, t in zip(mean.reshape(n, -1).tolist(), target.reshape(n, -1).tolist(), strict=True)
    ]
    squares = [sum(row) / len(row) for row in rows]
    losses = [-x for x in density.tolist()]
    mse, nll = sum(squares) / n, sum(losses) / n
    spread = math.sqrt(sum((x - mse) ** 2 for x in squares) / (n - 1) / n)
    return {
        "count": n,
        "rmse": math.sqrt(mse),
        "rmse_stderr": spread / (2 * math.sqrt(mse)),
        "nll": nll,
        "nll_stderr": math.sqrt(sum((x - nll) ** 2 for x in losses) / (n - 1) / n),
    }


@pytest.mark.parametrize("outputs", [(), (1,), (3,), (2, 2)])
@pytest.mark.parametrize("size", [1, 10, 97])
def test_scores_equal_the_loops(outputs: tuple[int, ...], size: int) -> None:
    batch = regression_batch(outputs=outputs)
    metric = Regression()
    for part in zip(*(x.split(size) for x in batch), strict=True):
        metric.update(*part)
    assert metric.compute().to_dict() == pytest.approx(naive(*batch), rel=1e-11)


def test_rmse_equals_scikit_learn() -> None:
    from sklearn.metrics import root_mean_squared_error

    density, mean, target = regression_batch(outputs=())
    metric = Regression()
    metric.update(density, mean, target)
    assert metric.compute().rmse == pytest.approx(root_mean_squared_error(target.numpy(), mean.numpy()))


def test_merging_over_other_outputs_is_refused() -> None:
    metric, other = Regression(), Regression()
    metric.update(*regression_batch())
    other.update(*regression_batch(outputs=()))
    with pytest.raises(ValueError, match=r"outputs \(3,\) cannot merge one over \(\)"):
        metric.merge(other)


def test_edges() -> None:
    metric = Regression()
    with pytest.raises(ValueError, match="has seen no examples"):
        metric.compute()
    metric.update(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="has seen no examples"):
        metric.compute()
    metric.update(torch.tensor([-math.inf, -1.0]), torch.ones(2, 3), torch.ones(2, 3))
    scores = metric.compute()
    assert (scores.rmse, scores.rmse_stderr, scores.nll, scores.nll_stderr) == (0.0, 0.0, math.inf, math.inf)
    assert "RMSE" in str(scores) and "nats" in str(scores)
    assert json.loads(json.dumps(scores.to_dict())) == scores.to_dict()
    metric.update(torch.zeros(1), torch.full((1, 3), math.inf), torch.zeros(1, 3))
    assert metric.compute().rmse == math.inf == metric.compute().rmse_stderr


@pytest.mark.parametrize(
    "shapes, words",
    [
        (((4,), (4, 1), (4,)), r"\(4,\), \(4, 1\) and \(4,\)"),
        (((4, 1), (4, 1), (4, 1)), r"\(4, 1\), \(4, 1\)"),
        (((3,), (4, 1), (4, 1)), r"\(3,\), \(4, 1\)"),
        (((), (), ()), "shape"),
        (((4,), (4, 2), (4, 2)), r"outputs of shape \(3,\)"),
    ],
)
def test_shapes_are_never_broadcast(shapes: tuple[tuple[int, ...], ...], words: str) -> None:
    metric = Regression()
    metric.update(*regression_batch())
    before = metric.compute()
    with pytest.raises(ValueError, match=words):
        metric.update(*(torch.zeros(shape) for shape in shapes))
    assert metric.compute() == before


def class_draws(k: int = 30, n: int = 11, classes: int = 4, sharp: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(k)
    return (sharp * torch.randn(k, n, classes, generator=generator, dtype=torch.float64)).log_softmax(-1)


def entropy(p: list[float]) -> float:
    return -sum(q * math.log(q) for q in p if q > 0)


@pytest.mark.parametrize("sharp", [0.0, 2.0, 1000.0])
@pytest.mark.parametrize("k", [1, 2, 30])
def test_predictive_average_equals_the_loops(k: int, sharp: float) -> None:
    draws = class_draws(k, sharp=sharp)
    average = PredictiveAverage()
    for draw in draws:
        average.update(draw)
    assert average.draws == k
    for i in range(draws.shape[1]):
        probs = draws[:, i].exp().tolist()
        mean = [sum(p[c] for p in probs) / k for c in range(4)]
        total, aleatoric = entropy(mean), sum(map(entropy, probs)) / k
        assert average.total[i].item() == pytest.approx(total, rel=1e-11, abs=1e-13)
        assert average.aleatoric[i].item() == pytest.approx(aleatoric, rel=1e-11, abs=1e-13)
        assert average.epistemic[i].item() == pytest.approx(total - aleatoric, rel=1e-9, abs=1e-13)
    # Where every draw underflows, the log of the mean is still right.
    torch.testing.assert_close(average.log_probs, draws.logsumexp(0) - math.log(k), rtol=1e-12, atol=1e-12)
    assert (average.epistemic >= 0).all() and not average.log_probs.isnan().any()


def test_the_sources_of_entropy() -> None:
    agree = decompose_entropy([torch.tensor([[0.5, 0.5]]).log()] * 7)
    assert agree.epistemic.item() == 0.0
    assert agree.aleatoric.item() == pytest.approx(math.log(2), rel=1e-6)
    disagree = decompose_entropy(torch.eye(4).unsqueeze(1).log())
    assert disagree.aleatoric.item() == 0.0
    assert disagree.epistemic.item() == pytest.approx(math.log(4))
    assert "epistemic 1.3863" in str(disagree)
    assert disagree.to_dict()["total"] == disagree.total.tolist()


def test_draws_from_a_generator_and_merging() -> None:
    draws = class_draws(30)
    whole = decompose_entropy(draws)
    streamed = decompose_entropy(draw for draw in draws)
    first, second = PredictiveAverage(), PredictiveAverage()
    for draw in draws[:10]:
        first.update(draw)
    for draw in draws[10:]:
        second.update(draw)
    first.merge(PredictiveAverage())
    first.merge(second)
    assert first.draws == 30
    assert torch.equal(whole.epistemic, streamed.epistemic)
    torch.testing.assert_close(first.epistemic, whole.epistemic, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(first.log_probs, draws.logsumexp(0) - math.log(30), rtol=1e-12, atol=1e-12)


def test_classes_with_probability_zero_keep_it() -> None:
    average = PredictiveAverage()
    for _ in range(50):
        average.update(torch.tensor([[0.0, -math.inf]]))
        assert (average.log_probs <= 0.0).all()
    assert average.log_probs.tolist() == [[pytest.approx(0.0, abs=1e-13), -math.inf]]
    for part in (average.total, average.aleatoric, average.epistemic):
        assert 0.0 <= part.item() < 1e-13


def test_predictive_average_refuses() -> None:
    average = PredictiveAverage()
    for name in ("log_probs", "total", "aleatoric", "epistemic"):
        with pytest.raises(ValueError, match="no draws yet"):
            getattr(average, name)
    with pytest.raises(ValueError, match="no draws yet"):
        decompose_entropy([])
    with pytest.raises(ValueError, match=r"shape \(n, C\), got \(3,\)"):
        average.update(torch.zeros(3))
    with pytest.raises(ValueError, match="log_softmax"):
        average.update(torch.ones(2, 3))
    average.update(class_draws(1)[0])
    with pytest.raises(ValueError, match=r"shape \(11, 4\) in every draw"):
        average.update(class_draws(1, n=5)[0])
    other = PredictiveAverage()
    other.update(class_draws(1, n=5)[0])
    with pytest.raises(ValueError, match=r"\(11, 4\)"):
        average.merge(other)
    assert average.draws == 1


@pytest.mark.parametrize("shape", [(5,), (5, 2)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moment_average_equals_the_mixture(shape: tuple[int, ...], offset: float) -> None:
    generator = torch.Generator().manual_seed(3)
    k = 40
    means = offset + torch.randn(k, *shape, generator=generator, dtype=torch.float64)
    variances = torch.rand(k, *shape, generator=generator, dtype=torch.float64) + 0.1
    targets = offset + torch.randn(shape, generator=generator, dtype=torch.float64)
    densities = torch.distributions.Normal(means, variances.sqrt()).log_prob(targets).reshape(k, 5, -1).sum(-1)
    average = MomentAverage()
    for m, v, density in zip(means, variances, densities, strict=True):
        average.update(m, v, density)
    assert average.draws == k
    torch.testing.assert_close(average.mean, means.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(average.aleatoric, variances.mean(0), rtol=1e-12, atol=0.0)
    spread = (means - offset).var(0, correction=0)
    torch.testing.assert_close(average.epistemic, spread, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(average.variance, average.aleatoric + average.epistemic)
    expected = [math.log(sum(map(math.exp, row)) / k) for row in densities.T.tolist()]
    assert average.log_density.tolist() == pytest.approx(expected, rel=1e-11)


def test_log_density_does_not_underflow() -> None:
    average = MomentAverage()
    for density in (-5000.0, -5001.0):
        average.update(torch.zeros(1), torch.ones(1), torch.tensor([density]))
    assert average.log_density.item() == pytest.approx(-5000.0 + math.log((1 + math.exp(-1.0)) / 2), rel=1e-14)


def test_first_draw_is_copied() -> None:
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    average = MomentAverage()
    average.update(mean, variance)
    mean.fill_(9.0)
    variance.fill_(9.0)
    assert average.mean.tolist() == [0.0, 0.0] and average.aleatoric.tolist() == [1.0, 1.0]


def test_first_prediction_is_copied() -> None:
    draw = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    average = PredictiveAverage()
    average.update(draw)
    draw.fill_(9.0)
    assert average.log_probs.exp().tolist() == [[0.5, 0.5]]


def test_moment_average_refuses() -> None:
    average = MomentAverage()
    for name in ("mean", "variance", "aleatoric", "epistemic", "log_density"):
        with pytest.raises(ValueError, match="no draws yet"):
            getattr(average, name)
    with pytest.raises(ValueError, match=r"\(3, 1\) and \(3,\)"):
        average.update(torch.zeros(3, 1), torch.ones(3))
    with pytest.raises(ValueError, match=r"log_density of shape \(3,\), got \(3, 1\)"):
        average.update(torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(3, 1))
    average.update(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="no log_density"):
        _ = average.log_density
    with pytest.raises(ValueError, match="with every draw or with none"):
        average.update(torch.zeros(3), torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(3,\) in every draw"):
        average.update(torch.zeros(4), torch.ones(4))
    assert average.draws == 1
