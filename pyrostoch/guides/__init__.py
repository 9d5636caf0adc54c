"""Guides: variational posteriors over a model's sites.

| guide | distribution of a weight |
| --- | --- |
| `Additive` | N(mu, sigma^2) |
| `WeightwiseAlpha` | N(mu, alpha mu^2), an alpha for every weight |
| `NeuronwiseAlpha` | the same, an alpha for every output neuron or channel |
| `LayerwiseAlpha` | the same, an alpha for every weight tensor |
| `VarianceOnly` | N(0, sigma^2), two points, or uniform: mean zero |
| `CategoricalWeights` | one of a few levels, times a scale |
| `PerSite` | different guides for different sites |
| `Guide` | the base class for your own |

What they tell once trained: `guide.zero_mean_gap()` (what their means are worth), `to_variance_only` (the variance
network they are close to), `prune` (the weights that are noise) beside `magnitude_masks`. What a pruning exports is
saved as a state dict, and `load_pruned` reads it; `refresh_batch_norm` fits its normalization to a network without
noise.
"""

from __future__ import annotations

if __name__ != "pyrostoch.guides":
    raise ImportError(
        f"import pyrostoch.guides, not {__name__}: the folder at the repository's root is a link for readers, and a "
        "second copy of its classes would not be recognized"
    )

from pyrostoch.guides.additive import Additive
from pyrostoch.guides.alpha import LayerwiseAlpha, NeuronwiseAlpha, WeightwiseAlpha
from pyrostoch.guides.base import Guide
from pyrostoch.guides.categorical import CategoricalWeights
from pyrostoch.guides.export import load_pruned
from pyrostoch.guides.gap import ZeroMeanGap, ZeroMeanRow
from pyrostoch.guides.per_site import PerSite
from pyrostoch.guides.prune import Pruning, PruningRow, magnitude_masks, prune
from pyrostoch.guides.refresh import refresh_batch_norm
from pyrostoch.guides.sparse import SparseConv2d, SparseLinear
from pyrostoch.guides.variance_limit import to_variance_only
from pyrostoch.guides.variance_only import VarianceOnly

__all__ = [
    "Additive",
    "CategoricalWeights",
    "Guide",
    "LayerwiseAlpha",
    "NeuronwiseAlpha",
    "PerSite",
    "Pruning",
    "PruningRow",
    "SparseConv2d",
    "SparseLinear",
    "VarianceOnly",
    "WeightwiseAlpha",
    "ZeroMeanGap",
    "ZeroMeanRow",
    "load_pruned",
    "magnitude_masks",
    "prune",
    "refresh_batch_norm",
    "to_variance_only",
]
