"""What a benchmark is made of: cases, each a network with random weights and the recipe that trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from pyrostoch._checks import check_choice, name_list
from pyrostoch.data import DataSplit
from pyrostoch.infer.elbo import ESTIMATORS, Estimator
from pyrostoch.infer.schedule import SCHEDULES, Schedule
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrostoch.bench.trial import Setting, Trained

__all__ = ["Bench", "Case", "MakeGuide", "Own", "Recipe"]

#: Extra scores of a trained network, by metric.
Measure = Callable[["Trained"], Mapping[str, float]]

#: Carries out a trial of a kind of its own and makes its metrics.
Alone = Callable[["Own"], Mapping[str, float]]

_WHOLE = ("epochs", "batch_size", "examples")
_WORDS: dict[str, Mapping[str, Any]] = {"schedule": SCHEDULES, "estimator": ESTIMATORS}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and how its guide starts.

    Args:
        epochs: Passes through the training data; rounds, where a trial is of a kind of its own.
        batch_size: Examples a step.
        lr: Learning rate at the start.
        lr_alpha: Learning rate of log alpha at the start; `lr` where it is not given.
        init_log_alpha: Where log alpha starts, for guides that have one.
        init_scale: Where the standard deviations of an additive guide start.
        schedule: How the rates fall.
        kl_warmup: Epochs until the KL has its full weight; a pair of epochs between which it rises.
        estimator: How random weights are treated in training.
        examples: Training examples used, the first ones, and at most so many test examples; all of them where it is
            not given.
    """

    epochs: int
    batch_size: int = 200
    lr: float = 1e-3
    lr_alpha: float | None = None
    init_log_alpha: float = -5.0
    init_scale: float = 1e-2
    schedule: Schedule = "linear"
    kl_warmup: float | tuple[float, float] = 0.0
    estimator: Estimator = "local"
    examples: int | None = None

    def changed(self, settings: Mapping[str, str]) -> Recipe:
        """The recipe with some settings changed, as they are written on a command line.

        Args:
            settings: Values by name.

        Returns:
            Another recipe.

        Raises:
            ValueError: A name is unknown, or a value is of another kind.

        Example:
            >>> Recipe(epochs=5).changed({"lr": "0.01", "epochs": "7"}).lr
            0.01
        """
        known = vars(self)
        changes: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in known:
                raise ValueError(f"recipe: no setting {name!r}; it has {name_list(known, len(known))}")
            if name in _WORDS:
                changes[name] = check_choice(f"recipe: {name}", text, _WORDS[name])
                continue
            try:
                changes[name] = int(text) if name in _WHOLE else float(text)
            except ValueError:
                kind = "whole number" if name in _WHOLE else "number"
                raise ValueError(f"recipe: {name}: expected a {kind}, got {text!r}") from None
        return replace(self, **changes)


#: Makes a guide for a model by a recipe, from the trained guide of the case it starts from where there is one.
MakeGuide = Callable[[BayesianModel, Recipe, nn.Module | None], nn.Module]


@dataclass(frozen=True)
class Case:
    """A row of a benchmark.

    Args:
        name: Lower case, parts separated by slashes; says which layers are random.
        title: What stands in the table.
        data: Name of the data set; none for a case that makes its own.
        recipes: The recipe of each preset in which this case is run.
        network: Makes the network for a data set.
        guide: Makes the guide, for a model, the recipe, and the trained guide of the case it starts from.
        random: Prior of each random weight, by name pattern; empty where nothing is random.
        modes: Predictive modes that are scored.
        start: Name of the case whose trained state this one goes on from.
        data_title: Title that the data set must have, where a loader's name covers several.
        needs_gpu: Presets whose run makes no sense on a CPU.
        curve: Whether scores are followed over the epochs, for the figure.
        draws: Draws for the ELBO's data term; 0 where no ELBO is reported.
        measure: Further scores.
        alone: Carries out a whole trial of its own kind.
        cpu_only: Whether it runs on the CPU wherever the others do.
    """

    name: str
    title: str
    data: str | None
    recipes: Mapping[str, Recipe]
    network: Callable[[DataSplit], nn.Module] | None = None
    guide: MakeGuide | None = None
    random: Mapping[str, Prior] = field(default_factory=dict)
    modes: tuple[str, ...] = ("mean", "mc:1", "mc:20")
    start: str | None = None
    data_title: str | None = None
    needs_gpu: tuple[str, ...] = ()
    curve: bool = False
    draws: int = 0
    measure: Measure | None = None
    alone: Alone | None = None
    cpu_only: bool = False


@dataclass(frozen=True)
class Own:
    """What a trial of a kind of its own is given.

    Args:
        case: The case.
        recipe: Its recipe.
        setting: Preset, device, folder.
        seed: The seed.
        tell: Told how it goes on: `epoch`, the rounds done, and a `note`.
        split: Its data set, where it has one.
    """

    case: Case
    recipe: Recipe
    setting: Setting
    seed: int
    tell: Callable[[dict[str, Any]], Any]
    split: DataSplit | None = None


@dataclass(frozen=True)
class Bench:
    """A benchmark: cases, and what is said about them.

    Args:
        name: Name on the command line.
        title: Headline of its table.
        cases: The rows, those that others start from before them.
        columns: Metrics of the table with their headings.
        published: Published values by case and metric, for the line beneath a row.
        notes: Sentences beneath the table.
        source: Where the published values are from; empty where there are none.
        across: Whether cases are the table's columns and metrics its rows; cases whose names begin alike share one.
        targets: The most that a value is meant to be, by case and metric.
        figure: Draws the first seed's scores, by case; nothing where there is too little to see.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    columns: tuple[tuple[str, str], ...]
    published: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    source: str
    across: bool = False
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    figure: Callable[[Mapping[str, Mapping[str, float]]], Figure | None] | None = None

    def case(self, name: str) -> Case:
        """The case of a name.

        Raises:
            ValueError: There is none.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise ValueError(f"bench {self.name}: no case {name!r}; it has {name_list(case.name for case in self.cases)}")
