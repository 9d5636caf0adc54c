"""Many posterior draws for less than their number of passes.

What no draw changes is computed once, and the draws go through the rest side by side (`torch.vmap`), as many at a time
as fit a fixed amount of memory. A network is looked at first, on up to three examples: whether it can be run so, where
its randomness begins, and how large its activations are.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._seeds import forked
from pyrostoch.effects import Interpretation, SharedSample, base_distribution
from pyrostoch.guides import Guide, PerSite
from pyrostoch.model import latent_sites
from pyrostoch.prediction.activation_sizes import Plan, Watch, growth, size_of
from pyrostoch.prediction.readouts import MODES, observe
from pyrostoch.staging import put_back, undisturbed, unique

__all__ = ["Chunk", "Drawing"]

# Bytes of the largest activation of a pass. On a CPU small pieces stay in its caches, and blocks of more than some
# 32 MiB are asked of the system anew each time, which costs more than the arithmetic.
_BUDGET = {"cpu": 8 * 2**20, "cuda": 2**29}

# Examples that a pass should have at least.
_FEWEST = 16

# Name, among the statistics, of whether a distribution's arguments are where they may be.
_FITS = "fits"

Statistics = Callable[[Distribution], dict[str, Tensor]]


@dataclass
class Chunk:
    """Some draws from the guide, to be run on one batch after another.

    Args:
        drawing: Where it belongs.
        trace: A trace of the guide.
        known: What the interpretation knows of each site.
        values: For each draw, the values of the sites that have one of its own.
    """

    drawing: Drawing
    trace: Any
    known: dict[str, Any]
    values: list[dict[str, Tensor]]

    def on(self, x: Any, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        """What is wanted of the distribution of the observations, for each draw in turn.

        Args:
            x: Inputs of one batch.
            statistics: Reads tensors from a distribution.
        """
        plan = self.drawing.plan
        if plan.folded and len(self.values) > 1:
            results: dict[str, Tensor] | None = None
            try:
                results = self._folded(x, statistics)
            except Exception as error:  # whatever a network does that cannot be done side by side
                plan.folded = is_out_of_memory(error)
            # Outside the handler, whose error holds on to what has filled the memory.
            if results is not None:
                yield from ({name: value[k] for name, value in results.items()} for k in range(len(self.values)))
                return
            if plan.folded:
                gc.collect()
                yield from self._halves(x, statistics)
                return
        for values in self.values:
            yield self._run(x, values, statistics)

    def _halves(self, x: Any, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        half = len(self.values) // 2
        self.drawing.most = half
        for part in (slice(None, half), slice(half, None)):
            yield from Chunk(self.drawing, self.trace, self.known, self.values[part]).on(x, statistics)

    def _folded(self, x: Any, statistics: Statistics) -> dict[str, Tensor]:
        values = {site: torch.stack([draw[site] for draw in self.values]) for site in self.values[0]}
        index = torch.empty(len(self.values))  # at least one tensor to run over, also where no site is shared
        checked = pyro.settings.get("validate_distributions_pyro")

        def one(values: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
            def read(distribution: Distribution) -> dict[str, Tensor]:
                fits = _has_valid_arguments(distribution) if checked else torch.ones((), dtype=torch.bool)
                return {**statistics(distribution), _FITS: fits}

            return self._run(x, values, read)

        # A batch of draws has no truth value for Pyro's checks to ask: they are asked of all draws at the end.
        with pyro.validation_enabled(False):
            found = torch.vmap(one, randomness="different")(values, index)
        if not bool(found.pop(_FITS).all()):
            raise ValueError(
                "a distribution of the observations has arguments out of range"
            )  # one by one, the distribution tells which
        return found

    def _run(self, x: Any, values: dict[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        if self.drawing.joint:
            # Copies, since a draw serves several batches and a network may write into its weights.
            values = {site: value.clone() for site, value in values.items()}
        known = {site: draw.with_value(values.get(site, draw.value)) for site, draw in self.known.items()}
        trace = self.trace.copy()
        for site, draw in known.items():
            trace.nodes[site] = {**trace.nodes[site], "value": draw.value}
        with self.drawing.interpretation() as how:
            how.import_draws(known)
            distribution = observe(self.drawing.model, trace, x)
        trace.nodes.clear()
        self.drawing.treatments = how.treatments
        return statistics(distribution)


@dataclass
class Drawing:
    """The draws of one prediction.

    Args:
        model: A Pyro model with a method `observation(x)`.
        guide: Its guide.
        name: A name in `MODES`.
        draws: Number of draws.
        joint: Whether each draw serves all examples.

    Attributes:
        treatments: The way each site took in the latest pass.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> drawing = Drawing(model, ps.guides.Additive(model), "mc", 5)
        >>> with torch.no_grad():
        ...     found = [row["logits"] for x, _ in drawing.parts(torch.ones(4, 2))
        ...              for row in drawing.each(x, lambda distribution: {"logits": distribution.logits})]
        >>> len(found), found[0].shape, drawing.plan.folded
        (5, torch.Size([4, 3]), True)
    """

    model: Any
    guide: Any
    name: str
    draws: int
    joint: bool = False
    treatments: dict[str, str] = field(default_factory=dict)
    most: int = 2**31
    plan: Plan = field(default_factory=Plan)
    _looked: bool = False

    def interpretation(self) -> Interpretation:
        """A fresh interpretation of the mode."""
        return SharedSample() if self.joint else MODES[self.name].interpretation(self.model)

    def parts(self, x: Any, y: Any = None) -> Iterator[tuple[Any, Any]]:
        """A batch in pieces, none with larger activations than there is memory set aside.

        Args:
            x: Inputs.
            y: Targets.
        """
        inputs = x if isinstance(x, tuple) else (x,)
        if not self._looked:
            self._looked, self.plan = True, self._look(x)
        size = max(1, self._budget(inputs) // max(self.plan.before, 1)) if self._sees_no_data else len(inputs[0])
        if self.plan.folded and self._sees_no_data:
            # Rather fewer examples with all draws at once than many with some: what is alike is then computed once. But
            # weights are drawn anew for each piece, which should be worth it.
            half, weights, after = self._budget(inputs) // 2, self.plan.weights, max(self.plan.after, 1)
            at_once = min(self.draws, max(1, half // max(weights, 1)))
            size = min(size, max(_FEWEST, half // (after * at_once), min(4 * weights, 8 * half) // after))
        if self.plan.channels_last:
            inputs = tuple(_channels_last(part) for part in inputs)
        count = len(inputs[0])
        # Pieces of equal size: a short last one would cost as much Python as a whole one.
        size = -(-count // -(-count // size))
        for start in range(0, count, size):
            rows = slice(start, start + size)
            piece = tuple(part[rows] for part in inputs)
            yield piece if isinstance(x, tuple) else piece[0], None if y is None else y[rows]

    def chunks(self, x: Any) -> Iterator[Chunk]:
        """All draws, some at a time.

        Args:
            x: Inputs of the batch, or of one of them where draws are joint.
        """
        inputs = x if isinstance(x, tuple) else (x,)
        left = self.draws
        while left:
            each = max(self.plan.after * len(inputs[0]), self.plan.weights, 1)
            # Half of it: several such tensors live at once, where elsewhere one is the largest.
            size = min(left, self.most, max(1, self._budget(inputs) // 2 // each) if self.plan.folded else 1)
            chunk = self._draw(x, size)
            yield chunk
            # A trace refers to itself, so its tensors would stay until Python collects circles.
            chunk.trace.nodes.clear()
            left -= size

    def each(self, x: Any, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        """What is wanted of the distribution of the observations, for each draw in turn.

        Args:
            x: Inputs of one batch.
            statistics: Reads tensors from a distribution.
        """
        for chunk in self.chunks(x):
            yield from chunk.on(x, statistics)

    def _budget(self, inputs: tuple[Tensor, ...]) -> int:
        return _BUDGET.get(inputs[0].device.type, _BUDGET["cuda"])

    def _draw(self, x: Any, count: int) -> Chunk:
        trace: Any = None
        known: dict[str, Any] = {}
        values: list[dict[str, Tensor]] = []
        while len(values) < count:
            if trace is not None and not self.plan.shared:
                # The draws differ by the noise within the network only.
                values += [{}] * (count - len(values))
                break
            with self.interpretation() as how:
                latest = poutine.trace(self.guide).get_trace(x)
                drawn = how.export_draws(self.plan.shared)
            values.append({site: drawn[site].value for site in self.plan.shared if site in drawn})
            if trace is None:
                trace, known = latest, drawn
            else:
                latest.nodes.clear()
        return Chunk(self, trace, known, values)

    def _look(self, x: Any) -> Plan:
        """Run few draws on few examples, side by side if that can be done, and see."""
        inputs = x if isinstance(x, tuple) else (x,)
        most = min(3, len(inputs[0]))
        some = [_first(x, max(1, most - 1)), _first(x, most)]
        plan = Plan()
        modules = [module for module in (self.model, self.guide) if isinstance(module, nn.Module)]
        parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
        buffers = unique([buffer for module in modules for buffer in module.buffers()])
        # Few examples may be used otherwise than many: what has been seen of the weights' uses is forgotten again.
        cache = getattr(self.model, "_usage_cache", {})
        before = dict(cache)
        with forked(inputs[0].device), undisturbed(buffers):
            try:
                with put_back(parts, caches=False):
                    # A first call runs more than the next ones: the analysis of weight usage goes before it.
                    self._look_at(plan, some[0])
                    seen = [self._look_at(plan, few) for few in some]
                    plan.before = growth(seen[0].alike, seen[1].alike)
                    plan.channels_last = most > 1 and self._bears_channels_last(plan, some[1])
                    if self.draws > 1 and MODES[self.name].sampled and self._same_distribution(plan):
                        self._look_side_by_side(plan, some)
            except Exception:  # what is wrong shows when the whole batch is run; few examples may just be too few
                plan.folded = False
            finally:
                cache.clear()
                cache.update(before)
        return plan

    def _same_distribution(self, plan: Plan) -> bool:
        """Whether a site that is replaced by its distribution has the same distribution at each draw."""
        return isinstance(self.guide, (Guide, PerSite)) or not plan.replaces

    @property
    def _sees_no_data(self) -> bool:
        """Whether the guide's draws are the same for any batch, so that one may be cut into pieces."""
        return isinstance(self.guide, (Guide, PerSite, AutoGuide))

    def _look_at(self, plan: Plan, few: Any) -> Watch:
        with self.interpretation() as how, Watch() as watch:
            trace = poutine.trace(self.guide).get_trace(few)
            model_trace = poutine.trace(poutine.replay(self.model.observation, trace=trace)).get_trace(few)
        latents = dict(latent_sites(model_trace))
        plan.shared = tuple(site for site in latents if site not in how.replaced)
        plan.replaces = len(plan.shared) < len(latents)
        plan.weights = sum(size_of(latents[site]["value"]) for site in plan.shared)
        return watch

    def _look_side_by_side(self, plan: Plan, some: list[Any]) -> None:
        """See whether draws can go side by side, and whether that would help."""
        seen = []
        with self._following(plan):
            try:
                for few in some:
                    with Watch() as watch:
                        self._draw(few, 2)._folded(few, lambda distribution: {"nothing": torch.zeros(())})
                    seen.append(watch)
            except Exception:  # a network may do anything that cannot be done side by side
                return
        # Convolutions with a kernel of each draw's own run faster one by one.
        if not seen[0].own_kernels:
            plan.folded = True
            plan.before, plan.after = growth(seen[0].alike, seen[1].alike), growth(seen[0].apart, seen[1].apart)

    def _bears_channels_last(self, plan: Plan, few: Any) -> bool:
        """Whether the network takes images laid out channel by channel, on which a CPU's convolutions run faster."""
        inputs = few if isinstance(few, tuple) else (few,)
        if inputs[0].device.type != "cpu" or not any(part.dim() == 4 for part in inputs):
            return False
        laid = tuple(_channels_last(part) for part in inputs)
        few = laid if isinstance(few, tuple) else laid[0]
        with self._following(plan):
            try:
                list(self._draw(few, 1).on(few, lambda distribution: {}))
            except Exception:  # a .view() of what is no longer contiguous, most likely
                return False
        return True

    @contextlib.contextmanager
    def _following(self, plan: Plan) -> Iterator[None]:
        before, self.plan = self.plan, plan
        try:
            yield
        finally:
            self.plan = before


def _has_valid_arguments(distribution: Distribution) -> Tensor:
    """Whether all of a distribution's arguments are where they may be, without asking for the answer."""
    base = base_distribution(distribution)
    good = torch.ones((), dtype=torch.bool)
    for name, constraint in base.arg_constraints.items():
        # An argument that is derived from another one on demand is as good as that.
        if name in vars(base) and not constraint.is_discrete:
            good = good & constraint.check(getattr(base, name)).all().cpu()
    return good


def _first(x: Any, count: int) -> Any:
    return tuple(part[:count] for part in x) if isinstance(x, tuple) else x[:count]


def _channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.dim() == 4 else part


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or a CPU.

    Args:
        error: What was raised.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError()), is_out_of_memory(ValueError("shape"))
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
