"""Structured pruning: whole neurons and channels are removed, and a smaller dense network comes out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, name_list
from pyrostoch._inputs import count_examples
from pyrostoch._manual import see
from pyrostoch._seeds import forked
from pyrostoch._structure import flat_inputs
from pyrostoch.guides.group_scores import scores_by_layer, weight_means
from pyrostoch.guides.layer_probe import call_plain
from pyrostoch.guides.plain import with_weights
from pyrostoch.guides.smaller import largest_difference, masked_network, smaller_network
from pyrostoch.guides.units import Wires, wires_of
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import FlatInputs, Inputs, SiteGuide
from pyrostoch.records import Record, table

__all__ = ["GroupPruning", "GroupPruningRow", "prune_groups"]

_EXAMPLES = 16
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class GroupPruningRow(Record):
    """Counts of one layer.

    Args:
        layer: Name of the layer.
        units: Number of its neurons or channels.
        kept: Number of those that are kept.
        weights: Number of weights of the layer.
        left: Number of weights of the smaller layer, which may have lost inputs, too.
    """

    layer: str
    units: int
    kept: int
    weights: int
    left: int


@dataclass(frozen=True, eq=False)
class GroupPruning(Record):
    """Which neurons and channels are kept, and the smaller network.

    Args:
        criterion: Which were kept, in words.
        layers: The counts of each linear layer and convolution.
        kept_whole: Why a layer loses no unit, by its name.
        masks: For each layer that may lose units a boolean tensor `(units,)`, True where a unit is kept.
        scores: For each of these layers what the criterion compares, `(units,)`.
        parameters: Number of parameters of the network, with or without a prior.
        left: Number of parameters of the smaller network.
        masked: The network of the original size with the guide's means, in which the weights of removed units are zero;
            where they could not be made up for otherwise, their biases and batch normalization, too.
        network: The smaller network, which computes the same.
    """

    criterion: str
    layers: tuple[GroupPruningRow, ...]
    kept_whole: dict[str, str]
    masks: dict[str, Tensor]
    scores: dict[str, Tensor]
    parameters: int
    left: int
    masked: nn.Module
    network: nn.Module

    @property
    def compression(self) -> float:
        """Number of parameters over the number left."""
        return self.parameters / self.left

    def export(self) -> nn.Module:
        """A copy of the smaller network: dense layers of torch with the guide's means, in evaluation mode.

        It is of the user's own class, runs without this library, and can be fine-tuned. Save its state dict;
        `load_smaller` loads it into a network of the original architecture.

        Returns:
            The network.
        """
        return copy.deepcopy(self.network)

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain data, without tensors and networks."""
        return {
            "criterion": self.criterion,
            "parameters": self.parameters,
            "left": self.left,
            "compression": self.compression,
            "layers": [row.to_dict() for row in self.layers],
            "kept_whole": dict(self.kept_whole),
        }

    def __str__(self) -> str:
        rows = [(row.layer, row.units, row.kept, row.weights, row.left) for row in self.layers]
        head = (
            f"Structured pruning, kept {self.criterion}: {self.left} of {self.parameters} parameters are left "
            f"({self.compression:.4g}x)"
        )
        notes = [f"{layer} is kept whole: {reason}" for layer, reason in self.kept_whole.items()]
        return "\n".join([head, table(("layer", "units", "kept", "weights", "left"), rows), *notes])


def prune_groups(
    model: BayesianModel,
    guide: SiteGuide,
    x: Inputs,
    *,
    by: Literal["log_alpha", "scale", "norm"] = "log_alpha",
    threshold: float | None = None,
    amount: float | None = None,
    layers: Iterable[str] | None = None,
) -> GroupPruning:
    r"""Remove whole neurons and channels that are mostly noise, or small, and make a smaller dense network.

    The units of a linear layer or convolution are compared by

    - `"log_alpha"`: $\log(\sum_j \sigma_j^2 / \sum_j \mu_j^2)$ over the unit's incoming weights, noise over signal as
      in `prune`; units up to the threshold are kept,
    - `"scale"`: the posterior median of the scale that the prior gives the unit: $s_g$ of `GroupScale`,
      $\tau\tilde\lambda_g$ of `Horseshoe`, the fitted one of `EmpiricalBayes(groups=...)`. With `groups="out"` it is
      that of its incoming weights; with `groups="in"` in the one layer that reads the unit, that of its outgoing
      weights; if both have one, the product of the two. Units above the threshold are kept,
    - `"norm"`: the Euclidean norm of the means of its incoming weights; units above the threshold are kept.

    Which inputs of later layers a unit feeds, through activations, pooling, flattening and batch normalization, is
    found by experiment on `x` in evaluation mode, so that any forward function will do. A removed unit's weights are
    set to zero. What it then still adds (its bias, through an activation) is the same for every example; it goes into
    the biases of the layers that read it. Where these pad with zeros, that is not possible, and the unit's bias and
    batch normalization are set to zero as well. The smaller network is compared with the network with these zeros on
    `x`: the outputs agree to $10^{-5}$, or the layer is kept whole.

    Layers are kept whole, and the result says why, whose outputs are added to others (residual connections), reach the
    network's output, or are read by something else than one linear layer or convolution each: recurrent and attention
    layers, layer normalization, grouped convolutions, tied weights, layers called twice. Biases without a prior keep
    their values.

    Args:
        model: The trained `BayesianModel`.
        guide: Its guide, with normal distributions of the weights.
        x: A batch of inputs, at least two different examples; 16 are used.
        by: How units are compared.
        threshold: The largest log alpha that is kept (3 by default), or the scale or norm that a kept unit exceeds.
        amount: The fraction of the units to remove in each layer, in [0, 1), instead of a threshold.
        layers: Names of the layers that may lose units; by default all for which there is something to compare.

    Returns:
        The pruning, with the smaller network.

    Raises:
        TypeError: The model is no `BayesianModel`, or a weight's distribution is not normal; its site is named.
        ValueError: Neither or both of `threshold` and `amount` are given, or out of range; a named layer cannot lose
            units, or has no scale of its units; the guide does not cover a weight; inputs are all equal; or the network
            draws random numbers in evaluation mode.

    References:
        Louizos, Ullrich, Welling, "Bayesian compression for deep learning", 2017; Ghosh, Yao, Doshi-Velez, "Structured
        variational learning of Bayesian neural networks with horseshoe priors", 2018; Li, Kadav, Durdanovic, Samet,
        Graf, "Pruning filters for efficient ConvNets", 2017, for the norm.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.1), num_data=9)
        >>> guide = ps.guides.Additive(model)
        >>> pruning = prune_groups(model, guide, torch.randn(8, 4), by="norm", amount=0.34)
        >>> print(pruning)
        Structured pruning, kept 66% of the units, by norm: 13 of 19 parameters are left (1.462x)
        layer  units  kept  weights  left
        0          3     2       12     8
        2          1     1        3     2
        2 is kept whole: its outputs reach the network's output without another layer between
        >>> pruning.export()[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    check_choice("prune_groups by", by, ("log_alpha", "scale", "norm"))
    limit, amount = _limits(by, threshold, amount)
    if not isinstance(model, BayesianModel):
        raise TypeError(f"prune_groups: expected a BayesianModel, got {type(model).__name__}")
    means = weight_means(guide)
    net = with_weights(model, means)
    net = getattr(net, "_orig_mod", net)  # of torch.compile
    inputs = _examples(model, x)
    with forked(next(net.parameters()).device, seed=0):
        wires = wires_of(net, inputs)
    scores = scores_by_layer(model, guide, wires, by)
    chosen = _chosen(wires, scores, layers, by)
    whole = {name: found.reason for name, found in wires.items() if found.reason}
    for name in wires:
        if name not in chosen and name not in whole:
            whole[name] = "layers= does not name it" if name in scores else f"its prior gives no {by} of its units"
    if not chosen:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in whole.items()) or "there is none"
        raise ValueError(
            f"prune_groups: no linear layer or convolution can lose units by {by}: {reasons}"
            f"{see('how-to/prune_and_export')}"
        )
    masks = {name: _mask(name, scores[name], by, limit, amount) for name in chosen}
    for name, keep in list(masks.items()):
        if bool(keep.all()):
            continue
        if (fault := _fault(net, wires, {name: keep}, inputs)) is not None:
            if layers is not None:
                raise ValueError(
                    f"prune_groups: layer {name!r} cannot lose units: {fault}{see('how-to/prune_and_export')}"
                )
            whole[name] = fault
            del masks[name]
    removed = {name: keep for name, keep in masks.items() if not bool(keep.all())}
    if (fault := _fault(net, wires, removed, inputs)) is not None:
        raise ValueError(
            f"prune_groups: layers {name_list(removed)} can each lose units, but not all of them: {fault}; name fewer "
            f"of them in layers={see('how-to/prune_and_export')}"
        )
    masked = masked_network(net, wires, removed)
    small = smaller_network(masked, wires, removed)
    call_plain(small, inputs)  # what has no tensors takes its size now
    criterion = f"{1 - amount:.0%} of the units, by {by}" if amount is not None else _words(by, limit)
    sizes = dict(small.named_modules())
    modules = dict(net.named_modules())
    rows = []
    for name in wires:
        before, after = modules[name].weight, sizes[name].weight
        rows.append(GroupPruningRow(name, len(before), len(after), before.numel(), after.numel()))
    return GroupPruning(
        criterion,
        tuple(rows),
        whole,
        masks,
        {name: scores[name] for name in masks},
        sum(parameter.numel() for parameter in net.parameters()),
        sum(parameter.numel() for parameter in small.parameters()),
        masked,
        small,
    )


def _limits(by: str, threshold: float | None, amount: float | None) -> tuple[float, float | None]:
    """The threshold, which means nothing where there is an amount, and the amount."""
    for what, value in (("threshold", threshold), ("amount", amount)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value)):
            raise ValueError(f"prune_groups {what}: expected a finite number, got {value!r}")
    if threshold is not None and amount is not None:
        raise ValueError("prune_groups: expected threshold or amount, got both")
    if amount is not None and not 0.0 <= amount < 1.0:
        raise ValueError(f"prune_groups amount: expected the fraction of units to remove, in [0, 1), got {amount!r}")
    if threshold is None and amount is None:
        if by != "log_alpha":
            raise ValueError(
                f"prune_groups: by={by!r} needs a threshold, in the units of the weights, or an amount; the scores of "
                f"prune_groups(..., amount=0.0) help to choose one{see('how-to/prune_and_export')}"
            )
        threshold = 3.0
    return (math.nan if threshold is None else float(threshold)), amount


def _examples(model: BayesianModel, x: Inputs) -> FlatInputs:
    inputs = flat_inputs(x, model.target)
    count = count_examples(inputs, model.in_dims)
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    if model.in_dims == 0 and count is not None:
        parts = tuple(part[:_EXAMPLES] if isinstance(part, Tensor) and part.dim() else part for part in parts)
    tensors = [part for part in parts if isinstance(part, Tensor) and part.numel()]
    if (count is not None and count < 2) or all(bool((part == part.flatten()[0]).all()) for part in tensors):
        raise ValueError(
            "prune_groups: expected inputs x of at least two different examples, on which it is seen what the network "
            f"does; got {count if count is not None else 'some'} with equal entries{see('how-to/prune_and_export')}"
        )
    return parts if isinstance(inputs, tuple) else parts[0]


def _chosen(wires: dict[str, Wires], scores: dict[str, Tensor], names: Iterable[str] | None, by: str) -> list[str]:
    if names is None:
        return [name for name in wires if name in scores and not wires[name].reason]
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in wires:
            raise ValueError(
                f"prune_groups: expected names of linear layers or convolutions without groups in layers, got "
                f"{name!r}; the network has {name_list(wires)}{see('how-to/prune_and_export')}"
            )
        if wires[name].reason:
            raise ValueError(
                f"prune_groups: layer {name!r} cannot lose units: {wires[name].reason}{see('how-to/prune_and_export')}"
            )
        if name not in scores:
            raise ValueError(
                f"prune_groups: there is no {by} of the units of layer {name!r}: its weight needs a prior"
                + (" with groups='out', such as GroupScale or Horseshoe" if by == "scale" else "")
                + see("how-to/prune_and_export")
            )
    return chosen


def _mask(name: str, scores: Tensor, by: str, limit: float, amount: float | None) -> Tensor:
    order = torch.argsort(-scores if by == "log_alpha" else scores, stable=True)  # the first are removed first
    if amount is not None:
        keep = torch.ones_like(scores, dtype=torch.bool)
        keep[order[: min(round(amount * len(scores)), len(scores) - 1)]] = False
        return keep
    keep = scores <= limit if by == "log_alpha" else scores > limit
    if not bool(keep.any()):
        keep[order[-1]] = True
        warnings.warn(
            f"prune_groups: no unit of layer {name!r} passes {_words(by, limit)}; one is kept, since a network "
            "without any seldom works: choose another threshold or train longer",
            UserWarning,
            stacklevel=3,
        )
    return keep


def _fault(net: nn.Module, wires: dict[str, Wires], removed: dict[str, Tensor], x: FlatInputs) -> str | None:
    """Why the smaller network is not the masked one; `None` where it is."""
    masked = masked_network(net, wires, removed)
    small = smaller_network(masked, wires, removed)
    try:
        found = largest_difference(masked, small, x)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"the network does not run with smaller layers ({text}); its forward may have their sizes written in it: "
            "use flatten(1), not view(-1, 320)"
        )
    if not found <= _TOLERANCE:
        return f"the outputs with smaller layers differ by {found:.2g} of the largest one from those with zeros"
    return None


def _words(by: str, limit: float) -> str:
    return f"log alpha <= {limit:g}" if by == "log_alpha" else f"{by} > {limit:g}"
