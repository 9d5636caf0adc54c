"""The base class of interpretations: Pyro handlers that decide how each random weight enters a network call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self, cast

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyrostoch._manual import see
from pyrostoch._ops import LinearOp
from pyrostoch.distributions import JointWeights, PartlyFixed
from pyrostoch.distributions.shared_draw import depends_on_given, mark_pending, share_by_row
from pyrostoch.effects.activation_sites import activation_of
from pyrostoch.effects.active import active_call
from pyrostoch.effects.checkpointing import checkpointed_function, explain_refusal
from pyrostoch.effects.independent import is_independent
from pyrostoch.effects.network import NetworkCall
from pyrostoch.effects.separation import obstacles
from pyrostoch.effects.unsupported import why_unsupported
from pyrostoch.effects.usage import Usage, Use, batch_of, call_kind, weight_usage

__all__ = [
    "Decision",
    "Interpretation",
    "Outcome",
    "UsageUnknownError",
    "SiteDraw",
    "base_distribution",
]


# Kinds of calls of one network that are analyzed; a network with more of them has another one at each call.
_MANY_KINDS = 32


class Outcome(Enum):
    """How one weight enters one network call.

    Attributes:
        REPLACED: It is replaced by its distribution; `Interpretation.apply` computes the operation that uses it.
        SAMPLED: It keeps its drawn value, because the interpretation replaces no weights at all.
        NOT_SUPPORTED: It keeps its drawn value, because replacing it would be wrong or is not implemented.
    """

    REPLACED = "replaced"
    SAMPLED = "sampled"
    NOT_SUPPORTED = "not supported"


class UsageUnknownError(RuntimeError):
    """A network is called for the first time inside a transformation of torch.func, where it cannot be analyzed."""


@dataclass(frozen=True)
class Decision:
    """The outcome for one weight.

    Args:
        outcome: How the weight enters the network call.
        reason: Why it is not replaced; empty unless the outcome is `NOT_SUPPORTED`.
    """

    outcome: Outcome
    reason: str = ""


@dataclass
class SiteDraw:
    """The value of a latent site and the distribution it was drawn from.

    Args:
        value: The value that the site returned, or a placeholder for it.
        distribution: Its elementwise distribution.
        independent: Whether the site is marked by `independent`.
        pending: Whether `value` is only a placeholder, and the draw is made when it is first needed.
        used: Whether a network call has replaced the value by its distribution.
        drawn: The draw that was made later.
    """

    value: Tensor
    distribution: Distribution
    independent: bool
    pending: bool = False
    used: bool = False
    drawn: Tensor | None = None


def base_distribution(fn: Distribution | Callable[..., Any]) -> Distribution:
    """The elementwise distribution inside `Independent` wrappers.

    Args:
        fn: A distribution, such as the `fn` of a Pyro site, which Pyro declares as a callable.

    Example:
        >>> import pyro.distributions as dist
        >>> base_distribution(dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)).batch_shape
        torch.Size([2, 3])
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return cast(Distribution, fn)


class Interpretation(Messenger):
    """How random weights are treated while a network runs; enter it with `with`.

    In each network call, a random weight is either replaced by its distribution or keeps its drawn value. It is
    replaced where all of this holds:

    - the interpretation supports its distribution (`supports`);
    - its site is marked by `independent`: if another site's distribution depended on the draw, replacing it would be
      wrong;
    - the network uses it in exactly one linear layer or convolution, which `reason_not_supported` does not refuse.

    To write an interpretation, derive a class, set its `name`, and override:

    - `supports(distribution)`: return `True` for the distributions that `apply` can work with. The base class supports
      none, so that every weight keeps its draw.
    - `apply(op, weight, bias)`: return the output of the linear operation `op`. `weight` and `bias` are the names of
      the sites that are replaced, or `None` where the operand is an ordinary tensor, `op.weight` or `op.bias`. Get a
      site's distribution from `self.distribution(site)` or a draw from `self.draw(site)`, run the operation on other
      operands by `op(input, weight, bias)`, and describe in `self.treatments[site]` what was done.
    - `reason_not_supported(use)`, if needed: return a short reason where one kind of linear use, such as a convolution,
      must keep the draw; return `None` where the weight can be replaced.
    - `use_sample(site, decision)`, if needed: return the value of a weight that is not replaced, or raise an error. The
      base class returns the draw.

    Args:
        lazy: Whether to draw marked sites only when the network needs their value. Set it only where nothing but the
            network reads the values.

    Attributes:
        name: Name of the interpretation, for messages.
        treatments: After a network call: how each site was treated, in words.
        replaced: After a network call: the sites whose weights were replaced by their distributions.
        without_rate: Layers whose activations have a prior, but whose rate is not known under this interpretation.
        batch: Number of examples of the network call in progress.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrostoch.effects import call_network, independent
        >>> class MeanWeights(Interpretation):
        ...     name = "mean weights"
        ...     def supports(self, distribution):
        ...         return isinstance(distribution, torch.distributions.Normal)
        ...     def apply(self, op, weight, bias):
        ...         self.treatments.update({site: "mean" for site in (weight, bias) if site is not None})
        ...         mean = op.weight if weight is None else self.distribution(weight).mean
        ...         return op(op.input, mean, op.bias if bias is None else self.distribution(bias).mean)
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> with MeanWeights() as means:
        ...     distribution = dist.Normal(torch.full((1, 1), 2.0), 1.0).to_event(2)
        ...     weight = pyro.sample("weight", distribution, infer=independent())
        ...     out = call_network(net, {"weight": weight}, (torch.ones(3, 1),))
        >>> out.flatten().tolist(), means.treatments
        ([2.0, 2.0, 2.0], {'weight': 'mean'})
    """

    name = "shared"

    def __init__(self, *, lazy: bool = False) -> None:
        super().__init__()
        self.lazy = lazy
        self.treatments: dict[str, str] = {}
        self.replaced: set[str] = set()
        self.without_rate: set[str] = set()
        # By site. Values are compared by identity, so they are kept alive; a new draw of a site replaces the old one.
        self._draws: dict[str, SiteDraw] = {}
        self._pending: set[str] = set()
        self.batch = 1

    def supports(self, distribution: Distribution) -> bool:
        """Whether `apply` can work with a weight of this distribution.

        Args:
            distribution: The weight's elementwise distribution.
        """
        return False

    def reason_not_supported(self, use: Use) -> str | None:
        """Why a weight must keep its drawn value in this use, in a few words; `None` where it can be replaced.

        Args:
            use: The weight's only use in the network, in a linear layer or a convolution.
        """
        return None

    def use_sample(self, site: str, decision: Decision) -> Tensor:
        """The value with which a weight that is not replaced enters the network: its draw.

        Args:
            site: The weight's site.
            decision: Why it is not replaced.
        """
        self.treatments[site] = f"shared ({decision.reason})" if decision.reason else "shared"
        return self.draw(site)

    def apply(self, op: LinearOp, weight: str | None, bias: str | None) -> Any:
        """Compute the output of a linear operation whose weight, bias or both are replaced.

        Args:
            op: The operation.
            weight: Site of its weight; `None` where the weight is not replaced.
            bias: Site of its bias; `None` where the bias is not replaced.
        """
        raise RuntimeError(f"{type(self).__name__} supports distributions, but does not implement apply")

    def distribution(self, site: str) -> Distribution:
        """The elementwise distribution of a site."""
        return self._draws[site].distribution

    def draw(self, site: str) -> Tensor:
        """The value of a site, drawn now if it has not been drawn yet."""
        draw = self._draws[site]
        if not draw.pending:
            return draw.value
        if draw.drawn is None:
            draw.drawn = draw.distribution.rsample()
        return draw.drawn

    def export_draws(self, drawn: Iterable[str]) -> dict[str, SiteDraw]:
        """The value and the distribution of each site, for `import_draws` of another interpretation.

        Args:
            drawn: Sites that are drawn now, if they have not been drawn yet.
        """
        values = {site: self.draw(site) for site in drawn if site in self._draws}
        return {
            site: SiteDraw(values[site], draw.distribution, draw.independent)
            if site in values
            else SiteDraw(draw.value, draw.distribution, draw.independent, draw.pending)
            for site, draw in self._draws.items()
        }

    def import_draws(self, draws: Mapping[str, SiteDraw]) -> None:
        """Take over values and distributions of sites from another interpretation.

        Args:
            draws: The result of its `export_draws`.
        """
        self._draws.update(draws)

    def __enter__(self) -> Self:
        self._draws.clear()
        self._pending.clear()
        self.without_rate.clear()
        return super().__enter__()

    def _pyro_guide_activations(self, msg: Any) -> None:
        msg["value"], msg["done"] = False, True

    def _pyro_sample(self, msg: Any) -> None:
        activation = activation_of(msg)
        if activation is not None:
            if not (msg["done"] or msg["is_observed"]):
                msg["value"], msg["done"] = activation.draw(), True
            return
        if not self.lazy or msg["done"] or msg["is_observed"] or not is_independent(msg["infer"]):
            return
        distribution = base_distribution(msg["fn"])
        if self.supports(distribution):
            # A placeholder in place of the draw. Only its identity and shape are used, so it needs no memory for
            # its entries.
            like = distribution.loc if isinstance(distribution, JointWeights) else distribution.mean
            msg["value"] = mark_pending(torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape))
            msg["done"] = True
            self._pending.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if active_call() is not None and not torch.compiler.is_compiling() and checkpointed_function() is not None:
            raise explain_refusal(f"site {msg['name']!r} is drawn in it")
        if msg["is_observed"] or site_is_subsample(msg) or activation_of(msg) is not None:
            return
        name, value = msg["name"], msg["value"]
        known = self._draws.get(name)
        # The model's site repeats the guide's value, with the prior as its distribution. The distribution that the
        # value was drawn from is the guide's, so the first one is kept.
        if known is None or known.value is not value:
            marked = is_independent(msg["infer"])
            self._draws[name] = SiteDraw(value, base_distribution(msg["fn"]), marked, name in self._pending)
            self._pending.discard(name)

    def _pyro_network(self, msg: Any) -> None:
        call: NetworkCall = msg["args"][0]
        if call.apply is not None:
            return  # an interpretation that was entered after this one handles the call
        self.batch = batch_of(call.args, call.kwargs, call.in_dims)
        usage = call.usage = self._usage_of(call)
        replaced: dict[str, str] = {}
        for parameter, value in call.weights.items():
            site = call.sites[parameter]
            draw = self._draws.get(site)
            if draw is None or draw.value is not value:
                self.treatments[site] = "shared (value given)"
                continue
            decision = self._decide(draw, usage, parameter, parameter in call.fixed)
            if decision.outcome is not Outcome.REPLACED:
                call.weights[parameter] = self.use_sample(site, decision)
                continue
            if draw.used:
                raise RuntimeError(
                    f"site {site!r}: the network is called twice with one draw of its weights, but {self.name!r} "
                    "would draw the outputs of the two calls independently; call the network once on the joined "
                    "inputs, or use estimator='shared'"
                    f"{see('how-to/choose_estimator')}"
                )
            draw.used = True
            replaced[parameter] = site
        share_by_row({site: self.distribution(site) for site in replaced.values()})
        call.replaced = set(replaced)
        self.replaced |= set(replaced.values())

        def apply(op: LinearOp, weight: str | None, bias: str | None) -> Any:
            return self.apply(
                op, None if weight is None else replaced[weight], None if bias is None else replaced[bias]
            )

        call.apply = apply

    def _decide(self, draw: SiteDraw, usage: Usage, parameter: str, has_constants: bool) -> Decision:
        """Decide whether a weight is replaced, from its distribution and its uses in the network."""
        uses = usage.uses.get(parameter, ())
        reason: str | None
        if not self._replaces:
            return Decision(Outcome.SAMPLED)
        if not self.supports(draw.distribution):
            return Decision(Outcome.NOT_SUPPORTED, why_unsupported(draw.distribution))
        reason = None
        if has_constants and not isinstance(draw.distribution, PartlyFixed):
            reason = "some entries are constant"
        elif not draw.independent:
            reason = "not marked independent"
        elif depends_on_given(draw.distribution):
            reason = "it depends on a value that is given"
        elif not uses:
            reason = "not used in the first pass"
        elif len(uses) > 1:
            reason = f"used {len(uses)} times"
        elif uses[0].role == "other":
            reason = f"used in {uses[0].function}"
        else:
            reason = self.reason_not_supported(uses[0]) or usage.obstacles.get(parameter)
        return Decision(Outcome.REPLACED) if reason is None else Decision(Outcome.NOT_SUPPORTED, reason)

    def _usage_of(self, call: NetworkCall) -> Usage:
        """The weight usage for calls of this kind; if this interpretation replaces weights, which of them it may."""
        # A network called by several models shares its results only where they count examples alike.
        # A single example may take a way of its own.
        key = (*call_kind(call.net, call.weights, call.args, call.kwargs), call.in_dims, self.batch == 1)
        if key not in call.usage_cache:
            call.usage_cache[key] = weight_usage(call.net, call.weights, call.args, call.kwargs, call.in_dims)
        usage = call.usage_cache[key]
        if self._replaces:
            self._find_obstacles(call, usage)
        return usage

    def _find_obstacles(self, call: NetworkCall, usage: Usage) -> None:
        """Analyze the weights that this interpretation would replace, but for those that are known already."""
        # Not those that keep their draw for another reason: the analysis takes many passes of the network.
        single = [
            name
            for name, uses in usage.uses.items()
            if len(uses) == 1 and uses[0].role != "other" and self.reason_not_supported(uses[0]) is None
        ]
        # Examples that are further apart than those seen so far may meet, too.
        known = {} if self.batch > usage.batch else usage.obstacles
        left = [name for name in single if name not in known]
        if not left:
            return
        if torch._C._functorch.maybe_current_level() is not None:
            raise UsageUnknownError(
                f"{type(call.net).__name__}: the first call of a network, and the first with more examples, "
                "analyzes its weight usage, which torch.vmap and torch.func do not allow; call it outside of them"
                f"{see('how-to/convert_network')}"
            )
        found: dict[str, str]
        if sum(bool(other.obstacles) for other in call.usage_cache.values()) > _MANY_KINDS:
            found = dict.fromkeys(left, "its options or attributes differ from call to call")
        else:
            found = obstacles(call.net, left, call.args, call.kwargs, self.batch, call.in_dims, call.reading)
        usage.obstacles = {**known, **dict.fromkeys(left), **found}
        usage.batch = self.batch

    @property
    def _replaces(self) -> bool:
        return type(self).supports is not Interpretation.supports
