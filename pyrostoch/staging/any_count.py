"""Graphs for any number of examples: a function is traced with two numbers, and the sizes that differ are generalized.

Each whole number of the graph that differs between the two traces must be a linear function of the number of examples,
such as the 20 n rows of 20 draws together. Code that reads sizes as Python's numbers can so be traced, too. What cannot
be seen is code that branches at a number of examples, or whose sizes grow otherwise; a caller compares the graph with
the function for that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyrostoch.staging.graph import Graph, StagingError, trace

__all__ = ["trace_any_count"]

#: A function of the inputs that is traced.
Traced = Callable[[Sequence[Tensor]], Sequence[Tensor | None]]


def trace_any_count(
    function: Traced, some: Sequence[Tensor], more: Sequence[Tensor], axes: Sequence[int | None]
) -> Graph:
    """Trace a function of batches of any number of examples.

    Args:
        function: A function of the inputs; it may read any other tensors.
        some: Inputs with some examples.
        more: Inputs with another number of examples.
        axes: The axis of each input that counts the examples, or `None`; at least one has such an axis.

    Returns:
        The graph, a function of inputs with any number of examples.

    Raises:
        StagingError: It cannot be traced, or its operations depend on the number of examples in another way.

    Example:
        >>> graph = trace_any_count(lambda x: [x[0].reshape(2 * len(x[0]), -1) + torch.ones(2 * len(x[0]), 1)],
        ...                         [torch.zeros(3, 4)], [torch.zeros(5, 4)], [0])
        >>> graph(torch.zeros(7, 4))[0].shape
        torch.Size([14, 2])
    """
    first = next(index for index, axis in enumerate(axes) if axis is not None)
    counts = tuple(inputs[first].shape[axes[first] or 0] for inputs in (some, more))
    graphs = [trace(lambda inputs=inputs: function(inputs), inputs) for inputs in (some, more)]  # type: ignore[misc]
    graph, other = graphs
    _check_constants(graph.constants, other.constants)
    nodes, others = (list(found.module.graph.nodes) for found in graphs)
    if len(nodes) != len(others):
        raise StagingError("it does other operations for another number of examples")
    twins = dict(zip(others, nodes, strict=True))
    count = _Count(graph.module.graph, nodes[first], axes[first] or 0, counts)
    for node, twin in zip(nodes, others, strict=True):
        if (node.op, str(node.target)) != (twin.op, str(twin.target)):
            raise StagingError(f"it does {twin.target} in place of {node.target} for another number of examples")
        found = pytree.tree_flatten((node.args, node.kwargs), is_leaf=_is_leaf)
        theirs = pytree.tree_flatten((twin.args, twin.kwargs), is_leaf=_is_leaf)
        if found[1] != theirs[1]:
            raise StagingError(f"the arguments of {node.target} differ with the number of examples")
        pairs = zip(found[0], theirs[0], strict=True)
        leaves = [count.generalized(node, one, two, twins) for one, two in pairs]
        node.args, node.kwargs = pytree.tree_unflatten(leaves, found[1])
    graph.module.graph.lint()
    graph.module.recompile()
    return graph


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (fx.Node, torch.Size))


def _check_constants(some: list[Tensor], more: list[Tensor]) -> None:
    """Tensors that both traces read are the same, or were made by the function with the same values."""
    same = len(some) == len(more) and all(
        one is two or (one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two))
        for one, two in zip(some, more, strict=True)
    )
    if not same:
        raise StagingError("it makes a tensor of Python numbers that depend on the examples or on their number")


class _Count:
    """The number of examples in a graph, and numbers that depend on it.

    Args:
        graph: The graph.
        node: The placeholder of an input.
        axis: Its axis of examples.
        counts: The numbers of examples of both traces.
    """

    def __init__(self, graph: fx.Graph, node: fx.Node, axis: int, counts: tuple[int, ...]) -> None:
        self._graph, self._node, self._axis, self._counts = graph, node, axis, counts
        self._first = next(found for found in graph.nodes if found.op != "placeholder")
        self._known: dict[tuple[int, int], fx.Node] = {}

    def generalized(self, node: fx.Node, one: Any, two: Any, twins: dict[fx.Node, fx.Node]) -> Any:
        """An argument that both traces agree on, or a function of the number of examples."""
        if isinstance(two, fx.Node):
            two = twins[two]
        if type(one) is not type(two):
            raise StagingError(f"an argument of {node.target} is {one!r} or {two!r}, by the number of examples")
        if one is two or (not isinstance(one, fx.Node) and one == two) or one != one:
            return one
        some, more = self._counts
        slope, rest = divmod(one - two, some - more) if type(one) is int else (0, 1)
        if rest:
            raise StagingError(f"an argument of {node.target} is {one!r} or {two!r}, by the number of examples")
        return self._linear(slope, one - slope * some)

    def _linear(self, slope: int, offset: int) -> fx.Node:
        """The node of a number, computed before all else."""
        if (slope, offset) not in self._known:
            with self._graph.inserting_before(self._first):
                if not self._known:
                    size = torch.ops.aten.sym_size.int
                    self._known[1, 0] = self._graph.call_function(size, (self._node, self._axis))
                found = self._known[1, 0]
                if slope != 1:
                    found = self._graph.call_function(operator.mul, (found, slope))
                if offset:
                    found = self._graph.call_function(operator.add, (found, offset))
            self._known[slope, offset] = found
        return self._known[slope, offset]
