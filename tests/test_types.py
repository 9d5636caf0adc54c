"""Annotations of public signatures say something: few arguments are `Any`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

import pyrostoch

#: The share of annotated arguments of what stands in an `__all__` that may take anything.
MOST = 0.03


def modules() -> Iterator[Any]:
    for info in pkgutil.walk_packages(pyrostoch.__path__, "pyrostoch."):
        # The workers of the speed benchmark import libraries that are not installed here.
        if "__main__" not in info.name:
            yield importlib.import_module(info.name)


def functions_of(thing: Any) -> Iterator[Callable[..., Any]]:
    """A public function, or the constructor and the public methods that a public class defines."""
    if inspect.isfunction(thing):
        yield thing
    elif inspect.isclass(thing):
        for name, member in vars(thing).items():
            function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if inspect.isfunction(function) and (not name.startswith("_") or name in {"__init__", "__call__"}):
                yield function


@cache
def arguments() -> dict[str, bool]:
    """Whether each annotated argument takes anything, by its place."""
    found: dict[str, bool] = {}
    for module in modules():
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if getattr(thing, "__module__", None) != module.__name__:
                continue  # counted where it is defined
            for function in functions_of(thing):
                # Resolved at run time, so that an alias of Any is Any. Dataclasses make their own `__init__`.
                hints = typing.get_type_hints(function, localns={"Figure": object, "Trainer": object})
                for argument, hint in hints.items():
                    if argument != "return":
                        found[f"{module.__name__}.{function.__qualname__}({argument})"] = hint is Any
    return found


def test_few_public_arguments_take_anything() -> None:
    pytest.importorskip("lightning")
    found = arguments()
    anything = sorted(place for place, is_any in found.items() if is_any)
    assert len(found) > 1000
    assert len(anything) <= MOST * len(found), f"{len(anything)} of {len(found)}:\n" + "\n".join(anything)


@pytest.mark.parametrize("name", ["Model", "Guide", "SiteGuide", "Inputs", "Data", "Output"])
def test_the_protocols_are_there_for_users(name: str) -> None:
    assert name in pyrostoch.protocols.__all__


def test_any_is_seen() -> None:
    def function(x: Any, y: int) -> Any: ...

    hints = typing.get_type_hints(function)
    assert [hint is Any for hint in (hints["x"], hints["y"])] == [True, False]
