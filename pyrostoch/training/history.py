"""The result of a training run: its history by epoch, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyrostoch.infer.known_labels import KnownLabels
from pyrostoch.records import Record, table

__all__ = ["COLUMNS", "Fit", "History", "append_epoch"]

#: What is recorded of each epoch; `validation` only if held-out data were given.
COLUMNS = ("epoch", "loss", "elbo", "data", "kl", "rate", "penalty", "kl_weight", "lr", "seconds", "validation")

History = dict[str, list[Any]]

# Number of epochs that are printed.
_SHOWN = 5


@dataclass(frozen=True)
class Fit(Record):
    """The result of a training run.

    The terms of an epoch are means over its steps, weighted by batch size, in nats for the whole data set. They were
    computed with the parameters as they changed during the epoch, with the noise and the dropout of training.

    Args:
        history: Lists with an entry per epoch: `epoch` (from 1); `loss` (what was minimized); `elbo` (with KL and rate
            at weight 1) = `data` - `kl` - `rate` - `penalty`; `kl_weight` and `lr` (of the epoch's last step);
            `seconds`; and, if held-out data were given, `validation`: their mean negative log predictive density, in
            nats per example.
        epochs: Number of epochs made.
        seconds: Time of all epochs, including those before the run was resumed.
        elbo: ELBO of the epoch whose parameters were kept.
        stopped: Why the run ended: `"finished"` or `"early stopping at epoch ..."`.
        best_epoch: The epoch whose parameters were restored, with early stopping.
        checkpoint: Path of the checkpoint, if one was written.
        labels: `"known"` where layers that are conditional on the class were given the targets.
        compile_seconds: Seconds spent on compiling the step, contained in those of the first epoch; `None` where it ran
            eagerly.
        pseudo: Whether the likelihood is a pseudo-likelihood, as a loss or weights make it: no bound of the evidence.
        density: Whether the guide has a density. A point has none: `elbo` is then the log joint density, and `kl` minus
            the log prior.
        temperature: That of the training. Other than 1, what was maximized is no ELBO.

    Example:
        >>> print(Fit({"epoch": [1], "elbo": [-5.0], "data": [-3.0], "kl": [2.0]}, 1, 0.5, -5.0, "finished"))
        1 epoch in 0.5 s, finished; ELBO -5.0000 nats
        epoch     elbo     data      kl
        1      -5.0000  -3.0000  2.0000
    """

    history: History
    epochs: int
    seconds: float
    elbo: float
    stopped: str
    best_epoch: int | None = None
    checkpoint: str | None = None
    compile_seconds: float | None = None
    labels: KnownLabels = None
    pseudo: bool = False
    density: bool = True
    temperature: float = 1.0

    def __str__(self) -> str:
        count = f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        spent = "" if self.compile_seconds is None else f" ({self.compile_seconds:.1f} s of them to compile the step)"
        head = f"{count} in {self.seconds:.1f} s{spent}, {self.stopped}; "
        head += f"{'ELBO' if self.density else 'log joint density'} {self.elbo:.4f} nats"
        head += " of a pseudo-likelihood" if self.pseudo else ""
        head += ", labels known" if self.labels else ""
        if self.temperature != 1.0:
            head += f", trained at temperature {self.temperature:g}, which maximizes no ELBO"
        if self.best_epoch is not None:
            head += f", parameters of epoch {self.best_epoch}"
        if self.checkpoint is not None:
            head += f"; checkpoint {self.checkpoint}"
        names = ("epoch", "elbo", "data", "kl", *(("rate",) if any(self.history.get("rate", ())) else ()), "lr")
        columns = [name for name in (*names, "validation") if name in self.history]
        last = self.epochs - 1
        shown = sorted({round(i * last / (_SHOWN - 1)) for i in range(_SHOWN)})
        return head + "\n" + table(columns, [[self.history[name][row] for name in columns] for row in shown])


def append_epoch(history: History, row: dict[str, Any]) -> None:
    """Append an epoch to a history.

    Args:
        history: The history, which is changed.
        row: What was recorded of the epoch, by the names in `COLUMNS`.
    """
    for name in COLUMNS:
        if name in row:
            history.setdefault(name, []).append(row[name])
