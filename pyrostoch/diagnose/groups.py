"""ArviZ's groups, collected draw by draw: posterior, posterior predictive, log likelihood, observed data."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._checks import name_list
from pyrostoch._inputs import example_axes
from pyrostoch._manual import see
from pyrostoch._targets import Targets
from pyrostoch._version import __version__
from pyrostoch.effects import SharedSample
from pyrostoch.likelihoods.pseudo import is_pseudo
from pyrostoch.likelihoods.several import observations
from pyrostoch.prediction.readouts import batches_for, batches_on_device, check_targets, observation_distribution
from pyrostoch.protocols import Data, FlatInputs, InDims, Model
from pyrostoch.sites import Site, latent_sites

__all__ = ["GroupOptions", "collect_groups"]

# Names of the spatial axes of a convolution's weight, by its number of axes.
_SPATIAL_AXES = {3: ("w",), 4: ("h", "w"), 5: ("d", "h", "w")}


@dataclass(frozen=True)
class GroupOptions:
    """What is collected: how many draws, which groups, and how large they may become.

    Args:
        chains: Number of chains.
        kept: Number of draws kept of each chain.
        thin: Distance between two draws that are kept.
        sites: Names or shell patterns of the sites in `posterior`; `None` for all.
        posterior_predictive: Whether observations are drawn.
        log_likelihood: Whether the log likelihood of each example is computed.
        max_bytes: Largest size of the result.
    """

    chains: int
    kept: int
    thin: int
    sites: Iterable[str] | str | None
    posterior_predictive: bool
    log_likelihood: bool
    max_bytes: float

    @property
    def num_draws(self) -> int:
        """Number of draws kept of all chains together."""
        return self.chains * self.kept


def collect_groups(
    model: Model,
    draw_trace: Callable[[int, FlatInputs], Trace],
    data: Data,
    options: GroupOptions,
    batch_size: int,
    device: torch.device | None,
    attrs: dict[str, str],
) -> Any:
    """Run the model on every draw and collect the results in ArviZ's groups.

    Args:
        model: The model.
        draw_trace: Gives the trace of a draw of all sites, by its number and a batch of inputs.
        data: The data.
        options: What is collected.
        batch_size: Number of examples that run through the network at a time.
        device: Where the data are moved.
        attrs: Attributes of the result.
    """
    batches, in_dims = batches_for(model, data, batch_size), getattr(model, "in_dims", 0)
    count = batches.num_data
    x0, y0 = next(iter(batches_on_device(batches, device)))
    with SharedSample():
        trace = draw_trace(0, x0)
    latents = {n: node["value"] for n, node in latent_sites(trace) if not node["infer"].get("is_auxiliary")}
    chosen = {name: latents[name] for name in _choose(options.sites, list(latents))}
    with SharedSample():
        first = observation_distribution(model, trace, x0)
    check_targets(model, first, y0)
    _check_densities(options, first)
    if any(isinstance(part.value, Targets) for part in observations(first, y0)):
        raise ValueError("to_arviz: the likelihood is a loss of several targets, which are no observations of one kind")
    observed = {_variable(part.name): _room(count, part.value) for part in observations(first, y0)}
    _check_memory(options, chosen, observed)
    posterior = {n: np.empty((options.num_draws, *v.shape), _numpy(v).dtype) for n, v in chosen.items()}
    drawn: dict[str, NDArray[Any]] = {}
    order: dict[int, Tensor] = {}
    shape = (options.num_draws if options.log_likelihood else 0, count)
    densities = {name: np.empty(shape) for name in observed}
    for index in range(options.num_draws):
        with SharedSample():
            trace = draw_trace(index, x0) if index else trace
            for name, values in posterior.items():
                value: Any = trace.nodes[name]["value"]
                values[index] = _numpy(value)
            if index and not (options.posterior_predictive or options.log_likelihood):
                continue
            start = 0
            for x, y in batches_on_device(batches, device):
                rows = slice(start, start + len(y))
                distribution: Any = observation_distribution(model, trace, x)
                parts = {_variable(part.name): part for part in observations(distribution, y)}
                if index == 0:
                    check_targets(model, distribution, y)
                    for name, part in parts.items():
                        observed[name][rows] = _numpy(part.value)
                    order[start] = _fingerprint(x, in_dims)
                elif batches.in_memory is None and not (
                    all(np.array_equal(observed[n][rows], _numpy(part.value)) for n, part in parts.items())
                    and torch.equal(order[start], _fingerprint(x, in_dims))
                ):
                    raise ValueError(
                        "data: expected the same order in every pass, of which there is one per draw, but the examples "
                        "changed places; use a DataLoader with shuffle=False, or tensors"
                        f"{see('how-to/arviz')}"
                    )
                for name, part in parts.items():
                    if options.posterior_predictive:
                        sample = _numpy(part.distribution.sample())
                        if name not in drawn:
                            # With the dtype of the draws: that of integer targets would round them.
                            drawn[name] = np.empty((options.num_draws, *observed[name].shape), sample.dtype)
                        drawn[name][index, rows] = sample
                    if options.log_likelihood:
                        densities[name][index, rows] = _numpy(part.log_prob())
                start += len(y)
            if start != count:
                raise ValueError(f"data: expected {count} examples in a pass, got {start}; use drop_last=False")
    groups: dict[str, dict[str, NDArray[Any]]] = {
        "posterior": {n: _split_chains(v, options) for n, v in posterior.items()}
    }
    if options.posterior_predictive:
        groups["posterior_predictive"] = {name: _split_chains(values, options) for name, values in drawn.items()}
    if options.log_likelihood:
        groups["log_likelihood"] = {name: _split_chains(values, options) for name, values in densities.items()}
    groups["observed_data"] = dict(observed)
    model_sites: dict[str, Site] = getattr(model, "sites", {})
    dims = {name: _dims(name, value.dim(), model_sites.get(name)) for name, value in chosen.items()}
    for name, values in observed.items():
        outputs, own = values.ndim - 1, name.removeprefix("obs").lstrip(".")
        axes = [f"{own}_output" if own else "output"]
        dims[name] = ["example", *(axes if outputs == 1 else [f"{axes[0]}_{i}" for i in range(outputs)])]
    coords = {"draw": np.arange(options.kept) * options.thin}
    return _assemble(groups, dims, coords, {**attrs, "model": type(getattr(model, "net", model)).__name__})


def _check_densities(options: GroupOptions, distribution: Distribution) -> None:
    """Raise an error if log likelihoods are asked for of a pseudo-likelihood, which has two for two purposes."""
    if options.log_likelihood and is_pseudo(distribution):
        raise ValueError(
            "log_likelihood: expected a likelihood that is a probability of the targets, got a pseudo-likelihood; "
            "az.loo would weigh the draws by it and score with it, but the score needs the normalized probability: "
            "give log_likelihood=False, and score held-out data with pyrostoch.compare"
            f"{see('how-to/arviz')}"
        )


def _fingerprint(x: FlatInputs, in_dims: InDims) -> Tensor:
    """A number for each example, by which to check that all passes have the same examples in the same order."""
    axes = example_axes(x, in_dims)
    inputs = [(p, axis) for p, axis in zip(x if isinstance(x, tuple) else (x,), axes, strict=True) if axis is not None]
    if not inputs:
        return torch.zeros(0)
    inputs = [(part.to_dense(), axis) for part, axis in inputs]
    parts = [part.movedim(axis, 0).reshape(part.shape[axis], -1).double() for part, axis in inputs]
    weighted = [p @ torch.linspace(1, 2, p.shape[1], dtype=p.dtype, device=p.device) for p in parts]
    return torch.stack(weighted).sum(0)


def _assemble(
    groups: dict[str, dict[str, NDArray[Any]]],
    dims: dict[str, list[str]],
    coords: dict[str, NDArray[Any]],
    attrs: dict[str, str],
) -> Any:
    """Make ArviZ's data structure: an `InferenceData` up to version 0.x, a `DataTree` from 1.0 on."""
    import arviz

    attrs = {"inference_library": "pyrostoch", "inference_library_version": __version__, **attrs}
    if int(arviz.__version__.split(".")[0]) >= 1:
        from arviz_base import from_dict

        return from_dict(groups, coords=coords, dims=dims, attrs={"/": attrs})
    named: dict[str, Any] = dict(groups)
    return arviz.from_dict(**named, coords=coords, dims=dims, attrs=attrs)


def _choose(sites: Iterable[str] | str | None, known: list[str]) -> list[str]:
    """The sites that match the names or patterns, in the model's order."""
    if sites is None and not known:
        raise ValueError(
            "to_arviz: no weight of the network is random, so there are no draws of weights to diagnose; score its "
            f"predictions with pyrostoch.compare{see('how-to/arviz')}"
        )
    patterns = ["*"] if sites is None else [sites] if isinstance(sites, str) else list(sites)
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"sites: {pattern!r} matches no site; there are {name_list(known) or 'none'}")
    chosen = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        raise ValueError(f"sites: expected at least one name or pattern; there are {name_list(known) or 'none'}")
    return chosen


def _variable(head: str) -> str:
    """The name of a head's observations, that of their site."""
    return f"obs.{head}" if head else "obs"


def _room(count: int, first: Tensor | None) -> NDArray[Any]:
    """Room for the targets of all examples."""
    like = _numpy(first)
    return np.empty((count, *like.shape[1:]), like.dtype)


def _check_memory(options: GroupOptions, chosen: dict[str, Tensor], observed: dict[str, NDArray[Any]]) -> None:
    """Raise an error if the result would be too large; it names the size and what to leave out."""
    sizes = {name: value.numel() * value.element_size() for name, value in chosen.items()}
    of_data = sum(values.nbytes for values in observed.values())
    predictive = of_data if options.posterior_predictive else 0
    likelihood = sum(8 * len(values) for values in observed.values()) if options.log_likelihood else 0
    bytes_per_draw = sum(sizes.values()) + predictive + likelihood
    draws = options.num_draws
    needed = bytes_per_draw * draws + of_data
    if needed <= options.max_bytes:
        return
    largest = max(sizes, key=lambda name: sizes[name])
    fitting = int(max(options.max_bytes - of_data, 0) // max(bytes_per_draw * options.chains, 1))
    remedies = ["name fewer sites by sites="]
    if fitting:
        thin = options.thin * math.ceil(options.kept / fitting)
        remedies.append(f"keep {fitting} draws per chain (draws=, or thin={thin})")
    if predictive:
        remedies.append("leave out posterior_predictive")
    raise ValueError(
        f"{draws} draws need {_readable_size(needed)}, more than max_bytes={_readable_size(options.max_bytes)}: "
        f"posterior {_readable_size(sum(sizes.values()) * draws)} (the largest site, {largest!r}, "
        f"{_readable_size(sizes[largest] * draws)}), predictive {_readable_size(predictive * draws)}, "
        f"log likelihood {_readable_size(likelihood * draws)}. "
        f"{'; '.join(remedies).capitalize()}; or raise max_bytes"
        f"{see('how-to/arviz')}"
    )


def _dims(name: str, rank: int, site: Site | None) -> list[str]:
    """Names of a site's axes: out and in, and the spatial axes of a convolution."""
    if site is not None and site.layer == "Embedding":
        parts: tuple[str, ...] = ("index", "feature")
    elif site is not None and "conv" in site.layer.lower() and rank in _SPATIAL_AXES:
        parts = (*(("in", "out") if site.out_axis else ("out", "in")), *_SPATIAL_AXES[rank])
    elif site is not None and 1 <= rank <= 2:
        parts = ("out", "in")[:rank]
    else:
        parts = tuple(f"dim_{i}" for i in range(rank))
    return [f"{name}_{part}" for part in parts]


def _split_chains(values: NDArray[Any], options: GroupOptions) -> NDArray[Any]:
    return values.reshape(options.chains, options.kept, *values.shape[1:])


def _numpy(value: Tensor | None) -> NDArray[Any]:
    if value is None:
        raise ValueError("to_arviz: expected targets, got none")
    value = value.detach().cpu()
    # NumPy has no bfloat16.
    array: NDArray[Any] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def _readable_size(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
