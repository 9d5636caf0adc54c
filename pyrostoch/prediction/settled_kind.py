"""What is settled for inputs of one kind: how their draws are run, and the graph of a piece's prediction."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._inputs import count_examples, device_of_inputs, have_common_part
from pyrostoch._seeds import forked
from pyrostoch._targets import Target
from pyrostoch.guides import GuideSet
from pyrostoch.guides.amortised import weights_of
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.draw_average import DrawAverage
from pyrostoch.prediction.draw_chunk import VALID, DrawChunk
from pyrostoch.prediction.fixed_draws import FixedDraws
from pyrostoch.prediction.head_averages import HeadAverages, average_for
from pyrostoch.prediction.piece_graph import TRACED_COUNTS, Fields, PieceGraph, repeated
from pyrostoch.prediction.readouts import evaluating
from pyrostoch.protocols import FlatInputs
from pyrostoch.staging import StagingError, missing, restore_modules

__all__ = ["SettledKind"]

# Calls with one number of examples after which a predictor compiles for it, if that was left to it.
_OFTEN = 1000

# Chunks of draws that one graph contains; if there are more, a graph of a single one runs again and again.
_MANY_CHUNKS = 8


class SettledKind:
    """How a predictor computes predictions of inputs of one kind.

    Args:
        sampler: Runs the draws.
        fixed: The draws, where they are fixed.
        compile: Whether to compile: `"auto"` after many calls.

    Attributes:
        reason: Why there is no graph; `None` while it is not known.
    """

    def __init__(self, sampler: PosteriorSampler, fixed: FixedDraws | None = None, compile: bool | str = False) -> None:
        self.sampler, self._fixed, self._compile = sampler, fixed, compile
        self.reason: str | None = None
        self._graphs: dict[tuple[bool, tuple[int, ...]], PieceGraph] = {}
        self._calls: dict[int, int] = {}

    def averages(self, x: FlatInputs, y: Target | None) -> Iterator[DrawAverage | HeadAverages]:
        """The predictions of the pieces of a batch by the code of guide and network; call it within `evaluating`.

        Args:
            x: Inputs.
            y: Their targets.
        """
        for piece, rows in self.sampler.split_batch(x, y):
            yield self._average(piece, None if y is None else y[rows])

    def _average(self, x: FlatInputs, y: Target | None) -> DrawAverage | HeadAverages:
        average = average_for(self.sampler.model, y)
        for chunk in self.sampler.draw_chunks(x) if self._fixed is None else self._fixed.chunks(self.sampler, x):
            for statistics in chunk.run_together(x, average.statistics):
                average.add_all(statistics)
        return average

    def graph_of(self, x: FlatInputs) -> PieceGraph | None:
        """The graph that serves a piece, if it was compared for so many examples.

        Args:
            x: The piece.
        """
        graph = self._graphs.get(self._key(x))
        return graph if graph is not None and graph.agrees(x) else None

    def fields(self, x: FlatInputs) -> Fields:
        """The prediction of a piece, by its graph where there is one.

        Args:
            x: The piece.
        """
        if self.reason is None:
            try:
                return self._by_graph(x)
            except StagingError as error:
                self.reason = str(error)
                self._graphs.clear()
            except torch.OutOfMemoryError:
                pass  # the code runs fewer draws at a time
        return self._eager(x)

    def by_code(self, inputs: Sequence[Tensor]) -> Fields:
        """The prediction of a few examples by the code of guide and network.

        Args:
            inputs: The tensors among the inputs, as those of the graph's example.
        """
        graph = self.graph_for_several
        x = inputs[0] if graph is None else graph.inputs_of(inputs)
        with evaluating(self.sampler.model, self.sampler.guide):
            return self._average(x, None).results()

    def settle(self, x: FlatInputs) -> None:
        """Make the graph for pieces like this one, unless there is one, or find out why there is none.

        Args:
            x: The piece.
        """
        if self.reason is not None or self._key(x) in self._graphs:
            return
        try:
            self._check_possible(x)
            with self._tracing():
                if 1 < (count_examples(x, self._in_dims) or 0) < max(TRACED_COUNTS):
                    # How weights are used is analyzed again for more examples than before, which cannot be traced.
                    with forked(device_of_inputs(x)):
                        self._average(repeated(x, max(TRACED_COUNTS), self._in_dims), None)
                graph = self._traced(x)
            self._graphs[self._key(x)] = graph
        except Exception as error:  # inputs of some kinds cannot be taken apart, and any code may be traced
            self.reason = str(error) if isinstance(error, StagingError) else f"{type(error).__name__}: {error}"

    @property
    def graph_for_several(self) -> PieceGraph | None:
        """A graph for any number of examples, if there is one."""
        return next((graph for (single, _), graph in self._graphs.items() if not single), None)

    def graph_to_export(self, graph: PieceGraph) -> PieceGraph:
        """The graph for inputs in the usual memory format: a runtime knows no other, and would transpose at each layer.

        Args:
            graph: That for several examples.
        """
        if all(leaf.is_contiguous() for leaf in graph.example):
            return graph
        with self._tracing():
            return self._traced(graph.inputs_of([leaf.contiguous() for leaf in graph.example]))

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        model, guide = self.sampler.model, self.sampler.guide
        parts = [part for module in (model, guide) if isinstance(module, nn.Module) for part in module.modules()]
        with evaluating(model, guide), restore_modules(list(dict.fromkeys(parts)), caches=False):
            yield

    @property
    def _in_dims(self) -> Any:
        return getattr(self.sampler.model, "in_dims", 0)

    def _sizes(self, x: FlatInputs) -> tuple[int, ...]:
        """The numbers of draws that run together."""
        if self._fixed is not None:
            return tuple(len(chunk.values) for chunk in self._fixed.chunks(self.sampler, x))
        size, total = self.sampler.chunk_size(x), self.sampler.num_samples
        return (size,) * (total // size) + ((total % size,) if total % size else ())

    def _key(self, x: FlatInputs) -> tuple[bool, tuple[int, ...]]:
        """What a graph is made for: one or several examples, and the numbers of draws that run together."""
        return count_examples(x, self._in_dims) == 1, self._sizes(x)

    def _check_possible(self, x: FlatInputs) -> None:
        model, guide = self.sampler.model, self.sampler.guide
        if not isinstance(model, nn.Module) or not isinstance(guide, nn.Module):
            raise StagingError("model or guide is a function, of whose state nothing is known")
        if self._fixed is None and isinstance(weights_of(guide), GuideSet):
            raise StagingError("the guide chooses a member for each draw; fixed draws can be recorded")
        if have_common_part(x, self._in_dims) or count_examples(x, self._in_dims) is None:
            raise StagingError("an input belongs to all examples, so that each batch may be another problem")
        sizes = self._sizes(x)
        if len(sizes) > _MANY_CHUNKS and len(set(sizes)) > 1:
            raise StagingError(f"its draws run in {len(sizes)} parts of several sizes, whose graph would be long")

    def _traced(self, x: FlatInputs) -> PieceGraph:
        sizes = self._sizes(x)
        if len(sizes) <= _MANY_CHUNKS:
            return PieceGraph(lambda piece: self._record(piece, sizes), x, self._in_dims)

        def collect(runs: Iterator[Fields]) -> Fields:
            average, valid = average_for(self.sampler.model), []
            for statistics in runs:
                valid.append(statistics.pop(VALID).all())
                average.add_all(statistics)
            return {**average.results(), VALID: torch.stack(valid).all()}

        def record(piece: FlatInputs) -> Fields:
            average = average_for(self.sampler.model)
            found = self._chunk(piece, 0, sizes[0]).record(piece, average.statistics)
            return {**found, VALID: found[VALID] & average.valid}

        chunks = [] if self._fixed is None else self._fixed.chunks(self.sampler, x)
        variants = [[value for draw in chunk.values for value in draw.values()] for chunk in chunks]
        return PieceGraph(record, x, self._in_dims, variants or [()] * len(sizes), collect)

    def _record(self, x: FlatInputs, sizes: tuple[int, ...]) -> Fields:
        """The prediction of a piece, as a tracer records it."""
        average, valid = average_for(self.sampler.model), []
        for index, size in enumerate(sizes):
            statistics = self._chunk(x, index, size).record(x, average.statistics)
            valid.append(statistics.pop(VALID).all())
            average.add_all(statistics)
        return {**average.results(), VALID: torch.stack([*valid, average.valid]).all()}

    def _chunk(self, x: FlatInputs, index: int, size: int) -> DrawChunk:
        if self._fixed is None:
            return self.sampler.draw_chunk(x, size)
        return self._fixed.chunks(self.sampler, x)[index]

    def _eager(self, x: FlatInputs) -> Fields:
        with evaluating(self.sampler.model, self.sampler.guide):
            return self._average(x, None).results()

    def _by_graph(self, x: FlatInputs) -> Fields:
        graph = self._graphs.get(self._key(x))
        if graph is None:
            return self._eager(x)
        if not graph.agrees(x):
            found = graph.compare(x, lambda: {**self._eager(x), VALID: torch.ones((), dtype=torch.bool)})
        else:
            found = self.run(graph, x)
        if not bool(found.pop(VALID)):
            return self._eager(x)  # which names the argument that is outside its constraint
        return found

    def run(self, graph: PieceGraph, x: FlatInputs) -> Fields:
        """The results of a graph, of compiled code where that was asked for or pays.

        Args:
            graph: The graph.
            x: The piece.

        Returns:
            The fields of the prediction, and `VALID`.
        """
        count = count_examples(x, self._in_dims) or 1
        # Further examples would take random numbers of their own.
        size = count if graph.random or count == 1 else 1 << (count - 1).bit_length()
        self._calls[size] = self._calls.get(size, 0) + 1
        if self._compile is False or (self._compile == "auto" and self._calls[size] <= _OFTEN):
            return graph(x)
        lacking = missing(device_of_inputs(x))
        if lacking is not None and self._compile is True:
            raise StagingError(lacking)
        if lacking is None:
            try:
                return graph.compiled(x, size)
            except StagingError as error:
                self._compile = False
                warnings.warn(f"Predictor: it runs without a compiler: {error}", UserWarning, stacklevel=2)
        return graph(x)
