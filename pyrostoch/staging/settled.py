"""A graph in two parts: what depends on parameters only is computed once, and again when they have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyrostoch.staging.graph import Graph, written_arguments

__all__ = ["SettledGraph"]


class SettledGraph:
    """A graph of which the part that depends on no input is kept between calls.

    Args:
        graph: The graph, which is taken apart.
        inputs: Number of its inputs; its other placeholders are constants.

    Attributes:
        live: The part that depends on the inputs, a function of them and of what `settle` returns.
        random: Whether the part that is left draws random numbers.

    Example:
        >>> from pyrostoch.staging.graph import trace
        >>> weight, x = torch.full((2,), 3.0), torch.ones(2)
        >>> settled = SettledGraph(trace(lambda: [x * weight.exp()], [x]), 1)
        >>> [node.target.__name__ for node in settled.live.graph.nodes if node.op == "call_function"]
        ['mul.Tensor']
    """

    def __init__(self, graph: Graph, inputs: int) -> None:
        self.constants = graph.constants
        whole = graph.module.graph
        _simplify(whole)
        placeholders = [node for node in whole.nodes if node.op == "placeholder"]
        live = _live(whole, set(placeholders[:inputs]))
        self.random = any(_is_random(node) for node in whole.nodes)
        settled = [node for node in whole.nodes if node not in live and node.op != "output"]
        kept = [node for node in settled if any(user in live or user.op == "output" for user in node.users)]
        constants = placeholders[inputs:]
        self._first = fx.GraphModule(graph.module, _part(whole, constants, lambda node: node not in live, kept))
        output = next(node for node in whole.nodes if node.op == "output")
        results = output.args[0]
        given = [*placeholders[:inputs], *kept]
        self.live = fx.GraphModule(graph.module, _part(whole, given, lambda node: node in live, results))

    def settle(self, others: Mapping[int, Tensor] = MappingProxyType({})) -> list[Tensor]:
        """Compute, from the present values of the constants, what does not depend on inputs.

        Args:
            others: Tensors that take the place of constants, by the identities of these.
        """
        with torch.no_grad():
            return list(self._first(*(others.get(id(constant), constant) for constant in self.constants)))


def _simplify(graph: fx.Graph) -> None:
    """Leave out what no result needs, and what is computed a second time; but random numbers are drawn as before."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.is_impure() or _is_random(node))
    if any(True for node in graph.nodes for _ in written_arguments(node)):
        return
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _is_random(node):
            continue
        found: Any = node.args[0] if node.target is torch.ops.aten.detach.default else None
        if found is None:
            leaves, tree = pytree.tree_flatten((node.args, node.kwargs))
            # 1, 1.0 and True are equal, and not the same argument.
            found = known.setdefault((node.target, tree, tuple((type(leaf), leaf) for leaf in leaves)), node)
        if found is not node:
            node.replace_all_uses_with(found)
            graph.erase_node(node)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _live(graph: fx.Graph, inputs: set[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on an input or are random; and those that such nodes write into, with what these need."""
    live = set(inputs)
    while True:
        before = len(live)
        for node in graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            if _is_random(node) or any(argument in live for argument in node.all_input_nodes):
                live.add(node)
            written = [found for found in written_arguments(node) if isinstance(found, fx.Node)]
            if written and (node in live or any(found in live for found in written)):
                live |= {node, *_bases(written)}
        if len(live) == before:
            return live


def _bases(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What the nodes share their memory with, without the constants: they may be views, or views of views."""
    found: set[fx.Node] = set()
    left = [node for node in nodes if node.op != "placeholder"]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += [argument for argument in _aliased_arguments(node) if argument.op != "placeholder"]
    return found


def _aliased_arguments(node: fx.Node) -> list[fx.Node]:
    """The arguments with which the result of an operation may share its memory."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(node.all_input_nodes)
    names = [argument.name for argument in schema.arguments if argument.alias_info is not None]
    positions = [index for index, argument in enumerate(schema.arguments) if argument.name in names]
    given = [node.args[index] for index in positions if index < len(node.args)]
    given += [node.kwargs[name] for name in names if name in node.kwargs]
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, fx.Node)]


def _part(graph: fx.Graph, given: Sequence[fx.Node], chosen: Any, results: Any) -> fx.Graph:
    """A graph of some of the nodes, whose placeholders stand for others."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(given):
        copies[node] = part.placeholder(f"given_{index}")
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and chosen(node) and node not in copies:
            copies[node] = part.node_copy(node, lambda argument: copies[argument])
    part.output(fx.map_arg(tuple(results), lambda argument: copies[argument]))
    part.lint()
    return part
