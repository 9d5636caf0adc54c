"""What `fit_laplace` returns: the marginal likelihood of a Laplace approximation and its terms."""

from __future__ import annotations

from dataclasses import dataclass

from pyrostoch.records import Record, number, table

__all__ = ["LaplaceFit"]


@dataclass(frozen=True, eq=False)
class LaplaceFit(Record):
    """What `fit_laplace` found.

    Args:
        structure: The guide's structure.
        log_marginal_likelihood: Laplace's approximation of the log evidence, in nats.
        log_likelihood: The log-likelihood of all data at the means, in nats.
        log_prior: The log density of the prior at the means, in nats.
        log_det: Log of the determinant of the posterior's precision.
        prior_precision: The precision of each site's prior; of several the largest and the smallest are given.
        chosen: How it was chosen: `"given"`, `"marginal"` or `"held-out"`.
        effective_weights: How many weights the data determine: the sum of the curvature's eigenvalues over themselves
            plus the prior's precision. (`"last_layer"` and `"full"` with several precisions: by their geometric mean.)
        num_weights: Number of random weights.
        newton_gain: What a Newton step would add to the log joint density under the given prior, in nats; 0 at a
            maximum.
        negative_curvature: The negative curvature found in a direction that was looked for; `None` if there was none.
        num_data: Number of examples.
        held_out: Mean negative log predictive density on the held-out data by precision, in nats, if they were given.
    """

    structure: str
    log_marginal_likelihood: float
    log_likelihood: float
    log_prior: float
    log_det: float
    prior_precision: dict[str, float | tuple[float, float]]
    chosen: str
    effective_weights: float
    num_weights: int
    newton_gain: float
    negative_curvature: float | None
    num_data: int
    held_out: dict[float, float] | None = None

    def __str__(self) -> str:
        rows: list[tuple[str, object]] = [
            ("log marginal likelihood, nats", self.log_marginal_likelihood),
            ("log-likelihood, nats", self.log_likelihood),
            ("log prior density, nats", self.log_prior),
            ("log determinant of the precision", self.log_det),
            ("effective weights", f"{number(self.effective_weights, 1)} of {self.num_weights}"),
            ("gain of a Newton step, nats", self.newton_gain),
        ]
        for site, value in self.prior_precision.items():
            ends = (value, value) if isinstance(value, float) else value
            text = number(ends[0]) if ends[0] == ends[1] else f"{number(ends[0])} to {number(ends[1])}"
            rows.append((f"prior precision of {site}", text))
        head = f"Laplace approximation ({self.structure}) from {self.num_data} examples, prior {self.chosen}"
        return f"{head}\n{table(('', 'value'), rows)}"
