"""Rules of torch's activation functions and of dropout, and Monte Carlo through operations without a rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrostoch.moments.affine import scaled
from pyrostoch.moments.arithmetic import added
from pyrostoch.moments.gaussian import Link, Moments, cross_covariance, per_example, related
from pyrostoch.moments.smooth import Gelu, Probit, Smooth
from pyrostoch.moments.table import RULES, moments_in, refuse, rule
from pyrostoch.moments.units import Knot, Piecewise, Unit, activate

__all__ = ["sample_through"]

# Largest number of entries of an example that are drawn jointly, from a factorization of their covariance.
_MAX_JOINT_ENTRIES = 1024

_RELU = Piecewise((Knot(kink=1.0),))


def _register(unit: Callable[..., Unit], *functions: Any, in_place: tuple[Any, ...] = ()) -> None:
    """Register rules for activation functions `f(x, *args, inplace=False)`, and for those that always work in place."""

    @rule(*functions, *in_place)
    def _activation(
        func: Callable[..., Any], input: Moments, *args: Any, inplace: bool = False, **kwargs: Any
    ) -> Moments:
        result = activate(input, unit(*args, **kwargs))
        return input.become(result) if inplace or func in in_place else result


def _fixed(unit: Unit) -> Callable[..., Unit]:
    return lambda *_: unit


def _leaky(negative_slope: float = 0.01, *_: Any) -> Unit:
    return Piecewise((Knot(kink=1.0 - negative_slope),), slant=negative_slope)


def _clamp(min: Any = None, max: Any = None, *_: Any) -> Unit:
    if min is None or max is None:
        at = min if max is None else max
        return Piecewise(
            (Knot(at, kink=1.0 if max is None else -1.0),),
            offset=at if max is None else 0.0,
            slant=float(max is not None),
        )
    return Piecewise((Knot(min, kink=1.0), Knot(max, kink=-1.0)), offset=min)


def _gelu(approximate: str = "none") -> Unit:
    return Gelu() if approximate == "none" else Smooth(lambda x: F.gelu(x, approximate=approximate))


def _smooth(function: Callable[..., Tensor]) -> Callable[..., Unit]:
    return lambda *args, **kwargs: Smooth(lambda x: function(x, *args, **kwargs))


_register(_fixed(_RELU), torch.relu, F.relu, Tensor.relu, in_place=(torch.relu_, F.relu_, Tensor.relu_))
_register(_leaky, F.leaky_relu, in_place=(F.leaky_relu_,))
_register(lambda *_: _clamp(0.0, 6.0), F.relu6)
_register(lambda min_val=-1.0, max_val=1.0, *_: _clamp(min_val, max_val), F.hardtanh, in_place=(F.hardtanh_,))
_register(_clamp, torch.clamp, Tensor.clamp, torch.clip, Tensor.clip)
_register(_clamp, torch.clamp_min, Tensor.clamp_min)
_register(lambda max: _clamp(None, max), torch.clamp_max, Tensor.clamp_max)
_register(lambda *_: Piecewise((Knot(-3.0, kink=1 / 6), Knot(3.0, kink=-1 / 6))), F.hardsigmoid)
_register(_fixed(Piecewise((Knot(kink=2.0),), slant=-1.0)), torch.abs, Tensor.abs, Tensor.__abs__)
_register(_fixed(Piecewise((Knot(jump=2.0),), offset=-1.0)), torch.sign, Tensor.sign)
_register(_fixed(Probit(math.sqrt(0.5), 2.0, -1.0)), torch.erf, Tensor.erf, torch.special.erf)
_register(_fixed(Probit()), torch.special.ndtr)
_register(_gelu, F.gelu)
for _functions in (
    (torch.tanh, F.tanh, Tensor.tanh),
    (torch.sigmoid, F.sigmoid, Tensor.sigmoid),
    (torch.sin, Tensor.sin),
    (torch.cos, Tensor.cos),
    (F.softplus,),
    (F.silu,),
    (F.mish,),
    (F.elu,),
    (F.selu, torch.selu),
    (F.celu, torch.celu),
    (F.softsign,),
    (F.logsigmoid,),
    (F.hardswish,),
    (F.tanhshrink,),
):
    _register(_smooth(_functions[0]), *_functions)


@rule(torch.heaviside, Tensor.heaviside)
def _heaviside(func: Callable[..., Any], input: Moments, values: Tensor) -> Moments:
    return activate(input, Piecewise.threshold())


@rule(*(getattr(Tensor, f"__{name}__") for name in ("gt", "ge")), torch.gt, torch.ge, Tensor.gt, Tensor.ge)
def _above(func: Callable[..., Any], x: Moments, at: Any) -> Moments:
    """A comparison is a step function with values 0 and 1, as it becomes in arithmetic."""
    if isinstance(at, Moments):
        x, at = added(x, at, -1.0), 0.0
    return activate(x, Piecewise.threshold(at))


@rule(F.prelu, torch.prelu)
def _prelu(func: Callable[..., Any], input: Moments, weight: Tensor) -> Moments:
    slope = weight.reshape(1, -1, *[1] * (input.loc.dim() - 2)) if weight.numel() > 1 else weight.reshape(())
    return activate(input, Piecewise((Knot(kink=1.0 - slope),), slant=slope))


@rule(F.log_softmax, torch.log_softmax, Tensor.log_softmax)
def _log_softmax(
    func: Callable[..., Any], input: Moments, dim: int | None = None, *rest: Any, **kwargs: Any
) -> Moments:
    """Subtract the log-sum-exp of the mean: a shift common to all classes does not change a softmax of the result."""
    return scaled(input, func(input.loc, dim), 1.0)


@rule(F.dropout, torch.dropout, torch.feature_dropout)
@rule(F.dropout1d, F.dropout2d, F.dropout3d)
def _dropout(
    func: Callable[..., Any], input: Moments, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Moments:
    """Masks are independent: the mean does not change, and each variance grows by (v + m²) p / (1 - p)."""
    if not training or p == 0.0:
        return input
    if p == 1.0:
        result = scaled(input, torch.zeros_like(input.loc), 0.0)
        return input.become(result) if inplace else result
    x, odds = input, p / (1.0 - p)
    second = x.var + x.loc.square()
    cov = None
    if x.cov is not None:
        flat = per_example(x.loc)
        masks = torch.arange(x.loc[0].numel(), device=x.loc.device)
        if func not in (F.dropout, torch.dropout):  # one mask for a whole channel
            masks = masks // math.prod(x.loc.shape[2:])
        joint_second = x.cov + flat.unsqueeze(1) * flat.unsqueeze(2)
        cov = x.cov + odds * joint_second * (masks.unsqueeze(0) == masks.unsqueeze(1))
    link = Link(x, lambda rows: rows, lambda: torch.ones_like(second))
    result = Moments(x.loc, x.var + odds * second, cov, x.settings, (link,))
    return x.become(result) if inplace else result


def sample_through(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Moments:
    """Moments of the result of an operation without a rule, by Monte Carlo through this operation only.

    Args:
        func: A function that returns one floating-point tensor whose first axis counts examples.
        args: Its arguments, of which some are `Moments`.
        kwargs: Its keyword arguments.

    Returns:
        Mean and variance (or covariance) of the draws.

    Raises:
        MissingRuleError: The function returns something else, or its inputs are correlated and have too many entries.
    """
    given = {id(moments): moments for moments in moments_in((args, kwargs))}
    settings = next(iter(given.values())).settings
    draws: list[Tensor] = []
    draw_inputs = _sampler(func, list(given.values()))
    for _ in range(settings.draws):
        values = dict(zip(given, draw_inputs(), strict=True))
        result = func(*_substitute(args, values), **_substitute(kwargs, values))
        if not isinstance(result, Tensor) or not result.is_floating_point():
            refuse(func, "it returns no tensor of real numbers, of which moments could be estimated by Monte Carlo")
        draws.append(result)
    stacked = torch.stack(draws)
    loc, var = stacked.mean(0), stacked.var(0)
    cov = None
    if settings.full:
        centered = (stacked - loc).flatten(2).movedim(0, 1)
        cov = centered.mT @ centered / (settings.draws - 1)
    return Moments(loc, var, cov, settings)


RULES["fallback"] = sample_through


def _sampler(func: Callable[..., Any], given: list[Moments]) -> Callable[[], list[Tensor]]:
    """A function that draws a value for each of the moments, jointly if some of them are related."""
    if not any(related(one, other) for one, other in itertools.combinations(given, 2)):
        return lambda: [_sample(moments) for moments in given]
    sizes = [moments.loc[0].numel() for moments in given]
    if sum(sizes) > _MAX_JOINT_ENTRIES:
        refuse(func, f"its inputs depend on each other, and {sum(sizes)} entries are too many to draw jointly")
    cov = torch.cat([torch.cat([cross_covariance(one, other) for other in given], 2) for one in given], 1)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
    loc = torch.cat([per_example(moments.loc) for moments in given], 1)

    def draw_jointly() -> list[Tensor]:
        drawn = loc + (root @ torch.randn_like(loc).unsqueeze(-1)).squeeze(-1)
        parts = drawn.split(sizes, 1)
        return [part.reshape(moments.loc.shape) for part, moments in zip(parts, given, strict=True)]

    return draw_jointly


def _sample(moments: Moments) -> Tensor:
    noise = torch.randn_like(moments.loc)
    if moments.cov is None:
        return moments.loc + moments.stddev() * noise
    values, vectors = torch.linalg.eigh(moments.cov)
    scaled_noise = values.clamp_min(0.0).sqrt() * per_example(noise)
    return moments.loc + (vectors @ scaled_noise.unsqueeze(-1)).reshape(moments.loc.shape)


def _substitute(tree: Any, values: dict[int, Tensor]) -> Any:
    """Nested arguments with each of the moments, known by its id, replaced by a tensor."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_substitute(item, values) for item in tree)
    if isinstance(tree, dict):
        return {key: _substitute(item, values) for key, item in tree.items()}
    return values.get(id(tree), tree)
