"""How far moments can be trusted in one network: their error against Monte Carlo, layer by layer, with error bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrostoch._checks import check_finite
from pyrostoch.effects.active import active_call, inside_network
from pyrostoch.infer.batches import to_device
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.moments import Moments
from pyrostoch.prediction.readouts import MODES, evaluating, home_of, observe, seeded
from pyrostoch.records import Record, number, table

__all__ = ["LayerError", "MomentsError", "moments_error"]

_GROUPS = 8


@dataclass(frozen=True)
class LayerError(Record):
    """Error of one module's output moments.

    Args:
        module: Its name in the network; `#2` and so on where it is called again.
        kind: Its type.
        entries: Outputs an example.
        mean: Squared error of the means over the variance, both summed over outputs and examples; an estimate without
            the noise of the draws, which may be negative.
        mean_stderr: Its Monte-Carlo standard error.
        variance: Relative error of the variances, summed over outputs and examples: 0.1 where they are 10 % too large.
        variance_stderr: Its Monte-Carlo standard error.
    """

    module: str
    kind: str
    entries: int
    mean: float
    mean_stderr: float
    variance: float
    variance_stderr: float


@dataclass(frozen=True)
class MomentsError(Record):
    """Errors of moments, module by module in the order they run.

    Args:
        mode: How moments were propagated.
        num_examples: Inputs that were looked at.
        num_samples: Draws that they were compared with.
        layers: A row a module.
    """

    mode: str
    num_examples: int
    num_samples: int
    layers: tuple[LayerError, ...]

    def __getitem__(self, module: str) -> LayerError:
        """The row of a module."""
        for row in self.layers:
            if row.module == module:
                return row
        raise KeyError(f"{module!r}: expected one of {', '.join(repr(row.module) for row in self.layers)}")

    def __str__(self) -> str:
        rows = [
            (
                row.module or "network",
                row.kind,
                row.entries,
                f"{number(row.mean)} ± {number(row.mean_stderr)}",
                f"{100 * row.variance:+.1f} ± {100 * row.variance_stderr:.1f}",
            )
            for row in self.layers
        ]
        head = ("module", "type", "outputs", "mean, squared error / variance", "variance, error %")
        title = f"{self.mode!r} against {self.num_samples} draws, {self.num_examples} examples"
        return title + "\n" + table(head, rows)


def moments_error(
    model: Any,
    guide: Any,
    x: Any,
    *,
    mode: str = "moments",
    num_samples: int = 200,
    seed: int | None = None,
) -> MomentsError:
    r"""Compare propagated moments with Monte Carlo, for the output of every module of a network.

    With $\hat m$, $\hat v$ from draws and $m$, $v$ propagated, a row gives $\sum (\hat m - m)^2 / \sum \hat v$,
    the noise of the draws taken off, and $\sum v / \sum \hat v - 1$. A squared error of 0.01 is a tenth of a standard
    deviation. Modules whose output does not vary are left out.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        x: Inputs, or a tuple of inputs; a hundred examples are plenty.
        mode: `"moments"` or `"moments:full"`.
        num_samples: Number of draws.
        seed: Seed of the draws; torch's random state is left as it was. Without it the draws go on from there.

    Returns:
        The errors.

    Raises:
        ValueError: The mode is none of moments, or there are fewer than two draws a group.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 1))
        >>> model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=9)
        >>> errors = moments_error(model, ps.guides.Additive(model), torch.ones(4, 2), num_samples=80, seed=0)
        >>> [row.kind for row in errors.layers]
        ['Linear', 'ReLU', 'Linear']

    References:
        Wu et al., "Deterministic variational inference for robust Bayesian neural networks", 2019.
    """
    if mode not in MOMENTS:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, MOMENTS))}, got {mode!r}")
    if not isinstance(num_samples, int) or num_samples < 2 * _GROUPS:
        raise ValueError(f"num_samples: expected a whole number from {2 * _GROUPS} up, got {num_samples!r}")
    check_finite("inputs x", x)
    home = home_of(model, guide)
    x = x if home is None else to_device(tuple(x) if isinstance(x, list) else x, home)
    net = getattr(model, "net", model)
    with evaluating(model, guide), seeded(seed, home):
        known = _outputs(net, lambda: _run(mode, model, guide, x))
        wanted = {name: found for name, found in known.items() if isinstance(found[1], Moments)}
        groups = [
            _group(net, wanted, lambda: _run("mc", model, guide, x), num_samples // _GROUPS) for _ in range(_GROUPS)
        ]
    rows = []
    for name, (kind, moments) in wanted.items():
        row = _row(name, kind, moments, [group[name] for group in groups], num_samples // _GROUPS)
        if row is not None:
            rows.append(row)
    count = len(x[0] if isinstance(x, tuple) else x)
    return MomentsError(mode, count, num_samples // _GROUPS * _GROUPS, tuple(rows))


def _run(mode: str, model: Any, guide: Any, x: Any) -> None:
    with MODES[mode].interpretation(model):
        observe(model, poutine.trace(guide).get_trace(x), x)


def _outputs(net: nn.Module, run: Callable[[], None]) -> dict[str, tuple[str, Any]]:
    """The output of each call of a module without parts, by name, in one pass."""
    found: dict[str, tuple[str, Any]] = {}
    calls: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if inside_network() and active_call() is None:
                return  # the analysis of weight usage, which runs the network before its first call
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, (Moments, Tensor)):
                key = name if calls[name] == 1 else f"{name}#{calls[name]}"
                # Copies: what follows may work in place.
                kept = Moments(output.loc, output.var) if isinstance(output, Moments) else output.clone()
                found[key] = type(module).__name__, kept

        return note

    with contextlib.ExitStack() as stack:
        for name, module in net.named_modules():
            if next(module.children(), None) is None:
                stack.callback(module.register_forward_hook(hook(name)).remove)
        run()
    return found


def _group(
    net: nn.Module, wanted: dict[str, tuple[str, Any]], run: Callable[[], None], draws: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each output over some draws, about the propagated mean."""
    sums = {name: (torch.zeros_like(of.loc), torch.zeros_like(of.loc)) for name, (_, of) in wanted.items()}
    for _ in range(draws):
        found = _outputs(net, run)
        for name, (_, of) in wanted.items():
            apart = found[name][1] - of.loc
            total, squares = sums[name]
            total += apart
            squares += apart.square()
    return {
        name: (total / draws, (squares - total.square() / draws) / (draws - 1))
        for name, (total, squares) in sums.items()
    }


def _row(name: str, kind: str, moments: Moments, groups: list[tuple[Tensor, Tensor]], draws: int) -> LayerError | None:
    shifts = torch.stack([shift.double() for shift, _ in groups])
    spreads = torch.stack([spread.double() for _, spread in groups])
    total = spreads.mean(0).sum()
    if not bool(total > 0):
        return None
    # Products of two groups' means, which are independent, have no noise of their own; leaving out one group at a time
    # gives the error bar, since the products share groups.
    products = torch.einsum("gi,hi->gh", shifts.flatten(1), shifts.flatten(1)) / total
    products.fill_diagonal_(0.0)
    count = len(groups)
    whole = products.sum()
    without = (whole - 2.0 * products.sum(1)) / ((count - 1) * (count - 2))
    ratios = moments.var.double().sum() / spreads.flatten(1).sum(1) - 1.0
    return LayerError(
        name,
        kind,
        moments.loc[0].numel(),
        (whole / (count * (count - 1))).item(),
        without.std(correction=0).item() * (count - 1) ** 0.5,
        ratios.mean().item(),
        ratios.std().item() / count**0.5,
    )
