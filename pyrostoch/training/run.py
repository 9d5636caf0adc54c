"""A training run: its epochs, the best of them on held-out data, its checkpoint, and how it is resumed."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from pyrostoch._checks import name_list
from pyrostoch._seeds import forked
from pyrostoch._targets import Target
from pyrostoch.effects.usage import warn_of_unused
from pyrostoch.guides import Samples, Swag
from pyrostoch.guides.temperature import mark_temperature, marked_temperatures, set_temperatures
from pyrostoch.infer.batches import Batches
from pyrostoch.infer.parallel import Ranks
from pyrostoch.likelihoods.parts import parts_of
from pyrostoch.prediction.validation import predictive_loss, training_mode
from pyrostoch.protocols import FlatInputs
from pyrostoch.safefile import check_storable, write_file
from pyrostoch.training.checkpoint import check_fits, describe
from pyrostoch.training.history import Fit, History, append_epoch
from pyrostoch.training.left_out import check_unchanged, fixed_text
from pyrostoch.training.resume import SavedTraining, check_state
from pyrostoch.training.settings import check_same_run
from pyrostoch.training.state import form, module_state, parameter_names
from pyrostoch.training.trainer import NonFiniteLossError, Trainer

__all__ = ["Callback", "Run"]

Callback = Callable[[dict[str, Any]], Any]


@dataclass
class Run:
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

    Raises:
        TypeError: Model or guide have a tensor that a checkpoint cannot hold; it is named.
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
    _warned: bool = False
    _forms: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trainer = self.trainer
        self._fixed = fixed_text(trainer.model)
        if self.path is not None:
            # The working directory may change during the run.
            self._place = Path(os.path.abspath(self.path))
            state = module_state(trainer.model, trainer.guide)
            check_storable(state)
            self._forms = {name: form(value) for name, value in state.items()}
            # Only for a checkpoint, since it looks at all that functions and classes of the user's own hold.
            self._description = describe(trainer.model, trainer.guide)
        self._settings = trainer.settings.to_plain(
            batch_size=trainer.batches.batch_size,
            steps_per_epoch=len(trainer.batches),
            num_data=trainer.batches.num_data,
            shuffle=trainer.batches.shuffle,
            validation_examples=None if self.held_out is None else self.held_out.num_data,
            trained=sorted(trainer.names.values()),
        )

    @property
    def _ranks(self) -> Ranks:
        return self.trainer.ranks

    def finish(
        self, check: Callable[[FlatInputs, Target], None] | None, callback: Callback | None, progress: bool
    ) -> Fit:
        """Run the remaining epochs."""
        settings = self.trainer.settings
        earlier = marked_temperatures(self.trainer.guide)
        mark_temperature(self.trainer.guide, settings.temperature)
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
                try:
                    row = self._epoch(check)
                except Exception:
                    if not self.done:  # the guide is what it was before the run
                        set_temperatures(self.trainer.guide, earlier)
                    raise
                check = None
                if self.path is not None:
                    self._ranks.run_on_first(lambda: self._write(self._place))
                bar.set_postfix_str(self._postfix(row), refresh=False)
                bar.update()
                if callback is not None:
                    with training_mode(False, self.trainer.model, self.trainer.guide), forked(self.trainer.device):
                        self._ranks.run_on_first(lambda row=row: callback(dict(row)))  # type: ignore[misc]
                    self._warn_of_late_parameters()
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
            density=bool(getattr(self.trainer.guide, "has_density", True))
            and not any(isinstance(part, Swag) for part in self.trainer.guide.modules()),
            temperature=self.trainer.settings.temperature,
            pseudo=any(part.pseudo for part in parts_of(self.trainer.model.likelihood)),
        )

    def _warn_of_late_parameters(self) -> None:
        late = [
            name
            for parameter, name in parameter_names(self.trainer.model, self.trainer.guide).items()
            if parameter not in self.trainer.names
        ]
        if late and not self._warned:
            self._warned = True
            warnings.warn(
                f"fit: {name_list(late)} got requires_grad=True during the run, which trains only what required it at "
                "its start; unfreeze between two calls of fit",
                UserWarning,
                stacklevel=3,
            )

    def _epoch(self, check: Callable[[FlatInputs, Target], None] | None) -> dict[str, Any]:
        trainer, settings = self.trainer, self.trainer.settings
        start = perf_counter()
        try:
            row = trainer.run_epoch(self.done + 1, check)
        except NonFiniteLossError as error:
            if self.path is not None and self.done:
                error.add_note(f"The checkpoint {self.path} holds the end of epoch {self.done}.")
            raise
        check_unchanged(trainer.model, self._fixed)
        self.done += 1
        for part in trainer.guide.modules():
            if isinstance(part, Swag):
                part.after_epoch(self.done)
            elif isinstance(part, Samples) and trainer.sampler is not None:
                if trainer.sampler.takes(self.done, settings.epochs, part.size):
                    part.collect()
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
        state = module_state(self.trainer.model, self.trainer.guide)
        changed = [
            name for name in {**self._forms, **state} if name not in state or form(state[name]) != self._forms.get(name)
        ]
        if changed:
            raise TypeError(
                f"checkpoint {path}: {name_list(changed)} has been made, or has changed its size, since the run began, "
                "so that no new model could load the file: make it in __init__ in its full size, or register it with "
                "persistent=False. Nothing was written"
            )
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
        noted = {"temperatures": marked_temperatures(self.trainer.guide)}
        write_file(path, tensors, {**self._description, **noted, "extra": {}, "training": training})

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
        names = ("elbo", "data", "kl", *(("rate",) if row["rate"] else ()))
        return ", ".join(f"{name} {row[name] / count:.3f}" for name in names) + " nats/example"
