"""The results of a trained guide in a run: test scores, the terms of the ELBO, and histograms of its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyrostoch.effects import base_distribution
from pyrostoch.guides.ratio import free_entries
from pyrostoch.infer.known_labels import KnownLabels
from pyrostoch.likelihoods import Noise
from pyrostoch.prediction.compare import Comparison, accuracy_by_samples, compare
from pyrostoch.prediction.decompose import Decomposition, decompose
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import device_of, parse_mode, seeded
from pyrostoch.protocols import Guide, Inputs, Model
from pyrostoch.runs.config import Config
from pyrostoch.runs.experiment import Experiment
from pyrostoch.runs.registry import short_name

__all__ = [
    "CURVE_SAMPLES",
    "MODES",
    "modes_for",
    "modes_with_rules",
    "noise_of",
    "Scores",
    "elbo_terms",
    "posterior_histograms",
    "result_notes",
    "score",
]

#: The predictive modes in which a run scores each guide.
MODES = ("mean", "moments", "mc:1", "mc:20")
_WITHOUT_MOMENTS = ("mean", "mc:1", "mc:20")

#: Numbers of samples for the curve of the score against the number of samples.
CURVE_SAMPLES = (1, 2, 5, 10, 20)

# Draws for the data term of the ELBO: fewer for more than this many training examples, where a pass takes seconds.
_DRAWS, _FEW_DRAWS, _MANY_EXAMPLES = 10, 2, 10_000
_MAX_BINS = 40

# Differences between mean weights and averaging that are larger than the noise of any test set of useful size: of the
# accuracy, and as a ratio of the RMSE.
_GAP, _RATIO = 0.1, 2.0
# An accuracy below this multiple of chance shows that little was learned.
_CHANCE = 2.0
# So does an RMSE above this share of the targets' standard deviation; noise as much larger than the RMSE is not fitted.
_LITTLE, _WIDE = 0.9, 1.5
_FEW_STEPS = 500


@dataclass(frozen=True, eq=False)
class Scores:
    """Test scores of a guide, in the original units of the target.

    Args:
        rows: One dictionary of scores per mode.
        reliability: For classification: confidence and accuracy by bin, by mode.
        curve: Lists of the numbers of samples, of the score (accuracy, or NLL for a regression) and its standard error.
    """

    rows: list[dict[str, Any]]
    reliability: dict[str, Any]
    curve: dict[str, list[Any]] | None


def modes_for(config: Config, experiment: Experiment) -> tuple[tuple[str, ...], str]:
    """The predictive modes in which a run scores a guide: without moments, where there is no rule for them.

    Args:
        config: The settings.
        experiment: Model, guide and data.

    Returns:
        The modes, and why moments are not among them.
    """
    if config.conditional:
        return _WITHOUT_MOMENTS, ""
    return modes_with_rules(experiment.model, experiment.guide, experiment.test[0][:2])


def modes_with_rules(model: Model, guide: Guide, x: Inputs) -> tuple[tuple[str, ...], str]:
    """The predictive modes that a network has rules for, by a trial.

    Args:
        model: The model.
        guide: The guide.
        x: Some inputs.

    Returns:
        The modes, and why moments are not among them.
    """
    try:
        predict(model, guide, x, mode="moments", device=device_of(model, guide))
    except (ValueError, TypeError) as error:
        return _WITHOUT_MOMENTS, str(error)
    return MODES, ""


def score(
    experiment: Experiment,
    modes: Sequence[str] = MODES,
    *,
    seed: int = 0,
    curve: Sequence[int] = (),
    labels: KnownLabels = None,
) -> Scores:
    """Score a trained guide on the test part.

    All sampled modes and the curve are computed from the draws of one pass, so that they agree.

    Args:
        experiment: Model, guide and data.
        modes: Predictive modes: `"mean"`, `"moments"`, `"mc:K"`.
        seed: Seed of the draws.
        curve: Numbers of samples of the curve; none by default.
        labels: `"known"` hands the targets to layers that are conditional on the class.

    Returns:
        The scores.

    Raises:
        ValueError: A mode is unknown or given twice.
    """
    if not modes or len(set(modes)) < len(modes):
        raise ValueError(f"modes: expected at least one, and each once, got {list(modes)}")
    parsed = {mode: parse_mode(mode) for mode in modes}
    counts = {mode: count for mode, (name, count) in parsed.items() if name == "mc"}
    without_draws = [mode for mode in modes if mode not in counts]
    test: tuple[Any, Any, Any] = experiment.model, experiment.guide, experiment.test
    rows: dict[str, dict[str, Any]] = {}
    bins: dict[str, Any] = {}
    if without_draws:
        comparison = compare(*test, modes=without_draws, seed=seed, labels=labels)
        rows |= {mode: _row(comparison, mode, experiment.target_std) for mode in without_draws}
        reliability = comparison.reliability
        bins |= {mode: reliability[mode].to_dict() for mode in without_draws if mode in reliability}
    points: dict[str, list[Any]] | None = None
    if counts or curve:
        samples = sorted({*counts.values(), *curve})
        comparison = accuracy_by_samples(*test, samples, seed=seed, labels=labels)
        for mode, count in counts.items():
            rows[mode] = {**_row(comparison, f"mc:{count}", experiment.target_std), "mode": mode}
            if f"mc:{count}" in comparison.reliability:
                bins[mode] = comparison.reliability[f"mc:{count}"].to_dict()
        if curve:
            points = _curve([_row(comparison, f"mc:{count}", experiment.target_std) for count in curve], curve)
    return Scores([rows[mode] for mode in modes], bins, points)


def elbo_terms(experiment: Experiment, num_samples: int | None = None, *, seed: int = 0) -> Decomposition:
    """The terms of the ELBO of the training part.

    Args:
        experiment: Model, guide and data.
        num_samples: Draws for the data term; by default chosen by the size of the training part.
        seed: Seed of the draws.

    Returns:
        The terms, in nats; for a regression they are those of the standardized target.
    """
    draws = num_samples or (_FEW_DRAWS if experiment.model.num_data > _MANY_EXAMPLES else _DRAWS)
    with seeded(seed, experiment.train[0].device):
        return decompose(experiment.model, experiment.guide, experiment.train, num_samples=draws)


def result_notes(record: dict[str, Any]) -> list[str]:
    """A sentence for each guide that scores no better than chance, or much worse with means than with averages.

    Much worse is an accuracy lower by more than 0.1, or an RMSE more than twice as large.

    Args:
        record: The record of a run.

    Returns:
        The sentences.
    """
    sentences = []
    classes, config = record["data"]["classes"], record.get("config") or {}
    stochastic = bool(config.get("stochastic"))
    places = "weights or activations" if stochastic else "weights"
    for guide in record["guides"]:
        name = short_name(guide["name"])
        if reason := guide.get("without_moments"):
            sentences.append(f"{name}: no scores by moments: {reason}.")
        # Numbers that are not finite are the strings "nan" and "inf" in a record that was read from a file.
        scores = {row["mode"]: float(row["accuracy" if classes else "rmse"]) for row in guide["rows"]}
        mean, averaged = scores.get(MODES[0], math.nan), scores.get(MODES[-1], math.nan)
        if classes and max(mean, averaged) < _CHANCE / classes:
            weight = float(config.get("rate_weight", 1.0))
            advice = f"; a smaller --rate-weight than {weight:g} lets more through" if stochastic else ""
            text = f"{100 * averaged:.1f} % with 20 samples, where chance is {100 / classes:.0f} %"
            sentences.append(f"{name}: {text}: it has learned little{advice}{_few_steps(record)}.")
            continue
        spread = record["data"].get("target_std")
        if not classes and spread and min(mean, averaged) > _LITTLE * float(spread):
            text = f"RMSE {averaged:.4g} with 20 samples, where the targets' standard deviation is {float(spread):.4g}"
            sentences.append(f"{name}: {text}: it has learned little{_few_steps(record)}.")
            continue
        noise = guide.get("noise")
        if noise and float(noise) > _WIDE * averaged:
            text = f"noise of {float(noise):.4g} beside an RMSE of {averaged:.4g}"
            sentences.append(f"{name}: {text}: its intervals are too wide{_few_steps(record)}.")
        if classes and averaged - mean > _GAP:
            chance = f"chance: {100 / classes:.0f} %"
            text = f"{100 * mean:.1f} % with mean weights ({chance}), {100 * averaged:.1f} % with 20 samples"
        elif not classes and mean > _RATIO * averaged:
            text = f"RMSE {mean:.4f} with mean weights, {averaged:.4f} with 20 samples"
        else:
            continue
        sentences.append(f"{name}: {text}: what it has learned is in the variances of its {places}.")
    return sentences


def _few_steps(record: dict[str, Any]) -> str:
    """Advice where a run had few steps of the optimizer."""
    if not {"epochs", "batch_size"} <= record.keys():
        return ""
    steps = int(record["epochs"]) * -(-int(record["data"]["train"]) // int(record["batch_size"]))
    few = f"; {steps} steps are few: give more --epochs, or a smaller --batch-size than {record['batch_size']}"
    return few if steps < _FEW_STEPS else ""


def noise_of(experiment: Experiment) -> float | None:
    """Standard deviation of the noise of a regression, in the original units of the target; else `None`.

    Args:
        experiment: Model, guide and data.
    """
    scale = getattr(experiment.model.likelihood, "scale", None)
    if not isinstance(scale, Noise) or scale.prior is not None:
        return None
    return float(torch.as_tensor(scale()).detach().max()) * experiment.target_std


def posterior_histograms(guide: object, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Histograms of the log alphas, or of the log standard deviations, of each weight site of a guide.

    Args:
        guide: A guide; one that does not tell its parameters, as a guide of the user's own may be, has no histograms.
        sites: Names of the sites.

    Returns:
        A dictionary for each site with its name, the quantity, and the edges and counts of the bins.
    """
    histograms: list[dict[str, Any]] = []
    known: Any = guide
    if not callable(getattr(guide, "parameters_for", None)):
        return histograms
    for site in sites:
        parameters = known.parameters_for(site)
        if "log_alpha" in parameters:
            # That of the distribution, which is clamped; the parameter may lie outside the bounds.
            distribution: Any = free_entries(base_distribution(known.site_distribution(site)))[0]
            quantity, values = "log alpha", distribution.unexpanded_log_alpha
        elif "log_scale" in parameters:
            quantity, values = "log sigma", parameters["log_scale"]
        elif "scale" in parameters:
            quantity, values = "log sigma", parameters["scale"].abs().clamp_min(1e-12).log()
        else:
            continue
        numbers = values.detach().cpu().double().numpy().ravel()
        numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            continue
        counts, edges = np.histogram(numbers, bins=min(_MAX_BINS, max(10, numbers.size // 5)))
        histograms.append({"site": site, "quantity": quantity, "edges": edges.tolist(), "counts": counts.tolist()})
    return histograms


def _row(comparison: Comparison, mode: str, target_std: float) -> dict[str, Any]:
    """Scores in the original units of the target: RMSE times `target_std`, NLL plus its logarithm."""
    row = comparison[mode].to_dict()
    if "rmse" in row:
        row["rmse"], row["rmse_stderr"] = row["rmse"] * target_std, row["rmse_stderr"] * target_std
        row["nll"] += math.log(target_std)
    return row


def _curve(rows: Sequence[dict[str, Any]], samples: Sequence[int]) -> dict[str, list[Any]]:
    key = "accuracy" if "accuracy" in rows[0] else "nll"
    return {
        "samples": list(samples),
        key: [row[key] for row in rows],
        "stderr": [row[f"{key}_stderr"] for row in rows],
    }
