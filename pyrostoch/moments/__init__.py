"""Moment propagation: mean and (co)variance through each operation of a network, in place of samples.

A `Moments` object takes the place of a tensor of activations. A torch function called with it is answered by a rule,
which computes the moments of the result from those of the arguments. Activation functions are described by units:
objects that know the mean, variance and covariance of a function of Gaussian variables.

| file | contents |
| --- | --- |
| `gaussian` | `Moments`: mean with variances or a full covariance, linked to the moments it was computed from |
| `table` | the table of rules, and the errors for functions without a rule |
| `affine`, `shapes`, `pooling`, `arithmetic`, `activations` | the rules |
| `units`, `power`, `smooth` | the units: piecewise linear functions, rectified powers, smooth functions |
| `bivariate` | the integral in the covariance of threshold and rectified units, with exact derivatives |
| `predictive` | predictions and log-likelihoods from the moments of a network's output |
"""

from pyrostoch.moments import activations, affine, arithmetic, pooling, shapes
from pyrostoch.moments.bivariate import bivariate_cdf, density_integral
from pyrostoch.moments.gaussian import Moments, MomentSettings
from pyrostoch.moments.power import RectifiedPower
from pyrostoch.moments.smooth import Gelu, Probit, Smooth
from pyrostoch.moments.table import MissingRuleError, rule
from pyrostoch.moments.units import Knot, Piecewise, activate

__all__ = [
    "Gelu",
    "Knot",
    "MissingRuleError",
    "MomentSettings",
    "Moments",
    "Piecewise",
    "Probit",
    "RectifiedPower",
    "Smooth",
    "activate",
    "activations",
    "affine",
    "arithmetic",
    "bivariate_cdf",
    "density_integral",
    "pooling",
    "rule",
    "shapes",
]
