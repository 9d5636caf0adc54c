"""Gradient estimators for networks whose neurons have random discrete states, behind one interface.

| file | contents |
| --- | --- |
| `surrogate` | the interface: an estimator by its name |
| `score`, `arm`, `psa` | the score function with a baseline, ARM and ARSM, path sample-analytic |
| `enumeration` | the exact gradient, for small networks |
| `quality` | bias, variance and cosine similarity of an estimator, against the exact gradient |
| `sites` | the states as Pyro sites, which can be enumerated |
| `states` | the handler that the estimators share |
"""

from pyrostoch.estimators.enumeration import enumerated
from pyrostoch.estimators.quality import GradientQuality, gradient_quality
from pyrostoch.estimators.sites import StateSites
from pyrostoch.estimators.surrogate import ESTIMATORS, surrogate

__all__ = ["ESTIMATORS", "GradientQuality", "StateSites", "enumerated", "gradient_quality", "surrogate"]
