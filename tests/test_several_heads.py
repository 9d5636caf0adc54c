"""Several heads, weights of examples, losses, padding, several labels and exposures, against slow twins."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

import pyrostoch as ps
from pyrostoch._targets import Targets
from pyrostoch.layers import WithExposure
from pyrostoch.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Joint,
    Loss,
    NegativeBinomial,
    Poisson,
    Weighted,
    ZeroInflatedPoisson,
    mark_padding,
)
from pyrostoch.likelihoods.several import JointObservations
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.prediction.head_averages import HeadAverages
from pyrostoch.training.trainer import NonFiniteLossError

F64 = torch.float64
N = 24
QUIET: dict[str, Any] = {"progress": False, "seed": 0, "lr": 0.01, "compile": False}


class Heads(nn.Module):
    """A body with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x).tanh()
        return {"kind": self.kind(features), "size": self.size(features)}


def data_of(dtype: torch.dtype = F64) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.randn(N, 3, dtype=dtype)
    return x, {"kind": torch.randint(0, 3, (N,)), "size": torch.randn(N, 2, dtype=dtype)}


def model_of(likelihood: Any, net: nn.Module | None = None, *, prior: Any = None, **settings: Any) -> ps.BayesianModel:
    return ps.BayesianModel(
        (net or Heads()).to(F64), prior=prior, likelihood=likelihood, **({"num_data": N} | settings)
    )


def joint() -> Joint:
    return Joint({"kind": Categorical(), "size": Gaussian(0.7)})


def by_hand(net: nn.Module, x: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    """Log densities by torch's own losses."""
    out = net(x)
    kind = -F.cross_entropy(out["kind"], y["kind"], reduction="none")
    size = (-((y["size"] - out["size"]) ** 2) / (2 * 0.7**2) - math.log(0.7) - 0.5 * math.log(2 * math.pi)).sum(1)
    return {"kind": kind, "size": size}


def test_the_data_term_of_each_head_is_that_by_hand() -> None:
    x, y = data_of()
    model = model_of(joint())
    expected = by_hand(model.net, x, y)
    terms = ps.decompose(model, ps.guides.Additive(model), (x, y), batch_size=7)
    assert [row.head for row in terms.heads] == ["kind", "size"]
    for row in terms.heads:
        assert row.data == pytest.approx(expected[row.head].sum().item(), rel=1e-6)
        assert row.num_observed == row.num_targets == y[row.head].numel()
    assert terms.data == pytest.approx(sum(row.data for row in terms.heads), rel=1e-9)
    assert terms.num_targets == 3 * N
    assert "  kind" in str(terms)


def test_scores_of_each_head_are_those_of_a_model_of_its_own() -> None:
    x, y = data_of()
    model = model_of(joint())
    expected = by_hand(model.net, x, y)
    scores = ps.compare(model, ps.guides.Additive(model), (x, y), modes=("mean",), batch_size=10)
    assert scores["mean"].nll == pytest.approx(-sum(expected.values()).mean().item(), rel=1e-6)  # type: ignore[union-attr]
    kind, size = scores.heads["kind"]["mean"], scores.heads["size"]["mean"]
    assert kind.nll == pytest.approx(-expected["kind"].mean().item(), rel=1e-6)
    assert kind.accuracy == pytest.approx((model.net(x)["kind"].argmax(1) == y["kind"]).double().mean().item())
    assert size.rmse == pytest.approx((model.net(x)["size"] - y["size"]).square().mean().sqrt().item(), rel=1e-6)
    assert scores["mean"].accuracy is None
    assert "Head 'size'" in str(scores)
    assert set(scores.to_dict()["heads"]) == {"kind", "size"}


def test_the_density_of_all_heads_is_averaged_over_draws_together() -> None:
    """Heads depend on the same weights: the log of the mean of products is not the sum of logs of means."""
    x, y = data_of()
    model = model_of(joint())
    average = HeadAverages(model, Targets(y), ("kind", "size"))
    products, singles = [], {"kind": list[Tensor](), "size": list[Tensor]()}
    for _ in range(6):
        kind, size = torch.randn(N, 3, dtype=F64), 3.0 * torch.randn(N, 2, dtype=F64)
        heads = {"kind": dist.Categorical(logits=kind), "size": dist.Normal(size, 0.7).to_event(1)}
        average.add(average.statistics(JointObservations(heads)))
        logs = {"kind": heads["kind"].log_prob(y["kind"]), "size": heads["size"].log_prob(y["size"])}
        products.append((logs["kind"] + logs["size"]).exp())
        for name, values in logs.items():
            singles[name].append(values.exp())
    found = average.results()
    torch.testing.assert_close(found["log_density"], torch.stack(products).mean(0).log())
    for name, values in singles.items():
        torch.testing.assert_close(found[f"{name}.log_density"], torch.stack(values).mean(0).log())
    assert not torch.allclose(found["log_density"], found["kind.log_density"] + found["size.log_density"])


def test_a_joint_is_pyros_model_with_a_site_for_each_head() -> None:
    x, y = data_of()
    model = model_of(joint(), prior=ps.priors.Normal())
    guide = ps.guides.Additive(model, init_scale=1e-6)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    assert [name for name, node in trace.nodes.items() if node.get("is_observed")] == ["obs.kind", "obs.size"]
    elbo = -pyro.infer.Trace_ELBO().loss(model, guide, x, y)
    terms = ps.decompose(model, guide, (x, y))
    assert elbo == pytest.approx(terms.elbo, rel=2e-2)
    drawn = pyro.infer.Predictive(model, guide=guide, num_samples=3)(x)
    assert drawn["obs.kind"].shape == (3, N)
    assert drawn["obs.size"].shape == (3, N, 2)


class Items(Dataset[Any]):
    def __init__(self, x: Tensor, y: dict[str, Tensor], flat: bool) -> None:
        self.x, self.y, self.flat = x, y, flat

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        y = {name: part[index] for name, part in self.y.items()}
        return {"x": self.x[index], **y} if self.flat else (self.x[index], y)


@pytest.mark.parametrize("form", ["tensors", "items", "dictionaries", "loader", "one dictionary"])
def test_targets_by_name_come_in_every_form_of_data(form: str) -> None:
    x, y = data_of()
    keyed = form in ("dictionaries", "one dictionary")
    torch.manual_seed(1)
    model = model_of(joint(), prior=ps.priors.Normal(), target=("kind", "size") if keyed else None)
    guide = ps.guides.Additive(model)
    forms = {
        "tensors": (x, y),
        "items": Items(x, y, False),
        "dictionaries": Items(x, y, True),
        "loader": DataLoader(Items(x, y, False), batch_size=8),
        "one dictionary": {"x": x, **y},
    }
    data: Any = forms[form]
    fit = ps.fit(model, guide, data, epochs=2, batch_size=8, **QUIET)
    assert math.isfinite(fit.elbo)
    data_term = ps.decompose(model, guide, data, estimator="moments").data
    plain: Any = ({"x": x} if keyed else x, y)
    assert data_term == pytest.approx(ps.decompose(model, guide, plain, estimator="moments").data, rel=1e-9)


def test_every_estimator_and_mode_knows_heads() -> None:
    x, y = data_of()
    model = model_of(joint(), prior=ps.priors.Normal())
    guide = ps.guides.Additive(model, init_scale=0.2)
    means = {}
    for estimator in ("shared", "local", "marginal", "flipout", "moments"):
        terms = ps.decompose(model, guide, (x, y), num_samples=300, estimator=estimator)
        means[estimator] = {row.head: (row.data, row.stderr or 0.0) for row in terms.heads}
    for found in means.values():
        for head, (value, error) in found.items():
            exact, own = means["shared"][head]
            assert abs(value - exact) < 5 * math.hypot(error, own) + 0.02 * abs(exact)
    for mode in ("mean", "mc:3", "moments"):
        assert len(ps.predict(model, guide, x, y=y, mode=mode).heads["kind"].probs) == N  # type: ignore[index]


def test_draws_read_one_head() -> None:
    x, _ = data_of()
    model = model_of(joint(), prior=ps.priors.Normal())
    guide = ps.guides.Additive(model)
    assert ps.draws(model, guide, x, num=2, head="size").means.shape == (2, N, 2)
    with pytest.raises(ValueError, match="head='kind'"):
        ps.draws(model, guide, x, num=2)
    with pytest.raises(ValueError, match="did you mean 'size'"):
        ps.draws(model, guide, x, num=2, head="sizes")
    with pytest.raises(ValueError, match="several means"):
        ps.predict(model, guide, x, joint=True, covariance=True, mode="mc:3")


def test_arviz_has_a_variable_for_each_head() -> None:
    x, y = data_of()
    model = model_of(joint(), prior=ps.priors.Normal())
    found = ps.to_arviz(model, ps.guides.Additive(model), (x, y), draws=4)
    assert set(found.log_likelihood.data_vars) == {"obs.kind", "obs.size"}
    assert found.posterior_predictive["obs.size"].shape == (1, 4, N, 2)
    assert (found.observed_data["obs.kind"].values == y["kind"].numpy()).all()


def test_random_scales_of_heads_are_sites_of_their_own() -> None:
    heads = {name: Gaussian(dist.LogNormal(0.0, 1.0)) for name in ("kind", "size")}
    model = model_of(Joint(heads), prior=ps.priors.Normal())
    assert {"likelihood.kind.scale", "likelihood.size.scale"} < set(model.sites)


def test_a_masked_head_has_its_own_counts() -> None:
    x, y = data_of()
    y["size"][::3] = torch.nan
    y["kind"][:5] = -1
    model = model_of(Joint({"kind": Categorical(ignore_index=-1), "size": Gaussian(nan_is_missing=True)}))
    guide = ps.guides.Additive(model)
    terms = ps.decompose(model, guide, (x, y))
    assert {row.head: row.num_observed for row in terms.heads} == {"kind": N - 5, "size": 2 * (N - 8)}
    scores = ps.compare(model, guide, (x, y), modes="mean")
    assert (scores.heads["kind"].num_examples, scores.heads["size"].num_examples) == (N - 5, N - 8)
    none = (torch.arange(N) < 5) & (torch.arange(N) % 3 == 0)
    assert scores.num_examples == N - int(none.sum())
    held = ps.fit(model, guide, (x, y), epochs=1, validation=(x, y), **QUIET)
    assert held.history["validation"][0] == pytest.approx(scores["mean"].nll, rel=0.2)


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


def test_targets_that_do_not_fit_the_heads_are_refused_by_name() -> None:
    x, y = data_of()
    model = model_of(joint())
    guide = ps.guides.Additive(model)
    cases: list[tuple[Any, type[Exception], str]] = [
        ({"kind": y["kind"]}, ValueError, "expected exactly 'kind', 'size', got a dictionary with 'kind'"),
        ({**y, "id": y["kind"]}, ValueError, "with 'kind', 'size', 'id'"),
        (y["kind"], TypeError, "expected a dictionary with 'kind', 'size', got Tensor"),
        ({"kind": y["kind"], "size": y["size"][:5]}, ValueError, "as many of each"),
        ({"kind": y["kind"], "size": y["size"][:, :1]}, ValueError, "head 'size'"),
        ({"kind": y["kind"] + 3, "size": y["size"]}, ValueError, "head 'kind'"),
        ({"kind": y["kind"].double(), "size": y["size"]}, TypeError, "head 'kind'"),
        ({"kind": 3, "size": y["size"]}, TypeError, "targets 'kind'"),
    ]
    for targets, kind, message in cases:
        with pytest.raises(kind, match=message):
            ps.fit(model, guide, (x, targets), epochs=1, **QUIET)
    single = model_of(Categorical(), nn.Linear(3, 3))
    with pytest.raises(TypeError, match="likelihoods.Joint"):
        ps.fit(single, ps.guides.Additive(single), (x, y), epochs=1, **QUIET)


def test_networks_and_heads_that_do_not_fit() -> None:
    x, y = data_of()
    model = model_of(joint(), nn.Linear(3, 3))
    with pytest.raises(TypeError, match="a dictionary with 'kind', 'size', got a single tensor"):
        model(x, y)
    model = model_of(Joint({"kind": Categorical(), "weight": Gaussian()}))
    with pytest.raises(TypeError, match="has no part 'weight'"):
        model(x, {"kind": y["kind"], "weight": y["size"]})
    same = Gaussian()
    with pytest.raises(ValueError, match="same object"):
        Joint({"a": same, "b": same})
    with pytest.raises(TypeError, match="around the Joint"):
        Joint({"a": Weighted(Categorical())})
    with pytest.raises(ValueError, match="without dots"):
        Joint({"a.b": Categorical()})
    assert Joint({"values": Categorical(), "keys": Gaussian()}).target_names == ("values", "keys")


def test_heads_may_be_functions_and_read_other_parts() -> None:
    x, y = data_of()
    likelihood = Joint({"kind": lambda logits: dist.Categorical(logits=logits), "other": Gaussian(0.7, output="size")})
    model = model_of(likelihood)
    expected = by_hand(model.net, x, y)
    found = likelihood(model.net(x)).log_prob(likelihood.read_target({"kind": y["kind"], "other": y["size"]}))
    torch.testing.assert_close(found, expected["kind"] + expected["size"])


def test_targets_are_seen_by_compiled_steps() -> None:
    targets = Targets({"b": torch.zeros(3), "a": torch.ones(3, 2)})
    leaves, tree = pytree.tree_flatten(((targets,), {}))
    assert [tuple(leaf.shape) for leaf in leaves] == [(3,), (3, 2)]
    (again,), _ = pytree.tree_unflatten(leaves, tree)
    assert again.parts.keys() == targets.parts.keys()
    assert hash(tree) == hash(pytree.tree_flatten(((targets[1:],), {}))[1])


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


def test_padding_is_marked_and_left_out() -> None:
    boxes, count = torch.rand(N, 4, 2), torch.randint(0, 5, (N,))
    marked = mark_padding(boxes, count)
    for row in range(N):
        assert bool(marked[row, : count[row]].isfinite().all())
        assert bool(marked[row, count[row] :].isnan().all())
    x = torch.randn(N, 3)
    net = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (4, 2)))
    model = ps.BayesianModel(net, likelihood=Gaussian(1.0, nan_is_missing=True), num_data=N)
    terms = ps.decompose(model, ps.guides.Additive(model), (x, marked))
    assert terms.num_observed == 2 * int(count.sum())
    logs = dist.Normal(net(x), 1.0).log_prob(boxes).sum(-1)
    inside = torch.arange(4) < count[:, None]
    assert terms.data == pytest.approx(logs[inside].sum().item(), rel=1e-4)
    labels = mark_padding(torch.zeros(N, 4, dtype=torch.int64), count, index=-100)
    assert int((labels == -100).sum()) == 4 * N - int(count.sum())
    for bad in ((boxes, count + 5, None), (boxes, count, -1), (labels, count, None), (boxes, count[:3], None)):
        with pytest.raises(ValueError, match="padding"):
            mark_padding(*bad)


def test_sequences_padded_by_batch_are_scored_as_single_ones() -> None:
    lengths = [2, 5, 3, 4, 1, 5]
    sequences = [(torch.randn(n, 3, dtype=F64), torch.randint(0, 2, (n,))) for n in lengths]

    def collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        inputs, labels = zip(*items, strict=True)
        return pad(inputs, batch_first=True), pad(labels, batch_first=True, padding_value=-100)

    model = model_of(Categorical(ignore_index=-100), nn.Linear(3, 2), num_data=6)
    guide = ps.guides.Additive(model)
    loader: Any = DataLoader(sequences, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    expected = sum(-F.cross_entropy(model.net(x), y, reduction="sum").item() for x, y in sequences)
    assert ps.decompose(model, guide, loader).data == pytest.approx(expected, rel=1e-6)
    scores = ps.compare(model, guide, loader, modes="mean")
    right = sum(int((model.net(x).argmax(1) == y).sum()) for x, y in sequences)
    assert scores["mean"].accuracy == pytest.approx(right / sum(lengths))
    assert math.isfinite(ps.fit(model, guide, loader, epochs=1, **QUIET).elbo)


def test_a_target_of_another_shape_is_still_refused_where_inputs_have_one_shape() -> None:
    items = [(torch.randn(4, 3), torch.randn(4, 1)), (torch.randn(4, 3), torch.randn(4, 2))]
    loader: Any = DataLoader(items, batch_size=None)  # type: ignore[arg-type]
    model = ps.BayesianModel(nn.Linear(3, 1), likelihood=Gaussian(), num_data=8)
    with pytest.raises(ValueError, match="every target of shape"):
        ps.fit(model, ps.guides.Additive(model), loader, epochs=1, **QUIET)


def test_several_labels_have_entropies_of_their_own() -> None:
    x = torch.randn(N, 3, dtype=F64)
    y = (torch.rand(N, 2) < 0.4).to(F64)
    model = model_of(Bernoulli(), nn.Linear(3, 2))
    average = DrawAverage(model, y)
    probs = []
    for _ in range(5):
        p = torch.rand(N, 2, dtype=F64)
        average.add(average.statistics(dist.Bernoulli(p).to_event(1)))
        probs.append(p)
    found, stacked = average.results(), torch.stack(probs)

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log() + (1 - p) * (1 - p).log())

    mean = stacked.mean(0)
    torch.testing.assert_close(found["total"], entropy(mean))
    torch.testing.assert_close(found["aleatoric"], entropy(stacked).mean(0))
    torch.testing.assert_close(found["epistemic"], entropy(mean) - entropy(stacked).mean(0))
    torch.testing.assert_close(found["mean"], mean)
    torch.testing.assert_close(found["variance"], mean * (1 - mean))
    products = torch.where(y[None] > 0, stacked, 1 - stacked).prod(-1).mean(0).log()
    torch.testing.assert_close(found["log_density"], products)
    guide = ps.guides.Additive(model)
    row = ps.compare(model, guide, (x, y), modes="mean")["mean"]
    assert row.accuracy == pytest.approx(((model.net(x) > 0) == (y > 0)).double().mean().item())
    nll = F.binary_cross_entropy_with_logits(model.net(x), y, reduction="none").sum(1).mean().item()
    assert row.nll == pytest.approx(nll, rel=1e-6)
    assert ps.predict(model, guide, x, mode="mean").probs.shape == (N, 2, 2)
    random = model_of(Bernoulli(), nn.Linear(3, 2), prior=ps.priors.Normal())
    of_moments = ps.predict(random, ps.guides.Additive(random, init_scale=0.3), x, mode="moments")
    assert of_moments.mean is not None
    torch.testing.assert_close(of_moments.mean, of_moments.probs[..., 1])


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(3.0), ZeroInflatedPoisson()])
def test_an_exposure_multiplies_the_mean(likelihood: Any) -> None:
    x, exposure = torch.randn(N, 3, dtype=F64), 0.5 + torch.rand(N, dtype=F64)
    inflated = isinstance(likelihood, ZeroInflatedPoisson)
    net = WithExposure(nn.Linear(3, 2), outputs=1 if inflated else None)
    width = 1 if inflated else 2
    y = torch.poisson(2 * exposure[:, None].expand(N, width))
    model = model_of(likelihood, net)
    guide = ps.guides.Additive(model)
    rate, rest = net.net(x).split([width, 2 - width], 1)
    by_hand = likelihood(torch.cat([(rate.exp() * exposure[:, None]).log(), rest], 1)).log_prob(y).sum().item()
    assert ps.decompose(model, guide, ((x, exposure), y)).data == pytest.approx(by_hand, rel=1e-6)
    ps.fit(model, guide, ((x, exposure), y), epochs=1, **QUIET)
    with pytest.raises(ValueError, match="WithExposure"):
        net(x, exposure[:, None].expand(N, 3))
    with pytest.raises(NonFiniteLossError):
        ps.fit(model, guide, ((x, -exposure), y), epochs=1, **QUIET)
