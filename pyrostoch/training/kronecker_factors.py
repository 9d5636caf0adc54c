"""Kronecker factors of the generalized Gauss-Newton matrix, for linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._inputs import count_examples, take_examples
from pyrostoch._manual import see
from pyrostoch.effects.network import NetworkCall
from pyrostoch.effects.usage import weight_usage
from pyrostoch.prediction.readouts import evaluating
from pyrostoch.training.log_joint import DataPasses, RecordedCall
from pyrostoch.training.output_curvature import whitened

__all__ = ["kronecker_factors"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Largest number of entries of the curvatures by the output that are held at a time.
_MOST_ENTRIES = 2**22


def kronecker_factors(passes: DataPasses, weights: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    r"""For each site the factors G, (out, out), and A, (in, in), of the curvature of the negative log-likelihood.

    $$ G = \sum_{i,t} g_{it} g_{it}^\top, \qquad A = \tfrac{1}{N T} \sum_{i,t} a_{it} a_{it}^\top, $$

    over examples i and the T positions t where the layer is applied: its inputs $a$, for a convolution what a kernel
    covers, and the derivatives $g$ of the network's output by the layer's, times a root of the likelihood's curvature
    by the output. Derivatives and inputs are taken as independent, and those of different positions as unrelated. The
    block of a bias is exact: $G = \sum_i (\sum_t g_{it}) (\sum_t g_{it})^\top$ and A = 1.

    Args:
        passes: The data.
        weights: The weights by site.

    Raises:
        ValueError: A weight is not used once, in a linear layer or a convolution that is not grouped; or examples meet
            in the network.

    References:
        Martens, Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015; Eschenhagen,
        Immer, Turner, Schneider, Hennig, "Kronecker-factored approximate curvature for modern neural network
        architectures", 2023, for the positions ("expand").
    """
    first = next(iter(passes.batches()))[0]
    with evaluating(passes.model, passes.guide), RecordedCall() as recorded:
        passes.model.outputs(first, dict(weights))
    call = recorded.call
    _check(call, passes, first)
    layers: dict[str, Any] = {name: call.net.get_submodule(name.rpartition(".")[0]) for name in call.weights}
    sums = {name: _Sums() for name in call.weights}
    with evaluating(passes.model, passes.guide), torch.enable_grad():
        for x in _pieces(passes, recorded.output[:1].numel()):
            leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
            with _seen(set(layers.values())) as seen, RecordedCall() as recorded:
                passes.model.outputs(x, leaves)
            for name, layer in layers.items():
                if layer not in seen:
                    raise ValueError(
                        f"fit_laplace structure='kronecker': site {call.sites[name]!r}: the network uses this weight "
                        "without calling its layer, so that its inputs are not seen; take structure='diagonal' or "
                        f"'full'{see('how-to/choose_guide')}"
                    )
                if name.rpartition(".")[2] == "weight":
                    sums[name].add_inputs(_rows(layer, seen[layer][0]))
            called = list(seen)
            for slopes in _slopes(passes, recorded.output, [seen[layer][1] for layer in called]):
                by_layer = dict(zip(called, slopes, strict=True))
                for name, layer in layers.items():
                    sums[name].add_slopes(layer, by_layer[layer], is_bias=name.rpartition(".")[2] != "weight")
    return {call.sites[name]: found.factors() for name, found in sums.items()}


class _Sums:
    """The sums that make both factors of a site, in double precision."""

    def __init__(self) -> None:
        self._outputs: Any = 0.0
        self._inputs: Any = None
        self._count = 0

    def add_inputs(self, rows: Tensor) -> None:
        rows = rows.double()
        self._inputs = rows.mT @ rows + (0.0 if self._inputs is None else self._inputs)
        self._count += len(rows)

    def add_slopes(self, layer: nn.Module, slopes: Tensor, *, is_bias: bool) -> None:
        slopes = slopes.movedim(1, -1) if isinstance(layer, _CONVOLUTIONS) else slopes
        slopes = slopes.double().reshape(len(slopes), -1, slopes.shape[-1])
        rows = slopes.sum(1) if is_bias else slopes.flatten(0, 1)
        self._outputs = self._outputs + rows.mT @ rows

    def factors(self) -> tuple[Tensor, Tensor]:
        one = torch.ones(1, 1, dtype=torch.float64, device=self._outputs.device)
        return self._outputs, one if self._inputs is None else self._inputs / self._count


def _pieces(passes: DataPasses, outputs: int) -> Iterator[Any]:
    """The inputs, as many examples at a time as the curvatures by their outputs leave room for."""
    size = max(1, _MOST_ENTRIES // outputs**2)
    for x, y in passes.batches():
        count = count_examples(x, passes.model.in_dims) or len(y)
        for start in range(0, count, size):
            yield x if size >= count else take_examples(x, slice(start, start + size), passes.model.in_dims)


@contextmanager
def _seen(layers: set[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Inputs and output of each layer that is called in the block."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        found[layer] = (args[0].detach().clone(), output)
        return output.clone()  # since what comes next may write into it

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _slopes(passes: DataPasses, output: Tensor, layers: list[Tensor]) -> Iterator[list[Tensor]]:
    """The derivatives g by the layers' outputs, for each column of the root of the likelihood's curvature."""
    size = output[0].numel()
    identity = torch.eye(size, dtype=torch.float64, device=output.device).expand(len(output), size, size)
    jacobian = identity.reshape(*output.shape, size)
    columns = whitened(passes.model.likelihood, output.detach(), jacobian).unbind(1)
    for number, column in enumerate(columns, 1):
        found = torch.autograd.grad(
            output,
            layers,
            column.reshape(output.shape).to(output.dtype),
            retain_graph=number < len(columns),
            allow_unused=True,
        )
        yield [torch.zeros_like(y) if g is None else g for y, g in zip(layers, found, strict=True)]


def _rows(layer: Any, x: Tensor) -> Tensor:
    """What a layer multiplies its weight with, a row for each example and position."""
    if not isinstance(layer, _CONVOLUTIONS):
        return x.reshape(-1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode)
    for axis, (size, step, apart) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        x = x.unfold(axis, apart * (size - 1) + 1, step)[..., ::apart]
    # Now examples, channels, positions, and the entries of the kernel.
    spatial = len(layer.kernel_size)
    return x.movedim(1, 1 + spatial).flatten(1 + spatial).flatten(0, spatial)


def _check(call: NetworkCall, passes: DataPasses, first: Any) -> None:
    """Raise an error where factors would not be those of the network."""
    if passes.model.examples_meet(first):
        raise ValueError(
            "fit_laplace structure='kronecker': expected a network that keeps examples apart, but an example's output "
            f"depends on others; take structure='diagonal' or 'full'{see('how-to/choose_guide')}"
        )
    usage = weight_usage(call.net, call.weights, call.args, call.kwargs, call.in_dims)
    layers = dict(call.net.named_modules())
    places: dict[int, list[str]] = {}
    for prefix, module in call.net.named_modules():
        for last, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append(f"{prefix}.{last}" if prefix else last)
    wrong = {}
    for name, site in call.sites.items():
        if name not in call.weights:
            continue
        uses, layer = usage.uses.get(name, ()), layers[name.rpartition(".")[0]]
        kind = _kind(layer)
        if len(uses) != 1 or uses[0].role == "other" or len(places[id(call.net.get_parameter(name))]) > 1:
            wrong[site] = f"used {len(uses)} times" if len(uses) != 1 else f"used in {uses[0].function}"
        elif kind:
            wrong[site] = f"a weight of a {kind}"
        elif uses[0].folded > 1:
            wrong[site] = f"a weight of a {type(layer).__name__} with {uses[0].folded} rows for each example"
    if wrong:
        reasons = ", ".join(f"{site!r} is {reason}" for site, reason in wrong.items())
        raise ValueError(
            "fit_laplace structure='kronecker': expected each random weight to be used once, by a Linear or a "
            f"convolution that is not grouped, but {reasons}; take structure='diagonal', or no prior: "
            f"{name_list(wrong)}{see('how-to/choose_guide')}"
        )


def _kind(layer: nn.Module) -> str:
    """What a layer is whose factors are not known, in words; empty for one whose are."""
    name = type(layer).__name__
    if type(layer) is nn.Linear:
        return ""
    if not isinstance(layer, _CONVOLUTIONS) or type(layer) not in _CONVOLUTIONS:
        return name
    return "" if layer.groups == 1 else f"{name} with groups={layer.groups}"
