"""The metrics of an audit, by name, for the bench `privacy`: accuracies and shares as fractions, errors and nats."""

from __future__ import annotations

from pyrostoch.obfuscate.audit_record import AttackResult, Audit

__all__ = ["attack_numbers", "audit_numbers"]

_NAMES = {
    "reconstruction": "mse",
    "optimization, normal prior": "searched/normal",
    "optimization, generative prior": "searched/generative",
}


def attack_numbers(name: str, row: AttackResult) -> dict[str, float]:
    """The metrics of one attack with one number of queries.

    Args:
        name: Begins the metrics' names; what is read of attributes is in percent in the result, and a fraction here.
        row: The result.
    """
    part = 1.0 if row.information is None else 100.0
    metrics = {
        f"{name}/{row.queries}": row.score.value / part,
        f"{name}/label": row.label / part,
        f"{name}/blind": row.blind / part,
        f"{name}/noise-free": row.strength.score / part,
        f"{name}/enough": float(row.strength.enough),
        f"{name}/stopped/{row.queries}": float(row.stopped),
        f"{name}/counts/{row.queries}": float(row.strength.enough and row.stopped and row.reads_without_noise),
    }
    if row.information is not None:
        metrics[f"{name}/told/{row.queries}"] = row.information.value
    if row.psnr is not None and row.ssim is not None and row.ssim_label is not None:
        metrics[f"{name}/psnr/{row.queries}"] = row.psnr
        metrics[f"{name}/ssim/{row.queries}"] = row.ssim
        metrics[f"{name}/ssim/label"] = row.ssim_label
    return metrics


def audit_numbers(found: Audit) -> dict[str, float]:
    """The metrics of an audit.

    Args:
        found: The audit.
    """
    metrics = {"accuracy/sent": found.task.value, "client/share": found.share}
    for row in found.attacks:
        metrics |= attack_numbers(_NAMES.get(row.attack, row.attack), row)
    if found.rate is not None:
        metrics["bound/rate"] = found.rate.rate.value
    if found.least is not None:
        metrics["bound/least"] = found.least.value
    if found.reconstruction is not None:
        metrics["bound/unbiased"] = found.reconstruction.value
    return metrics
