"""Stochastic encoder layers of transformers, whose outputs are the parameters of an activation's distribution."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import BaseTorchFunctionMode

from pyrostoch.effects.activation import random_activation
from pyrostoch.layers.activations import ActivationDistribution, Gradient, PriorOfActivations
from pyrostoch.layers.partial import Partial
from pyrostoch.layers.stochastic import StochasticLayer
from pyrostoch.moments import Moments

__all__ = ["StochasticTransformerEncoderLayer"]


class StochasticTransformerEncoderLayer(StochasticLayer):
    r"""An encoder layer of a transformer whose outputs are drawn; as many copies as parameters read the same tokens.

    $$ h \sim p(h; \theta_1, \theta_2, \ldots), \qquad \theta_i = l_i(\mathrm{layer}_i(x)). $$

    Tokens are (steps, batch, d_model), or (batch, steps, d_model) with `batch_first`; so are the activations. At
    positions that `src_key_padding_mask` marks as padding, activations are 0 and no part of the rate: nothing of them
    reaches what follows. In torch, what an encoder layer gives there is not defined. As in torch, the dropout of the
    kernels depends on `train()` and `eval()`.

    Args:
        d_model: Number of features of a token.
        nhead: Number of heads.
        dim_feedforward: Number of hidden units.
        dropout: Probability of dropout inside the kernels.
        activation: Activation function of the hidden units, or its name, `"relu"` or `"gelu"`.
        layer_norm_eps: What is added to the variance in layer normalization.
        batch_first: Whether the first axis counts the examples, and not the tokens.
        norm_first: Whether normalization comes before attention and before the hidden units, and not behind them.
        bias: Whether there are biases.
        distribution: The distribution of the activations; see `StochasticLayer`.
        prior: The prior of the activations; see `StochasticLayer`. With padding its entries must be independent.
        gradient: How draws are differentiated; see `StochasticLayer`.
        temperature: See `StochasticLayer`.
        device: Device of the parameters.
        dtype: Their dtype.

    Raises:
        ValueError: The distribution has no such gradient.

    References:
        Vaswani et al., "Attention is all you need", 2017.

    Example:
        >>> layer = StochasticTransformerEncoderLayer(4, 2, 8, batch_first=True, prior="standard")
        >>> padding = torch.tensor([[False, False, True]])
        >>> h = layer(torch.zeros(1, 3, 4), src_key_padding_mask=padding)
        >>> h.shape, bool((h[0, 2] == 0).all())
        (torch.Size([1, 3, 4]), True)
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        distribution: ActivationDistribution | str = "gaussian",
        prior: PriorOfActivations = None,
        gradient: Gradient | None = None,
        temperature: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self._set_distribution(distribution, prior, gradient, temperature, -1, (d_model,))
        self.features, self.batch_first = d_model, batch_first
        options: Any = {"batch_first": True, "norm_first": norm_first, "bias": bias, "device": device, "dtype": dtype}
        self.kernels = nn.ModuleList(
            nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, **options)
            for _ in self.family.links
        )

    def forward(
        self,
        src: Tensor | Moments,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor | Moments:
        """The activations: drawn, or what the interpretation puts in their place.

        Args:
            src: Tokens, or their moments, (steps, batch, d_model), or (batch, steps, d_model) with `batch_first`.
            src_mask: Which tokens see which, as in torch: True, or minus infinity, where they do not.
            src_key_padding_mask: True, or minus infinity, where a token is padding, (batch, steps).
            is_causal: Whether `src_mask` is the causal mask, a hint for torch.

        Raises:
            TypeError: The input is a nested tensor.
            ValueError: Shapes do not fit, or the prior couples positions of which some are padding.
            MissingRuleError: The input has moments, and attention has no rule.
        """
        x = self.outputs(src, src_mask, src_key_padding_mask, is_causal)
        h: Any = random_activation(x, self)
        return h if self.batch_first else h.transpose(0, 1)

    def outputs(
        self,
        src: Tensor | Moments,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Any, ...]:
        """The kernels' outputs, (batch, steps, d_model); where a token is padding, those of the standard distribution.

        Args:
            src: Tokens, or their moments.
            src_mask: Which tokens see which.
            src_key_padding_mask: Where a token is padding.
            is_causal: Whether `src_mask` is the causal mask.
        """
        self._check(src, src_mask, src_key_padding_mask, is_causal)
        x: Any = src if self.batch_first else src.transpose(0, 1)
        masks = [mask for mask in (src_mask, src_key_padding_mask) if mask is not None]
        # In evaluation torch's fast path takes every number but 0 for minus infinity. Within a mode it is off.
        slow = not self.training and any(mask.is_floating_point() for mask in masks)
        with BaseTorchFunctionMode() if slow else contextlib.nullcontext():
            found = super().outputs(x, src_mask, src_key_padding_mask, is_causal)
        if src_key_padding_mask is None:
            return found
        mask = src_key_padding_mask
        padding = mask if mask.dtype == torch.bool else mask == -torch.inf
        given = zip(found, self.family.standard, strict=True)
        padded = Partial(torch.where(padding[..., None], standard, output) for output, standard in given)
        padded.absent = padding
        return padded

    def _check(self, src: Any, src_mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> None:
        if getattr(src, "is_nested", False):
            raise TypeError(
                f"{self._title}: expected a tensor, got a nested one, which is not supported; pad the sequences, and "
                "give a src_key_padding_mask"
            )
        shape, order = tuple(src.shape), "batch, steps" if self.batch_first else "steps, batch"
        features = self.features
        if len(shape) != 3 or shape[2] != features:
            self._refuse("src", f"({order}, {features})", shape)
        expected = shape[:2] if self.batch_first else (shape[1], shape[0])
        if padding is not None and tuple(padding.shape) != expected:
            self._refuse("src_key_padding_mask", f"(batch, steps), here {expected}", tuple(padding.shape))
        if is_causal and src_mask is None:
            # Torch raises an error in training mode, and ignores the hint in its fast path.
            raise ValueError(
                f"{self._title}: is_causal=True is a hint that src_mask is the causal mask, but src_mask is missing; "
                "give nn.Transformer.generate_square_subsequent_mask(steps)"
            )

    def _refuse(self, what: str, expected: str, found: tuple[int, ...]) -> NoReturn:
        raise ValueError(f"{self._title} {what}: expected shape {expected}, got {found}")
