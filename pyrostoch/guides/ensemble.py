"""An equal mixture of guides of one model: deep ensembles of points, and of posteriors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count, name_list
from pyrostoch._manual import see
from pyrostoch.guides.delta import Delta
from pyrostoch.guides.sets import GuideSet
from pyrostoch.guides.statistics import Statistics, give_statistics, statistics_of
from pyrostoch.model import BayesianModel
from pyrostoch.sites import Site, announce_parameters

__all__ = ["Ensemble"]


class Ensemble(GuideSet):
    r"""An equal mixture of K guides of one model, $q(w) = \frac{1}{K} \sum_k q_k(w)$.

    Of points (`Delta`) it is a deep ensemble. Of guides with a density it has an ELBO of its own, which exceeds the
    mean of its members' by the information that a draw has of its member, between 0 and $\log K$ nats. `decompose`
    gives that mean, and each member's. `fit` trains each member by itself, on its own order of the data.

    Every weight that differs between members must have a prior, since a model has one set of parameters without. The
    buffers of the network, such as the running statistics of batch normalization, are each member's own. Members made
    by hand get theirs from `fit` of the ensemble, or from `fit_statistics`; draws without are refused.

    Args:
        guides: The members, guides of the same model.

    Raises:
        ValueError: There is none, one guide is given twice, or they are guides of different networks.

    References:
        Lakshminarayanan, Pritzel, Blundell, "Simple and scalable predictive uncertainty estimation using deep
        ensembles", 2017; Jaakkola, Jordan, "Improving the mean field approximation via the use of mixture
        distributions", 1998, for the bound.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(2, 1), prior={"*": ps.priors.Normal()},
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = Ensemble.of(model, size=3)
        >>> len(guide), type(guide.members[0]).__name__
        (3, 'Delta')
    """

    def __init__(self, guides: Iterable[nn.Module]) -> None:
        super().__init__()
        members = list(guides)
        _check_members(members)
        self.members = nn.ModuleList(members)
        for member in members:
            layers: Any = member._layers_with_statistics
            if layers and len(members) > 1 and statistics_of(member) is None:
                # The network has those of one member at most, and nobody knows which.
                member.own_statistics = Statistics({}, layers)
        self.site_names = tuple(members[0].site_names)  # type: ignore[arg-type]
        self.weight_names = tuple(members[0].weight_names)  # type: ignore[arg-type]

    @classmethod
    def of(cls, model: BayesianModel, make: Callable[..., nn.Module] = Delta, size: int = 5) -> Ensemble:
        """An ensemble whose members start at different weights.

        The first starts at the network's own; for each other one the network's layers are initialized again, by their
        own `reset_parameters`.

        Args:
            model: The model.
            make: Makes a member from the model and `init_loc`, the initial weights as a function of the site.
            size: Number of members.

        Raises:
            ValueError: A layer with a prior on its weights has no `reset_parameters`.
        """
        size = check_count("Ensemble size", size)
        guide = cls(make(model, init_loc=_start(model, again=number > 0)) for number in range(size))
        for member in guide.members:
            give_statistics(model.net, member, known=True)
        return guide

    @property
    def has_density(self) -> bool:
        """Whether draws have a density, without which there is no ELBO."""
        return all(getattr(member, "has_density", True) for member in self.members)

    def __len__(self) -> int:
        return len(self.members)

    def draw_member(self, index: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every site from one member.

        Args:
            index: Number of the member.
            args: The model's arguments.
            kwargs: The same, by name.

        Raises:
            ValueError: The member has no running statistics of its own.
        """
        announce_parameters(self, "guide")
        member: Any = self.members[index]
        member.announce_statistics()
        drawn: dict[str, Tensor] = member.draw()
        return drawn

    def extra_repr(self) -> str:
        """The number of members."""
        return f"size={len(self)}"


def _check_members(members: list[Any]) -> None:
    if not members:
        raise ValueError("guide Ensemble: expected at least one guide, got none")
    for number, member in enumerate(members):
        if isinstance(member, GuideSet):
            raise ValueError(
                f"guide Ensemble: expected guides of one network each, but member {number} is a set, a "
                f"{type(member).__name__}; give the members of all sets in one list, or join draws of a site by "
                f"torch.cat in one Samples{see('how-to/ensembles')}"
            )
        if not hasattr(member, "draw") or not hasattr(member, "site_shapes"):
            raise ValueError(
                f"guide Ensemble: expected guides of this library as members, got {type(member).__name__}"
                f"{see('how-to/ensembles')}"
            )
        if any(member is other for other in members[:number]):
            raise ValueError(f"guide Ensemble: member {number} is there twice; each needs parameters of its own")
    shapes = [member.site_shapes for member in members]
    for number, found in enumerate(shapes):
        if found != shapes[0]:
            other = sorted(name for name in {*found, *shapes[0]} if found.get(name) != shapes[0].get(name))
            raise ValueError(
                f"guide Ensemble: expected guides of one network, but members 0 and {number} differ in "
                f"{name_list(other)}; average the predictions of different networks instead"
                f"{see('how-to/ensembles')}"
            )


def _start(model: BayesianModel, *, again: bool) -> Callable[[Site], Tensor] | None:
    """Initial weights by site: the network's own, or those of a copy that was initialized again."""
    if not again:
        return None
    net = copy.deepcopy(model.net)
    for module in net.modules():
        if callable(getattr(module, "reset_parameters", None)):
            module.reset_parameters()  # type: ignore[operator]
    values = dict(net.named_parameters())

    def start(site: Site) -> Tensor:
        if site.role == "scale":
            return site.init
        value = values[site.name].detach()
        if torch.equal(value, site.init) and not bool((value == value.flatten()[0]).all()):
            raise ValueError(
                f"guide Ensemble: all members would start at the same weights at site {site.name!r}, since its layer "
                f"has no reset_parameters; make the members yourself, by Ensemble([...]){see('how-to/ensembles')}"
            )
        return value

    return start
