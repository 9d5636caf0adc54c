"""Predictions of many posterior draws, at less than the cost of one pass per draw.

Activations that are the same for all draws are computed once; the draws run through the rest of the network together,
vectorized by `torch.vmap`, in chunks that fit a fixed amount of memory. Before that, the network runs on up to three
examples, to find out whether its draws can be vectorized, which sites are drawn before it runs, and how large its
activations are: that makes the `SamplingPlan`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyrostoch import guides
from pyrostoch._inputs import count_examples, device_of_inputs, have_common_part, take_examples
from pyrostoch._seeds import forked, generator_states, set_generator_states
from pyrostoch._targets import Target
from pyrostoch.effects import Interpretation, SharedSample
from pyrostoch.effects.interpretation import SiteDraw, base_distribution
from pyrostoch.effects.meeting import cut_is_safe
from pyrostoch.effects.statistics import buffer_sites
from pyrostoch.guides.amortised import weights_of
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.activation_sizes import (
    SamplingPlan,
    SizeRecorder,
    bytes_per_example,
    tensor_bytes,
)
from pyrostoch.prediction.draw_chunk import DrawChunk, Statistics
from pyrostoch.prediction.observed import output_summary
from pyrostoch.prediction.plans import known_plan
from pyrostoch.prediction.readouts import MODES, check_mode
from pyrostoch.protocols import FlatInputs, Guide, InDims, Model
from pyrostoch.sites import latent_sites, trace_of
from pyrostoch.staging import restore_modules, restore_tensors, unique

__all__ = ["PosteriorSampler"]

# Largest number of bytes of an activation. On a CPU small activations stay in its caches; and blocks of more than about
# 32 MiB are requested from the operating system each time, which costs more than the arithmetic.
_MAX_BYTES = {"cpu": 8 * 2**20, "cuda": 2**29}

# Smallest number of examples that a pass should have.
_MIN_EXAMPLES = 16


@dataclass
class PosteriorSampler:
    """Runs the draws of one prediction through a network.

    Args:
        model: A Pyro model with a method `observation(x)`.
        guide: Its guide.
        mode: A name in `MODES`.
        num_samples: Number of draws; set to 1 where moments turn out to draw nothing.
        joint: Whether each draw is used for all examples.

    Attributes:
        treatments: How the network treated each site in the latest pass, in words.
        max_chunk_size: Largest number of draws that run together; it is lowered when memory runs out.
        plan: How the draws are run; made when the first batch is split.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> sampler = PosteriorSampler(model, ps.guides.Additive(model), "mc", 5)
        >>> with torch.no_grad():
        ...     rows = [row["logits"] for x, _ in sampler.split_batch(torch.ones(4, 2))
        ...             for row in sampler.run(x, lambda distribution: {"logits": distribution.logits})]
        >>> len(rows), rows[0].shape, sampler.plan.vectorized
        (5, torch.Size([4, 3]), True)
    """

    model: Model
    guide: Guide
    mode: str
    num_samples: int
    joint: bool = False
    treatments: dict[str, str] = field(default_factory=dict)
    max_chunk_size: int = 2**31
    plan: SamplingPlan = field(default_factory=SamplingPlan)
    _has_plan: bool = False
    _made: SamplingPlan = field(default_factory=SamplingPlan)

    def __post_init__(self) -> None:
        check_mode(self.guide, self.mode)

    @property
    def _in_dims(self) -> InDims:
        return getattr(self.model, "in_dims", 0)

    def interpretation(self) -> Interpretation:
        """A new interpretation for the mode."""
        return SharedSample() if self.joint else MODES[self.mode].interpretation(self.model)

    def split_batch(self, x: FlatInputs, y: Target | None = None) -> Iterator[tuple[FlatInputs, slice]]:
        """Split a batch into pieces whose activations are within the limit of memory.

        Args:
            x: Inputs.
            y: Their targets, which a density of the user's own may bring together.

        Returns:
            The pieces, and the rows of the batch that each has.
        """
        inputs = x if isinstance(x, tuple) else (x,)
        if not self._has_plan:
            settings = self.mode, self.num_samples, self.joint

            def make() -> tuple[SamplingPlan, int]:
                return self._make_plan(x), self.num_samples

            self._made, self.num_samples = known_plan(self.model, self.guide, settings, x, make)
            self._has_plan = True
            self.restart()
        plan, limit = self.plan, self._max_bytes(inputs)
        count = count_examples(x, self._in_dims)
        if count is None:  # nothing can be split
            yield x, slice(None)
            return
        size = max(1, limit // max(plan.shared_bytes, 1)) if self.guide_ignores_data else count
        if plan.vectorized and self.guide_ignores_data:
            # Few examples with all draws are better than many examples with some of the draws, since activations shared
            # by all draws are then computed once. But sampled sites are drawn anew for each piece, so a piece should
            # not be much smaller than their values.
            half, draw_bytes = limit // 2, max(plan.draw_bytes, 1)
            chunk_size = min(self.num_samples, max(1, half // max(plan.weight_bytes, 1)))
            enough = max(_MIN_EXAMPLES, half // (draw_bytes * chunk_size))
            size = min(size, max(enough, min(4 * plan.weight_bytes, 8 * half) // draw_bytes))
        x = self.formatted(x)
        inputs = x if isinstance(x, tuple) else (x,)
        if size < count and isinstance(self.model, BayesianModel) and self.model.examples_meet(x, y):
            size = count
        # Pieces of equal size: a small last one would take Python as long as any other.
        size = -(-count // -(-count // size))
        for start in range(0, count, size):
            rows = slice(start, start + size)
            yield take_examples(inputs if isinstance(x, tuple) else inputs[0], rows, self._in_dims), rows

    def restart(self) -> None:
        """Forget what went wrong with the plan so far, so that a seed gives the same draws as for the first time."""
        if self._has_plan:
            self.plan = replace(self._made)

    def formatted(self, x: FlatInputs) -> FlatInputs:
        """Inputs in the memory format in which the network is faster.

        Args:
            x: Inputs.
        """
        if not self.plan.channels_last:
            return x
        return tuple(map(_channels_last, x)) if isinstance(x, tuple) else _channels_last(x)

    def draw_chunks(self, x: FlatInputs) -> Iterator[DrawChunk]:
        """All draws from the guide, in chunks.

        Args:
            x: Inputs of the batch; of any batch where draws are joint.
        """
        left = self.num_samples
        while left:
            chunk = self.draw_chunk(x, min(left, self.chunk_size(x)))
            yield chunk
            # A trace refers to itself: without this, its tensors would live until Python's garbage collector runs.
            chunk.guide_trace.nodes.clear()
            left -= len(chunk.values)

    def chunk_size(self, x: FlatInputs) -> int:
        """The largest number of draws that run together on a piece.

        Args:
            x: Inputs of the piece.
        """
        inputs = x if isinstance(x, tuple) else (x,)
        count = count_examples(x, self._in_dims) or 1
        bytes_per_draw = max(self.plan.draw_bytes * count, self.plan.weight_bytes, 1)
        # Half the limit, since several tensors of this size exist at a time, where elsewhere there is one.
        fitting = max(1, self._max_bytes(inputs) // 2 // bytes_per_draw) if self.plan.vectorized else 1
        return min(self.num_samples, self.max_chunk_size, fitting)

    def run(self, x: FlatInputs, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        """Run the network and compute statistics of the observations, for each draw in turn.

        Args:
            x: Inputs of one batch.
            statistics: Computes tensors from the distribution of the observations.
        """
        for chunk in self.draw_chunks(x):
            yield from chunk.run(x, statistics)

    def run_together(self, x: FlatInputs, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        """As `run`, but the statistics of draws that run together are stacked.

        Args:
            x: Inputs of one batch.
            statistics: Computes tensors from the distribution of the observations.
        """
        for chunk in self.draw_chunks(x):
            yield from chunk.run_together(x, statistics)

    def _max_bytes(self, inputs: tuple[Tensor, ...]) -> int:
        return _MAX_BYTES.get(device_of_inputs(inputs).type, _MAX_BYTES["cuda"])

    def draw_chunk(self, x: FlatInputs, count: int) -> DrawChunk:
        """Some draws from the guide.

        Args:
            x: Inputs, which the guide may read.
            count: Number of draws.
        """
        first_trace: Any = None
        first_draws: dict[str, SiteDraw] = {}
        values: list[dict[str, Tensor]] = []
        while len(values) < count:
            if first_trace is not None and not self.plan.sampled_sites:
                # The draws differ only by noise that is drawn while the network runs.
                values += [{}] * (count - len(values))
                break
            with self.interpretation() as interpretation:
                trace = trace_of(self.guide, x)
                draws = interpretation.export_draws(self.plan.sampled_sites)
            sampled = {site: draws[site].value for site in self.plan.sampled_sites if site in draws}
            values.append(sampled | buffer_sites(trace))
            if first_trace is None:
                first_trace, first_draws = trace, draws
            else:
                trace.nodes.clear()
        return DrawChunk(self, first_trace, first_draws, values)

    def _make_plan(self, x: FlatInputs) -> SamplingPlan:
        """Run few draws on few examples, vectorized if that is possible, and record the sizes of the activations."""
        total, net = count_examples(x, self._in_dims) or 1, getattr(self.model, "net", None)
        whole = have_common_part(x, self._in_dims)
        if whole or (isinstance(net, nn.Module) and not cut_is_safe(net, (x,), total)):
            return SamplingPlan()  # few of the examples may lack what the others refer to
        count = min(3, total)
        examples = [take_examples(x, slice(few), self._in_dims) for few in (max(1, count - 1), count)]
        plan = SamplingPlan()
        modules = [module for module in (self.model, self.guide) if isinstance(module, nn.Module)]
        parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
        buffers = unique([buffer for module in modules for buffer in module.buffers()])
        # A network may use its weights differently with few examples, so the cached weight usage is restored.
        cache = getattr(self.model, "_usage_cache", {})
        before = dict(cache)
        device = device_of_inputs(x)
        with forked(device), restore_tensors(buffers):
            try:
                with restore_modules(parts, caches=False):
                    # The first pass includes the analysis of weight usage, so its sizes are not used.
                    self._record_pass(plan, examples[1])
                    before_pass = generator_states(device)
                    some, more = (self._record_pass(plan, few) for few in examples)
                    if self.mode in MOMENTS and all(map(torch.equal, before_pass, generator_states(device))):
                        self.num_samples = 1  # nothing was drawn, so that all passes would be equal
                    plan.shared_bytes = bytes_per_example(some.shared, more.shared)
                    plan.channels_last = count > 1 and self._accepts_channels_last(plan, examples[1])
                    if self.num_samples > 1 and self.mode == "mc" and self._distributions_are_fixed(plan):
                        self._try_vectorized(plan, examples)
            except Exception:  # the whole batch will raise it again, unless there were just too few examples
                plan.vectorized = False
            finally:
                cache.clear()
                cache.update(before)
        return plan

    def _distributions_are_fixed(self, plan: SamplingPlan) -> bool:
        """Whether each site that is replaced by its distribution has the same one in every draw from the guide."""
        if plan.ties_sites:  # given the others, which are drawn
            return False
        return isinstance(weights_of(self.guide), (guides.Guide, guides.PerSite)) or not plan.replaces_sites

    @property
    def guide_ignores_data(self) -> bool:
        """Whether the guide's draws do not depend on the batch, so that the batch may be split."""
        return isinstance(weights_of(self.guide), (guides.Guide, guides.PerSite, guides.GuideSet, AutoGuide))

    def _record_pass(self, plan: SamplingPlan, x: FlatInputs) -> SizeRecorder:
        """Record the sizes of one pass, and enter into the plan which sites it replaces."""
        with self.interpretation() as interpretation, SizeRecorder() as recorder:
            trace = trace_of(self.guide, x)
            model_trace = trace_of(poutine.replay(self.model.observation, trace=trace), x)
        latents = dict(latent_sites(model_trace))
        plan.sampled_sites = tuple(site for site in latents if site not in interpretation.replaced)
        plan.replaces_sites = len(plan.sampled_sites) < len(latents)
        plan.ties_sites = any(
            0 < len(set(shared.sites) & set(plan.sampled_sites)) < len(shared.sites)
            for _, node in latent_sites(trace)
            if (shared := getattr(base_distribution(node["fn"]), "shared", None)) is not None
        )
        plan.weight_bytes = sum(tensor_bytes(latents[site]["value"]) for site in plan.sampled_sites)
        return recorder

    def _try_vectorized(self, plan: SamplingPlan, examples: list[FlatInputs]) -> None:
        """Find out whether draws can be vectorized, and whether that would be faster; enter it into the plan."""
        recorders = []
        with self._use_plan(plan):
            try:
                for few in examples:
                    with SizeRecorder() as recorder:
                        self.draw_chunk(few, 2).run_vectorized(few, lambda distribution: {"none": torch.zeros(())})
                    recorders.append(recorder)
            except Exception:  # a network may do anything that cannot be vectorized
                return
        some, more = recorders
        # Convolutions with another kernel for each draw are faster one by one.
        if not some.per_draw_kernels:
            plan.vectorized = True
            plan.shared_bytes = bytes_per_example(some.shared, more.shared)
            plan.draw_bytes = bytes_per_example(some.per_draw, more.per_draw)

    def _accepts_channels_last(self, plan: SamplingPlan, x: FlatInputs) -> bool:
        """Whether the network runs on images in the format `channels_last`, where a CPU's convolutions are faster."""
        inputs = x if isinstance(x, tuple) else (x,)
        if device_of_inputs(inputs).type != "cpu" or not any(
            isinstance(part, Tensor) and part.dim() == 4 for part in inputs
        ):
            return False
        converted = tuple(_channels_last(part) for part in inputs)
        results: list[dict[str, Tensor]] = []
        states = generator_states(device_of_inputs(inputs))
        with self._use_plan(plan):
            for form in (x, converted if isinstance(x, tuple) else converted[0]):
                set_generator_states(device_of_inputs(inputs), states)
                try:
                    results += self.draw_chunk(form, 1).run(form, output_summary)
                except Exception:  # most likely .view() of a tensor that is no longer contiguous
                    return False
        plain, other = results
        # A network may read memory by strides, and compute something else.
        return all(torch.allclose(plain[name], other[name], 1e-3, 1e-4, equal_nan=True) for name in plain)

    @contextlib.contextmanager
    def _use_plan(self, plan: SamplingPlan) -> Iterator[None]:
        before, self.plan = self.plan, plan
        try:
            yield
        finally:
            self.plan = before


def _channels_last(part: Any) -> Any:
    return part.contiguous(memory_format=torch.channels_last) if isinstance(part, Tensor) and part.dim() == 4 else part
