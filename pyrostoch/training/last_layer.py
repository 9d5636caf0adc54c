"""The exact posterior of a Bayesian last layer, in one pass over the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch._targets import Target
from pyrostoch.distributions import RowsNormal
from pyrostoch.effects import MeanPropagation, base_distribution
from pyrostoch.guides import LastLayer
from pyrostoch.guides.temperature import mark_temperature
from pyrostoch.likelihoods import Gaussian
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import (
    batches_for,
    batches_on_device,
    check_targets,
    device_of,
    evaluating,
)
from pyrostoch.protocols import Data
from pyrostoch.sites import Site, trace_of

__all__ = ["fit_last_layer"]


def fit_last_layer(model: BayesianModel, guide: LastLayer, data: Data, *, batch_size: int = 1000) -> None:
    r"""Set a `LastLayer` guide to the exact posterior given the features, for Gaussian noise of known scale.

    With features $\varphi_i$ (and a 1 for the bias), noise $\sigma_o$ and the prior $N(m, P^{-1})$ of an output's
    weights, the posterior is normal with precision and mean

    $$ \Lambda_o = P + \sigma_o^{-2} \sum_i \varphi_i \varphi_i^\top, \qquad
    \Lambda_o^{-1} \Bigl(P m + \sigma_o^{-2} \sum_i y_{io} \varphi_i\Bigr). $$

    Nothing is trained: the network gives the features as it is, in evaluation mode, and a learned noise keeps its
    present value. Sums and linear algebra are in double precision. The data are seen once, in batches, so that their
    number is not limited. With `prior=priors.from_guide(...)` of a last layer without bias, the posterior of earlier
    data is the prior, and the result is that of all data together.

    Args:
        model: The model, whose likelihood is `likelihoods.Gaussian`, and whose output is that of the layer.
        guide: Its guide, which is changed.
        data: The training set, as `fit` takes it.
        batch_size: Number of examples in a batch; it has no influence on the result.

    Raises:
        TypeError: The guide is another.
        ValueError: The likelihood is not Gaussian or its noise is random, the prior is not normal, the network's output
            is not `features @ weight.T + bias` of the layer, with features that do not depend on these; or the data
            are not `num_data` examples, or not finite.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> model = ps.BayesianModel(nn.Linear(1, 1), prior={"*": ps.priors.Normal(0.0, 10.0)},
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=50)
        >>> guide = ps.guides.LastLayer(model)
        >>> fit_last_layer(model, guide, (x, 2 * x + 1))
        >>> [round(guide.site_distribution(name).mean.item(), 3) for name in model.sites]
        [2.0, 1.0]

    References:
        Bishop, "Pattern recognition and machine learning", 2006, section 3.3; Snoek et al., "Scalable Bayesian
        optimization using deep neural networks", 2015.
    """
    if not isinstance(guide, LastLayer):
        raise TypeError(
            f"fit_last_layer: expected a guide LastLayer, got {type(guide).__name__}{see('how-to/choose_guide')}"
        )
    likelihood = model.likelihood
    if type(likelihood) is not Gaussian or likelihood.missing or likelihood.scale.prior is not None:
        raise ValueError(
            "fit_last_layer: expected the likelihood Gaussian with a fixed or learned scale and no missing targets, "
            f"got {likelihood!r}; train with fit(estimator='moments:bound')"
        )
    others = [name for name in model.sites if name not in guide.layer_sites]
    if others:
        raise ValueError(
            f"fit_last_layer: expected only the layer's own sites {name_list(guide.layer_sites)} in the model, got "
            f"{name_list(others)}, too: a random scale, or other weights; train with fit(estimator='moments:bound')"
        )
    _check_layer(model, guide)
    with torch.no_grad():
        precision, shift = _prior(model, guide)
        noise: Any = likelihood.scale()
        weight = torch.as_tensor(noise, dtype=torch.float64, device=shift.device).reciprocal().square()
        weight = weight.expand(len(shift))
        device = device_of(model, guide)
        seen = 0
        with evaluating(model, guide):
            for x, y in batches_on_device(batches_for(model, data, batch_size), device):
                if not seen:
                    _check_linear(model, guide, x)
                features, targets = _features(model, guide, x, y)
                seen += len(features)
                precision = precision + weight.reshape(-1, 1, 1) * (features.mT @ features)
                shift = shift + weight.unsqueeze(1) * (targets.mT @ features)
        if seen != model.num_data:
            raise ValueError(
                f"fit_last_layer data: expected the model's num_data={model.num_data} examples, got {seen}"
            )
        root = torch.linalg.cholesky(precision)
        guide.set_posterior(torch.cholesky_solve(shift.unsqueeze(2), root).squeeze(2), torch.cholesky_inverse(root))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        mark_temperature(guide, 1.0)  # nothing is left of a cold fit, which could have trained features or noise


def _prior(model: BayesianModel, guide: LastLayer) -> tuple[Tensor, Tensor]:
    """Precision, (out, n, n), and precision times mean, (out, n), of the prior of an output's weights and bias."""
    blocks, means = [], []
    for name in guide.layer_sites:
        site: Site = model.sites[name]
        prior: Any = base_distribution(trace_of(model.without_data).nodes[name]["fn"])
        outputs = len(site.init)
        if isinstance(prior, RowsNormal):
            blocks.append(torch.cholesky_inverse(prior.own.double()))
            means.append(prior.mean.double())
        elif type(prior).__name__ == "Normal" and isinstance(prior, torch.distributions.Normal):
            shape = (outputs, site.init.numel() // outputs)
            blocks.append(torch.diag_embed(prior.scale.double().expand(site.init.shape).reshape(shape) ** -2))
            means.append(prior.loc.double().expand(site.init.shape).reshape(shape))
        else:
            raise ValueError(
                f"fit_last_layer: expected a normal prior at site {name!r}, got {type(prior).__name__}; train with "
                "fit(estimator='moments:bound')"
            )
    precision = torch.stack([torch.block_diag(*rows) for rows in zip(*blocks, strict=True)])
    return precision, (precision @ torch.cat(means, 1).unsqueeze(2)).squeeze(2)


def _features(model: BayesianModel, guide: LastLayer, x: Any, y: Target) -> tuple[Tensor, Tensor]:
    """What the layer gets, with a 1 where its bias is random, and the targets without what is fixed, in double."""
    weights = _present(guide)
    features, output = _run(model, guide, x, weights)
    _check_output(model, guide, weights, features, output)
    likelihood: Any = model.likelihood
    check_targets(model, likelihood(output), y)
    features, targets = features.double(), _as_tensor(y).double()
    if len(guide.layer_sites) > 1:
        features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    else:
        targets = targets - _weight_and_bias(model, guide, weights)[1]
    return features, targets


def _present(guide: LastLayer) -> dict[str, Tensor]:
    """The means of the layer's weight and bias."""
    with MeanPropagation():
        return guide()


def _weight_and_bias(model: BayesianModel, guide: LastLayer, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer in double precision, where its random ones have given values."""
    weight = weights[guide.layer_sites[0]].double()
    layer: Any = guide.layer_of(model.net)
    bias = weights[guide.layer_sites[1]] if len(guide.layer_sites) > 1 else layer.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.double()


def _run(model: BayesianModel, guide: LastLayer, x: Any, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the layer gets, and what the network returns, for given weights of the layer."""
    captured: list[tuple[Any, Any]] = []
    with MeanPropagation(), _captured(model.net, guide.layer_of(model.net), captured):
        output = _as_tensor(model.outputs(x, weights))
    inputs, outputs = captured[0] if len(captured) == 1 else (None, None)
    if isinstance(inputs, Tensor) and not bool(torch.isfinite(inputs).all()):
        raise ValueError(
            f"fit_last_layer: expected finite features, but the layer of site {guide.layer_sites[0]!r} gets NaN or "
            f"infinite ones; look at the layers before it{see('how-to/choose_guide')}"
        )
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or not torch.equal(_as_tensor(outputs), output):
        raise ValueError(
            f"fit_last_layer: expected the network's output to be that of the layer of site {guide.layer_sites[0]!r}, "
            "applied once to features of shape (batch, in); train with fit(estimator='moments:bound'), which needs "
            f"less{see('how-to/choose_guide')}"
        )
    return inputs, output


def _check_layer(model: BayesianModel, guide: LastLayer) -> None:
    """Raise an error for a layer without what a linear one has."""
    layer: Any = guide.layer_of(model.net)
    bias = getattr(layer, "bias", False)
    if not isinstance(getattr(layer, "weight", None), Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise ValueError(
            f"fit_last_layer: expected a linear layer, with a weight and a bias that may be None, at site "
            f"{guide.layer_sites[0]!r}, got {type(layer).__name__}, which lacks one of them; use nn.Linear, or train "
            f"with fit(estimator='moments:bound'){see('how-to/choose_guide')}"
        )


def _check_linear(model: BayesianModel, guide: LastLayer, x: Any) -> None:
    """Raise an error unless the layer's output is linear in its weights, and the features do not change with them.

    Other weights than the present ones show it: at those, whatever uses the weights may look like fixed features.
    """
    features, _ = _run(model, guide, x, _present(guide))
    generator = torch.Generator().manual_seed(0)
    others = {}
    for name, value in _present(guide).items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        others[name] = value + noise * (1.0 + value.square().mean().sqrt())
    again, output = _run(model, guide, x, others)
    if again.shape != features.shape or not _close(again, features.double(), features.double().abs()):
        raise ValueError(
            f"fit_last_layer: expected features that do not depend on the random weight {guide.layer_sites[0]!r}, but "
            "what the layer gets changes with it: the network uses it elsewhere, too, as a tied one. Give the layer a "
            f"weight of its own, or train with fit(estimator='moments:bound'){see('how-to/choose_guide')}"
        )
    _check_output(model, guide, others, features, output)


def _check_output(
    model: BayesianModel, guide: LastLayer, weights: dict[str, Tensor], features: Tensor, output: Tensor
) -> None:
    """Raise an error unless the output is that of a linear layer with these weights."""
    weight, bias = _weight_and_bias(model, guide, weights)
    phi = features.double()
    fits = phi.shape[1] == weight.shape[1] and output.shape == (len(phi), len(weight))
    if fits:
        size = F.linear(phi.abs(), weight.abs(), bias.abs())
        fits = _close(output, F.linear(phi, weight, bias), size)
    if not fits:
        raise ValueError(
            f"fit_last_layer: expected the output features @ weight.T + bias of the layer of site "
            f"{guide.layer_sites[0]!r}, but this {type(guide.layer_of(model.net)).__name__} computes another, by a "
            "forward of its own, a hook or a weight that is used twice. Use nn.Linear, and change features in a layer "
            f"before it, or train with fit(estimator='moments:bound'){see('how-to/choose_guide')}"
        )


def _close(found: Tensor, expected: Tensor, size: Tensor) -> bool:
    """Whether values are the expected ones, up to rounding in their own precision, relative to a size."""
    tolerance = min(4.0 * math.sqrt(torch.finfo(found.dtype).eps), 0.05)
    return bool(((found.double() - expected).abs() <= tolerance * size).all())


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), math.nan)


@contextmanager
def _captured(net: nn.Module, layer: nn.Module, found: list[tuple[Any, Any]]) -> Iterator[None]:
    """Keep inputs and outputs of a layer in the last call of a network, which is first called to analyze it."""

    def forget(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.clear()

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [*args, *kwargs.values()]
        found.append((given[0] if len(given) == 1 else None, output))

    handles = [net.register_forward_pre_hook(forget), layer.register_forward_hook(keep, with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
