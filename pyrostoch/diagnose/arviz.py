"""Posterior draws as ArviZ data: posterior, posterior predictive, pointwise log likelihood, observed data."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from pyrostoch._checks import name_list
from pyrostoch._version import __version__
from pyrostoch.effects import SharedSample
from pyrostoch.infer.batches import as_batches
from pyrostoch.model import Site, latent_sites
from pyrostoch.prediction.readouts import check_targets, evaluating, home_of, observe, seeded, visit

__all__ = ["from_mcmc", "to_arviz"]

_SPACE = {3: ("w",), 4: ("h", "w"), 5: ("d", "h", "w")}


@dataclass(frozen=True)
class _Plan:
    """What is collected: how many draws, which groups, and how large they may become."""

    chains: int
    kept: int
    thin: int
    sites: Iterable[str] | str | None
    posterior_predictive: bool
    log_likelihood: bool
    max_bytes: float

    @property
    def total(self) -> int:
        return self.chains * self.kept


def to_arviz(
    model: Any,
    guide: Any,
    data: Any,
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

    Every draw takes one value of each weight for all examples, so the groups belong together. The groups are
    `posterior` (the sites by name, dimensions named after them: `fc1.weight_out`, `fc1.weight_in`),
    `posterior_predictive`, `log_likelihood` (one value an example) and `observed_data` (all `obs`). A guide's draws are
    independent.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        data: `(x, y)`, a `Dataset` or a `DataLoader` that keeps its order.
        draws: Draws of each chain.
        chains: Chains; they differ in nothing, but some diagnostics ask for several.
        sites: Names or shell patterns of the sites put into `posterior`; all by default.
        thin: Only every `thin`-th draw is made and kept; its number stays the coordinate.
        posterior_predictive: Whether observations are drawn.
        log_likelihood: Whether the log likelihood of each example is kept, as `az.loo` needs.
        max_bytes: What would need more memory than this is refused before it is drawn.
        batch_size: Examples run through the network at a time.
        device: Where the data are moved, batch by batch: the model's own device, which is also the default.
        seed: Seed of the draws; torch's random state is left as it was.

    Returns:
        An `InferenceData` (ArviZ 0.x) or a `DataTree` (ArviZ 1.x).

    Raises:
        ValueError: Too large; a site's name or pattern matches nothing; the data are empty, not finite, in a changing
            order, or do not fit the model.

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
        _check_count(what, value)
    plan = _Plan(chains, -(-draws // thin), thin, sites, posterior_predictive, log_likelihood, max_bytes)

    def source(index: int, x: Any) -> Any:
        return poutine.trace(guide).get_trace(x)

    home = home_of(model, guide, device)
    with seeded(seed, home), evaluating(model, guide):
        return _collect(model, source, data, plan, batch_size, home, {"guide": type(guide).__name__})


def from_mcmc(
    mcmc: Any,
    model: Any,
    data: Any,
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
    """Put a finished MCMC run on a model into the groups of `to_arviz`, so that it can be compared with a guide.

    Args:
        mcmc: A `pyro.infer.MCMC` that was run on `model`.
        model: The model.
        data: As for `to_arviz`; the predictive groups are about these data.
        sites: As for `to_arviz`.
        thin: Keep every `thin`-th draw of each chain, its number as the coordinate.
        posterior_predictive: As for `to_arviz`.
        log_likelihood: As for `to_arviz`.
        max_bytes: As for `to_arviz`.
        batch_size: As for `to_arviz`.
        device: As for `to_arviz`.
        seed: Seed of the drawn observations.

    Returns:
        An `InferenceData` (ArviZ 0.x) or a `DataTree` (ArviZ 1.x).

    Raises:
        TypeError: `mcmc` has no samples to give.
        ValueError: A prior is improper, the run has no samples, or as for `to_arviz`.

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
        Hoffman, Gelman, "The No-U-Turn Sampler", 2014.
    """
    _check_count("thin", thin)
    if not callable(getattr(mcmc, "get_samples", None)):
        raise TypeError(f"mcmc: expected a pyro.infer.MCMC after its run, got {type(mcmc).__name__}")
    improper = [site.name for site in getattr(model, "sites", {}).values() if site.improper]
    if improper:
        raise ValueError(
            f"model: the prior of {name_list(improper)} is improper, so there is no posterior to sample by MCMC; "
            "give proper priors (Normal, Laplace, StudentT, ScaleMixture)"
        )
    samples: dict[str, Tensor] = {
        name: values[:, ::thin] for name, values in mcmc.get_samples(group_by_chain=True).items()
    }
    if not samples:
        raise ValueError("mcmc: expected samples, got none; call mcmc.run(x, y) first")
    chains, kept = next(iter(samples.values())).shape[:2]
    plan = _Plan(chains, kept, thin, sites, posterior_predictive, log_likelihood, max_bytes)
    home = home_of(model, None, device)

    def replayed(index: int) -> None:
        for name, values in samples.items():
            value = values[index // kept, index % kept].to(home)
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    def source(index: int, x: Any) -> Any:
        return poutine.trace(replayed).get_trace(index)

    kernel = type(getattr(mcmc, "kernel", mcmc)).__name__
    with seeded(seed, home), evaluating(model):
        return _collect(model, source, data, plan, batch_size, home, {"sampler": kernel})


def _collect(
    model: Any,
    source: Callable[[int, Any], Any],
    data: Any,
    plan: _Plan,
    batch_size: int,
    home: torch.device | None,
    attrs: dict[str, str],
) -> Any:
    """Run the model on every draw of a source and put the results into ArviZ's groups."""
    batches = as_batches(data, batch_size)
    count = batches.num_data
    x0, y0 = next(iter(visit(batches, home)))
    with SharedSample():
        trace = source(0, x0)
    latents = {n: node["value"] for n, node in latent_sites(trace) if not node["infer"].get("is_auxiliary")}
    chosen = {name: latents[name] for name in _choose(plan.sites, list(latents))}
    observed = np.empty((count, *y0.shape[1:]), _numpy(y0[:1]).dtype)
    _check_memory(plan, chosen, observed)
    posterior = {n: np.empty((plan.total, *v.shape), _numpy(v).dtype) for n, v in chosen.items()}
    drawn: NDArray[Any] = np.empty(0)
    order: dict[int, Tensor] = {}
    densities = np.empty((plan.total if plan.log_likelihood else 0, count))
    for index in range(plan.total):
        with SharedSample():
            trace = source(index, x0) if index else trace
            for name, values in posterior.items():
                values[index] = _numpy(trace.nodes[name]["value"])
            if index and not (plan.posterior_predictive or plan.log_likelihood):
                continue
            start = 0
            for x, y in visit(batches, home):
                rows = slice(start, start + len(y))
                distribution: Any = observe(model, trace, x)
                if index == 0:
                    check_targets(model, distribution, y)
                    observed[rows] = _numpy(y)
                    order[start] = _fingerprint(x)
                elif batches.whole is None and not (
                    np.array_equal(observed[rows], _numpy(y)) and torch.equal(order[start], _fingerprint(x))
                ):
                    raise ValueError(
                        "data: expected the same order in every pass, one a draw, but the examples changed places; use "
                        "a DataLoader with shuffle=False, or tensors"
                    )
                if plan.posterior_predictive:
                    sample = _numpy(distribution.sample())
                    if (
                        drawn.size == 0
                    ):  # in the distribution's own dtype: that of whole-number targets would cut draws off
                        drawn = np.empty((plan.total, *observed.shape), sample.dtype)
                    drawn[index, rows] = sample
                if plan.log_likelihood:
                    densities[index, rows] = _numpy(distribution.log_prob(y))
                start += len(y)
            if start != count:
                raise ValueError(f"data: expected {count} examples in a pass, got {start}; use drop_last=False")
    groups: dict[str, dict[str, NDArray[Any]]] = {"posterior": {n: _chained(v, plan) for n, v in posterior.items()}}
    if plan.posterior_predictive:
        groups["posterior_predictive"] = {"obs": _chained(drawn, plan)}
    if plan.log_likelihood:
        groups["log_likelihood"] = {"obs": _chained(densities, plan)}
    groups["observed_data"] = {"obs": observed}
    described: dict[str, Site] = getattr(model, "sites", {})
    dims = {name: _dims(name, value.dim(), described.get(name)) for name, value in chosen.items()}
    outputs = observed.ndim - 1
    dims["obs"] = ["example", *(["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)])]
    coords = {"draw": np.arange(plan.kept) * plan.thin}
    return _assemble(groups, dims, coords, {**attrs, "model": type(getattr(model, "net", model)).__name__})


def _fingerprint(x: Any) -> Tensor:
    """A number for each example that tells whether a later pass brings the same ones in the same order."""
    inputs = x if isinstance(x, tuple) else (x,)
    parts = [part.reshape(len(part), -1).double() for part in inputs]
    weighted = [p @ torch.linspace(1, 2, p.shape[1], dtype=p.dtype, device=p.device) for p in parts]
    return torch.stack(weighted).sum(0)


def _assemble(
    groups: dict[str, dict[str, NDArray[Any]]],
    dims: dict[str, list[str]],
    coords: dict[str, NDArray[Any]],
    attrs: dict[str, str],
) -> Any:
    """The one place that knows ArviZ's versions: `InferenceData` up to 0.x, `DataTree` from 1.0."""
    import arviz

    attrs = {"inference_library": "pyrostoch", "inference_library_version": __version__, **attrs}
    if int(arviz.__version__.split(".")[0]) >= 1:
        from arviz_base import from_dict

        return from_dict(groups, coords=coords, dims=dims, attrs={"/": attrs})
    named: dict[str, Any] = dict(groups)
    return arviz.from_dict(**named, coords=coords, dims=dims, attrs=attrs)


def _choose(sites: Iterable[str] | str | None, known: list[str]) -> list[str]:
    """The sites that names or patterns stand for, in the model's order."""
    patterns = ["*"] if sites is None else [sites] if isinstance(sites, str) else list(sites)
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"sites: {pattern!r} matches no site; there are {name_list(known) or 'none'}")
    chosen = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        raise ValueError(f"sites: expected at least one name or pattern; there are {name_list(known) or 'none'}")
    return chosen


def _check_memory(plan: _Plan, chosen: dict[str, Tensor], observed: NDArray[Any]) -> None:
    """Refuse what would not fit, with its size and what to leave out."""
    sizes = {name: value.numel() * value.element_size() for name, value in chosen.items()}
    predictive = observed.nbytes if plan.posterior_predictive else 0
    likelihood = 8 * len(observed) if plan.log_likelihood else 0
    each = sum(sizes.values()) + predictive + likelihood
    needed = each * plan.total + observed.nbytes
    if needed <= plan.max_bytes:
        return
    largest = max(sizes, key=lambda name: sizes[name])
    fitting = int(max(plan.max_bytes - observed.nbytes, 0) // max(each * plan.chains, 1))
    remedies = ["name fewer sites by sites="]
    if fitting:
        remedies.append(f"keep {fitting} draws a chain (draws=, or thin={plan.thin * math.ceil(plan.kept / fitting)})")
    if predictive:
        remedies.append("leave out posterior_predictive")
    raise ValueError(
        f"{plan.total} draws need {_human(needed)}, more than max_bytes={_human(plan.max_bytes)}: posterior "
        f"{_human(sum(sizes.values()) * plan.total)} (the largest site, {largest!r}, "
        f"{_human(sizes[largest] * plan.total)}), predictive {_human(predictive * plan.total)}, log likelihood "
        f"{_human(likelihood * plan.total)}. "
        f"{'; '.join(remedies).capitalize()}; or raise max_bytes"
    )


def _dims(name: str, rank: int, site: Site | None) -> list[str]:
    """Names of a site's axes: out and in, and space for a convolution's."""
    if site is not None and site.layer == "Embedding":
        parts: tuple[str, ...] = ("index", "feature")
    elif site is not None and "conv" in site.layer.lower() and rank in _SPACE:
        parts = (*(("in", "out") if site.out_axis else ("out", "in")), *_SPACE[rank])
    elif site is not None and 1 <= rank <= 2:
        parts = ("out", "in")[:rank]
    else:
        parts = tuple(f"dim_{i}" for i in range(rank))
    return [f"{name}_{part}" for part in parts]


def _chained(values: NDArray[Any], plan: _Plan) -> NDArray[Any]:
    return values.reshape(plan.chains, plan.kept, *values.shape[1:])


def _numpy(value: Tensor) -> NDArray[Any]:
    value = value.detach().cpu()
    # NumPy has no bfloat16.
    array: NDArray[Any] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def _human(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _check_count(what: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what}: expected a whole number from 1 up, got {value!r}")
