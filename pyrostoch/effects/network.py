"""The call of a network with drawn weights in place of its parameters, as a Pyro effect.

`call_network` is to a network what `pyro.sample` is to a random variable: it states what is computed, and the active
handler, an interpretation, decides how the weights' randomness is treated. Without one, the drawn values are used.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar, cast

import torch
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from pyrostoch._fixed_entries import FixedEntries
from pyrostoch._ops import LinearOp, bind
from pyrostoch.effects.active import active_call, entered, inside_network
from pyrostoch.effects.perturbed import Reading
from pyrostoch.effects.swap import call_with, tied_values
from pyrostoch.effects.trees import tensors_in
from pyrostoch.effects.usage import Usage, UsageCache
from pyrostoch.moments import MissingRuleError
from pyrostoch.protocols import InDims

__all__ = ["NetworkCall", "call_network", "checkpoint"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Computes one linear operation with replaced weights: (operation, name of weight, name of bias) -> output.
ApplyOperation = Callable[[LinearOp, str | None, str | None], Any]


class NetworkCall:
    """One call of a network, which an interpretation may change before it runs.

    Args:
        net: The network.
        weights: The drawn weight for each random parameter, by parameter name.
        args: Positional inputs.
        kwargs: Keyword inputs.
        sites: Pyro site name of each random parameter.
        usage_cache: Results of the weight usage analysis of this network, kept between calls.
        in_dims: The axis of each positional input that counts the examples.
        reading: What the caller computes from the output, where examples may meet.
        fixed: Entries of weights that are constant, by parameter name.

    Attributes:
        replaced: Names of the parameters whose draws are replaced by their distributions; set by an interpretation.
        usage: What is known of the weights' uses; set by an interpretation.
        apply: Computes the linear operations that use a replaced parameter; set by an interpretation.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sites: dict[str, str],
        usage_cache: UsageCache,
        in_dims: InDims = 0,
        reading: Reading | None = None,
        fixed: Mapping[str, FixedEntries] | None = None,
    ) -> None:
        self.net = net
        self.weights = dict(weights)
        self.args = args
        self.kwargs = kwargs
        self.sites = sites
        self.usage_cache = usage_cache
        self.in_dims = in_dims
        self.reading = reading
        self.fixed = dict(fixed or {})
        self.replaced: set[str] = set()
        self.usage: Usage | None = None
        self.apply: ApplyOperation | None = None

    def run(self) -> Any:
        """Call the network once; torch functions are intercepted during the call only."""
        # A guide of another library may have drawn the constants, too.
        for name, entries in self.fixed.items():
            if name in self.weights and name not in self.replaced:
                self.weights[name] = entries.put_into(self.weights[name])
        mode = _NetworkMode(self, count=True)
        self.mode = mode
        try:
            with entered(self), _empty_parametrization_cache(), mode:
                output = call_with(self.net, self.weights, self.args, self.kwargs)
        except MissingRuleError as error:
            names = {id(module): name for name, module in self.net.named_modules()}
            place = names.get(id(error.module))
            if not place:
                raise
            raise MissingRuleError(f"module {place!r}: {error}", error.function, error.module) from None
        finally:
            # Call and mode refer to each other; without this, draws and inputs would stay in memory until Python's
            # garbage collector runs.
            del self.mode
        mode.check_uses()
        if self.usage is not None and self.usage.unused:
            self.usage.unused -= mode.newly_used
            self.usage.count_pass(self.net)
        return output

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for `torch.utils.checkpoint`: one for the forward pass, one for its recomputation."""
        return self._forward_context(), self._recomputation_context()

    @contextlib.contextmanager
    def _forward_context(self) -> Iterator[None]:
        mode = self.mode
        before, mode.protected = mode.protected, True
        try:
            yield
        finally:
            mode.protected = before

    @contextlib.contextmanager
    def _recomputation_context(self) -> Iterator[None]:
        # In the backward pass, the drawn weights and the mode of the forward pass are gone: restore them.
        mode = _NetworkMode(self, count=False)
        mode.protected = True
        swapped = _reparametrize_module(self.net, tied_values(self.net, self.weights))
        with entered(self), _empty_parametrization_cache(), swapped, mode:
            yield


@contextlib.contextmanager
def _empty_parametrization_cache() -> Iterator[None]:
    """Keep `parametrize.cached()` from returning what was computed from another draw."""
    kept, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = kept


class _NetworkMode(TorchFunctionMode):
    """Passes linear operations with replaced weights to the interpretation; raises an error on torch's checkpointing.

    Args:
        call: The network call.
        count: Whether to check at the end that each replaced weight was used once.
    """

    def __init__(self, call: NetworkCall, *, count: bool) -> None:
        super().__init__()
        self.call = call
        self.count = count
        self.protected = False
        self.grad_at_entry = torch.is_grad_enabled()
        self.uses = dict.fromkeys(call.replaced, 0)
        # call.weights keeps the tensors alive, so no id is used twice.
        self.names = {id(call.weights[name]): name for name in call.replaced}
        unused = () if call.usage is None else call.usage.unused
        self.unused = {id(call.weights[name]): name for name in unused}
        self.newly_used: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.grad_at_entry and not self.protected:
            _refuse_torch_checkpoint()
        if self.unused:
            self.newly_used |= {self.unused[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self.unused}
        if not self.names:
            return func(*args, **kwargs)
        op = bind(func, args, kwargs)
        if op is None:
            result = func(*args, **kwargs)
            if next(tensors_in(result), None) is not None:
                self._count(*(self.names.get(id(tensor)) for tensor in tensors_in((args, kwargs))))
            return result
        weight = self.names.get(id(op.weight))
        bias = None if op.bias is None else self.names.get(id(op.bias))
        if self.call.apply is None or (weight is None and bias is None):
            return func(*args, **kwargs)
        self._count(weight, bias)
        return self.call.apply(op, weight, bias)

    def _count(self, *names: str | None) -> None:
        for name in names:
            if name is not None:
                self.uses[name] += 1

    def check_uses(self) -> None:
        """Raise an error if a replaced weight was used more than once, unlike in the analysis of weight usage."""
        wrong = {name: uses for name, uses in self.uses.items() if uses > 1}
        if self.count and wrong:
            counts = ", ".join(f"{name!r} {uses} times" for name, uses in wrong.items())
            raise RuntimeError(
                f"{type(self.call.net).__name__}: the uses of its weights differ from those in its first forward pass: "
                f"expected each in one linear operation, got {counts}. The forward pass depends on its input or state, "
                "which only shared samples support: use estimator='shared'"
            )


def _refuse_torch_checkpoint() -> None:
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        found = hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"
    else:
        found = _called_from("torch.utils.checkpoint")
    if found:
        raise RuntimeError(
            "torch.utils.checkpoint inside a network with random weights gives wrong gradients: it recomputes the "
            "forward pass after the drawn weights have been removed again. Replace it in the network by "
            "pyrostoch.effects.checkpoint, which recomputes with the same weights and noise (and also works outside "
            "pyrostoch's models)"
        )


def _called_from(module: str) -> bool:
    """Whether a function of the module is on the call stack.

    Reentrant checkpointing, which runs with gradients off, sets no saved-tensor hook and can only be found this way.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


# The results of calls without a cache of their own, by network.
_USAGE_CACHES: weakref.WeakKeyDictionary[nn.Module, UsageCache] = weakref.WeakKeyDictionary()


@effectful(type="network")
def _network(call: NetworkCall) -> Any:
    return call.run()


def call_network(
    net: nn.Module,
    weights: dict[str, Tensor],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    sites: dict[str, str] | None = None,
    usage_cache: UsageCache | None = None,
    in_dims: InDims = 0,
    reading: Reading | None = None,
    fixed: Mapping[str, FixedEntries] | None = None,
) -> Any:
    """Call `net` with drawn weights in place of its parameters, under the active interpretation.

    Args:
        net: The network; its own parameters are not changed.
        weights: Drawn weight for each random parameter, by parameter name.
        args: Positional inputs.
        kwargs: Keyword inputs.
        sites: Pyro site names by parameter name; by default the parameter names.
        usage_cache: A dictionary for the results of the analysis of weight usage, which is made once for each kind of
            call. By default they are kept for as long as the network exists.
        in_dims: The axis of each positional input that counts the examples, `None` for an input that belongs to all of
            them. By default, the first axis of every tensor that is as long as that of the first one.
        reading: What the caller computes from the output, such as log densities: the analysis of weight usage then sees
            whether examples meet there.
        fixed: Entries of weights that are constant, by parameter name; they replace those of the draws.

    Returns:
        The network's output.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> call_network(net, {"weight": torch.tensor([[1.0, 2.0]])}, (torch.ones(1, 2),)).item()
        3.0
    """
    names = sites if sites is not None else {name: name for name in weights}
    cache = _USAGE_CACHES.setdefault(net, {}) if usage_cache is None else usage_cache
    return _network(NetworkCall(net, weights, args, kwargs or {}, names, cache, in_dims, reading, fixed))


def checkpoint(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Checkpoint a part of a network: recompute its activations in the backward pass instead of storing them.

    Use it in place of `torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)`. In a network with
    random weights torch's function would recompute with other weights; this one recomputes with the same.

    Args:
        function: The part of the network.
        args: Its inputs.
        kwargs: Its keyword inputs.

    Returns:
        The result of `function`.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> checkpoint(torch.sin, x).sum().backward()
        >>> bool(torch.allclose(x.grad, torch.cos(x)))
        True
    """
    call, options = active_call(), cast(Any, kwargs)
    if call is None and inside_network():
        return function(*args, **kwargs)  # the analysis of weight usage, whose weights a recomputation would not see
    if call is None:
        return cast(_T, torch_checkpoint(function, *args, use_reentrant=False, **options))
    contexts = call.checkpoint_contexts
    return cast(_T, torch_checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **options))
