"""What an interpretation is: a Pyro handler that knows each weight's distribution and treats network calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyrostoch._ops import LinearOp
from pyrostoch.effects.independent import is_independent
from pyrostoch.effects.network import NetworkCall
from pyrostoch.effects.usage import Use, batch_of, weight_usage

__all__ = ["Decision", "Interpretation", "Outcome", "base_distribution"]


class Outcome(Enum):
    """What becomes of one weight in one network call.

    Attributes:
        REPLACED: Its distribution goes through the network in place of a draw.
        SAMPLED: It keeps its drawn value, as every weight does under this interpretation.
        NOT_SUPPORTED: It keeps its drawn value, since replacing it would be wrong or has no rule.
    """

    REPLACED = "replaced"
    SAMPLED = "sampled"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True)
class Decision:
    """The outcome for one weight, and the reason where it is not supported."""

    outcome: Outcome
    reason: str = ""


@dataclass
class _Draw:
    """A latent value as its site gave it, with its distribution; `pending` while nothing has been drawn yet."""

    value: Tensor
    distribution: Distribution
    independent: bool
    pending: bool = False
    spent: bool = False
    drawn: Tensor | None = None

    def with_value(self, value: Tensor) -> _Draw:
        """The same distribution with another value, not used by any network call yet."""
        return _Draw(value, self.distribution, self.independent, self.pending and value is self.value)


def base_distribution(fn: Any) -> Distribution:
    """The elementwise distribution inside `Independent` wrappers.

    Args:
        fn: A distribution.

    Example:
        >>> import pyro.distributions as dist
        >>> base_distribution(dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)).batch_shape
        torch.Size([2, 3])
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


class Interpretation(Messenger):
    """How random weights are treated while a network runs; enter it with `with`.

    A subclass says which distributions it supports (`supports`) and how one linear operation is carried out (`apply`).
    Weights that the network uses anywhere but in exactly one linear operation keep their drawn value, and `treatments`
    says so; so do weights whose site is not marked by `independent`: if another site's distribution depended on the
    draw, replacing it by its distribution would be wrong.

    Args:
        lazy: Leave independent draws undrawn until the network needs their value. Only where nothing else reads them.

    Attributes:
        treatments: After a network call: how each site was treated, in words.
        replaced: After a network call: the sites whose weights were replaced by their distributions.
    """

    name = "shared"

    def __init__(self, *, lazy: bool = False) -> None:
        super().__init__()
        self.lazy = lazy
        self.treatments: dict[str, str] = {}
        self.replaced: set[str] = set()
        # Strong references, compared by identity; one entry a site, so they do not pile up over steps.
        self._draws: dict[str, _Draw] = {}
        self._pending: set[str] = set()
        self.batch = 1  # examples of the call under way

    def supports(self, distribution: Distribution) -> bool:
        """Whether operations with a weight of this distribution can be carried out in this interpretation."""
        return False

    def reason_not_supported(self, use: Use) -> str | None:
        """Why a weight keeps its drawn value in this one linear use: a reason, or `None` where it is replaced."""
        return None

    def use_sample(self, site: str, decision: Decision) -> Tensor:
        """The drawn value with which a weight goes through the network where it is not replaced.

        Args:
            site: Its site.
            decision: Why it is not.
        """
        self.treatments[site] = f"shared ({decision.reason})" if decision.reason else "shared"
        return self.draw(site)

    def apply(self, op: LinearOp, weight: str | None, bias: str | None) -> Any:
        """Carry out one linear operation whose weight, bias or both are sites that were replaced."""
        raise RuntimeError(f"{type(self).__name__} replaces no weight")

    def distribution(self, site: str) -> Distribution:
        """The elementwise distribution of a site."""
        return self._draws[site].distribution

    def draw(self, site: str) -> Tensor:
        """The value of a site, drawn now if it was left undrawn."""
        draw = self._draws[site]
        if not draw.pending:
            return draw.value
        if draw.drawn is None:
            draw.drawn = draw.distribution.rsample()
        return draw.drawn

    def export_draws(self, drawn: Iterable[str]) -> dict[str, _Draw]:
        """What is known of each site, for `import_draws` of another interpretation.

        Args:
            drawn: Sites whose values are drawn now, if they were left undrawn.
        """
        chosen = {site: self.draw(site) for site in drawn if site in self._draws}
        return {
            site: _Draw(chosen[site], draw.distribution, draw.independent)
            if site in chosen
            else draw.with_value(draw.value)
            for site, draw in self._draws.items()
        }

    def import_draws(self, draws: Mapping[str, _Draw]) -> None:
        """Take over the draws of another interpretation, from its `export_draws`."""
        self._draws.update(draws)

    def __enter__(self) -> Any:
        self._draws.clear()
        self._pending.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if not self.lazy or msg["done"] or msg["is_observed"] or not is_independent(msg["infer"]):
            return
        distribution = base_distribution(msg["fn"])
        if self.supports(distribution):
            # Stands for the draw by its identity and shape; its content is never read, so one number will do.
            like = distribution.mean
            msg["value"] = torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)
            msg["done"] = True
            self._pending.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        name, value = msg["name"], msg["value"]
        known = self._draws.get(name)
        # The model's site repeats the guide's value with the prior as its distribution: the first one, the guide's,
        # is the one the value was drawn from.
        if known is None or known.value is not value:
            marked = is_independent(msg["infer"])
            self._draws[name] = _Draw(value, base_distribution(msg["fn"]), marked, name in self._pending)
            self._pending.discard(name)

    def _pyro_network(self, msg: Any) -> None:
        call: NetworkCall = msg["args"][0]
        if call.apply is not None:
            return  # an interpretation entered later than this one has decided how the call is carried out
        uses = self._usage_of(call)
        self.batch = batch_of(call.args, call.kwargs)
        replaced: dict[str, str] = {}
        for parameter, value in call.weights.items():
            site = call.sites[parameter]
            known = self._draws.get(site)
            if known is None or known.value is not value:
                self.treatments[site] = "shared (value given)"
                continue
            decision = self._decide(known, uses.get(parameter, ()))
            if decision.outcome is not Outcome.REPLACED:
                call.weights[parameter] = self.use_sample(site, decision)
                continue
            if known.spent:
                raise RuntimeError(
                    f"site {site!r}: the network is called twice with one draw of its weights, but {self.name!r} "
                    "would draw the outputs of each call on their own; call it once on the joined inputs, or use "
                    "estimator='shared'"
                )
            known.spent = True
            replaced[parameter] = site
        call.replaced = set(replaced)
        self.replaced |= set(replaced.values())

        def apply(op: LinearOp, weight: str | None, bias: str | None) -> Any:
            return self.apply(
                op, None if weight is None else replaced[weight], None if bias is None else replaced[bias]
            )

        call.apply = apply

    def _decide(self, draw: _Draw, uses: tuple[Use, ...]) -> Decision:
        """What becomes of a weight, from its distribution and its uses in the network."""
        if not self.supports(draw.distribution):
            if type(self).supports is Interpretation.supports:
                return Decision(Outcome.SAMPLED)
            return Decision(Outcome.NOT_SUPPORTED, f"no rule for {type(draw.distribution).__name__}")
        reason: str | None = None
        if not draw.independent:
            reason = "not marked independent"
        elif len(uses) != 1:
            reason = f"used {len(uses)} times"
        elif uses[0].role == "other":
            reason = f"used in {uses[0].function}"
        else:
            reason = self.reason_not_supported(uses[0])
        return Decision(Outcome.REPLACED) if reason is None else Decision(Outcome.NOT_SUPPORTED, reason)

    def _usage_of(self, call: NetworkCall) -> dict[str, tuple[Use, ...]]:
        key = (call.net.training, tuple(call.weights))
        if key not in call.usage_cache:
            call.usage_cache[key] = weight_usage(call.net, call.weights, call.args, call.kwargs)
        usage: dict[str, tuple[Use, ...]] = call.usage_cache[key]
        return usage
