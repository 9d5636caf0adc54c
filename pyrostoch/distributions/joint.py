"""Weights whose entries depend on each other: the whole weight is one event, and outputs can be drawn by example."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from pyrostoch._checks import name_list
from pyrostoch._ops import LinearOp
from pyrostoch.distributions.shared_draw import SharedDraw

__all__ = ["JointWeights", "as_kernels", "as_weight", "outputs_of_rows"]


class JointWeights(TorchDistribution):
    r"""Base class of distributions of a whole weight, an event of the weight's shape.

    A class of this kind has `loc`, of the dtype and on the device of its draws, `rsample`, and, where they are known,
    `mean`, `variance` and `log_prob`. `LocalReparameterization` draws the output of a linear operation by
    `draw_output`, with a draw for each row of its input, where `covers` says that it can; and
    `MomentPropagation` uses `output_variance` and `output_covariance`, where `has_output_moments` is true.

    A weight may share numbers with those of other sites, its `shared` draw.

    Args:
        shape: Shape of the weight.

    Example:
        >>> from pyrostoch.distributions import MatrixNormal
        >>> weight = MatrixNormal(torch.zeros(2, 3), torch.eye(2), torch.eye(3))
        >>> isinstance(weight, JointWeights), weight.event_shape
        (True, torch.Size([2, 3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True
    loc: Tensor
    #: Whether `mean` and `variance` are known.
    has_mean = True
    #: Whether `log_prob` knows the density of any value, not only of what was drawn.
    has_density = True
    #: Whether moments of a layer's output are known.
    has_output_moments = False
    #: What this weight shares with the weights of other sites, in one draw of a guide.
    shared: SharedDraw | None = None

    def __init__(self, shape: Size) -> None:
        super().__init__(Size(()), shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real weights."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: _size, _instance: object = None) -> TorchDistribution:
        """Itself, or a wrapper with a batch shape.

        Args:
            batch_shape: The batch shape.

        Raises:
            ValueError: Several draws are asked for, and the weight depends on those of other sites.
        """
        if batch_shape and self.shared is not None and len(self.shared.sites) > 1:
            raise ValueError(
                f"{type(self).__name__}: expected single draws, got the batch shape {tuple(batch_shape)}; the sites "
                f"{name_list(self.shared.sites)} depend on each other. Draw in a loop, without pyro.plate or "
                "Predictive(parallel=True)"
            )
        return self if not batch_shape else ExpandedDistribution(self, Size(batch_shape))

    @property
    def covariance(self) -> Tensor:
        """The covariance of all entries, (n, n), in the order of the flattened weight."""
        raise TypeError(f"{type(self).__name__} has no covariance in closed form")

    def root_products(self, rows: Tensor) -> Tensor:
        r"""Vectors times a root R of the covariance $R R^\top$ of all entries, (..., m).

        Where sites share numbers, R has a column for each of them, so that the products of several sites are added.
        What a weight has beside these is in `own_products`.

        Args:
            rows: The vectors, (..., *shape).

        Raises:
            TypeError: The class knows no root.
        """
        raise TypeError(f"{type(self).__name__} has no root of its covariance in closed form")

    def own_products(self, rows: Tensor) -> Tensor | None:
        """Vectors times a root of the rest of the covariance, which the weight shares with no other, (..., m).

        Args:
            rows: The vectors, (..., *shape).

        Returns:
            The products; `None` where there is no such rest.
        """
        return None

    def draw_rows(self, count: int) -> Tensor:
        """A draw of the weight for each of some rows, (count, *shape).

        Args:
            count: Number of rows.
        """
        drawn: Tensor = self.rsample(Size((count,)))
        return drawn

    def covers(self, op: LinearOp) -> bool:
        """Whether `draw_output` can draw the output of an operation; by default, that of a linear layer.

        Args:
            op: The operation.
        """
        return op.spatial == 0 and op.input.dim() == 2

    def includes(self, bias: JointWeights | None) -> bool:
        """Whether `draw_output` adds a bias of this distribution; by default it adds none.

        Args:
            bias: The distribution of the layer's bias.
        """
        return False

    def draw_output(self, op: LinearOp) -> Tensor:
        """The output of an operation without a bias, with a draw of the weight for each row of the input.

        Args:
            op: The operation, whose weight has this distribution.
        """
        return outputs_of_rows(op, self.draw_rows(len(op.input)))

    def output_variance(self, op: LinearOp, mean: Tensor, variance: Tensor) -> Tensor:
        """What the weight adds to the variance of each output of an operation that it `covers`.

        Args:
            op: The operation.
            mean: Means of its input.
            variance: Variances of its input.
        """
        return self.output_covariance(mean, variance).diagonal(dim1=1, dim2=2)

    def output_covariance(self, mean: Tensor, second: Tensor) -> Tensor:
        r"""What the weight adds to the covariance of a linear layer's outputs, (B, out, out).

        $\sum_{ij} \mathrm{Cov}(w_{oi}, w_{pj})\,E[x_i x_j]$ for outputs o and p.

        Args:
            mean: Means m of the inputs, (B, in).
            second: The covariance of the inputs, (B, in, in), or their variances, (B, in), where they are uncorrelated.
        """
        raise TypeError(f"{type(self).__name__} has no moments of a layer's output")


def outputs_of_rows(op: LinearOp, weights: Tensor) -> Tensor:
    """The output of a linear layer with a weight for each row of its input.

    Args:
        op: The operation.
        weights: The weights, (rows, out, in).
    """
    return torch.einsum("noi,ni->no", weights.to(op.input.dtype), op.input)


def as_kernels(value: Tensor, out_axis: int, event_dim: int) -> Tensor:
    """Values in a weight's shape as a matrix with a row for each output, (..., out, in).

    Args:
        value: Shape (..., *shape).
        out_axis: Axis of the shape that counts outputs.
        event_dim: Number of axes of the shape.
    """
    lead = value.dim() - event_dim
    return value.movedim(lead + out_axis, lead).flatten(lead + 1)


def as_weight(matrix: Tensor, shape: Size, out_axis: int) -> Tensor:
    """The inverse of `as_kernels`.

    Args:
        matrix: Shape (..., out, in).
        shape: Shape of the weight.
        out_axis: Axis of the shape that counts outputs.
    """
    lead = matrix.dim() - 2
    others = (*shape[:out_axis], *shape[out_axis + 1 :])
    moved = matrix.reshape(*matrix.shape[:lead], shape[out_axis], *others).movedim(lead, lead + out_axis)
    return moved.contiguous()
