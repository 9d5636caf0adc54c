"""The call of a network with drawn weights in place of its parameters, as a Pyro effect.

`call_network` is to a network what `pyro.sample` is to a random variable: it states what is computed, and the active
handler, an interpretation, decides how the weights' randomness is treated. Without one, the drawn values are used.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode, resolve_name

from pyrostoch._fixed_entries import FixedEntries
from pyrostoch._ops import LinearOp, bind
from pyrostoch.effects.active import entered
from pyrostoch.effects.checkpointing import checkpointed_function, explain_refusal, modules_of
from pyrostoch.effects.perturbed import Reading
from pyrostoch.effects.swap import call_with, tied_values
from pyrostoch.effects.trees import map_tensors, tensors_in
from pyrostoch.effects.usage import Usage, UsageCache
from pyrostoch.moments import MissingRuleError, Moments
from pyrostoch.protocols import InDims

__all__ = ["NetworkCall", "call_network"]

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
            inputs = (self.args, self.kwargs)
            args, kwargs = map_tensors(torch.clone, inputs) if self.usage and self.usage.writes_inputs else inputs
            with entered(self), _empty_parametrization_cache(), mode:
                output = call_with(self.net, self.weights, args, kwargs)
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

    def reason_not_fixed(self, function: Any) -> str:
        """Why a part of the network may draw or use something random; empty where it does neither.

        Args:
            function: The part: a module, a method of one, or a function that holds some.
        """
        parts = modules_of(function)
        if not parts:
            return "its modules are not known"
        names = {id(module): prefix for prefix, module in self.net.named_modules()}
        places = tied_values(self.net, self.weights)
        for part in parts:
            if id(part) not in names:
                return f"{type(part).__name__} is no module of the network"
            prefix = names[id(part)]
            inside = [place for place in places if not prefix or place.startswith(f"{prefix}.")]
            if inside:
                return f"it holds {inside[0]!r}"
            for inner in part.modules():
                if isinstance(inner, PyroModule) or type(inner).__module__.startswith("pyrostoch."):
                    return f"it holds a {type(inner).__name__}"
        return ""

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
        # Functions that torch checkpoints, in which nothing is random, by id.
        self.fixed_parts: dict[int, Any] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.grad_at_entry and not self.protected and not torch.compiler.is_compiling():
            self._refuse_random_checkpoint((args, kwargs))
        if self.unused:
            self.newly_used |= {self.unused[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self.unused}
        if not self.names:
            return func(*args, **kwargs)
        op = bind(func, args, kwargs)
        operands = () if op is None else (op.weight, op.bias)
        given = [t for t in tensors_in((args, kwargs)) if id(t) in self.names and not any(t is o for o in operands)]
        if given:
            result = func(*args, **kwargs)
            if next(tensors_in(result), None) is not None:  # and not only its shape or its device
                self._refuse_other_use(self.names[id(given[0])], func)
            return result
        if op is None:
            return func(*args, **kwargs)
        weight = self.names.get(id(op.weight))
        bias = None if op.bias is None else self.names.get(id(op.bias))
        if self.call.apply is None or (weight is None and bias is None):
            return func(*args, **kwargs)
        self._count(weight, bias)
        return self.call.apply(op, weight, bias)

    def _refuse_random_checkpoint(self, inputs: Any) -> None:
        """Raise an error where torch's checkpointing would recompute something random after the call."""
        function = checkpointed_function()
        if function is None:
            return
        if id(function) not in self.fixed_parts:
            reason = self.call.reason_not_fixed(function)
            if reason:
                raise explain_refusal(reason)
            self.fixed_parts[id(function)] = function
        random = [name for name, value in self.call.weights.items() if any(value is t for t in tensors_in(inputs))]
        if random:
            raise explain_refusal(f"it uses {random[0]!r}")
        if any(isinstance(t, Moments) for t in inputs[0]):
            raise explain_refusal("it is given moments")

    def _count(self, *names: str | None) -> None:
        for name in names:
            if name is not None:
                self.uses[name] += 1

    def check_uses(self) -> None:
        """Raise an error if a replaced weight was used more than once, unlike in the analysis of weight usage."""
        wrong = {name: uses for name, uses in self.uses.items() if uses > 1}
        if self.count and wrong:
            self._refuse(wrong, ", ".join(f"{name!r} {uses} times" for name, uses in wrong.items()))

    def _refuse_other_use(self, name: str, func: Callable[..., Any]) -> None:
        self._refuse([name], f"{name!r} in {resolve_name(func) or func}")

    def _refuse(self, names: Iterable[str], got: str) -> NoReturn:
        usage = self.call.usage
        if usage is not None:  # the next call will know
            usage.obstacles.update(dict.fromkeys(names, "its uses differ from pass to pass"))
        raise RuntimeError(
            f"{type(self.call.net).__name__}: the uses of its weights differ from those in its first forward pass: "
            f"expected each in one linear operation, got {got}. The forward pass depends on its input or state, which "
            "only shared samples support: use estimator='shared' (predict: joint=True), or call again: from now on the "
            "weight keeps one shared draw"
        )


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
