"""What a likelihood is made of: its heads, and whether one is a loss or the user's own."""

from __future__ import annotations

from pyrostoch.likelihoods.base import FromOutput, Likelihood
from pyrostoch.likelihoods.joint import Joint
from pyrostoch.likelihoods.loss import Loss

__all__ = ["is_loss", "parts_of", "reads_in_its_own_way"]


def reads_in_its_own_way(likelihood: Likelihood) -> bool:
    """Whether a likelihood, or a head of it, is the user's own, which may bring examples together.

    Args:
        likelihood: The likelihood.

    Example:
        >>> from pyrostoch.likelihoods import Categorical
        >>> reads_in_its_own_way(Categorical())
        False
    """
    parts = parts_of(likelihood)
    return any(isinstance(part, FromOutput) or not type(part).__module__.startswith("pyrostoch.") for part in parts)


def parts_of(likelihood: Likelihood) -> list[Likelihood]:
    """A likelihood and those that it is made of.

    Args:
        likelihood: The likelihood.
    """
    return [part for part in likelihood.modules() if isinstance(part, Likelihood)]


def is_loss(likelihood: object, head: str = "") -> bool:
    """Whether a likelihood, or a head of it, or any of its heads, is a `Loss`, so that nothing is a density.

    Args:
        likelihood: The likelihood of a model; what is none is no loss.
        head: Name of the head; all of them where it is empty.

    Example:
        >>> is_loss(Loss(lambda output, y: (output - y).square().sum(1))), is_loss(None)
        (True, False)
    """
    if not isinstance(likelihood, Likelihood):
        return False
    parts = parts_of(likelihood)
    joint = next((part for part in parts if isinstance(part, Joint)), None)
    if head and joint is not None:
        parts = parts_of(joint.by_name[head])
    return any(isinstance(part, Loss) for part in parts)
