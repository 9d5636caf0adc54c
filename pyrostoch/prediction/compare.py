"""Scores of one network on held-out data, under several modes of prediction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from pyrostoch._checks import check_count
from pyrostoch.guides import GuideSet
from pyrostoch.guides.temperature import temperatures_of
from pyrostoch.infer.batches import Batches
from pyrostoch.infer.known_labels import GivenLabels, check_labels_around, known_labels, marked
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.comparison import Comparison, ComparisonRow
from pyrostoch.prediction.head_averages import average_for
from pyrostoch.prediction.readouts import (
    batches_for,
    batches_on_device,
    check_guide,
    device_of,
    evaluating,
    parse_mode,
    seeded,
)
from pyrostoch.prediction.scores import HeadScores, comparison_of
from pyrostoch.prediction.settled_kind import SettledKind
from pyrostoch.protocols import Data, Guide, Model

__all__ = ["Comparison", "ComparisonRow", "accuracy_by_samples", "compare"]


def compare(
    model: Model,
    guide: Guide,
    data: Data,
    *,
    modes: Sequence[str] | None = None,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    labels: GivenLabels = None,
) -> Comparison:
    """Score a network under several modes of prediction: accuracy, NLL, Brier score and calibration, or RMSE and NLL.

    The scores are accumulated batch by batch, and no prediction is kept. Targets that the likelihood masks are left
    out. Where the accuracy of `"mean"` differs from that of many samples, the network has stored information in the
    variances of its weights.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: Held-out data: `(x, y)`, a `Dataset` or a `DataLoader`.
        modes: Modes as for `predict`: `"mean"`, `"moments"`, `"linearized"`, `"mc:K"`. By default `"mean"`, `"mc:1"`
            and `"mc:20"`; for a guide that is a set of K members `"mc:1"` and `"mc:K"`, at most 100.
        batch_size: Largest number of examples that run through the network at a time; fewer if activations are large.
        device: The model's device, to which the data are moved batch by batch; found by default.
        seed: Seed of the draws, the same for every mode; torch's random state is restored afterwards. Without it, draws
            continue from the present random state.
        labels: `"known"` hands the targets to layers that are conditional on the class (`layers.Conditional`), a
            function of the targets what it makes of them; every row then says so. By default nothing of the targets
            reaches the network.

    Returns:
        A row for each mode, and the bins of the reliability diagrams.

    Raises:
        ValueError: A mode is unknown or given twice; or the data are empty, not finite or do not fit the model.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 2), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=20)
        >>> x = torch.randn(20, 2)
        >>> scores = compare(model, ps.guides.Additive(model), (x, (x[:, 0] > 0).long()), modes=("mean", "mc:5"))
        >>> [row.mode for row in scores.rows], 0 <= scores["mc:5"].accuracy <= 1
        (['mean', 'mc:5'], True)

    References:
        Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", 2017; Brier, "Verification of
        forecasts expressed in terms of probability", 1950.
    """
    modes = _default_modes(guide) if modes is None else modes
    names = [modes] if isinstance(modes, str) else list(modes)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"modes: expected at least one, and each only once, got {names}")
    parsed = {mode: parse_mode(mode) for mode in names}
    check_guide(guide)
    device = device_of(model, guide, device)
    found: dict[str, tuple[int, HeadScores]] = {}
    with known_labels(model, labels):
        batches = batches_for(model, data, batch_size)
        check_labels_around(model, batches.num_data)
        for mode, (name, draws) in parsed.items():
            sampler = PosteriorSampler(model, guide, name, draws)
            with seeded(seed, device), evaluating(model, guide):
                scores = _scores_of(model, SettledKind(sampler), batches, device)
                found[mode] = (sampler.num_samples, scores)
    return replace(comparison_of(model, found), temperatures=temperatures_of(guide))


def _default_modes(guide: object) -> Sequence[str]:
    members = len(guide) if isinstance(guide, GuideSet) else 0
    return ("mean", "mc:1", "mc:20") if members < 2 else ("mc:1", f"mc:{min(members, 100)}")


def _scores_of(model: Model, kind: SettledKind, batches: Batches, device: torch.device | None) -> HeadScores:
    """The scores of one mode on all examples."""
    scores = HeadScores(model)
    for batch, targets in batches_on_device(batches, device):
        start = time.perf_counter()
        scores.labels = marked(model, batch)
        for average in kind.averages(batch, targets):
            scores.update(average)
        _synchronize(device)
        scores.seconds += time.perf_counter() - start
    return scores


def accuracy_by_samples(
    model: Model,
    guide: Guide,
    data: Data,
    samples: Sequence[int] = (1, 2, 5, 10, 20),
    *,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    labels: GivenLabels = None,
) -> Comparison:
    """Scores as a function of the number of samples averaged, from one set of draws: K samples are the first K draws.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: Held-out data: `(x, y)`, a `Dataset` or a `DataLoader`.
        samples: Numbers of samples.
        batch_size: Largest number of examples that run through the network at a time; fewer if activations are large.
        device: As in `compare`.
        seed: As in `compare`.
        labels: As in `compare`.

    Returns:
        A row `"mc:K"` for each K in rising order; its seconds are those of the first K draws.

    Raises:
        ValueError: `samples` is empty or has entries that are not positive whole numbers; or the data do not fit.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(), num_data=20)
        >>> x = torch.randn(20, 2)
        >>> scores = accuracy_by_samples(model, ps.guides.Additive(model), (x, x[:, :1]), samples=(1, 3))
        >>> [row.mode for row in scores.rows]
        ['mc:1', 'mc:3']
    """
    wanted = sorted({check_count("samples", k) for k in samples})
    if not wanted:
        raise ValueError("samples: expected whole numbers from 1 up, got none")
    check_guide(guide)
    device = device_of(model, guide, device)
    scores = {k: HeadScores(model) for k in wanted}
    with known_labels(model, labels), seeded(seed, device), evaluating(model, guide):
        sampler = PosteriorSampler(model, guide, "mc", wanted[-1])
        batches = batches_for(model, data, batch_size)
        check_labels_around(model, batches.num_data)
        for batch, targets in batches_on_device(batches, device):
            for found in scores.values():
                found.labels = marked(model, batch)
            for x, examples in sampler.split_batch(batch, targets):
                average, spent = average_for(model, targets[examples]), 0.0
                start = time.perf_counter()
                for k, statistics in enumerate(sampler.run(x, average.statistics), 1):
                    average.add(statistics)
                    if k in scores:
                        _synchronize(device)
                        spent += time.perf_counter() - start
                        scores[k].update(average)
                        scores[k].seconds += spent
                        start = time.perf_counter()
    table = comparison_of(model, {f"mc:{k}": (k, found) for k, found in scores.items()})
    return replace(table, temperatures=temperatures_of(guide))


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
