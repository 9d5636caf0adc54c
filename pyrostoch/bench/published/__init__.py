"""The benches: a file for each table, and files with networks and trials that only one table uses.

| bench | what it compares | helper files |
| --- | --- | --- |
| `variance` | variance layers and dropout: accuracy with mean weights, one sample and many | `toy` |
| `elbo` | the ELBO of the alpha guides and the additive one, from a cold or warm start, term by term | |
| `pruning` | pruning by alpha and by magnitude | `magnitude` |
| `speed` | a training step of several libraries; averaged predictions, memory, import time | in `bench.speed` |
| `moments` | one pass by moments and Monte Carlo, for several networks and single units | `gaps`, `posterior` |
| `homeostasis` | transfer functions and accuracy of binary neurons when the noise changes | |
| `trident` | ternary neurons, gradients and weights; gradient estimators | `ternary`, `discrete` |
| `layers` | stochastic layers by architecture, embodiment and distribution | `layers_networks` |
| `conditional` | noise for each class, under selections by the input, static, or by label | `conditional_networks` |
| `posteriors` | structured guides beside NUTS; time of their steps | `posterior_trial`, `posterior_steps` |
| `rivals` | posteriors of every kind at equal training time | `rivals_stages`, `rivals_trial`, `rivals_fits` |
| `privacy` | training on few clean and many obfuscated examples | `conditional_networks` |

`binary` has the networks of binary neurons of `moments` and `homeostasis`.
"""

from __future__ import annotations

from pyrostoch.bench.case import Bench
from pyrostoch.bench.published.conditional import CONDITIONAL
from pyrostoch.bench.published.elbo import ELBO_TABLE
from pyrostoch.bench.published.homeostasis import HOMEOSTASIS
from pyrostoch.bench.published.layers import LAYERS
from pyrostoch.bench.published.moments import MOMENTS
from pyrostoch.bench.published.posteriors import POSTERIORS
from pyrostoch.bench.published.privacy import PRIVACY
from pyrostoch.bench.published.pruning import PRUNING
from pyrostoch.bench.published.rivals import RIVALS
from pyrostoch.bench.published.trident import TRIDENT
from pyrostoch.bench.published.variance import VARIANCE
from pyrostoch.bench.speed import SPEED

__all__ = ["BENCHES"]

#: The benches by name, in the order of the results page.
BENCHES: dict[str, Bench] = {
    bench.name: bench
    for bench in (
        VARIANCE,
        ELBO_TABLE,
        PRUNING,
        SPEED,
        MOMENTS,
        HOMEOSTASIS,
        TRIDENT,
        LAYERS,
        CONDITIONAL,
        PRIVACY,
        POSTERIORS,
        RIVALS,
    )
}
