"""What the rules of several kinds share: copies of every sort, and what a docstring has to say."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def _pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def _saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


#: The ways to copy an object, by name.
COPIES: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": _pickled, "torch.save": _saved}


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold equal numbers under equal names, in storage of their own."""
    left, right = one.state_dict(), other.state_dict()
    storage = {value.data_ptr() for value in left.values() if value.numel()}
    return (
        left.keys() == right.keys()
        and all(torch.equal(value, right[name]) for name, value in left.items())
        and not storage & {value.data_ptr() for value in right.values() if value.numel()}
    )


def documentation(kind: type) -> str:
    """The docstrings of a class, of the classes of this library that it inherits from, and of their methods."""
    own = [cls for cls in kind.__mro__ if cls.__module__.startswith("pyrostoch")]
    methods = (member for cls in own for member in vars(cls).values() if inspect.isfunction(member))
    return "\n".join(inspect.getdoc(thing) or "" for thing in (*own, *methods))


def assert_documented(kind: type, *, source: bool, shapes: bool = True) -> None:
    """A class says what it is in one line, tells shapes, shows an example, and names its source where it has one."""
    text = inspect.getdoc(kind) or ""
    first = text.splitlines()[0] if text else ""
    assert first.endswith((".", ":")) and len(first) > 20, f"{kind.__name__}: {first!r}"
    assert ">>> " in text or "see `RandomWeights`" in text, f"{kind.__name__} shows no example"
    if shapes:
        assert re.search(r"shape|\(n,|\(batch|\(B, |\(\.\.\.,|batch axis", documentation(kind)), kind.__name__
    if source:
        assert re.search(r"References:\n +\S.*(19|20)\d\d", text, re.DOTALL), f"{kind.__name__} names no source"


def public(module: Any, base: type, *, without: tuple[str, ...] = ()) -> set[str]:
    """Names of the public classes of a package that are of a kind, without the kind's own base classes."""
    found = {name: getattr(module, name) for name in module.__all__}
    classes = {name for name, thing in found.items() if inspect.isclass(thing) and issubclass(thing, base)}
    return classes - {base.__name__, *without}


def kinds(registry: dict[str, Any]) -> set[str]:
    """The classes that a registry names: `VarianceOnly, uniform` is a `VarianceOnly`."""
    return {name.partition(",")[0] for name in registry}
