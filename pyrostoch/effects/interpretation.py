"""What an interpretation is: a Pyro handler that knows the law of each drawn weight and treats network calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyrostoch._ops import LinearOp
from pyrostoch.effects.census import Use, batch_of, take_census
from pyrostoch.effects.network import NetworkCall

__all__ = ["INDEPENDENT", "Interpretation", "base_law"]

#: Key in a site's `infer`: no other site's law depends on this draw. Only such a weight may be replaced by its law.
INDEPENDENT = "pyrostoch_independent"


@dataclass
class _Draw:
    """A latent value as its site gave it, with its law; `pending` while it stands for a value not drawn yet."""

    value: Tensor
    law: Distribution
    independent: bool
    pending: bool = False
    spent: bool = False
    drawn: Tensor | None = None

    def holding(self, value: Tensor) -> _Draw:
        """A fresh account of the same law, with a value of its own."""
        return _Draw(value, self.law, self.independent, self.pending and value is self.value)


def base_law(fn: Any) -> Distribution:
    """The elementwise law inside `Independent` wrappers."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


class Interpretation(Messenger):
    """How random weights are treated while a network runs; enter it with `with`.

    A subclass says which laws it can treat (`treats`) and how one linear operation is carried out (`carry`). Weights
    that the network uses anywhere but in exactly one linear operation keep their drawn value, and `routes` says so;
    so do weights whose site is not marked `infer={INDEPENDENT: True}`, as pyrostoch's guides mark theirs: if another
    site's law depended on the draw, replacing it by its law would be wrong.

    Args:
        lazy: Leave independent draws undrawn until the network needs their value. Only where nothing else reads them.

    Attributes:
        routes: After a network call: for each site, the way it took, in words.
        treated: After a network call: the sites whose weights were replaced by their laws.
    """

    name = "shared"

    def __init__(self, *, lazy: bool = False) -> None:
        super().__init__()
        self.lazy = lazy
        self.routes: dict[str, str] = {}
        self.treated: set[str] = set()
        # Strong references, compared by identity; one entry a site, so they do not pile up over steps.
        self._draws: dict[str, _Draw] = {}
        self._pending: set[str] = set()
        self.batch = 1  # examples of the call under way

    def treats(self, law: Distribution) -> bool:
        """Whether operations with a weight of this law can be carried out in this interpretation."""
        return False

    def refuses(self, use: Use) -> str | None:
        """Why a weight keeps its drawn value in this one linear use: a reason, or `None`."""
        return None

    def keep(self, site: str, reason: str) -> Tensor:
        """The value with which a weight goes through the network that is not replaced by its law.

        Args:
            site: Its site.
            reason: Why not; empty where that is the interpretation's design.
        """
        self.routes[site] = f"shared ({reason})" if reason else "shared"
        return self.draw(site)

    def carry(self, op: LinearOp, weight: str | None, bias: str | None) -> Any:
        """Carry out one linear operation whose weight and/or bias are the named, deferred sites."""
        raise RuntimeError(f"{type(self).__name__} defers no weight")

    def law(self, site: str) -> Distribution:
        """The elementwise law of a site."""
        return self._draws[site].law

    def draw(self, site: str) -> Tensor:
        """The value of a site, drawn now if it was left undrawn."""
        draw = self._draws[site]
        if not draw.pending:
            return draw.value
        if draw.drawn is None:
            draw.drawn = draw.law.rsample()
        return draw.drawn

    def held(self, drawn: Iterable[str]) -> dict[str, _Draw]:
        """What is known of each site, to be given to `hold`; the values of the named ones are drawn now."""
        chosen = {site: self.draw(site) for site in drawn if site in self._draws}
        return {
            site: _Draw(chosen[site], draw.law, draw.independent) if site in chosen else draw.holding(draw.value)
            for site, draw in self._draws.items()
        }

    def hold(self, draws: Mapping[str, _Draw]) -> None:
        """Take over draws that another interpretation has made, with `held`."""
        self._draws.update(draws)

    def __enter__(self) -> Any:
        self._draws.clear()
        self._pending.clear()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if not self.lazy or msg["done"] or msg["is_observed"] or not msg["infer"].get(INDEPENDENT):
            return
        law = base_law(msg["fn"])
        if self.treats(law):
            # Stands for the draw by its identity and shape; its content is never read, so one number will do.
            like = law.mean
            msg["value"] = torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)
            msg["done"] = True
            self._pending.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        name, value = msg["name"], msg["value"]
        known = self._draws.get(name)
        # The model's site repeats the guide's value under the prior's law: the first law, the guide's, holds.
        if known is None or known.value is not value:
            independent = bool(msg["infer"].get(INDEPENDENT))
            self._draws[name] = _Draw(value, base_law(msg["fn"]), independent, name in self._pending)
            self._pending.discard(name)

    def _pyro_network(self, msg: Any) -> None:
        call: NetworkCall = msg["args"][0]
        if call.carrier is not None:
            return  # an interpretation further in has taken this call
        uses = self._census(call)
        self.batch = batch_of(call.args, call.kwargs)
        deferred: dict[str, str] = {}
        for parameter, value in call.weights.items():
            site = call.sites[parameter]
            known = self._draws.get(site)
            if known is None or known.value is not value:
                self.routes[site] = "shared (value given)"
                continue
            reason = self._why_not(known, uses.get(parameter, ()))
            if reason is None:
                if known.spent:
                    raise RuntimeError(
                        f"site {site!r}: the network is called twice with one draw of its weights, but {self.name!r} "
                        "would draw the outputs of each call on their own; call it once on the joined inputs, or use "
                        "estimator='shared'"
                    )
                known.spent = True
                deferred[parameter] = site
            else:
                call.weights[parameter] = self.keep(site, reason)
        call.deferred = set(deferred)
        self.treated |= set(deferred.values())

        def carrier(op: LinearOp, weight: str | None, bias: str | None) -> Any:
            return self.carry(
                op, None if weight is None else deferred[weight], None if bias is None else deferred[bias]
            )

        call.carrier = carrier

    def _why_not(self, draw: _Draw, uses: tuple[Use, ...]) -> str | None:
        """Why a weight keeps its drawn value: a reason, `""` for by design, or `None` where it is deferred."""
        if not self.treats(draw.law):
            return "" if type(self).treats is Interpretation.treats else f"no rule for {type(draw.law).__name__}"
        if not draw.independent:
            return "not marked independent"
        if len(uses) != 1:
            return f"used {len(uses)} times"
        if uses[0].role == "other":
            return f"used in {uses[0].function}"
        return self.refuses(uses[0])

    def _census(self, call: NetworkCall) -> dict[str, tuple[Use, ...]]:
        key = (call.net.training, tuple(call.weights))
        if key not in call.censuses:
            call.censuses[key] = take_census(call.net, call.weights, call.args, call.kwargs)
        census: dict[str, tuple[Use, ...]] = call.censuses[key]
        return census
