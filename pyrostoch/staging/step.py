"""Compiled training steps: loss, gradients and update traced once, compiled, and replayed with fresh noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyrostoch.effects.frozen import noise_is_frozen
from pyrostoch.staging.compare import compare, compare_updates
from pyrostoch.staging.compiler import Compiled, lower, missing
from pyrostoch.staging.graph import StagingError, restore_tensors, trace, unique
from pyrostoch.staging.python_state import ModuleSnapshot, restore_modules
from pyrostoch.staging.update import Update

__all__ = ["StagedStep"]

#: Computes the loss, first, and further values to report.
Compute = Callable[..., Sequence[Tensor]]

# After the first, a further shape or mode is compiled once it has occurred this often: compiling for one that is rare,
# such as the short last batch of an epoch, takes longer than it saves. A count and not a time, so that runs are
# reproducible.
_MIN_OCCURRENCES = 1000
# The largest number of compiled shapes and modes; of different calls, beyond which arguments are considered to keep
# changing; and of compiled steps that became outdated because a module changed.
_MAX_STAGED, _MAX_CALLS, _MAX_OUTDATED = 8, 100, 2
# Tolerances in relative norm: of a traced step, which runs the same kernels as the eager one; of the values of compiled
# code; of the updates of compiled code, which Adam makes as large for a gradient of pure rounding error as for any
# other.
_TOLERANCE_TRACED, _TOLERANCE_VALUES, _TOLERANCE_UPDATES = 1e-5, 1e-2, 0.3

_HALF = (torch.bfloat16, torch.float16)
# Arguments of these types become constants of the compiled step.
_CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, type(None))


@dataclass
class _Staged:
    """A compiled step, and the state in which it is valid.

    Args:
        run: The compiled function.
        static: Its inputs besides the optimizer's state and the batch: parameters and buffers.
        constants: Further tensors that it reads.
        values: The number of its results that are values; gradients may follow.
        layout: Which tensors the optimizer's state had.
        parameters: The optimizer's parameters.
        snapshot: The Python state of the modules.
    """

    run: Compiled
    static: list[Tensor]
    constants: list[Tensor]
    values: int
    layout: tuple[Any, ...]
    parameters: list[Tensor]
    snapshot: ModuleSnapshot


class StagedStep:
    """A training step that runs eagerly at first and compiled later.

    The first call with a shape and mode runs eagerly, which checks the step and performs lazy initialization. The
    second call stages it: the step is traced, compared with the eager step on the same noise, compiled, and compared
    again. Later calls run the compiled step. A step that cannot be staged goes on eagerly, with one warning that gives
    the reason.

    Args:
        compute: A function of the batch that returns the loss, a scalar, and further values of any shape.
        optimizer: The optimizer. For Adam, AdamW and SGD the update is part of the compiled step; other optimizers make
            their own step with the gradients that the compiled step returns.
        modules: The modules that `compute` runs. A change of their parameters, buffers, modes or attributes between
            steps is taken into account.
        clip: Largest norm of the gradient over all parameters; `None` does not clip.
        staged: Whether to compile at all.
        name: Name of the step in warnings.

    Attributes:
        reason: Why the step runs eagerly, or `None` if it does not.
        seconds: Seconds spent on staging.
        stagings: Number of shapes and modes staged.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> step = StagedStep(lambda x: (net(x).square().mean(),), torch.optim.SGD(net.parameters(), lr=0.1), [net],
        ...                   staged=False)
        >>> x = torch.ones(4, 2)
        >>> step(x)[0] > step(x)[0]
        tensor(True)
    """

    def __init__(
        self,
        compute: Compute,
        optimizer: torch.optim.Optimizer,
        modules: Sequence[nn.Module],
        *,
        clip: float | None = None,
        staged: bool = True,
        name: str = "compile_step",
    ) -> None:
        self.compute, self.optimizer, self.clip, self.name = compute, optimizer, clip, name
        self.staged, self.reason = staged, None if staged else "not asked for"
        self.seconds, self.stagings = 0.0, 0
        self._modules = list(modules)
        self._submodules = list(dict.fromkeys(sub for module in modules for sub in module.modules()))
        self._supported_update = Update(optimizer) if Update.supports(optimizer) else None
        self._occurrences: dict[Hashable, int] = {}
        self._staged: dict[Hashable, _Staged] = {}
        self._latest: tuple[Hashable, list[Any]] | None = None
        self._outdated = 0

    @property
    def parameters(self) -> list[Tensor]:
        """The optimizer's parameters."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Make one step.

        Args:
            args: The batch, as `compute` takes it.
            kwargs: The same, by name.

        Returns:
            The values that `compute` returned before the update, detached; the loss comes first.
        """
        if self.reason is not None or noise_is_frozen():  # a compiled step would draw new noise
            return self.eager(*args, **kwargs)
        leaves, tree = _flatten(args, kwargs)
        leaves = [_dense(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        unsupported = next((leaf for leaf in leaves if not _is_supported(leaf)), None)
        if unsupported is not None or len(self._occurrences) > _MAX_CALLS:
            self._give_up(
                f"an argument of type {type(unsupported).__name__} (only dense tensors that require no gradient, "
                "numbers and strings are supported)"
                if unsupported is not None
                else "its arguments keep changing in shape or value; pass numbers that change as tensors"
            )
            return self.eager(*args, **kwargs)
        key = self._key(leaves, tree)
        staged = self._staged.get(key)
        if staged is not None and not self._is_valid(staged):
            del self._staged[key]
            self._outdated += 1
            if self._outdated > _MAX_OUTDATED:
                self._give_up(
                    "a number, tensor or hook of a module keeps changing; keep a number that changes in a buffer"
                )
                return self.eager(*args, **kwargs)
            staged, self._occurrences[key] = None, 0
        if staged is not None and staged.layout == self._layout():
            return self._replay(staged, leaves)
        if staged is None and self._is_due(key):
            start = perf_counter()
            try:
                with restore_modules(self._submodules):
                    staged = self._stage(key, leaves, tree)
                self._staged[key] = staged
                self.stagings += 1
                return self._replay(staged, leaves)
            except Exception as error:  # whatever fails in tracing or compiling, the eager step still works
                self._give_up(str(error) if isinstance(error, StagingError) else f"{type(error).__name__}: {error}")
            finally:
                self.seconds += perf_counter() - start
        values = self.eager(*args, **kwargs)
        self._occurrences[key] = self._occurrences.get(key, 0) + 1
        self._latest = key, leaves
        return values

    def _is_valid(self, staged: _Staged) -> bool:
        """Whether the modules and the optimizer's parameters are still those of a compiled step."""
        return staged.snapshot.is_unchanged() and _same_objects(staged.parameters, self.parameters)

    def _give_up(self, reason: str) -> None:
        """Run eagerly from now on, with a warning."""
        self.reason, self._latest = reason, None
        self._staged.clear()
        warnings.warn(f"{self.name}: the step runs eagerly: {reason}", UserWarning, stacklevel=3)

    def eager(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Make one step eagerly.

        Args:
            args: The batch, as `compute` takes it.
            kwargs: The same, by name.

        Returns:
            The values, detached; the loss comes first.
        """
        self.optimizer.zero_grad(set_to_none=True)
        values = self.compute(*args, **kwargs)
        values[0].backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return tuple(value.detach() for value in values)

    def _is_due(self, key: Hashable) -> bool:
        """Whether a call of this kind should be staged now."""
        count = self._occurrences.get(key, 0)
        if len(self._staged) >= _MAX_STAGED:
            return False
        if not self._staged and next(iter(self._occurrences), key) == key:
            # At the first call if the optimizer has made steps before, so that a resumed run equals an uninterrupted
            # one.
            return count > 0 or all(parameter in self.optimizer.state for parameter in self.parameters)
        return count >= _MIN_OCCURRENCES

    @property
    def _update(self) -> Update | None:
        """The update as tensor operations, or `None` if the optimizer has to make its own step (hooks may be added)."""
        update = self._supported_update
        return update if update is not None and Update.supports(self.optimizer) else None

    def _layout(self) -> tuple[Any, ...]:
        return () if self._update is None else self._update.layout()

    def _key(self, leaves: list[Any], tree: Any) -> Hashable:
        """Everything about a call for which a compiled step is made: shapes, modes, dtypes and options."""
        batch = tuple(
            (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), leaf)
            for leaf in leaves
        )
        modes = tuple(module.training for module in self._submodules)
        state = tuple((p.shape, p.stride(), p.dtype, p.device, p.requires_grad) for p in self.parameters)
        update = None if self._update is None else self._update.key()
        casts = tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))
        return batch, tree, modes, state, update, casts, torch.get_default_dtype()

    def _replay(self, staged: _Staged, leaves: list[Any]) -> tuple[Tensor, ...]:
        """Run a compiled step on a batch."""
        update = self._update
        if update is not None:
            update.refresh()
        with torch.no_grad():
            results = staged.run(*self._inputs(staged.static, leaves), *staged.constants)
        if update is None:
            for parameter, gradient in zip(self.parameters, results[staged.values :], strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        else:
            # For torch's learning rate schedulers, which warn if the optimizer has made no step.
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
        return tuple(results[: staged.values])

    def _inputs(self, static: list[Tensor], leaves: list[Any]) -> list[Tensor]:
        # The optimizer's state is looked up each time, since load_state_dict replaces it.
        update = self._update
        return [*static, *(() if update is None else update.tensors()), *_tensors(leaves)]

    def _stage(self, key: Hashable, leaves: list[Any], tree: Any) -> _Staged:
        """Trace the step, compare it with the eager step, compile it, and compare again.

        Raises:
            StagingError: The step cannot be staged.
        """
        lacking = missing(next(iter(self.parameters)).device)
        if lacking is not None:
            raise StagingError(lacking)
        if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in self.parameters):
            raise StagingError("a parameter has hooks on its accumulated gradient")
        if any(parameter.is_complex() for parameter in self.parameters):
            raise StagingError("a parameter is complex")
        of_modules = [tensor for module in self._modules for tensor in (*module.parameters(), *module.buffers())]
        static = unique([*self.parameters, *of_modules])
        update = self._update
        if update is not None:
            update.refresh()
        # Copies, so that the batch shares its memory with no other tensor.
        batch = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # The step is traced on the previous batch and with other noise: if the trace made a constant of a value that
        # depends on them, the comparison below shows it.
        earlier = batch
        if self._latest is not None and self._latest[0] == key:
            earlier = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in self._latest[1]]
        inputs = self._inputs(static, batch)
        buffers = unique([buffer for module in self._modules for buffer in module.buffers()])
        count = 0

        def step(leaves: list[Any], *, with_update: bool) -> list[Tensor | None]:
            nonlocal count
            args, kwargs = (leaves, {}) if tree is None else pytree.tree_unflatten(leaves, tree)
            values = self.compute(*args, **kwargs)
            count = len(values)
            gradients = self._gradients(values[0])
            if with_update and update is not None:
                with torch.no_grad():
                    update.apply(gradients)
            return [*(value.detach() for value in values), *gradients]

        def copies(results: Sequence[Tensor | None], state: Sequence[Tensor]) -> list[Tensor | None]:
            copied = (None if result is None else result.clone() for result in results)
            return [*copied, *(tensor.detach().clone() for tensor in state), torch.get_rng_state()]

        with restore_tensors(inputs):
            expected = copies(step(batch, with_update=False), buffers)
        graph = trace(lambda: step(earlier, with_update=True), self._inputs(static, earlier))
        with restore_tensors(inputs):
            results = graph(*inputs)
            actual = copies(results, buffers)
            after_traced = copies([], inputs)
        # In half precision a small loss of large scores is mostly rounding error, which other kernels change.
        half = any(value in _HALF for node in graph.module.graph.nodes for value in node.kwargs.values())
        compare(actual, expected, count, _TOLERANCE_UPDATES if half else _TOLERANCE_TRACED, "traced")
        if update is not None:
            graph.keep(count)
        run = lower(graph.module, [*inputs, *graph.constants])
        before = copies([], inputs)
        with restore_tensors(inputs), torch.no_grad():
            actual = list(run(*inputs, *graph.constants))
            after_compiled = copies([], inputs)
        tolerance = _TOLERANCE_UPDATES if half else _TOLERANCE_VALUES
        compare(actual[:count], expected[:count], count, tolerance, "compiled")
        compare_updates(after_compiled, after_traced, before, _TOLERANCE_UPDATES)
        self.optimizer.zero_grad(set_to_none=True)
        snapshot = ModuleSnapshot(self._submodules, self.parameters)
        return _Staged(run, static, graph.constants, count, self._layout(), self.parameters, snapshot)

    def _gradients(self, loss: Tensor) -> list[Tensor | None]:
        """The gradients of the parameters, clipped; `None` where the loss does not depend on one."""
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        gradient_of = dict(zip(map(id, trained), torch.autograd.grad(loss, trained, allow_unused=True), strict=True))
        gradients = [gradient_of.get(id(parameter)) for parameter in self.parameters]
        if self.clip is not None:
            norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
            # The same formula as in torch.nn.utils.clip_grad_norm_.
            factor = (self.clip / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)
            gradients = [None if gradient is None else gradient * factor for gradient in gradients]
        return gradients


def _flatten(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    """The leaves of a call's arguments and their tree; `None` for a flat list, for which torch's function is slow."""
    if not kwargs and all(isinstance(arg, Tensor) or isinstance(arg, _CONSTANTS) for arg in args):
        return list(args), None
    return pytree.tree_flatten((args, kwargs))


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_supported(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.layout is torch.strided and not leaf.requires_grad
    return isinstance(leaf, _CONSTANTS)


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, or a contiguous copy if its entries are not adjacent in memory, as in a slice."""
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return tensor
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()


def _same_objects(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(here is there for here, there in zip(one, other, strict=True))
