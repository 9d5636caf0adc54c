"""The terms of an ELBO as a table: data term, KL of each site, rate of each stochastic layer."""

from __future__ import annotations

from dataclasses import dataclass

from pyrostoch._checks import name_list
from pyrostoch.infer.known_labels import KnownLabels
from pyrostoch.prediction.data_terms import HeadRow
from pyrostoch.prediction.rates import RateRow, rate_lines
from pyrostoch.records import Record, number, table

__all__ = ["Decomposition", "SiteRow"]


@dataclass(frozen=True)
class SiteRow(Record):
    """The KL of one latent variable.

    Args:
        site: Name of the site.
        kl: KL(q || p) in nats, summed over the site's weights.
        method: `"exact"`, or `"monte carlo"` where there is no closed form or the KL depends on another site's draw.
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

    Args:
        elbo: The evidence lower bound; that of the pseudo-evidence where `pseudo` is set.
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

    def __str__(self) -> str:
        rows = [("data term", self.data, _error(self.data_stderr) if self.num_samples else "")]
        rows += [(f"  {row.head}", row.data, _error(row.stderr) if self.num_samples else "") for row in self.heads]
        rows += [("- KL", 0.0 - self.kl, _error(self.kl_stderr) if self.kl_samples else "exact")]
        if self.rates:
            rows += [("- rate", 0.0 - self.rate, "exact" if all(r.method == "exact" for r in self.rates) else "")]
        rows += [(f"- {name}", 0.0 - value, "") for name, value in self.penalty.items()]
        rows += [("= ELBO", self.elbo, _error(self.elbo_stderr) if self.num_samples or self.kl_samples else "")]
        draws = {0: "nothing drawn", 1: "1 draw"}.get(self.num_samples, f"{self.num_samples} draws")
        known = ", labels known" if self.labels else ""
        head = f"ELBO of {self.num_data} examples, {draws}, estimator {self.estimator!r}{known}"
        lines = [head, table(("", "nats", ""), rows), ""]
        sites = [
            (row.site, row.weights, row.kl, _error(row.stderr) if row.stderr else "", row.method, row.treatment)
            for row in self.sites
        ]
        lines.append(table(("site", "weights", "KL, nats", "", "KL by", "treatment"), sites))
        lines += rate_lines(self.rates, self.information_bound)
        if self.kl_samples:
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


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f"± {number(stderr)}"
