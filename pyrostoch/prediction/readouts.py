"""Modes of prediction, and the distribution of the observations under them for one draw from the guide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch import guides
from pyrostoch._checks import check_choice, check_count, check_finite, name_list
from pyrostoch._inputs import to_device
from pyrostoch._manual import see
from pyrostoch._seeds import forked
from pyrostoch._targets import Target
from pyrostoch.effects import Interpretation, Linearization, MeanPropagation, NoiseFree, base_distribution
from pyrostoch.effects.statistics import holding_buffers
from pyrostoch.guides.amortised import weights_of
from pyrostoch.guides.statistics import statistics_of
from pyrostoch.guides.statistics_owner import warn_of_other_owner
from pyrostoch.infer.batches import Batches, must_stay_whole
from pyrostoch.infer.data_sets import as_batches
from pyrostoch.infer.elbo import MOMENTS, interpretation
from pyrostoch.infer.items import reader_of
from pyrostoch.infer.loaders import Stream
from pyrostoch.likelihoods import Likelihood
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import Data, FlatInputs, Guide, Model, PyroCallable
from pyrostoch.sites import latent_sites, trace_of

__all__ = [
    "MODES",
    "PredictiveMode",
    "batches_for",
    "batches_on_device",
    "check_guide",
    "check_mode",
    "check_targets",
    "device_of",
    "evaluating",
    "has_valid_arguments",
    "in_turn",
    "observation_distribution",
    "parse_mode",
    "same_device",
    "seeded",
]

_DEFAULT_SAMPLES = 20


@dataclass(frozen=True)
class PredictiveMode:
    """A mode of prediction.

    Args:
        interpretation: Makes, for a model, the interpretation under which guide and network run.
        sampled: Whether predictions are averages over draws, so that there is a number of samples.
    """

    interpretation: Callable[[Model], Interpretation]
    sampled: bool


#: The modes of prediction by name.
MODES: dict[str, PredictiveMode] = {
    "mean": PredictiveMode(lambda model: MeanPropagation(), sampled=False),
    "mc": PredictiveMode(lambda model: interpretation("marginal", model), sampled=True),
    "noise-free": PredictiveMode(lambda model: NoiseFree(), sampled=False),
    **{name: PredictiveMode(partial(interpretation, name), sampled=":mc" in name) for name in MOMENTS},
    "linearized": PredictiveMode(lambda model: Linearization(), sampled=False),
    "linearized:closed": PredictiveMode(lambda model: Linearization(closed=True), sampled=False),
}


def parse_mode(text: str, num_samples: int | None = None) -> tuple[str, int]:
    """Split a mode such as `"mc:20"` into its name and its number of samples.

    Args:
        text: A name in `MODES`; where it has `mc`, that may be followed by `:K`, the number of samples.
        num_samples: The number of samples where `text` has none; 20 by default.

    Returns:
        The mode's name and its number of passes through the network.

    Raises:
        ValueError: The mode is unknown, its number is no positive whole number, or two numbers contradict each other.

    Example:
        >>> parse_mode("mc:5"), parse_mode("moments:mc:50:closed"), parse_mode("mc"), parse_mode("mean")
        (('mc', 5), ('moments:mc:closed', 50), ('mc', 20), ('mean', 1))
    """
    parts, count = str(text).split(":"), None
    after = parts.index("mc") + 1 if "mc" in parts else len(parts)
    if after < len(parts) and parts[after] != "closed":
        count = parts.pop(after)
    name = ":".join(parts)
    if name not in MODES:
        _refuse_mode(text, parts)
    if not MODES[name].sampled:
        if num_samples is not None:
            raise ValueError(f"mode {name!r} draws nothing: leave num_samples out, got num_samples={num_samples}")
        return name, 1
    if count is not None and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"mode {text!r}: expected a whole number of samples from 1 up after the colon, got {count!r}")
    if num_samples is None:
        return name, _DEFAULT_SAMPLES if count is None else int(count)
    num_samples = check_count("num_samples", num_samples)
    if count is not None and int(count) != num_samples:
        raise ValueError(f"mode {text!r} and num_samples={num_samples} contradict each other: give one of them")
    return name, num_samples


def _refuse_mode(text: str, parts: list[str]) -> NoReturn:
    """Raise the error for an unknown mode."""
    stem = text.rstrip("0123456789")
    if stem != text and stem in MODES and MODES[stem].sampled:
        raise ValueError(f"mode {text!r}: expected a colon before the number of samples: {stem}:{text[len(stem) :]}")
    if len(parts) > 1 and parts[0] in ("mean", "noise-free"):
        raise ValueError(
            f"mode {parts[0]!r} draws nothing and has no variants: leave out the colon and what follows, got {text!r}"
        )
    known = [key.replace("mc", "mc:K") if ":" in text else key for key in MODES]
    check_choice("mode", text, known)
    raise ValueError(f"mode {text!r}: put a number of samples in place of K")


@contextlib.contextmanager
def evaluating(*modules: PyroCallable) -> Iterator[None]:
    """Put modules into evaluation mode, without gradients, and every submodule back into its own mode afterwards.

    The mode of the modules decides about dropout and BatchNorm only; whether weights are drawn is decided by the
    interpretation.

    Args:
        modules: Model and guide; what is not an `nn.Module` is ignored.

    Example:
        >>> net = nn.Dropout(0.5)
        >>> with evaluating(net):
        ...     print(net.training)
        False
        >>> net.training
        True
    """
    if len(modules) == 2:
        warn_of_other_owner(*modules)
    with contextlib.ExitStack() as stack:
        stack.enter_context(training_mode(False, *(module for module in modules if isinstance(module, nn.Module))))
        stack.enter_context(torch.no_grad())
        for module in modules:
            stack.enter_context(in_turn(module))
        stack.enter_context(_own_buffers(*modules))
        yield


def _own_buffers(*modules: PyroCallable) -> contextlib.AbstractContextManager[None]:
    """Where a guide of one network has buffers of its own, let the model's network hold them."""
    nets = [net for module in modules if isinstance(net := getattr(module, "net", None), nn.Module)]
    for guide in map(weights_of, modules):
        found = None if isinstance(guide, guides.GuideSet) else statistics_of(guide)
        if found is not None and nets:
            return holding_buffers(nets[0], found.values())
    return contextlib.nullcontext()


def in_turn(guide: object) -> contextlib.AbstractContextManager[None]:
    """A context in which a guide that is a set draws its members in turn; for any other, one that does nothing.

    Args:
        guide: The guide.
    """
    found = weights_of(guide)
    return found.in_turn() if isinstance(found, guides.GuideSet) else contextlib.nullcontext()


def check_mode(guide: object, mode: str) -> None:
    """Raise an error for a mode that needs the moments of the weights, for a guide that is a set.

    Args:
        guide: The guide.
        mode: Name of the mode.

    Raises:
        ValueError: The guide has several members, which only draws can average.
    """
    found = weights_of(guide)
    if isinstance(found, guides.GuideSet) and len(found) > 1 and mode != "mc":
        raise ValueError(
            f"mode {mode!r}: the members of {type(found).__name__} are different networks, and the mean of their "
            f"weights is none of them; predict by mode='mc:{min(len(found), 100)}', which averages over members"
            f"{see('how-to/ensembles')}"
        )


def check_guide(guide: object) -> None:
    """Raise an error for what is no guide.

    Args:
        guide: What was given.

    Raises:
        TypeError: It cannot be called.
    """
    if not callable(guide):
        raise TypeError(
            f"guide: expected a Pyro guide, got {type(guide).__name__}; where nothing is random, "
            f"pyrostoch.guides.Additive(model) is the empty guide{see('how-to/choose_guide')}"
        )


def device_of(model: Model, guide: Guide | None, device: str | torch.device | None = None) -> torch.device | None:
    """The device of model and guide, or `None` where they hold no tensor and no device is asked for.

    Args:
        model: The model.
        guide: The guide.
        device: The device asked for.

    Raises:
        ValueError: Model and guide are on another device than `device`.
    """
    modules = [module for module in (guide, model) if isinstance(module, nn.Module)]
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    found = next((tensor.device for tensor in tensors), None)
    if device is None or found is None:
        return found if device is None else torch.device(device)
    if not same_device(found, torch.device(device)):
        raise ValueError(
            f"device {str(device)!r}: the model is on {found}; move model and guide first, model.to({str(device)!r})"
            f"{see('how-to/several_devices')}"
        )
    return found


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two devices are the same; a missing index counts as 0."""
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def batches_for(model: Model, data: Data, batch_size: int, what: str = "data") -> Batches:
    """A data set in batches that a model can be evaluated on: a single one where its examples meet in the network.

    Args:
        model: The model, whose `in_dims` tell which axes count the examples.
        data: The data set.
        batch_size: Number of examples in a batch.
        what: Name of the data in error messages.
    """
    stream = Stream(getattr(model, "num_data", 1))
    in_dims = getattr(model, "in_dims", 0)
    batches = as_batches(data, batch_size, what, in_dims=in_dims, reader=reader_of(model), stream=stream)
    if batches.from_loader:
        return batches
    return batches.whole() if len(batches) > 1 and must_stay_whole(batches, model) else batches


def batches_on_device(batches: Batches, device: torch.device | None) -> Iterator[tuple[FlatInputs, Target]]:
    """One pass over a data set in its own order; inputs are checked to be finite, and batches moved to a device.

    Args:
        batches: The data set.
        device: The device; `None` leaves the batches where they are.
    """
    for x, y in batches.epoch(None, 0):
        check_finite("inputs x", x)
        yield (x, y) if device is None else (to_device(x, device), to_device(y, device))


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device | None) -> Iterator[None]:
    """Seed torch's generators inside the block and restore their states afterwards; without a seed, do nothing.

    Args:
        seed: The seed.
        device: The device on which draws are made.
    """
    if seed is None:
        yield
        return
    with forked(torch.device("cpu") if device is None else device, seed):
        yield


def observation_distribution(model: Model, guide_trace: Trace, x: FlatInputs) -> Distribution:
    """The distribution of the observations for one draw from the guide.

    Call it inside the interpretation in which the guide was traced.

    Args:
        model: A Pyro model with a method `observation(x)`.
        guide_trace: Trace of the guide.
        x: Inputs.

    Returns:
        A distribution with one batch axis, the examples.

    Raises:
        TypeError: The model has no method `observation`.
        ValueError: The draw lacks a latent variable of the model, or the batch shape of the distribution is not the
            number of examples.
    """
    observation = getattr(model, "observation", None)
    if not callable(observation):
        raise TypeError(
            f"model: expected a BayesianModel, or a Pyro model with a method observation(x) that draws the latent "
            f"variables and returns the distribution of the observations, got {type(model).__name__}"
        )
    trace = trace_of(poutine.replay(observation, trace=guide_trace), x)
    missing = [name for name, _ in latent_sites(trace) if name not in guide_trace.nodes]
    if missing:
        drawn = [name for name, _ in latent_sites(guide_trace)]
        raise ValueError(
            f"guide: no draw for the model's site(s) {name_list(missing)}; the guide has {name_list(drawn) or 'none'}. "
            "Build the guide from this model"
            f"{see('how-to/write_a_guide')}"
        )
    distribution: Any = trace.nodes["_RETURN"]["value"]
    # A trace refers to itself: without this, its tensors would live until Python's garbage collector runs.
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


def has_valid_arguments(distribution: Distribution) -> Tensor:
    """Whether all arguments of a distribution are within their constraints, as a tensor: no value is read.

    Args:
        distribution: The distribution.

    Example:
        >>> has_valid_arguments(torch.distributions.Normal(torch.zeros(2), -torch.ones(2), validate_args=False))
        tensor(False)
    """
    base = base_distribution(distribution)
    valid = torch.ones((), dtype=torch.bool)
    for name, constraint in base.arg_constraints.items():
        # An argument that is computed from another one on demand (probs from logits) is not in `vars`.
        if name in vars(base) and not constraint.is_discrete:
            valid = valid & constraint.check(getattr(base, name)).all().cpu()
    return valid


def check_targets(model: Model, distribution: Distribution, y: Target) -> None:
    """Raise an error for targets that do not fit the distribution of the observations, as the model itself does.

    Args:
        model: The model; its `likelihood` checks the targets, where it has one.
        distribution: The distribution of the observations.
        y: Targets.
    """
    likelihood = getattr(model, "likelihood", None)
    if isinstance(likelihood, Likelihood):
        likelihood.check_shape(distribution, y)
        likelihood.check_target(distribution, y)
