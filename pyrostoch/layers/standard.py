"""Torch's layers with priors on their parameters; two keyword arguments are added to their signatures."""

from __future__ import annotations

from torch import nn

from pyrostoch.layers.weights import RandomWeights

__all__ = [
    "GRU",
    "LSTM",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Linear",
    "MultiheadAttention",
]


class Linear(RandomWeights, nn.Linear):
    """`torch.nn.Linear` with priors; see `RandomWeights`.

    Example:
        >>> import torch, pyrostoch as ps
        >>> layer = Linear(3, 2, prior={"weight": ps.priors.Normal(), "bias": ps.priors.Normal(scale=0.1)}, name="fc1")
        >>> list(layer.sites)
        ['fc1.weight', 'fc1.bias']
        >>> bool((layer(torch.ones(1, 3)) == layer(torch.ones(1, 3))).any())
        False
    """


class Conv1d(RandomWeights, nn.Conv1d):
    """`torch.nn.Conv1d` with priors; see `RandomWeights`."""


class Conv2d(RandomWeights, nn.Conv2d):
    """`torch.nn.Conv2d` with priors; see `RandomWeights`."""


class Conv3d(RandomWeights, nn.Conv3d):
    """`torch.nn.Conv3d` with priors; see `RandomWeights`."""


class ConvTranspose1d(RandomWeights, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with priors; see `RandomWeights`."""


class ConvTranspose2d(RandomWeights, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with priors; see `RandomWeights`."""


class ConvTranspose3d(RandomWeights, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with priors; see `RandomWeights`."""


class Embedding(RandomWeights, nn.Embedding):
    """`torch.nn.Embedding` with priors; see `RandomWeights`. The row of `padding_idx` stays a constant.

    Raises:
        ValueError: A prior is given together with `max_norm`, with which torch overwrites rows of the drawn weight.
    """


class LSTM(RandomWeights, nn.LSTM):
    """`torch.nn.LSTM` with priors; see `RandomWeights`. All time steps share one draw."""


class GRU(RandomWeights, nn.GRU):
    """`torch.nn.GRU` with priors; see `RandomWeights`. All time steps share one draw."""


class MultiheadAttention(RandomWeights, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with priors; see `RandomWeights`. All tokens share one draw.

    Example:
        >>> import pyrostoch as ps
        >>> list(MultiheadAttention(4, 2, prior=ps.priors.Normal(), name="attention").sites)
        ['attention.in_proj_weight', 'attention.out_proj.weight']
    """
