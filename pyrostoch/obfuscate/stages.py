"""The outcome of progressive training, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

from pyrostoch.obfuscate.screening import Screening
from pyrostoch.records import Record, number, table

__all__ = ["Progressive", "ProgressiveStage"]


@dataclass(frozen=True)
class ProgressiveStage(Record):
    """A stage of progressive training.

    Args:
        share: The clean share of the examples.
        clean: Number of clean examples.
        obfuscated: Number of obfuscated examples.
        alone: Score of the network that was trained on the clean examples of this stage; in a later stage it has seen
            obfuscated ones in the stages before.
        mixed: Score of the network that was trained further on both; that of `alone` where all examples are clean.
        noise: The noise beside the signal that it covers, on clean examples; see `activation_noise`.
        seconds: Duration.
    """

    share: float
    clean: int
    obfuscated: int
    alone: float
    mixed: float
    noise: float | None
    seconds: float


@dataclass(frozen=True)
class Progressive(Record):
    """The outcome of progressive training.

    Args:
        stages: Its stages.
        obfuscated_by: What selected the classes of the obfuscated examples: `"labels"` or `"selection"`.
        screening: What was hidden of them at random; `None` for nothing.
        reached: Whether the score that was wanted has been reached.

    Example:
        >>> print(Progressive((ProgressiveStage(0.05, 50, 950, 0.91, 0.95, 1.2, 3.0),), "labels", None, False))
        obfuscated by labels, nothing screened
        clean %  clean examples  obfuscated  score, clean part  score, both  noise / signal
        5                    50         950             0.9100       0.9500          1.2000
    """

    stages: tuple[ProgressiveStage, ...]
    obfuscated_by: str
    screening: Screening | None
    reached: bool

    def __str__(self) -> str:
        part = self.screening
        screened = (
            "nothing screened"
            if part is None
            else f"{100 * part.fraction:g} % screened in patches of {part.patch} by {part.fill}"
        )
        head = ("clean %", "clean examples", "obfuscated", "score, clean part", "score, both", "noise / signal")
        rows = [(f"{100 * s.share:g}", s.clean, s.obfuscated, s.alone, s.mixed, number(s.noise)) for s in self.stages]
        return f"obfuscated by {self.obfuscated_by}, {screened}\n" + table(head, rows)
