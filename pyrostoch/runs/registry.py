"""Guides and priors by the names that the command line uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pyrostoch import guides, priors
from pyrostoch._checks import check_choice, check_positive
from pyrostoch._manual import see
from pyrostoch._user_file import function_from_file, is_file_name
from pyrostoch.model import BayesianModel

__all__ = ["COMPARED_GUIDES", "GUIDES", "GuideKind", "check_guide_name", "guide_kind", "parse_prior", "short_name"]


@dataclass(frozen=True)
class GuideKind:
    """A guide that can be chosen by name.

    Args:
        title: Display name.
        build: Builds the guide from a model; takes `init_log_alpha` if `has_log_alpha` is true.
        has_log_alpha: Whether the guide has log alphas whose initial value can be set.
    """

    title: str
    build: Callable[..., guides.Guide]
    has_log_alpha: bool = False


#: The guides that a run can train.
GUIDES: dict[str, GuideKind] = {
    "additive": GuideKind("Additive", guides.Additive),
    "weightwise": GuideKind("Weight-wise alpha", guides.WeightwiseAlpha, has_log_alpha=True),
    "neuronwise": GuideKind("Neuron-wise alpha", guides.NeuronwiseAlpha, has_log_alpha=True),
    "layerwise": GuideKind("Layer-wise alpha", guides.LayerwiseAlpha, has_log_alpha=True),
    "low-rank": GuideKind("Low-rank", guides.LowRank),
    "matrix-normal": GuideKind("Matrix normal", guides.MatrixNormal),
    "variance": GuideKind("Variance-only", guides.VarianceOnly),
    "variance-bernoulli": GuideKind("Variance-only, Bernoulli", partial(guides.VarianceOnly, family="bernoulli")),
    "variance-uniform": GuideKind("Variance-only, uniform", partial(guides.VarianceOnly, family="uniform")),
}

#: The five guides that `compare` trains, from the most flexible noise to noise alone.
COMPARED_GUIDES = ("additive", "weightwise", "neuronwise", "layerwise", "variance")


def check_guide_name(name: str) -> None:
    """Raise a `ValueError` for a name of no guide; a file of the user's own is not read.

    Args:
        name: The name.
    """
    if not is_file_name(name):
        check_choice("guide", name, GUIDES)


def guide_kind(name: str) -> GuideKind:
    """A guide by its name, or by a file of the user's own and a class, or function, in it.

    Args:
        name: A name in `GUIDES`, or `"my_guides.py:MyGuide"`; it is called with the model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The name is unknown, or the file lacks it.
    """
    if not is_file_name(name):
        return GUIDES[check_choice("guide", name, GUIDES)]
    make = function_from_file(name, "guide")

    def build(model: BayesianModel) -> Any:
        found = make(model)
        if not isinstance(found, nn.Module):
            raise ValueError(
                f"guide {name!r}: expected a guide, a torch.nn.Module, from {name.rpartition(':')[2]}(model), got "
                f"{type(found).__name__}{see('how-to/write_a_guide')}"
            )
        return found

    return GuideKind(short_name(name), build)


def short_name(name: str) -> str:
    """The name of a guide, or network, without the folder of its file.

    Args:
        name: The name.

    Example:
        >>> short_name("/home/me/my_guides.py:MyGuide"), short_name("additive")
        ('my_guides.py:MyGuide', 'additive')
    """
    return Path(name).name


_WITHOUT_SCALE: dict[str, Callable[[], priors.Prior]] = {
    "log-uniform": priors.LogUniform,
    "ard": priors.ARD,
    "hierarchical": priors.Hierarchical,
}
_WITH_SCALE: dict[str, Callable[[float], priors.Prior]] = {
    "normal": lambda scale: priors.Normal(0.0, scale),
    "laplace": lambda scale: priors.Laplace(0.0, scale),
    "empirical-bayes": priors.EmpiricalBayes,
}


def parse_prior(text: str) -> priors.Prior:
    """A prior from its name, optionally followed by a colon and its scale.

    Args:
        text: `log-uniform`, `ard`, `hierarchical`; or `normal`, `laplace`, `empirical-bayes`, followed by `:scale`
            unless the scale is 1.

    Returns:
        The prior.

    Raises:
        ValueError: The name is unknown, or the scale is not a positive number, or the prior has none.

    Example:
        >>> parse_prior("normal:0.1"), parse_prior("log-uniform")
        (Normal(loc=0, scale=0.1), LogUniform())
    """
    name, colon, scale = text.strip().lower().partition(":")
    check_choice("prior", name, [*_WITHOUT_SCALE, *_WITH_SCALE])
    if name in _WITHOUT_SCALE:
        if colon:
            raise ValueError(f"prior {text!r}: {name} takes no scale; leave out ':{scale}'")
        return _WITHOUT_SCALE[name]()
    try:
        value = float(scale) if colon else 1.0
    except ValueError:
        raise ValueError(
            f"prior {text!r}: expected a number after the colon, such as {name}:0.1, got {scale!r}"
        ) from None
    return _WITH_SCALE[name](check_positive(f"scale of prior {text!r}", value))
