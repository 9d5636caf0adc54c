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

from pyrostoch.staging.compiler import Compiled, lower, missing
from pyrostoch.staging.graph import StagingError, trace, undisturbed, unique
from pyrostoch.staging.update import Update

__all__ = ["StagedStep"]

#: Computes what is to be minimised, first, and whatever else is to be reported.
Compute = Callable[..., Sequence[Tensor]]

# A further shape or mode is compiled when it has come so often: one that comes seldom, such as the last short batch of
# an epoch, never repays the compiler's seconds. By count and not by clock, so that runs repeat themselves.
_OFTEN = 1000
# Shapes that keep changing are not worth compiling either.
_MOST = 8
# What two ways through the same kernels may differ by, in relative norm; what compiled code may.
_SAME, _CLOSE = 1e-3, 1e-2


@dataclass
class _Staged:
    """A compiled step: the tensors it reads besides the batch, and the shape of what it returns."""

    run: Compiled
    static: list[Tensor]
    constants: list[Tensor]
    values: int


class StagedStep:
    """A step of an optimiser: eager at first, then compiled.

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
        self._update = Update(optimizer) if Update.supports(optimizer) else None
        self._seen: dict[Hashable, int] = {}
        self._staged: dict[Hashable, _Staged] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimiser moves, once each."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Make one step.

        Args:
            args: The batch.
            kwargs: More of it.

        Returns:
            The values computed before the update, detached, the loss first.
        """
        if self.reason is not None:
            return self.eager(*args, **kwargs)
        leaves, key = self._key(args, kwargs)
        found = self._staged.get(key)
        if found is None:
            if not self._is_due(key):
                return self.eager(*args, **kwargs)
            start = perf_counter()
            try:
                found = self._staged[key] = self._stage(args, kwargs)
                self.stagings += 1
            except StagingError as error:
                self.reason = str(error)
                warnings.warn(f"{self.name}: the step runs eagerly: {error}", UserWarning, stacklevel=2)
                return self.eager(*args, **kwargs)
            finally:
                self.seconds += perf_counter() - start
        return self._replay(found, leaves)

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
        count = self._seen[key] = self._seen.get(key, 0) + 1
        if len(self._staged) >= _MOST:
            return False
        return count > (1 if not self._staged and next(iter(self._seen)) == key else _OFTEN)

    def _key(self, args: Any, kwargs: Any) -> tuple[list[Any], Hashable]:
        """The tensors of a call, and all that a staged step takes for granted about it."""
        leaves, form = pytree.tree_flatten((args, kwargs))
        batch = tuple(
            (leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad)
            if isinstance(leaf, Tensor)
            else (type(leaf), leaf if isinstance(leaf, Hashable) else id(leaf))
            for leaf in leaves
        )
        modes = tuple(part.training for part in self._parts)
        state = tuple((p.dtype, p.device, p.requires_grad) for p in self.parameters)
        update = None if self._update is None else self._update.key()
        casts = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"), torch.get_default_dtype())
        return leaves, (batch, str(form), modes, state, update, casts)

    def _replay(self, found: _Staged, leaves: list[Any]) -> tuple[Tensor, ...]:
        if self._update is not None:
            self._update.refresh()
        inputs = self._inputs(found.static, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
        with torch.no_grad():
            results = found.run(*inputs, *found.constants)
        if self._update is None:
            for parameter, gradient in zip(self.parameters, results[found.values :], strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        return tuple(results[: found.values])

    def _inputs(self, static: list[Tensor], batch: list[Tensor]) -> list[Tensor]:
        # The optimiser's state is looked up anew, since load_state_dict replaces it.
        return [*static, *(self._update.tensors() if self._update is not None else ()), *batch]

    def _stage(self, args: Any, kwargs: Any) -> _Staged:
        """Trace, compare with the eager step, compile, compare again.

        Raises:
            StagingError: It cannot be done.
        """
        lacking = missing(next(iter(self.parameters)).device)
        if lacking is not None:
            raise StagingError(lacking)
        own = [t for module in self._modules for t in (*module.parameters(), *module.buffers())]
        buffers = unique([buffer for module in self._modules for buffer in module.buffers()])
        static = unique([*self.parameters, *own])
        leaves, form = pytree.tree_flatten((args, kwargs))
        # Copies, so that a batch shares its memory with nothing else.
        leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(leaves, form)
        if self._update is not None:
            self._update.refresh()
        inputs = self._inputs(static, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
        count = 0

        def whole() -> list[Tensor | None]:
            nonlocal count
            values = self.compute(*args, **kwargs)
            count = len(values)
            gradients = self._gradients(values[0])
            if self._update is not None:
                with torch.no_grad():
                    self._update.apply(gradients)
            return [*(value.detach() for value in values), *gradients]

        with undisturbed(inputs):
            values = self.compute(*args, **kwargs)
            expected = [*(value.detach().clone() for value in values), *self._gradients(values[0])]
            expected += [buffer.detach().clone() for buffer in buffers]
        graph = trace(whole, inputs)
        now = [buffer for module in self._modules for buffer in module.buffers()]
        if len(unique([*buffers, *now])) != len(buffers):
            raise StagingError("the network puts a new tensor in a buffer's place; write into the buffer instead")
        with undisturbed(inputs):
            found = [*graph(*inputs, *()), *(buffer.detach().clone() for buffer in buffers)]
        _compare(found, expected, count, _SAME, "written down")
        if self._update is not None:
            graph.keep(count)
        run = lower(graph.module, [*inputs, *graph.constants])
        with undisturbed(inputs), torch.no_grad():
            found = list(run(*inputs, *graph.constants))
        _compare(found[:count], expected[:count], count, _CLOSE, "compiled")
        return _Staged(run, static, graph.constants, count)

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


def _compare(
    found: Sequence[Tensor | None], expected: Sequence[Tensor | None], values: int, most: float, how: str
) -> None:
    """Refuse a staged step that does not do what the eager step does on the same noise.

    Values are compared one by one; gradients and buffers by the norm of them all, since a gradient that is zero but for
    rounding has no relative error.
    """
    pairs = list(zip(found, expected, strict=True))
    if any((one is None) != (other is None) for one, other in pairs):
        raise StagingError(f"the step as {how} has gradients for other parameters than the eager one")
    whole = [(one.double(), other.double()) for one, other in pairs if one is not None and other is not None]
    error = [_norm([one - other for one, other in [pair]]) / (_norm([pair[1]]) + 1e-12) for pair in whole[:values]]
    if whole[values:]:
        rest = whole[values:]
        error.append(_norm([one - other for one, other in rest]) / (_norm([other for _, other in rest]) + 1e-12))
    worst = max(error)
    if not worst <= most and all(bool(torch.isfinite(other).all()) for _, other in whole):
        raise StagingError(
            f"the step as {how} differs from the eager one by {worst:.1e} (relative) on the same noise: it depends on "
            "something that a graph does not see, such as a Python number or random generator that changes"
        )


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(tensor).cpu() for tensor in tensors]).norm())
