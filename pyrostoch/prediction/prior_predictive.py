"""What a model says before it has seen data: outputs and observations under draws of its priors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import check_count, name_list
from pyrostoch._inputs import device_of_inputs
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs
from pyrostoch.effects.activation_sites import site_names
from pyrostoch.likelihoods import Likelihood
from pyrostoch.likelihoods.parts import is_loss
from pyrostoch.likelihoods.survival import CensoredTime
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.observed import class_log_probs
from pyrostoch.prediction.output_draws import Draws, draws
from pyrostoch.prediction.readouts import device_of, seeded
from pyrostoch.protocols import Inputs
from pyrostoch.records import table

__all__ = ["PriorPredictive", "prior_predictive"]


@dataclass(frozen=True, eq=False)
class PriorPredictive(Draws):
    """Draws from a model's priors: the network's outputs, and observations drawn under each.

    Args:
        outputs: What the likelihood reads of the network's output, (draws, n, ...): logits, or means.
        likelihood: The likelihood.
        quantities: For each draw the likelihood's other quantities, such as the scale of the noise.
        observations: One observation for each draw and example, (draws, n, ...).

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 3), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Categorical(), num_data=10)
        >>> found = ps.prior_predictive(model, torch.zeros(5, 2), num_samples=4, seed=0)
        >>> found.probs.shape, found.observations.shape
        (torch.Size([4, 5, 3]), torch.Size([4, 5]))
    """

    likelihood: Likelihood  # again, so that the annotations of the constructor can be read in this module
    observations: Tensor

    @property
    def has_classes(self) -> bool:
        """Whether the observations are classes, so that there are `probs`."""
        return class_log_probs(self.distribution(0)) is not None

    def __str__(self) -> str:
        count = f"{len(self)} draws from the priors, {self.outputs.shape[1]} examples"
        if self.has_classes:
            probs = self.probs
            average = probs.mean(0)
            classes = probs.argmax(-1)
            same = (classes == classes[:, :1]).all(1)  # for each draw, and each output of several or pixel
            rows = [
                ("largest class probability, mean", probs.amax(-1).mean().item()),
                ("entropy of a draw, nats, mean", _entropy(probs).mean().item()),
                ("entropy of the average over draws, nats, mean", _entropy(average).mean().item()),
                ("draws with one class for all examples, share", same.double().mean().item()),
            ]
            return f"{count}, {probs.shape[-1]} classes\n{table(('', ''), rows)}"
        shape = tuple(self.observations.shape[2:])
        if isinstance(self.distribution(0), CensoredTime):
            # Draws are times that are known; the other number of a target says so.
            rows = _summary("times", self.observations[..., 0])
        else:
            rows = _summary("observations", self.observations)
        return f"{count}, observations of shape {shape}\n{table(('', ''), rows)}"


def prior_predictive(
    model: BayesianModel,
    x: Inputs,
    *,
    num_samples: int = 100,
    batch_size: int = 1000,
    device: str | torch.device | None = None,
    seed: int | None = None,
    head: str | None = None,
) -> PriorPredictive:
    r"""What a model says before training: outputs and observations under draws of its priors.

    $$ w_k \sim p(w), \qquad y_{ki} \sim p(y \mid \mathrm{net}_{w_k}(x_i)), \quad k = 1 \ldots K. $$

    It shows what a prior means for the functions that a network computes, which its scale alone does not. All examples
    of a draw share their weights, and the likelihood's random quantities. Parameters without a prior, such as biases by
    default, have their present values; so do fitted scales (`EmpiricalBayes`). The network is in evaluation mode.

    `pyrostoch.report.prior_draws` makes a picture of it.

    Args:
        model: The model.
        x: Inputs, as for `predict`.
        num_samples: Number K of draws.
        batch_size: Largest number of examples that run through the network at a time.
        device: The model's device, to which inputs are moved; by default they must be there already.
        seed: Seed of the draws; torch's random state is restored afterwards.
        head: Which head's output is read, where the likelihood has several (`likelihoods.Joint`).

    Returns:
        Outputs and observations, (K, n, ...).

    Raises:
        TypeError: The model is no `BayesianModel`, or the likelihood is a function of several tensors.
        ValueError: A prior is improper or nothing has a prior; activations have a prior; the likelihood is a loss; or
            outputs are not finite.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(1, 1), prior={"*": ps.priors.Normal()},
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> found = prior_predictive(model, torch.linspace(-1, 1, 20)[:, None], num_samples=500, seed=0)
        >>> found.outputs.shape, bool((found.means.std(0) > 0.8).all())
        (torch.Size([500, 20, 1]), True)

    References:
        Gabry, Simpson, Vehtari, Betancourt, Gelman, "Visualization in Bayesian workflow", 2019.
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(f"prior_predictive: expected a BayesianModel, got {type(model).__name__}")
    num_samples = check_count("num_samples", num_samples)
    _check_can_be_drawn(model, head)
    given = device_of_inputs(flat_inputs(x, model.target))
    target = device_of(model, None, device) or given
    # One stream of random numbers for weights and observations: with one each, noise would repeat the weights'.
    with seeded(seed, target):
        found = draws(model, _Priors(model), x, num_samples, batch_size=batch_size, device=device, head=head)
        bad = ~torch.isfinite(found.outputs).flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(
                f"prior_predictive: the network's outputs are not finite in {int(bad.sum())} of {num_samples} draws of "
                "its weights; use a narrower prior, such as priors.Normal(0, 0.1), or a prior with lighter tails"
                f"{see('how-to/check_a_prior')}"
            )
        observations = torch.stack([found.distribution(draw).sample() for draw in range(num_samples)])
    return PriorPredictive(found.outputs, found.likelihood, found.quantities, observations)


class _Priors:
    """A guide that draws a model's latent variables from their priors."""

    def __init__(self, model: BayesianModel) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._model.draw()
        self._model.likelihood.draw()


def _check_can_be_drawn(model: BayesianModel, head: str | None) -> None:
    sites = model.sites
    improper = [f"{name!r} ({site.prior})" for name, site in sites.items() if site.improper]
    if improper:
        raise ValueError(
            f"prior_predictive: the prior of {', '.join(improper[:8])} is improper, so nothing can be drawn from it; "
            "give proper priors (Normal, Laplace, StudentT, ScaleMixture), or look at draws of a guide by "
            f"pyrostoch.draws(model, guide, x){see('how-to/check_a_prior')}"
        )
    if not sites:
        raise ValueError(
            f"prior_predictive: no parameter of {type(model.net).__name__} has a prior; give one, as in "
            f"BayesianModel(net, prior=priors.Normal(), ...){see('how-to/check_a_prior')}"
        )
    layers: Any = {name: model.net.get_submodule(name) for name in site_names(model.net)}
    random = [name for name, layer in layers.items() if layer.prior is not None]
    if random:
        raise ValueError(
            f"prior_predictive: the activations of layer(s) {name_list(random)} have a prior, from which they would be "
            "drawn whatever x is, while pyrostoch.draws takes them from q(h | x). Draw both by "
            f"pyro.infer.Predictive(model, num_samples=100)(x){see('how-to/check_a_prior')}"
        )
    if is_loss(model.likelihood) or (head is not None and is_loss(model.likelihood, head)):
        raise ValueError(
            "prior_predictive: the likelihood is a loss, which has no distribution of observations; give the model a "
            "likelihood with one, such as Gaussian or Categorical, to look at its priors"
            f"{see('how-to/check_a_prior')}"
        )


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


def _summary(name: str, values: Tensor) -> list[tuple[str, float]]:
    seen = values.double()
    low, high = seen.flatten().sort().values[[round(q * (seen.numel() - 1)) for q in (0.025, 0.975)]].tolist()
    return [
        (f"{name}, mean", seen.mean().item()),
        (f"{name}, standard deviation", seen.std().item()),
        (f"{name}, 2.5 %", low),
        (f"{name}, 97.5 %", high),
    ]
