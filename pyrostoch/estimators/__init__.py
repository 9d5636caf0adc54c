"""Estimators of the gradient of an expected loss over neurons with states, behind one interface.

| file | what it does |
| --- | --- |
| `surrogate` | the estimators by name |
| `score`, `arm`, `psa` | the score function with a baseline, ARM and ARSM, path-sample-analytic |
| `enumeration` | the oracle for small networks |
| `quality` | bias, variance and cosine of each, against the oracle |
| `sites` | the states as Pyro sites, which can be enumerated |
| `states` | the handlers they share |
"""

from pyrostoch.estimators.enumeration import enumerated
from pyrostoch.estimators.quality import GradientQuality, gradient_quality
from pyrostoch.estimators.sites import StateSites
from pyrostoch.estimators.surrogate import ESTIMATORS, surrogate

__all__ = ["ESTIMATORS", "GradientQuality", "StateSites", "enumerated", "gradient_quality", "surrogate"]
