"""Posterior draws and what they predict: the distribution of the observations for one draw, and averages over many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution

from pyrostoch._checks import check_choice, check_finite, name_list
from pyrostoch._seeds import forked
from pyrostoch.effects import Interpretation, MeanPropagation, NoiseFree, base_distribution
from pyrostoch.infer.batches import Batches, Inputs, to_device
from pyrostoch.infer.elbo import MOMENTS, interpretation
from pyrostoch.likelihoods import Likelihood
from pyrostoch.metrics import MomentAverage, PredictiveAverage
from pyrostoch.metrics.uncertainty import LogMeanExp
from pyrostoch.model import latent_sites
from pyrostoch.moments.predictive import OutputDistribution
from pyrostoch.prediction.validation import training_mode

__all__ = [
    "MODES",
    "DrawAverage",
    "Mode",
    "check_targets",
    "class_log_probs",
    "evaluating",
    "home_of",
    "observe",
    "parse_mode",
    "same_device",
    "seeded",
    "visit",
]

_DEFAULT_SAMPLES = 20

# Before the name of a field of a prediction that is complete, and not one of many draws.
_READY = "ready/"


@dataclass(frozen=True)
class Mode:
    """A way to predict.

    Args:
        interpretation: Makes, for a model, the interpretation under which guide and network run.
        sampled: Whether it draws, so that a number of samples makes sense.
    """

    interpretation: Callable[[Any], Interpretation]
    sampled: bool


#: The predictive modes by name.
MODES: dict[str, Mode] = {
    "mean": Mode(lambda model: MeanPropagation(), sampled=False),
    "mc": Mode(lambda model: interpretation("marginal", model), sampled=True),
    "noise-free": Mode(lambda model: NoiseFree(), sampled=False),
    **{name: Mode(partial(interpretation, name), sampled=False) for name in MOMENTS},
}


def parse_mode(text: str, num_samples: int | None = None) -> tuple[str, int]:
    """Split a mode such as `"mc:20"` into its name and its number of samples.

    Args:
        text: A name in `MODES`, with `:K` behind it where it draws.
        num_samples: The number of samples, where it does not stand in `text`; 20 by default.

    Returns:
        The mode's name and its number of passes.

    Raises:
        ValueError: The mode is unknown, its number is no positive whole number, or two numbers contradict each other.

    Example:
        >>> parse_mode("mc:5"), parse_mode("mc"), parse_mode("mean")
        (('mc', 5), ('mc', 20), ('mean', 1))
    """
    if text in MODES and not MODES[text].sampled and num_samples is None:
        return text, 1
    name, colon, count = str(text).partition(":")
    known = [f"{key}:K" if colon and value.sampled else key for key, value in MODES.items()]
    if name not in MODES:
        stem = name.rstrip("0123456789")
        if stem != name and stem in MODES and MODES[stem].sampled and not colon:
            raise ValueError(
                f"mode {text!r}: expected a colon before the number of samples: {stem}:{name[len(stem) :]}"
            )
        check_choice("mode", text, known)
    if not MODES[name].sampled:
        if colon and any(other.startswith(f"{name}:") for other in MODES):
            check_choice("mode", text, MODES)
        if colon or num_samples is not None:
            raise ValueError(
                f"mode {name!r} draws nothing and has no variants: leave out what stands behind the colon, got {text!r}"
                if colon
                else f"mode {name!r} draws nothing: leave num_samples out, got num_samples={num_samples}"
            )
        return name, 1
    if colon and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"mode {text!r}: expected a whole number of samples from 1 up behind the colon, got {count!r}")
    if num_samples is None:
        return name, int(count) if colon else _DEFAULT_SAMPLES
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"num_samples: expected a whole number from 1 up, got {num_samples!r}")
    if colon and int(count) != num_samples:
        raise ValueError(f"mode {text!r} and num_samples={num_samples} contradict each other: give one of them")
    return name, num_samples


@contextlib.contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Put modules into evaluation mode, without gradients, and every submodule back into its own mode afterwards.

    Randomness of weights is a matter of the interpretation; dropout and BatchNorm never take part in it.

    Args:
        modules: Model and guide; what is no `nn.Module` is left alone.

    Example:
        >>> net = nn.Dropout(0.5)
        >>> with evaluating(net):
        ...     print(net.training)
        False
        >>> net.training
        True
    """
    with training_mode(False, *(module for module in modules if isinstance(module, nn.Module))), torch.no_grad():
        yield


def home_of(model: Any, guide: Any, device: str | torch.device | None = None) -> torch.device | None:
    """The device on which model and guide live, or `None` where they hold no tensor.

    Args:
        model: The model.
        guide: The guide.
        device: Where the caller wants to compute.

    Raises:
        ValueError: They live elsewhere than on `device`.
    """
    modules = [module for module in (guide, model) if isinstance(module, nn.Module)]
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    home = next((tensor.device for tensor in tensors), None)
    if device is None or home is None:
        return home if device is None else torch.device(device)
    if not same_device(home, torch.device(device)):
        raise ValueError(
            f"device {str(device)!r}: the model is on {home}; move model and guide first, model.to({str(device)!r})"
        )
    return home


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two devices are the same; an index left out is 0."""
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def visit(batches: Batches, device: torch.device | None) -> Iterator[tuple[Inputs, Tensor]]:
    """One pass over a data set as it lies, each batch checked to be finite and moved to a device."""
    for x, y in batches.epoch(None, 0):
        check_finite("inputs x", x)
        yield (x, y) if device is None else (to_device(x, device), to_device(y, device))


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device | None) -> Iterator[None]:
    """Draw from a seed and put torch's random state back afterwards; without a seed, do nothing.

    Args:
        seed: The seed.
        device: Where the draws are made.
    """
    if seed is None:
        yield
        return
    with forked(torch.device("cpu") if device is None else device, seed):
        yield


def observe(model: Any, guide_trace: Any, x: Any) -> Distribution:
    """The distribution of the observations for one draw from the guide.

    Run it inside the interpretation in which the guide was traced.

    Args:
        model: A Pyro model with a method `observation(x)`.
        guide_trace: Trace of the guide.
        x: Inputs.

    Returns:
        A distribution with one batch axis, the examples.

    Raises:
        TypeError: The model has no `observation`.
        ValueError: A latent variable of the model is not in the draw, or the distribution's batch shape is not the
            examples.
    """
    observation = getattr(model, "observation", None)
    if not callable(observation):
        raise TypeError(
            f"model: expected a BayesianModel, or a Pyro model with a method observation(x) that draws the latent "
            f"variables and returns the distribution of the observations, got {type(model).__name__}"
        )
    trace = poutine.trace(poutine.replay(observation, trace=guide_trace)).get_trace(x)
    missing = [name for name, _ in latent_sites(trace) if name not in guide_trace.nodes]
    if missing:
        drawn = [name for name, _ in latent_sites(guide_trace)]
        raise ValueError(
            f"guide: no draw for the model's site(s) {name_list(missing)}; the guide has {name_list(drawn) or 'none'}. "
            "Build the guide from this model"
        )
    distribution: Any = trace.nodes["_RETURN"]["value"]
    # A trace refers to itself, so its tensors would stay until Python collects circles.
    trace.nodes.clear()
    if not isinstance(distribution, Distribution) or len(distribution.batch_shape) != 1:
        found = (
            f"batch shape {tuple(distribution.batch_shape)}"
            if isinstance(distribution, Distribution)
            else type(distribution).__name__
        )
        raise ValueError(
            f"model.observation: expected a distribution with one batch axis, the examples, got {found}; declare the "
            "other axes as event axes with to_event"
        )
    return distribution


def class_log_probs(distribution: Distribution) -> Tensor | None:
    """Log-probabilities of the classes, `(n, ..., C)` in float64; `None` where the distribution is not one of classes.

    One Bernoulli an example counts as two classes, no and yes.

    Args:
        distribution: A distribution of observations.
    """
    base = base_distribution(distribution)
    if isinstance(base, Categorical):
        return base.logits.to(torch.float64).log_softmax(-1)
    if isinstance(base, Bernoulli) and base.logits.numel() == distribution.batch_shape[0]:
        logits = base.logits.to(torch.float64).reshape(-1)
        return torch.stack([torch.zeros_like(logits), logits], dim=-1).log_softmax(-1)
    return None


def check_targets(model: Any, distribution: Distribution, y: Tensor) -> None:
    """Refuse targets that do not fit the observations' distribution, as the model itself does.

    Args:
        model: The model; its `likelihood` checks, where it has one.
        distribution: The distribution of the observations.
        y: Targets.
    """
    likelihood = getattr(model, "likelihood", None)
    if isinstance(likelihood, Likelihood):
        likelihood.check_shape(distribution, y)
        likelihood.check_target(distribution, y)


class DrawAverage:
    """The average of a batch's predictions over draws, in memory independent of their number.

    Args:
        model: The model, which checks targets.
        y: Targets whose log density is averaged too.

    Attributes:
        classes: After the first draw: whether the observations are classes.
        log_density: Log of the mean density of the targets over the draws, nats, shape (n,).
    """

    def __init__(self, model: Any, y: Tensor | None = None) -> None:
        self._model, self.y = model, y
        self._classes = PredictiveAverage()
        self._moments = MomentAverage()
        self._density = LogMeanExp()
        self._shape = torch.Size()
        self._ready: dict[str, Tensor] = {}
        self.classes = False

    def statistics(self, distribution: Distribution) -> dict[str, Tensor]:
        """What is averaged of one draw, or of many side by side.

        Args:
            distribution: The distribution of the observations for that draw.
        """
        if isinstance(distribution, OutputDistribution):
            return self._of_moments(distribution)
        found: dict[str, Tensor] = {}
        if self.y is not None:
            if not self._density.draws:
                check_targets(self._model, distribution, self.y)
            found["density"] = distribution.log_prob(self.y)
        log_probs = class_log_probs(distribution)
        if log_probs is not None:
            return found | {"classes": log_probs}
        try:
            return found | {"mean": distribution.mean, "variance": distribution.variance}
        except NotImplementedError as error:  # how torch's distributions say that they know none
            raise ValueError(
                f"likelihood: {type(base_distribution(distribution)).__name__} has no known mean or variance, so there "
                "is nothing to report; use a distribution with both"
            ) from error

    def _of_moments(self, distribution: OutputDistribution) -> dict[str, Tensor]:
        """The whole prediction, since a pass by moments is not one of many draws."""
        if self.y is not None:
            check_targets(self._model, distribution, self.y)
        if distribution.closed is None:
            points = DrawAverage(self._model, self.y)
            for member in distribution.members():
                points.add(points.statistics(member))
            return {_READY + name: value for name, value in points.results().items()}
        fields = dict(distribution.closed.fields)
        if self.y is not None:
            fields["log_density"] = distribution.log_prob(self.y).to(torch.float64)
        return {_READY + name: value for name, value in fields.items()}

    def add(self, statistics: Mapping[str, Tensor]) -> None:
        """Add one draw.

        Args:
            statistics: As `statistics` gives them.
        """
        self._ready = {
            name.removeprefix(_READY): value for name, value in statistics.items() if name.startswith(_READY)
        }
        if self._ready:
            self.classes = "log_probs" in self._ready
            return
        if "density" in statistics:
            self._density.update(statistics["density"])
        if "classes" in statistics:
            self.classes, self._shape = True, statistics["classes"].shape
            self._classes.update(statistics["classes"].flatten(0, -2))
        else:
            self._moments.update(statistics["mean"], statistics["variance"])

    @property
    def log_probs(self) -> Tensor:
        """Log of the mean probabilities, (n, ..., C)."""
        return self._ready["log_probs"] if self._ready else self._classes.log_probs.reshape(self._shape)

    @property
    def log_density(self) -> Tensor:
        """Log of the mean density of the targets, (n,)."""
        return self._ready["log_density"] if self._ready else self._density.compute()

    def results(self) -> dict[str, Tensor]:
        """The averages by the name of the field of a `Prediction`."""
        if self._ready:
            return self._ready
        found: dict[str, Tensor] = {} if self.y is None else {"log_density": self.log_density}
        if self.classes:
            found["log_probs"] = self.log_probs
            for name in ("total", "aleatoric", "epistemic"):
                found[name] = getattr(self._classes, name).reshape(self._shape[:-1])
        else:
            found["mean"], found["variance"] = self._moments.mean, self._moments.variance
            found |= {"total": found["variance"], "aleatoric": self._moments.aleatoric}
            found["epistemic"] = self._moments.epistemic
        return found
