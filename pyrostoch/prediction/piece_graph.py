"""The prediction of a piece of a batch as a graph, which runs without the Python code of guide, network and likelihood.

A graph is traced once for a kind of inputs and serves any number of examples. It is trusted with so many examples only
after it gave what the code itself gives: with each number up to the next power of two it is compared once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, fx

from pyrostoch._inputs import count_examples, device_of_inputs, example_axes, take_examples
from pyrostoch._seeds import generator_states, set_generator_states
from pyrostoch._structure import Structure
from pyrostoch._tracing import traced
from pyrostoch.protocols import FlatInputs, InDims
from pyrostoch.staging import Graph, SettledGraph, StagingError, trace, trace_any_count
from pyrostoch.staging.compiler import Compiled, lower

__all__ = ["TRACED_COUNTS", "Fields", "PieceGraph", "kind_of", "repeated", "shapes_of"]

#: The tensors of a prediction by name.
Fields = dict[str, Tensor]

#: Numbers of examples with which a graph is traced. Not 1, with which a network may take a way of its own.
TRACED_COUNTS = 5, 7

# Largest difference of a graph's results, which come from the same operations, and of compiled ones, relative to the
# largest entry.
_TOLERANCE, _TOLERANCE_COMPILED = 1e-5, 1e-3


class PieceGraph:
    """A graph of the prediction of pieces of one kind.

    Args:
        function: Computes the prediction of a piece, or what `collect` makes it of, without reading values.
        x: A piece.
        in_dims: The axis of each input that counts the examples.
        variants: For each run of the graph, the tensors that take the place of those of the first, which the function
            reads; there is one run by default.
        collect: Makes the prediction of the results of all runs.

    Attributes:
        random: Whether it draws random numbers.

    Raises:
        StagingError: The function cannot be traced.
    """

    def __init__(
        self,
        function: Callable[[FlatInputs], Fields],
        x: FlatInputs,
        in_dims: InDims,
        variants: Sequence[Sequence[Tensor]] = ((),),
        collect: Callable[[Iterator[Fields]], Fields] = next,
    ) -> None:
        self._in_dims, self._names = in_dims, list[str]()
        self._variants, self._collect = variants, collect
        leaves = _tensors(x)
        # Other values than those for which it is compared.
        other = _with_tensors(x, [leaf * 0.9 if leaf.is_floating_point() else leaf for leaf in leaves])
        whole = zip(_parts(x), example_axes(x, in_dims), strict=True)
        #: The axis of each tensor among the inputs that counts the examples.
        self.axes = [axis for part, axis in whole if isinstance(part, Tensor)]

        def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
            found = function(_with_tensors(x, inputs))
            self._names = list(found)
            return list(found.values())

        with traced():
            count = count_examples(x, in_dims)
            if count is None or count == 1:
                copies = [leaf.clone() for leaf in _tensors(other)]
                graph: Graph = trace(lambda: compute(copies), copies)
            else:
                some, more = (_tensors(repeated(other, size, in_dims)) for size in TRACED_COUNTS)
                graph = trace_any_count(compute, some, more, self.axes)
        few = x if count is None or count == 1 else repeated(x, max(TRACED_COUNTS), in_dims)
        #: The tensors among inputs of the kind, with a few examples.
        self.example = [leaf.clone() for leaf in _tensors(few)]
        self._form = _with_tensors(few, self.example)
        self._formats = [_format(leaf) for leaf in leaves]
        self._graph = SettledGraph(graph, len(leaves))
        self.random = self._graph.random
        self._settled: list[list[Tensor]] = []
        self._versions: tuple[tuple[int, int], ...] = ()
        self._compiled: dict[int, Compiled] = {}
        self._compared: set[int] = set()

    def __call__(self, x: FlatInputs) -> Fields:
        """The prediction of a piece, without derivatives.

        Args:
            x: The piece.
        """
        return self._all_runs(self._graph.live.forward, x)

    def _all_runs(self, run: Callable[..., Sequence[Tensor]], x: FlatInputs) -> Fields:
        inputs, settled = _tensors(x), self.settled()
        with torch.inference_mode():
            return self.collected(run(*inputs, *own) for own in settled)

    @property
    def live(self) -> fx.GraphModule:
        """The part of the graph that depends on the inputs: a function of them and of one run's `settled`."""
        return self._graph.live

    def collected(self, results: Iterable[Sequence[Tensor]]) -> Fields:
        """The prediction, from the results of each run of `live`.

        Args:
            results: The results.
        """
        return self._collect(dict(zip(self._names, row, strict=True)) for row in results)

    @property
    def names(self) -> list[str]:
        """Names of the tensors among the inputs."""
        last = _parts(self._form)[-1]
        known = [name.strip("[]'\"") for name in last.names] if isinstance(last, Structure) else []
        return known or ["x"] if len(self.axes) == 1 else known or [f"x{k}" for k in range(len(self.axes))]

    def inputs_of(self, tensors: Sequence[Tensor]) -> FlatInputs:
        """Inputs with these tensors, and the options of the piece.

        Args:
            tensors: The tensors.
        """
        return _with_tensors(self._form, tensors)

    def formatted(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs in the memory format for which the graph was traced.

        Args:
            inputs: The tensors among the inputs.
        """
        pairs = zip(inputs, self._formats, strict=True)
        return [value.contiguous(memory_format=form) for value, form in pairs]

    def compiled(self, x: FlatInputs, count: int) -> Fields:
        """The same by compiled code, for a piece that is filled up to a number of examples.

        Args:
            x: The piece.
            count: The number, which is compiled for at its first use.

        Raises:
            StagingError: The compiler failed, or its code computes something else.
        """
        own = count_examples(x, self._in_dims)
        full = x if own == count else repeated(x, count, self._in_dims)
        if count not in self._compiled:
            run = lower(self._graph.live, [*_tensors(full), *self.settled()[0]])
            device = device_of_inputs(x)
            before = generator_states(device)
            expected = self(full)
            set_generator_states(device, before)
            _check_equal(self._all_runs(run, full), expected, _TOLERANCE_COMPILED, "compiled")
            set_generator_states(device, before)
            self._compiled[count] = run
        found = self._all_runs(self._compiled[count], full)
        if own == count:
            return found
        return {name: value[:own] if value.dim() else value for name, value in found.items()}

    def agrees(self, x: FlatInputs) -> bool:
        """Whether it was compared with the code itself for as many examples.

        Args:
            x: The piece.
        """
        return _size_class(x, self._in_dims) in self._compared

    def compare(self, x: FlatInputs, run: Callable[[], Fields]) -> Fields:
        """Run the code itself, and compare its results with those of the graph from the same state of the generators.

        Args:
            x: The piece.
            run: Computes its prediction.

        Raises:
            StagingError: They differ.
        """
        device = device_of_inputs(x)
        before = generator_states(device)
        expected = run()
        after = generator_states(device)
        set_generator_states(device, before)
        try:
            found = self._tried(x)
            if not all(map(torch.equal, after, generator_states(device))):
                raise StagingError("its graph draws other random numbers")
        finally:
            set_generator_states(device, after)
        _check_equal(found, expected, _TOLERANCE, "traced")
        self._compared.add(_size_class(x, self._in_dims))
        return expected

    def _tried(self, x: FlatInputs) -> Fields:
        try:
            return self(x)
        except Exception as error:  # its operations may not fit this number of examples
            raise StagingError(f"its graph fails for other numbers of examples: {type(error).__name__}") from error

    def settled(self) -> list[list[Tensor]]:
        """What does not depend on the inputs, of the present parameters, for each run."""
        read = [*self._graph.constants, *(tensor for variant in self._variants for tensor in variant)]
        versions = tuple((found.data_ptr(), 0 if found.is_inference() else found._version) for found in read)
        if versions != self._versions:
            first = self._variants[0]
            self._settled = [
                self._graph.settle({id(own): other for own, other in zip(first, variant, strict=True)})
                for variant in self._variants
            ]
            self._versions = versions
        return self._settled


def kind_of(x: FlatInputs, in_dims: InDims) -> Hashable:
    """What pieces have in common that one graph can serve.

    Args:
        x: A piece.
        in_dims: The axis of each input that counts the examples.
    """
    found: list[Hashable] = []
    for part, axis in zip(_parts(x), example_axes(x, in_dims), strict=True):
        if isinstance(part, Tensor):
            shape = tuple(size for index, size in enumerate(part.shape) if index != axis)
            found.append((shape, axis, part.dtype, part.device, _format(part)))
        else:
            found.append(_option(part))
    return (count_examples(x, in_dims) == 1, *found)


def shapes_of(x: FlatInputs) -> Hashable:
    """All that decides how inputs are computed, but for their values.

    Args:
        x: Inputs.
    """
    return tuple(
        (part.shape, part.stride() if part.layout is torch.strided else part.layout, part.dtype, part.device)
        if isinstance(part, Tensor)
        else _option(part)
        for part in _parts(x)
    )


def _option(part: object) -> Hashable:
    """An input that is no tensor: a value, or any object, which is known by its identity."""
    plain = part is None or isinstance(part, (bool, int, float, str, Structure))
    return type(part), part if plain else id(part)


def _parts(x: FlatInputs) -> tuple[object, ...]:
    return x if isinstance(x, tuple) else (x,)


def _tensors(x: FlatInputs) -> list[Tensor]:
    """The tensors among the inputs, in a memory format for which a graph is traced."""
    return [part.contiguous(memory_format=_format(part)) for part in _parts(x) if isinstance(part, Tensor)]


def _with_tensors(x: FlatInputs, tensors: Sequence[Tensor]) -> FlatInputs:
    """The inputs with other tensors."""
    given = iter(tensors)
    parts = tuple(next(given) if isinstance(part, Tensor) else part for part in _parts(x))
    found: FlatInputs = parts if isinstance(x, tuple) else parts[0]  # type: ignore[assignment]
    return found


def repeated(x: FlatInputs, count: int, in_dims: InDims) -> FlatInputs:
    """So many examples: those of a piece, again from the first where there are too few.

    Args:
        x: The piece.
        count: The number.
        in_dims: The axis of each input that counts the examples.
    """
    own = count_examples(x, in_dims) or 1
    found = take_examples(x, torch.arange(count, device=device_of_inputs(x)) % own, in_dims)
    formats = [_format(part) for part in _parts(x) if isinstance(part, Tensor)]
    leaves = [part for part in _parts(found) if isinstance(part, Tensor)]
    pairs = zip(leaves, formats, strict=True)
    return _with_tensors(found, [leaf.contiguous(memory_format=form) for leaf, form in pairs])


def _format(part: Tensor) -> torch.memory_format:
    """The memory format of a tensor, as far as a graph may depend on it."""
    last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _size_class(x: FlatInputs, in_dims: InDims) -> int:
    return (count_examples(x, in_dims) or 0).bit_length()


def _check_equal(actual: Fields, expected: Fields, tolerance: float, how: str) -> None:
    if actual.keys() != expected.keys():
        raise StagingError(f"the {how} prediction has {', '.join(actual)}, the eager one {', '.join(expected)}")
    for name, value in expected.items():
        found = actual[name]
        same = found.shape == value.shape
        if same and value.is_floating_point():
            finite = value[value.isfinite()]
            size = float(finite.abs().amax()) if finite.numel() else 0.0
            same = torch.allclose(found, value, 0.0, tolerance * size + 1e-12, equal_nan=True)
        elif same:
            same = torch.equal(found, value)
        if not same:
            raise StagingError(
                f"the {how} prediction has another {name} than the eager one from the same random numbers: it depends "
                "on something that is not part of a graph, such as a value read from a tensor"
            )
