"""A step written down once: every tensor operation of a function, as a graph that runs without the Python around it.

The function is run once under torch's tracer with its real tensors. What it reads is found again by identity, so
parameters may be reached in any way: attributes, closures, Pyro's parameter store. What it writes (buffers, parameters,
the optimizer's memory) is put back afterwards, and so are the random generators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, fx

__all__ = ["Graph", "StagingError", "trace", "undisturbed", "unique"]


class StagingError(RuntimeError):
    """A step cannot be staged; the message says why, in words that follow a colon.

    Example:
        >>> StagingError("it reads a value back")
        StagingError('it reads a value back')
    """


def unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, each object once, in order.

    Args:
        tensors: Tensors, some of them perhaps the same object.

    Example:
        >>> one = torch.zeros(1)
        >>> len(unique([one, torch.zeros(1), one]))
        2
    """
    return list({id(tensor): tensor for tensor in tensors}.values())


@contextmanager
def undisturbed(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Leave tensors and torch's random generators as they are found, and keep Pyro's checks out, which read values.

    Args:
        tensors: The tensors to put back.

    Example:
        >>> count = torch.zeros(())
        >>> with undisturbed([count]):
        ...     _ = count.add_(1)
        >>> count.item()
        0.0
    """
    # What overlaps itself cannot be written to either.
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors if not _overlaps(tensor)]
    devices = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), pyro.validation_enabled(False):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def _overlaps(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided
    return strided and any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


class Graph:
    """A traced function: called with its inputs, it does what the function did, in place where that wrote in place.

    Args:
        module: The graph; its placeholders are the given inputs, then the constants.
        constants: Further tensors that the function read; they are read again at each call.
    """

    def __init__(self, module: fx.GraphModule, constants: list[Tensor]) -> None:
        self.module, self.constants = module, constants

    def __call__(self, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Run it, operation by operation.

        Args:
            inputs: In the order in which they were given to `trace`.
        """
        with torch.no_grad():
            result: tuple[Tensor | None, ...] = tuple(self.module(*inputs, *self.constants))
        return result

    def keep(self, count: int) -> None:
        """Return the first `count` results only, so that a compiler need not make the others.

        Args:
            count: Number of results.
        """
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        output.args = (tuple(output.args[0][:count]),)
        self.module.recompile()


def trace(function: Callable[[], Sequence[Tensor | None]], inputs: Sequence[Tensor]) -> Graph:
    """Write down what a function does.

    Args:
        function: Called once; it may close over anything.
        inputs: The tensors whose content may be another at a later call; no object twice.

    Returns:
        The graph, whose inputs are these.

    Raises:
        StagingError: The function depends on a tensor's value, or writes into a tensor that is no input.

    Example:
        >>> x = torch.ones(3)
        >>> graph = trace(lambda: [x * 2 + torch.randn(3)], [x])
        >>> [node.target.__name__ for node in graph.module.graph.nodes if node.op == "call_function"]
        ['mul.Tensor', 'randn.default', 'add.Tensor']
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with undisturbed(inputs), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the eager step has shown what there is to warn of
        try:
            module = make_fx(lambda *_: tuple(function()))(*inputs)
        except Exception as error:  # whatever a model may do that cannot be written down
            raise StagingError(_reason(error)) from error
    constants = _lift(module)
    return Graph(module, constants)


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that the graph holds into further inputs, so that their content is read at each call."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    lifted: dict[int, tuple[Tensor, fx.Node]] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        held = getattr(module, str(node.target))
        if not isinstance(held, Tensor):
            raise StagingError(f"it holds a {type(held).__name__}, which is no tensor")
        if id(held) not in lifted:
            with graph.inserting_after(last):
                last = graph.placeholder(f"constant_{len(lifted)}")
            lifted[id(held)] = held, last
        node.replace_all_uses_with(lifted[id(held)][1])
        graph.erase_node(node)
    written = {node for _, node in lifted.values()}
    for node in graph.nodes:
        if node.op == "call_function" and any(arg in written for arg in _mutated(node)):
            raise StagingError(
                f"it writes ({node.target}) into a tensor that is neither a parameter nor a buffer of model, guide or "
                "optimizer; register it as a buffer"
            )
    graph.lint()
    module.recompile()
    return [held for held, _ in lifted.values()]


def _mutated(node: fx.Node) -> Iterator[Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if "_local_scalar_dense" in text or "data-dependent" in text or "data dependent" in text:
        return "it reads a tensor's value (.item(), float(), if tensor: ...), which a staged step cannot follow"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
