"""fit: compared with a plain training loop; its settings one by one; and what it leaves unchanged."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.infer.batches import epoch_order
from pyrostoch.infer.data_sets import as_batches
from pyrostoch.prediction.validation import predictive_loss
from pyrostoch.training.fit import fit
from pyrostoch.training.schedule import kl_weight, rate_factor
from pyrostoch.training.trainer import Trainer

CPU = torch.device("cpu")


def classes(count: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A small problem of three classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, (x @ torch.randn(4, 3, generator=torch.Generator().manual_seed(1))).argmax(-1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    # No bias before the BatchNorm: its gradient is pure rounding error, which Adam would amplify.
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def build(guide: Any = ps.guides.Additive, count: int = 50, **model: Any) -> tuple[ps.BayesianModel, Any]:
    options = {"prior": ps.priors.Normal(), "likelihood": ps.likelihoods.Categorical(), "num_data": count, **model}
    made = ps.BayesianModel(network(), **options)
    return made, guide(made)


def state(*modules: nn.Module) -> list[Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def run(model: ps.BayesianModel, guide: nn.Module, data: Any = None, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 20, "seed": 3, "progress": False, "lr": 0.01, **options}
    return fit(model, guide, classes(model.num_data) if data is None else data, **settings)


# ---- schedules


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]),
        ("constant", [1.0] * 5),
    ],
)
def test_rates_of_a_schedule(name: str, values: list[float]) -> None:
    assert [rate_factor(name, step, 4) for step in range(5)] == pytest.approx(values, abs=1e-15)


def test_kl_weight_rises_over_fractions_of_epochs_and_can_be_off() -> None:
    assert [kl_weight(step, 3, 0.5) for step in range(3)] == pytest.approx([0, 2 / 3, 1])
    assert [kl_weight(step, 3, 0.0) for step in range(3)] == [1.0, 1.0, 1.0]
    assert [kl_weight(step, 2, (1.0, 2.5)) for step in range(6)] == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1])


def test_rate_and_kl_weight_change_with_every_step_of_a_run() -> None:
    model, guide = build()
    rates, weights = [], []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights.append(trainers[0].kl_weight)
            rates.append(trainers[0].optimizer.param_groups[0]["lr"])
            return x

    trainers: list[Trainer] = []
    before = Trainer.__init__

    def remember(self: Trainer, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", remember)
        patch.setattr(ps.ELBO, "terms", watched(ps.ELBO.terms, Watch()))
        result = run(model, guide, kl_warmup=1.0, lr=0.6)
    assert rates == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    assert result.history["lr"] == pytest.approx([0.4, 0.1])
    assert result.history["kl_weight"] == pytest.approx([2 / 3, 1])


def watched(method: Any, watch: nn.Module) -> Any:
    def terms(self: Any, model: Any, guide: Any, x: Tensor, y: Tensor) -> Any:
        return method(self, model, guide, watch(x), y)

    return terms


# ---- compared with maximum likelihood by a plain loop


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("penalized", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_without_a_prior_it_is_plain_training(clip: float | None, penalized: bool, schedule: str) -> None:
    x, y = classes()
    x = x.double()
    count, size, epochs, rate, seed = 50, 20, 3, 0.05, 7

    def penalty(net: nn.Module) -> Tensor:
        return 0.3 * sum(p.square().sum() for p in net.parameters())

    net = network()
    twin = copy.deepcopy(net)
    model = ps.BayesianModel(
        net, likelihood=ps.likelihoods.Categorical(), num_data=count, penalty=penalty if penalized else None
    )
    result = run(
        model, ps.guides.Additive(model), (x, y), epochs=epochs, lr=rate, clip=clip, seed=seed, schedule=schedule
    )

    optimizer = torch.optim.Adam(twin.parameters(), lr=rate)
    torch.manual_seed(seed)
    likelihoods, penalties, losses = [], [], []
    for epoch in range(1, epochs + 1):
        summed = paid = 0.0
        for index, rows in enumerate(epoch_order(seed, epoch, count).split(size)):
            done = (3 * (epoch - 1) + index) / (3 * epochs)
            optimizer.param_groups[0]["lr"] = rate * (
                1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
            )
            optimizer.zero_grad()
            cross_entropy = F.cross_entropy(twin(x[rows]), y[rows], reduction="sum")
            cost = penalty(twin) if penalized else torch.tensor(0.0)
            (cross_entropy * count / len(rows) + cost).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(twin.parameters(), clip)
            optimizer.step()
            summed -= cross_entropy.item()
            paid += cost.item() * len(rows) / count
        likelihoods.append(summed)
        penalties.append(paid)
        losses.append(paid - summed)
    # Each example counts once per epoch, also those of the smaller last batch.
    assert result.history["data"] == pytest.approx(likelihoods, rel=1e-12)
    assert result.history["penalty"] == pytest.approx(penalties, rel=1e-12)
    assert result.history["loss"] == pytest.approx(losses, rel=1e-12)
    for mine, theirs in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ["local", "shared", "flipout", "marginal"])
def test_history_holds_the_terms_at_full_kl_weight(estimator: str) -> None:
    model, guide = build(ps.guides.LayerwiseAlpha, penalty=lambda net: net[4].bias.square().sum() + 1.0)
    result = run(model, guide, estimator=estimator, batch_size=50, kl_warmup=4.0, num_particles=2, epochs=3)
    h = result.history
    for row in range(3):
        assert h["elbo"][row] == pytest.approx(h["data"][row] - h["kl"][row] - h["penalty"][row], rel=1e-12)
        loss = h["kl_weight"][row] * h["kl"][row] + h["penalty"][row] - h["data"][row]
        assert h["loss"][row] == pytest.approx(loss, rel=1e-5)
    assert h["kl_weight"] == [0, 0.25, 0.5] and min(h["kl"]) > 1 and min(h["penalty"]) >= 1
    assert result.elbo == h["elbo"][-1] and result.epochs == 3 and h["epoch"] == [1, 2, 3]


def test_a_run_learns() -> None:
    model, guide = build(count=200)
    result = run(model, guide, epochs=30, batch_size=50, lr=0.03)
    assert result.history["data"][-1] > 0.5 * result.history["data"][0]
    assert result.history["elbo"][-1] > result.history["elbo"][0]


# ---- settings


def test_log_alphas_take_their_own_rate() -> None:
    model, guide = build(ps.guides.NeuronwiseAlpha)
    before = {name: value.clone() for name, value in guide.named_parameters()}
    bias = model.net[4].bias.clone()
    run(model, guide, epochs=1, batch_size=50, lr=0.01, lr_alpha=0.3)
    # The first step of Adam has the length of the learning rate, whatever the gradient.
    for name, value in guide.named_parameters():
        expected = 0.3 if name.endswith("log_alpha") else 0.01
        assert (value - before[name]).abs().max().item() == pytest.approx(expected, rel=1e-3), name
    assert (model.net[4].bias - bias).abs().max().item() <= 0.0101


def test_a_seed_repeats_the_run_and_leaves_the_callers_random_state_alone() -> None:
    outcomes = []
    for seed in (1, 1, 2):
        model, guide = build()
        torch.manual_seed(99)
        run(model, guide, seed=seed)
        outcomes.append((state(model, guide), torch.rand(3)))
    torch.manual_seed(99)
    assert same(outcomes[0][0], outcomes[1][0]) and not same(outcomes[0][0], outcomes[2][0])
    assert torch.equal(outcomes[0][1], torch.rand(3))


def test_without_a_seed_the_callers_random_state_decides() -> None:
    outcomes = []
    for seed in (5, 5, 6):
        model, guide = build()
        torch.manual_seed(seed)
        run(model, guide, seed=None)
        outcomes.append(state(model, guide))
    assert same(outcomes[0], outcomes[1]) and not same(outcomes[0], outcomes[2])


@pytest.mark.parametrize("validated", [False, True])
def test_validation_and_callbacks_do_not_change_the_run(validated: bool) -> None:
    model, guide = build()
    run(model, guide)
    other, other_guide = build()
    options = {"validation": classes(30, seed=5)} if validated else {"callback": lambda row: torch.randn(3)}
    result = run(other, other_guide, **options)
    assert same(state(model, guide), state(other, other_guide))
    assert ("validation" in result.history) == validated


def test_modes_and_validation_are_restored() -> None:
    model, guide = build()
    model.net[1].eval()
    guide.eval()
    seen: list[Any] = []
    model.net[0].register_forward_pre_hook(
        lambda module, args: seen.append((model.net[1].training, pyro.settings.get("validate_poutine")))
    )
    called: list[Any] = []
    pyro.enable_validation(True)
    run(model, guide, callback=lambda row: called.append((row["epoch"], model.net.training, guide.training)))
    assert (True, False) in seen and pyro.settings.get("validate_poutine")
    assert pyro.settings.get("validate_distributions_pyro") and not any(training and on for training, on in seen)
    assert called == [(1, False, False), (2, False, False)]
    assert model.net.training and not model.net[1].training and not guide.training
    assert all(parameter.grad is None for parameter in guide.parameters())


@pytest.mark.parametrize("kind", ["additive", "alpha", "no prior"])
def test_bf16_stays_near_float32(kind: str) -> None:
    results = []
    for precision in ("float32", "bf16"):
        model, guide = build(ps.guides.LayerwiseAlpha if kind == "alpha" else ps.guides.Additive)
        if kind == "no prior":
            model = ps.BayesianModel(network(), likelihood=ps.likelihoods.Categorical(), num_data=50)
            guide = ps.guides.Additive(model)
        results.append(run(model, guide, precision=precision, epochs=3))
        assert {value.dtype for value in model.parameters()} == {torch.float32}
    low, high = results[1].history, results[0].history
    assert low["data"] != high["data"]
    assert low["data"] == pytest.approx(high["data"], rel=0.1)


@pytest.mark.parametrize("called_before", [False, True])
def test_an_autoguide_of_pyro_is_a_guide(called_before: bool) -> None:
    finals = []
    for _ in range(2):
        # Two guides with the same name: the second must not find the first one's parameters in Pyro's store.
        model = ps.BayesianModel(
            network(), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=50
        )
        torch.manual_seed(0)
        guide = AutoNormal(model)
        if called_before:
            pyro.clear_param_store()
            guide(*classes())
        result = run(model, guide, epochs=5, lr=0.05, device="cpu")
        assert result.history["elbo"][-1] > result.history["elbo"][0]
        finals.append(state(guide))
    assert same(*finals) and len(finals[0]) == 4


# ---- held-out data


@pytest.mark.usefixtures("float64")
def test_predictive_loss_is_that_of_the_predictive_density() -> None:
    model = ps.BayesianModel(
        nn.Linear(2, 1, bias=False), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.5), num_data=300
    )
    guide = ps.guides.Additive(model, init_scale=0.7)
    x, y = torch.randn(300, 2), torch.randn(300, 1)
    batches = as_batches((x, y), 200)
    loss = predictive_loss(model, guide, batches, CPU, estimator="local", draws=300)
    variance = x.square().sum(-1, keepdim=True) * 0.7**2 + 0.5**2
    exact = -dist.Normal(model.net(x).detach(), variance.sqrt()).log_prob(y).mean().item()
    assert loss == pytest.approx(exact, abs=0.01)
    assert predictive_loss(model, guide, batches, CPU, estimator="local", draws=300) == loss


def test_early_stopping_restores_the_best_parameters_on_held_out_data() -> None:
    held_out = classes(60, seed=9)
    model, guide = build(count=60)
    states: list[list[Tensor]] = []
    result = run(
        model,
        guide,
        epochs=60,
        lr=0.05,
        schedule="constant",
        validation=held_out,
        patience=4,
        callback=lambda row: states.append(state(model, guide)),
    )
    losses = result.history["validation"]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert 0 < best and result.best_epoch == best + 1
    assert result.epochs == len(losses) == best + 1 + 4 < 60
    assert result.stopped == f"early stopping at epoch {best + 5}"
    assert same(state(model, guide), states[best]) and not same(states[best], states[best + 3])
    assert result.elbo == result.history["elbo"][best]
    found = predictive_loss(model, guide, as_batches(held_out, 20), CPU, estimator="local")
    assert found == pytest.approx(losses[best], rel=1e-6)


def test_without_patience_the_last_parameters_stay() -> None:
    model, guide = build()
    result = run(model, guide, validation=classes(30, seed=8), epochs=3)
    assert result.best_epoch is None and len(result.history["validation"]) == 3 and result.stopped == "finished"


def test_a_result_is_printed_as_a_table_and_converted_to_plain_data() -> None:
    model, guide = build()
    result = run(model, guide, epochs=12)
    lines = str(result).splitlines()
    assert lines[0].startswith("12 epochs in") and "finished" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["1", "4", "7", "9", "12"]
    assert result.to_dict()["history"]["elbo"] == result.history["elbo"]
    with pytest.raises(AttributeError):
        result.epochs = 3


def test_the_bar_goes_to_stderr_and_can_be_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # some releases of tqdm cut the line to the screen
    run(*build())
    assert capsys.readouterr() == ("", "")
    run(*build(), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "nats/example" in err and "2/2" in err


@pytest.mark.gpu
def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = build(count=200)
    x, y = classes(200)
    step = Trainer._step
    calls: list[int] = []

    def strict(self: Trainer, *args: Any) -> Tensor:
        calls.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(calls) > 1 else "default")
        try:
            return step(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", strict)
    result = run(model, guide, (x.cuda(), y.cuda()), device="cuda", clip=1.0)
    assert len(calls) == 20 and math.isfinite(result.elbo)
