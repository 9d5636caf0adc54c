"""Draws from a guide, or from MCMC, in ArviZ's format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import MCMC
from pyro.poutine import Trace
from torch import Tensor

from pyrostoch._checks import check_count, name_list
from pyrostoch._manual import see
from pyrostoch.diagnose.groups import GroupOptions, collect_groups
from pyrostoch.guides.temperature import temperature_text, temperatures_of
from pyrostoch.prediction.readouts import device_of, evaluating, seeded
from pyrostoch.protocols import Data, Guide, Inputs, Model
from pyrostoch.sites import trace_of

__all__ = ["from_mcmc", "to_arviz"]


def to_arviz(
    model: Model,
    guide: Guide,
    data: Data,
    *,
    draws: int = 200,
    chains: int = 1,
    sites: Iterable[str] | str | None = None,
    thin: int = 1,
    posterior_predictive: bool = True,
    log_likelihood: bool = True,
    max_bytes: float = 2e9,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
) -> Any:
    """Draw from a guide into ArviZ's format, for `az.summary`, `az.loo`, `az.plot_*` and comparison with MCMC.

    Each draw has one value of each weight for all examples, and all groups come from the same draws. The groups are
    `posterior` (the sites by name, with dimensions named after them: `fc1.weight_out`, `fc1.weight_in`);
    `posterior_predictive`, `log_likelihood` (one value per example) and `observed_data`, whose variable is `obs`. The
    draws from a guide are independent.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: `(x, y)`, a `Dataset` or a `DataLoader` that keeps its order.
        draws: Number of draws of each chain.
        chains: Number of chains. All chains are alike, but some diagnostics need several.
        sites: Names or shell patterns of the sites in `posterior`; all by default.
        thin: Only every `thin`-th draw is made and kept; the coordinate is its number before thinning.
        posterior_predictive: Whether observations are drawn.
        log_likelihood: Whether the log likelihood of each example is computed, which `az.loo` needs.
        max_bytes: Largest size of the result in bytes; a larger one is refused before anything is drawn.
        batch_size: Number of examples that run through the network at a time.
        device: The model's device, to which the data are moved batch by batch; found by default.
        seed: Seed of the draws, with which torch's random state is restored afterwards; without it, draws continue from
            the present random state.

    Returns:
        An `InferenceData` (ArviZ 0.x) or a `DataTree` (ArviZ 1.x).

    Raises:
        ValueError: The result would be too large; a name or pattern matches no site; `log_likelihood` is asked for of a
            pseudo-likelihood; or the data are empty, not finite, in another order at each pass, or do not fit.

    Example:
        >>> import warnings, pyrostoch as ps
        >>> x = torch.randn(20, 2)
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(), num_data=20)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # ArviZ announces its next version
        ...     posterior = to_arviz(model, ps.guides.Additive(model), (x, x[:, :1]), draws=5).posterior
        >>> dict(posterior["weight"].sizes)
        {'chain': 1, 'draw': 5, 'weight_out': 1, 'weight_in': 2}

    References:
        Kumar, Carroll, Hartikainen, Martin, "ArviZ, a unified library for exploratory analysis of Bayesian models",
        2019; Vehtari, Gelman, Gabry, "Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC", 2017.
    """
    for what, value in (("draws", draws), ("chains", chains), ("thin", thin)):
        check_count(what, value)
    options = GroupOptions(chains, -(-draws // thin), thin, sites, posterior_predictive, log_likelihood, max_bytes)

    def guide_trace(index: int, x: Inputs) -> Trace:
        return trace_of(guide, x)

    device = device_of(model, guide, device)
    with seeded(seed, device), evaluating(model, guide):
        attrs = {"guide": type(guide).__name__}
        if trained := temperature_text(temperatures_of(guide)):
            attrs["temperature"] = trained
        return collect_groups(model, guide_trace, data, options, batch_size, device, attrs)


def from_mcmc(
    mcmc: MCMC,
    model: Model,
    data: Data,
    *,
    sites: Iterable[str] | str | None = None,
    thin: int = 1,
    posterior_predictive: bool = True,
    log_likelihood: bool = True,
    max_bytes: float = 2e9,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
) -> Any:
    """Convert a finished MCMC run on a model into the groups of `to_arviz`, so that it can be compared with a guide.

    Args:
        mcmc: A `pyro.infer.MCMC` that was run on `model`.
        model: The model.
        data: As for `to_arviz`, for the groups other than `posterior`; not necessarily the data of the run.
        sites: As for `to_arviz`.
        thin: Keep every `thin`-th draw of each chain; the coordinate is its number before thinning.
        posterior_predictive: As for `to_arviz`.
        log_likelihood: As for `to_arviz`.
        max_bytes: As for `to_arviz`.
        batch_size: As for `to_arviz`.
        device: As for `to_arviz`.
        seed: Seed of the drawn observations.

    Returns:
        An `InferenceData` (ArviZ 0.x) or a `DataTree` (ArviZ 1.x).

    Raises:
        TypeError: `mcmc` is not an MCMC run.
        ValueError: A prior is improper; the run has no samples; or as for `to_arviz`.

    Example:
        >>> import warnings, pyrostoch as ps
        >>> from pyro.infer import MCMC, NUTS
        >>> x = torch.linspace(-1, 1, 10).unsqueeze(1)
        >>> model = ps.BayesianModel(torch.nn.Linear(1, 1, bias=False), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(), num_data=10)
        >>> mcmc = MCMC(NUTS(model), num_samples=3, warmup_steps=2, disable_progbar=True)
        >>> mcmc.run(x, x)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # ArviZ announces its next version
        ...     found = from_mcmc(mcmc, model, (x, x))
        >>> dict(found.posterior["weight"].sizes)
        {'chain': 1, 'draw': 3, 'weight_out': 1, 'weight_in': 1}

    References:
        Hoffman, Gelman, "The No-U-Turn sampler: adaptively setting path lengths in Hamiltonian Monte Carlo", 2014.
    """
    check_count("thin", thin)
    if not callable(getattr(mcmc, "get_samples", None)):
        raise TypeError(f"mcmc: expected a pyro.infer.MCMC after its run, got {type(mcmc).__name__}")
    improper = [site.name for site in getattr(model, "sites", {}).values() if site.improper]
    if improper:
        raise ValueError(
            f"model: the prior of {name_list(improper)} is improper, so there is no posterior to sample by MCMC; "
            "give proper priors (Normal, Laplace, StudentT, ScaleMixture)"
            f"{see('how-to/arviz')}"
        )
    samples: dict[str, Tensor] = {
        name: values[:, ::thin] for name, values in mcmc.get_samples(group_by_chain=True).items()
    }
    if not samples:
        raise ValueError("mcmc: expected samples, got none; call mcmc.run(x, y) first")
    chains, kept = next(iter(samples.values())).shape[:2]
    options = GroupOptions(chains, kept, thin, sites, posterior_predictive, log_likelihood, max_bytes)
    used_device = device_of(model, None, device)

    def stored_draw(index: int) -> None:
        for name, values in samples.items():
            value = values[index // kept, index % kept].to(used_device)
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    def stored_trace(index: int, x: Inputs) -> Trace:
        return trace_of(stored_draw, index)

    kernel = type(getattr(mcmc, "kernel", mcmc)).__name__
    with seeded(seed, used_device), evaluating(model):
        return collect_groups(model, stored_trace, data, options, batch_size, used_device, {"sampler": kernel})
