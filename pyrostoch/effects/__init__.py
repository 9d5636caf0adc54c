"""Interpretations: how the randomness of a network's weights is treated while its code runs.

An interpretation is a Pyro handler, entered with `with`. The network's code does not change.

| name | class | a random weight is ... |
| --- | --- | --- |
| `"shared"` | `SharedSample` | one draw for the whole batch |
| `"local"` | `LocalReparameterization` | replaced by the distribution of its layer's output |
| `"flipout"` | `Flipout` | one draw with signs flipped for each example |
| `"mean"` | `MeanPropagation` | its mean |
| `"noise-free"` | `NoiseFree` | its mean; random activations lose their noise |
| `"moments"` | `MomentPropagation` | its mean and variance; activations carry mean and variance too |
| `"linearized"` | `Linearization` | its mean; the output's covariance is that of its linear part in the weights |

`Interpretation` is the base class, and explains how to write another one. `frozen_noise` fixes an ensemble of draws, so
that a loss becomes a deterministic function.
"""

from __future__ import annotations

from pyrostoch.effects.active import inside_network
from pyrostoch.effects.checkpointing import checkpoint
from pyrostoch.effects.flipout import Flipout
from pyrostoch.effects.frozen import frozen_noise
from pyrostoch.effects.independent import independent
from pyrostoch.effects.interpretation import Interpretation, base_distribution
from pyrostoch.effects.linearization import Linearization
from pyrostoch.effects.local import LocalReparameterization
from pyrostoch.effects.mean import MeanPropagation, NoiseFree
from pyrostoch.effects.moments import MomentPropagation
from pyrostoch.effects.network import call_network
from pyrostoch.effects.shared import SharedSample

__all__ = [
    "Flipout",
    "Interpretation",
    "Linearization",
    "LocalReparameterization",
    "MeanPropagation",
    "MomentPropagation",
    "NoiseFree",
    "SharedSample",
    "base_distribution",
    "call_network",
    "checkpoint",
    "frozen_noise",
    "independent",
    "inside_network",
]
