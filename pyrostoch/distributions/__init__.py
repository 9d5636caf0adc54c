r"""Distributions of a random weight, and the KL divergences between them.

| name | what it is |
| --- | --- |
| `MultiplicativeNormal` | N(mu, alpha mu^2): Gaussian noise with relative variance alpha |
| `CenteredNormal` | N(0, sigma^2): a weight of a variance network |
| `SymmetricUniform` | U(-phi, phi) |
| `TwoPoint` | -phi or +phi, each with probability 1/2 |
| `Levels` | one of a few levels times a scale |
| `BinomialLevels` | `Levels` that count the successes of n trials |
| `SignedMultinomial` | kernels whose weights share n trials |
| `Grid` | prior for `Levels` under which all levels are equally likely |
| `SymmetricBinomial` | prior for `Levels` under which their number is Binomial(n, 1/2) |
| `UniformMultinomial` | prior for `SignedMultinomial` under which a trial falls on all cells alike |
| `LogUniform` | improper prior p(\|w\|) ~ 1/\|w\| |
| `ARD` | prior N(0, tau^2) with the optimal tau^2 for each weight |
| `ScaleMixture` | prior pi N(0, s1^2) + (1 - pi) N(0, s2^2) |
| `PartlyFixed` | a distribution some of whose entries are constants |
| `LowRankNormal` | a variance for each weight and a covariance of low rank |
| `MatrixNormal` | a covariance of a weight's rows and one of its columns |
| `FullNormal` | a full covariance of a weight's entries |
| `KroneckerNormal` | a covariance that is diagonal in a basis of rows times one of columns |
| `TiedNormal` | a full covariance of the weights of several sites |
| `RowsNormal`, `RowsBias` | a last layer with a full covariance of each output's weights and bias |
| `RankOneWeights` | a fixed weight times a random factor for each output and each input |
| `FlowWeights` | standard normal numbers through invertible transforms |
| `RankOne` | prior of the factors of `RankOneWeights` |
| `JointWeights` | base class of distributions of a whole weight, whose entries depend on each other |
| `SharedDraw` | base class of what ties the weights of several sites in one draw |
| `LowRankDraw`, `ComponentDraw`, `RowsDraw`, `TiedDraw` | the classes of this kind |
| `ImproperPrior` | base class of the priors with infinite mass |
| `SymmetricDistribution` | base class of `SymmetricUniform` and `TwoPoint` |
| `kl_log_uniform` | exact KL of N(mu, alpha mu^2) to `LogUniform`, a function of log alpha |
| `kl_log_uniform_molchanov` | the usual approximation of it |
| `kl_ard` | KL of N(mu, alpha mu^2) to `ARD`, a function of log alpha |
| `has_closed_form` | whether a KL divergence has a closed form |
| `kl_sum` | a KL divergence summed over all weights |
| `matching_scale` | the scale at which a grid of levels matches the mean square of given weights |

Distributions with mean zero have `zero_mean = True`, priors with infinite mass `improper = True`.
Importing this package registers the closed forms (`kl_pairs`, `kl_joint`) with `torch.distributions.kl_divergence`.
"""

from pyrostoch.distributions.alpha_kl import kl_ard, kl_log_uniform, kl_log_uniform_molchanov
from pyrostoch.distributions.ard import ARD
from pyrostoch.distributions.binomial import BinomialLevels, SymmetricBinomial
from pyrostoch.distributions.discrete import TwoPoint
from pyrostoch.distributions.flow import FlowWeights
from pyrostoch.distributions.full_normal import FullNormal
from pyrostoch.distributions.gaussian import CenteredNormal, MultiplicativeNormal
from pyrostoch.distributions.improper import ImproperPrior
from pyrostoch.distributions.joint import JointWeights
from pyrostoch.distributions.kl import has_closed_form, kl_sum
from pyrostoch.distributions.kronecker_normal import KroneckerNormal
from pyrostoch.distributions.levels import Grid, Levels, matching_scale
from pyrostoch.distributions.log_uniform import LogUniform
from pyrostoch.distributions.low_rank import LowRankNormal
from pyrostoch.distributions.low_rank_draw import LowRankDraw
from pyrostoch.distributions.matrix_normal import MatrixNormal
from pyrostoch.distributions.mixture import ScaleMixture
from pyrostoch.distributions.multinomial import SignedMultinomial, UniformMultinomial
from pyrostoch.distributions.partly_fixed import PartlyFixed
from pyrostoch.distributions.rank_one import ComponentDraw, RankOne, RankOneWeights
from pyrostoch.distributions.rows_normal import RowsBias, RowsDraw, RowsNormal
from pyrostoch.distributions.shared_draw import SharedDraw
from pyrostoch.distributions.symmetric import SymmetricDistribution
from pyrostoch.distributions.tied_normal import TiedDraw, TiedNormal
from pyrostoch.distributions.uniform import SymmetricUniform

__all__ = [
    "ARD",
    "BinomialLevels",
    "CenteredNormal",
    "ComponentDraw",
    "FlowWeights",
    "FullNormal",
    "Grid",
    "ImproperPrior",
    "JointWeights",
    "KroneckerNormal",
    "Levels",
    "LogUniform",
    "LowRankDraw",
    "LowRankNormal",
    "MatrixNormal",
    "MultiplicativeNormal",
    "PartlyFixed",
    "RankOne",
    "RankOneWeights",
    "RowsBias",
    "RowsDraw",
    "RowsNormal",
    "ScaleMixture",
    "SharedDraw",
    "SignedMultinomial",
    "SymmetricBinomial",
    "SymmetricDistribution",
    "SymmetricUniform",
    "TiedDraw",
    "TiedNormal",
    "TwoPoint",
    "UniformMultinomial",
    "has_closed_form",
    "kl_ard",
    "kl_log_uniform",
    "kl_log_uniform_molchanov",
    "kl_sum",
    "matching_scale",
]
