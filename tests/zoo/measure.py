"""Each mode's variance and data term on a network of the zoo, against draws of whole networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

import pyrostoch as ps
from pyrostoch._inputs import count_examples
from pyrostoch.infer.elbo import interpretation
from pyrostoch.likelihoods.several import expected_log_prob
from pyrostoch.moments import MissingRuleError, Moments
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import Inputs

from .entry import Entry

MODES = ("local", "flipout", "marginal", "moments")
_GROUPS = 20
_NOISE = 1.0


@dataclass(frozen=True)
class Row:
    """What was measured for one mode.

    Args:
        mode: The mode.
        treatments: The treatments of the random weights, each once.
        ratio: Variance of the outputs, summed over all of them, divided by that of whole networks.
        ratio_error: Its standard error.
        data: Difference of the data term from that of whole networks, in nats.
        data_error: Its standard error.
        refused: Why the mode cannot be used, if so.
    """

    mode: str
    treatments: tuple[str, ...]
    ratio: float = math.nan
    ratio_error: float = math.nan
    data: float = math.nan
    data_error: float = math.nan
    refused: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether every treatment promises the exact marginal distribution of each example."""
        approximate = ("factorized", "matched", "moments", "drawn")
        return not self.refused and not any(word in text for text in self.treatments for word in approximate)

    @property
    def agrees(self) -> bool:
        """Whether variance and data term are those of whole networks, within six standard errors and a rest."""
        return abs(self.ratio - 1.0) < 6.0 * self.ratio_error + 0.02 and abs(self.data) < 6.0 * self.data_error + 0.01

    def __str__(self) -> str:
        if self.refused:
            return f"{self.mode:9} refused: {self.refused[:90]}"
        numbers = f"{self.ratio:.3f} ± {self.ratio_error:.3f}  {self.data:+.2f} ± {self.data_error:.2f} nats"
        return f"{self.mode:9} {numbers}  {'; '.join(self.treatments)}"


#: Guides whose weights depend on each other, within sites or between them.
STRUCTURED: dict[str, Callable[..., Any]] = {
    "low rank": partial(ps.guides.LowRank, rank=2),
    "matrix": ps.guides.MatrixNormal,
    "low rank, by site": partial(ps.guides.LowRank, rank=1, scope="site"),
    "full": ps.guides.FullCovariance,
}


def measure(entry: Entry, draws: int, make: Callable[..., Any] = ps.guides.Additive) -> list[Row]:
    """Measure every mode on a network.

    Args:
        entry: The network.
        draws: Number of draws, for each mode and for the whole networks.
        make: Makes the guide.
    """
    net, x = entry.make()
    normal = ps.priors.Normal()
    prior = {"*": None, **dict.fromkeys(entry.random, normal)} if entry.random else {"*": normal}
    count = count_examples(x, entry.in_dims)
    model = ps.BayesianModel(
        net, prior=prior, likelihood=ps.likelihoods.Gaussian(_NOISE), num_data=count or 1, in_dims=entry.in_dims
    )
    guide = make(model, init_scale=entry.scale)
    if make is not ps.guides.Additive:
        _couple(guide)
    with training_mode(entry.training, model, guide), torch.no_grad():
        whole = [model.outputs(x, guide()) for _ in range(draws)]
        y = torch.stack(whole).mean(0) + _NOISE * torch.randn_like(whole[0])
        truth = _Summary(whole, y)
        return [_row(model, guide, x, y, mode, truth, draws) for mode in MODES]


def _couple(guide: Any) -> None:
    """Let the weights depend on each other about as much as they vary by themselves."""
    with torch.no_grad():
        for site in guide.site_names:
            parameters = guide.parameters_for(site)
            if "factor" in parameters:
                parameters["factor"].mul_(7.0)
            for name in {"rows", "columns", "tril"} & set(parameters):
                size = len(parameters[name])
                parameters[name].add_(torch.randn_like(parameters[name]).tril(-1) / size**0.5)


class _Summary:
    """Variance and data term of some draws of the output, in groups for their standard errors."""

    def __init__(self, outputs: list[Tensor], y: Tensor) -> None:
        stacked = torch.stack(outputs).double()
        groups = stacked.unflatten(0, (_GROUPS, -1))
        self.variances = groups.var(1).flatten(1).sum(1)
        terms = torch.distributions.Normal(stacked, _NOISE).log_prob(y.double()).flatten(1).sum(1)
        self.data = terms.mean().item()
        self.data_error = terms.std().item() / len(terms) ** 0.5
        self.variance = self.variances.mean().item()
        self.variance_error = self.variances.std().item() / _GROUPS**0.5


def _row(
    model: ps.BayesianModel,
    guide: ps.guides.Guide,
    x: Inputs,
    y: Tensor,
    mode: str,
    truth: _Summary,
    draws: int,
) -> Row:
    treatments: dict[str, str] = {}

    def once(read: Callable[[object], object]) -> object:
        with interpretation(mode, model) as handler:
            trace = poutine.trace(guide).get_trace(x)
            result = read(poutine.trace(poutine.replay(lambda: _observed(model, x), trace=trace)).get_trace())
        treatments.update(handler.treatments)
        return result

    try:
        first = once(lambda trace: trace.nodes["_RETURN"]["value"])
    except (MissingRuleError, ValueError) as error:
        return Row(mode, (), refused=str(error).splitlines()[0])
    output, distribution = first
    if isinstance(output, Moments):
        variance, variance_error = output.var.double().sum().item(), 0.0
        data, data_error = expected_log_prob(distribution, y).sum().item(), 0.0
    else:
        found = _Summary([once(lambda trace: trace.nodes["_RETURN"]["value"])[0] for _ in range(draws)], y)
        variance, variance_error, data, data_error = found.variance, found.variance_error, found.data, found.data_error
    if truth.variance == 0.0:  # a gate that is closed in every draw
        return Row(mode, tuple(sorted(set(treatments.values()))), float(variance == 0.0), 0.0, data - truth.data, 0.0)
    ratio = variance / truth.variance
    return Row(
        mode,
        tuple(sorted(set(treatments.values()))),
        ratio,
        ratio * math.hypot(variance_error / variance, truth.variance_error / truth.variance),
        data - truth.data,
        math.hypot(data_error, truth.data_error),
    )


def _observed(model: ps.BayesianModel, x: Inputs) -> tuple[object, object]:
    """The network's output, and the distribution of the observations."""
    output = model.outputs(x, model.draw())
    return output, model.likelihood(output)
