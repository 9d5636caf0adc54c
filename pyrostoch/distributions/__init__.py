"""Distributions of a random weight, and the KL divergences between them.

=========================  =============================================================================================
``MultiplicativeNormal``   N(mu, alpha mu^2): Gaussian noise of relative variance alpha
``CenteredNormal``         N(0, sigma^2): the weight of a variance network
``SymmetricUniform``       U(-phi, phi)
``TwoPoint``               -phi or +phi, each with probability 1/2
``Levels``                 one of a few levels times a scale
``Grid``                   prior of it that favors no level
``LogUniform``             improper prior p(|w|) ~ 1/|w|
``ARD``                    prior N(0, tau^2) with tau^2 at its optimum for each weight
``ScaleMixture``           prior pi N(0, s1^2) + (1 - pi) N(0, s2^2)
``kl_log_uniform``         exact KL of N(mu, alpha mu^2) to ``LogUniform``, a function of log alpha
``kl_log_uniform_molchanov``  the usual fit to it
``kl_ard``                 KL of N(mu, alpha mu^2) to ``ARD``
``has_closed_form``        whether a KL divergence has a formula
``kl_sum``                 a KL divergence summed over all weights
=========================  =============================================================================================

A distribution whose mean is zero says so by ``zero_mean = True``; a prior of infinite mass by ``improper = True``.
Importing this package registers the closed forms (``kl_pairs``) with ``torch.distributions.kl_divergence``.
"""

from pyrostoch.distributions.alpha_kl import kl_ard, kl_log_uniform, kl_log_uniform_molchanov
from pyrostoch.distributions.ard import ARD
from pyrostoch.distributions.discrete import TwoPoint
from pyrostoch.distributions.gaussian import CenteredNormal, MultiplicativeNormal
from pyrostoch.distributions.improper import ImproperPrior
from pyrostoch.distributions.kl import has_closed_form, kl_sum
from pyrostoch.distributions.levels import Grid, Levels, matching_scale
from pyrostoch.distributions.log_uniform import LogUniform
from pyrostoch.distributions.mixture import ScaleMixture
from pyrostoch.distributions.symmetric import SymmetricDistribution
from pyrostoch.distributions.uniform import SymmetricUniform

__all__ = [
    "ARD",
    "CenteredNormal",
    "Grid",
    "ImproperPrior",
    "Levels",
    "LogUniform",
    "MultiplicativeNormal",
    "ScaleMixture",
    "SymmetricDistribution",
    "SymmetricUniform",
    "TwoPoint",
    "has_closed_form",
    "kl_ard",
    "kl_log_uniform",
    "kl_log_uniform_molchanov",
    "kl_sum",
    "matching_scale",
]
