"""Moment propagation: a weight is replaced by its mean and variance, while activations carry theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._checks import check_choice
from pyrostoch._ops import LinearOp
from pyrostoch.effects.interpretation import Decision, Interpretation
from pyrostoch.effects.mean import replace_by_mean
from pyrostoch.moments import Moments, MomentSettings
from pyrostoch.moments.affine import propagate_linear

__all__ = ["MomentPropagation"]


class MomentPropagation(Interpretation):
    r"""One deterministic pass in which every activation is a Gaussian, by its mean and variance or covariance.

    The network's code runs as it is; each operation is answered by its rule (`pyrostoch.moments`). Linear layers with
    random weights are exact in both moments for any distribution, units and maxima are exact for Gaussian inputs; that
    a layer's output is Gaussian is what is assumed (many inputs add up), and with `covariance="diagonal"` that its
    entries are uncorrelated. `moments_error` says how far that holds, layer by layer.

    Latent variables that are no weights of the network (a noise's scale) are replaced by their means.

    Args:
        covariance: `"diagonal"` carries variances, `"full"` the covariance of all entries of an example.
        fallback: `"mc"` samples through operations without a rule; `None` raises an error that names them.
        closed: Whether a closed approximation reads the output's moments, and not points of its Gaussian.

    Raises:
        MissingRuleError: The network uses an operation without a rule; it and the module are named.
        ValueError: A random weight is not used in exactly one linear layer or convolution; the site is named.

    References:
        Frey, Hinton 1999; Wu et al. 2019; Gast, Roth, "Lightweight probabilistic deep networks", 2018.

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
    ) -> None:
        super().__init__()
        check_choice("covariance", covariance, ("diagonal", "full"))
        if fallback is not None:
            check_choice("fallback", fallback, ("mc",))
        self.settings = MomentSettings(full=covariance == "full", sampled=fallback == "mc", closed=closed)

    def supports(self, distribution: Distribution) -> bool:
        """Whether the distribution has a mean and a variance."""
        try:
            return distribution.variance is not None and distribution.mean is not None
        except NotImplementedError:  # how torch's distributions say that they know none
            return False

    def draw(self, site: str) -> Tensor:
        """A draw of a site, for terms that have to be estimated; the network is given moments instead."""
        draw = self._draws[site]
        if draw.drawn is None:
            if not draw.independent:
                raise ValueError(
                    f"site {site!r}: its distribution depends on another draw, so it has no moments of its own here; "
                    "use another estimator, or a guide of pyrostoch.guides"
                )
            draw.drawn = draw.distribution.rsample()
        return draw.drawn

    def export_draws(self, drawn: Iterable[str]) -> dict[str, Any]:
        """What is known of each site; a mean stands for its value, so that there is nothing to draw."""
        return super().export_draws(())

    def use_sample(self, site: str, decision: Decision) -> Tensor:
        """Refuse a weight that cannot be replaced by its moments, unless sampling is allowed."""
        if not self.settings.sampled:
            raise ValueError(
                f"site {site!r}: moments need a random weight with a distribution of its own in exactly one linear "
                f"layer or convolution, and this one is {decision.reason}; predict with "
                "mode='mc', or draw it with mode='moments:mc'"
            )
        self.treatments[site] = f"one draw ({decision.reason})"
        return self.draw(site)

    def apply(self, op: LinearOp, weight: str | None, bias: str | None) -> Any:
        """Mean and variance of the layer's output."""
        for site in (weight, bias):
            if site is not None:
                self.treatments[site] = "moments"
        return propagate_linear(op, self._parts(weight), self._parts(bias), self.settings)

    def _parts(self, site: str | None) -> tuple[Tensor | None, Tensor] | None:
        if site is None:
            return None
        distribution = self.distribution(site)
        zero = getattr(distribution, "zero_mean", False)
        return (None if zero else distribution.mean), distribution.variance

    def _pyro_sample(self, msg: Any) -> None:
        replace_by_mean(msg)

    def _pyro_dropout(self, msg: Any) -> None:
        self._certain(msg)

    def _pyro_activation(self, msg: Any) -> None:
        self._certain(msg)

    def _certain(self, msg: Any) -> None:
        """A tensor that meets noise for the first time is a mean without variance."""
        x = msg["args"][0]
        if isinstance(x, Tensor):
            msg["args"] = (Moments.certain(x, self.settings), *msg["args"][1:])
