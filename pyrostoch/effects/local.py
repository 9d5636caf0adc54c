"""Local reparameterization: a weight is replaced by the distribution of its layer's output."""

from __future__ import annotations

from dataclasses import replace

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch._ops import LinearOp
from pyrostoch._precision import safe_sqrt
from pyrostoch.distributions import JointWeights, Levels, SymmetricUniform, TwoPoint
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
        by_moments = (TwoPoint, Levels, SymmetricUniform, dist.Uniform) if self.factorized else ()
        return isinstance(distribution, (Normal, JointWeights, *by_moments))

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
            return self._shared(op, weight, bias)
        if self._joint(weight) is not None or self._joint(bias) is not None:
            return self._with_joint(op, weight, bias)
        mean = self._mean(op, weight, bias)
        variance = self._variance(op, weight, bias)
        for site in (weight, bias):
            if site is not None:
                self.treatments[site] = self._describe(site, op, variance)
        stddev = safe_sqrt(variance)
        noise = torch.randn(variance.shape, dtype=stddev.dtype, device=variance.device) * stddev
        return noise.to(variance.dtype) if mean is None else mean + noise.to(mean.dtype)

    def _shared(self, op: LinearOp, weight: str | None, bias: str | None) -> Tensor:
        for site in (weight, bias):
            distribution = self._joint(site)
            if distribution is not None and distribution.shared is not None and distribution.shared.by_row:
                raise RuntimeError(
                    f"site {site!r}: its layer gets other inputs than in the first call, so that its weight is shared "
                    f"by the examples, but it depends on those of {name_list(distribution.shared.sites)}, which are "
                    "not; use estimator='shared'"
                    f"{see('how-to/choose_estimator')}"
                )
        return op(op.input, op.weight if weight is None else self.draw(weight), self._bias_value(op, bias))

    def _joint(self, site: str | None) -> JointWeights | None:
        """The distribution of a site whose entries depend on each other, or `None`."""
        distribution = None if site is None else self.distribution(site)
        return distribution if isinstance(distribution, JointWeights) else None

    def _with_joint(self, op: LinearOp, weight: str | None, bias: str | None) -> Tensor:
        """Draw the output where weight, bias or both have entries that depend on each other: by row."""
        joint, offset = self._joint(weight), self._joint(bias)
        if joint is not None and not joint.covers(op):
            for site in (weight, bias):
                if site is not None:
                    self.treatments[site] = f"shared (no rule for {type(joint).__name__} in {op.func.__name__})"
            return self._shared(op, weight, bias)
        if joint is None:
            output = self.apply(replace(op, bias=None), weight, None) if weight else op(op.input, op.weight, None)
        else:
            output = joint.draw_output(op)
            self.treatments[weight or ""] = self._describe(weight or "", op, output)
        if joint is not None and joint.includes(offset):
            drawn = None
        elif offset is not None:
            drawn = offset.draw_rows(len(op.input)).reshape(len(op.input), -1, *[1] * op.spatial)
        elif bias is None:
            drawn = None if op.bias is None else op.bias.reshape(-1, *[1] * op.spatial)
        else:
            distribution = self.distribution(bias)
            deviation = safe_sqrt(distribution.variance).reshape(-1, *[1] * op.spatial)
            noise = torch.randn(output.shape, dtype=deviation.dtype, device=deviation.device)
            drawn = distribution.mean.reshape(-1, *[1] * op.spatial) + deviation * noise
        if bias is not None:
            self.treatments[bias] = self._describe(bias, op, output)
        return output if drawn is None else output + drawn.to(output.dtype)

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
        return op.of_squares(self.distribution(weight).variance, bias_variance)

    def _describe(self, site: str, op: LinearOp, output: Tensor) -> str:
        exact = isinstance(self.distribution(site), Normal | JointWeights)
        applications = op.applications(output)
        if applications > 1:
            return f"local (factorized over {applications} positions)"
        return "local (exact)" if exact else "local (matched moments)"


def _mean_of(distribution: Distribution) -> Tensor | None:
    return None if getattr(distribution, "zero_mean", False) else distribution.mean


def _single_position(op: LinearOp) -> bool:
    """Whether a convolution has one output position, found from shapes alone."""
    with torch.no_grad():
        meta = LinearOp(op.func, op.input.to("meta"), op.weight.to("meta"), None, op.rest)
        return op.applications(meta(meta.input, meta.weight, None)) == 1
