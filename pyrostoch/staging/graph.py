"""Tracing: a function's tensor operations as a graph, which runs without the Python code around them.

The function runs once under torch's tracer with its real tensors. Tensors that it reads are recognized by identity, so
it may reach parameters in any way: by attributes, closures, or Pyro's parameter store. Tensors that it writes (buffers,
parameters, the optimizer's state) and the random generators are restored afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

__all__ = ["Graph", "StagingError", "put_back", "restore_tensors", "trace", "unique", "written_arguments"]


_READING: frozenset[Any] = frozenset((Tensor.numpy, Tensor.tolist, Tensor.__array__))


class StagingError(RuntimeError):
    """A step cannot be staged. The message is the reason, worded to follow a colon.

    Example:
        >>> StagingError("it reads a value back")
        StagingError('it reads a value back')
    """


def unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in order, without repetitions of the same object.

    Args:
        tensors: Tensors.

    Example:
        >>> one = torch.zeros(1)
        >>> len(unique([one, torch.zeros(1), one]))
        2
    """
    return list({id(tensor): tensor for tensor in tensors}.values())


@contextmanager
def restore_tensors(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore tensors and torch's random generators on exit; inside, Pyro's validation, which reads values, is off.

    Args:
        tensors: The tensors to restore.

    Example:
        >>> count = torch.zeros(())
        >>> with restore_tensors([count]):
        ...     _ = count.add_(1)
        >>> count.item()
        0.0
    """
    # A tensor whose entries share memory cannot be written to, so that it need not be restored.
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors if not _overlaps(tensor)]
    devices = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), pyro.validation_enabled(False):
            yield
    finally:
        put_back(saved)


@torch.no_grad()
def put_back(saved: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write values back into tensors; whole numbers only where they have changed.

    What is known of a network that holds indices is known for a version of them, and every write makes another one.

    Args:
        saved: Pairs of a tensor and its former value.

    Example:
        >>> indices = torch.arange(3)
        >>> put_back([(indices, indices.clone())])
        >>> indices._version
        0
    """
    for tensor, value in saved:
        whole = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided
        if not (whole and torch.equal(tensor, value)):
            tensor.copy_(value)


def _overlaps(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided
    return strided and any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


class Graph:
    """A traced function. A call repeats the function's operations, including writes in place.

    Args:
        module: The graph. Its placeholders are the inputs, then the constants.
        constants: Further tensors that the function read; each call reads their present values.
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
        """Drop all results but the first `count`, so that a compiler need not compute the others.

        Args:
            count: Number of results.
        """
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        output.args = (tuple(output.args[0][:count]),)
        self.module.recompile()


def trace(function: Callable[[], Sequence[Tensor | None]], inputs: Sequence[Tensor]) -> Graph:
    """Trace a function.

    Args:
        function: The function, called once; it may close over anything.
        inputs: The tensors that the function uses and whose values may differ at later calls, each object once.

    Returns:
        The graph, a function of the inputs.

    Raises:
        StagingError: The function reads a tensor's value into Python, or writes into a tensor that is not an input.

    Example:
        >>> x = torch.ones(3)
        >>> graph = trace(lambda: [x * 2 + torch.randn(3)], [x])
        >>> [node.target.__name__ for node in graph.module.graph.nodes if node.op == "call_function"]
        ['mul.Tensor', 'randn.default', 'add.Tensor']
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def without_reading(*_: Tensor) -> tuple[Tensor | None, ...]:
        with _NoReading():
            return tuple(function())

    with restore_tensors(inputs), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the eager step has given the same warnings
        try:
            module = make_fx(without_reading)(*inputs)
        except Exception as error:  # code that cannot be traced may raise anything
            raise StagingError(_reason(error)) from error
    constants = _lift(module)
    return Graph(module, constants)


class _NoReading(TorchFunctionMode):
    """Refuses what reads values past the tracer, which would make constants of them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READING:
            raise StagingError(f"it reads a tensor's value (.{func.__name__}()), which a graph cannot contain")
        return func(*args, **(kwargs or {}))


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Turn tensors stored in the graph into further inputs, so that each call reads their present values."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    lifted: dict[int, tuple[Tensor, fx.Node]] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        stored = getattr(module, str(node.target))
        if not isinstance(stored, Tensor):
            raise StagingError(f"its graph contains a {type(stored).__name__}, which is not a tensor")
        if id(stored) not in lifted:
            with graph.inserting_after(last):
                last = graph.placeholder(f"constant_{len(lifted)}")
            lifted[id(stored)] = stored, last
        node.replace_all_uses_with(lifted[id(stored)][1])
        graph.erase_node(node)
    constants = {node for _, node in lifted.values()}
    for node in graph.nodes:
        if node.op == "call_function" and any(arg in constants for arg in written_arguments(node)):
            raise StagingError(
                f"it writes ({node.target}) into a tensor that is neither a parameter nor a buffer of model, guide or "
                "optimizer; register it as a buffer"
            )
    graph.lint()
    module.recompile()
    return [stored for stored, _ in lifted.values()]


def written_arguments(node: fx.Node) -> Iterator[Any]:
    """The arguments of an operation that it writes to in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)


def _reason(error: Exception) -> str:
    if isinstance(error, StagingError):
        return str(error)
    text = str(error).strip()
    if "_local_scalar_dense" in text or "data-dependent" in text or "data dependent" in text:
        return "it reads a tensor's value (.item(), float(), if tensor: ...), which a graph cannot contain"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
