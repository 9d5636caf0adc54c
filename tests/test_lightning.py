"""SVIModule: compared with a plain loop, resumed, in bfloat16, and what it refuses."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import pyrostoch as ps
from pyrostoch._seeds import forked, mixed_seed
from pyrostoch.effects.active import active_call
from pyrostoch.training.schedule import kl_weight, rate_factor

pytest.importorskip("lightning.pytorch", reason="needs pyrostoch[lightning]")

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from pyrostoch.lightning import SVIModule

pytestmark = [
    # Lightning 2.6 under torch 2.13 asks a tree's leaf in the old way.
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\).:FutureWarning"),
    # SVIModule has a validation_step, also where no validation data are given.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning"),
    # Loaders without workers, as in tests.
    pytest.mark.filterwarnings("ignore:The '(train|val|predict)_dataloader' does not have many workers:UserWarning"),
]

CPU = torch.device("cpu")
COUNT = 40


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence Lightning's messages on devices and tips."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def classes(count: int = COUNT) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return TensorDataset(x, (x @ torch.randn(4, 3, generator=generator)).argmax(-1))


def build(guide: Any = ps.guides.Additive, seed: int = 0, **model: Any) -> tuple[ps.BayesianModel, Any]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    options = {"prior": ps.priors.Normal(), "likelihood": ps.likelihoods.Categorical(), "num_data": COUNT, **model}
    made = ps.BayesianModel(net, **options)
    return made, guide(made)


def trainer(**options: Any) -> Trainer:
    settings: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    return Trainer(accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False, **settings)


def loader(data: Any = None, batch_size: int = 16) -> DataLoader[Any]:
    """A loader whose order depends on the epoch only, also in a resumed run."""
    data = classes() if data is None else data
    sampler: Any = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=5)
    return DataLoader(data, batch_size=batch_size, sampler=sampler)


def state(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{name}": value for i, module in enumerate(modules) for name, value in module.state_dict().items()}


class Record(Callback):
    """Records losses and KL weights of each step, and the terms of each epoch."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.steps.append((trainer.callback_metrics["loss"].item(), trainer.callback_metrics["kl_weight"].item()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})


# ---- one process


def test_same_as_a_loop_by_hand(float64: None) -> None:
    """Seven epochs of BatchNorm, dropout, two particles, two learning rates, a warm-up, and a smaller last batch."""
    epochs, data = 7, classes()
    options: dict[str, Any] = {"lr": 0.02, "lr_alpha": 0.1, "schedule": "cosine", "kl_warmup": (1.0, 3.0)}
    model, guide = build(ps.guides.LayerwiseAlpha, prior=ps.priors.LogUniform())
    record = Record()
    module = SVIModule(model, guide, num_particles=2, seed=9, **options)
    trainer(max_epochs=epochs, callbacks=[record]).fit(module, loader(data))

    twin, twins = build(ps.guides.LayerwiseAlpha, prior=ps.priors.LogUniform())
    twin.train()
    groups = twins.parameter_groups()
    learned = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        [{"params": groups["main"] + learned, "lr": 0.02}, {"params": groups["alpha"], "lr": 0.1}]
    )
    loss_of = ps.ELBO(num_particles=2)
    batches, step, losses, sums = loader(data), 0, [], []
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        total = 0.0
        for index, (x, y) in enumerate(batches):
            for group, rate in zip(optimizer.param_groups, (0.02, 0.1), strict=True):
                group["lr"] = rate * rate_factor("cosine", step, epochs * 3)
            loss_of.kl_weight = kl_weight(step, 3, (1.0, 3.0))
            optimizer.zero_grad()
            with forked(CPU, mixed_seed(9, 0, 0, epoch, index)):
                loss = loss_of.differentiable_loss(twin, twins, x, y)
            with forked(CPU, mixed_seed(9, 0, 0, epoch, index)):
                pairs = [ps.ELBO().terms(twin, twins, x, y) for _ in range(2)] if epoch == epochs - 1 else []
            loss.backward()
            optimizer.step()
            losses.append((loss.item(), float(loss_of.kl_weight)))
            total += len(y) * sum((terms.data - terms.kl).item() for terms in pairs) / 2 / COUNT
            step += 1
        sums.append(total)
    torch.testing.assert_close(torch.tensor(record.steps), torch.tensor(losses), rtol=1e-10, atol=0)
    # Parameters only: additional passes of the plain loop have changed its running means, which training does not use.
    found, expected = dict(guide.named_parameters()), dict(twins.named_parameters())
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    last = record.epochs[-1]
    assert last["elbo"] == pytest.approx(sums[-1], rel=1e-9)
    assert last["elbo"] == pytest.approx(last["data"] - last["kl"] - last["penalty"], rel=1e-9)
    assert last["elbo"] > record.epochs[0]["elbo"]


def test_accumulated_batches_and_limits() -> None:
    """The schedule counts the optimizer's steps, the warm-up counts batches: both end with the run."""
    model, guide = build()
    record = Record()
    module = SVIModule(model, guide, schedule="linear", kl_warmup=2.0, lr=0.01)
    run = trainer(max_epochs=3, accumulate_grad_batches=2, callbacks=[record])
    run.fit(module, loader(batch_size=10))
    assert run.global_step == 6
    assert [weight for _, weight in record.steps] == pytest.approx(
        [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8] + [1] * 4
    )
    assert run.optimizers[0].param_groups[0]["lr"] == 0.0


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_checkpoint_resumed_gives_the_same(tmp_path: Path) -> None:
    model, guide = build()
    settings: dict[str, Any] = {"lr": 0.01, "kl_warmup": 3.0}

    def four_epochs() -> Trainer:
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        return trainer(max_epochs=4, enable_checkpointing=True, callbacks=[keep])

    four_epochs().fit(SVIModule(model, guide, seed=4, **settings), loader())

    torch.manual_seed(99)  # the seed of the noise is in the checkpoint, and nothing else draws
    other, others = build(seed=1)
    path = str(tmp_path / "epoch=1.ckpt")
    module = SVIModule(other, others, seed=5, **settings)
    four_epochs().fit(module, loader(), ckpt_path=path)
    first, second = state(model, guide), state(other, others)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    third, thirds = build(seed=2)
    loaded = SVIModule.load_from_checkpoint(tmp_path / "epoch=3.ckpt", model=third, guide=thirds)
    assert all(torch.equal(first[name], value) for name, value in state(third, thirds).items())
    assert loaded.hparams["kl_warmup"] == 3.0 and "model" not in loaded.hparams


def test_validation_scores_are_those_of_predict_and_leave_the_run_alone() -> None:
    data, held_out = classes(), DataLoader(classes(30), batch_size=11)
    runs = []
    for validated in (False, True):
        model, guide = build()
        record = Record()
        module = SVIModule(model, guide, lr=0.01, seed=0, mode="mean")
        trainer(callbacks=[record]).fit(module, loader(data), held_out if validated else None)
        runs.append(state(model, guide))
    # Sanity check, two validations: buffers, noise and order as without them.
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    x, y = classes(30).tensors
    found = ps.predict(model, guide, x, y=y, mode="mean")
    assert found.log_density is not None
    assert record.epochs[-1]["val_nll"] == pytest.approx(-found.log_density.mean().item(), rel=1e-6)
    assert record.epochs[-1]["val_accuracy"] == pytest.approx((found.probs.argmax(-1) == y).float().mean().item())


def test_sampled_scores_are_the_same_at_every_validation() -> None:
    model, guide = build()
    module, held_out = SVIModule(model, guide, mode="mc:3"), DataLoader(classes(30), batch_size=11)
    first = trainer().validate(module, held_out, verbose=False)
    torch.manual_seed(77)
    assert trainer().validate(module, held_out, verbose=False) == first
    tested = trainer().test(module, held_out, verbose=False)[0]
    assert tested == {name.replace("val", "test"): value for name, value in first[0].items()}


@pytest.mark.parametrize("labeled", [True, False])
def test_predictions(labeled: bool) -> None:
    model, guide = build()
    x, y = classes(30).tensors
    data = TensorDataset(x, y) if labeled else TensorDataset(x)
    found: Any = trainer().predict(SVIModule(model, guide, mode="mean"), DataLoader(data, batch_size=20))
    assert [len(batch["total"]) for batch in found] == [20, 10]
    expected = ps.predict(model, guide, x, mode="mean").log_probs
    torch.testing.assert_close(torch.cat([batch["log_probs"] for batch in found]), expected)


def test_bernoulli_labels_have_an_accuracy() -> None:
    x = torch.randn(8, 2)
    y = (x.sum(1, keepdim=True) > 0).float()
    net = nn.Linear(2, 1, bias=False)
    nn.init.ones_(net.weight)
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Bernoulli(), num_data=8)
    module = SVIModule(model, ps.guides.Additive(model), mode="mean")
    for truth, share in ((y, 1.0), (1 - y, 0.0)):  # both answers occur
        held_out = DataLoader(TensorDataset(x, truth), batch_size=8)
        assert trainer().validate(module, held_out, verbose=False)[0]["val_accuracy"] == share
    assert 0 < y.mean() < 1


def test_bf16_runs_the_network_and_keeps_the_kl() -> None:
    model, guide = build()
    module = SVIModule(model, guide, lr=0.01)
    exact = ps.ELBO().terms(model, guide, *classes()[:16]).kl
    seen: list[Any] = []
    terms_of = module._elbo.terms

    def watched(*args: Any) -> Any:
        seen.append(terms_of(*args))
        return seen[-1]

    module._elbo.terms = watched  # type: ignore[method-assign]
    outputs: list[torch.dtype] = []
    model.net[4].register_forward_hook(lambda layer, args, out: outputs.append(args[0].dtype))  # type: ignore[index]
    record = Record()
    trainer(max_epochs=8, precision="bf16-mixed", callbacks=[record]).fit(module, loader())
    assert torch.bfloat16 in outputs
    assert {terms.kl.dtype for terms in seen} == {torch.float32} == {terms.data.dtype for terms in seen}
    torch.testing.assert_close(seen[0].kl, exact, rtol=1e-6, atol=0)
    assert {parameter.dtype for parameter in guide.parameters()} == {torch.float32}
    assert record.epochs[-1]["elbo"] > record.epochs[0]["elbo"]


GUIDES = [
    ps.guides.Additive,
    ps.guides.WeightwiseAlpha,
    ps.guides.NeuronwiseAlpha,
    ps.guides.LayerwiseAlpha,
    lambda model: ps.guides.PerSite(model, {"*": ps.guides.VarianceOnly, "4.weight": ps.guides.Additive}),
]


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("estimator", ["local", "shared", "flipout"])
def test_every_parameter_has_a_gradient_in_every_step(guide: Any, estimator: str) -> None:
    """DDP hangs or fails if a trained parameter has no gradient; this includes steps whose KL has weight 0."""
    model, guide = build(guide)
    module = SVIModule(model, guide, estimator=estimator, kl_warmup=1.0)  # type: ignore[arg-type]

    class Look(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            lost = [name for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is None]
            assert lost == []
            assert [name for name, p in pl_module.named_parameters() if not p.requires_grad] == [
                f"model.net.{name}" for name in model.sites
            ]

    trainer(max_steps=1, callbacks=[Look()]).fit(module, loader())


def test_pyro_is_left_as_it_was() -> None:
    model, guide = build()
    module = SVIModule(model, guide, seed=0)
    checked: list[bool] = []

    def check(*_: Any) -> None:
        if active_call() is not None:  # no pass of the analysis of weight usage
            checked.append(pyro.settings.get("validate_poutine"))

    model.net.register_forward_hook(check)
    before = pyro.settings.get(), torch.get_rng_state()
    # A loader without a generator of its own takes its seed from torch's.
    trainer(max_epochs=1).fit(module, DataLoader(classes(), batch_size=20, generator=torch.Generator()))
    # The first step is validated; later ones do not wait for the device.
    assert checked == [True, False]
    assert pyro.settings.get() == before[0] and not list(pyro.get_param_store())
    assert torch.equal(torch.get_rng_state(), before[1])


# ---- what is refused


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from classes()


def test_errors_of_settings() -> None:
    model, guide = build()
    for options, text in [
        ({"lr": 0.0}, "lr: expected a positive"),
        ({"estimator": "locl"}, "did you mean 'local'"),
        ({"schedule": "linaer"}, "did you mean 'linear'"),
        ({"kl_warmup": -1.0}, "kl_warmup: expected"),
        ({"num_particles": 0}, "num_particles: expected"),
        ({"mode": "mc20"}, "mc:20"),
        ({"seed": -1}, "seed: expected"),
    ]:
        with pytest.raises(ValueError, match=text):
            SVIModule(model, guide, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a BayesianModel, got Linear"):
        SVIModule(nn.Linear(1, 1), guide)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "run", "data", "text"),
    [
        ({}, {}, lambda: loader(classes(30)), "expected num_data=40 examples, as the model was built for, got 30"),
        ({}, {"precision": "bf16-true"}, loader, "guide.parameters_of.*'bf16-mixed'"),
        ({}, {"max_epochs": -1}, loader, "schedule='linear' needs a run of known length"),
        ({}, {}, lambda: DataLoader(Stream(), batch_size=10), "give Trainer.max_steps="),
        (
            {"schedule": "constant", "kl_warmup": 2.0},
            {"max_steps": 3},
            lambda: DataLoader(Stream(), batch_size=10),
            "kl_warmup=2.0 counts epochs",
        ),
    ],
    ids=["num_data", "precision", "endless", "stream", "warm-up"],
)
def test_errors_of_runs(options: Any, run: Any, data: Any, text: str) -> None:
    model, guide = build()
    with pytest.raises(ValueError, match=text):
        trainer(**run).fit(SVIModule(model, guide, **options), data())


def test_a_stream_of_known_number_of_steps_is_trained() -> None:
    model, guide = build()
    run = trainer(max_steps=5, max_epochs=-1)
    run.fit(SVIModule(model, guide), DataLoader(Stream(), batch_size=10))
    assert run.global_step == 5 and run.optimizers[0].param_groups[0]["lr"] == 0.0


def test_parameters_that_are_in_no_optimizer_are_refused() -> None:
    model, lazy = build(AutoNormal)
    with pytest.raises(ValueError, match="are not in the optimizer.*Call guide"):
        trainer().fit(SVIModule(model, lazy), loader())
    options: dict[str, Any] = {"likelihood": ps.likelihoods.Categorical(), "num_data": COUNT}
    plain = ps.BayesianModel(nn.Linear(4, 3), prior={"*": ps.priors.Normal()}, **options)
    with pytest.raises(ValueError, match="nothing to train"):
        trainer().fit(SVIModule(plain, AutoNormal(plain)), loader())

    model, called = build(AutoNormal)
    called(*classes()[:4])
    before = {name: value.clone() for name, value in called.state_dict().items()}
    trainer().fit(SVIModule(model, called), loader())
    assert not any(torch.equal(before[name], value) for name, value in called.state_dict().items())


def test_the_first_batch_is_checked() -> None:
    x, y = classes().tensors
    with pytest.raises(ValueError, match="NaN or infinite entries"):
        trainer().fit(SVIModule(*build()), loader(TensorDataset(x.log(), y)))
    with pytest.raises(ValueError, match="expected labels from 0 to 2"):
        trainer().fit(SVIModule(*build()), loader(TensorDataset(x, y + 3)))
    with pytest.raises(TypeError, match="expected items .x, y."):
        trainer().fit(SVIModule(*build()), loader(TensorDataset(x)))


def test_without_lightning_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyrostoch.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(ImportError, match=r"pip install pyrostoch\[lightning\]"):
        importlib.import_module("pyrostoch.lightning")
