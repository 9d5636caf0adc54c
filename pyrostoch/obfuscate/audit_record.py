"""What an audit has found, as tables: what the task label allows, what attackers read, and what bounds say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyrostoch.metrics.running import Estimate
from pyrostoch.obfuscate.bounds import RateBound
from pyrostoch.obfuscate.pictures import Pictures
from pyrostoch.records import Record, number, table

__all__ = ["AttackResult", "Audit", "Strength"]


@dataclass(frozen=True)
class Strength(Record):
    """How good an attacker is on what would be sent without noise, and whether ten times the training helps it.

    Args:
        score: Its score with the audit's budget of epochs.
        longer: Its score with ten times as many.
        enough: Whether they are within one point of accuracy, or 5 % of the squared error.
        stderr: Standard error of the first score.
    """

    score: float
    longer: float
    enough: bool
    stderr: float = 0.0


@dataclass(frozen=True)
class AttackResult(Record):
    """What an attacker reads from what is sent, on test examples.

    Args:
        attack: What it wants to know.
        unit: Unit of its score.
        queries: Number of queries of each example whose mean it reads.
        score: Its score on test examples, with the standard error over these.
        label: The score of a guess from the task label alone.
        blind: The score of a guess from nothing.
        beyond: How much better the score is than that of the label alone, paired over examples.
        beyond_nats: For attributes, the cross-entropy of a guess by the label less the attacker's, paired over
            examples: what is read of them that no hard guess shows, such as that a rare one is likely.
        psnr: Peak signal-to-noise ratio of reconstructed images, in decibels; else `None`.
        ssim: Their structural similarity; else `None`.
        ssim_label: That of the mean image of the label.
        strength: The attacker without noise; the same for all numbers of queries.
        epochs: Number of epochs of its training on noise; of steps, for an attack by optimization.
        stopped: Whether its validation loss had stopped falling there.
        information: For attributes, H(s) less the attacker's cross-entropy: a bound from below of what is told of the
            attribute, in nats.
    """

    attack: str
    unit: str
    queries: int
    score: Estimate
    label: float
    blind: float
    beyond: Estimate
    beyond_nats: Estimate | None
    psnr: float | None
    ssim: float | None
    ssim_label: float | None
    strength: Strength
    epochs: int
    stopped: bool
    information: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, with its verdict."""
        return {**super().to_dict(), "verdict": self.verdict}

    @property
    def reads_without_noise(self) -> bool:
        """Whether more than the label tells is read where there is no noise, or the label tells all there is."""
        gain = self.strength.score - self.label
        if self.information is None:
            return self.label == 0.0 or -gain > 2 * self.strength.stderr
        return self.label >= 100.0 or gain > 2 * self.strength.stderr

    @property
    def verdict(self) -> str:
        """What the result says, or why it says nothing, as where a weak attacker reads little."""
        gains = [gain for gain in (self.beyond, self.beyond_nats) if gain is not None]
        reads_more = any(gain.value > 2 * gain.stderr for gain in gains)
        weak = ""
        if not self.strength.enough:
            weak = "ten times the training reads more without noise"
        elif not reads_more and not self.reads_without_noise:
            weak = "even without noise it reads no more than the label tells"
        elif not self.stopped:
            weak = "its loss on noise was still falling"
        if reads_more:
            return "reads more than the label tells" + (f"; a stronger one may read still more: {weak}" if weak else "")
        return f"attacker too weak: {weak}" if weak else "reads no more than the label tells"


@dataclass(frozen=True)
class Audit(Record):
    """The audit of what a client sends.

    Args:
        at: The modules whose outputs are sent.
        labels: Whether the client knew the classes, which the choice of noise may tell.
        share: The client's share of all multiplications of the network.
        task: Accuracy of the task from what was sent once, with its standard error.
        attacks: What attackers read.
        rate: The bound of mutual information from above; `None` where there is none.
        reconstruction: The bound of the squared error of unbiased reconstructions for one query; `None` where there is
            none.
        no_bound: Why there is no bound.
        examples: Number of test examples.
        skipped: Attacks that were not made, and why.
        keyed: Whether the noise of an input was fixed by a secret key.
        least: What one query tells of an example at least, in nats, by InfoNCE among 100 examples; `None` where it was
            not taken.
        noisy: Whether two queries of the same examples sent something else.
        weights: Random weights that what is sent may depend on.
        pictures: Some images, what was sent of them, and what attackers found; `None` where inputs are no images.
    """

    at: tuple[str, ...]
    labels: bool
    share: float
    task: Estimate
    attacks: tuple[AttackResult, ...]
    rate: RateBound | None
    reconstruction: Estimate | None
    no_bound: str
    examples: int
    skipped: tuple[str, ...] = ()
    keyed: bool = False
    least: Estimate | None = None
    noisy: bool = True
    weights: tuple[str, ...] = ()
    pictures: Pictures | None = None

    def __str__(self) -> str:
        lines = []
        if self.labels:
            lines.append("The client knows the label and chooses the noise by it: which noise was chosen may tell it.")
        if self.keyed:
            lines.append("Noise is fixed by a secret key: queries after the first one are of inputs near each example.")
        if not self.noisy:
            lines.append("Two queries of the same examples sent the same: what is sent has no noise.")
        if self.weights:
            lines.append(
                f"Weights are random ({', '.join(self.weights)}): a query draws them once for all examples, and "
                "standard errors are those over examples alone."
            )
        lines.append(
            f"sent at {', '.join(self.at)}; {self.examples} test examples; the client makes {100 * self.share:.1f} % "
            "of all multiplications"
        )
        lines.append(f"task: right {100 * self.task.value:.2f} ± {100 * self.task.stderr:.2f} %")
        head = ("attack", "queries", "score", "label alone", "blind", "without noise", "PSNR", "SSIM", "told, nats")
        rows = []
        for a in self.attacks:
            told = "-" if a.information is None else str(a.information)
            last = (number(a.strength.score), number(a.psnr, 2), number(a.ssim), told)
            rows.append((f"{a.attack}, {a.unit}", a.queries, str(a.score), number(a.label), number(a.blind), *last))
        lines.append(table(head, rows))
        lines += [
            f"{a.attack}, {a.queries} {'query' if a.queries == 1 else 'queries'}: {a.verdict}" for a in self.attacks
        ]
        if self.least is not None:
            lines.append(f"I(x; z) >= {self.least} nats for each query (InfoNCE, which is never above log 100 = 4.6)")
        if self.rate is not None:
            lines.append(str(self.rate))
        if self.reconstruction is not None:
            lines.append(f"unbiased reconstruction of one query: mean squared error of at least {self.reconstruction}")
        if self.no_bound:
            lines.append(f"no bound: {self.no_bound}")
        lines += [f"not made: {reason}" for reason in self.skipped]
        return "\n".join(lines)
