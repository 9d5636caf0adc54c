"""Moments: mean and (co)variance through each operation of a network, in place of samples.

| file | what it does |
| --- | --- |
| `bivariate` | the integral that threshold, rectified and k-state units share, with exact derivatives |
| `units`, `power`, `smooth` | mean, variance and covariance of a function of Gaussian variables |
| `gaussian` | the object that flows through a network in place of a tensor |
| `table` | which rule answers which torch function, and what is said where there is none |
| `affine`, `shapes`, `pooling`, `arithmetic`, `activations` | the rules |
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
    "Moments",
    "Piecewise",
    "Probit",
    "RectifiedPower",
    "Smooth",
    "MomentSettings",
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
