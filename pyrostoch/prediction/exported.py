"""A predictor outside of this library: a `torch.export` program, or an ONNX file for any runtime.

What is exported is the predictor's graph, with what depends on parameters as its constants. Moments are plain
operations on tensors, too, so that a runtime gives the uncertainty in one deterministic pass.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch._tracing import traced
from pyrostoch._version import __version__
from pyrostoch.prediction.draw_chunk import VALID
from pyrostoch.prediction.piece_graph import Fields, PieceGraph
from pyrostoch.safefile import temporary_name

__all__ = ["Program", "export_program"]

# Numbers of examples with which an exported program is compared.
COUNTS = (1, 2, 5)

# Largest difference of an exported program, relative to the largest entry of an output.
_TOLERANCE = 1e-4

# A root of a covariance is written out for so many outputs; ONNX has none.
_MOST_OUTPUTS = 32

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Program(nn.Module):
    """A predictor's graph as a module: inputs in, the fields of a prediction out, in the order of `names`.

    Args:
        graph: The graph, which must not draw random numbers.

    Attributes:
        names: The names of the outputs; classes also have `probs`.
        example: Inputs with a few examples.
    """

    def __init__(self, graph: PieceGraph) -> None:
        super().__init__()
        self._graph = graph
        self._runs = graph.settled()
        self.live = graph.live
        for k, run in enumerate(self._runs):
            for i, value in enumerate(run):
                self.register_buffer(f"settled_{k}_{i}", value.detach().clone())
        self.example = tuple(graph.example)
        fields = self._fields(*self.example)
        self.names = tuple(fields)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The fields of the prediction."""
        return tuple(self._fields(*inputs).values())

    def _fields(self, *inputs: Tensor) -> Fields:
        given = self._graph.formatted(inputs)
        runs = [[getattr(self, f"settled_{k}_{i}") for i in range(len(run))] for k, run in enumerate(self._runs)]
        with traced(), torch.no_grad():
            found = self._graph.collected(self.live(*given, *own) for own in runs)
        found.pop(VALID)
        return _with_probs(found)


def export_program(
    program: Program,
    path: Path,
    format: str,
    inputs: Sequence[str],
    axes: Sequence[int | None],
    expected: Callable[[Sequence[Tensor]], Fields],
    about: Mapping[str, Any],
) -> None:
    """Write a program, after it was compared with predictions by the network's own code.

    Args:
        program: The program.
        path: The file.
        format: `"torch"` or `"onnx"`.
        inputs: The names of its inputs.
        axes: The axis of each that counts the examples.
        expected: Predicts inputs by the network's own code.
        about: What is written beside it, as plain data.

    Raises:
        ImportError: ONNX is not installed.
        ValueError: It cannot be exported, or gives something else.
    """
    if format == "onnx" and (missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]):
        raise ImportError(f"export format='onnx': {name_list(missing)} not installed: pip install 'pyrostoch[onnx]'")
    examples = program.example
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({} if axis is None else {axis: batch} for axis in axes),)
    with _quiet(), torch.no_grad():
        try:
            found = torch.export.export(program, examples, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # an exporter may raise anything
            raise _refused(format, error) from error
    cases = [_first(examples, axes, count) for count in COUNTS]
    answers = [_with_probs(expected(case)) for case in cases]
    run = found.module()
    for case, answer in zip(cases, answers, strict=True):
        with torch.no_grad():
            _check(dict(zip(program.names, run(*case), strict=True)), answer, "torch.export")
    content = {**about, "outputs": list(program.names), "inputs": list(inputs), "pyrostoch": __version__}
    temporary = temporary_name(path).with_suffix(path.suffix)
    try:
        if format == "torch":
            with _quiet():
                torch.export.save(found, temporary, extra_files={"pyrostoch.json": json.dumps(content)})
        else:
            _write_onnx(found, temporary, inputs, program.names, content)
            _check_onnx(temporary, program.names, cases, answers)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_onnx(
    found: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str], content: Mapping[str, Any]
) -> None:
    table = torch.export.default_decompositions()
    table[torch.ops.aten.linalg_cholesky_ex.default] = _cholesky
    with _quiet(), torch.no_grad():
        try:
            plain = found.run_decompositions(table)
            own = [f"pyrostoch.{name}" for name in outputs]
            made: Any = torch.onnx.export(plain, dynamo=True, verbose=False, input_names=list(inputs), output_names=own)
            _rename(made.model.graph, dict(zip(own, outputs, strict=True)))
        except Exception as error:
            raise _refused("onnx", error) from error
        made.model.metadata_props["pyrostoch"] = json.dumps(content)
        made.save(path)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give outputs their names, which an operation within may have (such as a mean)."""
    taken = set(names.values())
    for node in graph:
        for value in node.outputs:
            if value.name in taken:
                value.name = f"within.{value.name}"
    for value in graph.outputs:
        value.name = names.get(value.name, value.name)


def _cholesky(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """The Cholesky factor, column by column: the operation that ONNX lacks."""
    size = a.shape[-1]
    if size > _MOST_OUTPUTS:
        raise ValueError(
            f"{size} outputs, whose covariance has a root that ONNX has no operation for (up to {_MOST_OUTPUTS} it is "
            "written out); use mode 'moments:closed'"
        )
    columns: list[Tensor] = []
    tiny = torch.finfo(a.dtype).tiny
    for j in range(size):
        rest = a[..., :, j]
        for column in columns:
            rest = rest - column * column[..., j : j + 1]
        below = (torch.arange(size, device=a.device) >= j).to(a.dtype)
        columns.append(rest * below / rest[..., j : j + 1].clamp_min(tiny).sqrt())
    return torch.stack(columns, -1), torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)


def _check_onnx(path: Path, names: Sequence[str], cases: Any, answers: Sequence[Fields]) -> None:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # an operation for which the runtime has no kernel in this precision
        raise _refused("onnx", error) from error
    given = [one.name for one in session.get_inputs()]
    for case, answer in zip(cases, answers, strict=True):
        found = session.run(list(names), {name: value.cpu().numpy() for name, value in zip(given, case, strict=True)})
        _check(dict(zip(names, map(torch.from_numpy, found), strict=True)), answer, "ONNX")


def _check(found: Fields, expected: Fields, how: str) -> None:
    for name, value in expected.items():
        own = found[name].to(value)
        size = float(value.abs().amax())
        error = float((own - value).abs().amax()) if own.shape == value.shape else float("inf")
        if not error <= _TOLERANCE * size + 1e-6:
            raise ValueError(
                f"export: for {len(value)} example(s) the {how} program gives another {name} than predict (a "
                f"difference of {error:.2g}, the largest entry is {size:.2g}), so it was not written; the network's "
                f"code may branch on the number of examples{see('how-to/take_it_out')}"
            )


def _with_probs(fields: Fields) -> Fields:
    probs = {f"{name.removesuffix('log_probs')}probs": fields[name].exp() for name in fields if "log_probs" in name}
    return probs | fields


def _first(inputs: Sequence[Tensor], axes: Sequence[int | None], count: int) -> tuple[Tensor, ...]:
    return tuple(
        value if axis is None else value.narrow(axis, 0, count) for value, axis in zip(inputs, axes, strict=True)
    )


def _refused(format: str, error: Exception) -> ValueError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "No ONNX function found" in line or "outputs, whose" in line]
    text = causes[0] if causes else lines[0] if lines else "no message"
    return ValueError(
        f"export format={format!r}: it cannot be exported: {type(error).__name__}: {text}{see('how-to/take_it_out')}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
