"""Predictions: from the mean of the weights, averaged over posterior draws, or from propagated moments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pyrostoch._checks import check_finite
from pyrostoch._inputs import count_examples, to_device
from pyrostoch._structure import flat_inputs, with_labels
from pyrostoch._targets import Target
from pyrostoch.infer.items import check_known_classes, reader_of
from pyrostoch.infer.known_labels import check_labels_around, known_labels, marked
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.prediction.head_averages import HeadAverages, average_for
from pyrostoch.prediction.inputs import compute_device, split
from pyrostoch.prediction.output_draws import draws as draws_of
from pyrostoch.prediction.piece_graph import Fields
from pyrostoch.prediction.prediction import Prediction
from pyrostoch.prediction.predictor import BAR_DELAY, Predictor, prediction_of
from pyrostoch.prediction.readouts import check_guide, evaluating, parse_mode, seeded
from pyrostoch.prediction.saved import SavedPrediction, parts_of, write_parts
from pyrostoch.protocols import FlatInputs, GivenTargets, Guide, Inputs, Model

__all__ = ["predict"]


@overload
def predict(
    model: Model,
    guide: Guide,
    x: Inputs,
    *,
    y: GivenTargets | Target | None = None,
    mode: str = "mc",
    num_samples: int | None = None,
    joint: bool = False,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    labels: Tensor | None = None,
    covariance: bool = False,
    out: None = None,
    progress: bool = True,
) -> Prediction: ...


@overload
def predict(
    model: Model,
    guide: Guide,
    x: Inputs | DataLoader[Any],
    *,
    out: str | os.PathLike[str],
    mode: str = "mc",
    num_samples: int | None = None,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> SavedPrediction: ...


def predict(
    model: Model,
    guide: Guide,
    x: Inputs | DataLoader[Any],
    *,
    y: GivenTargets | Target | None = None,
    mode: str = "mc",
    num_samples: int | None = None,
    joint: bool = False,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    labels: Tensor | None = None,
    covariance: bool = False,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Prediction | SavedPrediction:
    r"""Predict with a Bayesian network.

    Mode `"mc"` averages probabilities (not logits) over draws, $p(y \mid x) \approx \frac1K \sum_k p(y \mid x, w_k)$.
    Mode `"mean"` replaces every weight by its mean and runs once. Mode `"moments"` also runs once, but propagates the
    mean and the variance of every activation, and averages over a Gaussian of the output (`moments_error` tells how far
    that can be trusted). Mode `"linearized"` takes the output as linear in the weights around their means, which makes
    it Gaussian for any network, and averages over it in the same way. The network is in evaluation mode throughout,
    whether weights are drawn or not, and every submodule is put back into its own mode afterwards. Several draws run
    at a time, in a fixed amount of memory that does not grow with K.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)` that returns the observations'
            distribution.
        guide: A Pyro guide of that model.
        x: Inputs: a tensor; a tuple of inputs; or a dictionary, the network's keywords. The first axis of each counts
            the examples, unless the model's `in_dims` says otherwise.
        y: Targets, for their `log_density`.
        mode: `"mean"`; `"mc"` or `"mc:K"`; or `"moments"`, which propagates variances and averages over fixed points of
            the output's Gaussian. `"moments:closed"` uses a closed approximation for the class probabilities instead,
            `"moments:full"` propagates full covariances (memory grows with the square of a layer's width),
            `"moments:mc"` or `"moments:mc:K"` samples through operations without a rule, draws the weights that moments
            cannot replace, and averages over K such passes; they can be combined, as in `"moments:full:mc:5:closed"`.
            `"linearized"`, and `"linearized:closed"`, needs the mean and the covariance of every weight; its cost is a
            derivative by all weights for each output of each example.
            `"noise-free"` is `"mean"` without the noise of stochastic neurons.
        num_samples: The K of `"mc"` and `"moments:mc"`; 20 by default, and 1 where nothing is drawn.
        joint: Whether `"mc"` uses each draw of the weights for all examples. Otherwise, a layer draws anew for each one
            where it can (local reparameterization), which leaves the distribution of each example's prediction exact
            and makes the Monte-Carlo errors of the examples independent.
        batch_size: Largest number of examples that run through the network at a time; fewer if activations are large.
            Where examples meet in the network (`BayesianModel.examples_meet`), all of them run together.
        device: The model's device, to which the inputs are moved batch by batch. By default they must be there already.
        seed: Seed of the draws; torch's random state is restored afterwards. Without it, draws continue from the
            present random state.
        labels: Known classes, for layers that are conditional on the class (`layers.Conditional`), or a selection of
            pixels by them, boolean; the prediction then says so. `y` never reaches the network.
        covariance: With `joint=True`, whether to give the covariance of the predictive means between examples, from
            the same number of draws; it has the square of their number of entries.
        out: A folder into which the prediction is written, part by part of `batch_size` examples, so that it need not
            fit into memory; x may then be a `DataLoader` in a fixed order, whose targets are left out. After an
            interruption, the same call makes the parts that are missing. Each part has a seed of its own.
        progress: Whether to show a progress bar on stderr if it takes more than ten seconds.

    Returns:
        The prediction; with `out`, what opens its files.

    Raises:
        BlockingIOError: Another process writes into `out`.
        TypeError: Inputs are not tensors, the guide is not callable, or the model has no method `observation`.
        ValueError: The mode is unknown or contradicts `num_samples`; inputs are empty, not finite, or on another device
            than the model; targets do not fit; the guide lacks a site; the prediction is NaN; the observations have
            no mean and no targets are given; or `out` holds another prediction.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> prediction = predict(model, ps.guides.Additive(model), torch.zeros(5, 2), mode="mc:4")
        >>> prediction.probs.shape, prediction.num_samples
        (torch.Size([5, 3]), 4)

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations",
        2018, on networks for which `"mean"` fails; Wu et al., "Deterministic variational inference for robust Bayesian
        neural networks", 2019, on moments.
    """
    check_guide(guide)
    name, draws = parse_mode(mode, num_samples)
    settings: Any = {"mode": mode, "num_samples": num_samples, "batch_size": batch_size, "compile": False}
    if out is not None:
        if y is not None or labels is not None or joint or covariance:
            raise ValueError("predict out=: it writes predictions of inputs; leave out y, labels, joint and covariance")
        predictor = Predictor(model, guide, device=device, **settings)

        def part(inputs: Any, own: int) -> Prediction:
            return predictor(inputs, seed=own)

        kept = {"mode": name, "num_samples": draws, "seed": seed, "batch_size": batch_size}
        whole = x if isinstance(x, DataLoader) else flat_inputs(x, getattr(model, "target", None))
        parts = tqdm(parts_of(model, whole, batch_size), "predict", delay=BAR_DELAY, disable=not progress, unit="part")
        return write_parts(Path(out), parts, part, (model, guide), kept)
    if isinstance(x, DataLoader):
        raise TypeError("predict: expected inputs, got a DataLoader; its predictions are written into a folder, out=")
    if not (joint and name == "mc") and not covariance:
        predictor = Predictor(model, guide, device=device, seed=seed, **settings)
        return predictor(x, y=y, labels=labels, progress=progress)
    given = flat_inputs(x, getattr(model, "target", None))
    targets = None if y is None else reader_of(model).read(y, "targets y")
    if labels is not None:
        check_known_classes(labels, None, "predict labels")
        given = with_labels(given, labels)
    with known_labels(model, None if labels is None else "known"):
        check_labels_around(model, count_examples(given, getattr(model, "in_dims", 0)))
        sampler = PosteriorSampler(model, guide, name, draws, joint=joint and name == "mc")
        # First, since it may be refused.
        found = _covariance(model, guide, given, sampler, batch_size, device, seed) if covariance else None
        rows = _joint(model, guide, given, targets, sampler, batch_size, device, seed)
        known = marked(model, given)
    return prediction_of(model, rows, sampler, known, **({} if found is None else {"covariance": found}))


# Bytes that a covariance may take.
_MAX_COVARIANCE = 8 * 2**30


def _covariance(
    model: Model,
    guide: Guide,
    x: FlatInputs,
    sampler: PosteriorSampler,
    batch_size: int,
    device: str | torch.device | None,
    seed: int | None,
) -> Tensor:
    """The covariance over draws of the means of all examples, in float64."""
    if not sampler.joint or sampler.num_samples < 2:
        raise ValueError(
            "covariance=True: it is that over draws which all examples share; give joint=True, mode='mc' and at least "
            "2 samples"
        )
    if not isinstance(model, BayesianModel):
        raise TypeError(f"covariance=True: expected a BayesianModel, got {type(model).__name__}")
    if model.likelihood.head_names:
        raise ValueError("covariance=True: a likelihood of several heads has several means; use draws(..., head=)")
    settings: Any = {"batch_size": batch_size, "device": device, "seed": seed}
    count = (count_examples(x, model.in_dims) or 1) * draws_of(model, guide, x, 1, **settings).means[0, 0].numel()
    size = 8 * count**2
    if size > _MAX_COVARIANCE:
        raise ValueError(
            f"covariance=True: {count} means have a covariance of {size / 2**30:.1f} GiB, more than "
            f"{_MAX_COVARIANCE / 2**30:.0f} GiB; ask for fewer examples, or use pyrostoch.draws and its means"
        )
    means = draws_of(model, guide, x, sampler.num_samples, **settings).means.double().flatten(1)
    centered = means - means.mean(0)
    return centered.T @ centered / (len(means) - 1)


def _joint(
    model: Model,
    guide: Guide,
    x: FlatInputs,
    y: Target | None,
    sampler: PosteriorSampler,
    batch_size: int,
    device: str | torch.device | None,
    seed: int | None,
) -> list[Fields]:
    """What is predicted from draws that all examples share, for each piece."""
    batches = split(model, x, y, batch_size)
    target = compute_device(x, model, guide, device)
    check_finite("inputs x", x)

    def pieces() -> Iterator[tuple[FlatInputs, DrawAverage | HeadAverages]]:
        for x_batch, y_batch in batches:
            y_batch = None if y_batch is None else y_batch.to(target)
            for x_piece, rows in sampler.split_batch(to_device(x_batch, target), y_batch):
                yield x_piece, average_for(model, None if y_batch is None else y_batch[rows])

    # Inputs are moved to the device again for each chunk of draws, so that only one batch of them is there.
    averages: list[DrawAverage | HeadAverages] = []
    with seeded(seed, target), evaluating(model, guide):
        for chunk in sampler.draw_chunks(next(pieces())[0]):
            for index, (piece, average) in enumerate(pieces()):
                averages += [average] if index == len(averages) else []
                for statistics in chunk.run_together(piece, averages[index].statistics):
                    averages[index].add_all(statistics)
    return [average.results() for average in averages]
