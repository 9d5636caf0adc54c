"""What the names of the command line stand for: guides and priors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyrostoch import guides, priors
from pyrostoch._checks import check_choice, check_positive

__all__ = ["COMPARED", "GUIDES", "GuideKind", "parse_prior"]


@dataclass(frozen=True)
class GuideKind:
    """A guide by its name.

    Args:
        title: Its name in words.
        make: Makes it from a model; takes `init_log_alpha` where `alpha` is true.
        alpha: Whether it has a log alpha of its own to start from.
    """

    title: str
    make: Callable[..., Any]
    alpha: bool = False


#: The guides that a run can train.
GUIDES: dict[str, GuideKind] = {
    "additive": GuideKind("Additive", guides.Additive),
    "weightwise": GuideKind("Weight-wise alpha", guides.WeightwiseAlpha, alpha=True),
    "neuronwise": GuideKind("Neuron-wise alpha", guides.NeuronwiseAlpha, alpha=True),
    "layerwise": GuideKind("Layer-wise alpha", guides.LayerwiseAlpha, alpha=True),
    "variance": GuideKind("Variance-only", guides.VarianceOnly),
    "variance-bernoulli": GuideKind("Variance-only, Bernoulli", partial(guides.VarianceOnly, family="bernoulli")),
    "variance-uniform": GuideKind("Variance-only, uniform", partial(guides.VarianceOnly, family="uniform")),
}

#: The five that `compare` sets side by side, from the most flexible noise to noise alone.
COMPARED = ("additive", "weightwise", "neuronwise", "layerwise", "variance")

_PLAIN: dict[str, Callable[[], priors.Prior]] = {
    "log-uniform": priors.LogUniform,
    "ard": priors.ARD,
    "hierarchical": priors.Hierarchical,
}
_SCALED: dict[str, Callable[[float], priors.Prior]] = {
    "normal": lambda scale: priors.Normal(0.0, scale),
    "laplace": lambda scale: priors.Laplace(0.0, scale),
    "empirical-bayes": priors.EmpiricalBayes,
}


def parse_prior(text: str) -> priors.Prior:
    """A prior from its name, with its scale behind a colon where it has one.

    Args:
        text: `log-uniform`, `ard`, `hierarchical`; or `normal`, `laplace`, `empirical-bayes` with a `:scale`, else 1.

    Returns:
        The prior.

    Raises:
        ValueError: The name is unknown, or the scale is missing, superfluous or not positive.

    Example:
        >>> parse_prior("normal:0.1"), parse_prior("log-uniform")
        (Normal(loc=0, scale=0.1), LogUniform())
    """
    name, colon, scale = text.strip().lower().partition(":")
    check_choice("prior", name, [*_PLAIN, *_SCALED])
    if name in _PLAIN:
        if colon:
            raise ValueError(f"prior {text!r}: {name} takes no scale; leave out ':{scale}'")
        return _PLAIN[name]()
    try:
        value = float(scale) if colon else 1.0
    except ValueError:
        raise ValueError(
            f"prior {text!r}: expected a number behind the colon, such as {name}:0.1, got {scale!r}"
        ) from None
    return _SCALED[name](check_positive(f"scale of prior {text!r}", value))
