"""A guide of normalizing flows: each site's weights are transformed from standard normal numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyrostoch._manual import see
from pyrostoch.distributions import FlowWeights
from pyrostoch.guides.joint import refuse_constants
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.guides.starts import Start
from pyrostoch.priors.base import map_tensors
from pyrostoch.sites import Site, site_key

__all__ = ["Flow"]

#: A transform of vectors: torch's, Pyro's, or a module that returns one when it is called, as zuko's do.
Step = Transform | nn.Module


class Flow(NormalStart):
    r"""$w = \mu + \sigma \circ T(z)$ with standard normal z, where T is a chain of learned invertible transforms.

    `transform` makes the chain of a site from its number of weights. A transform may be torch's, Pyro's, or a module
    that returns one when it is called, as those of zuko do (`zuko.flows.autoregressive.MaskedAutoregressiveTransform`).
    The entries of a site depend on each other in any way that T can express; sites are independent. Networks inside T
    grow with the number of weights, so that this is for small sites; cover the others by `PerSite`.

    The KL is estimated from the draw of each step. Mean and variance of the weights have no closed form, so that
    predictions are by draws. Local reparameterization draws a weight for each example in linear layers, exactly.

    Args:
        model: A `BayesianModel`.
        transform: Function from the number of weights of a site to a transform, or a sequence of them.
        init_loc: Initial $\mu$, a number or a function of the site; by default the network's own values.
        init_scale: Initial $\sigma$, a number or a function of the site.
        sites: Names of the sites covered; all by default.

    Raises:
        TypeError: `transform` makes something else.
        ValueError: A transform is for vectors of another size, or some entries of a site are constant.

    References:
        Rezende, Mohamed, "Variational inference with normalizing flows", 2015; Kingma, Salimans, Jozefowicz, Chen,
        Sutskever, Welling, "Improved variational inference with inverse autoregressive flow", 2016.

    Example:
        >>> import pyrostoch as ps
        >>> from pyro.distributions.transforms import affine_autoregressive
        >>> model = ps.BayesianModel(nn.Linear(3, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = Flow(model, affine_autoregressive)
        >>> guide()["weight"].shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Callable[[int], Step | Sequence[Step]],
        *,
        init_loc: Start | None = None,
        init_scale: Start = 1e-2,
        sites: Iterable[str] | None = None,
    ) -> None:
        super().__init__(model, init_loc=init_loc, init_scale=init_scale, sites=sites)
        self.transforms_of = nn.ModuleDict()
        for name in self.weight_names:
            loc = self.parameters_for(name)["loc"]
            self.transforms_of[site_key(name)] = _chain(transform, name, loc)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc` and `log_scale`, in the weight's shape; the transforms have parameters of their own."""
        refuse_constants(site, "Flow")
        return self.normal_start(site)

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The distribution of the site, an event of the weight's shape."""
        chain: Any = self.transforms_of[site_key(site)]
        transforms = [_transform(step) for step in chain]
        return FlowWeights(parameters["loc"], parameters["log_scale"].exp(), transforms)

    def parameters_for(self, site: str) -> dict[str, nn.Parameter]:
        """The variational parameters of one site, by name, those of its transforms included.

        Args:
            site: The site's name.

        Raises:
            ValueError: The guide has no such site.
        """
        own = super().parameters_for(site)
        chain = getattr(self, "transforms_of", {})
        if site_key(site) in chain:
            own |= dict(chain[site_key(site)].named_parameters())
        return own


class _Held(nn.Module):
    """A transform that is no module: its tensors are buffers or parameters, which move and are saved."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self._base = transform
        self._names: list[str] = []
        map_tensors(transform, self._keep)

    def _keep(self, value: Tensor) -> Tensor:
        name = f"tensor{len(self._names)}"
        self._names.append(name)
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, nn.Parameter(value.detach().clone()))
        else:
            self.register_buffer(name, value.detach().clone())
        return value

    def transform(self) -> Transform:
        """The transform with the present tensors."""
        present = iter([getattr(self, name) for name in self._names])
        found: Transform = map_tensors(self._base, lambda value: next(present))
        return found


def _chain(transform: Callable[[int], Any], site: str, loc: Tensor) -> nn.ModuleList:
    """The transforms of a site as modules, tried on numbers of the site's size."""
    made = transform(loc.numel())
    steps = [made] if isinstance(made, Transform | nn.Module) else list(made)
    wrong = [step for step in steps if not isinstance(step, Transform | nn.Module)]
    if wrong:
        raise TypeError(
            f"guide Flow, transform at site {site!r}: expected a transform, a module that returns one, or several of "
            f"them, got {type(wrong[0]).__name__}{see('how-to/choose_guide')}"
        )
    chain = nn.ModuleList([step if isinstance(step, nn.Module) else _Held(step) for step in steps])
    chain.to(dtype=loc.dtype, device=loc.device)
    with torch.no_grad():
        x = torch.zeros(loc.numel(), dtype=loc.dtype, device=loc.device)
        for step in chain:
            used = _transform(step)
            try:
                y = used(x)
            except (RuntimeError, ValueError) as error:
                raise _wrong_size(used, site, loc) from error
            if y.shape != x.shape:
                raise _wrong_size(used, site, loc)
            x = y
    return chain


def _wrong_size(transform: Transform, site: str, loc: Tensor) -> ValueError:
    return ValueError(
        f"guide Flow, transform at site {site!r}: expected one of vectors with {loc.numel()} entries, the number of "
        f"weights, but {type(transform).__name__} does not take and return such a vector; make it from the number that "
        f"the function gets: transform=lambda size: affine_autoregressive(size){see('how-to/choose_guide')}"
    )


def _transform(step: Any) -> Transform:
    """The transform that a module of the chain is, holds, or returns."""
    if isinstance(step, _Held):
        step = step.transform()
    found: Transform = step if isinstance(step, Transform) else step()
    return found
