"""Any loss in place of a likelihood."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution
from torch.types import _size

from pyrostoch._descriptions import describe_function
from pyrostoch._manual import see
from pyrostoch._targets import Target, Targets
from pyrostoch.effects.trees import leaves_of, tensors_in
from pyrostoch.likelihoods.base import FromOutput
from pyrostoch.moments import Moments
from pyrostoch.protocols import Output

__all__ = ["Loss", "LossDistribution", "NoDrawsError"]


class NoDrawsError(NotImplementedError):
    """Targets cannot be drawn, since only a loss of them is known: torch's error of distributions without samples."""


class LossDistribution(TorchDistribution):
    """Observations of which only a loss is known: its negative takes the place of a log density.

    Args:
        loss: The loss, by the network's output and the targets.
        output: The network's output.
        count: Number of examples.
    """

    arg_constraints = {}

    def __init__(self, loss: Callable[[Any, Any], Tensor], output: Any, count: int) -> None:
        self.loss, self.output = loss, output
        super().__init__(torch.Size([count]), validate_args=False)

    def expand(self, batch_shape: _size, _instance: LossDistribution | None = None) -> Any:
        """Itself if `batch_shape` is its own, as in a plate: targets have no event axes that could be told apart."""
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape, _instance)

    def log_prob(self, value: Any) -> Tensor:
        """The negative loss of each example, in nats.

        Args:
            value: The targets, a tensor or several.
        """
        output = self.output
        if isinstance(output, Tensor) and isinstance(value, Tensor) and value.is_floating_point():
            if output.shape != value.shape and output.numel() == value.numel():
                raise ValueError(
                    f"likelihood Loss: output {tuple(output.shape)} and targets {tuple(value.shape)} would be "
                    "broadcast against each other; reshape the targets, or the network's output"
                )
        found = self.loss(output, value.parts if isinstance(value, Targets) else value)
        if not isinstance(found, Tensor) or found.shape != self.batch_shape:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"likelihood Loss: expected a loss of shape {tuple(self.batch_shape)}, in nats and one for each "
                f"example, got {got}; torch's losses need reduction='none', and a sum over the axes of an example"
                f"{see('how-to/write_a_likelihood')}"
            )
        return -found

    def sample(self, sample_shape: _size = ()) -> NoReturn:
        """Raises `NoDrawsError`: there is no distribution of targets.

        Args:
            sample_shape: Not used.
        """
        raise NoDrawsError(
            "likelihood Loss: a loss has no distribution of targets, so that none can be drawn; give the targets, or "
            "leave out what needs draws, as to_arviz(posterior_predictive=False)"
        )


class Loss(FromOutput):
    r"""A loss in nats that is no density: $\log L(y) = -f(z, y)$, a pseudo-likelihood.

    The posterior is that of Gibbs, proportional to prior times $\exp(-\sum_i f(z_i, y_i))$, so that the scale of the
    loss decides how much data weigh against the prior. It gives no probability of targets: `compare` reports the loss
    only, and every table says so.

    Args:
        loss: A function of the network's output, as it returns it, and of the targets, that returns a loss for each
            example, (batch,).
        targets: The names of several targets, which the loss then gets as a dictionary. They are checked only by the
            loss: where it is an object with a method `check_targets(output, targets)`, that is called before training.

    Raises:
        TypeError: It is no function.

    Example:
        >>> from torch.nn import functional as F
        >>> huber = Loss(lambda output, y: F.huber_loss(output, y, reduction="none").sum(1))
        >>> huber(torch.zeros(2, 1)).log_prob(torch.tensor([[1.0], [3.0]]))
        tensor([-0.5000, -2.5000])

    References:
        Bissiri, Holmes, Walker, "A general framework for updating belief distributions", 2016.
    """

    pseudo = True

    def __init__(self, loss: Callable[[Any, Any], Tensor], *, targets: Sequence[str] | None = None) -> None:
        if not callable(loss) or isinstance(loss, type):
            raise TypeError(
                f"likelihood Loss: expected a function of output and targets, got {loss!r}; an instance for a class of "
                "losses, as torch.nn.HuberLoss(reduction='none')"
            )
        super().__init__(cast(Any, loss))
        self.target_names = None if targets is None else tuple(targets)

    def identity(self) -> str:
        """The type, and the source of the function with the values that it uses."""
        return f"Loss({describe_function(self.make)[0]})"

    def distribution(self, output: Output, **quantities: Tensor | float) -> Distribution:
        """What gives the negative loss of targets."""
        sizes = [len(part) for part in tensors_in(output) if part.dim()]
        if not sizes or any(isinstance(part, Moments) for part in leaves_of(output)):
            raise TypeError(
                f"likelihood Loss: expected tensors as the network's output, got {type(output).__name__}; moments of "
                "several outputs cannot be read by a loss: use the estimator 'shared', 'local' or 'marginal'"
            )
        # A part that all examples share may have another size.
        return LossDistribution(self.make, output, statistics.mode(sizes))  # type: ignore[arg-type]

    def check_shape(self, distribution: Distribution, target: Target) -> None:
        """Raise a `ValueError` if there are not as many targets as examples; the rest is the loss's own.

        Args:
            distribution: What gives the negative loss.
            target: The targets.
        """
        if len(target) != distribution.batch_shape[0]:
            raise ValueError(
                f"likelihood Loss: expected {distribution.batch_shape[0]} targets, as many as examples, got "
                f"{len(target)}"
            )

    def check_target(self, distribution: Distribution, target: Target) -> None:
        """Raise a `ValueError` for targets that are NaN or infinite; several targets are checked by the loss.

        Args:
            distribution: What gives the negative loss.
            target: The targets.
        """
        if not isinstance(target, Targets):
            super().check_target(distribution, target)
        check = getattr(self.make, "check_targets", None)
        if callable(check) and isinstance(distribution, LossDistribution):
            check(distribution.output, target.parts if isinstance(target, Targets) else target)
