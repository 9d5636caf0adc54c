"""What a benchmark is made of: cases, each a network with random weights and recipes; and what a trial is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Bench", "Case", "MakeGuide", "Own", "Setting", "Trained"]

#: Extra scores of a trained network, by metric.
Measure = Callable[["Trained"], Mapping[str, float]]

#: Carries out a trial of a kind of its own and makes its metrics.
Alone = Callable[["Own"], Mapping[str, float]]

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


@dataclass(frozen=True)
class Setting:
    """Where and on what a trial runs.

    Args:
        preset: `"quick"`, `"cpu"` or `"full"`.
        out: Folder of the benchmarks' files.
        device: Torch device.
        precision: `"float32"`, or `"bf16"` to train under autocast; scores are always those of float32.
        holdout: Whether a sixth of the training data is held out, and stands for the test data.
        changes: Settings of the recipe that are tried instead of its own, by name.
    """

    preset: str
    out: Path
    device: str = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    holdout: bool = False
    changes: tuple[tuple[str, str], ...] = ()

    def recipe(self, case: Case) -> Recipe:
        """The recipe of a case under this setting."""
        return case.recipes[self.preset].changed(dict(self.changes))

    @property
    def variant(self) -> str:
        """The preset, and what differs from it, as a name."""
        return ",".join([self.preset, *(f"{name}={value}" for name, value in self.changes)])

    def trials(self, bench: Bench) -> Path:
        """The folder of a benchmark's trials; those that choices are made on lie apart."""
        return self.out / ("selection" if self.holdout else "runs") / bench.name


@dataclass
class Trained:
    """A trained network and what it is scored on.

    Args:
        case: The case.
        model: The model.
        guide: Its guide.
        train: Training data.
        test: Test data.
        recipe: The recipe it was trained by.
        seed: The seed.
        split: The data set it is of.
    """

    case: Case
    model: BayesianModel
    guide: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    recipe: Recipe
    seed: int
    split: DataSplit
