"""Several heads of a network, each with its own likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch._targets import Target
from pyrostoch.likelihoods.base import FromOutput, Likelihood, LikelihoodSpec, as_likelihood
from pyrostoch.likelihoods.select import select_output
from pyrostoch.likelihoods.several import JointObservations
from pyrostoch.moments import Moments
from pyrostoch.protocols import Output

__all__ = ["Joint"]


class _OfHead(Messenger):
    """Names the sites of a head, such as the scale of its noise, after it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _pyro_sample(self, msg: Any) -> None:
        msg["name"] = msg["name"].replace("likelihood.", f"likelihood.{self.name}.", 1)


class Joint(Likelihood):
    r"""Observations of several kinds, each with a likelihood of its own; given the output they are independent.

    $$ \log p(y \mid z) = \sum_h \log p_h(y_h \mid z_h). $$

    Targets are a dictionary with a tensor for each head: `fit(model, guide, (x, {"digit": ..., "angle": ...}))`. Where
    items are dictionaries, `BayesianModel(target=("digit", "angle"))` names the keys. Each head is a Pyro site of its
    own, `obs.digit`; `decompose` has the data term of each, `compare` and `predict` its scores and predictions.

    Args:
        heads: A likelihood, or a function from an output to a Pyro distribution, by name. A head reads the part of the
            network's output that has its name, unless its likelihood has another `output=`.

    Raises:
        TypeError: A head is no likelihood, or takes several targets itself.
        ValueError: There is no head, or two are the same object.

    Example:
        >>> import torch
        >>> from pyrostoch.likelihoods import Categorical, Gaussian
        >>> likelihood = Joint({"digit": Categorical(), "angle": Gaussian(1.0)})
        >>> observed = likelihood({"digit": torch.zeros(5, 2), "angle": torch.zeros(5, 1)})
        >>> targets = {"digit": torch.zeros(5, dtype=torch.int64), "angle": torch.zeros(5, 1)}
        >>> observed.log_prob(likelihood.read_target(targets))
        tensor([-1.6121, -1.6121, -1.6121, -1.6121, -1.6121])
    """

    def __init__(self, heads: Mapping[str, LikelihoodSpec]) -> None:
        super().__init__()
        if not isinstance(heads, Mapping) or not heads:
            raise ValueError(f"likelihood Joint: expected a dictionary from names to likelihoods, got {heads!r}")
        made = {name: as_likelihood(spec) for name, spec in heads.items()}
        if len(set(map(id, made.values()))) < len(made):
            raise ValueError("likelihood Joint: two heads are the same object; give each its own")
        for name, head in made.items():
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"likelihood Joint: expected names without dots, got {name!r}")
            if head.target_names is not None:
                raise TypeError(
                    f"likelihood Joint head {name!r}: {type(head).__name__} takes several targets itself; put it "
                    f"around the Joint, or its heads into it{see('how-to/several_heads')}"
                )
        self.heads = nn.ModuleList(made.values())  # a ModuleDict refuses names such as `values`
        self.head_names = tuple(made)
        self.target_names = self.head_names

    @property
    def by_name(self) -> dict[str, Likelihood]:
        """The likelihood of each head."""
        heads: Any = self.heads
        return dict(zip(self.head_names, heads, strict=True))

    def draw(self) -> dict[str, Tensor | float]:
        """The quantities of every head, by head and name."""
        found: dict[str, Tensor | float] = {}
        for name, head in self.by_name.items():
            with _OfHead(name):
                found |= {f"{name}.{key}": value for key, value in head.draw().items()}
        return found

    def identity(self) -> str:
        """The heads and what identifies them."""
        return f"Joint({', '.join(f'{name}: {head.identity()}' for name, head in self.by_name.items())})"

    def not_described(self) -> list[str]:
        """What the heads' identities leave out."""
        return [f"{text} of head {name!r}" for name, head in self.by_name.items() for text in head.not_described()]

    def forward(self, output: Output | Moments, quantities: dict[str, Tensor | float] | None = None) -> Distribution:
        """The distribution of the observations of every head.

        Args:
            output: The network's output, with a part for each head.
            quantities: The quantities that `draw` returns; drawn now by default.
        """
        drawn = self.draw() if quantities is None else quantities
        found = {}
        for name, head in self.by_name.items():
            part: Any = output if head.output is not None else self._part(output, name, head)
            own = {key.partition(".")[2]: value for key, value in drawn.items() if key.partition(".")[0] == name}
            found[name] = head(part, own)
        return JointObservations(found)

    def _part(self, output: Any, name: str, head: Likelihood) -> Any:
        if isinstance(output, (Tensor, Moments)):
            raise TypeError(
                f"likelihood Joint: expected a network that returns a part for each head, as a dictionary with "
                f"{name_list(self.head_names)}, got a single tensor, of which no head knows its part"
                f"{see('how-to/several_heads')}"
            )
        if isinstance(head, FromOutput) and isinstance(output, Mapping) and name in output:
            return output[name]  # a function may read several tensors
        return select_output(output, name, f"Joint head {name!r}")

    def check_shape(self, distribution: Distribution, target: Target) -> None:
        """Raise an error for targets whose shape is not that of their head's distribution.

        Args:
            distribution: The distribution of the observations.
            target: The targets.
        """
        for name, head in self.by_name.items():
            _check_head(name, head.check_shape, distribution, target)

    def check_target(self, distribution: Distribution, target: Target) -> None:
        """Raise an error for targets outside the support of their head's distribution.

        Args:
            distribution: The distribution of the observations.
            target: The targets.
        """
        for name, head in self.by_name.items():
            _check_head(name, head.check_target, distribution, target)


def _check_head(name: str, check: Any, joint: Any, targets: Any) -> None:
    """Check the targets of a head; an error says which.

    Args:
        name: Name of the head.
        check: The check of its likelihood.
        joint: The distribution of the observations.
        targets: The targets.
    """
    try:
        check(joint.heads[name], targets[name])
    except (TypeError, ValueError) as error:
        raise type(error)(f"head {name!r}: {error}") from error
