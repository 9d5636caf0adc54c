"""Shared sample: one draw of every weight for the whole batch."""

from __future__ import annotations

from pyrostoch.effects.interpretation import Interpretation

__all__ = ["SharedSample"]


class SharedSample(Interpretation):
    """One draw of every weight for the whole batch: a sample of the joint distribution, correct for any module.

    Pyro and `torch.func.functional_call` do the same without an interpretation. As an explicit interpretation it also
    checks once that the network uses every weight that is drawn, and interpretations entered before it do not apply.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyrostoch.effects import call_network
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> def model(x):
        ...     weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 1), 1.0).to_event(2))
        ...     return call_network(net, {"weight": weight}, (x,))
        >>> with SharedSample() as shared:
        ...     out = model(torch.ones(3, 1))
        >>> bool((out == out[0]).all()), shared.treatments
        (True, {'weight': 'shared'})
    """

    name = "shared"
