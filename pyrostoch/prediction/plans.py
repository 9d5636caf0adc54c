"""Plans of how draws run, kept from one prediction to the next: making one takes several passes of the network."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

from torch import nn

from pyrostoch.effects.usage import call_kind
from pyrostoch.prediction.activation_sizes import SamplingPlan
from pyrostoch.prediction.piece_graph import kind_of
from pyrostoch.protocols import FlatInputs

__all__ = ["known_plan"]

# Kinds of predictions of one model of which the plans are kept.
_MOST = 64

#: A plan, and the number of draws that it needs.
_Planned = tuple[SamplingPlan, int]

# By model; a plan holds for a guide, which may be any function.
_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Any, _Planned]]] = weakref.WeakKeyDictionary()


def known_plan(model: Any, guide: Any, settings: Hashable, x: FlatInputs, make: Callable[[], _Planned]) -> _Planned:
    """The plan for a kind of prediction, made where it is not known.

    It depends on the modules of model and guide, their flags and modes, and the kind of the inputs. If it did not fit,
    predictions would take longer and be right all the same: what is drawn is decided anew in each pass.

    Args:
        model: The model.
        guide: The guide.
        settings: Mode, number of draws, and whether they are joint.
        x: Inputs.
        make: Makes the plan.
    """
    net = getattr(model, "net", None)
    if not isinstance(model, nn.Module) or not isinstance(net, nn.Module):
        return make()
    inputs = x if isinstance(x, tuple) else (x,)
    parts = (*model.modules(), *(guide.modules() if isinstance(guide, nn.Module) else ()))
    kind = call_kind(net, {}, inputs, {}), kind_of(x, getattr(model, "in_dims", 0)), tuple(map(id, parts))
    plans = _PLANS.setdefault(model, {})
    key = (id(guide), settings, kind)
    if key in plans and plans[key][0]() is guide:
        return plans[key][1]
    found = make()
    if len(plans) >= _MOST:
        plans.clear()
    plans[key] = weakref.ref(guide), found
    return found
