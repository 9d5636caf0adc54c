"""`Moments`, which takes the place of a tensor of activations: a mean with variances, or with a covariance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrostoch.moments.table import apply, refuse

__all__ = [
    "Link",
    "MomentSettings",
    "Moments",
    "cross_covariance",
    "elementwise_covariance",
    "entries_of",
    "per_example",
    "related",
    "rows_of",
]

# Where only variances are carried and layers that mix entries lie between two branches, the covariance of the branches
# is computed for up to this many entries of an example; larger branches are taken as uncorrelated.
_MAX_ENTRIES = 1024

_counter = itertools.count()


@dataclass(frozen=True)
class MomentSettings:
    """Options of moment propagation, attached to every `Moments` object.

    To carry moments is to compute them for the result of each operation from those of its arguments.

    Args:
        full: Whether the full covariance of all entries of an example is carried, not only variances.
        sampled: Whether operations without a rule are approximated by Monte Carlo, instead of raising an error.
        draws: Number of draws for such an operation.
        closed: Whether predictions use the closed-form approximation of the likelihood (an error if it has none),
            instead of averages over points of the output's Gaussian.
        points: Number of these points.
        bound: Whether the mean log-likelihood is a closed lower bound (an error if the likelihood has none).

    Example:
        >>> MomentSettings(full=True).points
        64
    """

    full: bool = False
    sampled: bool = False
    draws: int = 100
    closed: bool = False
    points: int = 64
    bound: bool = False


def per_example(values: Tensor) -> Tensor:
    """The entries of each example flattened, (B, n).

    Args:
        values: Shape (B, ...).
    """
    return values.reshape(len(values), -1)


def entries_of(x: Tensor) -> Tensor:
    """The numbers 1 to n in the shape of one example, (1, ...).

    An operation that rearranges entries, applied to them, shows where each entry goes; 0 marks padding.

    Args:
        x: A batch, (B, ...).
    """
    count = x[0].numel()
    # In double precision, since not all operations accept integers.
    return torch.arange(1, count + 1, device=x.device, dtype=torch.float64).reshape(1, *x.shape[1:])


def rows_of(rows: Tensor, shape: torch.Size | tuple[int, ...] = (-1,)) -> Tensor:
    """Reshape each of the rows `(B, r, ...)`; flattens them by default.

    Args:
        rows: r rows of each example's covariance, (B, r, ...).
        shape: New shape of one row.
    """
    return rows.reshape(*rows.shape[:2], *shape)


@dataclass(frozen=True)
class Link:
    """One argument (parent) of the operation that made some moments (child), with the operation's expected Jacobian.

    The Jacobian maps the covariance of any variable with the parent to its covariance with the child.

    Args:
        parent: The moments that the operation was given.
        push: Multiplication with the expected Jacobian, applied to rows: `(B, r, *parent) -> (B, r, *child)`.
        gain: For an elementwise operation a function that returns the diagonal of that Jacobian, in the child's shape.
    """

    parent: Moments
    push: Callable[[Tensor], Tensor]
    gain: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        # The values of the parent at this time: an operation in place may change the object later.
        object.__setattr__(self, "parent", self.parent.node)


class Moments:
    r"""Mean and variance, or mean and full covariance, of a batch of activations taken as Gaussian.

    Torch functions accept it in place of a tensor: each is answered by its rule in `pyrostoch.moments.table`, and a
    function without a rule raises an error that names it. The first axis counts examples, which are independent.

    It stores links to the moments that it was computed from, so that the covariance of branches that meet again (a
    residual link) is known: for jointly Gaussian $u$ and $x$,
    $\mathrm{Cov}(u, f(x)) = \mathrm{Cov}(u, x)\, E[f'(x)]$ (Stein's lemma).

    Args:
        loc: Mean, (B, ...).
        var: Variance, in the same shape.
        cov: Covariance of the entries of each example, (B, n, n), n the product of the other axes; or `None`.
        settings: Options of the propagation; by default `full` if `cov` is given.
        links: The arguments of the operation that made it.
        lazy_covariance: Function that computes the covariance (B, n, n) on demand, where only variances are carried:
            outputs of a linear layer are correlated even if its inputs are not.

    Attributes:
        order: Increases with every new object, so that a child has a higher order than its parents.

    Example:
        >>> x = Moments(torch.zeros(2, 3), torch.ones(2, 3))
        >>> torch.relu(x).var[0, 0] - (0.5 - 1 / (2 * torch.pi))
        tensor(0.)
        >>> (x - x).var.sum().item(), torch.nn.Flatten()(x).shape
        (0.0, torch.Size([2, 3]))

    References:
        Frey, Hinton, "Variational learning in nonlinear Gaussian belief networks", 1999; Stein, "Estimation of the mean
        of a multivariate normal distribution", 1981.
    """

    def __init__(
        self,
        loc: Tensor,
        var: Tensor,
        cov: Tensor | None = None,
        settings: MomentSettings | None = None,
        links: tuple[Link, ...] = (),
        lazy_covariance: Callable[[], Tensor] | None = None,
    ) -> None:
        self.loc, self.var, self.cov = loc, var, cov
        self.settings = MomentSettings(full=cov is not None) if settings is None else settings
        self.links, self.lazy_covariance = links, lazy_covariance
        self.order = next(_counter)
        self._node: Moments | None = None

    @classmethod
    def certain(cls, x: Tensor, settings: MomentSettings) -> Moments:
        """A tensor that is not random as moments: its values are the mean, and variances are zero.

        Args:
            x: The tensor, (B, ...).
            settings: Options of the propagation.
        """
        size = x[0].numel() if len(x) else 0
        return cls(x, torch.zeros_like(x), x.new_zeros(len(x), size, size) if settings.full else None, settings)

    @property
    def node(self) -> Moments:
        """A copy with the present values, which later operations in place do not change."""
        if self._node is None:
            node = Moments(self.loc, self.var, self.cov, self.settings, self.links, self.lazy_covariance)
            node.order = self.order
            self._node = node._node = node
        return self._node

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        # Methods and attributes of tensors that are not defined here are answered by their rules.
        attribute = None if name.startswith("_") else getattr(Tensor, name, None)
        if attribute is None:
            raise AttributeError(f"Moments has no attribute {name!r}, and neither has a tensor")
        if name in _METADATA:
            return getattr(self.loc, name)
        if not callable(attribute):  # a property such as `mT`, which torch passes to __torch_function__ as its getter
            return apply(attribute.__get__, (self,), {})
        return lambda *args, **kwargs: apply(attribute, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.loc)

    def __bool__(self) -> bool:
        refuse(Tensor.__bool__)

    # Hashed by identity: `==` compares entries, as for tensors, and has no rule.
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        kind = "full covariance" if self.cov is not None else "variances"
        return f"Moments(shape={tuple(self.loc.shape)}, {kind}, dtype={self.loc.dtype}, device={self.loc.device})"

    def become(self, other: Moments) -> Moments:
        """Take the values of another object, for an operation in place; earlier results keep the old values.

        Args:
            other: The result of the operation.
        """
        self.loc, self.var, self.cov = other.loc, other.var, other.cov
        self.lazy_covariance = other.lazy_covariance
        self.order, self.links, self._node = other.order, other.links, other._node
        return self

    def covariance(self) -> Tensor:
        """The covariance of each example's entries, (B, n, n); diagonal where only variances are known."""
        if self.cov is not None:
            return self.cov
        return torch.diag_embed(per_example(self.var)) if self.lazy_covariance is None else self.lazy_covariance()

    def stddev(self) -> Tensor:
        """Standard deviations, in the shape of the mean."""
        return self.var.clamp_min(0.0).sqrt()


# Attributes and methods about shape, type and storage, which are answered by the mean.
_METADATA = {
    "shape",
    "dtype",
    "device",
    "layout",
    "ndim",
    "itemsize",
    "nbytes",
    "names",
    "requires_grad",
    "is_leaf",
    "grad_fn",
    "is_cuda",
    "is_cpu",
    "is_mps",
    "is_meta",
    "is_nested",
    "is_quantized",
    "is_sparse",
    "dim",
    "size",
    "stride",
    "numel",
    "nelement",
    "ndimension",
    "is_floating_point",
    "is_complex",
    "is_contiguous",
}
_METADATA |= {"element_size", "data_ptr", "storage_offset", "get_device", "is_signed", "has_names", "untyped_storage"}


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)
    return lambda self, *args: apply(function, (self, *args), {})


for _name in ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv"):
    setattr(Moments, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("neg", "abs", "pow", "rpow", "matmul", "rmatmul", "getitem", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Moments, f"__{_name}__", _operator(f"__{_name}__"))


def cross_covariance(one: Moments, other: Moments) -> Tensor:
    """Covariance between the entries of two moments, (B, n, m), by recursion over the links of the later one.

    Args:
        one: The first, n entries for each example.
        other: The second, m entries.
    """
    one, other = one.node, other.node
    if one is other:
        return one.covariance()
    if one.order > other.order:
        return cross_covariance(other, one).mT
    count = len(one.loc)
    total = torch.zeros(count, one.loc[0].numel(), other.loc[0].numel(), dtype=one.loc.dtype, device=one.loc.device)
    for link in other.links:
        if related(one, link.parent):
            rows = cross_covariance(one, link.parent)
            total = total + rows_of(link.push(rows_of(rows, link.parent.loc.shape[1:])))
    return total


def elementwise_covariance(one: Moments, other: Moments) -> Tensor | None:
    """Covariance of corresponding entries of two moments of the same shape, where only variances are carried.

    Args:
        one: The first.
        other: The second, in the same shape.

    Returns:
        The covariances, in that shape; `None` where the two are unrelated or have too many entries to compute them.
    """
    one, other = one.node, other.node
    if one is other:
        return one.var
    if one.order > other.order:
        one, other = other, one
    links = [link for link in other.links if related(one, link.parent)]
    if not links:
        return None
    total: Tensor | None = None
    for link in links:
        if link.gain is None or link.parent.loc.shape != one.loc.shape:
            break
        with_parent = elementwise_covariance(one, link.parent)
        if with_parent is not None:
            term = with_parent * link.gain()
            total = term if total is None else total + term
    else:
        return total
    if one.loc[0].numel() > _MAX_ENTRIES:
        return None
    return cross_covariance(one, other).diagonal(dim1=1, dim2=2).reshape(one.loc.shape)


def related(one: Moments, other: Moments) -> bool:
    """Whether two moments have a common ancestor, or one was computed from the other.

    Args:
        one: The first.
        other: The second.
    """
    return not _ancestors(one.node).isdisjoint(_ancestors(other.node))


def _ancestors(moments: Moments) -> set[int]:
    """Identities of the moments and of all that they were computed from."""
    visited: set[int] = set()
    stack = [moments]
    while stack:
        current = stack.pop()
        if id(current) not in visited:
            visited.add(id(current))
            stack += [link.parent for link in current.links]
    return visited
