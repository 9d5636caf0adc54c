"""Kronecker factors of the generalized Gauss-Newton matrix, by the library curvlinops."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.effects.jacobians import output_of
from pyrostoch.effects.network import NetworkCall
from pyrostoch.effects.usage import weight_usage
from pyrostoch.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from pyrostoch.prediction.readouts import evaluating
from pyrostoch.training.log_joint import DataPasses, RecordedCall
from pyrostoch.training.output_curvature import noise_of

__all__ = ["kronecker_factors"]

_MISSING = (
    "fit_laplace structure='kronecker' needs the library curvlinops, which is missing or incomplete: pip install "
    "--no-deps curvlinops-for-pytorch==3.0.1 backpack-for-pytorch einconv unfoldNd linear_operator einops; then pip "
    "install jaxtyping scipy tqdm. There is no extra for it, since an ordinary install brings torchvision, which "
    "breaks imports beside a torch of another build; the other structures need no library"
)


def kronecker_factors(passes: DataPasses, weights: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    r"""For each site the factors G, (out, out), and A, (in, in), of the curvature of the negative log-likelihood.

    $G = \sum_i g_i g_i^\top$ over the derivatives of the layer's outputs (with the exact curvature of the likelihood),
    and $A = \tfrac{1}{N} \sum_i a_i a_i^\top$ over its inputs; a bias has $A = 1$.

    Args:
        passes: The data.
        weights: The weights by site.

    Raises:
        ImportError: curvlinops is not installed.
        ValueError: A weight is not used once, in a linear layer or a convolution in two dimensions that is not grouped;
            examples meet in the network, or its inputs are several.
    """
    library = _library()
    first = next(iter(passes.batches()))[0]
    with evaluating(passes.model, passes.guide), RecordedCall() as recorded:
        passes.model.outputs(first, dict(weights))
    call = recorded.call
    _check(call, passes, first)
    likelihood = passes.model.likelihood
    module = _Read(_at(call), likelihood, recorded.output)
    module.eval()
    parameters = {name: module.net.get_parameter(name) for name in call.weights}
    count = passes.model.num_data
    with torch.enable_grad():
        operator = library.KFACLinearOperator(
            module,
            _loss_of(likelihood),
            list(parameters.values()),
            _Pairs(passes),
            fisher_type=library.FisherType.TYPE2,
            check_deterministic=False,
            num_data=count,
            num_per_example_loss_terms=module.terms,
        )
        operator.compute_kronecker_factors()
    state = operator.state_dict()
    found = {}
    for name, site in call.sites.items():
        if name not in call.weights:
            continue
        layer, _, kind = f"net.{name}".rpartition(".")
        if layer not in state["gradient_covariances"]:
            raise ValueError(
                f"fit_laplace structure='kronecker': site {site!r}: the network uses this weight without calling its "
                "layer, so that its inputs are not seen; take structure='diagonal' or "
                f"'full'{see('how-to/choose_guide')}"
            )
        of_outputs = state["gradient_covariances"][layer].double()
        if isinstance(likelihood, Gaussian):
            of_outputs = 0.5 * of_outputs  # the square has twice the curvature of half of it
        of_inputs = state["input_covariances"].get(layer) if kind == "weight" else None
        one = torch.ones(1, 1, dtype=torch.float64, device=of_outputs.device)
        found[site] = (of_outputs, one if of_inputs is None else of_inputs.double())
    return found


def _library() -> ModuleType:
    try:
        import curvlinops
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return curvlinops


class _Read(nn.Module):
    """What the likelihood's loss reads of a network's output: classes second, noise of size one."""

    def __init__(self, net: nn.Module, likelihood: Likelihood, output: Tensor) -> None:
        super().__init__()
        self.net, self.likelihood = net, likelihood
        axis = likelihood.axis % output.dim() if isinstance(likelihood, Categorical) else output.dim() - 1
        positions = [size for index, size in enumerate(output.shape) if index not in (0, axis)]
        #: Number of targets of an example that the loss takes apart.
        self.terms = math.prod(positions)
        for parameter in self.net.parameters():
            parameter.requires_grad_(True)

    def forward(self, x: Any) -> Tensor:
        inputs = x if isinstance(x, tuple) else (x,)
        found = output_of(NetworkCall(self.net, {}, inputs, {}, {}, {}))[1]
        if isinstance(self.likelihood, Categorical):
            return found.movedim(self.likelihood.axis, 1)
        if isinstance(self.likelihood, Gaussian):
            found = found / noise_of(self.likelihood, found).to(found.dtype)
        return found.unsqueeze(1) if found.dim() == 1 else found


class _Pairs:
    """The batches, as often as they are asked for."""

    def __init__(self, passes: DataPasses) -> None:
        self.passes = passes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.passes.batches():
            target: Any = y
            if isinstance(self.passes.model.likelihood, (Gaussian, Bernoulli)) and target.dim() == 1:
                target = target.unsqueeze(1)
            yield (x[0] if isinstance(x, tuple) else x), target


def _at(call: NetworkCall) -> nn.Module:
    """A copy of the network with the weights of a call as its parameters."""
    net = copy.deepcopy(call.net)
    with torch.no_grad():
        for name, value in call.weights.items():
            net.get_parameter(name).copy_(value)
    return net


def _loss_of(likelihood: Likelihood) -> nn.Module:
    losses = {
        Categorical: nn.CrossEntropyLoss,
        Bernoulli: nn.BCEWithLogitsLoss,
        Gaussian: nn.MSELoss,
    }
    return losses[type(likelihood)](reduction="sum")


def _check(call: NetworkCall, passes: DataPasses, first: Any) -> None:
    """Raise an error where factors would not be those of the network."""
    if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], Tensor):
        raise ValueError(
            "fit_laplace structure='kronecker': expected a network with one tensor as its input, got "
            f"{len(call.args)}; take structure='diagonal'{see('how-to/choose_guide')}"
        )
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
        grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
        if len(uses) != 1 or uses[0].role == "other" or len(places[id(call.net.get_parameter(name))]) > 1:
            wrong[site] = f"used {len(uses)} times" if len(uses) != 1 else f"used in {uses[0].function}"
        elif type(layer) not in (nn.Linear, nn.Conv2d) or grouped or uses[0].folded > 1:
            wrong[site] = f"a weight of {'a grouped ' * grouped}{type(layer).__name__}"
    if wrong:
        reasons = ", ".join(f"{site!r} is {reason}" for site, reason in wrong.items())
        raise ValueError(
            "fit_laplace structure='kronecker': expected each random weight to be used once, by a Linear or a Conv2d "
            f"that is not grouped, but {reasons}; take structure='diagonal', or no prior: {name_list(wrong)}"
            f"{see('how-to/choose_guide')}"
        )
