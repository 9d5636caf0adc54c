"""What it costs to set the means of a posterior to zero and keep its variances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import Normal

from pyrostoch.guides.ratio import is_zero_mean, log_alpha, squared_signal_to_noise, weight_distributions
from pyrostoch.records import Record, table

__all__ = ["ZeroMeanGap", "ZeroMeanRow", "zero_mean_gap"]


@dataclass(frozen=True)
class ZeroMeanRow(Record):
    """What zeroing the means of one site costs.

    Args:
        site: Name of the site.
        weights: Number of weights.
        gap: Sum over its weights of the KL, in nats.
        log_alpha: Log of variance / mean^2: the shared one, or the (lower) median over the weights; infinite where the
            means are zero.
    """

    site: str
    weights: int
    gap: float
    log_alpha: float


@dataclass(frozen=True)
class ZeroMeanGap(Record):
    r"""What zeroing the means of a normal posterior costs: the KL between it and its variance network.

    Let P be the guide, $w_i \sim N(\mu_i, \sigma_i^2)$ independently, and Q the same with all means zero. Then

    $$ \mathrm{gap} = \mathrm{KL}(Q\,\|\,P) = \sum_i \frac{\mu_i^2}{2\sigma_i^2} = \mathrm{KL}(P\,\|\,Q), $$

    which is $D/(2\alpha)$ for D weights that share an alpha. The variances being equal, both directions agree.

    What it bounds. For any quantity f in [0, 1] of *one draw of all weights* (the accuracy of a network of drawn
    weights, the probability it gives to a label; everything not drawn is held fixed),

    $$ |E_P f - E_Q f| \le TV(P, Q) = \mathrm{erf}(\sqrt{\mathrm{gap}}/2) \le \min(1, \sqrt{\mathrm{gap}/2}). $$

    The first is `total_variation`, exact for these two distributions; the second is Pinsker's inequality, `bound`,
    which holds for any distributions that far apart. The predictive probabilities, averages over infinitely many draws,
    change by no more either, as each is the expectation of a single-draw probability. What is computed from K draws
    together, such as the accuracy after averaging K of them, sees K times the gap. Nothing is said about the
    mean-weight network, which draws nothing, nor about estimators that draw outputs instead of weights where these are
    not the same distribution. Both
    bounds are worst cases over all f: a gap of hundreds of nats says nothing, not that accuracy is lost.

    Args:
        total: The gap in nats, summed over all sites.
        sites: The same, site by site.

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov 2018 (arXiv 1803.03764), on the gap; Tsybakov, "Introduction to
        nonparametric estimation", 2009, on Pinsker's inequality.
    """

    total: float
    sites: tuple[ZeroMeanRow, ...]

    @property
    def bound(self) -> float:
        """Pinsker's bound on the change of the expectation of any single-draw quantity in [0, 1]."""
        return min(1.0, math.sqrt(self.total / 2))

    @property
    def total_variation(self) -> float:
        """The exact largest such change: the total variation between the two posteriors, never above `bound`."""
        return math.erf(math.sqrt(self.total) / 2)

    def __str__(self) -> str:
        rows = [(row.site, row.weights, row.gap, row.log_alpha) for row in self.sites]
        rows.append(("total", sum(row.weights for row in self.sites), self.total, ""))  # type: ignore[arg-type]
        return (
            "What zeroing the means costs\n"
            + table(("site", "weights", "KL, nats", "log alpha"), rows)
            + f"\nthe expected accuracy of one draw of the weights changes by at most {self.total_variation:.2%}, and "
            f"so does\nthe expectation of any other quantity in [0, 1] of one draw (Pinsker's bound: "
            f"{self.bound:.2%}); above a few nats\nthe bound says nothing"
        )


def zero_mean_gap(guide: Any) -> ZeroMeanGap:
    """What zeroing the means of a guide costs; see `ZeroMeanGap`. Guides have it as a method.

    Sums are taken in float64. Distributions whose mean is zero by construction cost nothing, whatever their family;
    random scales of priors and likelihoods are not weights and are left out, as both posteriors share them.

    Args:
        guide: A guide of `pyrostoch.guides`.

    Returns:
        The gap, site by site.

    Raises:
        TypeError: A weight's distribution is neither normal nor of zero mean; its site is named.
    """
    with torch.no_grad():
        rows = []
        for site, distribution in weight_distributions(guide, "zero_mean_gap").items():
            weights = distribution.batch_shape.numel()
            if is_zero_mean(distribution):
                rows.append(ZeroMeanRow(site, weights, 0.0, math.inf))
                continue
            if not isinstance(distribution, Normal):
                raise TypeError(
                    f"zero_mean_gap: expected a normal distribution (or one of mean zero) at site {site!r}, got "
                    f"{type(distribution).__name__}, for which the gap has no closed form"
                )
            rows.append(
                ZeroMeanRow(
                    site,
                    weights,
                    squared_signal_to_noise(distribution).sum().item() / 2,
                    log_alpha(distribution).median().item(),
                )
            )
    return ZeroMeanGap(math.fsum(row.gap for row in rows), tuple(rows))
