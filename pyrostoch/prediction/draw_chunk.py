"""Some posterior draws, which run through a network one after another or together."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._inputs import device_of_inputs
from pyrostoch._manual import see
from pyrostoch._seeds import generator_states, set_generator_states
from pyrostoch._tracing import being_traced
from pyrostoch.distributions.shared_draw import shared_again
from pyrostoch.effects import Interpretation
from pyrostoch.effects.interpretation import SiteDraw, UsageUnknownError
from pyrostoch.effects.statistics import with_buffers
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.prediction.activation_sizes import SamplingPlan, is_out_of_memory
from pyrostoch.prediction.readouts import MODES, has_valid_arguments, observation_distribution
from pyrostoch.protocols import FlatInputs, Model

__all__ = ["VALID", "DrawChunk", "Sampler", "Statistics"]

#: Name among the statistics that tells whether the arguments of a distribution are within their constraints.
VALID = "valid"

#: Computes tensors from the distribution of the observations of one draw.
Statistics = Callable[[Distribution], dict[str, Tensor]]


class Sampler(Protocol):
    """What makes the draws, as a chunk of them needs it: see `batched_sampling.PosteriorSampler`."""

    model: Model
    mode: str
    joint: bool
    plan: SamplingPlan
    treatments: dict[str, str]
    max_chunk_size: int

    def interpretation(self) -> Interpretation:
        """A new interpretation for the mode."""


@dataclass
class DrawChunk:
    """Some draws from the guide, to run on one batch after another.

    Args:
        sampler: The sampler that made them.
        guide_trace: A trace of the guide.
        draws: The draw of each site, from `Interpretation.export_draws`.
        values: For each draw, the values of the sites in `SamplingPlan.sampled_sites`, and the network's buffers that
            belong to it.
    """

    sampler: Sampler
    guide_trace: Trace
    draws: dict[str, SiteDraw]
    values: list[dict[str, Tensor]]

    def run(self, x: FlatInputs, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        """Run the network and compute statistics of the observations, for each draw in turn.

        Args:
            x: Inputs of one batch.
            statistics: Computes tensors from the distribution of the observations.
        """
        for several in self.run_together(x, statistics):
            count = len(next(iter(several.values()))) if several else 1
            yield from ({name: value[k] for name, value in several.items()} for k in range(count))

    def run_together(self, x: FlatInputs, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        """As `run`, but the statistics of draws that run together are stacked.

        Args:
            x: Inputs of one batch.
            statistics: Computes tensors from the distribution of the observations.
        """
        plan = self.sampler.plan
        if plan.vectorized and len(self.values) > 1:
            results: dict[str, Tensor] | None = None
            try:
                results = self.run_vectorized(x, statistics)
            except Exception as error:  # a network may do anything that cannot be vectorized
                plan.vectorized = is_out_of_memory(error)
            # Outside the except block, since the exception keeps alive the tensors that have filled the memory.
            if results is not None:
                yield results
                return
            if plan.vectorized:
                gc.collect()
                yield from self._run_halves(x, statistics)
                return
        for values in self.values:
            yield {name: value.unsqueeze(0) for name, value in self._run_draw(x, values, statistics).items()}

    def _run_halves(self, x: FlatInputs, statistics: Statistics) -> Iterator[dict[str, Tensor]]:
        half = len(self.values) // 2
        self.sampler.max_chunk_size = half
        for part in (slice(None, half), slice(half, None)):
            chunk = DrawChunk(self.sampler, self.guide_trace, self.draws, self.values[part])
            yield from chunk.run_together(x, statistics)

    def run_vectorized(self, x: FlatInputs, statistics: Statistics) -> dict[str, Tensor]:
        """The statistics of all draws, which run through the network together; the first axis counts the draws.

        Args:
            x: Inputs of one batch.
            statistics: Computes tensors from the distribution of the observations.
        """
        results = self._vectorized(x, statistics, check=pyro.settings.get("validate_distributions_pyro"))
        if not bool(results.pop(VALID).all()):
            # The draws are then run one by one, and Pyro's own check names the argument.
            raise ValueError("a distribution of the observations has arguments outside their constraints")
        return results

    def record(self, x: FlatInputs, statistics: Statistics) -> dict[str, Tensor]:
        """As `run_vectorized`, for a tracer: no value is read, and `VALID` among the results tells of invalid ones.

        Args:
            x: Inputs of one batch.
            statistics: Computes tensors from the distribution of the observations.
        """
        if self.sampler.plan.vectorized and len(self.values) > 1:
            return self._vectorized(x, statistics, check=True)
        rows = [self._run_draw(x, values, _with_check(statistics)) for values in self.values]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _vectorized(self, x: FlatInputs, statistics: Statistics, *, check: bool) -> dict[str, Tensor]:
        """The statistics of all draws, and whether their distributions are valid."""
        values = {site: torch.stack([draw[site] for draw in self.values]) for site in self.values[0]}
        index = torch.empty(len(self.values))  # vmap needs a tensor to map over, even if no site is sampled beforehand
        checked = _with_check(statistics, check)

        def run_draw(values: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
            return self._run_draw(x, values, checked)

        # Pyro's checks need the truth value of a tensor, which vmap does not allow: all draws are checked at the end.
        with pyro.validation_enabled(False), warnings.catch_warnings():
            # torch asks to report operations that it runs draw by draw, which is right, and none of the user's doing.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            device = device_of_inputs(x)
            states = generator_states(device)
            try:
                return torch.vmap(run_draw, randomness="different")(values, index)
            except UsageUnknownError:
                self._run_draw(x, self.values[0], lambda distribution: {})
                # As if the weight usage had been known, so that a seed gives the same draws whenever it is analyzed.
                set_generator_states(device, states)
                return torch.vmap(run_draw, randomness="different")(values, index)

    def _run_draw(self, x: FlatInputs, values: dict[str, Tensor], statistics: Statistics) -> dict[str, Tensor]:
        if self.sampler.joint:
            # Copies, since a draw is used for several batches and a network may write into its weights.
            values = {site: value.clone() for site, value in values.items()}
        again = shared_again({site: draw.distribution for site, draw in self.draws.items()})
        draws = {site: _copy_draw(draw, values.get(site, draw.value), again[site]) for site, draw in self.draws.items()}
        trace = with_buffers(self.guide_trace, values)
        for site, draw in draws.items():
            trace.nodes[site] = {**trace.nodes[site], "value": draw.value}
        name = self.sampler.mode
        moments = (name in MOMENTS or name.startswith("linearized")) and not MODES[name].sampled and not being_traced()
        states = generator_states(device_of_inputs(x)) if moments else []
        with self.sampler.interpretation() as interpretation:
            interpretation.import_draws(draws)
            distribution = observation_distribution(self.sampler.model, trace, x)
        if moments and not all(map(torch.equal, states, generator_states(device_of_inputs(x)))):
            raise ValueError(
                f"mode {self.sampler.mode!r}: the network draws random numbers of its own, of which one pass would "
                "take one draw for certain; predict with mode='mc', or try mode='moments:mc:20'"
                f"{see('how-to/choose_estimator')}"
            )
        trace.nodes.clear()
        self.sampler.treatments = interpretation.treatments
        return statistics(distribution)


def _with_check(statistics: Statistics, check: bool = True) -> Statistics:
    """Statistics, and whether the arguments of the distribution are within their constraints."""

    def checked(distribution: Distribution) -> dict[str, Tensor]:
        valid = has_valid_arguments(distribution) if check else torch.ones((), dtype=torch.bool)
        return {**statistics(distribution), VALID: valid}

    return checked


def _copy_draw(draw: SiteDraw, value: Tensor, distribution: Distribution) -> SiteDraw:
    """The draw with this value and distribution, not used by any network call yet."""
    return SiteDraw(value, distribution, draw.independent, draw.pending and value is draw.value)
