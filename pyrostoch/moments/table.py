"""The table of rules: what each torch function does to moments, and what is said where it has no rule."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

__all__ = ["RULES", "MissingRuleError", "apply", "caller", "moments_in", "refuse", "rule"]

Rule = Callable[..., Any]

#: The rule of each torch function: called with the function's own arguments.
RULES: dict[Any, Rule] = {}


class MissingRuleError(TypeError):
    """A network uses a function for which there is no moment rule.

    Args:
        message: What is wrong.
        function: Name of the function.
        module: The module that called it, if one did.
    """

    def __init__(self, message: str, function: str, module: nn.Module | None) -> None:
        super().__init__(message)
        self.function, self.module = function, module


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule for torch functions, in place of any that they have.

    The rule is called as `rule(func, *args, **kwargs)` with the torch function that was called and its arguments, of
    which some are `Moments`: `.loc` and `.var`, and `.cov` where covariances are carried, the examples in front. It
    returns `Moments`. Best made of functions that have rules, which then do covariances too; a rule that returns
    `Moments(loc, var)` alone carries variances only, under `"moments:full"` as well.

    Args:
        functions: Functions and methods of tensors.

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

    def register(made: Rule) -> Rule:
        for function in functions:
            RULES[function] = made
        return made

    return register


def apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer a torch function that was given moments.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        What the function returns, with moments in place of tensors.

    Raises:
        MissingRuleError: There is no rule, and the moments do not allow to sample through the function.
    """
    found = RULES.get(func)
    if found is not None:
        return found(func, *args, **kwargs)
    given = list(moments_in((args, kwargs)))
    if given and given[0].settings.sampled:
        return RULES["fallback"](func, *args, **kwargs)
    refuse(func)


def refuse(func: Callable[..., Any], always: str = "") -> NoReturn:
    """Say that a function has no rule, and where it was called.

    Args:
        func: The function.
        always: Why it can have none and cannot be sampled through alone either, if that is so.

    Raises:
        MissingRuleError: Always.
    """
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    module = caller()
    where = "" if module is None else f", called in {type(module).__name__}"
    if always:
        raise MissingRuleError(
            f"moments: no rule for {name}{where}: {always}. Predict with mode='mc', which draws the whole network",
            name,
            module,
        )
    why = REFUSED.get(name.rpartition(".")[2], "")
    raise MissingRuleError(
        f"moments: no rule for {name}{where}{why}. Predict with mode='mc', or sample through such operations alone "
        "with mode='moments:mc'; a rule is added by pyrostoch.moments.rule",
        name,
        module,
    )


#: Why some functions have no rule.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("multi_head_attention_forward", "scaled_dot_product_attention", "softmax", "_native_multi_head_attention"),
        " (attention: products of softmax and values have no usable moments)",
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), " (a recurrent network in one function; unroll its cell)"),
}


def moments_in(tree: Any) -> Iterator[Any]:
    """The moments in nested tuples, lists and dictionaries.

    Args:
        tree: Arguments of a function.
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
    """The innermost module on the stack: it runs the function at hand."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not torch.compiler.is_compiling():
            return owner
        frame = frame.f_back
    return None
