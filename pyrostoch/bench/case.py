"""The parts of a benchmark: benches and cases, the setting of a run, and what cases' functions receive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch.bench.recipe import Recipe
from pyrostoch.data import DataSplit
from pyrostoch.guides import Guide
from pyrostoch.likelihoods import Categorical, Likelihood
from pyrostoch.model import BayesianModel
from pyrostoch.priors import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Bench", "Case", "CustomTrial", "MakeGuide", "Measure", "Progress", "Setting", "Trained", "TrialContext"]

#: Computes further scores of a trained network, by metric.
Measure = Callable[["Trained"], Mapping[str, float]]

#: Runs a whole trial in place of the usual training and scoring, and returns its metrics.
CustomTrial = Callable[["TrialContext"], Mapping[str, float]]

#: Makes a guide for a model by a recipe; the third argument is the trained guide of the case that this one starts from,
#: or `None`.
MakeGuide = Callable[[BayesianModel, Recipe, Guide | None], Guide]

#: Called after each epoch of a trial with a row that has `epoch`, the number of finished epochs, and further values.
Progress = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Case:
    """A row of a benchmark.

    Args:
        name: Lower case, parts separated by slashes; says which layers are random.
        title: The row's title in the table.
        data: Name of the data set; `None` for a case that generates its own data.
        recipes: The recipe of each preset in which this case is run.
        network: Makes the network for a data set.
        guide: Makes the guide.
        likelihood: The likelihood; `Categorical()` by default.
        random: Prior of each random weight, by name pattern; empty if no weight is random.
        modes: Predictive modes that are scored.
        start: Name of the case from whose trained state this one starts.
        data_title: Title that the data set must have, for loader names that cover several data sets.
        needs_gpu: Presets that take too long on a CPU.
        curve: Whether scores are recorded over the epochs, for the figure.
        elbo_draws: Draws for the ELBO's data term; 0 if no ELBO is reported.
        measure: Computes further scores.
        custom_trial: Replaces the usual training and scoring.
        cpu_only: Whether a custom trial runs on the CPU whatever the setting's device.
    """

    name: str
    title: str
    data: str | None
    recipes: Mapping[str, Recipe]
    network: Callable[[DataSplit], nn.Module] | None = None
    guide: MakeGuide | None = None
    likelihood: Callable[[], Likelihood] = Categorical
    random: Mapping[str, Prior] = field(default_factory=dict)
    modes: tuple[str, ...] = ("mean", "mc:1", "mc:20")
    start: str | None = None
    data_title: str | None = None
    needs_gpu: tuple[str, ...] = ()
    curve: bool = False
    elbo_draws: int = 0
    measure: Measure | None = None
    custom_trial: CustomTrial | None = None
    cpu_only: bool = False


@dataclass(frozen=True)
class TrialContext:
    """What a custom trial receives.

    Args:
        case: The case.
        recipe: Its recipe under the setting.
        setting: Preset, device, folder.
        seed: The seed.
        progress: Called with `epoch`, the number of finished epochs or rounds, and a `note` to display.
        split: The case's data set; `None` if it has none.
        folder: The trial's folder, for one that is resumed from its own checkpoints.
    """

    case: Case
    recipe: Recipe
    setting: Setting
    seed: int
    progress: Progress
    split: DataSplit | None = None
    folder: Path | None = None

    def checkpoint(self) -> Path:
        """The path of the trial's checkpoint, whose folder is made.

        Raises:
            ValueError: The trial has no folder.
        """
        if self.folder is None:
            raise ValueError(f"case {self.case.name}: expected a folder for its checkpoint; give the TrialContext one")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / "checkpoint.safetensors"

    def start_folder(self) -> Path:
        """The folder of the trial that this one starts from, with the same seed.

        Raises:
            ValueError: The case starts from none, or the trial has no folder.
        """
        if self.case.start is None:
            raise ValueError(f"case {self.case.name}: expected one that starts from another case")
        own = self.checkpoint().parent
        return own.parent.parent / self.case.start.replace("/", "-") / own.name

    def settings(self, name: str = "checkpoint") -> dict[str, Any]:
        """Settings of `fit` for a training of the trial, which goes on from its checkpoint.

        Args:
            name: Name of the checkpoint, for trials that train several times.
        """
        return {
            "batch_size": self.recipe.batch_size,
            "lr": self.recipe.lr,
            "schedule": self.recipe.schedule,
            "seed": self.seed,
            "progress": False,
            "resume": True,
            "checkpoint": self.checkpoint().with_name(f"{name}.safetensors"),
            "callback": self.progress,
        }

    def require_split(self) -> DataSplit:
        """The data set of a case that needs one.

        Raises:
            ValueError: There is none.
        """
        if self.split is None:
            raise ValueError(f"case {self.case.name}: expected a data set, got None; give the TrialContext a split")
        return self.split


@dataclass(frozen=True)
class Bench:
    """A benchmark: its cases and the text around their results.

    Args:
        name: Name on the command line.
        title: Headline of its table.
        cases: The rows; a case comes after the one it starts from.
        columns: Metrics of the table with their headings.
        published: Published values by case and metric, for the line beneath a row.
        notes: Paragraphs beneath the table.
        source: Where the published values are from; empty if there are none.
        transposed: Whether cases are the table's columns and metrics its rows; there is one table for each first part
            of the cases' names.
        targets: Upper limits that values are meant to stay below, by case and metric.
        figure: Draws a figure from the scores of the first seed, by case; `None` if there is too little to show.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    columns: tuple[tuple[str, str], ...]
    published: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    source: str
    transposed: bool = False
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    figure: Callable[[Mapping[str, Mapping[str, float]]], Figure | None] | None = None

    def case(self, name: str) -> Case:
        """The case with a name.

        Raises:
            ValueError: There is none.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise ValueError(f"bench {self.name}: no case {name!r}; it has {name_list(case.name for case in self.cases)}")


@dataclass(frozen=True)
class Setting:
    """Under which preset, where and on which device trials run.

    Args:
        preset: `"quick"`, `"cpu"` or `"full"`.
        out: Folder of the benchmarks' files.
        device: Torch device.
        precision: `"float32"`, or `"bf16"` to train under autocast; scores are always computed in float32.
        holdout: Whether a sixth of the training data is held out and takes the place of the test data.
        changes: Recipe fields to override, as pairs of name and value.
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
        """The preset and the changes to its recipe, as a name."""
        return ",".join([self.preset, *(f"{name}={value}" for name, value in self.changes)])

    def trials(self, bench: Bench) -> Path:
        """The folder of a benchmark's trials; trials scored on held-out training data have a separate one."""
        return self.out / ("selection" if self.holdout else "runs") / bench.name


@dataclass
class Trained:
    """A trained network and the data it is scored on.

    Args:
        case: The case.
        model: The model.
        guide: Its guide.
        train: Training inputs and targets.
        test: Test inputs and targets.
        recipe: The recipe it was trained by.
        seed: The seed.
        split: The whole data set that `train` and `test` were taken from.
    """

    case: Case
    model: BayesianModel
    guide: Guide
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    recipe: Recipe
    seed: int
    split: DataSplit
