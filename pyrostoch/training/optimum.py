"""Whether weights are at a maximum of the log joint density, where a Laplace approximation is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyrostoch._checks import name_list

__all__ = ["NegativeCurvature", "find_negative_curvature", "largest_sites"]

# Fixed, so that the search is the same in every call.
_SEED = 7


class NegativeCurvature:
    """A direction in which the negative log joint density curves downwards.

    Args:
        value: The curvature along the direction, of unit length; negative.
        vector: The direction, by site.
    """

    def __init__(self, value: float, vector: dict[str, Tensor]) -> None:
        self.value, self.vector = value, vector


def largest_sites(vector: Mapping[str, Tensor], most: int = 3) -> str:
    """The names of the sites that have most of a vector's square, for messages.

    Args:
        vector: The vector, by site.
        most: Largest number of names.
    """
    sizes = {name: value.square().sum().item() for name, value in vector.items()}
    total = math.fsum(sizes.values())
    ranked = sorted(sizes, key=sizes.__getitem__, reverse=True)
    return name_list(name for name in ranked[:most] if sizes[name] > 0.1 * total)


def find_negative_curvature(
    product: Callable[[dict[str, Tensor]], dict[str, Tensor]], like: Mapping[str, Tensor], steps: int
) -> NegativeCurvature | None:
    r"""Look for a direction of negative curvature by Lanczos steps from a random vector.

    The smallest eigenvalue in the space that they span is at least that of the matrix, so that a negative one is proof;
    that none was found is none.

    Args:
        product: Multiplies the Hessian of the negative log joint density with a vector by site.
        like: Tensors in the shapes of the weights, by site.
        steps: Number of products.

    Returns:
        The direction, or `None` if none was found.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
        >>> found = find_negative_curvature(lambda v: {"w": matrix @ v["w"]}, {"w": torch.zeros(2)}, 2)
        >>> round(found.value, 6)
        -2.0
    """
    names = list(like)
    sizes = [like[name].numel() for name in names]
    steps = min(steps, sum(sizes))
    if not steps:
        return None
    device = like[names[0]].device
    start = torch.randn(sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(_SEED)).to(device)

    def split(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split(sizes)
        return {name: part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True)}

    basis = [start / torch.linalg.vector_norm(start)]
    images: list[Tensor] = []
    for step in range(steps):
        found = product(split(basis[step]))
        images.append(torch.cat([found[name].flatten() for name in names]))
        rest = images[-1].clone()
        for _ in range(2):  # twice, against rounding errors
            for vector in basis:
                rest = rest - (rest @ vector) * vector
        size = torch.linalg.vector_norm(rest)
        if step + 1 == steps or float(size) <= 1e-10 * float(torch.linalg.vector_norm(images[-1])):
            break
        basis.append(rest / size)
    space = torch.stack(basis[: len(images)])
    small = space @ torch.stack(images).mT
    values, vectors = torch.linalg.eigh(0.5 * (small + small.mT))
    # Rounding errors of the products are of the size of the largest eigenvalue's.
    if float(values[0]) >= -1e-5 * float(values.abs().max()):
        return None
    return NegativeCurvature(float(values[0]), split(vectors[:, 0] @ space))
