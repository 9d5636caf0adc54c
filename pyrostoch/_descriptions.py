"""Texts that tell functions and objects apart: source and values that they refer to, the same in every process.

Two lambdas of a file differ in their source, `lambda out: Normal(out, s)` with another `s` only in its value. What
cannot be described so is listed, since then nobody can tell whether it is that of a saved file. What comes from an
installed library is told by its name, whatever the version.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.utils import lazy_property

__all__ = ["describe_function", "describe_settings", "describe_value", "is_cached", "trained_values"]

# Longer sources, and more numbers, are told apart by their checksum.
_MAX_TEXT, _MAX_NUMBERS = 300, 20
_MAX_ITEMS = 1000
_INSTALLED = tuple(
    Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CACHES = ("_inv", "_cached_x_y", "_cache_size", "_validate_args")
# The notes of a run on what it trains are none either: `pyrostoch.guides.temperature`, `...statistics_owner`.
_NOT_SETTINGS = {*vars(nn.Module()), "training", "_trained_at_temperature", "_statistics_of_run"}


def describe_function(function: Callable[..., Any]) -> tuple[str, list[str]]:
    """Describe a function by its source, its defaults, and the values from outside that it uses.

    Args:
        function: A function, or another object that can be called.

    Returns:
        The text, which is the same in another process that runs the same code; and what it could not describe, as
        phrases.

    Example:
        >>> describe_function(functools.partial(pow, exp=0.5))
        ('partial(pow, exp=0.5)', [])
    """
    found = _Description()
    return found.function(function), found.phrases


def describe_value(name: str, value: object) -> tuple[str, list[str]]:
    """Describe any value by what it holds.

    Args:
        name: Its name, for the phrases.
        value: The value: numbers, containers, arrays, tensors, distributions, objects of one's own.

    Returns:
        As `describe_function`.

    Example:
        >>> describe_value("settings", {"scales": np.ones(2)})
        ("dict('scales': [1.0, 1.0] of float64)", [])
    """
    found = _Description()
    return found.value(name, value), found.phrases


def describe_settings(module: nn.Module) -> tuple[str, list[str]]:
    """Describe what an object of a user's class was made with: the attributes of the module, and the class's source.

    Args:
        module: A module, looked at without its submodules, parameters and buffers.

    Returns:
        As `describe_function`; empty for classes of this library and others that are installed, which describe
        themselves.

    Example:
        >>> describe_settings(nn.Linear(1, 1))
        ('', [])
    """
    found = _Description()
    if _is_installed(type(module)):
        return "", []
    texts = [f"{name}={found.value(name, value)}" for name, value in vars(module).items() if name not in _NOT_SETTINGS]
    return ", ".join([*texts, found.source_of(type(module))]), found.phrases


def trained_values(function: Callable[..., Any]) -> dict[str, Tensor]:
    """Tensors that require a gradient and that a function uses from outside, by the names under which it sees them.

    Args:
        function: A function, or another object that can be called.

    Example:
        >>> scale = torch.ones(1, requires_grad=True)
        >>> list(trained_values(functools.partial(torch.mul, other=scale)))
        ['other']
    """
    found = _Description()
    found.function(function)
    return found.trained


class _Description:
    """Collects what a text leaves out while it is made."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.trained: dict[str, Tensor] = {}
        self._within: list[int] = []  # objects that are being described, which may refer to themselves

    @property
    def phrases(self) -> list[str]:
        return list(dict.fromkeys(self.unknown))

    def function(self, function: Any) -> str:
        if isinstance(function, functools.partial):
            arguments = [self.value("", value) for value in function.args]
            arguments += [f"{k}={self.value(k, value)}" for k, value in sorted(function.keywords.items())]
            return f"partial({', '.join([self.function(function.func), *arguments])})"
        if isinstance(function, types.MethodType):
            owner = self.value(f"the object of method {function.__name__}", function.__self__)
            return f"{owner}.{function.__name__}"
        if not isinstance(function, types.FunctionType):
            name = getattr(function, "__qualname__", None)
            if name is None or isinstance(function, type):
                return self.value("the object that is called", function)
            return str(name)
        if _is_installed(function):
            return f"{function.__module__}.{function.__qualname__}"
        source = _source(function)
        if source is None:
            self.unknown.append(
                f"the source of {function.__qualname__!r} cannot be had (it was made by exec, or typed in)"
            )
            source = function.__qualname__
        source = _shortened(function.__qualname__, source)
        if id(function) in self._within:
            return source  # it refers to itself
        self._within.append(id(function))
        values = [f"{name}={self.value(name, value)}" for name, value in _outside(function)]
        self._within.pop()
        return "; ".join([source, *values])

    def value(self, name: str, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, Tensor):
            return self._tensor(name, value)
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            return _numbers(torch.Size(value.shape), str(value.dtype), value.tolist, np.asarray(value).tobytes)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            return f"({self.function(value)})"
        if isinstance(value, type):
            text = "" if _is_installed(value) else f" with {self.source_of(value)}"
            return f"{value.__module__}.{value.__qualname__}{text}" if text else value.__qualname__
        if isinstance(value, (types.BuiltinFunctionType, np.ufunc)):
            return value.__name__
        if id(value) in self._within:
            return f"{type(value).__qualname__} that holds itself"
        self._within.append(id(value))
        try:
            return self._compound(name, value)
        finally:
            self._within.pop()

    def _compound(self, name: str, value: Any) -> str:
        """A container or an object, by what it holds."""
        kind = type(value).__qualname__
        if isinstance(value, (tuple, list, dict, set, frozenset)) and len(value) > _MAX_ITEMS:
            self.unknown.append(f"the value of {name!r}, a {kind} of {len(value)} items")
            return kind
        if isinstance(value, (tuple, list)):
            return f"{kind}({', '.join(self.value(name, item) for item in value)})"
        if isinstance(value, (set, frozenset)):
            return f"{kind}({', '.join(sorted(self.value(name, item) for item in value))})"
        if isinstance(value, dict):
            return f"{kind}({', '.join(f'{k!r}: {self.value(name, item)}' for k, item in value.items())})"
        if isinstance(value, nn.Module):
            own = {f"{name}.{part}": p for part, p in value.named_parameters() if p.requires_grad}
            self.trained |= own
            self.unknown.append(f"the value of {name!r}, a {kind}")
            return kind
        held = getattr(value, "__dict__", None)
        installed = _is_installed(type(value))
        # Of a library's objects only those are known to be no more than their attributes.
        is_known = isinstance(value, (types.SimpleNamespace, Distribution, Transform)) or _is_record(value)
        if held is None or (installed and not is_known):
            if installed or held is None:
                self.unknown.append(f"the value of {name!r}, a {kind}")
            return kind
        kept = {k: v for k, v in held.items() if not k.startswith("__")}
        if isinstance(value, (Distribution, Transform)):  # without what they compute when they are asked for it
            kept = {k: v for k, v in kept.items() if k not in _CACHES and not _is_lazy(type(value), k)}
        texts = [f"{k}={self.value(f'{name}.{k}', v)}" for k, v in kept.items()]
        text = f"{kind}({', '.join(texts)})"
        return text if installed else f"{text} of {self.source_of(type(value))}"

    def _tensor(self, name: str, value: Tensor) -> str:
        if value.requires_grad:  # it has another value after every step
            self.trained[name] = value
        if value.requires_grad or value.layout != torch.strided or value.is_quantized:
            self.unknown.append(f"the value of {name!r}, a {type(value).__qualname__}")
            return type(value).__qualname__
        numbers = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        data = numbers.reshape(-1).view(torch.uint8).numpy()
        return _numbers(numbers.shape, str(numbers.dtype), numbers.tolist, data.tobytes)

    def source_of(self, cls: type) -> str:
        """A checksum of a class's source."""
        try:
            source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(cls))))
        except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
            self.unknown.append(f"the source of the class {cls.__qualname__!r} cannot be had")
            return f"class {cls.__qualname__}"
        return _shortened(f"class {cls.__qualname__}", source, longest=0)


def _is_record(value: Any) -> bool:
    """Whether an object is a dataclass that does not change and holds its fields only."""
    settings: Any = getattr(type(value), "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        return False
    return vars(value).keys() <= {field.name for field in dataclasses.fields(value)}


def is_cached(cls: type, name: str) -> bool:
    """Whether an attribute of an object is what its class computed and keeps, `functools.cached_property`.

    Args:
        cls: The class.
        name: Name of the attribute.
    """
    return isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)


def _is_lazy(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name, None), lazy_property) or is_cached(cls, name)


def _shortened(name: str, source: str, longest: int = _MAX_TEXT) -> str:
    if len(source) <= longest:
        return source
    return f"{name} with source {hashlib.sha256(source.encode()).hexdigest()[:16]}"


def _numbers(shape: torch.Size, dtype: str, numbers: Callable[[], Any], data: Callable[[], bytes]) -> str:
    if shape.numel() <= _MAX_NUMBERS:
        return f"{numbers()} of {dtype}"
    return f"{tuple(shape)} of {dtype} with checksum {hashlib.sha256(data()).hexdigest()[:16]}"


def _is_installed(part: Any) -> bool:
    """Whether a class, function or module comes with Python, this library, or a library that is installed."""
    name = part.__name__ if isinstance(part, types.ModuleType) else str(getattr(part, "__module__", None))
    root = name.partition(".")[0]
    if root in ("pyrostoch", "builtins"):
        return True
    file = getattr(sys.modules.get(root), "__file__", None)
    if file is None:  # a name space of several folders, or built into the interpreter; scripts have `__main__`
        return root in sys.builtin_module_names
    return any(folder in Path(file).resolve().parents for folder in _INSTALLED)


def _outside(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Names and values of the defaults, the enclosing variables and the global ones that a function uses."""
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
    used = _names_in(code)
    for name in sorted(used & function.__globals__.keys()):
        yield from _global_value(name, function.__globals__[name], used, ())


def _global_value(name: str, value: Any, used: set[str], within: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """A global variable; of a user's module or class instead what the function may read of it."""
    holder = isinstance(value, (type, types.ModuleType))
    if holder or isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        if _is_installed(value):
            # The source names it, unless it has another name there.
            if not isinstance(value, types.ModuleType) and value.__name__ != name:
                yield name, value
            return
    if not holder:
        yield name, value
    elif value not in within:
        for inner in sorted(used & vars(value).keys()):
            yield from _global_value(f"{name}.{inner}", vars(value)[inner], used, (*within, value))


def _names_in(code: types.CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


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
