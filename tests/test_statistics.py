"""Sets on networks with batch normalization, beside plain networks of torch with the same weights and statistics."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from statistics_twins import SETTINGS, SGD, data, dense, everywhere, images, model_of, passed, plain, state_of
from torch import Tensor

import pyrostoch as ps
from pyrostoch.guides import Additive, Delta, Ensemble, Samples, Swag
from pyrostoch.guides.statistics import statistics_of


@pytest.mark.parametrize("kind", ["dense", "images"])
def test_an_ensemble_is_three_networks_of_torch(kind: str) -> None:
    net = dense() if kind == "dense" else images()
    model, (x, y) = model_of(net), data(kind)
    before = {name: value.clone() for name, value in net.named_buffers()}
    guide = Ensemble.of(model, size=3)
    ps.fit(model, guide, (x, y), epochs=3, validation=(x, y), **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    states = [state_of(member) for member in guide.members]
    outputs = torch.stack([plain(net, state)(x) for state in states])
    assert not torch.allclose(states[0]["1.running_mean"], states[1]["1.running_mean"])
    assert all(int(state["1.num_batches_tracked"]) == 15 for state in states)
    found = ps.predict(model, guide, x, y=y, mode="mc:6")
    torch.testing.assert_close(found.mean, outputs.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.epistemic, outputs.var(0, unbiased=False), atol=1e-6, rtol=0)
    logs = torch.distributions.Normal(outputs, 0.5).log_prob(y).sum(2)
    torch.testing.assert_close(found.log_density, logs.logsumexp(0) - torch.tensor(3.0).double().log())
    drawn = ps.draws(model, guide, x, num=3).outputs
    order = torch.cdist(drawn.flatten(1), outputs.flatten(1)).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(drawn, outputs[order], atol=1e-6, rtol=0)
    terms = ps.decompose(model, guide, (x, y))
    assert terms.data == pytest.approx(float(logs.sum() / 3))
    row = ps.compare(model, guide, (x, y), modes=("mc:3",)).rows[0]
    assert row.nll == pytest.approx(-float(found.log_density.mean()), abs=1e-9)
    chunks = ps.to_arviz(model, guide, (x, y), draws=3).log_likelihood
    values = torch.as_tensor(chunks[list(chunks)[0]].values).sum()
    assert float(values) == pytest.approx(float(logs.sum()))
    for state, member in zip(states, guide.members, strict=True):
        for mode in ("mean", "linearized", "mc:1"):
            alone = ps.predict(model, member, x, mode=mode).mean
            torch.testing.assert_close(alone, plain(net, state)(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("few", [20_000, 0])
def test_members_are_trained_as_they_would_be_alone(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.training.members._FEW_WEIGHTS", few)
    ran: list[bool] = []
    together = ps.training.members.MembersTrainer._loss_together
    monkeypatch.setattr(
        "pyrostoch.training.members.MembersTrainer._loss_together",
        lambda self, *batch: (together(self, *batch), ran.append(True))[0],
    )
    model, pair = model_of(), data()
    guide = Ensemble.of(model, size=3)
    alone = [copy.deepcopy(member) for member in guide.members]
    ps.fit(model, guide, pair, epochs=3, shuffle=False, **SETTINGS)
    assert bool(ran) == bool(few)
    for member, other in zip(guide.members, alone, strict=True):
        ps.fit(model, other, pair, epochs=3, shuffle=False, **SETTINGS)
        for name, value in state_of(other).items():
            torch.testing.assert_close(state_of(member)[name], value, msg=name)


def test_a_member_of_a_density_has_its_statistics_and_the_ensemble_its_modes() -> None:
    model, (x, y) = model_of(), data()
    guide = Ensemble.of(model, partial(Additive, init_scale=1e-7), size=2)
    ps.fit(model, guide, (x, y), epochs=2, **SETTINGS)
    outputs = torch.stack([plain(model.net, state_of(member))(x) for member in guide.members])
    torch.testing.assert_close(ps.predict(model, guide, x, mode="mc:2").mean, outputs.mean(0), atol=1e-4, rtol=0)
    one, two = (ps.predict(model, member, x, mode="moments:mc:1").mean for member in guide.members)
    torch.testing.assert_close(torch.stack([one, two]), outputs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["dense", "images"])
def test_statistics_of_a_draw_are_those_of_a_pass_of_torch(kind: str) -> None:
    net = dense() if kind == "dense" else images()
    model, (x, y) = model_of(net), data(kind)
    swag = Swag(model, rank=2)
    ps.fit(model, swag, (x, y), epochs=4, validation=(x, y), **{**SGD, "lr": 1e-3})
    message = r"guide Swag.*layer\(s\) '1'.*keep some draws.*Samples.of"
    for call in (lambda: ps.predict(model, swag, x), lambda: ps.decompose(model, swag, (x, y)), swag):
        with pytest.raises(ValueError, match=message):
            call()
    own = {name: value.clone() for name, value in net.named_buffers()}
    samples = Samples.of(model, swag, 4)
    with pytest.raises(ValueError, match=r"guide Samples.*layer\(s\) '1'.*fit_statistics"):
        ps.predict(model, samples, x, mode="mc:4")
    ps.fit_statistics(model, samples, (x, y), batch_size=12)
    assert all(torch.equal(value, own[name]) for name, value in net.named_buffers())
    assert net[1].momentum == 0.1  # type: ignore[index]
    nets = [passed(net, {n: samples.values(n)[k] for n in samples.site_names}, x, 12) for k in range(4)]
    for k, twin in enumerate(nets):
        for name, value in statistics_of(samples).values(k).items():  # type: ignore[union-attr]
            torch.testing.assert_close(value, twin.get_buffer(name))
    outputs = torch.stack([twin(x) for twin in nets])
    found = ps.predict(model, samples, x, y=y, mode="mc:8")
    torch.testing.assert_close(found.mean, outputs.mean(0), atol=1e-6, rtol=0)
    logs = torch.distributions.Normal(outputs, 0.5).log_prob(y).sum()
    assert ps.decompose(model, samples, (x, y), num_samples=4).data == pytest.approx(float(logs / 4))
    values = ps.to_arviz(model, samples, (x, y), draws=4).log_likelihood
    assert float(values[list(values)[0]].values.sum()) == pytest.approx(float(logs))


def test_a_chain_gets_statistics_of_its_draws() -> None:
    model, (x, y) = model_of(), data()
    chain = Samples.chain(model, 3)
    sampler: Any = {**SETTINGS, "lr": 1e-5, "sampler": ps.SGHMC()}
    ps.fit(model, chain, (x, y), epochs=6, **sampler)
    with pytest.raises(ValueError, match="guide Samples.*fit_statistics"):
        chain()
    ps.fit_statistics(model, chain, (x, y), batch_size=40)
    twin = passed(model.net, {name: chain.values(name)[2] for name in chain.site_names}, x, 40)
    torch.testing.assert_close(statistics_of(chain).values(2)["1.running_var"], twin.get_buffer("1.running_var"))  # type: ignore[union-attr]


def test_members_trained_apart_are_refused_until_their_statistics_are_computed() -> None:
    model, (x, y) = model_of(), data()
    members = [Delta(model, init_loc=lambda site: 0.5 * torch.randn_like(site.init)) for _ in range(2)]
    for member in members:
        ps.fit(model, member, (x, y), epochs=2, **SETTINGS)
    guide = Ensemble(members)
    message = (
        r"guide Delta.*running statistics of each draw for the layer\(s\) '1'.*fit_statistics\(model, guide, train"
    )
    for call in (guide, members[0], lambda: ps.decompose(model, guide, (x, y)), lambda: ps.predict(model, guide, x)):
        with pytest.raises(ValueError, match=message):
            call()
    ps.fit_statistics(model, guide, (x, y), batch_size=10)
    outputs = []
    for member in guide.members:
        weights = {name: member.parameters_for(name)["loc"].detach() for name in member.site_names}
        outputs.append(passed(model.net, weights, x, 10)(x))
    found = ps.predict(model, guide, x, mode="mc:2")
    torch.testing.assert_close(found.mean, torch.stack(outputs).mean(0), atol=1e-6, rtol=0)


def test_members_made_by_hand_are_trained_together() -> None:
    model, (x, y) = model_of(), data()
    guide = Ensemble(Delta(model, init_loc=lambda site: 0.5 * torch.randn_like(site.init)) for _ in range(2))
    ps.fit(model, guide, (x, y), epochs=2, **SETTINGS)
    outputs = torch.stack([plain(model.net, state_of(member))(x) for member in guide.members])
    torch.testing.assert_close(ps.predict(model, guide, x, mode="mc:2").mean, outputs.mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["of", "by hand", "samples"])
def test_statistics_are_saved_and_loaded_and_copied(kind: str, tmp_path: Path) -> None:
    pair = data()

    def build() -> tuple[ps.BayesianModel, Any]:
        model = model_of()
        if kind == "samples":
            return model, Samples.of(model, Additive(model), 3)
        return model, Ensemble.of(model, size=3) if kind == "of" else Ensemble(Delta(model) for _ in range(3))

    (model, guide), (other_model, other) = build(), build()
    if kind == "samples":
        ps.fit_statistics(model, guide, pair)
    else:
        ps.fit(model, guide, pair, epochs=2, **SETTINGS)
    ps.save(tmp_path / "set.safetensors", model, guide)
    ps.load(tmp_path / "set.safetensors", other_model, other)
    expected = ps.predict(model, guide, pair[0], mode="mc:3").mean
    torch.testing.assert_close(ps.predict(other_model, other, pair[0], mode="mc:3").mean, expected)
    torch.testing.assert_close(ps.predict(model, copy.deepcopy(guide), pair[0], mode="mc:3").mean, expected)


def test_an_ensemble_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise Stop

    model, pair = model_of(), data()
    origin = Ensemble.of(model, size=2)
    whole, parts, fresh = (copy.deepcopy(origin) for _ in range(3))
    ps.fit(model, whole, pair, epochs=4, **SETTINGS)
    path: Any = {"checkpoint": tmp_path / "run.safetensors"}
    with pytest.raises(Stop):
        ps.fit(model, parts, pair, epochs=4, callback=stop, **path, **SETTINGS)
    ps.fit(model, fresh, pair, epochs=4, resume=True, **path, **SETTINGS)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_a_failed_run_leaves_unknown_statistics_unknown() -> None:
    model, (x, y) = model_of(), data()
    guide = Ensemble(Delta(model) for _ in range(2))
    with pytest.raises(ValueError):
        ps.fit(model, guide, (x, y[:, :1]), epochs=1, **SETTINGS)
    with pytest.raises(ValueError, match="guide Delta.*fit_statistics"):
        guide()


def test_a_staged_step_of_a_member_writes_into_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.staging.step.lower", lambda module, inputs: module)
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: None)
    model, pair = model_of(), data()
    ensemble = Ensemble.of(model, size=2)
    before = {name: value.clone() for name, value in model.net.named_buffers()}
    found: list[dict[str, Tensor]] = []
    for compiled in (True, False):
        guide = copy.deepcopy(ensemble.members[1])
        result = ps.fit(model, guide, pair, epochs=2, **{**SETTINGS, "compile": compiled})
        assert (result.compile_seconds is not None) == compiled
        found.append(state_of(guide))
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value)
    assert all(torch.equal(value, before[name]) for name, value in model.net.named_buffers())


def test_plain_pyro_runs_a_draw_with_its_statistics() -> None:
    model, (x, y) = model_of(), data()
    guide = Ensemble.of(model, size=2)
    ps.fit(model, guide, (x, y), epochs=2, **SETTINGS)
    model.eval(), guide.eval()  # type: ignore[func-returns-value]
    expected = [plain(model.net, state_of(member))(x) for member in guide.members]
    logs = [float(torch.distributions.Normal(output, 0.5).log_prob(y).sum()) for output in expected]
    for member, output, log in zip(guide.members, expected, logs, strict=True):
        trace = pyro.poutine.trace(member).get_trace(x, y)
        found = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(x, y)
        assert found.nodes["obs"]["fn"].log_prob(y).sum().item() == pytest.approx(log)
        prior = sum(
            node["fn"].log_prob(node["value"]).item() for name, node in found.nodes.items() if name in model.sites
        )
        assert pyro.infer.Trace_ELBO().loss(model, member, x, y) == pytest.approx(-log - prior)
        conditioned = pyro.poutine.condition(model.observation, data=trace)(x)
        torch.testing.assert_close(conditioned.mean, output)


def test_the_mean_of_iterates_needs_statistics_of_its_own() -> None:
    model, (x, y) = model_of(), data()
    swag = Swag(model, rank=2)
    ps.fit(model, swag, (x, y), epochs=4, **SGD)
    mean = Delta(model, init_loc=swag)
    with pytest.raises(ValueError, match="guide Delta.*fit_statistics"):
        ps.predict(model, mean, x, mode="mean")
    ps.fit_statistics(model, mean, (x, y), batch_size=10)
    weights = {name: swag.site_distribution(name).mean for name in swag.site_names}
    twin = passed(model.net, weights, x, 10)
    torch.testing.assert_close(ps.predict(model, mean, x, mode="mean").mean, twin(x), atol=1e-6, rtol=0)


def test_a_guide_that_starts_at_a_member_has_its_statistics() -> None:
    model, (x, y) = model_of(), data()
    ensemble = Ensemble.of(model, size=2)
    ps.fit(model, ensemble, (x, y), epochs=2, **SETTINGS)
    member = ensemble.members[1]
    start: Any = partial(Additive, init_loc=member, init_scale=1e-6)
    for guide in (start(model), ps.guides.PerSite(model, {"*": start, "3.*": partial(Delta, init_loc=member)})):
        found = ps.predict(model, guide, x, mode="mean").mean
        torch.testing.assert_close(found, plain(model.net, state_of(member))(x), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"prune: expected a guide that shares.*own for the layer\(s\) '1'"):
        ps.guides.prune(start(model))


@pytest.mark.filterwarnings("ignore:fit_laplace")
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_a_laplace_approximation_around_a_member_has_its_statistics(structure: Any) -> None:
    net, (x, y) = dense(), data()
    # Normalization has no factors.
    prior: Any = {"*": ps.priors.Normal()} if structure == "kronecker" else everywhere
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(0.5), num_data=40)
    members = [Delta(model), Delta(model, init_loc=lambda site: 0.5 * torch.randn_like(site.init))]
    ensemble = Ensemble(members)
    ps.fit_statistics(model, ensemble, (x, y))
    found = []
    for member in ensemble.members:
        settings: Any = {"not_optimum": "warn", "curvature_steps": 0}
        own = ps.guides.Laplace(model, structure, init_loc=member)
        found.append(ps.fit_laplace(model, own, (x, y), **settings).log_marginal_likelihood)
        twin_net = plain(net, state_of(member)).requires_grad_(True)
        twin = ps.BayesianModel(twin_net, prior=prior, likelihood=ps.likelihoods.Gaussian(0.5), num_data=40)
        expected = ps.fit_laplace(twin, ps.guides.Laplace(twin, structure), (x, y), **settings)
        assert found[-1] == pytest.approx(expected.log_marginal_likelihood, abs=1e-8)
    assert found[0] != pytest.approx(found[1], abs=1.0)


def test_a_short_last_batch_counts_by_its_size() -> None:
    x, y = data()
    x[-2:] += 100.0  # two examples, which would have half of the weight
    model = model_of()
    point = Delta(model)
    ps.fit_statistics(model, point, (x, y), batch_size=38)
    own: Any = statistics_of(point)
    first = model.net[0](x)  # type: ignore[index]
    torch.testing.assert_close(own.values()["1.running_mean"], first.mean(0))
    variances = (38 * first[:38].var(0) + 2 * first[38:].var(0)) / 40
    torch.testing.assert_close(own.values()["1.running_var"], variances)
