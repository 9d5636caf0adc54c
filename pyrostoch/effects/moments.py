"""Moment propagation: a weight is replaced by its mean and variance, while activations carry theirs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._checks import check_choice
from pyrostoch._ops import LinearOp
from pyrostoch.distributions import JointWeights
from pyrostoch.effects.interpretation import (
    Decision,
    Interpretation,
    Outcome,
    SiteDraw,
)
from pyrostoch.effects.mean import stand_in_mean
from pyrostoch.effects.network import NetworkCall
from pyrostoch.effects.trees import leaves_of
from pyrostoch.effects.unsupported import entries_may_depend
from pyrostoch.moments import Moments, MomentSettings
from pyrostoch.moments.affine import propagate_linear

__all__ = ["MomentPropagation"]


class MomentPropagation(Interpretation):
    r"""One deterministic pass in which every activation is a Gaussian with a mean and a variance or covariance.

    The network's code runs unchanged; each operation is computed by its rule in `pyrostoch.moments`. The mean and
    variance of a linear layer with random weights are exact for any distribution of weights and inputs, those of
    nonlinearities and maxima for Gaussian inputs. The approximation is that a layer's output is taken as Gaussian (it
    is a sum over many inputs) and, with `covariance="diagonal"`, its entries as uncorrelated. `moments_error` measures
    the error of the approximation layer by layer.

    Latent variables that are not weights of the network, such as the scale of an observation's noise, are replaced by
    their means.

    Args:
        covariance: `"diagonal"` propagates variances, `"full"` the covariance of all entries of an example.
        fallback: `"mc"` samples through operations without a rule, and draws weights that cannot be replaced, once in
            each pass; `None` raises an error that names them.
        bound: Whether the mean log-likelihood is a closed lower bound of it, which the likelihood must have.
        closed: Whether to compute predictions and log-likelihoods from the output's moments by a closed-form
            approximation, where the likelihood has one, in place of an average over points of the output's Gaussian.

    Raises:
        MissingRuleError: The network uses an operation without a rule; the operation and the module are named.
        ValueError: A random weight is not used in exactly one linear layer or convolution; the site is named.

    References:
        Frey, Hinton, "Variational learning in nonlinear Gaussian belief networks", 1999; Gast, Roth, "Lightweight
        probabilistic deep networks", 2018; Wu et al., "Deterministic variational inference for robust Bayesian neural
        networks", 2019.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyrostoch.effects import call_network, independent
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU())
        >>> def model(x):
        ...     distribution = dist.Normal(torch.zeros(1, 1), 1.0).to_event(2)
        ...     return call_network(net, {"0.weight": pyro.sample("w", distribution, infer=independent())}, (x,),
        ...                         sites={"0.weight": "w"})
        >>> with MomentPropagation() as moments:
        ...     out = model(torch.ones(1, 1))
        >>> round(out.loc.item(), 4), moments.treatments
        (0.3989, {'w': 'moments'})
    """

    name = "moments"

    def __init__(
        self,
        covariance: Literal["diagonal", "full"] = "diagonal",
        *,
        fallback: Literal["mc"] | None = None,
        closed: bool = False,
        bound: bool = False,
    ) -> None:
        super().__init__()
        check_choice("covariance", covariance, ("diagonal", "full"))
        if fallback is not None:
            check_choice("fallback", fallback, ("mc",))
        self.settings = MomentSettings(full=covariance == "full", sampled=fallback == "mc", closed=closed, bound=bound)

    def supports(self, distribution: Distribution) -> bool:
        """Whether the distribution has a mean and a variance, and independent entries."""
        if isinstance(distribution, JointWeights):
            shared = distribution.shared
            return distribution.has_output_moments and (shared is None or shared.one_layer)
        if entries_may_depend(distribution):
            return False
        try:
            return distribution.variance is not None and distribution.mean is not None
        except NotImplementedError:  # raised by torch's distributions without these moments
            return False

    def draw(self, site: str) -> Tensor:
        """A draw of a site, for terms that can only be estimated by sampling; the network itself gets no draw."""
        draw = self._draws[site]
        if draw.drawn is None:
            if not draw.independent:
                raise ValueError(
                    f"site {site!r}: it is not marked independent, so its distribution may depend on another draw and "
                    "has no known moments; use another estimator or a guide of pyrostoch.guides, or, where it does not "
                    "depend on one, infer=pyrostoch.effects.independent()"
                )
            draw.drawn = draw.distribution.rsample()
        return draw.drawn

    def export_draws(self, drawn: Iterable[str]) -> dict[str, SiteDraw]:
        """The value and the distribution of each site; the values are the means, so none is drawn."""
        return super().export_draws(())

    def use_sample(self, site: str, decision: Decision) -> Tensor:
        """Raise a `ValueError` for a weight that cannot be replaced by its moments, or draw it with `fallback="mc"`."""
        if not self.settings.sampled:
            raise ValueError(
                f"site {site!r}: moment propagation expects each random weight to be independent, with a known mean "
                f"and variance, and used in exactly one linear layer or convolution that keeps examples apart; the "
                f"reason here: {decision.reason}. "
                "Predict with mode='mc', which draws the whole network"
                + (
                    ", or try mode='moments:mc:20', which averages over 20 draws of such weights only"
                    if self._draws[site].independent
                    else ""
                )
            )
        self.treatments[site] = f"drawn ({decision.reason})"
        return self.draw(site)

    def apply(self, op: LinearOp, weight: str | None, bias: str | None) -> Any:
        """Compute the moments of the operation's output."""
        for site in (weight, bias):
            if site is not None:
                self.treatments[site] = "moments"
        whole, of_bias = self._whole(weight), self._whole(bias)
        if weight is not None and whole is not None and not whole.covers(op):
            kind = type(whole).__name__
            decision = Decision(Outcome.NOT_SUPPORTED, f"no rule for {kind} in {op.func.__name__}")
            op = replace(op, weight=self.use_sample(weight, decision))
            weight = whole = None
        if bias is not None and of_bias is not None and of_bias.shared is not None and weight is None:
            # Its distribution is known given the weights, which were drawn.
            decision = Decision(Outcome.NOT_SUPPORTED, "it depends on a weight that is drawn")
            op = replace(op, bias=self.use_sample(bias, decision))
            bias = of_bias = None
        of_biases: tuple[Tensor | None, Tensor | None] | None = self._mean_variance(bias)
        bias_cov = None if of_bias is None else of_bias.covariance
        if of_bias is not None and whole is not None and whole.includes(of_bias):
            of_biases, bias_cov = (of_bias.mean, None), None
        return propagate_linear(op, self._mean_variance(weight), of_biases, self.settings, whole, bias_cov)

    def _whole(self, site: str | None) -> JointWeights | None:
        """The distribution of a site whose entries depend on each other, or `None`."""
        distribution = None if site is None else self.distribution(site)
        return distribution if isinstance(distribution, JointWeights) else None

    def _mean_variance(self, site: str | None) -> tuple[Tensor | None, Tensor] | None:
        """Mean (`None` where it is zero) and variance of a site."""
        if site is None:
            return None
        distribution = self.distribution(site)
        zero = getattr(distribution, "zero_mean", False)
        return (None if zero else distribution.mean), distribution.variance

    def _pyro_sample(self, msg: Any) -> None:
        stand_in_mean(msg)

    def _pyro_post_network(self, msg: Any) -> None:
        """Raise an error where the network has lost the moments on the way."""
        call: NetworkCall = msg["args"][0]
        if call.replaced and not any(isinstance(leaf, Moments) for leaf in leaves_of(msg["value"])):
            raise ValueError(
                f"{type(call.net).__name__}: moments do not reach its output, which has no uncertainty: its code may "
                "ask whether an activation is a torch.Tensor, or catch the error of an operation without a rule; "
                "predict with mode='mc'"
            )

    def _pyro_dropout(self, msg: Any) -> None:
        self._input_to_moments(msg)

    def _pyro_activation(self, msg: Any) -> None:
        self._input_to_moments(msg)
        layer, sites = msg["kwargs"]["layer"], msg["kwargs"].get("sites")
        if sites is not None and layer.prior is not None:
            self.without_rate.add(sites.name_of(layer))

    def _input_to_moments(self, msg: Any) -> None:
        """Turn an input that is still a tensor into moments with variance zero."""
        x = msg["args"][0]
        parts = x if isinstance(x, tuple) else (x,)
        parts = tuple(Moments.certain(part, self.settings) if isinstance(part, Tensor) else part for part in parts)
        found: Any = type(x)(parts) if isinstance(x, tuple) else parts[0]
        if isinstance(x, tuple) and hasattr(x, "__dict__"):  # what a layer keeps beside its kernels' outputs
            vars(found).update(vars(x))
        msg["args"] = (found, *msg["args"][1:])
