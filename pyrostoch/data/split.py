"""A data set in memory: its training and test parts as tensors, and what is needed to build a model for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pyrostoch.data.image_schema import ImageSchema
from pyrostoch.data.schema import Schema

__all__ = ["DataSplit", "stratified"]


@dataclass(frozen=True, eq=False)
class DataSplit:
    """The training and test parts of a data set.

    For regression, features and target are standardized, z = (v - mean) / std, with the statistics of the TRAINING part
    alone (std with divisor n; a constant column is only centered). To undo it for the target, with `mean, std =
    split.target_scale`: a prediction is y * std + mean, a standard deviation or RMSE is multiplied by std, a variance
    by std², and log(std) is subtracted from the log density of each example, in nats.

    Args:
        name: Name for `load`, such as `"mnist"` or `"uci:yacht"`.
        title: Display name. The JPEG re-encoding of CIFAR-10 is "CIFAR-10 (JPEG q75)".
        task: `"classification"` or `"regression"`.
        x_train: Inputs, shape (n_train, *input_shape); images in [0, 1].
        y_train: Labels (n_train,) int64, or standardized targets (n_train, 1).
        x_test: Inputs, shape (n_test, *input_shape).
        y_test: Like `y_train`, with n_test rows.
        num_classes: Number of classes; None for regression.
        input_shape: Shape of one input.
        source: Folder of the files, or `"bundled"`.
        schema: How rows, or image files, became numbers, where the data are a table or a folder of images.
        target_scale: For regression the (mean, std) of the training target, in its original units; None for
            classification.

    Example:
        >>> from pyrostoch.data import load
        >>> print(load("digits"))
        Handwritten digits (UCI) [digits]: 10 classes, input 1 x 8 x 8; 1,437 training and 360 test examples; bundled
    """

    name: str
    title: str
    task: Literal["classification", "regression"]
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int | None
    input_shape: tuple[int, ...]
    source: str
    target_scale: tuple[float, float] | None = None
    schema: Schema | ImageSchema | None = None

    def holdout(self, fraction: float, seed: int) -> DataSplit:
        """Split the training part for model selection; the test part is left out.

        For classification the draw is stratified by class. Standardized values keep the scale of the whole training
        part, so scores on the held-out part can be compared with those on the test part.

        Args:
            fraction: Fraction of the training part to hold out, in (0, 1).
            seed: Seed of the draw; the global random state is neither used nor changed.

        Returns:
            A split whose `x_train, y_train` are the remaining examples in their original order, and whose `x_test,
            y_test` are the held-out examples; its title says so.

        Raises:
            ValueError: If the fraction is not in (0, 1), or one of the two parts would be empty.

        Example:
            >>> from pyrostoch.data import load
            >>> inner = load("digits").holdout(0.1, seed=0)
            >>> len(inner.x_train), len(inner.x_test)
            (1293, 144)
        """
        total = len(self.x_train)
        if not 0.0 < fraction < 1.0:
            raise ValueError(
                f"{self.name}: holdout expects a fraction between 0 and 1 (both excluded), got {fraction}."
            )
        count = round(fraction * total)
        if not 0 < count < total:
            raise ValueError(f"{self.name}: holding out {fraction} of {total} training examples leaves a part empty.")
        generator = torch.Generator().manual_seed(seed)
        held = torch.zeros(total, dtype=torch.bool)
        if self.task == "classification":
            held[stratified(self.y_train, count, generator)] = True
        else:
            held[torch.randperm(total, generator=generator)[:count]] = True
        return replace(
            self,
            title=f"{self.title}, held-out training part",
            x_train=self.x_train[~held],
            y_train=self.y_train[~held],
            x_test=self.x_train[held],
            y_test=self.y_train[held],
        )

    def __str__(self) -> str:
        """Return one line: name, task, sizes and source."""
        kind = f"{self.num_classes} classes" if self.task == "classification" else "regression"
        shape = " x ".join(str(size) for size in self.input_shape)
        return (
            f"{self.title} [{self.name}]: {kind}, input {shape}; {len(self.x_train):,} training and "
            f"{len(self.x_test):,} test examples; {self.source}"
        )

    def __repr__(self) -> str:
        """Return the same line as `str`; the tensors are not printed."""
        return f"DataSplit({self})"


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw positions in proportion to the classes; rounding is by the largest remainders.

    Args:
        labels: Labels, (n,).
        count: How many positions.
        generator: Generator of the draw.
    """
    sizes = labels.bincount()
    share = sizes.double() * count / len(labels)
    quota = share.floor().long()
    quota[(share - quota).argsort(descending=True, stable=True)[: count - int(quota.sum())]] += 1
    drawn = []
    for label, class_count in enumerate(quota.tolist()):
        positions = (labels == label).nonzero().flatten()
        drawn.append(positions[torch.randperm(len(positions), generator=generator)[:class_count]])
    return torch.cat(drawn)
