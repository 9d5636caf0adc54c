"""Networks from a file of the user's own, by its path and the name of a function in it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from pyrostoch._checks import name_list, suggest
from pyrostoch._manual import see
from pyrostoch._user_file import function_from_file

__all__ = ["build_from_file", "parse_arguments"]


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments for a function from texts such as `"hidden=50"`: whole numbers, numbers, true and false, or texts.

    Args:
        texts: The texts.

    Raises:
        ValueError: A text has no name, or a name is given twice.

    Example:
        >>> parse_arguments(["hidden=50", "rate=0.1", "bias=false", "kind=relu"])
        {'hidden': 50, 'rate': 0.1, 'bias': False, 'kind': 'relu'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            raise ValueError(f"model_arg: expected name=value, such as hidden=50, got {text!r}")
        if name in found:
            raise ValueError(f"model_arg: {name!r} is given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def build_from_file(
    name: str, *, input_shape: Sequence[int], num_outputs: int, arguments: dict[str, Any] | None = None
) -> nn.Module:
    """A network from a function in a file.

    The function gets those of `input_shape`, `num_inputs` and `num_outputs` that it has as parameters, and the
    arguments.

    Args:
        name: Path of the file and name of the function, `"nets.py:make_net"`. The file is executed.
        input_shape: Shape of one example, without the batch axis.
        num_outputs: Number of outputs: classes, or the likelihood's parameters per example.
        arguments: Further arguments of the function.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be executed or lacks the function; the function takes other arguments, or returns
            no module.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "nets.py"
        ...     _ = path.write_text("import torch; make = lambda num_inputs: torch.nn.Linear(num_inputs, 2)")
        ...     build_from_file(f"{path}:make", input_shape=(3,), num_outputs=2)
        Linear(in_features=3, out_features=2, bias=True)
    """
    make, function = function_from_file(name, "model"), name.rpartition(":")[2]
    parameters = inspect.signature(make).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known: dict[str, Any] = {"input_shape": tuple(input_shape), "num_outputs": num_outputs}
    size = 1
    for length in input_shape:
        size *= length
    known["num_inputs"] = size
    given = {key: value for key, value in known.items() if key in parameters} | dict(arguments or {})
    if unknown := [key for key in given if key not in parameters and not takes_all]:
        raise ValueError(
            f"model {name!r}: {function} takes no {name_list(unknown)}; it takes {name_list(parameters) or 'nothing'}"
            f"{suggest(unknown[0], list(parameters))}{see('how-to/own_network')}"
        )
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [key for key, p in parameters.items() if p.default is p.empty and p.kind not in positional]
    if lacking := [key for key in needed if key not in given]:
        raise ValueError(
            f"model {name!r}: {function} needs {name_list(lacking)}, too; it gets those of input_shape, num_inputs and "
            f"num_outputs that it names, and --model-arg {lacking[0]}=...{see('how-to/own_network')}"
        )
    net = make(**given)
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"model {name!r}: expected {function} to return a torch.nn.Module, got {type(net).__name__}"
            f"{see('how-to/own_network')}"
        )
    return net
