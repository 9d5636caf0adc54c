"""A network run again and again with the outputs of one layer changed, to see what reads them."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyrostoch import layers
from pyrostoch._manual import see
from pyrostoch._structure import positional_and_keyword
from pyrostoch.effects import MeanPropagation
from pyrostoch.protocols import FlatInputs

__all__ = ["CHANNELWISE", "Probe", "call_plain", "feature_axis", "is_cut"]

# Exactly these types: a subclass may use its weight in another way.
_LAYERS = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, layers.Linear, layers.Conv1d, layers.Conv2d, layers.Conv3d}
#: Layers that treat each channel by itself.
CHANNELWISE = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_cut(module: nn.Module) -> bool:
    """Whether a module is a layer whose outputs can be removed: linear, or a convolution without groups.

    Args:
        module: The module.

    Example:
        >>> is_cut(nn.Conv2d(4, 4, 3)), is_cut(nn.Conv2d(4, 4, 3, groups=2))
        (True, False)
    """
    return type(module) in _LAYERS and getattr(module, "groups", 1) == 1 and not _is_modified(module)


def feature_axis(module: nn.Module) -> int:
    """The axis of a layer's inputs and outputs that counts features or channels.

    Args:
        module: The layer.
    """
    if type(module) in CHANNELWISE:
        return 1
    return -1 if isinstance(module, nn.Linear) else 1 - module.weight.dim()  # type: ignore[operator]


def call_plain(net: nn.Module, x: FlatInputs) -> list[Tensor]:
    """The tensors that a plain network returns without noise and gradients.

    Args:
        net: The network.
        x: Inputs, as `flat_inputs` returns them.
    """
    args, kwargs = positional_and_keyword(x if isinstance(x, tuple) else (x,), {})
    args, kwargs = _cloned((args, kwargs))
    with torch.no_grad(), MeanPropagation():
        return [leaf for leaf in pytree.tree_leaves(net(*args, **kwargs)) if isinstance(leaf, Tensor)]


class Probe:
    """A network whose layers can be perturbed one at a time."""

    def __init__(self, net: nn.Module, x: FlatInputs) -> None:
        self.net = net
        self.holders = {name: module for name, module in net.named_modules() if _holds(module)}
        self.cut = [name for name, module in self.holders.items() if is_cut(module)]
        self._tied = _tied(net)
        self.runs = [x, pytree.tree_map_only(Tensor, _shuffled, x)]
        self.calls: dict[str, int] = {}
        self.before: list[dict[str, list[Any]]] = []
        self.inputs: list[dict[str, list[Tensor]]] = []
        self.outputs: list[list[Tensor]] = []
        for run in self.runs:
            self.before.append({})
            inputs, outputs = self.run(run)
            _, again = self.run(run)
            if len(outputs) != len(again) or not all(map(torch.equal, outputs, again)):
                raise ValueError(
                    "prune_groups: two calls of the network on the same inputs differ, or their outputs are not "
                    "finite, in evaluation mode; remove what draws random numbers there (such as "
                    f"functional.dropout without training=self.training){see('how-to/prune_and_export')}"
                )
            self.inputs.append(inputs)
            self.outputs.append(outputs)

    def run(
        self, x: FlatInputs, changes: dict[str, Callable[[Tensor], Tensor]] | None = None, at: int | None = None
    ) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
        """Inputs of all layers, and the network's output, where the outputs of some layers are changed.

        Args:
            x: Inputs.
            changes: Changes of a layer's output by name. All others return what they returned in run `at`, except
                those that treat each channel by itself.
            at: Number of the run; `None` for a run in which nothing is changed, and which is kept.
        """
        inputs: dict[str, list[Tensor]] = {}
        outputs_of: dict[str, list[Any]] = {}
        changes = changes or {}

        def keep_input(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            leaves = pytree.tree_leaves((args, kwargs))
            inputs.setdefault(name, []).extend(leaf.clone() for leaf in leaves if isinstance(leaf, Tensor))

        def keep_output(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if name in changes:
                output = changes[name](output)
            outputs_of.setdefault(name, []).append(_cloned(output))
            return output

        def as_before(name: str, *args: Any, **kwargs: Any) -> Any:
            return _cloned(self.before[at or 0][name][len(outputs_of.get(name, ()))])

        with contextlib.ExitStack() as stack:
            for name, module in self.holders.items():
                if at is not None and type(module) not in CHANNELWISE:
                    stack.enter_context(_replaced(module, partial(as_before, name)))
                before = module.register_forward_pre_hook(partial(keep_input, name), with_kwargs=True)
                after = module.register_forward_hook(partial(keep_output, name), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            outputs = call_plain(self.net, x)
        if at is None:
            self.calls = {name: len(found) for name, found in outputs_of.items()}
            self.before[-1] = outputs_of
        return inputs, outputs

    def changed(self, name: str, units: Tensor) -> tuple[dict[str, Tensor | bool], bool]:
        """What changes where some outputs of a layer do: features of each layer's input, and the network's output."""
        axis = feature_axis(self.holders[name])
        features: dict[str, Tensor | bool] = {}
        reaches = False
        for at, sign in ((0, 1.0), (0, -1.0), (0, 0.0), (1, 0.0)):
            x, change = self.runs[at], partial(_perturbed, units=units, axis=axis, sign=sign)
            inputs, outputs = self.run(x, {name: change}, at)
            reaches |= not _same(outputs, self.outputs[at])
            for other, found in inputs.items():
                old = self.inputs[at].get(other, [])
                if other == name:
                    continue
                if other not in self.by_feature or len(found) != 1 or found[0].shape != old[0].shape:
                    features[other] = bool(features.get(other, False)) or not _same(found, old)
                    continue
                moved = torch.ne(found[0], old[0]).movedim(feature_axis(self.holders[other]), -1)
                moved = moved.reshape(-1, moved.shape[-1]).any(0).cpu()
                features[other] = moved | features.get(other, False)
        return features, reaches

    @functools.cached_property
    def by_feature(self) -> frozenset[str]:
        """The layers that can lose features of their input."""
        return frozenset(
            name
            for name, module in self.holders.items()
            if (is_cut(module) or (type(module) in CHANNELWISE and not _is_modified(module)))
            and self.calls.get(name) == 1
            and not self.tied(name)
        )

    def tied(self, name: str) -> bool:
        """Whether another module holds a parameter of the layer, too."""
        return any(id(parameter) in self._tied for parameter in self.holders[name].parameters(recurse=False))


def _holds(module: nn.Module) -> bool:
    """Whether a module has tensors of its own that its forward uses: not one that only joins such modules."""
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:  # the same for every channel
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    inner = any(True for child in module.children() for _ in child.parameters())
    return bool(own) and (not inner or type(module).__module__.startswith("torch."))


def _is_modified(module: nn.Module) -> bool:
    return "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS)


def _tied(net: nn.Module) -> set[int]:
    """The parameters that several modules hold, by `id`."""
    held = [id(parameter) for module in net.modules() for parameter in module.parameters(recurse=False)]
    return {one for one, count in Counter(held).items() if count > 1}


def _perturbed(output: Tensor, units: Tensor, axis: int, sign: float) -> Tensor:
    """A layer's output with large values of one sign, or small and large ones of both, added to some units."""
    largest = output.float().abs().max() + 1e-3
    noise = torch.randn(output.shape, device=output.device)
    noise = sign * (1.0 + noise.abs()) if sign else noise * 10.0 ** (3.0 * torch.rand_like(noise) - 3.0)
    mask = units.to(output.device).reshape(-1, *(1,) * (-1 - axis))
    return output + torch.where(mask, 10.0 * largest * noise, 0.0).to(output.dtype)


@contextlib.contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward function for a while."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


def _cloned(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, values)


def _shuffled(x: Tensor) -> Tensor:
    """Other inputs of the same shape and range: the entries in another order where they are real numbers."""
    return x.flatten()[torch.randperm(x.numel(), device=x.device)].reshape(x.shape) if x.is_floating_point() else x


def _same(found: list[Tensor], old: list[Tensor]) -> bool:
    return len(found) == len(old) and all(map(torch.equal, found, old))
