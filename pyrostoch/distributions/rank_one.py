"""A fixed weight times a random factor for each output and one for each input, and the prior of these factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.types import _size

from pyrostoch._ops import LinearOp
from pyrostoch.distributions.improper import ImproperPrior
from pyrostoch.distributions.joint import JointWeights
from pyrostoch.distributions.shared_draw import SharedDraw

__all__ = ["ComponentDraw", "RankOne", "RankOneWeights"]


class RankOneWeights(JointWeights):
    r"""$w_{oi} = W_{oi}\,r_o\,s_i$ with normal factors r and s, from one of C components.

    W is a number for each weight, the same in all draws. Component c has $r \sim N(a_c, \sigma_c^2)$ for each output
    and $s \sim N(b_c, \tau_c^2)$ for each input, that is each channel of a convolution. One of the components is drawn,
    each with probability 1/C; the weights of several layers may share it. A parameter with one axis has r alone.

    The output of a layer is $r \circ W (s \circ x)$, so that each example can have its own draw. The weights lie on a
    surface, and have no density.

    Args:
        loc: W, in the shape of the weight.
        outputs: Means and standard deviations of r, each of shape (C, out).
        inputs: Those of s, each of shape (C, in); `None` for a parameter with one axis or none.
        out_axis: Axis of the weight that counts outputs.
        shared: The draw of the component that the weight shares with others; by default it has its own.

    References:
        Dusenberry, Jerfel, Wen, Ma, Snoek, Heller, Lakshminarayanan, Tran, "Efficient and scalable Bayesian neural nets
        with rank-1 factors", 2020.

    Example:
        >>> factors = torch.ones(1, 2), torch.full((1, 2), 0.1)
        >>> RankOneWeights(torch.ones(2, 2), factors, factors).variance[0]
        tensor([0.0201, 0.0201])
    """

    has_density = False

    def __init__(
        self,
        loc: Tensor,
        outputs: tuple[Tensor, Tensor],
        inputs: tuple[Tensor, Tensor] | None,
        *,
        out_axis: int = 0,
        shared: ComponentDraw | None = None,
    ) -> None:
        self.loc, self.outputs, self.inputs, self.out_axis = loc, outputs, inputs, out_axis
        self.components = len(outputs[0])
        self.shared: ComponentDraw | None = shared
        super().__init__(loc.shape)

    @property
    def factors(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Means and standard deviations of r, and of s where there is one."""
        return (self.outputs,) if self.inputs is None else (self.outputs, self.inputs)

    @property
    def mean(self) -> Tensor:
        """The means over all components, in the shape of the weight."""
        return self.loc * self._spread([loc for loc, _ in self.factors]).mean(0)

    @property
    def variance(self) -> Tensor:
        """The variances over all components, in the shape of the weight."""
        first = self._spread([loc for loc, _ in self.factors]).mean(0)
        second = self._spread([loc.square() + scale.square() for loc, scale in self.factors]).mean(0)
        return self.loc.square() * (second - first.square())

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A draw, (*sample shape, *shape)."""
        shape = Size(sample_shape)
        if shape or self.shared is None:
            chosen = torch.randint(self.components, (max(shape.numel(), 1),), device=self.loc.device)
        else:
            chosen = self.shared.whole(self.loc).reshape(1)
        drawn = self.loc * self._spread(self._draw(chosen))
        drawn = drawn.reshape((*shape, *self.event_shape))
        return drawn

    def draw_rows(self, count: int) -> Tensor:
        """A draw of the weight for each of some rows, (count, *shape)."""
        return self.loc * self._spread(self._draw(self._chosen(count)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises `ValueError`: the weights have no density."""
        raise ValueError(
            "RankOneWeights has no log probability: its weights, a matrix times one factor for each row and one for "
            "each column, have no density. Use pyrostoch.ELBO with the prior RankOne, whose KL has a closed form"
        )

    def covers(self, op: LinearOp) -> bool:
        """Linear layers and convolutions."""
        return op.input.dim() == 2 if op.spatial == 0 else op.batched()

    def draw_output(self, op: LinearOp) -> Tensor:
        """The output with factors for each row of the input, the same at all positions."""
        rows, columns = self._draw(self._chosen(len(op.input)))
        inner = op(op.input * _for_channels(columns, op.input), self.loc, None)
        return inner * _for_channels(rows, inner)

    def _chosen(self, count: int) -> Tensor:
        """The component of each row, (count,)."""
        if self.shared is None:
            return torch.randint(self.components, (count,), device=self.loc.device)
        return self.shared.rows(count, self.loc)

    def _draw(self, chosen: Tensor) -> list[Tensor]:
        """R and s, each (n, out or in), of given components, (n,)."""
        drawn = []
        for loc, scale in self.factors:
            noise = torch.randn((len(chosen), loc.shape[1]), dtype=loc.dtype, device=loc.device)
            drawn.append(loc[chosen] + scale[chosen] * noise)
        return drawn

    def _spread(self, factors: Sequence[Tensor]) -> Tensor:
        """The product of factors for outputs and inputs, (n, *shape up to axes of length 1)."""
        count, axes = len(factors[0]), self.loc.dim()
        if axes == 0:
            return factors[0].reshape(count)
        in_axis = 1 if self.out_axis == 0 else 0
        product = factors[0].reshape(count, *[-1 if axis == self.out_axis else 1 for axis in range(axes)])
        if len(factors) > 1:
            product = product * factors[1].reshape(count, *[-1 if axis == in_axis else 1 for axis in range(axes)])
        return product


def _for_channels(factors: Tensor, values: Tensor) -> Tensor:
    """Factors as they multiply the channels of values; in a grouped convolution all groups have the same."""
    factors = factors.repeat(1, values.shape[1] // factors.shape[1])
    return factors.reshape((*factors.shape, *[1] * (values.dim() - 2))).to(values.dtype)


class ComponentDraw(SharedDraw):
    """The component that the weights of several sites share in one draw of a guide.

    Args:
        components: Their number C.
        sites: Names of the sites.

    Example:
        >>> int(ComponentDraw(1).whole(torch.zeros(1)))
        0
    """

    def __init__(self, components: int, sites: Sequence[str] = ()) -> None:
        super().__init__(sites)
        self.components = components
        self._whole: Tensor | None = None

    def record(self, value: Tensor) -> None:
        """Nothing: the weights do not tell their component, so that no site depends on the values of others.

        Args:
            value: What Pyro returned for a site.
        """

    def whole(self, like: Tensor) -> Tensor:
        """The component for the whole batch, a scalar.

        Args:
            like: Tells the device.
        """
        if self._whole is None:
            self._whole = torch.randint(self.components, (), device=like.device)
        return self._whole

    def rows(self, count: int, like: Tensor) -> Tensor:
        """The component of each row of a batch, (count,), the same for all weights.

        Args:
            count: Number of rows.
            like: Tells the device.
        """
        if not self.by_row:
            return self.whole(like).expand(count)
        if self._rows is None:
            self._rows = torch.randint(self.components, (count,), device=like.device)
        return self._rows


class RankOne(ImproperPrior):
    r"""The prior of `RankOneWeights`: factors are $N(1, \lambda^2)$, and the fixed W has the density of N(0, v^2).

    With C components, the divergence is the mean of those of the components. That is an upper bound of the divergence
    of their mixture, by at most log C nats for all weights together. The negative log density of W is added, as in
    maximum a posteriori estimation; it is no divergence, and can be negative.

    Args:
        scale: Standard deviation $\lambda$ of the factors.
        weight_scale: Standard deviation v.
        batch_shape: As in torch.
        validate_args: As in torch.

    Example:
        >>> from torch.distributions import kl_divergence
        >>> same = torch.ones(1, 1), torch.full((1, 1), 0.1)
        >>> kl_divergence(RankOneWeights(torch.zeros(1, 1), same, same), RankOne(0.1))  # log(2 pi) / 2
        tensor(0.9189, dtype=torch.float64)
    """

    def __init__(
        self,
        scale: Tensor | float = 0.1,
        weight_scale: Tensor | float = 1.0,
        batch_shape: _size = (),
        validate_args: bool | None = None,
    ) -> None:
        self.scale, self.weight_scale = scale, weight_scale
        super().__init__(Size(batch_shape), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises `ValueError`: the prior is one of factors, which the weights do not tell apart."""
        self._refuse("log probability of its own")
