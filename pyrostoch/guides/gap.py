"""The cost of setting the means of a posterior to zero while keeping its variances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.distributions import Normal

from pyrostoch.guides.ratio import free_entries, is_zero_mean, log_alpha, squared_signal_to_noise, weight_distributions
from pyrostoch.protocols import SiteGuide
from pyrostoch.records import Record, table

__all__ = ["ZeroMeanGap", "ZeroMeanRow", "zero_mean_gap"]


@dataclass(frozen=True)
class ZeroMeanRow(Record):
    """The cost of setting the means of one site to zero.

    Args:
        site: Name of the site.
        weights: Number of weights.
        gap: The KL in nats, summed over the site's weights.
        log_alpha: Log of variance / mean^2: the (lower) median over the weights, which is the value itself where they
            share it; infinite where the means are zero.
    """

    site: str
    weights: int
    gap: float
    log_alpha: float


@dataclass(frozen=True)
class ZeroMeanGap(Record):
    r"""The cost of setting the means of a normal posterior to zero: the KL between it and its variance network.

    Let P be the guide, $w_i \sim N(\mu_i, \sigma_i^2)$ independently, and Q the same with all means zero. Then

    $$ \mathrm{gap} = \mathrm{KL}(Q\,\|\,P) = \sum_i \frac{\mu_i^2}{2\sigma_i^2} = \mathrm{KL}(P\,\|\,Q), $$

    which is $D/(2\alpha)$ for D weights that share an alpha. Both directions agree because the variances are equal.

    The gap bounds the change of the expectation of any quantity f in [0, 1] that is computed from *one draw of all
    weights*, such as the accuracy of a network of drawn weights or the probability it gives to a label:

    $$ |E_P f - E_Q f| \le TV(P, Q) = \mathrm{erf}(\sqrt{\mathrm{gap}}/2) \le \min(1, \sqrt{\mathrm{gap}/2}). $$

    The first bound is `total_variation`, exact for these two distributions. The second is `bound`, Pinsker's
    inequality, which holds for any two distributions with this KL. The predictive probabilities, averages over
    infinitely many draws, obey the same bounds, as each is the expectation of a single-draw probability. For a quantity
    computed from K draws together, such as the accuracy after averaging them, the gap is K times as large.

    The bounds do not apply to the mean-weight network, which draws nothing, nor to estimators that draw outputs instead
    of weights where the outputs' distribution is then another. Both bounds are worst cases over all f: at a gap of
    hundreds of nats they say nothing, and in particular not that accuracy is lost.

    Args:
        total: The gap in nats, summed over all sites.
        sites: The gap of each site.

    References:
        Neklyudov, Molchanov, Ashukha, Vetrov, "Variance networks: when expectation does not meet your expectations",
        2018 (arXiv 1803.03764), on the gap; Tsybakov, "Introduction to nonparametric estimation", 2009, on Pinsker's
        inequality.
    """

    total: float
    sites: tuple[ZeroMeanRow, ...]

    @property
    def bound(self) -> float:
        """Pinsker's bound on the change of the expectation of any quantity in [0, 1] of one draw."""
        return min(1.0, math.sqrt(self.total / 2))

    @property
    def total_variation(self) -> float:
        """The exact largest change of such an expectation: the total variation distance, never above `bound`."""
        return math.erf(math.sqrt(self.total) / 2)

    def __str__(self) -> str:
        rows = [(row.site, row.weights, row.gap, row.log_alpha) for row in self.sites]
        rows.append(("total", sum(row.weights for row in self.sites), self.total, ""))  # type: ignore[arg-type]
        return (
            "The cost of zeroing the means\n"
            + table(("site", "weights", "KL, nats", "log alpha"), rows)
            + f"\nthe expected accuracy of one draw of the weights changes by at most {self.total_variation:.2%}, as "
            f"does the\nexpectation of any other quantity in [0, 1] of one draw (Pinsker's bound: {self.bound:.2%}); "
            "a gap of more\nthan a few nats makes the bound vacuous"
        )


def zero_mean_gap(guide: SiteGuide) -> ZeroMeanGap:
    """The cost of setting the means of a guide to zero; see `ZeroMeanGap`. Guides have it as a method.

    Sums are taken in float64. A distribution whose mean is zero by construction costs nothing, whatever its family.
    Random scales of priors and likelihoods are not weights; both posteriors share them, and they are left out.

    Args:
        guide: A guide, such as those of `pyrostoch.guides`.

    Returns:
        The gap of each site and their sum.

    Raises:
        TypeError: A weight's distribution is neither normal nor of zero mean; its site is named.
    """
    with torch.no_grad():
        rows = []
        for site, whole in weight_distributions(guide, "zero_mean_gap").items():
            distribution, fixed = free_entries(whole)
            shape = distribution.batch_shape
            free = torch.ones(shape, dtype=torch.bool) if fixed is None else ~fixed.mask.expand(shape).cpu()
            weights = int(free.sum())
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
                    squared_signal_to_noise(distribution).cpu()[free].sum().item() / 2,
                    log_alpha(distribution).cpu()[free].median().item(),
                )
            )
    return ZeroMeanGap(math.fsum(row.gap for row in rows), tuple(rows))
