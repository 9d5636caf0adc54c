"""NUTS on a network with one hidden layer: a script for an environment with NumPyro, which knows nothing else of us.

Reads `x`, `y`, `x_test` and the settings from one archive of NumPy, writes draws of the function into another.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np


def main(task: str, result: str) -> None:
    """Sample the weights and write what the network computes on the test inputs.

    Args:
        task: Archive with the data and the settings.
        result: Archive to write.
    """
    jax: Any = importlib.import_module("jax")
    numpyro: Any = importlib.import_module("numpyro")
    infer: Any = importlib.import_module("numpyro.infer")
    diagnostics: Any = importlib.import_module("numpyro.diagnostics")
    normal = numpyro.distributions.Normal
    with np.load(task) as given:
        arrays = {name: given[name] for name in given.files}
    x, y, x_test = (arrays[name].astype(np.float32) for name in ("x", "y", "x_test"))
    features, hidden = x.shape[1], int(arrays["hidden"])

    def function(inputs: Any, weights: dict[str, Any]) -> Any:
        inner = jax.numpy.tanh(inputs @ weights["w1"].T + weights["b1"])
        return inner @ weights["w2"] + weights["b2"]

    def model(inputs: Any, targets: Any) -> None:
        weights = {
            "w1": numpyro.sample("w1", normal(0.0, features**-0.5).expand([hidden, features]).to_event(2)),
            "b1": numpyro.sample("b1", normal(0.0, 1.0).expand([hidden]).to_event(1)),
            "w2": numpyro.sample("w2", normal(0.0, hidden**-0.5).expand([hidden]).to_event(1)),
            "b2": numpyro.sample("b2", normal(0.0, 1.0)),
        }
        likelihood = normal(function(inputs, weights), float(arrays["noise"])).to_event(1)
        numpyro.sample("y", likelihood, obs=targets)

    sampler = infer.MCMC(
        infer.NUTS(model),
        num_warmup=int(arrays["warmup"]),
        num_samples=int(arrays["draws"]),
        num_chains=int(arrays["chains"]),
        chain_method="sequential",
        progress_bar=False,
    )
    sampler.run(jax.random.PRNGKey(int(arrays["seed"])), x, y, extra_fields=("num_steps", "diverging"))
    weights = sampler.get_samples(group_by_chain=True)
    functions = np.asarray(jax.vmap(jax.vmap(lambda w: function(x_test, w)))(weights))
    fields = sampler.get_extra_fields()
    np.savez(
        result,
        functions=functions,
        r_hat=np.asarray(diagnostics.split_gelman_rubin(functions)),
        ess=np.asarray(diagnostics.effective_sample_size(functions)),
        steps=np.mean(np.asarray(fields["num_steps"])),
        divergences=np.sum(np.asarray(fields["diverging"])),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
