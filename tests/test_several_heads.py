"""Several heads: data terms, scores, draws, sites and forms of targets, against slow twins"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from heads import F64, QUIET, N, data_of, joint, model_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

import pyrostoch as ps
from pyrostoch._targets import Targets
from pyrostoch.likelihoods import (
    Categorical,
    Gaussian,
    Joint,
    Loss,
    Weighted,
)
from pyrostoch.likelihoods.several import JointObservations
from pyrostoch.prediction.head_averages import HeadAverages


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
    model = model_of(joint())
    guide = ps.guides.Additive(model)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    assert [name for name, node in trace.nodes.items() if node.get("is_observed")] == ["obs.kind", "obs.size"]
    elbo = -pyro.infer.Trace_ELBO().loss(model, guide, x, y)
    terms = ps.decompose(model, guide, (x, y))
    assert elbo == pytest.approx(terms.elbo, rel=1e-6)
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


def test_likelihoods_may_be_used_again() -> None:
    scale = Gaussian(dist.LogNormal(0.0, 1.0))
    x, y = data_of()
    first = model_of(Joint({"kind": Categorical(), "size": scale}), prior=ps.priors.Normal())
    second = model_of(Joint({"other": Categorical(output="kind"), "width": Gaussian(output="size"), "size": scale}))
    assert "likelihood.size.scale" in first.sites
    assert "likelihood.size.scale" in second.sites
    ps.decompose(first, ps.guides.Additive(first), (x, y))


def test_a_head_without_a_mean_leaves_the_others_their_predictions() -> None:
    x, _ = data_of()
    heads = Joint({"kind": Categorical(), "size": Loss(lambda output, y: (output - y).square().sum(1))})
    model = model_of(heads)
    found = ps.predict(model, ps.guides.Additive(model), x, mode="mean")
    assert found.heads is not None
    assert list(found.heads) == ["kind"]
    assert len(found) == N


def test_moments_count_what_is_observed() -> None:
    x, y = data_of()
    y["kind"][:7] = -1
    y["size"][3:] = torch.nan
    model = model_of(Joint({"kind": Categorical(ignore_index=-1), "size": Gaussian(nan_is_missing=True)}))
    terms = ps.decompose(model, ps.guides.Additive(model), (x, y), estimator="moments")
    assert {row.head: row.num_observed for row in terms.heads} == {"kind": N - 7, "size": 6}


def test_an_interrupted_run_with_heads_ends_in_the_same_bits(tmp_path: Path) -> None:
    data = data_of()

    def run(name: str, **settings: Any) -> tuple[ps.Fit, Any]:
        torch.manual_seed(1)
        model = model_of(joint(), prior=ps.priors.Normal())
        guide = ps.guides.Additive(model)
        path = tmp_path / f"{name}.safetensors"
        return ps.fit(model, guide, data, epochs=3, batch_size=8, checkpoint=path, **settings, **QUIET), guide

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    whole, guide = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", callback=stop)
    resumed, other = run("parts", resume=True)
    assert resumed.history["elbo"] == whole.history["elbo"]
    assert all(torch.equal(a, b) for a, b in zip(guide.parameters(), other.parameters(), strict=True))
