"""The call of a network with drawn weights in place of its parameters, as an effect that interpretations handle.

`call_network` is to a network what `pyro.sample` is to a random variable: it says what is computed, and the
interpretation in force says how the weights' randomness is treated. Without one, the drawn values are used as they are.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from pyrostoch._ops import LinearOp, bind
from pyrostoch.effects.active import active_call, entered
from pyrostoch.effects.usage import tensors_in
from pyrostoch.moments import MissingRuleError

__all__ = ["NetworkCall", "call_network", "checkpoint"]

# Carries out one linear operation whose weights were replaced: (operation, name of weight, name of bias) -> output.
ApplyOperation = Callable[[LinearOp, str | None, str | None], Any]


class NetworkCall:
    """One call of a network, open to be changed by an interpretation before it runs.

    Args:
        net: The network.
        weights: The drawn weight for each random parameter, by parameter name. An interpretation may replace a value.
        args: Positional inputs.
        kwargs: Keyword inputs.
        sites: Pyro site name of each random parameter.
        usage_cache: Where the analysis of this network's weight usage is kept between calls.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sites: dict[str, str],
        usage_cache: dict[Any, Any],
    ) -> None:
        self.net = net
        self.weights = dict(weights)
        self.args = args
        self.kwargs = kwargs
        self.sites = sites
        self.usage_cache = usage_cache
        #: Names of the parameters whose draws are replaced by their distributions.
        self.replaced: set[str] = set()
        self.apply: ApplyOperation | None = None

    def run(self) -> Any:
        """Call the network once, the mode around nothing but the call."""
        mode = _NetworkMode(self, count=True)
        self.mode = mode
        try:
            with entered(self), _uncached(), mode:
                output = functional_call(self.net, self.weights, self.args, self.kwargs)
        except MissingRuleError as error:
            names = {id(module): name for name, module in self.net.named_modules()}
            place = names.get(id(error.module))
            if not place:
                raise
            raise MissingRuleError(f"module {place!r}: {error}", error.function, error.module) from None
        finally:
            # Call and mode refer to each other: draws and inputs would stay until Python collects circles.
            del self.mode
        mode.check_uses()
        return output

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Contexts for `torch.utils.checkpoint`: one around the forward pass, one around its recomputation."""
        return self._protected(), self._again()

    @contextlib.contextmanager
    def _protected(self) -> Iterator[None]:
        mode = self.mode
        before, mode.protected = mode.protected, True
        try:
            yield
        finally:
            mode.protected = before

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        # The swap and the mode of the forward pass have ended by the time of the backward pass: put them back.
        mode = _NetworkMode(self, count=False)
        mode.protected = True
        with entered(self), _uncached(), _reparametrize_module(self.net, self.weights, tie_weights=True), mode:
            yield


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Keep `parametrize.cached()` from handing out what was computed from another draw."""
    kept, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = kept


class _NetworkMode(TorchFunctionMode):
    """Hands linear operations with replaced weights to the interpretation, and refuses unprotected checkpointing."""

    def __init__(self, call: NetworkCall, *, count: bool) -> None:
        super().__init__()
        self.call = call
        self.count = count
        self.protected = False
        self.grad_at_entry = torch.is_grad_enabled()
        self.uses = dict.fromkeys(call.replaced, 0)
        # call.weights keeps the tensors alive, so an id stands for one tensor throughout.
        self.names = {id(call.weights[name]): name for name in call.replaced}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.grad_at_entry and not self.protected:
            _refuse_checkpoint()
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
        """Refuse a pass in which a replaced weight was not used exactly once, as the first pass had found."""
        wrong = {name: uses for name, uses in self.uses.items() if uses != 1}
        if self.count and wrong:
            found = ", ".join(f"{name!r} {uses} times" for name, uses in wrong.items())
            raise RuntimeError(
                f"{type(self.call.net).__name__}: the weights' uses differ from those of its first pass: expected one "
                f"linear use each, found {found}. The forward pass depends on its input or state, which local "
                "reparameterization and flipout cannot follow: use estimator='shared'"
            )


def _refuse_checkpoint() -> None:
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        found = hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"
    else:
        found = _called_from("torch.utils.checkpoint")
    if found:
        raise RuntimeError(
            "torch.utils.checkpoint inside a network with random weights gives wrong gradients: its recomputation runs "
            "after the drawn weights were taken out again. Replace it in the network by pyrostoch.effects.checkpoint, "
            "which puts the same weights and the same noise back (it works without pyrostoch's models too)"
        )


def _called_from(module: str) -> bool:
    # Reentrant checkpointing leaves no saved-tensor hook; it shows as a frame that switched gradients off.
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


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
    usage_cache: dict[Any, Any] | None = None,
) -> Any:
    """Call `net` with drawn weights in place of its parameters, under the interpretation in force.

    Args:
        net: The network; its own parameters are left alone.
        weights: Drawn weight for each random parameter, by parameter name.
        args: Positional inputs.
        kwargs: Keyword inputs.
        sites: Pyro site names by parameter name, where they differ from it.
        usage_cache: A dictionary kept by the caller, in which the analysis of its weight usage is kept.

    Returns:
        The network's output.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> call_network(net, {"weight": torch.tensor([[1.0, 2.0]])}, (torch.ones(1, 2),)).item()
        3.0
    """
    names = sites if sites is not None else {name: name for name in weights}
    return _network(NetworkCall(net, weights, args, kwargs or {}, names, {} if usage_cache is None else usage_cache))


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Checkpoint a part of a network: recompute its activations in the backward pass instead of keeping them.

    A drop-in for `torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)` that is exact inside a
    network with random weights, where torch's own would recompute with other weights.

    Args:
        function: The part of the network.
        args: Its inputs.
        kwargs: Its keyword inputs.

    Returns:
        What `function` returns.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> checkpoint(torch.sin, x).sum().backward()
        >>> bool(torch.allclose(x.grad, torch.cos(x)))
        True
    """
    call = active_call()
    if call is None:
        return torch_checkpoint(function, *args, use_reentrant=False, **kwargs)
    return torch_checkpoint(function, *args, use_reentrant=False, context_fn=call.checkpoint_contexts, **kwargs)
