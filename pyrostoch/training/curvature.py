"""The generalized Gauss-Newton matrix in each structure of a Laplace approximation, and what is computed of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.guides import Laplace

__all__ = ["Curvature", "DiagonalCurvature", "FullCurvature", "KroneckerCurvature"]


class Curvature(Protocol):
    """The matrix H of the negative log-likelihood; the prior's precisions are given by site, in the weights' shapes."""

    def eigenvalues(self) -> dict[str, Tensor]:
        """The eigenvalues of H, by what has a precision of its own: the sites, or all of them under the name `""`."""

    def log_det(self, prior: Mapping[str, Tensor]) -> float:
        """Log of the determinant of H + P."""

    def squares(self, vector: Mapping[str, Tensor], prior: Mapping[str, Tensor]) -> float:
        r"""$v^\top (H + P)^{-1} v$ for a vector by site."""

    def set(self, guide: Laplace, prior: Mapping[str, Tensor]) -> None:
        """Set the guide's covariance to the inverse of H + P."""


class DiagonalCurvature:
    """The diagonal of H.

    Args:
        shapes: A tensor in the shape of each weight, by site.
        free: Which entries are drawn, by site.
    """

    def __init__(self, shapes: Mapping[str, Tensor], free: Mapping[str, Tensor]) -> None:
        self.free = free
        self.diagonal = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in shapes.items()}

    def add(self, rows: dict[str, Tensor]) -> None:
        """Add rows of which H is the sum of squares.

        Args:
            rows: By site, (n, outputs, *weight).
        """
        for name, value in rows.items():
            self.diagonal[name] += value.square().sum((0, 1))

    def eigenvalues(self) -> dict[str, Tensor]:
        """The diagonal, by site."""
        return {name: value[self.free[name]] for name, value in self.diagonal.items()}

    def log_det(self, prior: Mapping[str, Tensor]) -> float:
        """Log of the determinant of H + P."""
        return sum((v + prior[name])[self.free[name]].log().sum().item() for name, v in self.diagonal.items())

    def squares(self, vector: Mapping[str, Tensor], prior: Mapping[str, Tensor]) -> float:
        r"""$v^\top (H + P)^{-1} v$ for a vector by site."""
        values = ((vector[name].square() / (d + prior[name]))[self.free[name]] for name, d in self.diagonal.items())
        return sum(value.sum().item() for value in values)

    def set(self, guide: Laplace, prior: Mapping[str, Tensor]) -> None:
        """Set the guide's standard deviations."""
        guide.set_scales({name: (value + prior[name]).rsqrt() for name, value in self.diagonal.items()})


class FullCurvature:
    """All of H.

    Args:
        shapes: A tensor in the shape of each weight, by site, in the order of the guide.
    """

    def __init__(self, shapes: Mapping[str, Tensor]) -> None:
        self.names = list(shapes)
        size, like = sum(value.numel() for value in shapes.values()), next(iter(shapes.values()))
        self.matrix = torch.zeros(size, size, dtype=torch.float64, device=like.device)
        self._values: Tensor | None = None

    def add(self, rows: dict[str, Tensor]) -> None:
        """Add rows of which H is the sum of outer products.

        Args:
            rows: By site, (n, outputs, *weight).
        """
        flat = torch.cat([rows[name].reshape((*rows[name].shape[:2], -1)) for name in self.names], 2).flatten(0, 1)
        self.matrix += flat.mT @ flat
        self._values = None

    def eigenvalues(self) -> dict[str, Tensor]:
        """The eigenvalues of all sites together."""
        if self._values is None:
            self._values = torch.linalg.eigvalsh(self.matrix).clamp_min(0.0)
        return {"": self._values}

    def log_det(self, prior: Mapping[str, Tensor]) -> float:
        """Log of the determinant of H + P."""
        return 2.0 * self._root(prior).diagonal().log().sum().item()

    def squares(self, vector: Mapping[str, Tensor], prior: Mapping[str, Tensor]) -> float:
        r"""$v^\top (H + P)^{-1} v$ for a vector by site."""
        flat = torch.cat([vector[name].flatten() for name in self.names]).unsqueeze(1)
        return torch.linalg.solve_triangular(self._root(prior), flat, upper=False).square().sum().item()

    def set(self, guide: Laplace, prior: Mapping[str, Tensor]) -> None:
        """Set the guide's covariance."""
        guide.set_covariance(torch.cholesky_inverse(self._root(prior)))

    def _root(self, prior: Mapping[str, Tensor]) -> Tensor:
        flat = torch.cat([prior[name].flatten() for name in self.names])
        root, failed = torch.linalg.cholesky_ex(self.matrix + torch.diag(flat))
        if bool(failed):
            raise ValueError(
                "fit_laplace: the curvature plus the prior's precision is not positive definite within rounding "
                f"errors; take a narrower prior, or structure='diagonal'{see('how-to/choose_guide')}"
            )
        return root


class KroneckerCurvature:
    r"""For each site $G \otimes A$, with G of the outputs and A of the inputs.

    Args:
        factors: G, (out, out), and A, (in, in), by site, in double precision.
        out_axes: The axis of each weight that counts outputs.
    """

    def __init__(self, factors: Mapping[str, tuple[Tensor, Tensor]], out_axes: Mapping[str, int]) -> None:
        self.out_axes = out_axes
        self.parts = {name: (torch.linalg.eigh(g), torch.linalg.eigh(a)) for name, (g, a) in factors.items()}

    def eigenvalues(self) -> dict[str, Tensor]:
        """The products of the eigenvalues of both factors, by site."""
        return {name: self._products(name).flatten() for name in self.parts}

    def log_det(self, prior: Mapping[str, Tensor]) -> float:
        """Log of the determinant of H + P."""
        return sum((self._products(name) + _number(name, prior)).log().sum().item() for name in self.parts)

    def squares(self, vector: Mapping[str, Tensor], prior: Mapping[str, Tensor]) -> float:
        r"""$v^\top (H + P)^{-1} v$ for a vector by site."""
        total = 0.0
        for name, (outputs, inputs) in self.parts.items():
            value = vector[name]
            matrix = value.movedim(self.out_axes[name], 0) if value.dim() > 1 else value
            matrix = matrix.reshape(len(outputs.eigenvectors), len(inputs.eigenvectors))
            turned = outputs.eigenvectors.mT @ matrix @ inputs.eigenvectors
            total += (turned.square() / (self._products(name) + _number(name, prior))).sum().item()
        return total

    def set(self, guide: Laplace, prior: Mapping[str, Tensor]) -> None:
        """Set the guide's bases, and its standard deviations in them."""
        found = {}
        for name, (outputs, inputs) in self.parts.items():
            scale = (self._products(name) + _number(name, prior)).rsqrt()
            found[name] = (outputs.eigenvectors, inputs.eigenvectors, scale)
        guide.set_kronecker(found)

    def _products(self, name: str) -> Tensor:
        outputs, inputs = self.parts[name]
        return outputs.eigenvalues.clamp_min(0.0).unsqueeze(1) * inputs.eigenvalues.clamp_min(0.0)


def _number(site: str, prior: Mapping[str, Tensor]) -> Tensor:
    """The precision of a site's prior, one number for all of its weights."""
    values = prior[site]
    first = values.flatten()[0]
    if not torch.equal(values, first.expand(values.shape)):
        raise ValueError(
            f"fit_laplace: site {site!r}: structure='kronecker' expects a prior with one standard deviation for all of "
            f"a site's weights, got several; take structure='diagonal' or 'full'{see('how-to/choose_guide')}"
        )
    return first
