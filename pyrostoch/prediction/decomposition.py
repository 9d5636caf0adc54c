"""The terms of an ELBO as a table: data term, KL of each site, rate of each stochastic layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyrostoch._checks import name_list
from pyrostoch.guides.temperature import temperature_text
from pyrostoch.infer.known_labels import KnownLabels
from pyrostoch.prediction.data_terms import HeadRow
from pyrostoch.prediction.rates import RateRow, rate_lines
from pyrostoch.records import Record, number, table

__all__ = ["Decomposition", "SiteRow", "mean_of_members"]


@dataclass(frozen=True)
class SiteRow(Record):
    """The KL of one latent variable.

    Args:
        site: Name of the site.
        kl: KL(q || p) in nats, summed over the site's weights; minus the mean log prior where the guide has no density.
        method: `"exact"`; `"monte carlo"` where there is no closed form or the KL depends on another site's draw; or
            `"log prior"` where the guide has no density.
        stderr: Standard error of `kl`; 0 where it is exact.
        weights: Number of weights.
        treatment: How the network treated the site, in words.
        improper: Whether the site's prior is improper.
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
    """The ELBO of a whole data set in nats: `elbo = data - kl - rate - sum(penalty.values())`.

    A guide without a density (`guides.Delta`, `guides.Samples`, an ensemble of points) has no ELBO: `elbo` and `kl` are
    then NaN, and `log_joint` is the mean log joint density, which is not to be compared with an ELBO.

    Args:
        elbo: The evidence lower bound; that of the pseudo-evidence where `pseudo` is set. Of an ensemble the mean of
            its members', which is a lower bound of its own, up to `log K` nats below it.
        data: Expected log-likelihood, or log pseudo-likelihood, summed over all examples.
        kl: KL of guide to prior, summed over all sites.
        elbo_stderr: Standard error of `elbo`; `None` where `data_stderr` is.
        data_stderr: Standard error of `data` over the draws; `None` with a single one, 0 where nothing is drawn.
        kl_stderr: Standard error of `kl`; 0 where every site is exact.
        improper: Whether a prior is improper: the ELBO is then defined up to a constant per weight.
        num_data: Number of examples.
        num_samples: Number of draws for the data term; 0 where nothing is drawn, as with moments.
        kl_samples: Number of draws for the KLs that are not exact; 0 if all of them are.
        sites: The KL of each site.
        penalty: The user's penalties by name.
        estimator: How random weights were treated here, which may differ from the training.
        rate: Rate of random activations with a prior, summed over all layers and examples.
        rates: The rate of each layer.
        information_bound: Upper bound, in nats for an example on average, of the information of the input that the
            network lets through; `None` where not every path from the input was found to cross drawn activations.
        pseudo: Whether the likelihood is a pseudo-likelihood, as in `BayesianSVM`: the ELBO then bounds the log of the
            integral of prior times pseudo-likelihood, which is no probability of the data.
        labels: `"known"` where layers that are conditional on the class were given the targets.
        num_targets: Number of targets of all examples.
        num_observed: Number of those that are observed: not missing, and not left out by a mask. The data term is their
            sum.
        heads: Where the likelihood has several heads (`likelihoods.Joint`): the data term of each.
        log_joint: Where the guide has no density: the mean of the data term and the log prior, less rate and penalties.
        members: For an ensemble: the terms of each member.
        temperatures: Those other than 1 at which the guide or parts of it were trained. It then maximizes no ELBO; its
            ELBO is a lower bound all the same.
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
    rate: float = 0.0
    rates: tuple[RateRow, ...] = ()
    information_bound: float | None = None
    pseudo: bool = False
    labels: KnownLabels = None
    num_targets: int | None = None
    num_observed: int | None = None
    heads: tuple[HeadRow, ...] = ()
    log_joint: float | None = None
    members: tuple[Decomposition, ...] = ()
    temperatures: tuple[float, ...] = ()

    def __str__(self) -> str:
        rows = [("data term", self.data, _error(self.data_stderr) if self.num_samples else "")]
        rows += [(f"  {row.head}", row.data, _error(row.stderr) if self.num_samples else "") for row in self.heads]
        point = self.log_joint is not None
        if point:
            log_prior = 0.0 - sum(row.kl for row in self.sites)
            rows += [("+ log prior", log_prior, _error(self.kl_stderr) if self.kl_samples else "exact")]
        else:
            rows += [("- KL", 0.0 - self.kl, _error(self.kl_stderr) if self.kl_samples else "exact")]
        if self.rates:
            rows += [("- rate", 0.0 - self.rate, "exact" if all(r.method == "exact" for r in self.rates) else "")]
        rows += [(f"- {name}", 0.0 - value, "") for name, value in self.penalty.items()]
        total = ("= ELBO", self.elbo) if self.log_joint is None else ("= log joint", self.log_joint)
        rows += [(*total, _error(self.elbo_stderr) if self.num_samples or self.kl_samples else "")]
        draws = {0: "nothing drawn", 1: "1 draw"}.get(self.num_samples, f"{self.num_samples} draws")
        known = ", labels known" if self.labels else ""
        what = "Log joint density" if point else "ELBO"
        head = f"{what} of {self.num_data} examples, {draws}, estimator {self.estimator!r}{known}"
        lines = [head, table(("", "nats", ""), rows), ""]
        sites = [
            (
                row.site,
                row.weights,
                0.0 - row.kl if point else row.kl,
                _error(row.stderr) if row.stderr else "",
                row.method,
                row.treatment,
            )
            for row in self.sites
        ]
        columns = ("log prior", "", "by") if point else ("KL, nats", "", "KL by")
        lines.append(table(("site", "weights", *columns, "treatment"), sites))
        lines += rate_lines(self.rates, self.information_bound)
        if point:
            lines.append("No ELBO: the guide has no density. The last term is no bound of the evidence.")
        elif self.members:
            values = ", ".join(number(member.elbo) for member in self.members)
            lines.append(
                f"Means over {len(self.members)} members, whose ELBOs are {values}. That of the mixture is at least "
                f"this, and at most {number(math.log(len(self.members)))} nats higher."
            )
        if trained := temperature_text(self.temperatures):
            lines.append(f"The guide was {trained}, where it maximizes no {'log joint density' if point else 'ELBO'}.")
        if self.kl_samples and not point:
            lines.append(f"KLs by Monte Carlo: {self.kl_samples} draws of the guide.")
        if self.num_targets is not None and self.num_observed != self.num_targets:
            lines.append(f"Observed: {self.num_observed} of {self.num_targets} targets; the data term is their sum.")
            lines += [f"  {row.head}: {row.num_observed} of {row.num_targets}" for row in self.heads]
        if self.improper:
            names = name_list(row.site for row in self.sites if row.improper)
            lines.append(
                f"Improper prior on {names}:\nKL and ELBO are defined up to a constant per weight; compare them only "
                "under the same prior."
            )
        if self.pseudo:
            lines.append(
                "Pseudo-likelihood, no probability of the targets:\nthe posterior is not that of the data, and the "
                "ELBO bounds the log of a pseudo-evidence, no evidence;\ncompare it only under the same likelihood."
            )
        return "\n".join(lines)


def mean_of_members(members: Sequence[Decomposition]) -> Decomposition:
    """The terms of an equal mixture of guides, as means over those of its members.

    Their ELBOs' mean is a lower bound of the mixture's, since the KL is convex.

    Args:
        members: The terms of each member, on the same data and by the same estimator.

    Returns:
        The means, with the members beside them.
    """
    count = len(members)

    def mean(name: str, rows: Sequence[Any] = members) -> float:
        return math.fsum(getattr(row, name) for row in rows) / count

    def error(name: str, rows: Sequence[Any] = members) -> float | None:
        errors = [getattr(row, name) for row in rows]
        return None if None in errors else math.hypot(*errors) / count

    sites = tuple(
        replace(rows[0], kl=mean("kl", rows), stderr=error("stderr", rows) or 0.0)
        for rows in zip(*(member.sites for member in members), strict=True)
    )
    heads = tuple(
        replace(rows[0], data=mean("data", rows), stderr=error("stderr", rows))
        for rows in zip(*(member.heads for member in members), strict=True)
    )
    return replace(
        members[0],
        elbo=mean("elbo"),
        data=mean("data"),
        kl=mean("kl"),
        rate=mean("rate"),
        elbo_stderr=error("elbo_stderr"),
        data_stderr=error("data_stderr"),
        kl_stderr=error("kl_stderr") or 0.0,
        penalty={name: math.fsum(m.penalty[name] for m in members) / count for name in members[0].penalty},
        sites=sites,
        heads=heads,
        log_joint=None if any(m.log_joint is None for m in members) else mean("log_joint"),
        members=tuple(members),
    )


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f"± {number(stderr)}"
