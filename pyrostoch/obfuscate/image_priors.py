"""What an attacker knows of inputs before it sees what was sent: priors that are learned from public ones."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch._seeds import mixed_seed
from pyrostoch.prediction.readouts import seeded

__all__ = ["GaussianPrior", "GenerativePrior", "InputPrior"]

# Share of the mean variance of an entry below which directions are taken as noise.
_FLOOR = 1e-3
_HIDDEN, _BATCH, _RATE = 256, 100, 1e-3


class InputPrior(Protocol):
    """Inputs as a function of variables of which the prior density is known."""

    name: str

    def start(self, count: int) -> Tensor:
        """Where a search for so many inputs begins, (count, variables)."""

    def inputs(self, variables: Tensor) -> Tensor:
        """The inputs for these variables."""

    def log_prob(self, variables: Tensor) -> Tensor:
        """The log density of the variables up to a constant, (count,)."""


class GaussianPrior:
    r"""Inputs $x = \mu + L v$ with independent standard normal variables v: a normal distribution of public inputs.

    Args:
        x: Public inputs.

    Example:
        >>> prior = GaussianPrior(torch.randn(50, 1, 2, 2))
        >>> prior.inputs(prior.start(3)).shape
        torch.Size([3, 1, 2, 2])
    """

    name = "normal prior"

    def __init__(self, x: Tensor) -> None:
        flat = x.double().flatten(1)
        self._shape, self._dtype = x.shape[1:], x.dtype
        self.mean = flat.mean(0)
        covariance = torch.cov(flat.T).reshape(flat.shape[1], flat.shape[1])
        floor = _FLOOR * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny
        values, vectors = torch.linalg.eigh(covariance)
        self.factor = vectors * (values.clamp_min(0.0) + floor).sqrt()

    def start(self, count: int) -> Tensor:
        """The mean, so many times."""
        return torch.zeros(count, len(self.mean), dtype=torch.float64)

    def inputs(self, variables: Tensor) -> Tensor:
        """The inputs for these variables."""
        return (self.mean + variables @ self.factor.T).reshape(-1, *self._shape).to(self._dtype)

    def log_prob(self, variables: Tensor) -> Tensor:
        """The log density of the variables up to a constant."""
        return -0.5 * variables.square().sum(1)


class GenerativePrior(nn.Module):
    """Inputs as the decoder of a small variational autoencoder makes them, of standard normal variables.

    Args:
        x: Public inputs, on which it is trained.
        latents: Number of variables.
        epochs: Epochs of its training.
        seed: Seed of its training.

    References:
        Kingma, Welling, "Auto-encoding variational Bayes", 2014; Bora, Jalal, Price, Dimakis, "Compressed sensing using
        generative models", 2017.

    Example:
        >>> prior = GenerativePrior(torch.rand(200, 1, 4, 4), latents=3, epochs=1)
        >>> prior.inputs(prior.start(5)).shape
        torch.Size([5, 1, 4, 4])
    """

    name = "generative prior"

    def __init__(self, x: Tensor, *, latents: int = 20, epochs: int = 30, seed: int = 0) -> None:
        super().__init__()
        self._shape, self.latents = x.shape[1:], latents
        size = x[0].numel()
        with torch.enable_grad(), seeded(mixed_seed(seed), None):
            self.encoder = nn.Sequential(
                nn.Flatten(), nn.Linear(size, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 2 * latents)
            )
            self.decoder = nn.Sequential(
                nn.Linear(latents, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, size)
            )
            self.log_scale = nn.Parameter(torch.tensor(-1.0))
            optimizer = torch.optim.Adam(self.parameters(), lr=_RATE)
            for _ in range(epochs):
                for rows in torch.randperm(len(x)).split(_BATCH):
                    optimizer.zero_grad()
                    self._loss(x[rows].cpu().float()).backward()
                    optimizer.step()
        self.requires_grad_(False)
        self.to(x.dtype)

    def _loss(self, x: Tensor) -> Tensor:
        """The negative ELBO of a batch, in nats for each example."""
        mean, log_scale = self.encoder(x).chunk(2, 1)
        code = mean + log_scale.exp() * torch.randn_like(mean)
        errors = F.mse_loss(self.decoder(code), x.flatten(1), reduction="none").sum(1)
        size = x[0].numel()
        fit = 0.5 * errors * (-2 * self.log_scale).exp() + size * (self.log_scale + 0.5 * math.log(2 * math.pi))
        divergence = 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(1)
        return (fit + divergence).mean()

    def start(self, count: int) -> Tensor:
        """The most probable variables, so many times."""
        return torch.zeros(count, self.latents, dtype=torch.float64)

    def inputs(self, variables: Tensor) -> Tensor:
        """The inputs for these variables."""
        weight: Tensor = self.decoder[0].weight  # type: ignore[assignment]
        found: Tensor = self.decoder(variables.to(weight.dtype))
        return found.reshape(-1, *self._shape)

    def log_prob(self, variables: Tensor) -> Tensor:
        """The log density of the variables up to a constant."""
        return -0.5 * variables.square().sum(1)
