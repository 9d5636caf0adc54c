"""The mark of a sample site whose draw no other site's distribution depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pyro.poutine.runtime import InferDict

__all__ = ["independent", "is_independent"]

_KEY = "pyrostoch_independent"


def independent(infer: InferDict | None = None) -> InferDict:
    """Mark a sample site: no other site's distribution depends on its draw.

    Local reparameterization, flipout and moment propagation replace a weight by its distribution. That is wrong where
    the distribution of another site depends on the weight's draw, so they replace only marked sites. The guides in
    `pyrostoch.guides` mark theirs; in your own guide, pass the mark to `pyro.sample`:

        pyro.sample("weight", dist.Normal(loc, scale).to_event(2), infer=independent())

    Args:
        infer: Other entries of the site's `infer` dictionary.

    Returns:
        A dictionary for `pyro.sample(..., infer=)`.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyrostoch.effects import LocalReparameterization, call_network
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> with LocalReparameterization() as local:
        ...     weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 1), 1.0).to_event(2), infer=independent())
        ...     out = call_network(net, {"weight": weight}, (torch.ones(3, 1),))
        >>> local.treatments
        {'weight': 'local (exact)'}
    """
    return cast(InferDict, {**(infer or {}), _KEY: True})


def is_independent(infer: Mapping[str, object] | None) -> bool:
    """Whether a site is marked by `independent`.

    Args:
        infer: The site's `infer` dictionary.

    Example:
        >>> is_independent(independent()), is_independent({})
        (True, False)
    """
    return bool(infer and infer.get(_KEY))
