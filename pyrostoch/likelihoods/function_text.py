"""A text that tells functions apart: their source, and the values that it refers to, the same in every process.

Two lambdas of a file differ in their source, `lambda out: Normal(out, s)` with another `s` only in its value. What
cannot be described so is listed, since then nobody can tell whether a function is the one of a saved file.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["describe_function"]

# Longer sources, and more numbers, are told apart by their checksum.
_MAX_TEXT, _MAX_NUMBERS = 300, 20
_MAX_ITEMS = 1000


def describe_function(function: Callable[..., Any]) -> tuple[str, list[str]]:
    """Describe a function by its source, its defaults, and the values from outside that it uses.

    Args:
        function: A function, or another object that can be called.

    Returns:
        The text, which is the same in another process that runs the same code; and what it could not describe, as
        phrases.

    Example:
        >>> describe_function(functools.partial(pow, exp=0.5))
        ('partial(pow, exp=0.5)', ["the source of 'pow' cannot be had"])
    """
    unknown: list[str] = []
    return _describe(function, unknown, ()), list(dict.fromkeys(unknown))


def _describe(function: Any, unknown: list[str], within: tuple[int, ...]) -> str:
    if isinstance(function, functools.partial):
        arguments = [_value("", value, unknown, within) for value in function.args]
        arguments += [f"{k}={_value(k, value, unknown, within)}" for k, value in sorted(function.keywords.items())]
        return f"partial({', '.join([_describe(function.func, unknown, within), *arguments])})"
    if isinstance(function, types.MethodType):
        unknown.append(f"the object of type {type(function.__self__).__qualname__!r} of method {function.__name__!r}")
        return f"{type(function.__self__).__qualname__}.{_describe(function.__func__, unknown, within)}"
    if not isinstance(function, types.FunctionType):
        if name := getattr(function, "__qualname__", None):
            unknown.append(f"the source of {name!r} cannot be had")
            return str(name)
        unknown.append(f"an object of type {type(function).__qualname__!r} with all that it holds")
        return type(function).__qualname__
    source = _source(function)
    if source is None:
        unknown.append(f"the source of {function.__qualname__!r} cannot be had (it was made by exec, or typed in)")
        source = function.__qualname__
    if len(source) > _MAX_TEXT:
        source = f"{function.__qualname__} with source {hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if id(function) in within:
        return source  # it refers to itself
    within = (*within, id(function))
    values = [f"{name}={_value(name, value, unknown, within)}" for name, value in _outside(function)]
    return "; ".join([source, *values])


def _outside(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Names and values of the defaults, the enclosing variables and the plain global ones that a function uses."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    yield from zip(names[len(names) - len(defaults) :], defaults, strict=True)
    yield from sorted((function.__kwdefaults__ or {}).items())
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    for name in sorted(_global_names(code)):
        value = function.__globals__.get(name)
        # Modules and classes are told by their names, which the source has.
        if isinstance(value, (bool, int, float, complex, str, tuple, list, dict, Tensor, types.FunctionType)):
            yield name, value


def _global_names(code: types.CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_global_names, inner))


def _value(name: str, value: Any, unknown: list[str], within: tuple[int, ...]) -> str:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
        return repr(value)
    if isinstance(value, (tuple, list)) and len(value) <= _MAX_ITEMS:
        return f"{type(value).__name__}({', '.join(_value(name, item, unknown, within) for item in value)})"
    if isinstance(value, dict) and len(value) <= _MAX_ITEMS:
        return f"dict({', '.join(f'{k!r}: {_value(name, item, unknown, within)}' for k, item in value.items())})"
    # A tensor that is trained has another value after every step.
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.requires_grad:
        numbers = value.detach().cpu()
        if numbers.numel() <= _MAX_NUMBERS:
            return f"{numbers.tolist()} of {numbers.dtype}"
        data = numbers.contiguous().reshape(-1).view(torch.uint8).numpy().data
        return f"{tuple(numbers.shape)} of {numbers.dtype} with checksum {hashlib.sha256(data).hexdigest()[:16]}"
    # Told by their names, as where the source itself names them.
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return value.__name__
    if isinstance(value, (types.FunctionType, functools.partial)):
        return f"({_describe(value, unknown, within)})"
    unknown.append(f"the value of {name!r}, a {type(value).__qualname__}")
    return type(value).__qualname__


def _source(function: types.FunctionType) -> str | None:
    """The source without comments and line breaks; `None` where it cannot be had, or not for certain."""
    code = function.__code__
    try:
        lines, first = inspect.findsource(code)
        tree = ast.parse("".join(lines))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        return None
    kinds = ast.Lambda if function.__name__ == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
    where = {(line, column) for line, _, column, _ in code.co_positions() if line is not None and column is not None}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, kinds):
            continue
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(part.lineno for part in decorators)])
        body = node.body if isinstance(node.body, list) else [node.body]
        begin, end = (body[0].lineno, body[0].col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
        inside = [place for place in where if begin <= place < end]
        # Two lambdas of one line are told apart by the columns of their instructions.
        if start == code.co_firstlineno and inside and getattr(node, "name", "<lambda>") == function.__name__:
            found.append((len(inside), node))
    if not found:
        return None
    most = max(count for count, _ in found)
    nodes = [node for count, node in found if count == most]
    # Of a lambda and one within it, both may hold all instructions of the inner one.
    return ast.unparse(min(nodes, key=lambda node: (node.end_col_offset or 0) - node.col_offset))
