"""What a run reports of a trained guide: test scores, the ELBO's terms, and the noise it has settled on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from pyrostoch.effects import base_distribution
from pyrostoch.prediction.compare import Comparison, accuracy_by_samples, compare
from pyrostoch.prediction.decompose import Decomposition, decompose
from pyrostoch.prediction.readouts import parse_mode, seeded
from pyrostoch.runs.parties import Party

__all__ = ["CURVE", "MODES", "Scores", "lesson", "noise", "score", "terms"]

MODES = ("mean", "moments", "mc:1", "mc:20")

#: Numbers of samples at which the scores are read out on the way.
CURVE = (1, 2, 5, 10, 20)

# Draws for the ELBO's data term: many where they cost nothing, two where a pass takes seconds.
_DRAWS, _FEW_DRAWS, _LARGE = 10, 2, 10_000
_BINS = 40

# A gap this wide between mean network and average is no noise on any test set worth having.
_GAP, _RATIO = 0.1, 2.0


class Scores:
    """Test scores of a guide in the units of the data.

    Args:
        rows: Scores by mode, plain.
        reliability: For classes: confidence and accuracy by bin, by mode.
        curve: The score against the number of samples.
    """

    def __init__(
        self, rows: list[dict[str, Any]], reliability: dict[str, Any], curve: dict[str, list[Any]] | None
    ) -> None:
        self.rows, self.reliability, self.curve = rows, reliability, curve


def score(party: Party, modes: Sequence[str] = MODES, *, seed: int = 0, curve: Sequence[int] = ()) -> Scores:
    """Score a trained guide on the test part.

    All sampled modes and the curve are read from one pass, so that they agree.

    Args:
        party: Model, guide and data.
        modes: `"mean"`, `"moments"`, `"mc:K"`.
        seed: Seed of the draws.
        curve: Numbers of samples of the curve.

    Returns:
        The scores.

    Raises:
        ValueError: A mode is unknown or given twice.
    """
    if not modes or len(set(modes)) < len(modes):
        raise ValueError(f"modes: expected at least one, and each once, got {list(modes)}")
    draws = {mode: parse_mode(mode) for mode in modes}
    counts = {mode: count for mode, (name, count) in draws.items() if name == "mc"}
    plain = [mode for mode in modes if mode not in counts]
    rows: dict[str, dict[str, Any]] = {}
    bins: dict[str, Any] = {}
    if plain:
        found = compare(party.model, party.guide, party.test, modes=plain, seed=seed)
        rows |= {mode: _row(found, mode, party.unit) for mode in plain}
        bins |= {mode: found.reliability[mode].to_dict() for mode in plain if mode in found.reliability}
    line: dict[str, list[Any]] | None = None
    if counts or curve:
        wanted = {*counts.values(), *curve}
        found = accuracy_by_samples(party.model, party.guide, party.test, sorted(wanted), seed=seed)
        for mode, count in counts.items():
            rows[mode] = {**_row(found, f"mc:{count}", party.unit), "mode": mode}
            if f"mc:{count}" in found.reliability:
                bins[mode] = found.reliability[f"mc:{count}"].to_dict()
        if curve:
            line = _curve([_row(found, f"mc:{count}", party.unit) for count in curve], curve)
    return Scores([rows[mode] for mode in modes], bins, line)


def terms(party: Party, num_samples: int | None = None, *, seed: int = 0) -> Decomposition:
    """The ELBO of the training part in its terms.

    Args:
        party: Model, guide and data.
        num_samples: Draws for the data term; chosen by the size of the training part where it is not given.
        seed: Seed of the draws.

    Returns:
        The terms, in nats; those of a regression are about standardized targets.
    """
    draws = num_samples or (_FEW_DRAWS if party.model.num_data > _LARGE else _DRAWS)
    with seeded(seed, party.train[0].device):
        return decompose(party.model, party.guide, party.train, num_samples=draws)


def lesson(record: dict[str, Any]) -> list[str]:
    """A sentence for each guide whose mean network knows much less than its average.

    That is an accuracy lower by more than 0.1, or an RMSE more than twice as large.

    Args:
        record: The record of a run.

    Returns:
        The sentences.
    """
    found = []
    classes = record["data"]["classes"]
    for entry in record["guides"]:
        # A record read again has "nan" and "inf" for the numbers that are not finite.
        scores = {row["mode"]: float(row["accuracy" if classes else "rmse"]) for row in entry["rows"]}
        first, last = scores.get(MODES[0], math.nan), scores.get(MODES[-1], math.nan)
        if classes and last - first > _GAP:
            words = f"{100 * first:.1f} % by its mean (chance: {100 / classes:.0f} %), {100 * last:.1f} % by 20 samples"
        elif not classes and first > _RATIO * last:
            words = f"RMSE {first:.4f} by its mean, {last:.4f} by 20 samples"
        else:
            continue
        found.append(f"{entry['name']}: {words}: what it knows is in the variances of its weights.")
    return found


def noise(guide: nn.Module, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Histograms of the log alphas, or of the log standard deviations, of each weight site of a guide.

    Args:
        guide: One of the guides that a run can train.
        sites: Names of the sites.

    Returns:
        Site, quantity, edges and counts of each.
    """
    found = []
    for site in sites:
        parameters = guide.parameters_for(site)  # type: ignore[operator]
        if "log_alpha" in parameters:
            # The distribution's own, which is held within bounds that the parameter may leave.
            distribution: Any = base_distribution(guide.site_distribution(site))  # type: ignore[operator]
            quantity, values = "log alpha", distribution.unexpanded_log_alpha
        elif "log_scale" in parameters:
            quantity, values = "log sigma", parameters["log_scale"]
        else:
            quantity, values = "log sigma", parameters["scale"].abs().clamp_min(1e-12).log()
        numbers = values.detach().cpu().double().numpy().ravel()
        numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            continue
        counts, edges = np.histogram(numbers, bins=min(_BINS, max(10, numbers.size // 5)))
        found.append({"site": site, "quantity": quantity, "edges": edges.tolist(), "counts": counts.tolist()})
    return found


def _row(found: Comparison, mode: str, unit: float) -> dict[str, Any]:
    """A row in the units of the data: an RMSE grows with the target's unit, a density shrinks."""
    row = found[mode].to_dict()
    if "rmse" in row:
        row["rmse"], row["rmse_stderr"] = row["rmse"] * unit, row["rmse_stderr"] * unit
        row["nll"] += math.log(unit)
    return row


def _curve(rows: Sequence[dict[str, Any]], samples: Sequence[int]) -> dict[str, list[Any]]:
    key = "accuracy" if "accuracy" in rows[0] else "nll"
    return {
        "samples": list(samples),
        key: [row[key] for row in rows],
        "stderr": [row[f"{key}_stderr"] for row in rows],
    }
