"""Rules that assign priors to the parameters of a network."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from torch.distributions import Distribution
from torch.nn.parameter import UninitializedParameter

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.priors.base import LearnedPrior, Prior, PriorSpec, as_prior
from pyrostoch.priors.by_name import PriorsByName, check_constants
from pyrostoch.priors.normalization import is_normalization
from pyrostoch.priors.posterior import from_guide
from pyrostoch.protocols import SiteGuide

__all__ = ["assign", "clean_name", "fixed_parameters", "is_bias", "owners"]


def clean_name(name: str) -> str:
    """A parameter's name without the prefix `_orig_mod.` that `torch.compile` inserts.

    Args:
        name: The parameter's name.

    Example:
        >>> clean_name("_orig_mod.fc1.weight")
        'fc1.weight'
    """
    return name.replace("_orig_mod.", "")


def is_bias(name: str) -> bool:
    """Whether a parameter's name is that of a bias (`bias`, `bias_ih_l0`, `in_proj_bias`, ...).

    Args:
        name: The parameter's name.

    Example:
        >>> is_bias("rnn.bias_ih_l0"), is_bias("fc.weight")
        (True, False)
    """
    last = name.rsplit(".", 1)[-1]
    return last.startswith("bias") or last.endswith("bias")


def owners(net: nn.Module) -> dict[str, nn.Module]:
    """The module that holds each parameter, by the parameter's first name.

    Args:
        net: The network.

    Example:
        >>> owners(nn.Sequential(nn.Linear(2, 3, bias=False)))
        {'0.weight': Linear(in_features=2, out_features=3, bias=False)}
    """
    # Not get_submodule, which scripted modules do not have.
    modules = dict(net.named_modules(remove_duplicate=False))
    return {name: modules[name.rpartition(".")[0]] for name, _ in net.named_parameters(remove_duplicate=True)}


def fixed_parameters(net: nn.Module) -> set[int]:
    """The parameters that the user has fixed by `requires_grad=False`, by `id`; not those that a model has made random.

    Args:
        net: The network.
    """
    by_us: set[int] = set()
    for module in net.modules():
        names = {*module.__dict__.get("_pyrostoch_frozen", ()), *getattr(module, "priors", {})}
        by_us |= {id(module._parameters.get(name)) for name in names}
    return {id(parameter) for parameter in net.parameters() if not parameter.requires_grad} - by_us


def assign(net: nn.Module, spec: PriorSpec) -> dict[str, Prior]:
    """Assign priors to the parameters of a network.

    - A single prior applies to all parameters except biases, the parameters of normalization layers, and those that
      the user has fixed (`requires_grad=False`).
    - A guide is `from_guide(guide)`: the present posterior of each of its weights, for the parameter of that name.
    - A dictionary maps name patterns (shell wildcards) to priors, distributions, guides, callables or `None`; the last
      match wins. A pattern may match biases. Fixed parameters and those of a normalization layer are matched only by a
      pattern that writes out the layer's name (`"bn1.weight"`, `"bn1.*"`).
    - A callable gets each parameter's name and value, and returns a prior, a distribution or `None`.
    - Normalization layers are those of torch, and modules whose parameters have one axis and which have `Norm` in their
      class name (`LlamaRMSNorm`, `T5LayerNorm`) or divide by a norm or a standard deviation in their `forward`.
    - The parameters of a prior of activations (`layers.activations.Learned`) are treated as those of a normalization
      layer.
    - The `prior=` of a layer from `pyrostoch.layers` applies where `spec` is `None`, a single prior, or a dictionary
      without a matching pattern.

    Args:
        net: The network.
        spec: Prior, distribution, guide, dictionary, callable or `None`.

    Returns:
        A prior for each random parameter, by its name in `net.named_parameters()`.

    Raises:
        ValueError: A pattern matches nothing, a parameter with a prior cannot be made random, or a guide has other
            weights than the network.
        TypeError: `spec`, or a value in it, is not a prior.

    Example:
        >>> from pyrostoch import priors
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> assign(net, priors.Normal())
        {'0.weight': Normal(loc=0, scale=1)}
        >>> sorted(assign(net, {"*": priors.Normal()}))
        ['0.bias', '0.weight']
    """
    parameters = dict(net.named_parameters(remove_duplicate=True))
    holders = owners(net)
    of_layers = _layer_priors(net)
    fixed_ids = fixed_parameters(net)

    of_priors = {
        id(part) for module in net.modules() if isinstance(module, LearnedPrior) for part in module.parameters()
    }

    def set_apart(name: str) -> bool:
        """Whether only a rule that writes out its name gives a parameter a prior."""
        apart = id(parameters[name]) in fixed_ids or id(parameters[name]) in of_priors
        return apart or is_normalization(parameters[name], holders[name])

    chosen: dict[str, Prior | None] = {name: of_layers.get(id(parameter)) for name, parameter in parameters.items()}
    spec = _with_guide(spec)
    if isinstance(spec, dict):
        _by_pattern(spec, parameters, set_apart, chosen)
    elif isinstance(spec, PriorsByName):
        _by_name(spec, parameters, set_apart, chosen)
    elif isinstance(spec, (Prior, Distribution)):
        for name in parameters:
            if chosen[name] is None and not is_bias(name) and not set_apart(name):
                chosen[name] = as_prior(spec)
        fixed = [name for name in parameters if id(parameters[name]) in fixed_ids]
        if fixed and all(prior is None for prior in chosen.values()):
            raise ValueError(
                f"prior: parameter(s) {name_list(clean_name(name) for name in fixed)} are fixed (requires_grad=False), "
                "so a single prior makes none random; name those that it is for by rules, such as "
                f"{{{clean_name(fixed[0])!r}: prior}}, or make them trainable"
                f"{see('how-to/convert_network')}"
            )
    elif callable(spec) and not isinstance(spec, type):
        for name, parameter in parameters.items():
            chosen[name] = as_prior(spec(clean_name(name), parameter))
    elif spec is not None:
        as_prior(cast(Any, spec))  # raises a TypeError
    random = {name: prior for name, prior in chosen.items() if prior is not None}
    for name, prior in random.items():
        _check_can_be_random(name, parameters[name], holders[name])
        check_constants(net, name, prior)
    fixed = [name for name in random if id(parameters[name]) in fixed_ids]
    if fixed:
        warnings.warn(
            f"prior: parameter(s) {name_list(clean_name(name) for name in fixed)} were fixed (requires_grad=False) and "
            "become random, since a rule names them",
            UserWarning,
            stacklevel=3,
        )
    holding = _holding(net)
    return {
        name: prior.for_layer(clean_name(name), parameters[name], holding[id(parameters[name])])
        for name, prior in random.items()
    }


def _holding(net: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that hold each parameter, by the parameter's id."""
    holding: dict[int, list[nn.Module]] = {}
    for module in net.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holding.setdefault(id(parameter), []).append(module)
    return holding


def _layer_priors(net: nn.Module) -> dict[int, Prior]:
    """The priors given to layers, by the parameter's id, since several modules may hold a tied parameter."""
    priors: dict[int, Prior] = {}
    for module in net.modules():
        for last, prior in getattr(module, "priors", {}).items():
            parameter = getattr(module, last, None)
            if isinstance(parameter, nn.Parameter) and isinstance(prior, Prior):
                priors.setdefault(id(parameter), prior)
    return priors


def _with_guide(value: Any) -> Any:
    """A guide as the rule that it stands for; what else is no prior is left for `as_prior` to refuse."""
    is_other_module = isinstance(value, nn.Module) and not isinstance(value, Prior)
    return from_guide(cast(SiteGuide, value)) if is_other_module or hasattr(value, "site_distribution") else value


def _by_name(
    rule: PriorsByName,
    parameters: dict[str, nn.Parameter],
    set_apart: Callable[[str], bool],
    chosen: dict[str, Prior | None],
) -> None:
    """Priors with values of their own as the only prior of a network."""
    by_clean = {clean_name(name): name for name in parameters}
    # A posterior goes before what a layer was made with; that of a network's own values stands for a single prior.
    usual = [
        clean
        for clean, name in by_clean.items()
        if not is_bias(name) and not set_apart(name) and (rule.all_named or chosen[name] is None)
    ]
    for clean in rule.chosen(by_clean, usual):
        chosen[by_clean[clean]] = rule(clean, parameters[by_clean[clean]])


def _by_pattern(
    rules: dict[str, Any],
    parameters: dict[str, nn.Parameter],
    set_apart: Callable[[str], bool],
    chosen: dict[str, Prior | None],
) -> None:
    for pattern, value in rules.items():
        value = _with_guide(value)
        matched = {}
        for name in parameters:
            clean = clean_name(name)
            if not fnmatch.fnmatchcase(clean, pattern):
                continue
            module, _, _ = clean.rpartition(".")
            spelled_out = pattern == clean or (module and pattern.rpartition(".")[0] == module)
            if not set_apart(name) or spelled_out:
                matched[clean] = name
        if isinstance(value, PriorsByName):
            by_clean = {clean_name(name): name for name in parameters}
            matched = {clean: by_clean[clean] for clean in value.matched(pattern, by_clean, matched)}
        for clean, name in matched.items():
            chosen[name] = as_prior(value(clean, parameters[name]) if _is_rule(value) else value)
        if not matched:
            raise ValueError(
                f"prior rule {pattern!r} matches no parameter; the network has "
                f"{name_list(clean_name(n) for n in parameters)} (write out the name of a normalization layer or of a "
                "fixed parameter)"
                f"{see('how-to/convert_network')}"
            )


def _is_rule(value: Any) -> bool:
    return callable(value) and not isinstance(value, (Prior, Distribution, type))


def _check_can_be_random(name: str, parameter: nn.Parameter, holder: nn.Module) -> None:
    reason = None
    if isinstance(parameter, UninitializedParameter):
        reason = "it has no shape yet: run the network once on an example first"
    elif not parameter.is_floating_point():
        reason = f"its dtype is {parameter.dtype}; only real floating-point parameters can be random"
    elif "/" in name:
        reason = "its name contains a '/', which replaces the dot in the names of priors and guides; rename it"
    elif parameter.numel() == 0:
        reason = f"it is empty, of shape {tuple(parameter.shape)}"
    elif isinstance(holder, (nn.Embedding, nn.EmbeddingBag)) and holder.max_norm is not None:
        reason = (
            f"max_norm={holder.max_norm} overwrites rows of the weight when they are looked up, so a draw would not "
            f"keep its value; omit max_norm, or give the weight no prior (rule {{{clean_name(name)!r}: None}})"
        )
    elif type(holder).__module__.startswith("torch.jit"):
        reason = "it belongs to a scripted module, which does not accept a drawn weight"
    if reason:
        raise ValueError(
            f"parameter {clean_name(name)!r} of {type(holder).__name__} cannot be made random: {reason}"
            f"{see('how-to/convert_network')}"
        )
