"""What conditional layers cost: a forward pass by label, and under a selection, beside other ways to compute the same.

All figures are ratios of medians over alternating calls in one process, without gradients but where it is said.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyrostoch.bench.case import Case, TrialContext
from pyrostoch.bench.recipe import Recipe
from pyrostoch.layers import Conditional, GatedSelection, StochasticConv2d, StochasticLinear, StochasticLSTM

__all__ = ["COST_CASES"]

_EXAMPLES, _CLASSES = 100, 10
# Rounds of alternating calls.
_RECIPES = {name: Recipe(epochs=rounds) for name, rounds in (("quick", 3), ("cpu", 30), ("full", 100))}

#: By kernel: a function that makes a stochastic layer, or a deterministic one, and the shape of an example.
_KERNELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: StochasticLinear(784, 400), (784,)),
    "convolution": (lambda: StochasticConv2d(20, 50, 5), (20, 12, 12)),
    "lstm": (lambda: StochasticLSTM(28, 64, batch_first=True), (28, 28)),
    "transformer": (lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), (16, 32)),
}


def _ratios(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    device = torch.accelerator.is_available()
    for name in [*calls, *list(calls) * rounds]:  # the first round warms up
        begin = perf_counter()
        calls[name]()
        if device:
            torch.accelerator.synchronize()
        times[name].append(perf_counter() - begin)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _trial(kernel: str) -> Callable[[TrialContext], Mapping[str, float]]:
    make, shape = _KERNELS[kernel]

    def run(context: TrialContext) -> Mapping[str, float]:
        rounds, device = context.recipe.epochs, torch.device(context.setting.device)
        generator = torch.Generator().manual_seed(context.seed)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(context.seed)
            x = torch.randn(_EXAMPLES, *shape, generator=generator).to(device)
            gate = GatedSelection(nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), _CLASSES)))
            plain = make().to(device).eval()
            layers = {count: Conditional(make, count).to(device).eval() for count in (2, 100)}
            soft = Conditional(make, _CLASSES, gate, where="output").to(device).eval()
            labels = {
                count: torch.randint(count, (_EXAMPLES,), generator=generator).to(device) for count in (1, 2, 10, 100)
            }
            calls: dict[str, Callable[[], object]] = {"plain": partial(plain, x), "soft": partial(soft, x)}
            for count, layer in layers.items():
                calls[f"classes-{count}"] = partial(layer, x, labels=labels[2])
            for count, y in labels.items():
                calls[f"present-{count}"] = partial(layers[100], x, labels=y)
            seconds = _ratios(calls, rounds)
        metrics = {
            "ratio/classes": seconds["classes-100"] / seconds["classes-2"],
            "ratio/present-10": seconds["present-10"] / seconds["present-1"],
            "ratio/present-100": seconds["present-100"] / seconds["present-1"],
            "ratio/soft": seconds["soft"] / (_CLASSES * seconds["plain"]),
        }
        return metrics | _batched(soft.classes.train(), x, rounds)

    return run


def _batched(layers: Any, x: Tensor, rounds: int) -> dict[str, float]:
    """One batched program for kernels of several classes, in units of calls one after another, with gradients."""
    if isinstance(layers[0], nn.TransformerEncoderLayer):
        kernels: list[Any] = list(layers)
        batched, called = partial(_mapped, kernels, x), partial(_called, kernels, x)
    elif isinstance(layers[0], StochasticLSTM):
        kernels = [layer.output.kernels[0] for layer in layers]
        batched, called = partial(_lstms, kernels, x), partial(_called, kernels, x)
    else:
        return {}
    with torch.enable_grad():
        seconds = _ratios({"batched": partial(_gradients, batched), "called": partial(_gradients, called)}, rounds)
        if not torch.allclose(batched(), called(), atol=1e-4):
            raise ArithmeticError("the batched program computes something else")
    return {"ratio/batched": seconds["batched"] / seconds["called"]}


def _gradients(call: Callable[[], Tensor]) -> None:
    call().sum().backward()


def _called(kernels: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The activations of each kernel, one after another."""
    found = [kernel(x) for kernel in kernels]
    return torch.stack([one[0] if isinstance(one, tuple) else one for one in found])


def _mapped(kernels: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Modules of one structure, by `vmap` over their parameters."""
    names = stack_module_state(list(kernels))[0]
    own = [dict(kernel.named_parameters()) for kernel in kernels]
    stacked = {name: torch.stack([parameters[name] for parameters in own]) for name in names}
    base = copy.deepcopy(kernels[0]).to("meta")
    with sdpa_kernel(SDPBackend.MATH):  # the others have no batched form on a CPU
        found: Tensor = vmap(lambda parameters: functional_call(base, parameters, (x,)))(stacked)
    return found


def _lstms(kernels: Sequence[Any], x: Tensor) -> Tensor:
    """LSTMs of one layer, whose steps are batched products."""
    read, back = (torch.stack([getattr(k, f"weight_{n}_l0").T for k in kernels]) for n in ("ih", "hh"))
    bias = torch.stack([k.bias_ih_l0 + k.bias_hh_l0 for k in kernels])[:, None, None]
    given = torch.einsum("bti,cij->cbtj", x, read) + bias
    h = c = given.new_zeros(len(kernels), len(x), back.shape[1])
    found = []
    for t in range(x.shape[1]):
        i, f, g, o = torch.baddbmm(given[:, :, t], h, back).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        found.append(h)
    return torch.stack(found, 2)


COST_CASES = tuple(
    Case(f"cost/{kernel}", f"cost, {title}", None, _RECIPES, custom_trial=_trial(kernel))
    for kernel, title in (
        ("linear", "linear 784 to 400"),
        ("convolution", "convolution 5 x 5, 20 to 50 channels"),
        ("lstm", "LSTM 28 to 64, 28 steps"),
        ("transformer", "transformer encoder, width 32, 16 steps"),
    )
)
