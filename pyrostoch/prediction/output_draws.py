"""What a network says under single draws of its weights, each the same for all examples."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_choice, check_count, check_finite, name_list
from pyrostoch._inputs import to_device
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs
from pyrostoch.effects import SharedSample
from pyrostoch.effects.statistics import drawn_buffers, holding_buffers
from pyrostoch.guides.amortised import weights_of
from pyrostoch.guides.statistics_owner import warn_of_other_owner
from pyrostoch.likelihoods import Joint, Likelihood, Weighted
from pyrostoch.likelihoods.reading import full_precision
from pyrostoch.likelihoods.select import select_output
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.inputs import compute_device, split
from pyrostoch.prediction.observed import class_log_probs, mean_and_variance
from pyrostoch.prediction.readouts import check_guide, in_turn, seeded
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import Guide, Inputs
from pyrostoch.records import Record
from pyrostoch.sites import Site, latent_sites, trace_of

__all__ = ["Draws", "draws"]


@dataclass(frozen=True, eq=False)
class Draws(Record):
    """The network's outputs under draws of its weights.

    Args:
        outputs: What the likelihood reads of the network's output, (draws, n, ...): logits, or means.
        likelihood: The likelihood.
        quantities: For each draw the likelihood's other quantities, such as the scale of the noise.

    Example:
        >>> from pyrostoch.likelihoods import Gaussian
        >>> found = Draws(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Gaussian(0.5), ({"scale": 0.5}, {"scale": 0.5}))
        >>> found.means.mean(0).tolist(), found.distribution(0).stddev.tolist()
        ([2.0, 3.0], [0.5, 0.5])
    """

    outputs: Tensor
    likelihood: Likelihood
    quantities: tuple[dict[str, Tensor | float], ...]

    def distribution(self, draw: int) -> Distribution:
        """The distribution of the observations under a draw, with the examples as its batch axis.

        Args:
            draw: Number of the draw.
        """
        likelihood = self.likelihood
        if likelihood.output is not None:  # the outputs are that part already
            likelihood = copy.copy(likelihood)
            likelihood.output = None
        found: Distribution = likelihood(self.outputs[draw], self.quantities[draw])
        return found

    @property
    def probs(self) -> Tensor:
        """Class probabilities under each draw, (draws, n, ..., C), in float64.

        Raises:
            ValueError: The observations are not classes.
        """
        found = [class_log_probs(self.distribution(draw)) for draw in range(len(self))]
        if any(part is None for part in found):
            raise ValueError(f"probs: the observations are not classes; these draws have means{see('how-to/draws')}")
        return torch.stack([part.exp() for part in found if part is not None])

    @property
    def means(self) -> Tensor:
        """Means of the observations under each draw, (draws, n, ...).

        Raises:
            ValueError: The observations have no mean.
        """
        found = [mean_and_variance(self.distribution(draw)).get("mean") for draw in range(len(self))]
        if any(part is None or bool(torch.isnan(part).any()) for part in found):
            raise ValueError(f"means: the observations have no mean; for classes, there are probs{see('how-to/draws')}")
        return torch.stack([part for part in found if part is not None])

    def __len__(self) -> int:
        return len(self.outputs)

    def __str__(self) -> str:
        return f"{len(self)} draws of outputs of shape {tuple(self.outputs.shape[1:])}"


def draws(
    model: BayesianModel,
    guide: Guide,
    x: Inputs,
    num: int = 20,
    *,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    differentiable: bool = False,
    head: str | None = None,
) -> Draws:
    r"""The network's output under single draws of its weights, which all examples of a draw share.

    This is what BALD, BatchBALD, Thompson sampling and Bayesian optimization need: the draws' dependence between
    examples, which averaged predictions lose. Random activations are drawn anew for each example. The network is in
    evaluation mode.

    Args:
        model: The model.
        guide: Its guide.
        x: Inputs, as for `predict`.
        num: Number K of draws.
        batch_size: Largest number of examples that run through the network at a time.
        device: The model's device, to which inputs are moved; by default they must be there already.
        seed: Seed of the draws; torch's random state is restored afterwards.
        differentiable: Whether outputs keep their graph, for derivatives by x; all examples then run together.
        head: Which head's output is read, where the likelihood has several (`likelihoods.Joint`).

    Returns:
        Outputs, (K, n, ...), and the distributions that they give.

    Raises:
        TypeError: The model is no `BayesianModel`, or the likelihood is a function of several tensors.
        ValueError: Inputs are empty or not finite, or the guide lacks a site.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> found = draws(model, ps.guides.Additive(model), torch.zeros(5, 2), num=4, seed=0)
        >>> found.outputs.shape, found.probs.shape
        (torch.Size([4, 5, 3]), torch.Size([4, 5, 3]))

    References:
        Houlsby, Huszár, Ghahramani, Lengyel, "Bayesian active learning for classification and preference learning",
        2011; Kirsch, van Amersfoort, Gal, "BatchBALD: efficient and diverse batch acquisition for deep Bayesian active
        learning", 2019.
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(f"draws: expected a BayesianModel, got {type(model).__name__}")
    check_guide(guide)
    warn_of_other_owner(model, guide)
    likelihood, part = _head(model.likelihood, head)
    num = check_count("num", num)
    flat = flat_inputs(x, model.target)
    target = compute_device(flat, model, guide, device)
    check_finite("inputs x", flat)
    batches = [(flat, None)] if differentiable else split(model, flat, None, batch_size)
    of_weights: Any = weights_of(guide)
    gradients = contextlib.nullcontext() if differentiable else torch.no_grad()
    outputs: list[Tensor] = []
    quantities: list[dict[str, Tensor | float]] = []
    sites = model.sites
    modules = [part for part in (model, guide) if isinstance(part, nn.Module)]  # a guide may be a function
    with seeded(seed, target), training_mode(False, *modules), in_turn(guide), gradients:
        for _ in range(num):
            with torch.no_grad(), SharedSample():
                trace = trace_of(of_weights, to_device(batches[0][0], target))
                weights = _weights(sites, trace)
                # Of the whole likelihood, since the sites of a head are named after it.
                drawn = poutine.replay(model.likelihood.draw, trace=trace)()
            quantities.append(_own(drawn, head))
            with SharedSample(), holding_buffers(model.net, drawn_buffers(trace)):
                pieces = [_read(likelihood, part, model.outputs(to_device(x, target), weights)) for x, _ in batches]
            outputs.append(torch.cat(pieces) if len(pieces) > 1 else pieces[0])
    # A copy, since later training changes what a likelihood learns.
    return Draws(torch.stack(outputs), copy.deepcopy(likelihood).requires_grad_(False), tuple(quantities))


def _weights(sites: dict[str, Site], trace: poutine.Trace) -> dict[str, Tensor]:
    """The drawn weights of the network by site name."""
    drawn = {name: node["value"] for name, node in latent_sites(trace)}
    if missing := [name for name in sites if name not in drawn]:
        raise ValueError(
            f"guide: no draw for the model's site(s) {name_list(missing)}; the guide has {name_list(drawn) or 'none'}. "
            "Build the guide from this model"
        )
    return {name: drawn[name] for name, site in sites.items() if site.role != "scale"}


def _head(likelihood: Likelihood, head: str | None) -> tuple[Likelihood, str | int | None]:
    """The likelihood of single observations, without weights, and the part of the output that it reads."""
    if isinstance(likelihood, Weighted):
        likelihood = likelihood.likelihood
    if not isinstance(likelihood, Joint):
        if head is not None:
            raise ValueError(f"draws head={head!r}: the likelihood {type(likelihood).__name__} has no heads")
        return likelihood, likelihood.output
    if head is None:
        raise ValueError(
            f"draws: the likelihood has heads {name_list(likelihood.head_names)}; say which is read: "
            f"head={likelihood.head_names[0]!r}{see('how-to/several_heads')}"
        )
    found = likelihood.by_name[check_choice("draws head", head, likelihood.head_names)]
    return found, head if found.output is None else found.output


def _own(quantities: dict[str, Tensor | float], head: str | None) -> dict[str, Tensor | float]:
    """The quantities of a head, by their names in its own likelihood; all of them without heads."""
    if head is None:
        return quantities
    return {name.removeprefix(f"{head}."): value for name, value in quantities.items() if name.startswith(f"{head}.")}


def _read(likelihood: Likelihood, part: str | int | None, output: Any) -> Tensor:
    """What the likelihood reads of the output."""
    try:
        found = select_output(full_precision(output), part, type(likelihood).__name__)
    except TypeError as error:
        raise TypeError(
            f"draws: {error}; a likelihood that is a function of several tensors has no single output"
            f"{see('how-to/write_a_likelihood')}"
        ) from error
    if not isinstance(found, Tensor):
        raise TypeError(f"draws: expected a tensor as the network's output, got {type(found).__name__}")
    return found
