"""Local reparameterization: a weight is replaced by the distribution of its layer's output."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrostoch._ops import LinearOp
from pyrostoch.distributions import Levels, SymmetricUniform, TwoPoint
from pyrostoch.effects.interpretation import Interpretation
from pyrostoch.effects.usage import Use

__all__ = ["LocalReparameterization"]


class LocalReparameterization(Interpretation):
    r"""Draws the output of a layer instead of its weights, with independent noise for each example.

    For independent weights $w_{ij}$ with mean $m$ and variance $v$, the output of a linear operation has mean
    $m * x$ and variance $v * x^2$, and is drawn as

    $$ h = m * x + \sqrt{v * x^2}\;\varepsilon, \qquad \varepsilon \sim N(0, 1). $$

    This is exact for Gaussian weights that are applied once to each example. For uniform weights and weights with
    discrete levels only the first two moments are matched; the output is Gaussian only in the limit of many inputs.
    Where a weight is applied many times to an example, drawing the outputs independently is an approximation. It is
    used over the positions of a convolution, as is common, unless `factorized=False`; `treatments` reports it. The
    tokens of a sequence share one draw of the weight instead.

    Args:
        factorized: Whether to approximate in these two ways, for convolutions and for other than Gaussian weights.
            With `False` only Gaussian weights that are applied once to each example are replaced, so that the marginal
            distribution of each example's output is exact.
        lazy: See `Interpretation`.

    References:
        Kingma, Salimans, Welling, "Variational dropout and the local reparameterization trick", 2015.

    Example:
        >>> import pyro
        >>> from pyrostoch.effects import call_network, independent
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> def model(x):
        ...     distribution = dist.Normal(torch.zeros(1, 1), 1.0).to_event(2)
        ...     weight = pyro.sample("weight", distribution, infer=independent())
        ...     return call_network(net, {"weight": weight}, (x,))
        >>> with LocalReparameterization() as local:
        ...     out = model(torch.ones(3, 1))
        >>> bool((out == out[0]).all()), local.treatments
        (False, {'weight': 'local (exact)'})
    """

    name = "local"

    def __init__(self, *, factorized: bool = True, lazy: bool = False) -> None:
        super().__init__(lazy=lazy)
        self.factorized = factorized

    def supports(self, distribution: Distribution) -> bool:
        """Whether a layer's output may be drawn from the first two moments of such weights."""
        return isinstance(
            distribution, (Normal, TwoPoint, Levels, SymmetricUniform, dist.Uniform) if self.factorized else Normal
        )

    def reason_not_supported(self, use: Use) -> str | None:
        """Name sequences, and convolutions with `factorized=False`; their weights are drawn before the network call."""
        # Drawing them before the call lets a checkpointed part be recomputed with the same draw.
        if use.folded > 1 or (use.spatial == 0 and use.applications > 1):
            return "sequence"
        return "convolution" if use.applications > 1 and not self.factorized else None

    def apply(self, op: LinearOp, weight: str | None, bias: str | None) -> Tensor:
        """Draw the output, or use one shared draw of the weight where outputs must not be drawn independently."""
        if self._needs_shared_draw(op):
            for site in (weight, bias):
                if site is not None:
                    self.treatments[site] = "shared (sequence)" if op.spatial == 0 else "shared (convolution)"
            return op(op.input, op.weight if weight is None else self.draw(weight), self._bias_value(op, bias))
        mean = self._mean(op, weight, bias)
        variance = self._variance(op, weight, bias)
        for site in (weight, bias):
            if site is not None:
                self.treatments[site] = self._describe(site, op, variance)
        stddev = _safe_sqrt(variance)
        noise = torch.randn(variance.shape, dtype=stddev.dtype, device=variance.device) * stddev
        return noise.to(variance.dtype) if mean is None else mean + noise.to(mean.dtype)

    def _needs_shared_draw(self, op: LinearOp) -> bool:
        if op.over_tokens(self.batch):
            return True
        return op.spatial > 0 and not self.factorized and not _single_position(op)

    def _bias_value(self, op: LinearOp, bias: str | None) -> Tensor | None:
        return op.bias if bias is None else self.draw(bias)

    def _mean(self, op: LinearOp, weight: str | None, bias: str | None) -> Tensor | None:
        loc = op.bias if bias is None else _mean_of(self.distribution(bias))
        if weight is None:
            return op(op.input, op.weight, loc)
        if getattr(self.distribution(weight), "zero_mean", False):
            # The product with the zero mean is skipped; only the bias remains.
            return None if loc is None else loc.reshape(-1, *[1] * op.spatial)
        return op(op.input, self.distribution(weight).mean, loc)

    def _variance(self, op: LinearOp, weight: str | None, bias: str | None) -> Tensor:
        bias_variance = None if bias is None else self.distribution(bias).variance
        if weight is None:
            # Only the bias is random: its variance, expanded to the shape of the output.
            return op(torch.zeros_like(op.input), torch.zeros_like(op.weight), bias_variance)
        if _in_fp16(op.input):
            # Squares of fp16 numbers overflow from 256 up and underflow below 2e-4.
            with torch.autocast(op.input.device.type, enabled=False):
                inputs, variances = op.input.float().square(), self.distribution(weight).variance.float()
                return op(inputs, variances, None if bias_variance is None else bias_variance.float())
        return op(op.input.square(), self.distribution(weight).variance, bias_variance)

    def _describe(self, site: str, op: LinearOp, output: Tensor) -> str:
        exact = isinstance(self.distribution(site), Normal)
        applications = op.applications(output)
        if applications > 1:
            return f"local (factorized over {applications} positions)"
        return "local (exact)" if exact else "local (matched moments)"


def _in_fp16(values: Tensor) -> bool:
    kind = values.device.type
    return values.dtype == torch.float16 or (
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    )


def _mean_of(distribution: Distribution) -> Tensor | None:
    return None if getattr(distribution, "zero_mean", False) else distribution.mean


def _safe_sqrt(variance: Tensor) -> Tensor:
    """Square root with a finite gradient at zero; half precision is converted to float32 first."""
    if variance.dtype in (torch.float16, torch.bfloat16):
        variance = variance.float()
    # The smallest normal number, and not one that small outputs would notice.
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()


def _single_position(op: LinearOp) -> bool:
    """Whether a convolution has one output position, found from shapes alone."""
    with torch.no_grad():
        meta = LinearOp(op.func, op.input.to("meta"), op.weight.to("meta"), None, op.rest)
        return op.applications(meta(meta.input, meta.weight, None)) == 1
