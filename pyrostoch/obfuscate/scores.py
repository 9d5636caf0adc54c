"""The score of an attack, beside that of a guess from the task label alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrostoch.metrics import psnr, ssim
from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.obfuscate.attackers import Attribute
from pyrostoch.obfuscate.audit_record import AttackResult, Strength

__all__ = ["LONGER", "attack_result", "estimate", "judged"]

#: How many times the budget an attacker gets where it is tried whether that would help.
LONGER = 10
# How much better it may then be without noise: points of accuracy, or a share of the squared error.
_POINTS, _SHARE = 1.0, 0.05

Pair = tuple[Tensor, Tensor]


def attack_result(
    name: str,
    attack: Any,
    output: Tensor,
    own: Pair,
    labels: Pair,
    *,
    queries: int,
    strength: Strength,
    epochs: int,
    stopped: bool,
    value_range: float,
) -> AttackResult:
    """The score of what an attacker has read, with standard errors over examples.

    Args:
        name: Name of the attack.
        attack: `Attribute` or `Reconstruction`.
        output: What it has read of the test examples.
        own: What it wants to know, of the attacker's examples and of the test examples.
        labels: The task labels that the client might send instead, of both.
        queries: Number of queries.
        strength: How strong it is without noise.
        epochs: How long it was trained on noise.
        stopped: Whether it had learned all that it could.
        value_range: The largest value of an image less the smallest one.
    """
    target, y, y_test = own[1], labels[0], labels[1]
    scores = attack.score(output, target)
    by_label = _guess(attack, own[0], y, y_test)
    blind = _guess(attack, own[0], torch.zeros_like(y), torch.zeros_like(y_test))
    labeled = attack.score(by_label, target)
    score, label = estimate(scores), float(labeled.mean())
    values: dict[str, Any] = dict.fromkeys(("psnr", "ssim", "ssim_label", "information", "beyond_nats"))
    values["beyond"] = estimate(scores - labeled if isinstance(attack, Attribute) else labeled - scores)
    if isinstance(attack, Attribute):
        frequencies = torch.bincount(target, minlength=attack.num_classes).double() / len(target)
        entropy = float(torch.special.entr(frequencies).sum())
        told = estimate(entropy - attack.loss(output.double(), target))
        values["information"] = told
        # Half a count for every attribute, so that one that was never seen has a probability.
        guess = ((by_label + 0.5) / (by_label + 0.5).sum(1, keepdim=True)).log()
        of_label = torch.nn.functional.nll_loss(guess, target, reduction="none")
        values["beyond_nats"] = estimate(of_label - attack.loss(output.double(), target))
    elif target.dim() == 4:
        values["psnr"] = psnr(score.value, value_range)
        values["ssim"] = float(ssim(output, target, value_range).mean())
        values["ssim_label"] = float(ssim(by_label, target, value_range).mean())
    return AttackResult(
        attack=name,
        unit=attack.unit,
        queries=queries,
        score=score,
        label=label,
        blind=float(attack.score(blind, target).mean()),
        strength=strength,
        epochs=epochs,
        stopped=stopped,
        **values,
    )


def judged(attack: Any, scores: Tensor, longer: Tensor) -> Strength:
    """The strength of an attacker, by its scores without noise.

    Args:
        attack: `Attribute` or `Reconstruction`.
        scores: Its scores of the test examples with its budget.
        longer: Those with `LONGER` times as much.
    """
    score, better = estimate(scores), float(longer.double().mean())
    gain = better - score.value if isinstance(attack, Attribute) else score.value - better
    enough = gain <= (_POINTS if isinstance(attack, Attribute) else _SHARE * score.value)
    return Strength(score.value, better, enough, score.stderr)


def _guess(attack: Any, own: Tensor, y: Tensor, y_test: Tensor) -> Tensor:
    """The best guess from a label alone: the mean input of its class, or the most frequent attribute."""
    found = []
    for c in range(int(torch.cat([y, y_test]).max()) + 1):
        chosen = own[y == c] if bool((y == c).any()) else own
        if isinstance(attack, Attribute):
            found.append(torch.bincount(chosen, minlength=attack.num_classes).double())
        else:
            found.append(chosen.mean(0))
    return torch.stack(found)[y_test]


def estimate(values: Tensor) -> Estimate:
    """The mean of values over examples, with its standard error.

    Args:
        values: A value for each example.
    """
    mean = RunningMean()
    mean.update(values)
    return mean.compute()
