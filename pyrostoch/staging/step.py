"""One training step, staged: loss, gradients and update written down once, compiled, and replayed with fresh noise."""

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
from pyrostoch.staging.graph import StagingError, trace, undisturbed, unique
from pyrostoch.staging.python_state import Pins, put_back
from pyrostoch.staging.update import Update

__all__ = ["StagedStep"]

#: Computes what is to be minimized, first, and whatever else is to be reported.
Compute = Callable[..., Sequence[Tensor]]

# A further shape or mode is compiled when it has come so often: one that comes seldom, such as the last short batch of
# an epoch, never worth_compiling the compiler's seconds. By count and not by clock, so that runs repeat themselves.
_OFTEN = 1000
# Shapes that keep changing are not worth compiling either, nor arguments that do.
_MOST, _MOST_SEEN, _MOST_OUTDATED = 8, 100, 2
# What two ways through the same kernels may differ by, in relative norm; what compiled code may, in its values, and in
# its updates, which Adam makes as large for a gradient of pure rounding as for any other.
_SAME, _CLOSE, _ALIKE = 1e-5, 1e-2, 0.3

_HALF = (torch.bfloat16, torch.float16)
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


@dataclass
class _Staged:
    """A compiled step, and what it takes for granted.

    Args:
        run: The program.
        static: The tensors it reads besides the optimizer's and the batch.
        constants: Further tensors.
        values: Number of its results that are values.
        layout: Which memory the optimizer had.
        moved: The optimizer's parameters.
        pins: What it has taken from the Python side of the modules.
    """

    run: Compiled
    static: list[Tensor]
    constants: list[Tensor]
    values: int
    layout: tuple[Any, ...]
    moved: list[Tensor]
    pins: Pins


class StagedStep:
    """A step of an optimizer: eager at first, then compiled.

    The first call with a shape and mode runs eagerly, which checks it and lets everything lazy happen; the second
    stages it, holds it against the eager step on the same noise, and goes on with the compiled one. What cannot be
    staged goes on eagerly, with one warning that says why.

    Args:
        compute: Gives the loss and further values, scalars or not, from a batch.
        optimizer: Moves its parameters. Adam, AdamW and SGD are staged; any other makes its own step on staged
            gradients.
        modules: What `compute` runs: their parameters, buffers and modes are looked after.
        clip: Largest norm of the whole gradient.
        staged: Whether to stage at all.
        name: What warnings call this step.

    Attributes:
        reason: Why the step runs eagerly, if it does.
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
        self._parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
        self._modules = list(modules)
        self._own_update = Update(optimizer) if Update.supports(optimizer) else None
        self._seen: dict[Hashable, int] = {}
        self._staged: dict[Hashable, _Staged] = {}
        self._latest: tuple[Hashable, list[Any]] | None = None
        self._outdated = 0

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer moves, once each."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Make one step.

        Args:
            args: The batch.
            kwargs: More of it.

        Returns:
            The values computed before the update, detached, the loss first.
        """
        if self.reason is not None or noise_is_frozen():  # a staged step would draw afresh
            return self.eager(*args, **kwargs)
        leaves, form = _flatten(args, kwargs)
        leaves = [_dense(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        strange = next((leaf for leaf in leaves if not _is_plain(leaf)), None)
        if strange is not None or len(self._seen) > _MOST_SEEN:
            self._give_up(
                f"an argument of type {type(strange).__name__} (only dense tensors without gradients, numbers and "
                "strings are followed)"
                if strange is not None
                else "its arguments keep changing in shape or value; numbers that change belong into tensors"
            )
            return self.eager(*args, **kwargs)
        key = self._key(leaves, form)
        found = self._staged.get(key)
        if found is not None and not (found.pins.is_unchanged() and _same_objects(found.moved, self.parameters)):
            del self._staged[key]
            self._outdated += 1
            if self._outdated > _MOST_OUTDATED:
                self._give_up(
                    "a number, tensor or hook of a module keeps changing; a number that changes belongs into a buffer"
                )
                return self.eager(*args, **kwargs)
            found, self._seen[key] = None, 0
        if found is not None and found.layout == self._layout():
            return self._replay(found, leaves)
        if found is None and self._is_due(key):
            start = perf_counter()
            try:
                with put_back(self._parts):
                    found = self._stage(key, leaves, form)
                self._staged[key] = found
                self.stagings += 1
                return self._replay(found, leaves)
            except Exception as error:  # a model, a compiler: anything may go wrong, and the eager step still works
                self._give_up(str(error) if isinstance(error, StagingError) else f"{type(error).__name__}: {error}")
            finally:
                self.seconds += perf_counter() - start
        values = self.eager(*args, **kwargs)
        self._seen[key] = self._seen.get(key, 0) + 1
        self._latest = key, leaves
        return values

    def _give_up(self, reason: str) -> None:
        self.reason, self._latest = reason, None
        self._staged.clear()
        warnings.warn(f"{self.name}: the step runs eagerly: {reason}", UserWarning, stacklevel=3)

    def eager(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Make one step without staging.

        Args:
            args: The batch.
            kwargs: More of it.

        Returns:
            The values, detached.
        """
        self.optimizer.zero_grad(set_to_none=True)
        values = self.compute(*args, **kwargs)
        values[0].backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return tuple(value.detach() for value in values)

    def _is_due(self, key: Hashable) -> bool:
        """Whether it is time to stage what this call is like."""
        count = self._seen.get(key, 0)
        if len(self._staged) >= _MOST:
            return False
        if not self._staged and next(iter(self._seen), key) == key:
            # At once where the optimizer goes on from earlier steps, so that a resumed run is the uninterrupted one.
            return count > 0 or all(parameter in self.optimizer.state for parameter in self.parameters)
        return count >= _OFTEN

    @property
    def _update(self) -> Update | None:
        """The update, while it is all that the optimizer's own step does."""
        return self._own_update if self._own_update is not None and Update.supports(self.optimizer) else None

    def _layout(self) -> tuple[Any, ...]:
        return () if self._update is None else self._update.layout()

    def _key(self, leaves: list[Any], form: Any) -> Hashable:
        """All that a staged step takes for granted about a call."""
        batch = tuple(
            (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), leaf)
            for leaf in leaves
        )
        modes = tuple(part.training for part in self._parts)
        state = tuple((p.shape, p.stride(), p.dtype, p.device, p.requires_grad) for p in self.parameters)
        update = None if self._update is None else self._update.key()
        casts = tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))
        return batch, form, modes, state, update, casts, torch.get_default_dtype()

    def _replay(self, found: _Staged, leaves: list[Any]) -> tuple[Tensor, ...]:
        update = self._update
        if update is not None:
            update.refresh()
        with torch.no_grad():
            results = found.run(*self._inputs(found.static, leaves), *found.constants)
        if update is None:
            for parameter, gradient in zip(self.parameters, results[found.values :], strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        else:
            # For torch's rate schedulers, which warn where no step has been made.
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
        return tuple(results[: found.values])

    def _inputs(self, static: list[Tensor], leaves: list[Any]) -> list[Tensor]:
        # The optimizer's state is looked up anew, since load_state_dict replaces it.
        update = self._update
        return [*static, *(() if update is None else update.tensors()), *_tensors(leaves)]

    def _stage(self, key: Hashable, leaves: list[Any], form: Any) -> _Staged:
        """Trace, compare with the eager step, compile, compare again.

        Raises:
            StagingError: It cannot be done.
        """
        lacking = missing(next(iter(self.parameters)).device)
        if lacking is not None:
            raise StagingError(lacking)
        if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in self.parameters):
            raise StagingError("a parameter has hooks on its accumulated gradient")
        if any(parameter.is_complex() for parameter in self.parameters):
            raise StagingError("a parameter is complex")
        own = [tensor for module in self._modules for tensor in (*module.parameters(), *module.buffers())]
        static = unique([*self.parameters, *own])
        update = self._update
        if update is not None:
            update.refresh()
        # Copies, so that a batch shares its memory with nothing else.
        now = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # Traced on the batch before this one and with other noise, so that a value that the trace has frozen shows.
        then = now
        if self._latest is not None and self._latest[0] == key:
            then = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in self._latest[1]]
        inputs = self._inputs(static, now)
        buffers = unique([buffer for module in self._modules for buffer in module.buffers()])
        count = 0

        def whole(leaves: list[Any], *, updated: bool) -> list[Tensor | None]:
            nonlocal count
            args, kwargs = (leaves, {}) if form is None else pytree.tree_unflatten(leaves, form)
            values = self.compute(*args, **kwargs)
            count = len(values)
            gradients = self._gradients(values[0])
            if updated and update is not None:
                with torch.no_grad():
                    update.apply(gradients)
            return [*(value.detach() for value in values), *gradients]

        def read(results: Sequence[Tensor | None], moved: Sequence[Tensor]) -> list[Tensor | None]:
            kept = (None if result is None else result.clone() for result in results)
            return [*kept, *(tensor.detach().clone() for tensor in moved), torch.get_rng_state()]

        with undisturbed(inputs):
            expected = read(whole(now, updated=False), buffers)
        traced = self._inputs(static, then)
        graph = trace(lambda: whole(then, updated=True), traced)
        with undisturbed(inputs):
            results = graph(*inputs)
            found = read(results, buffers)
            after = read([], inputs)
        # In half precision a small loss of large scores is mostly rounding, and other kernels round otherwise.
        rough = any(value in _HALF for node in graph.module.graph.nodes for value in node.kwargs.values())
        compare(found, expected, count, _ALIKE if rough else _SAME, "written down")
        if update is not None:
            graph.keep(count)
        run = lower(graph.module, [*inputs, *graph.constants])
        before = read([], inputs)
        with undisturbed(inputs), torch.no_grad():
            found = list(run(*inputs, *graph.constants))
            done = read([], inputs)
        compare(found[:count], expected[:count], count, _ALIKE if rough else _CLOSE, "compiled")
        compare_updates(done, after, before, _ALIKE)
        self.optimizer.zero_grad(set_to_none=True)
        return _Staged(
            run, static, graph.constants, count, self._layout(), self.parameters, Pins(self._parts, self.parameters)
        )

    def _gradients(self, loss: Tensor) -> list[Tensor | None]:
        """The gradients, clipped."""
        moved = [parameter for parameter in self.parameters if parameter.requires_grad]
        of = dict(zip(map(id, moved), torch.autograd.grad(loss, moved, allow_unused=True), strict=True))
        found = [of.get(id(parameter)) for parameter in self.parameters]
        if self.clip is not None:
            there = [gradient for gradient in found if gradient is not None]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in there]))
            # As torch.nn.utils.clip_grad_norm_ has it.
            factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            found = [None if gradient is None else gradient * factor for gradient in found]
        return found


def _flatten(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    """The leaves of a call and their form, `None` for a plain row of arguments, where torch's way takes its time."""
    if not kwargs and all(isinstance(arg, Tensor) or isinstance(arg, _PLAIN) for arg in args):
        return list(args), None
    return pytree.tree_flatten((args, kwargs))


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_plain(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.layout is torch.strided and not leaf.requires_grad
    return isinstance(leaf, _PLAIN)


def _dense(tensor: Tensor) -> Tensor:
    """The tensor without gaps between its entries, such as a slice has."""
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return tensor
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()


def _same_objects(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(here is there for here, there in zip(one, other, strict=True))
