"""Flipout: one draw of the weights' deviation, with signs flipped for each example."""

from __future__ import annotations

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyrostoch._ops import LinearOp
from pyrostoch.distributions import SymmetricUniform, TwoPoint
from pyrostoch.effects.interpretation import Interpretation

__all__ = ["Flipout"]


class Flipout(Interpretation):
    r"""Decorrelates the examples of a batch by random signs, for weights distributed symmetrically about their mean.

    With one draw of the deviation $\Delta = W - \mathbb{E} W$ for the whole batch, and random signs $r, s$ for each
    example,

    $$ h = \mathbb{E}W * x + r \circ (\Delta * (s \circ x)). $$

    Each example is computed with the weights $\mathbb{E}W + r s^T \circ \Delta$, which have the right distribution, so
    its marginal distribution is exact. This holds for convolutions too: the signs belong to channels, so all positions
    of an example use the same weights. The deviations of different examples are uncorrelated, but not independent. A
    random bias keeps one draw for the whole batch.

    Args:
        lazy: Ignored, since every weight's draw is needed; it is here because the other interpretations have it.

    References:
        Wen, Vicol, Ba, Tran, Grosse, "Flipout: efficient pseudo-independent weight perturbations on mini-batches",
        2018.

    Example:
        >>> import pyro
        >>> from pyrostoch.effects import call_network, independent
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> def model(x):
        ...     distribution = dist.Normal(torch.zeros(1, 1), 1.0).to_event(2)
        ...     weight = pyro.sample("weight", distribution, infer=independent())
        ...     return call_network(net, {"weight": weight}, (x,))
        >>> with Flipout() as flipout:
        ...     out = model(torch.ones(64, 1))
        >>> out.abs().unique().numel(), out.unique().numel(), flipout.treatments
        (1, 2, {'weight': 'flipout'})
    """

    name = "flipout"

    def __init__(self, *, lazy: bool = False) -> None:
        # Weights are drawn before the network call, so that a checkpointed part is recomputed with the same draw.
        super().__init__()

    def supports(self, distribution: Distribution) -> bool:
        """Whether the distribution is known to be symmetric about its mean, with independent entries."""
        return isinstance(distribution, (Normal, TwoPoint, SymmetricUniform, dist.Uniform, dist.Laplace))

    def apply(self, op: LinearOp, weight: str | None, bias: str | None) -> Tensor:
        """Carry out the operation with flipped signs, or with the plain draw where signs cannot be flipped."""
        sequence = op.over_tokens(self.batch)
        if weight is None or sequence or not op.batched():
            reason = "sequence" if sequence else "bias" if weight is None else "no batch"
            for site in (weight, bias):
                if site is not None:
                    self.treatments[site] = f"shared ({reason})"
            return op(
                op.input,
                op.weight if weight is None else self.draw(weight),
                op.bias if bias is None else self.draw(bias),
            )
        distribution = self.distribution(weight)
        self.treatments[weight] = "flipout"
        if bias is not None:
            self.treatments[bias] = "shared (bias)"
        offset = op.bias if bias is None else self.draw(bias)
        if getattr(distribution, "zero_mean", False):
            delta, mean = self.draw(weight), None
        else:
            delta, mean = self.draw(weight) - distribution.mean, op(op.input, distribution.mean, offset)
        flipped = op(op.input * _signs(op.input, op.spatial), delta, None)
        flipped = flipped * _signs(flipped, op.spatial)
        if mean is not None:
            return mean + flipped
        return flipped if offset is None else flipped + offset.reshape(-1, *[1] * op.spatial)


def _signs(values: Tensor, spatial: int) -> Tensor:
    """Random signs, one for each example and channel (or feature), constant over positions."""
    shape = (*values.shape[: values.dim() - spatial], *[1] * spatial)
    return torch.randint(0, 2, shape, device=values.device).to(values.dtype) * 2 - 1
