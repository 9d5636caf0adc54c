"""A trial of the bench `rivals`: one method trained twice, on the standard split and on one with a gap in a feature."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pyrostoch import priors
from pyrostoch._seeds import mixed_seed
from pyrostoch.bench.case import TrialContext
from pyrostoch.bench.files import read_json, write_json
from pyrostoch.bench.nuts import read_reference
from pyrostoch.bench.published.posterior_trial import NOISE, distances, recipe_of, reference_file
from pyrostoch.bench.published.rivals_stages import METHODS, Method, Stage
from pyrostoch.layers import MCDropout
from pyrostoch.likelihoods import Gaussian
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.decompose import decompose
from pyrostoch.prediction.output_draws import draws
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import seeded
from pyrostoch.training.fit import fit

__all__ = ["gap_split", "log_density", "method_trial", "reference_scores"]

_DRAWS, _ELBO_DRAWS = 2000, 200
# Steps in an epoch, and epochs by whose median a pace is measured, after the first, in which the step is compiled.
_STEPS, _PACED = 50, 8
# Epochs come in multiples of so many, which the cycles of a Markov chain divide.
_WHOLE = 4
_CPU = torch.device("cpu")

Pair = tuple[Tensor, Tensor]


def gap_split(x: Tensor, y: Tensor, seed: int) -> tuple[Pair, Pair]:
    """Cut the middle third of one feature out of a data set (Foong, Li, Hernández-Lobato, Turner 2019).

    Args:
        x: Inputs of all examples, (n, features).
        y: Their targets, (n, 1).
        seed: Which feature: the first has the largest number of different values, and so on.

    Returns:
        The outer two thirds, and the middle third.

    Example:
        >>> outer, middle = gap_split(torch.arange(9.0)[:, None], torch.zeros(9, 1), 0)
        >>> outer[0][:, 0].tolist(), middle[0][:, 0].tolist()
        ([0.0, 1.0, 2.0, 6.0, 7.0, 8.0], [3.0, 4.0, 5.0])
    """
    values = [len(column.unique()) for column in x.T]
    features = sorted(range(len(values)), key=lambda feature: -values[feature])
    order = x[:, features[seed % len(features)]].argsort(stable=True)
    third = len(x) // 3
    middle = order[third : len(x) - third]
    outer = torch.cat([order[:third], order[len(x) - third :]])
    return (x[outer], y[outer]), (x[middle], y[middle])


def log_density(functions: Tensor, y: Tensor, noise: float) -> Tensor:
    """Log of the mean over draws of the normal density of targets, for each example.

    Args:
        functions: Draws of the function, (n, examples).
        y: Targets, (examples,).
        noise: Standard deviation of the noise.
    """
    logs = torch.distributions.Normal(functions.double(), noise).log_prob(y.double())
    return torch.logsumexp(logs, 0) - math.log(len(functions))


def reference_scores(context: TrialContext) -> Mapping[str, float]:
    """The scores of the reference on the standard split; none for held-out examples, at which it is not known.

    Args:
        context: The trial.
    """
    if context.setting.holdout:
        return {}
    functions, split = _reference(context), context.require_split()
    return _errors(functions, (split.x_test, split.y_test), NOISE[_set_of(context)])


def method_trial(context: TrialContext) -> Mapping[str, float]:
    """Train a method on both splits, each in the time of the additive guide's steps, and score it.

    Args:
        context: The trial; the last part of its case's name is that of the method.

    Raises:
        FileNotFoundError: There is no reference.
    """
    split = context.require_split()
    # There is no reference for held-out examples, by which settings are chosen.
    reference = None if context.setting.holdout else _reference(context)
    method = METHODS[context.case.name.rpartition("/")[2]]
    standard, test = (split.x_train, split.y_train), (split.x_test, split.y_test)
    trained = _Trained(context, method, standard)
    functions = trained.functions(test[0])
    found = {**trained.scores, **_errors(functions, test, trained.noise)}
    if reference is not None:
        found |= distances(functions, reference)
    if method.mode == "mc":
        with seeded(context.seed, _CPU):
            terms = decompose(trained.model, trained.guide, standard, num_samples=_ELBO_DRAWS)
        if math.isfinite(terms.elbo) and not method.last_layer:
            found["elbo"] = terms.elbo
    everything = torch.cat([split.x_train, split.x_test]), torch.cat([split.y_train, split.y_test])
    outer, middle = gap_split(*everything, context.seed)
    again = _Trained(context, method, outer)
    within = again.functions(middle[0])
    scores = _errors(within, middle, again.noise)
    between = float(within.std(0).mean() / again.functions(outer[0]).std(0).mean().clamp_min(1e-12))
    return {**found, **{f"gap/{name}": value for name, value in scores.items()}, "gap/spread": between}


class _Stream(IterableDataset[Pair]):
    """The data over and over, as a whole, or as random parts."""

    def __init__(self, x: Tensor, y: Tensor, parts: int, seed: int) -> None:
        self.x, self.y, self.parts, self.seed = x, y, parts, seed

    def __iter__(self) -> Iterator[Pair]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            if self.parts == 1:
                yield self.x, self.y
                continue
            rows = torch.randperm(len(self.x), generator=generator)[: len(self.x) // self.parts]
            yield self.x[rows], self.y[rows]


class _Trained:
    """A method, trained on some data in the time of the additive guide's steps there."""

    def __init__(self, context: TrialContext, method: Method, data: Pair) -> None:
        self.context, self.method, self.data = context, method, data
        self.recipe, self.noise = recipe_of(context), NOISE[_set_of(context)]
        self.model = self._model()
        guide: nn.Module | None = None
        steps, pace, spent = 0, 0.0, 0.0
        for stage in method.stages:
            pace = self._pace(stage)
            planned = stage.share * self.recipe.epochs / pace
            epochs = _WHOLE * max(1, round(planned / _STEPS / _WHOLE))
            with seeded(context.seed, _CPU):
                guide = stage.make(self.model, guide, epochs)
            clock: list[float] = []
            self._fit(stage, self.model, guide, epochs, clock)
            # The first epoch, in which the step is compiled, counts as the others do.
            spent += epochs * (clock[-1] - clock[0]) / (epochs - 1)
            steps += epochs * _STEPS
        self.guide: Any = guide
        begin = time.process_time()
        with seeded(context.seed, _CPU):
            finished: Mapping[str, float] = {}
            if method.finish is not None:
                self.guide, finished = method.finish(self.model, self.guide, data)
        self.scores = {**finished, "steps": float(steps), "ratio": pace, "cpu_seconds": spent}
        self.scores["finish_seconds"] = time.process_time() - begin

    def functions(self, x: Tensor) -> Tensor:
        """Draws of the function, (n, examples); a linearized one is normal."""
        if self.method.mode == "mc":
            return draws(self.model, self.guide, x, num=_DRAWS, seed=self.context.seed).outputs[..., 0]
        found = predict(self.model, self.guide, x, mode=self.method.mode)
        moments: Any = found.mean, found.variance
        mean, variance = moments[0][:, 0].double(), moments[1][:, 0].double() - self.noise**2
        generator = torch.Generator().manual_seed(self.context.seed)
        normal = torch.randn(_DRAWS, len(x), generator=generator, dtype=torch.float64)
        return mean + variance.clamp_min(0.0).sqrt() * normal

    def _model(self) -> BayesianModel:
        x, y = self.data
        features, hidden = x.shape[1], self.recipe.hidden
        layers = [nn.Linear(features, hidden), nn.Tanh()]
        with seeded(self.context.seed, _CPU):
            if self.method.dropout:
                layers.append(MCDropout(self.method.dropout))
            net = nn.Sequential(*layers, nn.Linear(hidden, y.shape[1]))
        last = str(len(net) - 1)
        prior: dict[str, Any] = {f"{last}.weight": priors.Normal(0.0, hidden**-0.5), f"{last}.bias": priors.Normal()}
        if not self.method.last_layer:
            prior |= {"0.weight": priors.Normal(0.0, features**-0.5), "0.bias": priors.Normal()}
        return BayesianModel(net, prior=prior, likelihood=Gaussian(self.noise), num_data=len(x))

    def _fit(self, stage: Stage, model: BayesianModel, guide: nn.Module, epochs: int, clock: list[float]) -> None:
        """Train, and note the processor's time at the end of each epoch."""
        x, y = self.data
        loader = DataLoader(_Stream(x, y, stage.parts, mixed_seed(self.context.seed, 0)), batch_size=None)
        unit = self.noise**2 / (len(x) * self.recipe.hidden) if stage.absolute else self.recipe.lr
        settings: dict[str, Any] = dict(stage.settings)
        if "sampler" not in settings:
            settings.setdefault("schedule", self.recipe.schedule)
        fit(
            model,
            guide,
            loader,
            epochs=epochs,
            steps_per_epoch=_STEPS,
            lr=stage.rate * unit,
            seed=self.context.seed,
            progress=False,
            compile=self.context.setting.preset != "quick",
            callback=lambda row: clock.append(time.process_time()),
            **settings,
        )

    def _pace(self, stage: Stage) -> float:
        """Time of a step over the additive guide's, measured once for a set, since it decides the number of steps."""
        base = METHODS["additive"].stages[0]
        if stage.name == base.name:
            return 1.0
        name = f"pace-{_set_of(self.context)}-{stage.name}-{self.context.setting.preset}.json"
        noted = self.context.setting.out / "references" / name
        if not noted.is_file():
            noted.parent.mkdir(parents=True, exist_ok=True)
            write_json(noted, {"ratio": self._seconds(stage) / self._seconds(base)})
        return float(read_json(noted)["ratio"])

    def _seconds(self, stage: Stage) -> float:
        """The median time of an epoch of a stage, for a network and a guide that are then forgotten."""
        model, clock = self._model(), list[float]()
        first = METHODS["additive"].stages[0]
        before = first.make(model, None, _PACED) if len(self.method.stages) > 1 else None
        self._fit(stage, model, stage.make(model, before, _PACED), _PACED, clock)
        return statistics.median(after - before for before, after in zip(clock, clock[1:], strict=False))


def _set_of(context: TrialContext) -> str:
    return context.case.name.partition("/")[0]


def _reference(context: TrialContext) -> Tensor:
    path = reference_file(context)
    if not path.is_file():
        raise FileNotFoundError(
            f"bench rivals: no reference {path}; make it by `pyrostoch bench posteriors --only "
            f"'{_set_of(context)}/nuts' --preset {context.setting.preset}` after `make peers`, or copy the folder "
            "benchmarks/references of the repository into the output folder"
        )
    return read_reference(path).functions


def _errors(functions: Tensor, data: Pair, noise: float) -> dict[str, float]:
    """Mean negative log density in nats, and root mean square error, of standardized targets."""
    x, y = data
    error = (functions.double().mean(0) - y[:, 0]).square().mean().sqrt()
    return {"nll": -float(log_density(functions, y[:, 0], noise).mean()), "rmse": float(error)}
