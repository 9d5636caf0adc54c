"""Likelihoods of classes and of binary targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._manual import see
from pyrostoch.likelihoods.base import Likelihood, check_labels, elementwise, per_example
from pyrostoch.likelihoods.pseudo import WeightedCategorical
from pyrostoch.moments import Moments
from pyrostoch.moments.bounds import softmax_bound
from pyrostoch.moments.predictive import Closed, softmax_under_gaussian

__all__ = ["Bernoulli", "Categorical"]


class Categorical(Likelihood):
    r"""One of C classes per example, or per position of an example; the network's output `(batch, ..., C)` is logits.

    With `class_weights` the log probability of a label is multiplied by the weight of its class: a pseudo-likelihood,
    whose posterior is no longer that of the data. Predictions and scores are not weighted.

    Args:
        axis: The axis of the classes: the last one, or 1, where torch's `cross_entropy` has it, for outputs
            (batch, C, \*positions). It is never guessed.
        ignore_index: A label that stands for none, such as -100: such targets are missing, and left out.
        class_weights: A weight for each class, (C,).
        output: Which part of the network's output is the logits; see `Likelihood`.

    Raises:
        ValueError: A setting is none of those.

    Example:
        >>> Categorical()(torch.zeros(4, 2)).log_prob(torch.tensor([0, 1, 0, 1])).exp()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
        >>> segmentation = Categorical(axis=1, ignore_index=-100)
        >>> segmentation(torch.zeros(1, 2, 3)).log_prob(torch.tensor([[0, 1, -100]]))
        tensor([-1.3863])
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        axis: int = -1,
        ignore_index: int | None = None,
        class_weights: Tensor | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__(output=output, ignore_index=ignore_index)
        if axis not in (-1, 1):
            raise ValueError(f"likelihood Categorical axis: expected -1 or 1, got {axis!r}")
        self.axis = axis
        if class_weights is not None:
            weights = torch.as_tensor(class_weights, dtype=torch.get_default_dtype())
            if weights.dim() != 1 or not bool(((weights >= 0) & torch.isfinite(weights)).all()):
                raise ValueError(
                    "likelihood Categorical class_weights: expected numbers from 0 up of shape (classes,), got "
                    f"{weights}"
                )
            class_weights = weights
        self.register_buffer("class_weights", class_weights)
        self.pseudo = class_weights is not None

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """Categorical(logits=output), with the classes on the last axis."""
        if output.dim() < 2:
            raise ValueError(
                f"likelihood Categorical: expected logits of shape (batch, classes), got {tuple(output.shape)}"
            )
        logits = output.movedim(self.axis, -1)
        if self.class_weights is None:
            return per_example(dist.Categorical(logits=logits))
        if logits.shape[-1] != len(self.class_weights):
            raise ValueError(
                f"likelihood Categorical class_weights: expected one for each of {logits.shape[-1]} classes, got "
                f"{len(self.class_weights)}"
            )
        return per_example(WeightedCategorical(logits, self.class_weights.to(logits.dtype)))

    def closed(self, output: Moments, **quantities: Tensor | float) -> Closed | None:
        """Class probabilities by a closed-form approximation, if the moments' settings ask for it."""
        plain = self.class_weights is None and (self.axis == -1 or output.loc.dim() == 2)
        return softmax_under_gaussian(output) if output.settings.closed and plain else None

    def bound(self, output: Moments, **quantities: Tensor | float) -> Callable[[Tensor], Tensor] | None:
        """Jensen's bound of the log of the sum over classes, for logits of shape (batch, classes)."""
        return softmax_bound(output) if self.class_weights is None and output.loc.dim() == 2 else None

    def check_shape(self, distribution: Distribution, target: Tensor) -> None:
        """Raise an error if the targets are not integers, or their shape is not the output's without its classes."""
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(
                f"likelihood Categorical: expected integer class labels, got {target.dtype}; one-hot or soft labels "
                "are not supported, convert with y.argmax(-1) or y.long()"
            )
        logits = getattr(elementwise(distribution), "logits", target).shape
        if len(logits) > 2 and target.shape == logits[:1] + logits[2:] and target.shape != logits[:-1]:
            raise ValueError(
                f"likelihood Categorical: expected the classes on the last axis of the network's output, got an output "
                f"of shape {tuple(logits)} and targets of shape {tuple(target.shape)}: the classes seem to be on the "
                "second axis, as torch's cross_entropy has them; use Categorical(axis=1)"
            )
        super().check_shape(distribution, target)

    def check_target(self, distribution: Distribution, target: Tensor) -> None:
        """Raise a `ValueError` if labels are outside 0 ... C - 1, but for those that are missing."""
        if self.missing:
            target = self.missing.filled(target, distribution)
        advice = "leave unlabeled examples out, or give them one label and say so: ignore_index=-100"
        check_labels("Categorical", distribution, target, f"{advice}{see('how-to/write_a_likelihood')}")

    def extra_repr(self) -> str:
        """The axis of the classes, unless it is the last one, and their weights."""
        weights = None if self.class_weights is None else [round(weight, 6) for weight in self.class_weights.tolist()]
        texts = ["" if self.axis == -1 else f"axis={self.axis}", "" if weights is None else f"class_weights={weights}"]
        return ", ".join(text for text in texts if text)


class Bernoulli(Likelihood):
    """Binary targets; the network's output `(batch,)` or `(batch, d)` is the logits of d independent targets.

    Args:
        output: Which part of the network's output is the logits; see `Likelihood`.
        nan_is_missing: Whether targets that are NaN are missing, and left out.

    Example:
        >>> Bernoulli()(torch.zeros(4, 1)).log_prob(torch.ones(4, 1)).shape
        torch.Size([4])
    """

    def __init__(self, *, output: str | int | None = None, nan_is_missing: bool = False) -> None:
        super().__init__(output=output, nan_is_missing=nan_is_missing)

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """Bernoulli(logits=output)."""
        return per_example(dist.Bernoulli(logits=output))

    def check_shape(self, distribution: Distribution, target: Tensor) -> None:
        """Raise an error if the targets are not floats, as the log density needs them, or have another shape."""
        if not target.is_floating_point():
            raise TypeError(
                f"likelihood Bernoulli: expected floating-point targets 0.0 or 1.0, got {target.dtype}; convert with "
                "y.float()"
            )
        super().check_shape(distribution, target)
