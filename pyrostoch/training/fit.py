"""Training by stochastic variational inference: one call, and nothing lost when it is cut short."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyrostoch._seeds import forked
from pyrostoch.infer.batches import Batches, as_batches, move_to_device
from pyrostoch.infer.compile import worth_compiling
from pyrostoch.infer.elbo import Estimator
from pyrostoch.infer.parallel import Ranks, joined, local_device
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.validation import predictive_loss, training_mode
from pyrostoch.safefile import CheckpointError, check_writable, read_file, write_file
from pyrostoch.training.checkpoint import check_fits, describe
from pyrostoch.training.checks import check_data, check_parties, check_store, place
from pyrostoch.training.history import Fit, History, append
from pyrostoch.training.schedule import Schedule
from pyrostoch.training.settings import Settings, check_same_run
from pyrostoch.training.state import module_state
from pyrostoch.training.trainer import NonFiniteLossError, Trainer

__all__ = ["fit"]

Callback = Callable[[dict[str, Any]], Any]


def fit(
    model: BayesianModel,
    guide: nn.Module,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 100,
    lr: float = 1e-3,
    lr_alpha: float | None = None,
    estimator: Estimator = "local",
    schedule: Schedule = "linear",
    kl_warmup: float | tuple[float, float] = 0.0,
    clip: float | None = None,
    num_particles: int = 1,
    validation: Any = None,
    patience: int | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    compile: bool | Literal["auto"] = "auto",
    device: str | torch.device | None = None,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    callback: Callback | None = None,
) -> Fit:
    r"""Train a guide, and the parameters of the model that have no prior, by maximizing the ELBO with Adam.

    The network is in training mode meanwhile and gets its own modes back. The data are checked once before; Pyro's
    validation is off during the steps, which never wait for the device. With `seed` the run repeats itself bit for bit
    on a CPU, and the caller's random state is left alone. With `checkpoint` the whole run is written at the end of
    every epoch, and `resume=True` goes on from there, however it was cut short, to the same result.

    Args:
        model: The model.
        guide: Its guide: one of `pyrostoch.guides`, or any module that is a Pyro guide.
        data: Training data: `(x, y)` tensors on any device, where `x` may be a tuple; a map-style `Dataset`; or a
            `DataLoader`, whose batches and order are kept.
        epochs: Passes through the data.
        batch_size: Examples a step; a last short batch is scaled right.
        lr: Learning rate at the start.
        lr_alpha: Learning rate of the guide's logarithms of ratios (log alpha, logits of levels); by default `lr`.
        estimator: How random weights are treated; see `ELBO`.
        schedule: How the learning rate falls, step by step, over the run: `"linear"` or `"cosine"` to 0, or
            `"constant"`.
        kl_warmup: Epochs over which the weight of the KL rises linearly from 0 to 1; a pair of epochs between which it
            does so.
        clip: Largest norm of the whole gradient.
        num_particles: Independent draws averaged in a step.
        validation: Held-out data, as `data`: their predictive loss is recorded each epoch.
        patience: Stop after so many epochs without a better loss on the held-out data; at the end, the parameters of
            the epoch that was best on them are put back.
        precision: `"bf16"` runs network and likelihood under autocast to bfloat16; parameters stay as they are.
        compile: Whether to compile the step, as `compile_step` does; `"auto"` does so where a compiler is found and the
            steps are enough to repay its seconds. A resumed run goes on as it was begun.
        device: Where to move model and guide; by default they stay.
        seed: Seed of the noise and of the order of the examples.
        progress: Whether to show a progress bar on stderr, with terms in nats an example.
        checkpoint: Path of the checkpoint, a safetensors file; its folder is made where it is missing. Without
            `resume`, one that is there is replaced at the end of the first epoch.
        resume: Go on from the checkpoint, if it is there, with the settings it was begun with: a schedule that falls to
            zero has an end, so only a run with `schedule="constant"` can be made longer by more `epochs`.
        callback: Called after each epoch, and after its checkpoint is written, with that epoch's row of the history;
            the network is in evaluation mode, and random numbers drawn do not change the run.

    Returns:
        History, time and outcome.

    Raises:
        TypeError: Model, guide or data are of no known type.
        ValueError: A setting or the data do not fit; named.
        CheckpointError: The checkpoint to resume from is damaged, or of another model or run.
        OSError: The checkpoint cannot be written; the old one is left as it was.
        NonFiniteLossError: The loss became NaN or infinite: epoch, step and site are named, and model and guide are put
            back where the last good epoch left them, as is the checkpoint.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> model = BayesianModel(nn.Linear(1, 1), prior=ps.priors.Normal(),
        ...                       likelihood=ps.likelihoods.Gaussian(0.1), num_data=64)
        >>> guide = ps.guides.Additive(model)
        >>> result = fit(model, guide, (x, 2 * x), epochs=20, batch_size=32, lr=0.1, seed=0, progress=False)
        >>> result.history["elbo"][-1] > result.history["elbo"][0], result.stopped
        (True, 'finished')

    References:
        Graves, "Practical variational inference for neural networks", 2011; Kingma, Ba, "Adam", 2015.
    """
    settings = Settings(
        epochs=epochs,
        lr=lr,
        lr_alpha=lr_alpha,
        estimator=estimator,
        schedule=schedule,
        kl_warmup=kl_warmup,
        clip=clip,
        num_particles=num_particles,
        patience=patience,
        precision=precision,
        seed=seed,
    )
    check_parties(model, guide)
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} needs held-out data to look at: give validation=(x, y)")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the path to resume from: give checkpoint=")
    batches = as_batches(data, batch_size)
    held_out = None if validation is None else as_batches(validation, batch_size, "validation")
    path = None if checkpoint is None else Path(checkpoint)
    where = place(model, guide, local_device(device))
    ranks = joined(where)
    if path is not None:
        ranks.run_on_first(lambda: check_writable(path))
    with ExitStack() as stack:
        stack.enter_context(training_mode(True, model, guide))
        stack.enter_context(pyro.validation_enabled(False))
        # An autoguide asks the global store first, which may hold a namesake's parameters: an empty one meanwhile.
        stack.enter_context(pyro.get_param_store().scope())
        if seed is not None or ranks.many:
            stack.enter_context(forked(where, seed))
        check = check_data(model, guide, batches, where)
        check_store(model, guide)
        if held_out is not None:
            check_data(model, guide, held_out, where, "validation")
            held_out = move_to_device(held_out, where)
        batches = move_to_device(batches, where)
        order_seed = ranks.broadcast_from_first(int(torch.randint(2**31, ())) if seed is None else seed)
        there = ranks.broadcast_from_first(resume and path is not None and path.exists())
        resumed = read_file(path) if there and path is not None else None
        # Gradients are averaged between the backward pass and the update, which a staged step has in one.
        compiled = worth_compiling(compile, guide, len(batches) * epochs, where) and not (
            ranks.many and compile == "auto"
        )
        if ranks.many and compiled:
            raise ValueError("compile=True: the step of several processes is not compiled; leave compile out")
        if resumed is not None and compile == "auto" and not ranks.many:
            compiled = bool((resumed[1].get("training") or {}).get("compiled", False))
        trainer = Trainer(model, guide, batches, settings, where, order_seed, compiled=compiled, ranks=ranks)
        run = _Run(trainer, held_out, path)
        if resumed is not None:
            run.resume(*resumed)
        return run.finish(check, callback, progress)


@dataclass
class _Run:
    """A run on its way: what a checkpoint has to hold besides tensors."""

    trainer: Trainer
    held_out: Batches | None
    path: Path | None
    done: int = 0
    history: History = field(default_factory=dict)
    stopped: str | None = None
    best_epoch: int | None = None
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trainer = self.trainer
        self._description = describe(trainer.model, trainer.guide)
        self._settings = trainer.settings.text(
            batch_size=trainer.batches.batch_size,
            steps_per_epoch=len(trainer.batches),
            num_data=trainer.batches.num_data,
            validation_examples=None if self.held_out is None else self.held_out.num_data,
        )

    @property
    def _ranks(self) -> Ranks:
        return self.trainer.ranks

    def finish(self, check: Callable[[Any, Tensor], None] | None, callback: Callback | None, progress: bool) -> Fit:
        """Run the epochs that are left."""
        settings = self.trainer.settings
        bar = tqdm(
            total=settings.epochs,
            initial=self.done,
            desc="fit",
            unit="epoch",
            mininterval=1.0,
            disable=not (progress and self._ranks.first),
        )
        with bar:
            if self.trainer.step.staged:
                bar.set_postfix_str("the step is compiled first, some 10 to 30 s", refresh=True)
            while self.stopped is None:
                row = self._epoch(check)
                check = None
                if self.path is not None:
                    path = self.path
                    self._ranks.run_on_first(lambda path=path: self._write(path))  # type: ignore[misc]
                bar.set_postfix_str(self._postfix(row), refresh=False)
                bar.update()
                if callback is not None:
                    with training_mode(False, self.trainer.model, self.trainer.guide), forked(self.trainer.device):
                        self._ranks.run_on_first(lambda row=row: callback(dict(row)))  # type: ignore[misc]
        kept = self.done if self.best_epoch is None else self.best_epoch
        return Fit(
            history=self.history,
            epochs=self.done,
            seconds=sum(self.history["seconds"]),
            elbo=self.history["elbo"][kept - 1],
            stopped=str(self.stopped),
            best_epoch=self.best_epoch,
            checkpoint=None if self.path is None else str(self.path),
            compile_seconds=self.trainer.step.seconds if self.trainer.step.stagings else None,
        )

    def _epoch(self, check: Callable[[Any, Tensor], None] | None) -> dict[str, Any]:
        trainer, settings = self.trainer, self.trainer.settings
        begin = perf_counter()
        try:
            row = trainer.run_epoch(self.done + 1, check)
        except NonFiniteLossError as error:
            if self.path is not None and self.done:
                error.add_note(f"The checkpoint {self.path} holds the end of epoch {self.done}.")
            raise
        self.done += 1
        if self.held_out is not None:
            loss = predictive_loss(
                trainer.model, trainer.guide, self.held_out, trainer.device, estimator=settings.estimator
            )
            # One number for all ranks, since it decides when to stop.
            row["validation"] = self._ranks.broadcast_from_first(loss)
        row["seconds"] = perf_counter() - begin
        append(self.history, row)
        if settings.patience is not None:
            self._compare(row["validation"], settings.patience)
        if self.stopped is None and self.done == settings.epochs:
            self.stopped = "finished"
        if self.stopped is not None and self.best:
            trainer.state.restore_modules(self.best)
            self.best = {}
        return row

    def _compare(self, loss: float, patience: int) -> None:
        """Keep the parameters if they are the best so far on held-out data; stop if none have been for too long."""
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.done
            state = module_state(self.trainer.model, self.trainer.guide)
            self.best = {name: value.detach().clone() for name, value in state.items()}
        elif self.done - (self.best_epoch or 0) >= patience:
            self.stopped = f"early stopping at epoch {self.done}"

    def _write(self, path: Path) -> None:
        tensors = self.trainer.state.capture() | {f"best.{name}": value for name, value in self.best.items()}
        training = {
            "epoch": self.done,
            "settings": self._settings,
            "order_seed": self.trainer.order_seed,
            "compiled": self.trainer.step.staged,
            "history": self.history,
            "stopped": self.stopped,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
        }
        write_file(path, tensors, {**self._description, "extra": {}, "training": training})

    def resume(self, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Go back to where the checkpoint was written."""
        trainer, path = self.trainer, Path(str(self.path))
        check_fits(path, tensors, content, trainer.model, trainer.guide)
        training = content.get("training")
        if training is None:
            raise CheckpointError(
                f"checkpoint {path}: expected one of a training run, got one of pyrostoch.save; load it by "
                "pyrostoch.load and start a run with another path"
            )
        check_same_run(path, training, self._settings)
        trainer.state.restore(tensors)
        trainer.order_seed = training["order_seed"]
        self.done, self.history = training["epoch"], training["history"]
        self.best_epoch, self.best_loss = training["best_epoch"], training["best_loss"]
        self.best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
        more = training["stopped"] == "finished" and self.done < trainer.settings.epochs
        self.stopped = None if more else training["stopped"]

    def _postfix(self, row: dict[str, Any]) -> str:
        count = self.trainer.batches.num_data
        return ", ".join(f"{name} {row[name] / count:.3f}" for name in ("elbo", "data", "kl")) + " nats/example"
