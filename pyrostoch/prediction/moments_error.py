"""The error of propagated moments in one network, measured by Monte Carlo layer by layer, with error bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_count, check_finite
from pyrostoch._inputs import count_examples, to_device
from pyrostoch._structure import flat_inputs
from pyrostoch.effects.active import active_call, inside_network
from pyrostoch.infer.elbo import MOMENTS
from pyrostoch.moments import Moments
from pyrostoch.prediction.readouts import MODES, device_of, evaluating, observation_distribution, seeded
from pyrostoch.protocols import FlatInputs, Guide, Inputs, Model
from pyrostoch.records import Record, number, table
from pyrostoch.sites import trace_of

__all__ = ["LayerError", "MomentsError", "moments_error"]

# The draws are divided into groups, whose spread gives the error bars.
_NUM_GROUPS = 8


@dataclass(frozen=True)
class LayerError(Record):
    """Error of the moments of one module's output.

    Args:
        module: Name of the module in the network; with `#2` and so on for later calls of the same module.
        kind: Type of the module.
        entries: Number of outputs per example.
        mean: Squared error of the means divided by the variance, both summed over outputs and examples. The noise of
            the draws is subtracted, so the estimate may be negative.
        mean_stderr: Monte-Carlo standard error of `mean`.
        variance: Relative error of the variances, summed over outputs and examples: 0.1 if they are 10 % too large.
        variance_stderr: Monte-Carlo standard error of `variance`.
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
    """Errors of propagated moments, module by module in the order of execution.

    Args:
        mode: How moments were propagated.
        num_examples: Number of examples.
        num_samples: Number of draws that the moments were compared with.
        layers: One row per call of a module.
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
    model: Model,
    guide: Guide,
    x: Inputs,
    *,
    mode: str = "moments",
    num_samples: int = 200,
    seed: int | None = None,
) -> MomentsError:
    r"""Compare propagated moments with Monte Carlo, for the output of every module of a network.

    With mean $\hat m$ and variance $\hat v$ from draws and $m$, $v$ propagated, a row gives
    $\sum (\hat m - m)^2 / \sum \hat v$, corrected for the noise of the draws, and $\sum v / \sum \hat v - 1$. A squared
    error of 0.01 is a tenth of a standard deviation. Modules whose output does not vary are left out, as are modules
    that contain others.

    Args:
        model: A `BayesianModel`, or a Pyro model with a method `observation(x)`.
        guide: Its guide.
        x: Inputs, or a tuple of inputs; a hundred examples are enough.
        mode: `"moments"`, `"moments:full"`, or another variant of `"moments"`.
        num_samples: Number of draws, at least 16; they are divided into 8 groups of equal size.
        seed: Seed of the draws; torch's random state is restored afterwards. Without it, draws continue from the
            present random state.

    Returns:
        The errors.

    Raises:
        ValueError: The mode is not a variant of moments, or there are too few draws.

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
    num_samples = check_count("num_samples", num_samples, 2 * _NUM_GROUPS)
    x = flat_inputs(x, getattr(model, "target", None))
    check_finite("inputs x", x)
    device = device_of(model, guide)
    x = x if device is None else to_device(x, device)
    net: Any = getattr(model, "net", model)
    with evaluating(model, guide), seeded(seed, device):
        outputs = _record_outputs(net, lambda: _run(mode, model, guide, x))
        expected = {name: found for name, found in outputs.items() if isinstance(found[1], Moments)}
        groups = [
            _group_statistics(net, expected, lambda: _run("mc", model, guide, x), num_samples // _NUM_GROUPS)
            for _ in range(_NUM_GROUPS)
        ]
    rows = []
    for name, (kind, moments) in expected.items():
        row = _layer_error(name, kind, moments, [group[name] for group in groups])
        if row is not None:
            rows.append(row)
    count = count_examples(x, getattr(model, "in_dims", 0)) or len(x[0] if isinstance(x, tuple) else x)
    return MomentsError(mode, count, num_samples // _NUM_GROUPS * _NUM_GROUPS, tuple(rows))


def _run(mode: str, model: Model, guide: Guide, x: FlatInputs) -> None:
    with MODES[mode].interpretation(model):
        observation_distribution(model, trace_of(guide, x), x)


def _record_outputs(net: nn.Module, run: Callable[[], None]) -> dict[str, tuple[str, Any]]:
    """Type and output of each call of a module without submodules, by name, in one pass."""
    outputs: dict[str, tuple[str, Any]] = {}
    calls: dict[str, int] = {}

    def make_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if inside_network() and active_call() is None:
                return  # this is the analysis of weight usage, which runs the network before its first call
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, (Moments, Tensor)):
                key = name if calls[name] == 1 else f"{name}#{calls[name]}"
                # Copies, since the operations that follow may work in place.
                copy = Moments(output.loc, output.var) if isinstance(output, Moments) else output.clone()
                outputs[key] = type(module).__name__, copy

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in net.named_modules():
            if next(module.children(), None) is None:
                stack.callback(module.register_forward_hook(make_hook(name)).remove)
        run()
    return outputs


def _group_statistics(
    net: nn.Module, expected: dict[str, tuple[str, Any]], run: Callable[[], None], draws: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean of each output's deviation from its propagated mean, and variance of each output, over some draws."""
    sums = {name: (torch.zeros_like(of.loc), torch.zeros_like(of.loc)) for name, (_, of) in expected.items()}
    for _ in range(draws):
        outputs = _record_outputs(net, run)
        for name, (_, of) in expected.items():
            deviation = outputs[name][1] - of.loc
            total, squares = sums[name]
            total += deviation
            squares += deviation.square()
    return {
        name: (total / draws, (squares - total.square() / draws) / (draws - 1))
        for name, (total, squares) in sums.items()
    }


def _layer_error(name: str, kind: str, moments: Moments, groups: list[tuple[Tensor, Tensor]]) -> LayerError | None:
    deviations = torch.stack([mean.double() for mean, _ in groups])
    variances = torch.stack([variance.double() for _, variance in groups])
    total = variances.mean(0).sum()
    if not bool(total > 0):
        return None
    # The product of two groups' mean deviations is an unbiased estimate of the squared error, since their noise is
    # independent. The products share groups, so the error bar comes from leaving out one group at a time (jackknife).
    products = torch.einsum("gi,hi->gh", deviations.flatten(1), deviations.flatten(1)) / total
    products.fill_diagonal_(0.0)
    count = len(groups)
    total_products = products.sum()
    left_out = (total_products - 2.0 * products.sum(1)) / ((count - 1) * (count - 2))
    ratios = moments.var.double().sum() / variances.flatten(1).sum(1) - 1.0
    return LayerError(
        name,
        kind,
        moments.loc[0].numel(),
        (total_products / (count * (count - 1))).item(),
        left_out.std(correction=0).item() * (count - 1) ** 0.5,
        ratios.mean().item(),
        ratios.std().item() / count**0.5,
    )
