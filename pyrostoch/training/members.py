"""The steps of an ensemble, whose members are trained side by side, each on its own order of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._inputs import to_device
from pyrostoch._manual import see
from pyrostoch._seeds import generator_states, mixed_seed, set_generator_states
from pyrostoch.effects.interpretation import UsageUnknownError
from pyrostoch.guides import Amortised, Ensemble, GuideSet, Laplace, Samples, Swag
from pyrostoch.guides.delta import check_maximum
from pyrostoch.guides.statistics import statistics_of
from pyrostoch.infer.batches import Share
from pyrostoch.model import BayesianModel
from pyrostoch.staging import restore_tensors, unique
from pyrostoch.training.trainer import Trainer

__all__ = ["MembersTrainer", "check_several"]

# Up to how many weights of a member all run through the network together, by torch.vmap: beyond, products of matrices
# take most of the time, and those of a batch of matrices are no faster than one after another.
_FEW_WEIGHTS = 20_000


@dataclass(frozen=True)
class _Shares(Share):
    """A batch of each member: `x` and `y` are those of the first, which `fit` checks."""

    parts: tuple[Share, ...] = ()


def check_several(model: BayesianModel, guide: nn.Module, clip: float | None, schedule: object) -> None:
    """Raise an error for a guide of several networks that would share something, and for one without a maximum.

    Args:
        model: The model.
        guide: The guide; one that is neither an ensemble nor a chain nor has SWAG or Laplace as a part is left alone.
        clip: Largest norm of the gradient.
        schedule: The schedule of the learning rate.

    Raises:
        ValueError: The model trains parameters without a prior; they are named. Or the iterates of SWAG would stand
            still, a set is within an `Amortised` guide, or `Laplace` looks for a maximum under a prior that is fitted.
    """
    if isinstance(guide, Amortised) and isinstance(guide.weights, GuideSet):
        raise ValueError(
            f"fit: expected the {type(guide.weights).__name__} itself, got it within Amortised, in which a step would "
            f"train one member by chance; fit draws random activations without{see('how-to/ensembles')}"
        )
    for part in guide.modules():
        if isinstance(part, Laplace):
            check_maximum(part, model)
    iterates = any(isinstance(part, Swag) for part in guide.modules())
    if not iterates and not isinstance(guide, (Ensemble, Samples)):
        return
    kinds: dict[type, str] = {Ensemble: "the members of an ensemble", Samples: "the draws of a chain"}
    what = kinds.get(type(guide), "the iterates of SWAG")
    plain = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if plain:
        raise ValueError(
            f"fit: {what} would share the parameters {name_list(plain)}, which have no prior; give "
            "every one a prior, as prior={'*': priors.Normal(), 'bn1.*': priors.Normal(0.0, 10.0)} or, with "
            "normalization layers, prior=lambda name, value: priors.Normal(), or fix them by requires_grad_(False)"
            f"{see('how-to/ensembles')}"
        )
    if iterates and schedule in ("linear", "cosine"):
        raise ValueError(
            f"fit: schedule={schedule!r} ends at a rate of 0, where iterates stand still, so that SWAG finds no "
            f"spread; take schedule='constant', or a function{see('how-to/ensembles')}"
        )
    if clip is not None and isinstance(guide, Ensemble) and len(guide) > 1:
        raise ValueError("fit: clip= is the norm of one network's gradient; train the members of an ensemble without")


class MembersTrainer(Trainer):
    """Trains the members of an ensemble side by side; see `Trainer`.

    The gradient of each member is that of its own loss, so that its training does not depend on the others. Few weights
    run through the network together, by `torch.vmap`; many one after another, in the same step.
    """

    guide: Ensemble
    # Whether the network can be vectorized, until it turns out that it cannot.
    _together = True

    def _shares(self, number: int) -> Iterator[Share]:
        if self.batches.from_loader:  # which has one order
            for share in super()._shares(number):
                yield _Shares(share.x, share.y, share.weight, share.count, (share,) * len(self.guide))
            return
        seeds = [self.order_seed, *(mixed_seed(self.order_seed, 0, member) for member in range(1, len(self.guide)))]
        orders = [self.batches.shares(seed, number, self.ranks) for seed in seeds]
        for parts in zip(*orders, strict=True):
            yield _Shares(parts[0].x, parts[0].y, parts[0].weight, parts[0].count, parts)

    def _parts(self, share: Any) -> list[Share]:
        """Parts of the batches of all members, which are of one size."""
        columns = zip(*(super(MembersTrainer, self)._parts(part) for part in share.parts), strict=True)
        return [_Shares(parts[0].x, parts[0].y, parts[0].weight, parts[0].count, parts) for parts in columns]

    def _arguments(self, share: Any) -> tuple[Any, Any]:
        parts = share.parts
        return tuple(to_device(p.x, self.device) for p in parts), tuple(to_device(p.y, self.device) for p in parts)

    def _loss(self, x: Any, y: Any, kl_weight: Tensor, weight: float | None) -> tuple[Tensor, Tensor]:
        """The sum of the members' losses, and the means of loss, data term, KL, rate and penalty."""
        if self._together and _alike(list(self.guide.members)) and all(isinstance(p, Tensor) for p in (*x, *y)):
            batch = (torch.stack(x), torch.stack(y), kl_weight, weight)
            states = generator_states(self.device)
            try:
                try:
                    return self._loss_together(*batch)
                except UsageUnknownError:
                    # A pass outside of vmap finds out how the network uses its weights, and leaves nothing else.
                    with restore_tensors(unique([*self.model.buffers(), *self.guide.buffers()])):
                        self._loss_of(self.guide.members[0], x[0], y[0], kl_weight, weight)
                    set_generator_states(self.device, states)
                    return self._loss_together(*batch)
            except Exception:  # a network may do anything that cannot be vectorized
                self._together = False
                set_generator_states(self.device, states)
        found = [self._loss_of(*part, kl_weight, weight) for part in zip(self.guide.members, x, y, strict=True)]
        losses, terms = (torch.stack(list(column)) for column in zip(*found, strict=True))
        return losses.sum(), terms.mean(0)

    def _loss_together(self, x: Tensor, y: Tensor, kl_weight: Tensor, weight: float | None) -> tuple[Tensor, Tensor]:
        members: Any = list(self.guide.members)
        stacked = _stacked([dict(member.named_parameters()) for member in members])
        own = [_own_buffers(member) for member in members]
        buffers = _stacked(own)
        stacked |= buffers
        member = _Member(members[0], self)

        def loss_of(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            found: Any = torch.func.functional_call(member, parameters, (x, y, kl_weight, weight))
            return found[0], found[1]

        losses, terms = torch.vmap(loss_of, randomness="different")(stacked, x, y)
        with torch.no_grad():  # into which the network has written
            for name, values in buffers.items():
                for mine, value in zip(own, values, strict=True):
                    mine[name.removeprefix("guide.")].copy_(value)
        return losses.sum(), terms.mean(0)

    def _find_nonfinite(self, share: Any) -> list[str]:
        found = []
        for part in self._parts(share):
            for number, (member, x, y) in enumerate(zip(self.guide.members, *self._arguments(part), strict=True)):
                found += [f"{name} (member {number})" for name in self._nonfinite_in(member, x, y)]
        return list(dict.fromkeys(found))


class _Member(nn.Module):
    """The loss of one member, as a function of its parameters."""

    def __init__(self, guide: nn.Module, trainer: MembersTrainer) -> None:
        super().__init__()
        self.guide, self._trainer = guide, trainer

    def forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        return self._trainer._loss_of(self.guide, *args)


def _own_buffers(member: nn.Module) -> dict[str, Tensor]:
    """The network's buffers that belong to a member, by their names in it."""
    found = statistics_of(member)
    return {} if found is None else dict(found.held.named_buffers("own_statistics.held"))


def _stacked(members: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all members, one member after the other, by their names in `_Member`."""
    return {f"guide.{name}": torch.stack([member[name] for member in members]) for name in members[0]}


def _alike(members: list[nn.Module]) -> bool:
    """Whether all members have the same settings, and few weights."""
    weights = sum(parameter.numel() for parameter in members[0].parameters())
    own = all(type(part).__module__.startswith("pyrostoch.guides") for part in members)
    return own and weights <= _FEW_WEIGHTS and all(repr(member) == repr(members[0]) for member in members)
