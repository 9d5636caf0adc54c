"""Predictions again and again from one network: what does not depend on the inputs is settled once."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from tqdm.auto import tqdm

from pyrostoch._checks import check_choice, check_finite
from pyrostoch._inputs import count_examples, device_of_inputs, to_device
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs, with_labels
from pyrostoch._targets import Target
from pyrostoch.effects.frozen import noise_is_frozen
from pyrostoch.guides.statistics_owner import warn_of_other_owner
from pyrostoch.infer.items import check_known_classes, reader_of
from pyrostoch.infer.known_labels import KnownLabels, check_labels_around, known_labels, marked
from pyrostoch.layers.conditional.hard import known_selection
from pyrostoch.likelihoods.parts import is_loss
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.draw_average import without_nan
from pyrostoch.prediction.draw_chunk import VALID
from pyrostoch.prediction.exported import Program, export_program
from pyrostoch.prediction.fixed_draws import FixedDraws
from pyrostoch.prediction.head_averages import split_heads
from pyrostoch.prediction.inputs import compute_device, split
from pyrostoch.prediction.piece_graph import Fields, PieceGraph, kind_of, shapes_of
from pyrostoch.prediction.prediction import Prediction
from pyrostoch.prediction.readouts import check_guide, check_mode, evaluating, parse_mode, seeded
from pyrostoch.prediction.settled_kind import SettledKind
from pyrostoch.protocols import FlatInputs, GivenTargets, Guide, Inputs, Model
from pyrostoch.staging import ModuleSnapshot

__all__ = ["BAR_DELAY", "Predictor", "prediction_of"]

# Pyro's handlers are those of the whole process, and torch's generators too.
_LOCK = threading.RLock()

# Changes of a module's Python state after which a predictor no longer makes graphs.
_MANY_CHANGES = 3

# Kinds of inputs (numbers of examples apart) for which a predictor makes graphs.
_MANY_KINDS = 32

# Shapes of inputs for which a predictor remembers what was decided.
_MANY_WAYS = 256

#: Seconds after which a progress bar is shown.
BAR_DELAY = 10.0


class Predictor:
    r"""Predicts with a Bayesian network again and again, as a server does.

    The numbers are those of `predict` with the same settings and seed. But everything that does not depend on the
    inputs is settled once: how weights are used, how many draws run together, and, after the second call with inputs of
    a kind, a graph of the prediction's tensor operations, of which the part that depends on parameters only (such as
    the variances of all weights) is kept, too. A graph serves any number of examples. It is compared with the network's
    own code when a number of examples occurs that is larger or smaller than all before, up to a factor of two. Where no
    graph can be made (`reason` tells why), the code itself runs.

    A predictor notices when parameters change, by training or by loading, and when a module's attributes do. It may be
    called by several threads; calls that draw random numbers, and those without a graph, wait for each other.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        mode: As for `predict`.
        num_samples: As for `predict`.
        draws: `"fresh"` draws at each call. `"fixed"` draws the weights once, K networks that are the same for all
            examples and calls, and are kept in memory; after a change of the guide's parameters they are drawn again
            from the same numbers. Random activations and the observations' noise are drawn anew in any case.
        example: Inputs of the kind that will come. With them, all is settled now and not during the first calls.
        compile: Whether to compile the graph to machine code, for numbers of examples that are powers of two, to which
            inputs are filled up (where nothing is drawn for each example; else for each number). `"auto"` compiles for
            a number that has come a thousand times. It takes some ten seconds for each number.
        batch_size: Largest number of examples that run through the network at a time.
        device: The model's device, to which inputs are moved; by default they must be there already.
        seed: Seed of each call, as that of `predict`; of the draws where they are fixed. Without it, calls continue
            from the present random state.

    Raises:
        ValueError: The mode is unknown or does not fit the guide, or the guide's draws depend on the inputs and cannot
            be fixed.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> predictor = Predictor(model, ps.guides.Additive(model), mode="moments", example=torch.zeros(4, 2))
        >>> predictor(torch.zeros(5, 2)).probs.shape, predictor.reason
        (torch.Size([5, 3]), None)
    """

    def __init__(
        self,
        model: Model,
        guide: Guide,
        *,
        mode: str = "mc",
        num_samples: int | None = None,
        draws: Literal["fresh", "fixed"] = "fresh",
        example: Inputs | None = None,
        compile: bool | Literal["auto"] = "auto",
        batch_size: int = 1000,
        device: str | torch.device | None = None,
        seed: int | None = None,
    ) -> None:
        check_guide(guide)
        self.mode, self.num_samples = parse_mode(mode, num_samples)
        check_mode(guide, self.mode)
        check_choice("draws", draws, ("fresh", "fixed"))
        if compile not in (True, False, "auto"):
            raise ValueError(f"compile: expected True, False or 'auto', got {compile!r}")
        if draws == "fixed" and self.mode != "mc":
            raise ValueError(f"draws='fixed': expected mode 'mc', which draws weights, got {mode!r}")
        self.model, self.guide = model, guide
        self._batch_size, self._device, self._seed, self._compile = batch_size, device, seed, compile
        self._fixed = FixedDraws(guide, self.num_samples, seed) if draws == "fixed" else None
        self._kinds: dict[Hashable, SettledKind] = {}
        self._snapshot: _Snapshot | None = None
        self._ways: dict[Hashable, tuple[SettledKind, PieceGraph]] = {}
        self._changes = 0
        self._reason: str | None = None
        if example is not None:
            for _ in range(2):
                self(example)

    def __call__(
        self,
        x: Inputs,
        *,
        y: GivenTargets | Target | None = None,
        labels: Tensor | None = None,
        seed: int | None = None,
        progress: bool = False,
    ) -> Prediction:
        """Predict.

        Args:
            x: Inputs, as for `predict`.
            y: Targets, for their `log_density`; the network's own code then runs.
            labels: Known classes, as for `predict`; the network's own code then runs.
            seed: Seed of this call, in place of the predictor's.
            progress: Whether to show a progress bar on stderr if it takes more than ten seconds.

        Returns:
            The prediction. Its tensors are those of torch's inference mode where a graph made them.

        Raises:
            TypeError: As for `predict`.
            ValueError: As for `predict`.
        """
        given = flat_inputs(x, getattr(self.model, "target", None))
        if y is None and labels is None and (found := self._as_before(given, seed)) is not None:
            return found
        targets = None if y is None else reader_of(self.model).read(y, "targets y")
        if labels is not None:
            check_known_classes(labels, None, "labels")
            given = with_labels(given, labels)
        with _LOCK:
            return self._decide(given, targets, labels, self._seed if seed is None else seed, progress)

    def _decide(
        self, given: FlatInputs, targets: Target | None, labels: Tensor | None, seed: int | None, progress: bool
    ) -> Prediction:
        """Predict by graphs or by the code, and settle what is not settled yet."""
        batches = split(self.model, given, targets, self._batch_size)
        target = compute_device(given, self.model, self.guide, self._device)
        check_finite("inputs x", given)
        first = to_device(batches[0][0], target)
        shown = tqdm(batches, "predict", delay=BAR_DELAY, disable=not progress, unit="batch")
        if targets is None and labels is None and self._is_plain_call():
            found = self._by_graphs(first, shown, target, seed)
            if found is not None:
                return found
        with known_labels(self.model, None if labels is None else "known"):
            check_labels_around(self.model, count_examples(given, self._in_dims))
            known = marked(self.model, given)
            kind = self._kind(first)
            rows: list[Fields] = []
            kind.sampler.restart()
            with seeded(seed, target), evaluating(self.model, self.guide):
                for inputs, own in shown:  # of which only one is on the device at a time
                    part = to_device(inputs, target), None if own is None else own.to(target)
                    rows += [average.results() for average in kind.averages(*part)]
            return prediction_of(self.model, rows, kind.sampler, known)

    def export(self, path: str | os.PathLike[str], *, format: Literal["torch", "onnx"] = "torch") -> tuple[str, ...]:
        """Write the predictor as a program that needs neither this library nor the network's code.

        It takes any number of examples. Its outputs are the fields of the prediction, in float64, and for classes
        `probs`; arguments of distributions are not checked. Before it is written, it is compared with the network's
        code for one, two and five examples, an ONNX program in onnxruntime.

        Args:
            path: The file; `.pt2` and `.onnx` are customary.
            format: `"torch"` for a program that `torch.export.load` opens, `"onnx"` for any ONNX runtime (needs the
                extra `onnx`).

        Returns:
            The names of the outputs.

        Raises:
            ImportError: The extra `onnx` is not installed.
            ValueError: There is no graph, since no example was given or the network's code cannot be one; it draws
                random numbers; or it cannot be exported.

        Example:
            >>> import tempfile
            >>> import pyrostoch as ps
            >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
            ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
            >>> predictor = Predictor(model, ps.guides.Additive(model), mode="moments", example=torch.zeros(4, 2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     predictor.export(f"{folder}/net.pt2")
            ('probs', 'log_probs', 'total', 'aleatoric', 'epistemic')
        """
        check_choice("format", format, ("torch", "onnx"))
        graph = next((found for kind in self._kinds.values() if (found := kind.graph_for_several) is not None), None)
        if graph is None:
            why = self.reason or "no inputs are known; give example= with at least two examples to the Predictor"
            raise ValueError(f"export: there is no graph: {why}{see('how-to/take_it_out')}")
        if graph.random:
            raise ValueError(
                "export: the graph draws random numbers; use mode 'mean' or 'moments', or draws='fixed'; random "
                f"activations and dropout of the network are drawn anew in any case{see('how-to/take_it_out')}"
            )
        kind = next(found for found in self._kinds.values() if found.graph_for_several is graph)
        about = {"mode": self.mode, "num_samples": kind.sampler.num_samples}
        with _LOCK:
            graph = kind.graph_to_export(graph)
            program = Program(graph)
            export_program(program, Path(path), format, graph.names, graph.axes, kind.by_code, about)
        return program.names

    @property
    def reason(self) -> str | None:
        """Why the code of guide and network runs in place of a graph; `None` where a graph does, or may do later."""
        if self._changes > _MANY_CHANGES:
            return "an attribute of a module keeps changing; keep a number that changes in a buffer"
        return next((kind.reason for kind in self._kinds.values() if kind.reason is not None), self._reason)

    @property
    def _in_dims(self) -> Any:
        return getattr(self.model, "in_dims", 0)

    def _is_plain_call(self) -> bool:
        """Whether nothing around the call could change what the network computes."""
        casts = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
        around = bool(_PYRO_STACK) or noise_is_frozen() or known_selection() is not None
        return not (casts or around or self._changes > _MANY_CHANGES) and maybe_current_level() is None

    def _kind(self, x: FlatInputs) -> SettledKind:
        """What is settled for inputs like these; what is not is settled by their first pass."""
        key = kind_of(x, self._in_dims)
        if key not in self._kinds:
            sampler = PosteriorSampler(self.model, self.guide, self.mode, self.num_samples, self._fixed is not None)
            kind = SettledKind(sampler, self._fixed, self._compile)
            if len(self._kinds) >= _MANY_KINDS:
                kind.reason = self._reason = "the shapes of its inputs keep changing"
                return kind
            self._kinds[key] = kind
        return self._kinds[key]

    def _as_before(self, x: FlatInputs, seed: int | None) -> Prediction | None:
        """The prediction for inputs of shapes that were served by one graph before: all has been decided."""
        way = self._ways.get(shapes_of(x))
        if way is None or not self._is_plain_call() or self._snapshot is None or not self._snapshot.is_unchanged():
            return None
        check_finite("inputs x", x)
        warn_of_other_owner(self.model, self.guide)
        kind, graph = way
        if self._fixed is not None:
            with _LOCK:
                self._fixed.refresh(kind.sampler, x)
        piece = kind.sampler.formatted(x)
        if graph.random:
            with _LOCK, seeded(self._seed if seed is None else seed, device_of_inputs(x)):
                found = kind.run(graph, piece)
        else:
            found = kind.run(graph, piece)
        return prediction_of(self.model, [found], kind.sampler, None) if bool(found.pop(VALID)) else None

    def _by_graphs(
        self, first: FlatInputs, batches: Iterable[Any], target: torch.device, seed: int | None
    ) -> Prediction | None:
        """The prediction by graphs, or `None` where the code itself has to run."""
        kind = self._kinds.get(kind_of(first, self._in_dims))
        if kind is None or kind.reason is not None:
            return None
        if self._snapshot is not None and not self._snapshot.is_unchanged():
            self._changes += 1
            self._kinds.clear()
            self._ways.clear()
            self._snapshot = None
            return None
        warn_of_other_owner(self.model, self.guide)
        rows: list[Fields] = []
        with seeded(seed, target):
            for inputs, _ in batches:
                for piece, _ in kind.sampler.split_batch(to_device(inputs, target)):
                    kind.settle(piece)
                    if kind.reason is not None and not rows:
                        return None
                    rows.append(kind.fields(piece))
        self._snapshot = self._snapshot or _Snapshot(self.model, self.guide)
        graph = kind.graph_of(piece)
        if len(rows) == 1 and graph is not None and len(self._ways) < _MANY_WAYS:
            self._ways[shapes_of(first)] = kind, graph
        return prediction_of(self.model, rows, kind.sampler, None)


class _Snapshot:
    """The Python state of model and guide that a graph took over."""

    def __init__(self, *parts: Any) -> None:
        modules = {id(found): found for part in parts if isinstance(part, nn.Module) for found in part.modules()}
        # A model keeps what it finds out about its network. Of its attributes only those count that were given to it.
        self._models = [found for found in modules.values() if isinstance(found, BayesianModel)]
        self._given = [_attributes(model) for model in self._models]
        self._rest = ModuleSnapshot([found for found in modules.values() if not isinstance(found, BayesianModel)], [])

    def is_unchanged(self) -> bool:
        """Whether the state is still the same."""
        return [_attributes(model) for model in self._models] == self._given and self._rest.is_unchanged()


def _attributes(model: BayesianModel) -> tuple[Any, ...]:
    return model.net, model.likelihood, model.in_dims, model.target, model.labels_from


def prediction_of(
    model: Model, rows: Sequence[Fields], sampler: PosteriorSampler, known: KnownLabels, **more: Tensor
) -> Prediction:
    """A prediction from what was found for its pieces.

    Args:
        model: The model.
        rows: The fields of each piece.
        sampler: What ran the draws.
        known: Whether labels were known.
        more: Further fields.
    """
    first = rows[0]
    fields = first if len(rows) == 1 else {name: torch.cat([row[name] for row in rows]) for name in first}
    fields = fields | more
    how: Any = {"mode": sampler.mode, "num_samples": sampler.num_samples, "labels": known}
    how["treatments"] = dict(sampler.treatments)
    likelihood = getattr(model, "likelihood", None)
    names: tuple[str, ...] = getattr(likelihood, "head_names", ())
    how["loss"] = is_loss(likelihood)
    if not names:
        return Prediction(**(how | without_nan(fields)))
    by_head: dict[str, dict[str, Any]] = split_heads(fields, names)
    heads = {
        head: Prediction(**(how | without_nan(own) | {"loss": is_loss(likelihood, head)}))
        for head, own in by_head.items()
        if own
    }
    return Prediction(**how, log_density=fields.get("log_density"), heads=heads)
