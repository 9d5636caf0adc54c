"""Training by stochastic variational inference, with checkpoints from which an interrupted run can be resumed."""

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
from pyrostoch.effects.usage import warn_of_unused
from pyrostoch.infer.batches import Batches
from pyrostoch.infer.compile import worth_compiling
from pyrostoch.infer.data_sets import as_batches, move_to_device
from pyrostoch.infer.elbo import Estimator
from pyrostoch.infer.parallel import Ranks, join_process_group, local_device
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import batches_for
from pyrostoch.prediction.validation import predictive_loss, training_mode
from pyrostoch.protocols import Data, Inputs
from pyrostoch.safefile import check_storable, only_writer_of, read_file, write_file
from pyrostoch.training.checkpoint import check_fits, describe
from pyrostoch.training.checks import (
    check_all_batches,
    check_batches,
    check_data,
    check_model_and_guide,
    check_param_store,
    keep_fixed_statistics,
    move_modules,
)
from pyrostoch.training.history import Fit, History, append_epoch
from pyrostoch.training.resume import SavedTraining, check_state, read_training
from pyrostoch.training.schedule import Schedule
from pyrostoch.training.settings import Settings, check_same_run
from pyrostoch.training.state import module_state
from pyrostoch.training.trainer import NonFiniteLossError, Trainer

__all__ = ["fit"]

Callback = Callable[[dict[str, Any]], Any]


def fit(
    model: BayesianModel,
    guide: nn.Module,
    data: Data,
    *,
    # What.
    validation: Data | None = None,
    # How long.
    epochs: int,
    batch_size: int = 100,
    shuffle: bool = True,
    patience: int | None = None,
    # How.
    estimator: Estimator | str = "local",
    num_particles: int = 1,
    lr: float = 1e-3,
    lr_alpha: float | None = None,
    schedule: Schedule = "linear",
    kl_warmup: float | tuple[float, float] = 0.0,
    clip: float | None = None,
    # Where.
    device: str | torch.device | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    compile: bool | Literal["auto"] = "auto",
    # Repeating, saving and following the run.
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    callback: Callback | None = None,
    progress: bool = True,
) -> Fit:
    r"""Train a guide, and the parameters of the model that have no prior, by maximizing the ELBO with Adam.

    The network is in training mode during the run, and every submodule is put back into its own mode afterwards; batch
    normalization whose parameters the user has fixed (`requires_grad=False`) keeps its running statistics. The
    data are checked once, before the first step if they are in memory, else during the first epoch; Pyro's validation
    is off during the steps, which never wait for the device. With `seed`, a run on a CPU repeats bit for bit, and the
    caller's random state is restored afterwards. With `checkpoint`, the state of the run is saved at the end of every
    epoch; with `resume=True`, an interrupted run continues from there to the same result.

    The arguments come in groups: what is trained on which data (`model` to `validation`), how long (`epochs` to
    `patience`), how (`estimator` to `clip`), where (`device` to `compile`), and how the run is repeated, saved and
    followed (`seed` to `progress`).

    Args:
        model: The model.
        guide: Its guide: one of `pyrostoch.guides`, or any module that is a Pyro guide.
        data: Training data: `(x, y)` tensors on any device, where `x` may be a tuple of tensors; a map-style `Dataset`;
            or a `DataLoader`, whose batches and order are kept.
        validation: Held-out data, as `data`; their predictive loss is recorded each epoch.
        epochs: Number of passes through the data.
        batch_size: Number of examples in a step; the loss of a smaller last batch is scaled correctly.
        shuffle: Whether each epoch has a new random order; a `DataLoader` has its own. A single batch with all examples
            keeps their order. Where examples meet in the network, as in a graph, give that, or `shuffle=False`.
        patience: Stop after this many epochs without a better loss on the held-out data. At the end, the parameters of
            the epoch with the best loss are restored.
        estimator: How random weights are treated; see `ELBO`.
        num_particles: Number of independent draws averaged in a step.
        lr: Learning rate at the start.
        lr_alpha: Learning rate of the guide's logarithms of ratios (log alpha, logits of levels); by default `lr`.
        schedule: How the learning rate falls over the steps of the run: `"linear"` or `"cosine"` to 0, or `"constant"`.
        kl_warmup: Number of epochs over which the weight of the KL rises linearly from 0 to 1; or a pair of epochs
            between which it rises.
        clip: Largest norm of the whole gradient.
        device: Device to which model and guide are moved; by default they stay where they are.
        precision: `"bf16"` runs network and likelihood under autocast to bfloat16; parameters keep their dtype.
        compile: Whether to compile the step, as `compile_step` does. `"auto"` does so if there is a compiler and the
            run has enough steps to save the time that compiling takes. A resumed run keeps the choice of its start.
        seed: Seed of the noise and of the order of the examples.
        checkpoint: Path of the checkpoint, a safetensors file; its folder is made if it is missing. Without `resume`,
            an existing file is replaced at the end of the first epoch. The run locks it against other runs.
        resume: Continue from the checkpoint if it exists, with the settings with which the run was started. Only with
            `schedule="constant"` may `epochs` be raised, since the other schedules depend on the length of the run.
        callback: Called after each epoch, when its checkpoint has been written, with that epoch's row of the history.
            The network is then in evaluation mode, and random numbers that the callback draws do not change the run.
        progress: Whether to show a progress bar on stderr, with the terms of the ELBO in nats per example.

    Returns:
        History, time and outcome of the run.

    Raises:
        TypeError: Model, guide or data have a wrong type.
        ValueError: A setting or the data do not fit; the message names them.
        CheckpointError: The checkpoint to resume from is damaged, or belongs to another model or run. Model, guide and
            random states are as they were.
        BlockingIOError: Another run is writing this checkpoint; its process is named.
        OSError: The checkpoint cannot be written; an existing file is left as it was.
        NonFiniteLossError: The loss became NaN or infinite; the message names epoch, step and site. Model and guide are
            restored to the end of the last good epoch, which is also what the checkpoint holds.

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
        patience=patience,
        estimator=estimator,
        num_particles=num_particles,
        lr=lr,
        lr_alpha=lr_alpha,
        schedule=schedule,
        kl_warmup=kl_warmup,
        clip=clip,
        precision=precision,
        seed=seed,
    )
    seed = settings.seed
    check_model_and_guide(model, guide)
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} needs held-out data: give validation=(x, y)")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the path to resume from: give checkpoint=")
    batches = as_batches(data, batch_size, shuffle=shuffle, in_dims=model.in_dims)
    held_out = None if validation is None else batches_for(model, validation, batch_size, "validation")
    path = None if checkpoint is None else Path(checkpoint)
    used_device = move_modules(model, guide, local_device(device))
    ranks = join_process_group(used_device)
    with ExitStack() as stack:
        if path is not None:
            ranks.run_on_first(lambda: stack.enter_context(only_writer_of(path)))
        stack.enter_context(training_mode(True, model, guide))
        keep_fixed_statistics(model.net)
        stack.enter_context(pyro.validation_enabled(False))
        # Pyro's autoguides look in the global parameter store first, which may hold another guide's parameters by the
        # same names: the store is empty during the run.
        stack.enter_context(pyro.get_param_store().scope())
        if seed is not None or ranks.is_distributed:
            stack.enter_context(forked(used_device, seed))
        check_batches(model, batches, shuffle, ranks)
        check = check_data(model, guide, batches, used_device)
        check_param_store(model, guide)
        if held_out is not None:
            check_all_batches(held_out, used_device, check_data(model, guide, held_out, used_device, "validation"))
            held_out = move_to_device(held_out, used_device)
        batches = move_to_device(batches, used_device)
        exists = ranks.broadcast_from_first(resume and path is not None and path.exists())
        resumed = read_training(path, *read_file(path)) if exists and path is not None else None
        if resumed is not None:
            order_seed = resumed.order_seed  # no number is drawn, since the checkpoint may still be refused
        else:
            order_seed = ranks.broadcast_from_first(int(torch.randint(2**31, ())) if seed is None else seed)
        # With several processes, gradients are averaged between the backward pass and the update, which are one program
        # in a compiled step.
        compiled = worth_compiling(compile, guide, len(batches) * epochs, used_device) and not (
            ranks.is_distributed and compile == "auto"
        )
        if ranks.is_distributed and compiled:
            raise ValueError("compile=True: the step of several processes is not compiled; leave compile out")
        if resumed is not None and compile == "auto" and not ranks.is_distributed:
            compiled = resumed.compiled
        trainer = Trainer(model, guide, batches, settings, used_device, order_seed, compiled=compiled, ranks=ranks)
        run = _Run(trainer, held_out, path)
        if resumed is not None:
            run.resume(resumed)
        return run.finish(check, callback, progress)


@dataclass
class _Run:
    """A training run, with everything that its checkpoint holds besides the trainer's state.

    Args:
        trainer: Makes the steps.
        held_out: The held-out data.
        path: Path of the checkpoint.
        done: Number of epochs made.
        history: Their history.
        stopped: Why the run has ended; `None` while it goes on.
        best_epoch: The epoch with the best loss on held-out data.
        best_loss: That loss.
        best: Model and guide after that epoch.
    """

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
        if self.path is not None:
            check_storable(module_state(trainer.model, trainer.guide))
        self._description = describe(trainer.model, trainer.guide)
        self._settings = trainer.settings.to_plain(
            batch_size=trainer.batches.batch_size,
            steps_per_epoch=len(trainer.batches),
            num_data=trainer.batches.num_data,
            shuffle=trainer.batches.shuffle,
            validation_examples=None if self.held_out is None else self.held_out.num_data,
        )

    @property
    def _ranks(self) -> Ranks:
        return self.trainer.ranks

    def finish(self, check: Callable[[Inputs, Tensor], None] | None, callback: Callback | None, progress: bool) -> Fit:
        """Run the remaining epochs."""
        settings = self.trainer.settings
        bar = tqdm(
            total=settings.epochs,
            initial=self.done,
            desc="fit",
            unit="epoch",
            mininterval=1.0,
            disable=not (progress and self._ranks.is_first),
        )
        with bar:
            if self.trainer.step.staged:
                bar.set_postfix_str("compiling the step, some 10 to 30 s", refresh=True)
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

    def _epoch(self, check: Callable[[Inputs, Tensor], None] | None) -> dict[str, Any]:
        trainer, settings = self.trainer, self.trainer.settings
        start = perf_counter()
        try:
            row = trainer.run_epoch(self.done + 1, check)
        except NonFiniteLossError as error:
            if self.path is not None and self.done:
                error.add_note(f"The checkpoint {self.path} holds the end of epoch {self.done}.")
            raise
        self.done += 1
        if self.done == 1 and (unused := trainer.model.unused_weights()):
            warn_of_unused(trainer.model.net, unused, "the passes of the first epoch")
        if self.held_out is not None:
            loss = predictive_loss(
                trainer.model, trainer.guide, self.held_out, trainer.device, estimator=settings.estimator
            )
            # The same number on all ranks, since it decides when to stop.
            row["validation"] = self._ranks.broadcast_from_first(loss)
            if math.isnan(row["validation"]):
                raise NonFiniteLossError(
                    self.done,
                    0,
                    ["the loss on the validation data"],
                    f"epoch {self.done}: the loss on the validation data is NaN, while that on the training data is "
                    f"{row['loss']:g}: the network's output is NaN or infinite for some of these inputs. Model and "
                    "guide are as this epoch left them",
                )
        row["seconds"] = perf_counter() - start
        append_epoch(self.history, row)
        if settings.patience is not None:
            self._update_best(row["validation"], settings.patience)
        if self.stopped is None and self.done == settings.epochs:
            self.stopped = "finished"
        if self.stopped is not None and self.best:
            trainer.state.restore_modules(self.best)
            self.best = {}
        return row

    def _update_best(self, loss: float, patience: int) -> None:
        """Keep the parameters if their loss on held-out data is the best so far; stop after `patience` without one."""
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
            "device": self.trainer.device.type,
            "optimizer": [name for parameter, name in self.trainer.names.items() if self._has_moments(parameter)],
            "history": self.history,
            "stopped": self.stopped,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
        }
        write_file(path, tensors, {**self._description, "extra": {}, "training": training})

    def _has_moments(self, parameter: nn.Parameter) -> bool:
        # A parameter that no step has used has none.
        return bool(self.trainer.optimizer.state.get(parameter))

    def resume(self, saved: SavedTraining) -> None:
        """Restore the state of the run from its checkpoint, once all of it is known to fit."""
        trainer = self.trainer
        check_fits(saved.path, saved.tensors, saved.content, trainer.model, trainer.guide)
        check_same_run(saved.path, saved.content["training"], self._settings)
        check_state(saved, trainer.state)
        trainer.state.restore(saved.tensors)
        self.done, self.history = saved.epoch, saved.history
        self.best_epoch, self.best_loss, self.best = saved.best_epoch, saved.best_loss, saved.best
        extended = saved.stopped == "finished" and self.done < trainer.settings.epochs
        self.stopped = None if extended else saved.stopped

    def _postfix(self, row: dict[str, Any]) -> str:
        count = self.trainer.batches.num_data
        return ", ".join(f"{name} {row[name] / count:.3f}" for name in ("elbo", "data", "kl")) + " nats/example"
