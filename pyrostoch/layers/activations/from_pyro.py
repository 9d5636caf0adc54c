"""Activations of any elementwise distribution of Pyro."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution, transform_to

from pyrostoch.layers.activations.base import ActivationDistribution, Gradient, Link

__all__ = ["FromPyro"]


class FromPyro(ActivationDistribution):
    """Any elementwise distribution of Pyro, by the names of its parameters.

    Args:
        family: The class, such as `pyro.distributions.Gamma`. It has one kernel for each parameter that is not fixed;
            `torch.distributions.transform_to` maps their outputs to what the parameter's constraint allows.
        **fixed: Parameters with fixed values.

    Raises:
        ValueError: Its parameters are not elementwise, or none is left for a kernel, or a name is no parameter.

    Example:
        >>> import pyro.distributions as dist
        >>> sorted(FromPyro(dist.Gamma, rate=2.0).links)
        ['concentration']
    """

    def __init__(self, family: type[Distribution], **fixed: Tensor | float) -> None:
        declared = getattr(family, "arg_constraints", {})
        if not isinstance(declared, dict):
            raise ValueError(f"{family.__name__}: its parameters depend on each other, so no kernel can give them")
        constraints: dict[str, Any] = dict(declared)
        if unknown := sorted(set(fixed) - set(constraints)):
            raise ValueError(f"{family.__name__}: no parameter(s) {unknown}; it has {sorted(constraints)}")
        if "probs" in constraints and "logits" in constraints:
            constraints.pop("logits" if "probs" in fixed else "probs")
        self._constraints = {name: constraint for name, constraint in constraints.items() if name not in fixed}
        if not self._constraints:
            raise ValueError(f"{family.__name__}: every parameter is fixed, so that none is left for a kernel to give")
        if wrong := sorted(name for name, constraint in self._constraints.items() if constraint.event_dim):
            raise ValueError(f"{family.__name__}: expected elementwise parameters, but {wrong} are vectors or matrices")
        self.family, self.fixed = family, fixed
        self.gradients: tuple[Gradient, ...] = (  # type: ignore[misc]  # its own, not those of the class
            ("reparameterized",) if getattr(family, "has_rsample", False) else ("straight-through", "score")
        )

    @property
    def links(self) -> dict[str, Link]:
        """Of the parameters that are not fixed."""
        return {name: transform_to(constraint) for name, constraint in self._constraints.items()}

    def make(self, *parameters: Tensor) -> Distribution:
        """The distribution with these and the fixed parameters."""
        given: dict[str, Any] = {**dict(zip(self.links, parameters, strict=True)), **self.fixed}
        return self.family(**given)

    def noise_free(self, *parameters: Tensor) -> Tensor:
        """Its mean."""
        return self.make(*parameters).mean
