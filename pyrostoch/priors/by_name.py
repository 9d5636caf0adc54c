"""Priors that belong to the parameters of one network, each with values of its own, by the parameter's name."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pyrostoch._checks import name_list
from pyrostoch._fixed_entries import fixed_entries, partly_fixed
from pyrostoch._manual import see
from pyrostoch.priors.base import FromDistribution, Prior, values_of

__all__ = ["PriorsByName", "SitePrior", "check_constants"]


class SitePrior(FromDistribution):
    """The distribution of one site of a guide as a prior: its values, as they are now.

    Args:
        distribution: The distribution, whose event axes are those of weights that are drawn together.
        constant: Which entries the guide holds constant, whose distribution means nothing; `None` for none.
    """

    constant: Tensor | None

    def __init__(self, distribution: torch.distributions.Distribution, constant: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.base = values_of(distribution)
        self.register_buffer("constant", None if constant is None else constant.detach().clone(), persistent=False)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weights."""
        shape: torch.Size = self.base.batch_shape + self.base.event_shape
        return shape

    @property
    def is_described_by_numbers(self) -> bool:
        """No: the text of the prior has its family only."""
        return False

    def distribution(self, name: str, shape: torch.Size) -> torch.distributions.Distribution:
        """The distribution, which has the shape of the weights."""
        found: torch.distributions.Distribution = self.base
        return found

    def __repr__(self) -> str:
        return f"from_guide({type(self.base).__name__})"


class PriorsByName:
    """A prior for each of some parameters, by name: a rule for `BayesianModel(prior=)`, alone or in a dictionary.

    `from_guide` and `around` return it. Called with a parameter's name and value it returns that parameter's prior.

    Args:
        source: Where the values come from, for errors.
        priors: The priors by the parameter's name; in place of one that cannot be, why, as the end of a sentence about
            the parameter: an error where it is asked for.
        shapes: Shapes of the parameters that they are for.
        all_named: Whether, given alone, it is for all parameters in it; otherwise for those of them that a single prior
            is for: no biases, and no parameters of normalization layers.

    Example:
        >>> from pyrostoch import priors
        >>> rule = priors.around(nn.Linear(2, 3), 0.1)
        >>> rule
        PriorsByName('weight', 'bias' of the network Linear)
        >>> rule("weight", torch.zeros(3, 2))
        Normal(loc=tensor(3, 2), scale=0.1)
    """

    def __init__(
        self, source: str, priors: Mapping[str, Prior | str], shapes: Mapping[str, torch.Size], *, all_named: bool
    ) -> None:
        self.source, self.all_named = source, all_named
        self._priors, self._shapes = dict(priors), dict(shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that have a prior here."""
        return tuple(self._priors)

    def __call__(self, name: str, parameter: Tensor) -> Prior:
        """The prior of one parameter.

        Args:
            name: The parameter's name.
            parameter: The parameter.

        Raises:
            ValueError: There is none of that name, it is for another shape, or it cannot be a prior.
        """
        if name not in self._priors:
            raise ValueError(
                f"prior: parameter {name!r}: the {self.source} has no distribution of that name; it has "
                f"{name_list(self._priors)}; give it a prior by a rule of its own{see('how-to/continue_training')}"
            )
        prior = self._priors[name]
        if isinstance(prior, str):
            raise ValueError(f"prior: parameter {name!r} of the {self.source} {prior}{see('how-to/continue_training')}")
        if not isinstance(parameter, UninitializedParameter) and self._shapes[name] != parameter.shape:
            raise ValueError(
                f"prior: parameter {name!r}: expected shape {tuple(parameter.shape)}, the {self.source} has "
                f"{tuple(self._shapes[name])}; give it a prior by a rule of its own{see('how-to/continue_training')}"
            )
        return prior

    def chosen(self, names: Collection[str], usual: Collection[str]) -> list[str]:
        """The parameters that it is for where it is the only prior of a network.

        Args:
            names: All parameters of the network.
            usual: Those that a single prior is for.

        Raises:
            ValueError: The network lacks some of the parameters, or has others that a single prior is for.
        """
        unknown, missing = self._unknown(names, "*"), [name for name in usual if name not in self._priors]
        faults = [f"{name_list(unknown)}, which the network does not have"] * bool(unknown)
        faults += [f"nothing of {name_list(missing)}"] * bool(missing)
        if faults:
            raise ValueError(
                f"prior: expected a prior for the parameters of this network, the {self.source} has "
                f"{' and '.join(faults)}. Say by rules what it is for, and which prior the others have, as in "
                f"{{'*': priors.Normal(), 'body.*': {self._call}}}{see('how-to/continue_training')}"
            )
        return [name for name in names if name in (self._priors if self.all_named else usual)]

    def matched(self, pattern: str, names: Collection[str], matches: Collection[str]) -> list[str]:
        """The parameters that it is for where it stands at a name pattern in a dictionary of rules.

        Args:
            pattern: The pattern.
            names: All parameters of the network.
            matches: Those that another prior would be for at that pattern.

        Raises:
            ValueError: Some of them have no prior here, or the network lacks some that have one here.
        """
        missing, unknown = [name for name in matches if name not in self._priors], self._unknown(names, pattern)
        if missing:
            raise ValueError(
                f"prior rule {pattern!r}: it matches {name_list(missing)}, of which the {self.source} has no "
                f"distribution; it has {name_list(self._priors)}. Use a narrower pattern, and another rule for the rest"
                f"{see('how-to/continue_training')}"
            )
        if unknown:
            raise ValueError(
                f"prior rule {pattern!r}: the {self.source} has distributions of {name_list(unknown)}, which the "
                f"network does not have; its parameters are {name_list(names)}. Was the guide of another network?"
                f"{see('how-to/continue_training')}"
            )
        return [name for name in names if name in matches or (self.all_named and self._has(name, pattern))]

    def _has(self, name: str, pattern: str) -> bool:
        return name in self._priors and fnmatch.fnmatchcase(name, pattern)

    def _unknown(self, names: Collection[str], pattern: str) -> list[str]:
        return [name for name in self._priors if name not in names and self._has(name, pattern)]

    @property
    def _call(self) -> str:
        return "priors.from_guide(guide)" if self.all_named else "priors.around(net, 0.1)"

    def __repr__(self) -> str:
        return f"PriorsByName({name_list(self._priors)} of the {self.source})"


def check_constants(net: nn.Module, name: str, prior: Prior) -> None:
    """Raise an error where entries are to be drawn that the guide held constant from which a prior was taken.

    Args:
        net: The network.
        name: Name of the parameter.
        prior: Its prior.

    Raises:
        ValueError: Such entries are to be drawn.
    """
    if not isinstance(prior, SitePrior) or prior.constant is None:
        return
    constant = prior.constant.expand(prior.shape)
    if name in partly_fixed(net):
        constant = constant & ~fixed_entries(net, name).mask.to(constant.device)
    if bool(constant.any()):
        raise ValueError(
            f"prior: parameter {name!r}: the guide held {int(constant.sum())} of its entries constant (a padding row, "
            "or weights that torch.nn.utils.prune cut), which this network does not; it never learned their "
            "distribution. Build the network with the same constants, or give the parameter another prior by a rule"
            f"{see('how-to/continue_training')}"
        )
