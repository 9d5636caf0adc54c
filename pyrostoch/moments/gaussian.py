"""The object that flows through a network in place of a tensor: a mean with a variance, or with a covariance."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrostoch.moments.table import apply, refuse

__all__ = [
    "Link",
    "Moments",
    "MomentSettings",
    "cross_covariance",
    "elementwise_covariance",
    "entries_of",
    "per_example",
    "related",
    "rows_of",
]

# With a diagonal covariance, branches with mixing layers between them have their correlation worked out up to this many
# entries an example; beyond, they are taken as uncorrelated.
_LARGEST = 1024

_numbers = itertools.count()


@dataclass(frozen=True)
class MomentSettings:
    """How moments are carried through a network.

    Args:
        full: Whether a full covariance goes along, over all entries of an example, and not only variances.
        sampled: Whether operations without a rule are sampled through, instead of raising an error.
        draws: Draws for such an operation.
        closed: Whether a closed approximation reads the output, where there is one, and not points of its Gaussian.
        points: How many points.
    """

    full: bool = False
    sampled: bool = False
    draws: int = 100
    closed: bool = False
    points: int = 64


def per_example(values: Tensor) -> Tensor:
    """Entries of each example in a row, (B, n).

    Args:
        values: (B, ...).
    """
    return values.reshape(len(values), -1)


def entries_of(x: Tensor) -> Tensor:
    """The entries of one example, counted from 1 in the shape of an example, (1, ...): where an operation puts each.

    Args:
        x: A batch, (B, ...).
    """
    count = x[0].numel()
    # In double precision, since not every operation takes whole numbers.
    return torch.arange(1, count + 1, device=x.device, dtype=torch.float64).reshape(1, *x.shape[1:])


def rows_of(rows: Tensor, shape: torch.Size | tuple[int, ...] = (-1,)) -> Tensor:
    """Rows `(B, r, ...)` with their entries in another shape; flat by default.

    Args:
        rows: Rows of an example's covariance.
        shape: Shape of one row.
    """
    return rows.reshape(*rows.shape[:2], *shape)


@dataclass(frozen=True)
class Link:
    """Where moments come from: how a covariance with the parent becomes one with the child.

    Args:
        parent: The moments an operation was given.
        push: The expected derivative of the operation as a linear map, `(B, r, *parent) -> (B, r, *child)`.
        gain: Gives the same as a factor, in the child's shape, where the operation acts on each entry alone.
    """

    parent: Moments
    push: Callable[[Tensor], Tensor]
    gain: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        # What the parent is now: an operation in place may change the object later.
        object.__setattr__(self, "parent", self.parent.node)


class Moments:
    r"""Mean and variance, or mean and full covariance, of a batch of activations taken as Gaussian.

    Torch's functions take it as they take a tensor: each is answered by its rule in `pyrostoch.moments.table`, and one
    without a rule raises an error that names it. The first axis counts examples, which are independent.

    It remembers what it was made from, so that branches of a network that meet again are added with their covariance:
    for jointly Gaussian $u$ and $x$, $\mathrm{Cov}(u, f(x)) = \mathrm{Cov}(u, x)\, E[f'(x)]$ (Stein's lemma).

    Args:
        loc: Mean, (B, ...).
        var: Variance, of the same shape.
        cov: Covariance of an example's entries, (B, n, n), n the product of the other axes; or `None`.
        settings: How the moments are carried on.
        links: Where they come from.
        late: Gives the covariance where only variances are carried and one operation back is taken into account.

    Attributes:
        order: Rises from each object to the next, so that a child has a higher one than its parents.

    Example:
        >>> x = Moments(torch.zeros(2, 3), torch.ones(2, 3))
        >>> torch.relu(x).var[0, 0] - (0.5 - 1 / (2 * torch.pi))
        tensor(0.)
        >>> (x - x).var.sum().item(), torch.nn.Flatten()(x).shape
        (0.0, torch.Size([2, 3]))

    References:
        Stein 1981; Frey, Hinton, "Variational learning in nonlinear Gaussian belief networks", 1999, for the idea.
    """

    def __init__(
        self,
        loc: Tensor,
        var: Tensor,
        cov: Tensor | None = None,
        settings: MomentSettings | None = None,
        links: tuple[Link, ...] = (),
        late: Callable[[], Tensor] | None = None,
    ) -> None:
        self.loc, self.var, self.cov = loc, var, cov
        self.settings = MomentSettings(full=cov is not None) if settings is None else settings
        self.links, self.late = links, late
        self.order = next(_numbers)
        self._node: Moments | None = None

    @classmethod
    def certain(cls, x: Tensor, settings: MomentSettings) -> Moments:
        """A tensor as moments without variance.

        Args:
            x: The tensor, (B, ...).
            settings: How moments are carried.
        """
        size = x[0].numel() if len(x) else 0
        return cls(x, torch.zeros_like(x), x.new_zeros(len(x), size, size) if settings.full else None, settings)

    @property
    def node(self) -> Moments:
        """The values as they are now, in an object that no operation in place changes."""
        if self._node is None:
            node = Moments(self.loc, self.var, self.cov, self.settings, self.links, self.late)
            node.order = self.order
            self._node = node._node = node
        return self._node

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        # Asked for only where the object has no such attribute: whatever a tensor has.
        found = None if name.startswith("_") else getattr(Tensor, name, None)
        if found is None:
            raise AttributeError(f"Moments has no attribute {name!r}, and neither has a tensor")
        if name in _ABOUT:
            return getattr(self.loc, name)
        if not callable(found):  # such as `mT`: torch's functions know it by its getter
            return apply(found.__get__, (self,), {})
        return lambda *args, **kwargs: apply(found, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self.loc)

    def __bool__(self) -> bool:
        refuse(Tensor.__bool__)

    # Two of them are never equal as objects: the comparison is one of entries, which has no rule.
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        kind = "full covariance" if self.cov is not None else "variances"
        return f"Moments(shape={tuple(self.loc.shape)}, {kind}, dtype={self.loc.dtype}, device={self.loc.device})"

    def become(self, other: Moments) -> Moments:
        """Take over another's values, as an operation in place does; what was made before keeps the old ones.

        Args:
            other: The result.
        """
        self.loc, self.var, self.cov, self.late = other.loc, other.var, other.cov, other.late
        self.order, self.links, self._node = other.order, other.links, other._node
        return self

    def covariance(self) -> Tensor:
        """The covariance of each example's entries, (B, n, n), as far as it is known."""
        if self.cov is not None:
            return self.cov
        return torch.diag_embed(per_example(self.var)) if self.late is None else self.late()

    def stddev(self) -> Tensor:
        """Standard deviations."""
        return self.var.clamp_min(0.0).sqrt()


# What only asks about a tensor's form.
_ABOUT = {
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
_ABOUT |= {"element_size", "data_ptr", "storage_offset", "get_device", "is_signed", "has_names", "untyped_storage"}


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)
    return lambda self, *args: apply(function, (self, *args), {})


for _name in ("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv"):
    setattr(Moments, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("neg", "abs", "pow", "rpow", "matmul", "rmatmul", "getitem", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Moments, f"__{_name}__", _operator(f"__{_name}__"))


def cross_covariance(one: Moments, other: Moments) -> Tensor:
    """Covariance of two moments' entries, (B, n, m): by their own covariance where they are the same, else by descent.

    Args:
        one: The first.
        other: The second.
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
    """Covariance of entries at the same place, in the common shape, where only variances are carried.

    Args:
        one: The first.
        other: The second, of the same shape.

    Returns:
        The covariances; `None` where the two have nothing in common, or too many entries to work it out.
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
        part = elementwise_covariance(one, link.parent)
        if part is not None:
            moved = part * link.gain()
            total = moved if total is None else total + moved
    else:
        return total
    if one.loc[0].numel() > _LARGEST:
        return None
    return cross_covariance(one, other).diagonal(dim1=1, dim2=2).reshape(one.loc.shape)


def related(one: Moments, other: Moments) -> bool:
    """Whether two moments have an ancestor in common, or one descends from the other.

    Args:
        one: The first.
        other: The second.
    """
    return not _ancestors(one.node).isdisjoint(_ancestors(other.node))


def _ancestors(moments: Moments) -> set[int]:
    found: set[int] = set()
    waiting = [moments]
    while waiting:
        latest = waiting.pop()
        if id(latest) not in found:
            found.add(id(latest))
            waiting += [link.parent for link in latest.links]
    return found
