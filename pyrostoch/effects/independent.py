"""The mark of a sample site on whose draw no other site depends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["independent", "is_independent"]

_KEY = "pyrostoch_independent"


def independent(infer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Mark a sample site: no other site's distribution depends on its draw.

    Only such a weight may be replaced by its distribution, as local reparameterization, flipout and moments do; where
    the distribution of another site depended on the draw, that would be wrong. The guides of `pyrostoch.guides` mark
    their sites; in a guide of your own give the mark to `pyro.sample`:

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
    return {**(infer or {}), _KEY: True}


def is_independent(infer: Mapping[str, Any]) -> bool:
    """Whether a site is marked.

    Args:
        infer: The site's `infer` dictionary.

    Example:
        >>> is_independent(independent()), is_independent({})
        (True, False)
    """
    return bool(infer.get(_KEY))
