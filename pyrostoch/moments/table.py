"""The table of rules: what each torch function does to moments, and the errors for functions without a rule."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from pyrostoch._manual import see

__all__ = ["RULES", "MissingRuleError", "apply", "caller", "moments_in", "refuse", "rule"]

Rule = Callable[..., Any]

#: The rule of each torch function, called with the function and its arguments; "fallback" is for those without one.
RULES: dict[Callable[..., Any] | str, Rule] = {}


class MissingRuleError(TypeError):
    """A network uses a function for which there is no moment rule.

    Args:
        message: The error message.
        function: Name of the function.
        module: The module that called it, or `None`.

    Example:
        >>> from pyrostoch.moments import Moments
        >>> try:
        ...     torch.cumsum(Moments(torch.zeros(1, 2), torch.ones(1, 2)), 1)
        ... except MissingRuleError as error:
        ...     error.function
        'torch.cumsum'
    """

    def __init__(self, message: str, function: str, module: nn.Module | None) -> None:
        super().__init__(message)
        self.function, self.module = function, module


def rule(*functions: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for torch functions, in place of any existing rule.

    The rule is called as `rule(func, *args, **kwargs)` with the torch function that was called and its arguments, of
    which some are `Moments` with `.loc`, `.var` and (where covariances are carried) `.cov`; their first axis counts
    examples. It returns `Moments`. A rule composed of functions that have rules gets covariances from these; a rule
    that returns `Moments(loc, var)` carries variances only, under `"moments:full"` as well.

    Args:
        functions: Torch functions and methods of tensors.

    Example:
        >>> from pyrostoch.effects import MomentPropagation
        >>> from pyrostoch.moments import Moments
        >>> @rule(torch.flipud)
        ... def _flipped(func, x):
        ...     return torch.flip(x, (1,))
        >>> torch.flipud(Moments(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2))).loc
        tensor([[2., 1.]])
        >>> _ = RULES.pop(torch.flipud)
    """

    def register(new_rule: Rule) -> Rule:
        for function in functions:
            RULES[function] = new_rule
        return new_rule

    return register


def apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a torch function to arguments of which some are moments, by its rule.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        The result of the function, with moments in place of tensors.

    Raises:
        MissingRuleError: There is no rule, and the settings of the moments do not allow Monte Carlo instead.
    """
    registered = RULES.get(func)
    if registered is not None:
        return registered(func, *args, **kwargs)
    given = list(moments_in((args, kwargs)))
    if given and given[0].settings.sampled:
        return RULES["fallback"](func, *args, **kwargs)
    refuse(func)


def refuse(func: Callable[..., Any], reason: str = "") -> NoReturn:
    """Raise the error that a function has no rule, with the module that called it.

    Args:
        func: The function.
        reason: Why it can neither have a rule nor be approximated by Monte Carlo on its own, if that is so.

    Raises:
        MissingRuleError: Always.
    """
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    module = caller()
    where = "" if module is None else f", called in {type(module).__name__}"
    if reason:
        raise MissingRuleError(
            f"moments: no rule for {name}{where}: {reason}. Predict with mode='mc', which draws the whole network"
            f"{see('how-to/choose_estimator')}",
            name,
            module,
        )
    note = NOTES.get(name.rpartition(".")[2], "")
    raise MissingRuleError(
        f"moments: no rule for {name}{where}{note}. Predict with mode='mc', which draws the whole network, or try "
        "mode='moments:mc:20' (20 passes with Monte Carlo for such operations only), or add a rule with "
        f"pyrostoch.moments.rule{see('how-to/choose_estimator')}",
        name,
        module,
    )


#: Why some functions have no rule, for the error message.
NOTES: dict[str, str] = {
    **dict.fromkeys(
        ("multi_head_attention_forward", "scaled_dot_product_attention", "softmax", "_native_multi_head_attention"),
        " (attention: products of softmax and values have no usable moments)",
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), " (a recurrent network in one function: unroll its cell)"),
}


def moments_in(tree: object) -> Iterator[Any]:
    """The `Moments` in nested tuples, lists and dictionaries.

    Args:
        tree: Arguments or result of a function.
    """
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from moments_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from moments_in(item)
    elif not isinstance(tree, Tensor) and hasattr(type(tree), "become"):
        yield tree


def caller() -> nn.Module | None:
    """The innermost module on the stack, which called the present function; `None` outside of any module."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not torch.compiler.is_compiling():
            return owner
        frame = frame.f_back
    return None
