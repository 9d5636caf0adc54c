"""Weights of examples, and losses in place of densities"""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from heads import F64, QUIET, Heads, N, data_of, joint, model_of
from torch import Tensor, nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.likelihoods import (
    Categorical,
    Gaussian,
    Joint,
    Loss,
    Weighted,
)


@pytest.mark.parametrize("heads", [False, True])
def test_a_weight_counts_an_example_as_often(heads: bool) -> None:
    x, y = data_of()
    weight = torch.randint(0, 4, (N,))
    rows = torch.repeat_interleave(torch.arange(N), weight)
    net = Heads() if heads else nn.Linear(3, 3)
    inner: Any = joint() if heads else Categorical()
    targets = y if heads else {"target": y["kind"]}
    model = model_of(Weighted(inner), net)
    data: Any = (x, {**targets, "weight": weight.to(F64)})
    found = ps.decompose(model, ps.guides.Additive(model), data)
    plain = model_of(inner, net, num_data=int(weight.sum()))
    repeated: Any = (x[rows], {name: part[rows] for name, part in y.items()} if heads else y["kind"][rows])
    expected = ps.decompose(plain, ps.guides.Additive(plain), repeated)
    assert found.data == pytest.approx(expected.data, rel=1e-6)
    assert found.pseudo
    assert not expected.pseudo
    # Pyro's own estimator sees the same weights, also those that are 0.
    elbo = -pyro.infer.Trace_ELBO().loss(model, ps.guides.Additive(model), *data)
    assert elbo == pytest.approx(expected.data, rel=1e-6)
    # Scores are not weighted.
    scores = ps.compare(model, ps.guides.Additive(model), data, modes="mean")
    unweighted = model_of(inner, net)
    whole: Any = (x, y if heads else y["kind"])
    assert scores["mean"].nll == pytest.approx(
        ps.compare(unweighted, ps.guides.Additive(unweighted), whole, modes="mean")["mean"].nll, rel=1e-9
    )


def test_the_gradient_of_weighted_examples() -> None:
    x, y = data_of()
    weight = torch.rand(N, dtype=F64)
    model = model_of(Weighted(Categorical()), nn.Linear(3, 3))
    guide = ps.guides.Additive(model)
    ps.ELBO()(model, guide)(x, {"target": y["kind"], "weight": weight}).backward()
    expected = torch.autograd.grad(
        (weight * F.cross_entropy(model.net(x), y["kind"], reduction="none")).sum(), model.net.weight
    )[0]
    torch.testing.assert_close(model.net.weight.grad, expected)


def test_weights_that_are_none_are_refused() -> None:
    x, y = data_of()
    model = model_of(Weighted(Categorical()), nn.Linear(3, 3))
    guide = ps.guides.Additive(model)
    for weight, message in (
        (-torch.ones(N, dtype=F64), "from 0 up"),
        (torch.full((N,), torch.nan, dtype=F64), "from 0 up"),
        (torch.ones(N, dtype=torch.int64), "real numbers"),
        (torch.ones(N, 1, dtype=F64), "one for each example"),
    ):
        with pytest.raises(ValueError, match=message):
            ps.fit(model, guide, (x, {"target": y["kind"], "weight": weight}), epochs=1, **QUIET)
    with pytest.raises(ValueError, match="another name"):
        Weighted(joint(), weight="kind")


def test_a_loss_that_is_a_log_density_trains_as_that_density() -> None:
    x, y = data_of()
    net = nn.Linear(3, 2)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return -dist.Normal(output, 0.7).log_prob(target).sum(1)

    for likelihood in (Loss(loss), Gaussian(0.7)):
        torch.manual_seed(2)
        model = model_of(likelihood, copy.deepcopy(net), prior=ps.priors.Normal())
        guide = ps.guides.Additive(model, init_scale=0.1)
        fit = ps.fit(model, guide, (x, y["size"]), epochs=3, batch_size=10, **QUIET)
        terms = ps.decompose(model, guide, (x, y["size"]), estimator="moments")
        if isinstance(likelihood, Loss):
            first = fit.elbo, terms.data
        else:
            assert first == pytest.approx((fit.elbo, terms.data), rel=1e-3)


def test_every_table_says_that_a_loss_is_no_density() -> None:
    x, y = data_of()
    model = model_of(Loss(nn.HuberLoss(reduction="none")), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)))
    guide, data = ps.guides.Additive(model), (x, y["size"][:, 0])
    fit = ps.fit(model, guide, data, epochs=1, **QUIET)
    assert "pseudo-likelihood" in str(fit)
    assert "Pseudo-likelihood" in str(ps.decompose(model, guide, data))
    scores = ps.compare(model, guide, data, modes=("mean", "mc:2"))
    assert "no density's" in str(scores)
    assert "NLL" not in str(scores)
    assert scores["mean"].nll == pytest.approx(F.huber_loss(model.net(x), data[1]).item(), rel=1e-5)
    assert "no density's" in str(ps.predict(model, guide, x, y=data[1]))
    with pytest.raises(ValueError, match="pseudo-likelihood"):
        random = model_of(Loss(loss_of), nn.Linear(3, 1), prior=ps.priors.Normal())
        ps.to_arviz(random, ps.guides.Additive(random), data)


def loss_of(output: Tensor, y: Tensor) -> Tensor:
    return (output[:, 0] - y).abs()


def test_losses_of_another_shape_are_refused() -> None:
    x, y = data_of()
    for loss in (F.mse_loss, lambda output, target: (output - target) ** 2):
        model = model_of(Loss(loss), nn.Linear(3, 2))
        with pytest.raises(ValueError, match="reduction='none'"):
            ps.decompose(model, ps.guides.Additive(model), (x, y["size"]))
    with pytest.raises(TypeError, match="an instance"):
        Loss(nn.HuberLoss)


def test_identities_tell_likelihoods_apart() -> None:
    texts = {
        likelihood.identity()
        for likelihood in (
            joint(),
            Joint({"kind": Categorical(), "size": Gaussian(0.8)}),
            Weighted(Categorical()),
            Categorical(),
            Loss(loss_of),
            Loss(F.mse_loss),
        )
    }
    assert len(texts) == 6


def cox(output: Tensor, time: Tensor) -> Tensor:
    """The partial likelihood of times: each example is compared with those that are at risk."""
    at_risk = torch.where(time[None] >= time[:, None], 0.0, -torch.inf)
    return -(output[:, 0] - (output[None, :, 0] + at_risk).logsumexp(1))


def share_of_labels(output: Tensor, y: Tensor) -> Tensor:
    """Examples meet by their targets only."""
    return F.cross_entropy(output, y.clamp(0), reduction="none") * len(y) / (y >= 0).sum()


@pytest.mark.parametrize(("loss", "kind"), [(cox, "time"), (share_of_labels, "label")])
def test_losses_that_bring_examples_together_get_whole_batches(loss: Any, kind: str) -> None:
    x, _ = data_of()
    y = torch.rand(N, dtype=F64) if kind == "time" else torch.randint(-1, 3, (N,))
    model = model_of(Loss(loss), nn.Linear(3, 3))
    guide = ps.guides.Additive(model)
    expected = loss(model.net(x), y).mean().item()
    assert model.examples_meet(x, y)
    assert ps.compare(model, guide, (x, y), modes="mean", batch_size=5)["mean"].nll == pytest.approx(expected)
    found = ps.predict(model, guide, x, y=y, mode="mean", batch_size=5).log_density
    assert found is not None
    assert -found.mean().item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="depends on others in the batch"):
        ps.fit(model, guide, (x, y), epochs=1, batch_size=5, **QUIET)


def test_a_loss_that_fails_shows_its_own_error() -> None:
    x, y = data_of()

    def broken(output: Tensor, target: Tensor) -> Tensor:
        return undefined_name(output)  # type: ignore[name-defined, no-any-return]  # noqa: F821

    for loss, error, message in (
        (broken, NameError, "undefined_name"),
        (nn.CrossEntropyLoss(), ValueError, "reduction"),
    ):
        model = model_of(Loss(loss), nn.Linear(3, 3))
        with pytest.raises(error, match=message):
            ps.fit(model, ps.guides.Additive(model), (x, y["kind"]), epochs=1, batch_size=5, **QUIET)


def test_targets_that_would_be_broadcast_against_the_output_are_refused() -> None:
    x, y = data_of()
    model = model_of(Loss(lambda output, target: (output - target).square().sum(1)), nn.Linear(3, 1))
    with pytest.raises(ValueError, match="would be broadcast"):
        ps.fit(model, ps.guides.Additive(model), (x, y["size"][:, 0]), epochs=1, **QUIET)


def test_draws_of_a_loss_are_refused_and_weights_are_not_nested() -> None:
    x, y = data_of()
    model = model_of(Loss(loss_of), nn.Linear(3, 1), prior=ps.priors.Normal())
    with pytest.raises(NotImplementedError, match="posterior_predictive=False"):
        ps.to_arviz(model, ps.guides.Additive(model), (x, y["size"][:, 0]), log_likelihood=False, draws=2)
    with pytest.raises(TypeError, match="multiply the weights"):
        Weighted(Weighted(Categorical(), weight="one"), weight="two")
    drawn = Weighted(Gaussian(1.0))(torch.zeros(4, 2)).sample((3,))
    assert drawn["target"].shape == (3, 4, 2)
    assert drawn["weight"].shape == (3, 4)


def test_a_loss_of_several_targets_gets_them_by_name() -> None:
    x, y = data_of()
    y["size"][::4] = torch.nan  # padding, which is the loss's own

    def both(output: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        kind = F.cross_entropy(output["kind"], targets["kind"], reduction="none")
        return kind + (output["size"] - targets["size"].nan_to_num(0.0)).abs().sum(1)

    model = model_of(Loss(both, targets=("kind", "size")))
    guide = ps.guides.Additive(model)
    expected = both(model.net(x), y)
    assert ps.decompose(model, guide, (x, y)).data == pytest.approx(-expected.sum().item(), rel=1e-6)
    found = ps.compare(model, guide, (x, y), modes="mean", batch_size=7)["mean"]
    assert found.nll == pytest.approx(expected.mean().item(), rel=1e-6)
    assert -pyro.infer.Trace_ELBO().loss(model, guide, x, y) == pytest.approx(-expected.sum().item(), rel=1e-6)
    log_density = ps.predict(model, guide, x, y=y, mode="mean").log_density
    assert log_density is not None
    torch.testing.assert_close(log_density, -expected.detach())
    held = ps.fit(model, guide, (x, y), epochs=1, batch_size=8, validation=(x, y), **QUIET)
    assert math.isfinite(held.elbo) and math.isfinite(held.history["validation"][0])
    with pytest.raises(ValueError, match="expected exactly 'kind', 'size'"):
        ps.fit(model, guide, (x, {"kind": y["kind"]}), epochs=1, **QUIET)
    random = model_of(Loss(both, targets=("kind", "size")), prior=ps.priors.Normal())
    with pytest.raises(ValueError, match="a loss of several targets"):
        ps.to_arviz(random, ps.guides.Additive(random), (x, y), draws=2, log_likelihood=False)
