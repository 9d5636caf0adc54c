"""The outcome of a federated training, round by round: who answered, who did not, and how good the network was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyrostoch.records import Record, number, table

__all__ = ["Federated", "FederatedRound", "QuorumError"]


@dataclass(frozen=True)
class FederatedRound(Record):
    """One round of a federated training.

    Args:
        number: Its number, from 1; a round that failed is tried again under the same number.
        answered: The holders whose answers were used.
        missing: The holders that did not give a usable answer, and why.
        examples: Number of examples behind the answers.
        score: Score of the network on the server's clean data behind the round; `None` where it was not scored.
        seconds: Duration.
        failed: Whether too few answered, so that nothing was changed.
    """

    number: int
    answered: tuple[str, ...]
    missing: Mapping[str, str]
    examples: int
    score: float | None
    seconds: float
    failed: bool = False


@dataclass(frozen=True)
class Federated(Record):
    """The outcome of a federated training.

    Args:
        send: What the holders sent, `"weights"` or `"examples"`.
        holders: Number of examples of each holder that has ever answered.
        quorum: The fewest answers with which a round counts.
        start: Score before the first round.
        rounds: The rounds, those that failed among them.
        score: Score at the end; `None` where the training did not come so far.

    Example:
        >>> one = FederatedRound(1, ("0", "1"), {}, 50, 0.8, 2.0)
        >>> two = FederatedRound(2, ("0",), {"1": "no answer within 60 s"}, 30, 0.85, 60.0)
        >>> print(Federated("weights", {"0": 30, "1": 20}, 1, 0.1, (one, two), 0.85))
        weights of 2 data holders with 50 examples, quorum 1
        round  answered  examples   score  seconds
        start         -         -  0.1000        -
        1        2 of 2        50  0.8000   2.0000
        2        1 of 2        30  0.8500  60.0000
        round 2: nothing from holder '1' (20 examples): no answer within 60 s
    """

    send: str
    holders: Mapping[str, int]
    quorum: int
    start: float | None
    rounds: tuple[FederatedRound, ...]
    score: float | None

    def __str__(self) -> str:
        total = len(self.holders)
        lines = [
            f"{self.send} of {total} data holders with {sum(self.holders.values())} examples, quorum {self.quorum}"
        ]
        rows: list[tuple[object, ...]] = [("start", "-", "-", number(self.start), "-")]
        for entry in self.rounds:
            name = f"{entry.number} failed" if entry.failed else entry.number
            answered = f"{len(entry.answered)} of {len(entry.answered) + len(entry.missing)}"
            rows.append((name, answered, entry.examples, number(entry.score), entry.seconds))
        if self.send == "examples":
            rows.append(("trained", "-", "-", number(self.score), "-"))
        lines.append(table(("round", "answered", "examples", "score", "seconds"), rows))
        for entry in self.rounds:
            for holder, reason in entry.missing.items():
                size = f" ({self.holders[holder]} examples)" if holder in self.holders else ""
                lines.append(f"round {entry.number}: nothing from holder {holder!r}{size}: {reason}")
        return "\n".join(lines)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Federated:
        """The report that `to_dict` made plain data of.

        Args:
            data: The plain data.

        Example:
            >>> report = Federated("weights", {"0": 3}, 1, None, (FederatedRound(1, ("0",), {}, 3, 0.5, 1.0),), 0.5)
            >>> Federated.from_dict(report.to_dict()) == report
            True
        """
        rounds = tuple(FederatedRound(**{**entry, "answered": tuple(entry["answered"])}) for entry in data["rounds"])
        return cls(**{**data, "rounds": rounds})


class QuorumError(RuntimeError):
    """Too few data holders answered, so that a round failed and changed nothing.

    Args:
        message: What happened.
        report: The training up to here, the failed round at its end.

    Attributes:
        report: The same.

    Example:
        >>> error = QuorumError("round 1: ...", Federated("weights", {}, 3, None, (), None))
        >>> error.report.quorum
        3
    """

    def __init__(self, message: str, report: Federated) -> None:
        super().__init__(message)
        self.report = report
