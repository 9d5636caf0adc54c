"""Passes over the data at fixed weights: the log-likelihood, its derivatives, and the curvature of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch._targets import Target
from pyrostoch.effects import Linearization
from pyrostoch.effects.jacobians import jacobian_rows, output_of
from pyrostoch.effects.network import NetworkCall
from pyrostoch.likelihoods.reading import full_precision
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import batches_for, batches_on_device, check_targets, device_of, evaluating
from pyrostoch.protocols import Data, FlatInputs, Guide
from pyrostoch.training.output_curvature import whitened

__all__ = ["DataPasses", "RecordedCall"]


class RecordedCall(Linearization):
    """Runs the network at given weights, and keeps the call; random activations are refused.

    Attributes:
        call: The network call.
        output: The only tensor that the network returned.
    """

    call: NetworkCall
    output: Tensor

    def _pyro_network(self, msg: Any) -> None:
        self.call = msg["args"][0]
        self.prepare(self.call)
        msg["value"], self.output = output_of(self.call)
        msg["done"] = True


class DataPasses:
    """The training data of a model, which is passed over at fixed weights, in evaluation mode.

    Args:
        model: The model.
        guide: Its guide.
        data: The training set.
        batch_size: Number of examples in a batch.
    """

    def __init__(self, model: BayesianModel, guide: Guide, data: Data, batch_size: int) -> None:
        self.model, self.guide = model, guide
        self._batches = batches_for(model, data, batch_size)
        self._device = device_of(model, guide)

    def batches(self) -> Iterator[tuple[FlatInputs, Target]]:
        """The batches, on the model's device."""
        return batches_on_device(self._batches, self._device)

    def log_likelihood(self, weights: dict[str, Tensor]) -> float:
        """The log-likelihood of all data, in nats.

        Args:
            weights: The weights by site.

        Raises:
            ValueError: The data are not `num_data` examples.
        """
        total, seen = 0.0, 0
        with evaluating(self.model, self.guide):
            for x, y in self.batches():
                found, _ = self._log_probs(x, y, weights, check=True)
                total, seen = total + float(found), seen + len(y)
        if seen != self.model.num_data:
            raise ValueError(
                f"fit_laplace data: expected the model's num_data={self.model.num_data} examples, the training set, "
                f"got {seen}; held-out data are given by prior_precision{see('how-to/choose_guide')}"
            )
        return total

    def gradient(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of the log-likelihood of all data, by site, in double precision.

        Args:
            weights: The weights by site.
        """
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights.items()}
        with self._differentiated():
            for x, y in self.batches():
                leaves = _leaves(weights)
                found, _ = self._log_probs(x, y, leaves)
                _add(total, _gradients(found, leaves))
        return total

    def hessian_product(self, weights: dict[str, Tensor], vector: dict[str, Tensor]) -> dict[str, Tensor]:
        """The Hessian of the log-likelihood of all data times a vector, by site, in double precision.

        Args:
            weights: The weights by site.
            vector: The vector by site.
        """
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in weights.items()}
        with self._differentiated():
            for x, y in self.batches():
                leaves = _leaves(weights)
                found, _ = self._log_probs(x, y, leaves)
                first = _gradients(found, leaves, create_graph=True)
                slope = sum(((first[name] * vector[name].to(first[name].dtype)).sum() for name in leaves), found * 0.0)
                _add(total, _gradients(slope, leaves))
        return total

    def whitened_rows(self, weights: dict[str, Tensor], add: Callable[[dict[str, Tensor]], None]) -> None:
        r"""Hand over the rows $R^\top J$ of all data, a few examples at a time; see `output_curvature.whitened`.

        Args:
            weights: The weights by site.
            add: Gets the rows by site, (n, outputs, *weight).
        """
        with evaluating(self.model, self.guide):
            for x, _ in self.batches():
                with RecordedCall() as recorded:
                    self.model.outputs(x, dict(weights))
                for rows in jacobian_rows(recorded.call, recorded.output):
                    output = recorded.output[rows.examples]
                    found = {}
                    for name, jacobian in rows.jacobian.items():
                        shape = jacobian.shape[output.dim() :]
                        white = whitened(self.model.likelihood, output, jacobian.reshape((*output.shape, -1)))
                        found[recorded.call.sites[name]] = white.reshape((*white.shape[:2], *shape))
                    add(found)

    def _log_probs(
        self, x: FlatInputs, y: Target, weights: dict[str, Tensor], *, check: bool = False
    ) -> tuple[Tensor, RecordedCall]:
        with RecordedCall() as recorded:
            output = self.model.outputs(x, dict(weights))
            distribution = self.model.likelihood(full_precision(output), self.model.likelihood.draw())
        if check:
            check_targets(self.model, distribution, y)
        found: Tensor = distribution.log_prob(y).double().sum()
        return found, recorded

    @contextmanager
    def _differentiated(self) -> Iterator[None]:
        with evaluating(self.model, self.guide), torch.enable_grad():
            yield


def _leaves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in weights.items()}


def _gradients(value: Tensor, leaves: dict[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def _add(total: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        total[name] += value.detach().double()
