"""Predictions for the rows of a CSV file, or for images, written to a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import check_count
from pyrostoch.data import ImageSchema, Schema, image_files, read_table
from pyrostoch.prediction.output_draws import Draws, draws
from pyrostoch.prediction.readouts import seeded
from pyrostoch.runs.experiment import Experiment
from pyrostoch.safefile import temporary_name

__all__ = ["QUANTILES", "predict_images", "predict_rows"]

#: Quantiles of a regression's predictions.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Numbers that are drawn of each example for its quantiles, at least.
_LEAST_NUMBERS = 2000
_IMAGES_AT_ONCE = 500


def predict_rows(
    experiment: Experiment, schema: Schema, path: Path, out: Path, *, samples: int = 100, seed: int = 0
) -> dict[str, list[str]]:
    """Predict every row of a CSV file; the results are written block by block, and appear as a whole or not at all.

    Of a regression a row has mean, standard deviation, quantiles and the share of the variance that is epistemic; of a
    classification the class, the probability of each, the entropy in nats and its epistemic share.

    Args:
        experiment: Model and guide.
        schema: How rows become inputs.
        path: The rows, with the columns of the training; others are ignored.
        out: The file that is written.
        samples: Draws that are averaged.
        seed: Seed of the draws, which are the same for all rows.

    Returns:
        Categories that no training row had, by column.

    Raises:
        ValueError: A column is missing, or a value is none of its column.
        FileNotFoundError: There is no such file.
    """
    check_count("samples", samples)
    temporary, unseen = temporary_name(out), dict[str, set[str]]()
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_header(schema))
            for first, block in read_table(path):
                schema.check_header([*block], str(path))
                if not block[next(iter(block))]:
                    raise ValueError(f"{path}: it has a header, but no rows")
                for name, values in schema.unseen(block).items():
                    unseen.setdefault(name, set()).update(values)
                writer.writerows(_predicted(experiment, schema, schema.inputs(block, str(path), first), samples, seed))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return {name: sorted(values) for name, values in unseen.items()}


def predict_images(
    experiment: Experiment, schema: ImageSchema, path: Path, out: Path, *, samples: int = 100, seed: int = 0
) -> int:
    """Predict images; a row has the file, the class, the probability of each, the entropy and its epistemic share.

    Args:
        experiment: Model and guide.
        schema: How images become inputs.
        path: A file, or a folder of images and of folders of these.
        out: The CSV file that is written, as a whole or not at all.
        samples: Draws that are averaged.
        seed: Seed of the draws, which are the same for all images.

    Returns:
        The number of files in the folder that have no ending of images, and were left out.

    Raises:
        ValueError: There is no image, or one that cannot be taken as it is.
        FileNotFoundError: There is no such file or folder.
    """
    check_count("samples", samples)
    paths, temporary = image_files(path), temporary_name(out)
    like = experiment.train[0]
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *_class_header(schema.classes)])
            for start in range(0, len(paths), _IMAGES_AT_ONCE):
                some = paths[start : start + _IMAGES_AT_ONCE]
                x = torch.from_numpy(schema.inputs(some)).to(like.device, like.dtype) / 255.0
                found = draws(experiment.model, experiment.guide, x, samples, seed=seed)
                rows = zip(some, _classes(schema.classes, found.probs), strict=True)
                writer.writerows([name, *row] for name, row in rows)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    folder = Path(path).expanduser()
    files = [each for each in folder.rglob("*") if each.is_file() and each.name[0] != "."] if folder.is_dir() else paths
    return len(files) - len(paths)


def _class_header(classes: tuple[str, ...]) -> list[str]:
    return ["class", *(f"p({name})" for name in classes), "entropy", "epistemic_share"]


def _header(schema: Schema) -> list[str]:
    if schema.task == "regression":
        return ["mean", "sd", *(f"q{round(100 * q):02d}" for q in QUANTILES), "epistemic_share"]
    return _class_header(schema.classes)


def _predicted(experiment: Experiment, schema: Schema, inputs: Any, samples: int, seed: int) -> Iterator[list[Any]]:
    """The predictions of some rows."""
    like = experiment.train[0]
    x = torch.as_tensor(inputs, dtype=like.dtype, device=like.device)
    found = draws(experiment.model, experiment.guide, x, samples, seed=seed)
    if schema.task == "classification":
        yield from _classes(schema.classes, found.probs)
        return
    with torch.no_grad():
        noise = torch.stack([found.distribution(draw).variance for draw in range(len(found))])[..., 0]
    means = found.means[..., 0]
    epistemic = means.var(0, correction=0)
    total = noise.mean(0) + epistemic
    scale, shift = schema.target_std, schema.target_mean
    with seeded(seed, like.device):
        quantiles = _quantiles(found) * scale + shift
    parts = [means.mean(0) * scale + shift, total.sqrt() * scale, *quantiles, epistemic / total]
    yield from ([f"{value:.7g}" for value in row] for row in torch.stack(parts, 1).tolist())


def _quantiles(found: Draws) -> Tensor:
    """Quantiles of the average over draws, from numbers drawn of each."""
    each = -(-_LEAST_NUMBERS // len(found))
    numbers = [found.distribution(draw).sample(torch.Size([each]))[..., 0] for draw in range(len(found))]
    drawn = torch.cat(numbers)
    return torch.quantile(drawn, torch.tensor(QUANTILES, dtype=drawn.dtype, device=drawn.device), dim=0)


def _classes(classes: tuple[str, ...], probs: Tensor) -> Iterator[list[Any]]:
    average = probs.mean(0)
    total, aleatoric = _entropy(average), _entropy(probs).mean(0)
    share = (total - aleatoric).clamp_min(0.0) / total.clamp_min(1e-12)
    rows = zip(average.tolist(), total.tolist(), share.tolist(), strict=True)
    for numbers, entropy, epistemic in rows:
        best = classes[max(range(len(numbers)), key=numbers.__getitem__)]
        yield [best, *(f"{number:.7g}" for number in (*numbers, entropy, epistemic))]


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)
