"""Draws of the weights that are made once, and again from the same numbers when the guide's parameters have changed."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrostoch._inputs import device_of_inputs
from pyrostoch._manual import see
from pyrostoch.prediction.batched_sampling import PosteriorSampler
from pyrostoch.prediction.draw_chunk import DrawChunk
from pyrostoch.prediction.readouts import evaluating, seeded
from pyrostoch.protocols import FlatInputs, Guide

__all__ = ["FixedDraws"]


class FixedDraws:
    """K draws of all weights.

    Args:
        guide: The guide.
        count: The number K.
        seed: Their seed; drawn from torch's generator by default.
    """

    def __init__(self, guide: Guide, count: int, seed: int | None) -> None:
        self._guide, self._count = guide, count
        self._seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._drawn: DrawChunk | None = None
        self._versions: tuple[Any, ...] = ()

    def refresh(self, sampler: PosteriorSampler, x: FlatInputs) -> DrawChunk:
        """Draw for the first time, or again where the guide's parameters have changed.

        Args:
            sampler: What draws.
            x: Inputs.

        Returns:
            All draws.

        Raises:
            ValueError: The guide's draws depend on the inputs.
        """
        versions = tuple((found.data_ptr(), 0 if found.is_inference() else found._version) for found in self._read())
        if self._drawn is not None and versions == self._versions:
            return self._drawn
        if not sampler.guide_ignores_data:
            raise ValueError(
                f"draws='fixed': expected a guide whose draws do not depend on the inputs, got "
                f"{type(self._guide).__name__}; use draws='fresh'{see('how-to/predictor')}"
            )
        with torch.no_grad(), seeded(self._seed, device_of_inputs(x)), evaluating(sampler.model, self._guide):
            drawn = sampler.draw_chunk(x, self._count)
        if self._drawn is None:
            # Copies, since a draw of a point is the guide's parameter itself.
            drawn.values = [{name: value.clone() for name, value in draw.items()} for draw in drawn.values]
            self._drawn = drawn
        else:  # into the same tensors, which graphs have
            for before, now in zip(self._drawn.values, drawn.values, strict=True):
                for name, value in before.items():
                    value.copy_(now[name])
            drawn.guide_trace.nodes.clear()
        self._versions = versions
        return self._drawn

    def chunks(self, sampler: PosteriorSampler, x: FlatInputs) -> list[DrawChunk]:
        """The draws, in parts that run together.

        Args:
            sampler: What runs them.
            x: Inputs.
        """
        drawn, size = self.refresh(sampler, x), sampler.chunk_size(x)
        starts = range(0, self._count, size)
        return [DrawChunk(sampler, drawn.guide_trace, drawn.draws, drawn.values[i : i + size]) for i in starts]

    def _read(self) -> list[Tensor]:
        """The tensors on which draws depend."""
        own = [*self._guide.parameters(), *self._guide.buffers()] if isinstance(self._guide, nn.Module) else []
        return [*own, *pyro.get_param_store()._params.values()]
