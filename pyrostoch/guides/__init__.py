"""Guides: variational posteriors over a model's sites.

| guide | distribution of a weight |
| --- | --- |
| `Additive` | N(mu, sigma^2) |
| `WeightwiseAlpha` | N(mu, alpha mu^2), one alpha per weight |
| `NeuronwiseAlpha` | N(mu, alpha mu^2), one alpha per output neuron or channel |
| `LayerwiseAlpha` | N(mu, alpha mu^2), one alpha per weight tensor |
| `LowRank` | normal, with a covariance of low rank over the weights of all sites, or of each |
| `MatrixNormal` | normal, with a covariance of rows and one of columns |
| `FullCovariance` | normal, with a full covariance of a site's entries |
| `RankOne` | fitted, times a random factor for each output and each input, in several components |
| `Flow` | standard normal numbers through learned invertible transforms |
| `LastLayer` | normal, with a full covariance of each output's weights and bias, for one layer |
| `Laplace` | normal around trained weights, with the inverse curvature as covariance |
| `VarianceOnly` | mean zero: N(0, sigma^2), +-sigma with equal probability, or uniform on [-a, a] |
| `CategoricalWeights` | categorical over a few levels, times one scale per site |
| `Amortised` | that of another guide; it also draws random activations from q(h given x) |
| `BinomialWeights` | count of successes of n trials, times one scale per site |
| `MultinomialWeights` | counts of n trials that the weights of each output share, times one scale per site |
| `Delta` | a point: the maximum a posteriori estimate |
| `Ensemble` | an equal mixture of guides: of points, a deep ensemble |
| `Samples` | one of many given draws, such as those of MCMC |
| `Swag` | normal, around the iterates of stochastic gradient descent |
| `PerSite` | that of another guide, chosen by the site's name |
| `Guide` | any Pyro distribution: the base class for a guide of your own |

For a trained guide:

- `guide.zero_mean_gap()` measures the cost of setting its means to zero, and `to_variance_only` does it.
- `prune` removes the weights that are mostly noise; `magnitude_masks` removes as many by their size, as a baseline. The
  network that a `Pruning` exports is saved as a state dict, which `load_pruned` reads.
- `prune_groups` removes whole neurons and channels, and makes a smaller dense network of what is left, whose state dict
  `load_smaller` reads.
- `from_ivon` makes a guide of what the optimizer IVON has found.
- `refresh_batch_norm` estimates batch normalization's running statistics again for a network without noise.
"""

from __future__ import annotations

if __name__ != "pyrostoch.guides":
    raise ImportError(
        f"import pyrostoch.guides, not {__name__}: the folder at the repository's root is a link for readers, and a "
        "second copy of its classes would not be recognized"
    )

from pyrostoch.guides.additive import Additive
from pyrostoch.guides.alpha import LayerwiseAlpha, NeuronwiseAlpha, WeightwiseAlpha
from pyrostoch.guides.amortised import Amortised
from pyrostoch.guides.base import Guide
from pyrostoch.guides.binomial import BinomialWeights
from pyrostoch.guides.categorical import CategoricalWeights
from pyrostoch.guides.delta import Delta
from pyrostoch.guides.ensemble import Ensemble
from pyrostoch.guides.export import load_pruned
from pyrostoch.guides.flow import Flow
from pyrostoch.guides.full_covariance import FullCovariance
from pyrostoch.guides.gap import ZeroMeanGap, ZeroMeanRow
from pyrostoch.guides.ivon import from_ivon
from pyrostoch.guides.laplace import Laplace
from pyrostoch.guides.last_layer import LastLayer
from pyrostoch.guides.low_rank import LowRank
from pyrostoch.guides.matrix_normal import MatrixNormal
from pyrostoch.guides.multinomial import MultinomialWeights
from pyrostoch.guides.per_site import PerSite
from pyrostoch.guides.plain import plain_network
from pyrostoch.guides.prune import Pruning, PruningRow, magnitude_masks, prune
from pyrostoch.guides.prune_groups import GroupPruning, GroupPruningRow, prune_groups
from pyrostoch.guides.rank_one import RankOne
from pyrostoch.guides.refresh import refresh_batch_norm
from pyrostoch.guides.samples import Samples
from pyrostoch.guides.sets import GuideSet
from pyrostoch.guides.smaller import load_smaller
from pyrostoch.guides.sparse import SparseConv2d, SparseLinear
from pyrostoch.guides.swag import Swag
from pyrostoch.guides.variance_limit import to_variance_only
from pyrostoch.guides.variance_only import VarianceOnly

__all__ = [
    "Additive",
    "Amortised",
    "BinomialWeights",
    "CategoricalWeights",
    "Delta",
    "Ensemble",
    "Flow",
    "FullCovariance",
    "GroupPruning",
    "GroupPruningRow",
    "Guide",
    "GuideSet",
    "Laplace",
    "LastLayer",
    "LayerwiseAlpha",
    "LowRank",
    "MatrixNormal",
    "MultinomialWeights",
    "NeuronwiseAlpha",
    "PerSite",
    "Pruning",
    "PruningRow",
    "RankOne",
    "Samples",
    "SparseConv2d",
    "SparseLinear",
    "Swag",
    "VarianceOnly",
    "WeightwiseAlpha",
    "ZeroMeanGap",
    "ZeroMeanRow",
    "from_ivon",
    "load_pruned",
    "load_smaller",
    "magnitude_masks",
    "plain_network",
    "prune",
    "prune_groups",
    "refresh_batch_norm",
    "to_variance_only",
]
