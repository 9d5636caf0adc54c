"""The ELBO of a trained network, split into its terms, site by site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine

from pyrostoch._checks import check_choice, name_list
from pyrostoch._seeds import generator_states
from pyrostoch.effects import SharedSample
from pyrostoch.infer.batches import as_batches
from pyrostoch.infer.elbo import ESTIMATORS, MOMENTS, interpretation
from pyrostoch.infer.terms import Terms, draw_terms, expected_log_prob
from pyrostoch.prediction.readouts import check_targets, evaluating, home_of, observe, visit
from pyrostoch.records import Record, number, table

__all__ = ["Decomposition", "SiteRow", "decompose"]

# Draws of the guide, without data, that estimate the KLs which have no closed form.
_KL_SAMPLES = 10


@dataclass(frozen=True)
class SiteRow(Record):
    """The KL of one latent variable.

    Args:
        site: Name of the site.
        kl: KL(q || p) in nats, summed over its weights.
        method: `"exact"`, or `"monte carlo"` where there is no closed form or it depends on another site's draw.
        stderr: Standard error of `kl`; 0 where it is exact.
        weights: Number of weights.
        treatment: The way the site took through the network, in words.
        improper: Whether its prior is improper.
    """

    site: str
    kl: float
    method: str
    stderr: float
    weights: int
    treatment: str
    improper: bool


@dataclass(frozen=True)
class Decomposition(Record):
    """The ELBO of a whole data set in nats: `elbo = data - kl - sum(penalty.values())`.

    Args:
        elbo: The evidence lower bound.
        data: Expected log-likelihood, summed over all examples.
        kl: KL of guide to prior, summed over all sites.
        elbo_stderr: Standard error of `elbo`; `None` where `data_stderr` is.
        data_stderr: Standard error of `data` over the draws; `None` with a single one, 0 where nothing is drawn.
        kl_stderr: Standard error of `kl`; 0 where every site is exact.
        improper: Whether a prior is improper: the ELBO is then defined up to a constant per weight.
        num_data: Number of examples.
        num_samples: Draws for the data term; 0 where nothing is drawn, as by moments: the term is then read once.
        kl_samples: Draws for the KLs that are not exact; 0 where there are none.
        sites: The KL by site.
        penalty: The user's penalties by name.
        estimator: How random weights were treated, which need not be how they were in training.
    """

    elbo: float
    data: float
    kl: float
    elbo_stderr: float | None
    data_stderr: float | None
    kl_stderr: float
    improper: bool
    num_data: int
    num_samples: int
    kl_samples: int
    sites: tuple[SiteRow, ...]
    penalty: dict[str, float]
    estimator: str

    def __str__(self) -> str:
        rows = [("data term", self.data, _error(self.data_stderr) if self.num_samples else "")]
        rows += [("- KL", 0.0 - self.kl, _error(self.kl_stderr) if self.kl_samples else "exact")]
        rows += [(f"- {name}", 0.0 - value, "") for name, value in self.penalty.items()]
        rows += [("= ELBO", self.elbo, _error(self.elbo_stderr) if self.num_samples or self.kl_samples else "")]
        draws = {0: "nothing drawn", 1: "1 draw"}.get(self.num_samples, f"{self.num_samples} draws")
        head = f"ELBO of {self.num_data} examples, {draws}, estimator {self.estimator!r}"
        lines = [head, table(("", "nats", ""), rows), ""]
        sites = [
            (row.site, row.weights, row.kl, _error(row.stderr) if row.stderr else "", row.method, row.treatment)
            for row in self.sites
        ]
        lines.append(table(("site", "weights", "KL, nats", "", "KL by", "treatment"), sites))
        if self.kl_samples:
            lines.append(f"KLs by Monte Carlo: {self.kl_samples} draws of the guide.")
        if self.improper:
            names = name_list(row.site for row in self.sites if row.improper)
            lines.append(
                f"Improper prior on {names}:\nKL and ELBO are defined up to a constant per weight; compare them only "
                "under the same prior."
            )
        return "\n".join(lines)


def decompose(
    model: Any,
    guide: Any,
    data: Any,
    *,
    num_samples: int = 1,
    batch_size: int = 1000,
    estimator: str = "marginal",
    device: str | torch.device | None = None,
) -> Decomposition:
    r"""Split the ELBO of the whole data set into its data term and the KL of each site.

    $$ \mathrm{ELBO} = \sum_{i=1}^N E_q[\log p(y_i \mid x_i, w)] - \sum_s \mathrm{KL}(q_s \| p_s) - \mathrm{penalty}. $$

    Every example enters once a draw, in batches, with the network in evaluation mode. A KL with a closed form is
    computed once and has no error; any other is averaged over at least ten draws of the guide, which cost no pass over
    the data.

    Args:
        model: A `BayesianModel`.
        guide: Its guide.
        data: The training set, `(x, y)`, a `Dataset` or a `DataLoader`: all `num_data` examples of it.
        num_samples: Draws for each batch, where the estimator draws at all; with two or more the data term has a
            standard error.
        batch_size: Examples run through the network at a time.
        estimator: How weights are drawn for the data term. The default, `"marginal"`, has the right expectation and
            little variance; `"local"` gives what training by it optimizes, a factorized approximation for convolutions.
        device: Where the data are moved, batch by batch: the model's own device, which is also the default.

    Returns:
        The terms, in nats.

    Raises:
        ValueError: The data are not `model.num_data` examples, are not finite, or do not fit the model; sites of model
            and guide do not match; `estimator` is unknown.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.randn(50, 2)
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.5), num_data=50)
        >>> terms = decompose(model, ps.guides.Additive(model), (x, x.sum(1, keepdim=True)), num_samples=4)
        >>> abs(terms.elbo - (terms.data - terms.kl)) < 1e-6, [row.method for row in terms.sites]
        (True, ['exact'])

    References:
        Graves 2011; Blundell, Cornebise, Kavukcuoglu, Wierstra 2015.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"num_samples: expected a whole number from 1 up, got {num_samples!r}")
    batches = as_batches(data, batch_size)
    _check_size(model, batches.num_data)
    home = home_of(model, guide, device)
    readings: list[list[float]] = []  # of each batch: its data term by each draw, or the one there is
    drawing = False
    treatments: dict[str, str] = {}
    first: Any = None
    count = 0
    with evaluating(model, guide):
        for x, y in visit(batches, home):
            if first is None:
                first = (tuple(part[:1] for part in x) if isinstance(x, tuple) else x[:1], y[:1])
            values: list[float] = []
            while len(values) < num_samples:
                how, before = interpretation(estimator, model), generator_states(home)
                with how:
                    distribution = observe(model, poutine.trace(guide).get_trace(x), x)
                if not values:
                    check_targets(model, distribution, y)
                values.append(expected_log_prob(distribution, y).sum(dtype=torch.float64).item())
                treatments = how.treatments
                if estimator in MOMENTS and all(map(torch.equal, before, generator_states(home))):
                    break  # nothing was drawn, so every other reading of this batch would be the same
                drawing = True
            readings.append(values)
            count += len(y)
        _check_size(model, count)
        drawn = _draw_kls(model, guide, first, num_samples)
    sites, kl_stderr = _site_rows(drawn, treatments)
    totals = [math.fsum(values[min(k, len(values) - 1)] for values in readings) for k in range(num_samples)]
    data_mean, data_stderr = _mean_and_error(totals) if drawing else (totals[0], 0.0)
    kl = math.fsum(row.kl for row in sites)
    penalty = _penalties(drawn[0])
    return Decomposition(
        elbo=data_mean - kl - math.fsum(penalty.values()),
        data=data_mean,
        kl=kl,
        elbo_stderr=None if data_stderr is None else math.hypot(data_stderr, kl_stderr),
        data_stderr=data_stderr,
        kl_stderr=kl_stderr,
        improper=any(row.improper for row in sites),
        num_data=count,
        num_samples=num_samples if drawing else 0,
        kl_samples=len(drawn) if any(row.method != "exact" for row in sites) else 0,
        sites=sites,
        penalty=penalty,
        estimator=estimator,
    )


def _check_size(model: Any, count: int) -> None:
    expected = getattr(model, "num_data", None)
    if expected is None:
        raise ValueError(f"model {type(model).__name__}: expected a BayesianModel, which knows its num_data")
    if count != expected:
        raise ValueError(
            f"data: expected the model's num_data={expected} examples, the training set, got {count}; the ELBO is that "
            "of the whole training set (for held-out data use compare; a DataLoader must not drop its last batch)"
        )


def _draw_kls(model: Any, guide: Any, example: Any, num_samples: int) -> list[Terms]:
    """Terms of some draws on a single example, for their KLs: two draws tell whether all of them are exact."""
    drawn = [draw_terms(model, guide, example, {}, SharedSample()) for _ in range(2)]
    if not all(_is_exact(drawn, site) for site in drawn[0].sites):
        more = max(_KL_SAMPLES, num_samples) - len(drawn)
        drawn += [draw_terms(model, guide, example, {}, SharedSample()) for _ in range(more)]
    return drawn


def _is_exact(drawn: Sequence[Terms], site: str) -> bool:
    """Whether a KL is a closed form that does not move with other sites' draws, as under a random prior scale."""
    terms = [draw.sites[site] for draw in drawn[:2]]
    return all(term.exact for term in terms) and bool(terms[0].kl == terms[1].kl)


def _site_rows(drawn: Sequence[Terms], treatments: dict[str, str]) -> tuple[tuple[SiteRow, ...], float]:
    """A row for each site, and the standard error of the sum of their KLs."""
    rows = []
    moving = [0.0] * len(drawn)
    for site, term in drawn[0].sites.items():
        exact = _is_exact(drawn, site)
        values = [draw.sites[site].kl.item() for draw in drawn]
        kl, stderr = (values[0], 0.0) if exact else _mean_and_error(values)
        if not exact:
            moving = [total + value for total, value in zip(moving, values, strict=True)]
        method = "exact" if exact else "monte carlo"
        rows.append(SiteRow(site, kl, method, stderr or 0.0, term.size, treatments.get(site, ""), term.improper))
    # Of the sum in each draw, not of independent sites: under a random prior scale they move together.
    return tuple(rows), _mean_and_error(moving)[1] or 0.0


def _penalties(terms: Terms) -> dict[str, float]:
    if isinstance(terms.penalty, float):
        return {}
    return {"penalty": terms.penalty.item()}


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    mean = math.fsum(values) / len(values)
    if len(values) > 1 and min(values) == max(values):
        return values[0], 0.0  # the mean of equal numbers may differ from them in its last bit
    if len(values) < 2:
        return mean, None
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) * (len(values) - 1)))


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f"± {number(stderr)}"
