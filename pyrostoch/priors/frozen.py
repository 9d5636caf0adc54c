"""Parameters of a network that are drawn, and so not trained themselves."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from pyrostoch.priors.rules import fixed_parameters, owners

__all__ = ["freeze_random"]


def freeze_random(net: nn.Module, random: Collection[str]) -> None:
    """Fix a network's random parameters, and make those trainable again that another model had fixed.

    What the user has fixed stays so.

    Args:
        net: The network.
        random: Names of its random parameters.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> freeze_random(layer, ["weight"])
        >>> [parameter.requires_grad for parameter in layer.parameters()]
        [False, True]
    """
    parameters = dict(net.named_parameters(remove_duplicate=True))
    fixed_ids = fixed_parameters(net)
    for name, holder in owners(net).items():
        # Stored in the module, since copies of a parameter lose its attributes.
        frozen = holder.__dict__.setdefault("_pyrostoch_frozen", set())
        fixed = holder.__dict__.setdefault("_pyrostoch_fixed", set())
        last = name.rpartition(".")[2]
        if id(parameters[name]) in fixed_ids:
            fixed.add(last)
        if name in random:
            frozen.add(last)
            parameters[name].requires_grad_(False)
        elif last in frozen or last in getattr(holder, "priors", {}):
            # Frozen by another model, or by the layer's `prior=` which `prior` overrides: make it trainable again,
            # unless the user had fixed it before a rule made it random.
            frozen.discard(last)
            parameters[name].requires_grad_(last not in fixed)
