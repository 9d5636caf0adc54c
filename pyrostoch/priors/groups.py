"""Groups of weights that share a scale: those of one output, or one input, of a layer; and the base class of priors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.conv import _ConvNd

from pyrostoch._checks import check_choice
from pyrostoch._manual import see
from pyrostoch.priors.base import FromDistribution, Prior

__all__ = ["GroupedPrior", "Groups", "group_axis", "positive_scale"]

#: Which weights share a scale: those of one output (neuron or channel), those of one input, those at one index of an
#: axis of the weight, or none (`"weight"`: each has its own).
Groups = Literal["out", "in", "weight"] | int


class GroupedPrior(Prior):
    """Base class of priors with one scale for each group of a parameter's weights.

    Args:
        groups: `"out"` for one group for each output neuron or channel, `"in"` for one for each input, `"weight"` for
            each weight on its own, or the number of an axis of the weight; `None` for one group of all weights.

    Attributes:
        groups: As given.
        axis: The axis of the weight that counts the groups, once a network's parameter has the prior; `None` before
            that, and where no axis counts them.
    """

    def __init__(self, groups: Groups | None) -> None:
        super().__init__()
        if isinstance(groups, bool) or not (groups is None or isinstance(groups, (str, int))):
            raise TypeError(
                f"{type(self).__name__} groups: expected 'out', 'in', 'weight' or the number of an axis, got {groups!r}"
            )
        if isinstance(groups, str):
            check_choice(f"{type(self).__name__} groups", groups, ("out", "in", "weight"))
        self.groups = groups
        self.axis: int | None = None

    def for_layer(self, name: str, parameter: Tensor, layers: Sequence[nn.Module]) -> Prior:
        """A copy for one parameter, which knows the axis that counts its groups.

        Args:
            name: The parameter's name.
            parameter: The parameter.
            layers: The modules that hold it.

        Raises:
            ValueError: It is not known which axis that is.
        """
        prior = super().for_layer(name, parameter, layers)
        if isinstance(prior, GroupedPrior):
            prior.axis = group_axis(self.groups, name, parameter.shape, layers)
        return prior

    def scale_shape(self, name: str, shape: torch.Size) -> torch.Size:
        """Shape of the scales: that of the weight, with 1 for each axis along which a scale is shared.

        Args:
            name: Name of the site, for the error.
            shape: Shape of the weight.

        Raises:
            ValueError: No parameter of a network has the prior, so that the axis is not known.
        """
        if self.groups == "weight":
            return shape
        of_groups = self.axis if self.axis is not None else group_axis(self.groups, name, shape, ())
        return torch.Size(size if axis == of_groups else 1 for axis, size in enumerate(shape))


def positive_scale(what: str, distribution: Distribution) -> FromDistribution:
    """The prior of a scale as a module.

    Args:
        what: Name of the quantity, for the error.
        distribution: A distribution on the positive numbers.

    Raises:
        ValueError: It is a distribution on other numbers.

    Example:
        >>> import pyro.distributions as dist
        >>> positive_scale("Hierarchical scale", dist.HalfNormal(1.0))
        HalfNormal(scale=1)
    """
    scale = FromDistribution(distribution)
    support = scale.distribution("", torch.Size()).support
    if not bool(support.check(torch.tensor(1.0))) or bool(support.check(torch.tensor(-1.0))):
        raise ValueError(f"{what}: expected a distribution on the positive numbers, got {scale!r}")
    return scale


def group_axis(groups: Groups | None, name: str, shape: torch.Size, layers: Sequence[nn.Module]) -> int | None:
    """The axis of a parameter that counts the groups; `None` where each weight is one, or all are.

    A parameter with one axis (a bias) has an output at each entry. Otherwise the layer says what its axes are: linear
    layers and convolutions have their outputs on axis 0 and inputs on axis 1, transposed convolutions and embeddings
    (where an input is a word, and an output a feature) the other way round.

    Args:
        groups: The groups.
        name: Name of the parameter, for the error.
        shape: Its shape.
        layers: The modules that hold it.

    Raises:
        ValueError: The axis does not exist, or the layers do not say which it is.

    Example:
        >>> group_axis("in", "conv.weight", torch.Size([2, 3, 5]), [nn.ConvTranspose1d(2, 3, 5)])
        0
    """
    if groups is None or groups == "weight":
        return None
    if isinstance(groups, int):
        if not -len(shape) <= groups < len(shape):
            raise ValueError(
                f"prior of {name!r}: groups={groups} names an axis that its shape {tuple(shape)} does not have; "
                f"expected one of {len(shape)} axes, counted from 0{see('how-to/write_a_prior')}"
            )
        return groups % len(shape)
    if len(shape) == 1 and groups == "out":
        return 0
    found = {_axis(groups, shape, layer) for layer in layers}
    if len(found) == 1 and (axis := found.pop()) is not None:
        return axis
    held = " and ".join(sorted({type(layer).__name__ for layer in layers})) or "no layer"
    raise ValueError(
        f"prior of {name!r}: groups={groups!r} needs the axis of its shape {tuple(shape)} that counts "
        f"{'outputs' if groups == 'out' else 'inputs'}, and for this parameter of {held} it is not known. Give the "
        f"axis, such as groups=0, or groups='weight', by a rule for {name!r}{see('how-to/write_a_prior')}"
    )


def _axis(groups: Groups, shape: torch.Size, layer: nn.Module) -> int | None:
    """The axis by one layer; `None` where it is not known, or where an index of it is not one output or input."""
    out: int | None
    inward: int | None
    if len(shape) < 2:
        return None
    if isinstance(layer, nn.Linear) and len(shape) == 2:
        out, inward = 0, 1
    elif isinstance(layer, _ConvNd) and len(shape) > 2:
        # With groups, the second axis counts within each of them.
        out, inward = (1, 0) if layer.transposed else (0, 1)
        if layer.groups > 1:
            out, inward = (None, 0) if layer.transposed else (0, None)
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        out, inward = 1, 0
    else:
        return None
    return out if groups == "out" else inward
