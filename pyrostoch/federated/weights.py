"""What a data holder sends as weights: the state of model and guide, how it is checked, and how it is averaged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.training.state import module_state, overwrite

__all__ = ["average", "check_weights", "kept_names", "load_weights", "weights_of"]

Weights = Mapping[str, Tensor]

#: Batch normalization counts its batches; nothing depends on the exact number, and the largest one is kept.
_COUNTER = "num_batches_tracked"
_VARIANCE, _MEAN = "running_var", "running_mean"


def weights_of(model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers of model and guide, on the CPU.

    Args:
        model: The model.
        guide: Its guide.

    Returns:
        Tensors by name, `model.<key>` and `guide.<key>`.

    Raises:
        TypeError: A tensor cannot be sent as an array, or its values cannot be averaged; it is named.

    Example:
        >>> list(weights_of(nn.Linear(1, 1), nn.Linear(1, 1, bias=False)))
        ['model.weight', 'model.bias', 'guide.weight']
    """
    found = {}
    for name, value in module_state(model, guide).items():
        if value.layout != torch.strided or value.dtype == torch.bfloat16 or value.is_complex():
            kind = value.dtype if value.layout == torch.strided else value.layout
            raise TypeError(
                f"weights {name!r}: expected dense real numbers of a type that NumPy has, got {kind}; convert model "
                f"and guide before the training, such as by model.float(){see('how-to/federated')}"
            )
        found[name] = value.detach().to("cpu", copy=True).contiguous()
    return found


def load_weights(model: nn.Module, guide: nn.Module, weights: Weights) -> None:
    """Put weights into model and guide, all of them or none; these keep their devices.

    Args:
        model: The model.
        guide: Its guide.
        weights: What `weights_of` gives for the same model and guide.

    Raises:
        ValueError: They are those of another model or guide; the first difference is named.

    Example:
        >>> model, guide = nn.Linear(1, 1), nn.Identity()
        >>> load_weights(model, guide, {"model.weight": torch.ones(1, 1), "model.bias": torch.zeros(1)})
        >>> model.weight.item()
        1.0
    """
    check_weights("weights", weights, weights_of(model, guide), frozenset())
    overwrite(module_state(model, guide), dict(weights))


def kept_names(model: nn.Module, guide: nn.Module) -> frozenset[str]:
    """The tensors that no training changes: parameters that are fixed, and buffers of whole numbers but counters.

    Args:
        model: The model.
        guide: Its guide.

    Example:
        >>> sorted(kept_names(nn.BatchNorm1d(2).requires_grad_(False), nn.Identity()))
        ['model.bias', 'model.weight']
    """
    return frozenset(
        name
        for name, value in module_state(model, guide).items()
        if (not value.requires_grad if isinstance(value, nn.Parameter) else not value.is_floating_point())
        and not name.endswith(_COUNTER)
    )


def check_weights(what: str, given: Weights, start: Weights, kept: frozenset[str]) -> None:
    """Raise an error for weights that must not be averaged with others.

    Args:
        what: Whose they are, for the message.
        given: The weights.
        start: Those that the holder began with.
        kept: Names of those that it must not have changed.

    Raises:
        ValueError: Names, shapes or types differ, values are not finite that were before, or what must be the same
            everywhere has changed; the tensor is named.

    Example:
        >>> check_weights("holder 3", {"w": torch.tensor([float("nan")])}, {"w": torch.zeros(1)}, frozenset())
        Traceback (most recent call last):
        ...
        ValueError: holder 3: 'w' has 1 NaN or infinite entries; ...
    """
    missing, unknown = [n for n in start if n not in given], [n for n in given if n not in start]
    if missing or unknown:
        raise ValueError(
            f"{what}: these are weights of another model or guide: missing {name_list(missing) or 'none'}, unknown "
            f"{name_list(unknown) or 'none'}; build model and guide in the same way everywhere, and call a guide once "
            f"that makes its parameters in its first call{see('how-to/federated')}"
        )
    for name, before in start.items():
        now = given[name]
        if (now.shape, now.dtype) != (before.shape, before.dtype):
            raise ValueError(
                f"{what}: {name!r}: expected {before.dtype} of shape {tuple(before.shape)}, got {now.dtype} of shape "
                f"{tuple(now.shape)}; build model and guide in the same way everywhere{see('how-to/federated')}"
            )
        if _same(now, before):
            continue
        if name in kept:
            raise ValueError(
                f"{what}: {name!r} has changed, though it is fixed in the server's model, or holds whole numbers, "
                f"which have no mean; fix it everywhere, or leave it out of the state{see('how-to/federated')}"
            )
        bad = int((~torch.isfinite(now)).sum()) if now.is_floating_point() else 0
        if bad:
            raise ValueError(
                f"{what}: {name!r} has {bad} NaN or infinite entries; train with a smaller lr, or with clip="
                f"{see('how-to/federated')}"
            )


def average(weights: Mapping[str, Weights], examples: Mapping[str, int]) -> dict[str, Tensor]:
    r"""The mean of the weights of several data holders, each counted by its number of examples.

    $\bar w = \sum_k n_k w_k / \sum_k n_k$, summed in double precision and rounded to the type of the weights. What all
    holders have alike stays as it is to the last bit. The running variance of batch normalization is that of all
    examples together, $\overline{v + m^2} - \bar m^2$, and of its counter the largest is kept.

    Args:
        weights: Weights of each holder, with the same names, shapes and types.
        examples: Number of examples of each holder.

    Returns:
        Tensors by name.

    Raises:
        ValueError: Nobody has sent weights, a number of examples is not positive, or whole numbers differ.

    Example:
        >>> average({"a": {"w": torch.tensor([0.0])}, "b": {"w": torch.tensor([4.0])}}, {"a": 3, "b": 1})
        {'w': tensor([1.])}

    References:
        McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
    """
    given, counted = isinstance(weights, Mapping) and weights, isinstance(examples, Mapping)
    if not given or not counted or any(examples.get(holder, 0) < 1 for holder in weights):
        raise ValueError(
            f"average: expected the weights of holders by name, and for each of them a number of examples, at least 1, "
            f"got weights of {name_list(weights) if given else repr(weights)} and numbers {examples!r}"
            f"{see('how-to/federated')}"
        )
    states = list(weights.values())
    for holder, state in weights.items():
        check_weights(f"holder {holder!r}", state, states[0], frozenset())
    shares = torch.tensor([examples[holder] for holder in weights], dtype=torch.float64)
    shares = shares / shares.sum()
    found = {}
    for name, first in states[0].items():
        values = [state[name] for state in states]
        if all(_same(value, first) for value in values):
            found[name] = first.clone()
            continue
        for holder, value in zip(weights, values, strict=True):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f"average: holder {holder!r}: {name!r} has NaN or infinite entries; leave it out")
        if name.endswith(_COUNTER):
            found[name] = torch.stack(values).amax(0)
        elif not first.is_floating_point():
            raise ValueError(f"average: {name!r} holds whole numbers, which have no mean, and they differ")
        else:
            mean = _mean(values, shares)
            other = name.removesuffix(_VARIANCE) + _MEAN
            if name.endswith(_VARIANCE) and other in states[0]:
                means = [state[other].double() for state in states]
                mean = _mean([v.double() + m**2 for v, m in zip(values, means, strict=True)], shares)
                mean = mean - _mean(means, shares) ** 2
            found[name] = mean.to(first.dtype)
    return found


def _mean(values: list[Tensor], shares: Tensor) -> Tensor:
    return sum((share * value.double() for share, value in zip(shares, values, strict=True)), torch.zeros(()).double())


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all entries are equal; NaN is equal to itself."""
    return bool(((one == other) | ((one != one) & (other != other))).all())
