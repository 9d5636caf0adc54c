"""The cases `audit/*` of the bench `privacy`: what a client tells that sends noisy activations of LeNet5.

The task is "greater than 5", the secret is the digit. Noise by class is strengthened until an attacker reads at most
half of the digits; the other kinds of noise get the strength with which the task is as accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyrostoch.bench.case import Case, TrialContext
from pyrostoch.bench.files import read_json
from pyrostoch.bench.published.privacy_networks import SPLITS
from pyrostoch.bench.published.privacy_trial import QUERIES, AuditTrial
from pyrostoch.bench.recipe import AuditRecipe
from pyrostoch.obfuscate import Client, gaussian_epsilon

__all__ = ["AUDIT_CASES", "STRENGTHS", "equal_strength"]

#: Weights of the rate of the noise by class, from which the operating point is chosen.
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# At the operating point the attacker reads at most this share of the digits.
_READ = 0.5
# Between which strengths of the other kinds, weights of the rate or standard deviations, an equal accuracy is looked
# for, and in how many steps.
_BETWEEN = {"predicted": (1e-4, 1.0), "bottleneck": (1e-4, 1.0), "isotropic": (0.03, 30.0)}
_STEPS = 6
_DELTA = 1e-5


def _gate(at: str) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial of noise by class under a soft selection: the curve over its strength, and the audit of one point."""

    def run(context: TrialContext) -> Mapping[str, float]:
        trial, metrics, chosen = AuditTrial(context, at, "gate"), dict[str, float](), STRENGTHS[-1]
        reached = False
        for strength in STRENGTHS:
            client = trial.trained(strength)
            found = trial.step(f"curve {strength:g}", lambda client=client: _point(trial, client))  # type: ignore[misc]
            metrics |= {f"curve/{name}/{strength:g}": value for name, value in found.items()}
            if not reached and found["digit/held-out"] <= _READ:
                chosen, reached = strength, True
        client = trial.trained(chosen)
        metrics |= trial.step("audit", lambda: trial.audited(client))
        return metrics | {"strength": chosen, "strength/reached": float(reached)}

    return run


def _point(trial: AuditTrial, client: Client) -> dict[str, float]:
    read = trial.digits_read(client)
    return {
        "accuracy/held-out": trial.accuracy(client, trial.held_out),
        "accuracy/test": trial.accuracy(client, trial.test),
        "digit/held-out": read["held-out"],
        "digit/test": read["test"],
    }


def _matched(at: str, kind: str) -> Callable[[TrialContext], Mapping[str, float]]:
    """A trial of another kind of noise, as strong as leaves the task the same accuracy on held-out images."""

    def run(context: TrialContext) -> Mapping[str, float]:
        trial = AuditTrial(context, at, kind)
        wanted = _accuracy_of_gate(context)

        def accuracy(strength: float) -> float:
            found: float = trial.step(
                f"accuracy {strength:.6g}", lambda: trial.accuracy(trial.trained(strength), trial.held_out)
            )
            return found

        chosen, reached = equal_strength(accuracy, wanted, *_BETWEEN[kind])
        client = trial.trained(chosen)
        metrics = dict(trial.step("audit", lambda: trial.audited(client)))
        metrics |= {"strength": chosen, "accuracy/held-out": reached, "accuracy/wanted": wanted}
        if kind == "isotropic":
            norm, scale = trial.norm, trial.scale(chosen)
            for count in QUERIES:
                metrics[f"epsilon/{count}"] = gaussian_epsilon(scale, 2.0 * norm, _DELTA, count)
        return metrics

    return run


def equal_strength(
    accuracy: Callable[[float], float], wanted: float, low: float, high: float, steps: int = _STEPS
) -> tuple[float, float]:
    """The strength with which the task is as accurate as is wanted, by bisection of its logarithm.

    Args:
        accuracy: The accuracy under a strength, which falls as it grows.
        wanted: The accuracy that is wanted.
        low: Least strength.
        high: Largest strength.
        steps: How many are tried.

    Returns:
        The one that came nearest, and its accuracy.

    Example:
        >>> strength, reached = equal_strength(lambda strength: 1 - strength, 0.9, 0.01, 1.0, steps=10)
        >>> round(strength, 3), round(reached, 3)
        (0.1, 0.9)
    """
    tried = dict[float, float]()
    for _ in range(steps):
        middle = (low * high) ** 0.5
        tried[middle] = accuracy(middle)
        low, high = (middle, high) if tried[middle] > wanted else (low, middle)
    return min(tried.items(), key=lambda item: abs(item[1] - wanted))


def _accuracy_of_gate(context: TrialContext) -> float:
    """The accuracy on held-out images of the noise by class, at its operating point."""
    metrics = read_json(context.start_folder() / "trial.json")["metrics"]
    return float(metrics[f"curve/accuracy/held-out/{metrics['strength']:g}"])


def _recipe(**settings: Any) -> AuditRecipe:
    return AuditRecipe(batch_size=100, lr=2e-3, schedule="cosine", **settings)


_RECIPES = {
    "quick": _recipe(
        epochs=1, clean_epochs=2, examples=2000, attackers=1000, attack_epochs=2, most_epochs=5, inverted=10
    ),
    "cpu": _recipe(epochs=3, clean_epochs=6, attackers=10_000, attack_epochs=10, most_epochs=60, inverted=100),
    "full": _recipe(epochs=20, clean_epochs=30, attackers=50_000, attack_epochs=20, most_epochs=200, inverted=1000),
}
_KINDS = {
    "gate": "noise by class, soft selection",
    "predicted": "noise by class, selection by predicted class",
    "isotropic": "isotropic noise",
    "bottleneck": "information bottleneck",
}


def _cases() -> tuple[Case, ...]:
    cases = []
    for at in SPLITS:
        for kind, title in _KINDS.items():
            trial = _gate(at) if kind == "gate" else _matched(at, kind)
            start = None if kind == "gate" else f"audit/{at}/gate"
            case = Case(f"audit/{at}/{kind}", f"{at}: {title}", "mnist", _RECIPES, start=start, custom_trial=trial)
            cases.append(case)
    return tuple(cases)


AUDIT_CASES = _cases()
