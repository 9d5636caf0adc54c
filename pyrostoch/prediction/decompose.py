"""The ELBO of a network, split into the data term, the KL of each site, and the rate of each stochastic layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.infer.autoguide import AutoDelta
from pyro.poutine.messenger import Messenger

from pyrostoch._checks import check_choice, check_count
from pyrostoch._seeds import generator_states
from pyrostoch._targets import Target
from pyrostoch.effects import SharedSample
from pyrostoch.effects.activation_sites import activation_of
from pyrostoch.guides import Ensemble
from pyrostoch.guides.amortised import weights_of
from pyrostoch.guides.temperature import temperatures_of
from pyrostoch.infer.elbo import ESTIMATORS, interpretation
from pyrostoch.infer.known_labels import GivenLabels, check_no_labels_around, known_labels, marked
from pyrostoch.infer.rates import check_rates_known
from pyrostoch.infer.terms import Terms, draw_terms
from pyrostoch.likelihoods.pseudo import is_pseudo
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.data_terms import HeadTotals, mean_and_error
from pyrostoch.prediction.decomposition import Decomposition, SiteRow, mean_of_members
from pyrostoch.prediction.rates import RateRecorder, RateRow, RateTotals, find_cuts
from pyrostoch.prediction.readouts import (
    batches_for,
    batches_on_device,
    check_guide,
    check_targets,
    device_of,
    evaluating,
    observation_distribution,
)
from pyrostoch.protocols import Data, FlatInputs, Guide, Model
from pyrostoch.sites import trace_of

__all__ = ["Decomposition", "SiteRow", "decompose"]

# Smallest number of draws from the guide, made without data, for KLs that have no closed form.
_KL_SAMPLES = 10


def decompose(
    model: Model,
    guide: Guide,
    data: Data,
    *,
    num_samples: int = 1,
    batch_size: int = 1000,
    estimator: str = "marginal",
    device: str | torch.device | None = None,
    labels: GivenLabels = None,
) -> Decomposition:
    r"""Split the ELBO of the whole data set into its data term, the KL of each site, and the rate of each layer.

    $$ \mathrm{ELBO} = \sum_{i=1}^N E_q[\log p(y_i \mid x_i, w, h_i)] - \sum_s \mathrm{KL}(q_s \| p_s) -
    \sum_{i,l} E_q\,\mathrm{KL}(q(h_{il} \mid x_i) \| p(h_l)) - \mathrm{penalty}. $$

    Each draw uses every example once, in batches, with the network in evaluation mode. A KL with a closed form is
    computed once and has no error; any other is averaged over at least ten draws from the guide, which need no pass
    over the data. The rate is that of random activations with a prior (`layers.StochasticLayer`), in nats and bits for
    an example, too; it bounds the information that the network lets through where the network was found, by experiment
    on the first batch, to have no path around the drawn activations.

    Args:
        model: A `BayesianModel`, or another Pyro model with `num_data` and `observation(x)`.
        guide: Its guide.
        data: The whole training set of `num_data` examples: `(x, y)`, a `Dataset` or a `DataLoader`.
        num_samples: Number of draws for each batch, if the estimator draws at all; with two or more the data term has a
            standard error.
        batch_size: Number of examples that run through the network at a time.
        estimator: How weights are treated for the data term. The default, `"marginal"`, is unbiased and has little
            variance; `"local"` gives the objective of a training with `"local"`, which for convolutions is a factorized
            approximation.
        device: The model's device, to which the data are moved batch by batch; found by default.
        labels: `"known"` hands the targets to layers that are conditional on the class, a function of the targets what
            it makes of them, as in `fit`.

    Returns:
        The terms, in nats.

    Raises:
        ValueError: The data are not `model.num_data` examples, are not finite, or do not fit the model; the sites of
            model and guide do not match; or `estimator` is unknown.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.randn(50, 2)
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.5), num_data=50)
        >>> terms = decompose(model, ps.guides.Additive(model), (x, x.sum(1, keepdim=True)), num_samples=4)
        >>> abs(terms.elbo - (terms.data - terms.kl)) < 1e-6, [row.method for row in terms.sites]
        (True, ['exact'])

    References:
        Graves, "Practical variational inference for neural networks", 2011; Blundell, Cornebise, Kavukcuoglu, Wierstra,
        "Weight uncertainty in neural networks", 2015.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    num_samples = check_count("num_samples", num_samples)
    check_guide(guide)
    check_no_labels_around("decompose", model)
    settings: Any = (data, num_samples, batch_size, estimator, device_of(model, guide, device))
    members = guide.members if isinstance(guide, Ensemble) else ()
    with known_labels(model, labels):
        found = [_decompose(model, member, *settings) for member in members]
        terms = mean_of_members(found) if found else _decompose(model, guide, *settings)
    return replace(terms, temperatures=temperatures_of(guide))


def _decompose(
    model: Model,
    guide: Guide,
    data: Data,
    num_samples: int,
    batch_size: int,
    estimator: str,
    device: torch.device | None,
) -> Decomposition:
    batches = batches_for(model, data, batch_size)
    if not batches.items_are_batches:
        _check_size(model, batches.num_data)
    data_terms = HeadTotals(num_samples)
    sampled = pseudo = False
    treatments: dict[str, str] = {}
    first: tuple[FlatInputs, Target] | None = None
    count = 0
    rate_totals = RateTotals(num_samples)
    recorder = _SiteRecorder()
    with evaluating(model, guide):
        for x, y in batches_on_device(batches, device):
            first = (x, y) if first is None else first
            data_terms.start_batch()
            recorded: list[RateRecorder] = []
            while len(recorded) < num_samples:
                handler, before = interpretation(estimator, model), generator_states(device)
                with handler:
                    trace = trace_of(guide, x)
                    with recorder, RateRecorder() as rate_recorder:
                        distribution = observation_distribution(model, trace, x)
                check_rates_known(handler)
                recorded.append(rate_recorder)
                if len(recorded) == 1:
                    check_targets(model, distribution, y)
                    pseudo = is_pseudo(distribution)
                data_terms.add(distribution, y)
                treatments = handler.treatments
                if estimator.startswith("moments") and all(map(torch.equal, before, generator_states(device))):
                    break  # nothing was drawn, so the batch would have the same data term again
                sampled = True
            rate_totals.add(recorded, len(y))
            count += len(y)
        _check_size(model, count)
        rates, bound = _rates_of(model, guide, first, rate_totals, count, estimator)
        draws = _kl_draws(model, guide, first or (), num_samples, recorder.names)
    sites, kl_stderr = _site_rows(draws, treatments, _has_density(guide))
    totals = data_terms.by_draw()
    data_mean, data_stderr = mean_and_error(totals) if sampled else (totals[0], 0.0)
    rate = math.fsum(row.rate for row in rates)
    # The data term and the rate of a draw are correlated.
    gains = [total - rate_totals.of_draw(draw) for draw, total in enumerate(totals)]
    gain_stderr = mean_and_error(gains)[1] if sampled else 0.0
    kl = math.fsum(row.kl for row in sites)
    penalty = _penalties(draws[0])
    total = data_mean - kl - rate - math.fsum(penalty.values())
    has_density = _has_density(guide)
    return Decomposition(
        elbo=total if has_density else math.nan,
        data=data_mean,
        kl=kl if has_density else math.nan,
        elbo_stderr=None if gain_stderr is None else math.hypot(gain_stderr, kl_stderr),
        data_stderr=data_stderr,
        kl_stderr=kl_stderr,
        improper=any(row.improper for row in sites),
        num_data=count,
        num_targets=data_terms.num_targets,
        num_observed=data_terms.num_observed,
        heads=data_terms.rows(sampled),
        num_samples=num_samples if sampled else 0,
        kl_samples=len(draws) if any(row.method != "exact" for row in sites) else 0,
        sites=sites,
        penalty=penalty,
        estimator=estimator,
        rate=rate,
        rates=rates,
        information_bound=bound,
        pseudo=pseudo,
        labels=None if first is None else marked(model, first[0]),
        log_joint=None if has_density else total,
    )


def _has_density(guide: Any) -> bool:
    weights = weights_of(guide)
    return bool(getattr(weights, "has_density", True)) and not isinstance(weights, AutoDelta)


def _rates_of(
    model: Model,
    guide: Guide,
    first: tuple[FlatInputs, Target] | None,
    totals: RateTotals,
    count: int,
    estimator: str,
) -> tuple[tuple[RateRow, ...], float | None]:
    """The rate of each layer, and a bound of the information let through, which is tried on the first batch."""
    if first is None or not totals.counts:
        return (), None
    x, passes = first[0], totals.passes
    if len(passes) < 2:
        with interpretation(estimator, model), RateRecorder() as again:
            observation_distribution(model, trace_of(guide, x), x)
        passes = [*passes, again]
    cuts = find_cuts(model, guide, x)
    rows = totals.rows(passes[:2], count, cuts)
    alone = [row.nats for row in rows if row.cuts]
    if alone:
        return rows, min(alone)
    together = cuts.together and all(called == count for called in totals.counts.values())
    return rows, math.fsum(row.nats for row in rows) if together else None


def _check_size(model: Model, count: int) -> None:
    expected = getattr(model, "num_data", None)
    if expected is None:
        raise ValueError(f"model {type(model).__name__}: expected a BayesianModel, or a model that has num_data")
    if count != expected:
        raise ValueError(
            f"data: expected the model's num_data={expected} examples, the training set, got {count}; the ELBO is "
            "about the whole training set (for held-out data use compare; a DataLoader must not drop its last batch)"
        )


class _SiteRecorder(Messenger):
    """Records the names of all sites but random activations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if activation_of(msg) is None:
            self.names.add(msg["name"])


def _kl_draws(model: Model, guide: Guide, batch: tuple[Any, ...], num_samples: int, sites: set[str]) -> list[Terms]:
    """Terms of some draws, for their KLs: two draws, and more if a KL turns out not to be exact.

    The network does not run, unless it or the likelihood has sites of its own (a factor, a latent variable), or the
    model may use its weights elsewhere: then the model runs on the first batch of the data.
    """
    kind = type(model)
    plain = isinstance(model, BayesianModel) and sites <= set(model.sites)
    plain = plain and all(getattr(kind, name) is getattr(BayesianModel, name) for name in ("forward", "observation"))

    def priors(*batch: Any) -> None:
        model.without_data()  # type: ignore[attr-defined]

    def draw() -> Terms:
        return draw_terms(priors if plain else model, guide, batch, {}, SharedSample())

    draws = [draw() for _ in range(2)]
    if not all(_is_exact(draws, site) for site in draws[0].sites):
        draws += [draw() for _ in range(max(_KL_SAMPLES, num_samples) - len(draws))]
    return draws


def _is_exact(draws: Sequence[Terms], site: str) -> bool:
    """Whether a KL is a closed form that is the same in every draw, as it is not if the prior has a random scale."""
    terms = [draw.sites[site] for draw in draws[:2]]
    return all(term.exact for term in terms) and bool(terms[0].kl == terms[1].kl)


def _site_rows(
    draws: Sequence[Terms], treatments: dict[str, str], has_density: bool
) -> tuple[tuple[SiteRow, ...], float]:
    """A row for each site, and the standard error of the sum of their KLs."""
    rows = []
    inexact = [0.0] * len(draws)
    for site, term in draws[0].sites.items():
        exact = _is_exact(draws, site)
        values = [draw.sites[site].kl.item() for draw in draws]
        kl, stderr = (values[0], 0.0) if exact else mean_and_error(values)
        if not exact:
            inexact = [total + value for total, value in zip(inexact, values, strict=True)]
        method = ("exact" if exact else "monte carlo") if has_density else "log prior"
        rows.append(SiteRow(site, kl, method, stderr or 0.0, term.size, treatments.get(site, ""), term.improper))
    # From the sum in each draw, since under a random prior scale the KLs of the sites are correlated.
    return tuple(rows), mean_and_error(inexact)[1] or 0.0


def _penalties(terms: Terms) -> dict[str, float]:
    if isinstance(terms.penalty, float):
        return {}
    return {"penalty": terms.penalty.item()}
