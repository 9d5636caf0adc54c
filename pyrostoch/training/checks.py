"""Checks that are made once before a training run, so that its steps need none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm

from pyrostoch._checks import check_finite, name_list
from pyrostoch._descriptions import trained_values
from pyrostoch._inputs import to_device
from pyrostoch._manual import see
from pyrostoch._seeds import forked
from pyrostoch._targets import Target, example_shapes
from pyrostoch.effects import base_distribution
from pyrostoch.effects.activation_sites import site_names
from pyrostoch.effects.trees import tensors_in
from pyrostoch.effects.usage import Use, weight_usage
from pyrostoch.infer.batches import Batches
from pyrostoch.likelihoods import BayesianSVM, Bernoulli, Categorical, FromOutput
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.validation import training_mode
from pyrostoch.priors import fixed_parameters
from pyrostoch.protocols import FlatInputs
from pyrostoch.sites import trace_of
from pyrostoch.staging import put_back
from pyrostoch.training.batch_checks import check_last_batch

__all__ = [
    "check_all_batches",
    "check_data",
    "check_model_and_guide",
    "check_param_store",
    "check_rate_weight",
    "keep_fixed_statistics",
    "move_modules",
]


def check_model_and_guide(model: object, guide: object) -> None:
    """Raise an error for a model or guide of a type that `fit` cannot train.

    Args:
        model: Must be a `BayesianModel`.
        guide: Must be a module, which holds its own parameters.

    Raises:
        TypeError: One of them is something else.
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(
            f"fit: expected a BayesianModel, got {type(model).__name__}; train any other Pyro model by "
            "pyro.infer.SVI(model, guide, optimizer, pyrostoch.ELBO())"
            f"{see('how-to/convert_network')}"
        )
    if not isinstance(guide, nn.Module):
        raise TypeError(
            "fit: expected a guide that is a torch.nn.Module (pyrostoch.guides.*, or an autoguide of Pyro), got "
            f"{type(guide).__name__}; train a guide function by pyro.infer.SVI(model, guide, optimizer, "
            "pyrostoch.ELBO()). Where nothing is random, pyrostoch.guides.Additive(model) is the empty guide"
            f"{see('how-to/write_a_guide')}"
        )


def check_rate_weight(model: BayesianModel, rate_weight: float) -> None:
    """Raise an error for a weight of the rate where there is no rate.

    Args:
        model: The model.
        rate_weight: The weight.

    Raises:
        ValueError: No layer's activations have a prior.
    """
    layers: Any = (model.net.get_submodule(name) for name in site_names(model.net))
    if rate_weight != 1.0 and all(layer.prior is None for layer in layers):
        raise ValueError(
            f"rate_weight={rate_weight:g}: no activation of {type(model.net).__name__} has a prior, so that there is "
            "no rate; give a stochastic layer prior='standard' or 'learned', or leave it out"
            f"{see('how-to/stochastic_layers')}"
        )


def move_modules(model: nn.Module, guide: nn.Module, device: str | torch.device | None) -> torch.device:
    """Move model and guide to a device, or find the device they are on.

    Args:
        model: The model.
        guide: The guide.
        device: The device, or `None` to leave model and guide where they are.

    Returns:
        The device.

    Raises:
        ValueError: The device cannot be used on this machine, or model and guide are on different devices.
    """
    if device is not None:
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; use device='cpu'") from error
        model.to(chosen)
        guide.to(chosen)
    devices = {part: {p.device for p in module.parameters()} for part, module in (("model", model), ("guide", guide))}
    if devices["model"] and not devices["guide"] <= devices["model"]:
        raise ValueError(
            f"fit: expected model and guide on one device, got the model on {_names(devices['model'])} and the guide "
            f"on {_names(devices['guide'])}; give device=, or move both before"
            f"{see('how-to/several_devices')}"
        )
    return next((p.device for module in (model, guide) for p in module.parameters()), torch.device("cpu"))


def keep_fixed_statistics(net: nn.Module) -> None:
    """Put batch normalization whose parameters are all fixed, or that is fixed for now, into evaluation mode.

    Args:
        net: The network, in training mode.
    """
    fixed = fixed_parameters(net)
    for part in net.modules():
        own = list(part.parameters(recurse=False)) if isinstance(part, _BatchNorm) else []
        kept = isinstance(part, _BatchNorm) and "_pyrostoch_keeps_statistics" in vars(part)
        if kept or (own and all(id(parameter) in fixed for parameter in own)):
            part.training = False


def check_data(
    model: BayesianModel, guide: nn.Module, batches: Batches, device: torch.device, what: str = "data"
) -> Callable[[FlatInputs, Target], None] | None:
    """Check the data: their number, that inputs are finite, and that the likelihood can produce the targets.

    The first batch is run through the model once, which leaves buffers and random generators as they were.

    Args:
        model: The model.
        guide: Its guide.
        batches: The data.
        device: The device of model and guide.
        what: Name of the data in error messages.

    Warns:
        UserWarning: The logits come from a weight whose distribution has mean zero, so that nothing can be learned; its
            site is named.

    Returns:
        A function that checks another batch, for data that are not held in memory; `None` if all data were checked.

    Raises:
        TypeError: The targets have a wrong type.
        ValueError: Anything else does not fit.
    """
    if what == "data" and batches.items_are_batches:
        batches.num_data = model.num_data  # the first epoch tells whether it is right
    if what == "data" and batches.num_data != model.num_data:
        raise ValueError(
            f"data: expected num_data={model.num_data} examples, as the model was built for, got {batches.num_data}; "
            f"build it with num_data={batches.num_data}, or give all of its training data"
        )
    if not batches.is_stream and len(batches) == 0:
        raise ValueError(
            f"{what}: expected at least one batch, got no batch from a loader of {batches.num_data} examples; with "
            "drop_last=True, batch_size must not exceed their number"
        )
    if what == "data":
        check_last_batch(model, batches)
    if batches.in_memory is not None:
        check_finite(f"{what}: inputs x", batches.in_memory[0])
    generators = [(generator, generator.get_state()) for generator in batches.generators()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with training_mode(False, model, guide), forked(device), torch.no_grad():
            x, y = batches.first()
            check_finite(f"{what}: inputs x", x)
            x, y = to_device(x, device), to_device(y, device)
            trace = trace_of(guide, x, y)
            centered = _centered_sites(model, trace) if what == "data" else set()
            with _UsageRecorder(centered) as recorder, model.likelihood.register_forward_pre_hook(_warn_of_softmax):
                distribution = poutine.replay(model.observation, trace=trace)(x)
    finally:
        put_back(buffers)
        for generator, state in generators:
            generator.set_state(state)

    def check(x: FlatInputs, y: Target) -> None:
        check_finite(f"{what}: inputs x", x)
        shapes = example_shapes(y)
        if shapes != first_shapes and _input_shapes(x) == input_shapes:
            name = next(name for name in shapes if shapes[name] != first_shapes[name])
            raise ValueError(
                f"{what}: expected every target{f' of {name!r}' * bool(name)} of shape {first_shapes[name]}, as in the "
                f"first batch, got {shapes[name]} in another one"
            )
        _check_target(model, distribution, y.to(device), what)

    # Where inputs differ in shape, too, as sequences padded by batch, each step checks its own targets.
    first_shapes, input_shapes = example_shapes(y), _input_shapes(x)
    _warn_of_centered_output(model, recorder.uses)
    model.likelihood.check_shape(distribution, y)
    _check_target(model, distribution, y, what)
    if batches.in_memory is not None:
        _check_target(model, distribution, batches.in_memory[1].to(device), what)
    return check if batches.in_memory is None else None


def check_all_batches(
    batches: Batches, device: torch.device, check: Callable[[FlatInputs, Target], None] | None
) -> None:
    """Check every batch of data that are not held in memory, before a long run needs them.

    Args:
        batches: The data; states of random generators are left as they were.
        device: The device of model and guide.
        check: The result of `check_data`.
    """
    if check is None:
        return
    generators = [(generator, generator.get_state()) for generator in batches.generators()]
    try:
        with forked(device):
            for x, y in batches.epoch(None, 0):
                check(x, y)
    finally:
        for generator, state in generators:
            generator.set_state(state)


def check_param_store(model: nn.Module, guide: nn.Module) -> None:
    """Raise an error for parameters that model or guide made by `pyro.param`: they are in no module, so not trained.

    Args:
        model: The model, after it has run once with an initially empty parameter store.
        guide: Its guide, after the same.

    Raises:
        ValueError: There are such parameters; they are named.
    """
    known = {id(parameter) for module in (model, guide) for parameter in module.parameters()}
    stray = [name for name, value in pyro.get_param_store().named_parameters() if id(value) not in known]
    if stray:
        raise ValueError(
            f"fit: parameter(s) {name_list(stray)} made by pyro.param are in no module and would not be trained; make "
            "them nn.Parameter of the guide, or train by pyro.infer.SVI"
            f"{see('how-to/write_a_guide')}"
        )


def check_likelihood_function(model: BayesianModel) -> None:
    """Raise an error for parameters that a likelihood function uses and that are no parameters of the model.

    Args:
        model: The model.

    Raises:
        ValueError: There are such parameters; they are named.
    """
    known = {id(parameter) for parameter in model.parameters()}
    functions = [part.make for part in model.likelihood.modules() if isinstance(part, FromOutput)]
    values = [item for make in functions for item in trained_values(make).items()]
    stray = [name for name, value in values if id(value) not in known]
    if stray:
        raise ValueError(
            f"fit: the likelihood function uses parameter(s) {name_list(stray)}, which nothing would train or save; "
            "make them part of the network, or write a pyrostoch.likelihoods.Likelihood that holds them, or detach them"
            f"{see('how-to/write_a_likelihood')}"
        )


def _input_shapes(x: FlatInputs) -> list[tuple[int, ...]]:
    """The shapes of the inputs without their axes of examples, which may be any."""
    return [tuple(sorted(part.shape[1:])) for part in tensors_in(x)]


def _check_target(model: BayesianModel, distribution: Distribution, y: Target, what: str) -> None:
    try:
        model.likelihood.check_target(distribution, y)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


class _UsageRecorder(Messenger):
    """Records how the network that runs inside it uses the weights of some sites."""

    def __init__(self, sites: set[str]) -> None:
        super().__init__()
        self.sites = sites
        self.uses: dict[str, tuple[Use, ...]] = {}

    def _pyro_network(self, msg: Any) -> None:
        call = msg["args"][0]
        if self.sites & set(call.sites.values()):
            usage = weight_usage(call.net, call.weights, call.args, call.kwargs, call.in_dims)
            self.uses = {call.sites[name]: uses for name, uses in usage.uses.items() if call.sites[name] in self.sites}


def _centered_sites(model: BayesianModel, trace: Trace) -> set[str]:
    """Sites whose distribution has mean zero by construction, in a model of classes that is concave in the output."""
    # Compared by the method that turns outputs into a distribution, since a subclass may have overridden it.
    if type(model.likelihood).distribution not in (
        Categorical.distribution,
        Bernoulli.distribution,
        BayesianSVM.distribution,
    ):
        return set()
    distributions = {
        name: base_distribution(node["fn"]) for name, node in trace.nodes.items() if node["type"] == "sample"
    }
    return {name for name in model.sites if getattr(distributions.get(name), "zero_mean", False)}


def _warn_of_centered_output(model: BayesianModel, uses: dict[str, tuple[Use, ...]]) -> None:
    # The log-likelihood is concave in the output. By Jensen's inequality its mean over outputs symmetric around
    # the bias is at most its value at the bias, whatever the input. This does not hold if the same weight also
    # computes the input of the last layer.
    for site, found in uses.items():
        if len(found) == 1 and found[0].output:
            warnings.warn(
                f"fit: the distribution of {site!r} has mean zero and computes the network's output, the "
                f"{_outputs(model.likelihood)} likelihood: they are symmetric around the bias whatever the input, "
                "and their expected log-likelihood is never above that of the bias alone, so nothing can be learned. "
                f"Give this layer a distribution with a mean, such as guides.PerSite(model, {{'*': "
                f"guides.VarianceOnly, {site!r}: guides.Additive}}), or no prior (prior rule {{{site!r}: None}})",
                UserWarning,
                stacklevel=4,
            )


def _outputs(likelihood: nn.Module) -> str:
    """What the network's outputs are for a likelihood, such as `logits of a Categorical`."""
    kind = "decision values" if isinstance(likelihood, BayesianSVM) else "logits"
    return f"{kind} of a {type(likelihood).__name__}"


def _warn_of_softmax(likelihood: nn.Module, args: tuple[Any, ...]) -> None:
    """Warn of probabilities where any numbers are expected: with them, no class can ever be nearly certain."""
    output = args[0] if args else None
    if not isinstance(likelihood, (Categorical, BayesianSVM)) or not isinstance(output, Tensor):
        return
    if output.dim() < 2 or output.shape[-1] < 2:
        return
    if bool((output >= 0).all()) and bool(((output.sum(-1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "fit: the network's outputs are probabilities (they sum to one), not the "
            f"{_outputs(likelihood)}: leave out the last softmax{see('how-to/write_a_likelihood')}",
            UserWarning,
            stacklevel=2,
        )


def _names(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))
