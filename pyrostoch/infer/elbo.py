"""The ELBO as a loss, for `pyro.infer.SVI` and for plain `torch.optim`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.poutine import Trace
from torch import Tensor

from pyrostoch._checks import check_choice, check_count
from pyrostoch.effects import Flipout, Interpretation, LocalReparameterization, MomentPropagation, SharedSample
from pyrostoch.effects.frozen import particles
from pyrostoch.infer.terms import Terms, draw_terms, draw_traces
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import Guide, PyroCallable

__all__ = ["ELBO", "ESTIMATORS", "MOMENTS", "Estimator", "interpretation"]

Estimator = Literal[
    "local",
    "shared",
    "flipout",
    "marginal",
    "moments",
    "moments:closed",
    "moments:full",
    "moments:full:closed",
    "moments:bound",
    "moments:full:bound",
]


def _moment_propagations() -> dict[str, Callable[[], MomentPropagation]]:
    variants: dict[str, Callable[[], MomentPropagation]] = {}
    for full, sampled, closed in itertools.product((False, True), repeat=3):
        name = "moments" + ":full" * full + ":mc" * sampled + ":closed" * closed
        variants[name] = partial(
            MomentPropagation, "full" if full else "diagonal", fallback="mc" if sampled else None, closed=closed
        )
    return variants


#: The variants of moment propagation by name: `:full` carries full covariances, `:mc` samples through operations
#: without a rule, `:closed` averages the likelihood over the output by a closed approximation.
MOMENTS: dict[str, Callable[[], MomentPropagation]] = _moment_propagations()


def _moments(name: str, *, lazy: bool = False) -> Interpretation:
    """Make an interpretation that propagates moments; it draws no weights, so `lazy` changes nothing."""
    return MOMENTS[name]()


#: Makes the interpretation of each estimator. "marginal" keeps the marginal distribution of every example exact.
ESTIMATORS: dict[str, Callable[..., Interpretation]] = {
    "local": LocalReparameterization,
    "shared": SharedSample,
    "flipout": Flipout,
    "marginal": lambda lazy=False: LocalReparameterization(factorized=False, lazy=lazy),
    **{name: partial(_moments, name) for name in MOMENTS},
    "moments:bound": lambda lazy=False: MomentPropagation(bound=True),
    "moments:full:bound": lambda lazy=False: MomentPropagation("full", bound=True),
}


def interpretation(estimator: str, model: PyroCallable | None = None) -> Interpretation:
    """A new interpretation, by the name of an estimator.

    Args:
        estimator: `"local"`, `"shared"`, `"flipout"`, `"marginal"` (local where exact, else shared), one of `MOMENTS`,
            `"moments:bound"` or `"moments:full:bound"`.
        model: The model that will run under it. In a `BayesianModel` only the network uses the weights, so a weight is
            drawn only if the network needs its value; in any other model all weights are drawn.

    Returns:
        A Pyro handler, to enter by `with`.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> interpretation("flipout").name
        'flipout'
    """
    # Not for a subclass, which may use its weights elsewhere.
    lazy = type(model) is BayesianModel
    return ESTIMATORS[check_choice("estimator", estimator, ESTIMATORS)](lazy=lazy)


class ELBO(PyroELBO):
    r"""The evidence lower bound of the whole data set, in nats, as a loss to minimize.

    $$ -\mathrm{ELBO} = -\frac{N}{B}\sum_{i \in B} \log p(y_i \mid x_i, w) + \beta\,\mathrm{KL}(q(w) \,\|\, p(w)) +
    \gamma\,\frac{N}{B}\sum_{i \in B} \mathrm{KL}(q(h \mid x_i) \,\|\, p(h)) + \mathrm{penalty}. $$

    The last divergence, the rate, is that of random activations h with a prior (`layers.StochasticLayer`); the network
    runs once, and draws them from q(h | x).

    Each site's KL is computed in closed form where one is registered, else estimated from the draw by Monte Carlo
    (`decompose` tells which). This is a `pyro.infer.ELBO`: use it in `pyro.infer.SVI`, or call it, `ELBO()(model,
    guide)`, to get an `nn.Module` whose `forward` returns the differentiable loss. With Pyro's validation off, a step
    reads no value back from the device.

    Args:
        estimator: How random weights are treated. `"local"` reparameterization; one `"shared"` draw for all examples;
            `"flipout"`; `"marginal"`, which is local only where that is exact; or `"moments"`, which draws nothing and
            takes the mean log-likelihood under a Gaussian of the output, as an average over fixed points or, with
            `"moments:closed"`, to second order; `"moments:bound"` takes a closed lower bound of it. `"moments:full"`
            carries full covariances, `"moments:mc"` samples
            through operations without a rule.
        num_particles: Number of independent draws averaged in one step.
        kl_weight: Weight beta of the KL, for annealing; 1 gives the ELBO itself. It multiplies both log q and log p of
            every latent site, and may be set between steps. Random activations are not among them.
        rate_weight: Weight gamma of the rate; 1 gives the ELBO itself. It may be set between steps.
        noise_weight: Weight of the noise of random activations: the loss less `noise_weight` times the mean of log
            sigma over the activations of each layer, for every example. It enlarges noise without a prior; 0 gives the
            ELBO itself.

    References:
        Graves, "Practical variational inference for neural networks", 2011; Kingma, Salimans, Welling, "Variational
        dropout and the local reparameterization trick", 2015; Wen et al., "Flipout: efficient pseudo-independent weight
        perturbations on mini-batches", 2018; Wu et al., "Deterministic variational inference for robust Bayesian neural
        networks", 2019, for moments; Alemi, Fischer, Dillon, Murphy, "Deep variational information bottleneck", 2017,
        for the rate; Mireshghallah et al., "Not all features are equal: discovering essential features for preserving
        prediction privacy", 2021 (Cloak), for the weight of the noise.

    Example:
        >>> import pyro, pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> model = ps.BayesianModel(torch.nn.Linear(2, 1), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.5), num_data=100)
        >>> guide = ps.guides.Additive(model)
        >>> x = torch.randn(10, 2); y = x @ torch.ones(2, 1)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), ELBO())
        >>> first, last = svi.step(x, y), [svi.step(x, y) for _ in range(50)][-1]
        >>> last < first
        True
    """

    def __init__(
        self,
        estimator: Estimator | str = "local",
        *,
        num_particles: int = 1,
        kl_weight: float | Tensor = 1.0,
        rate_weight: float | Tensor = 1.0,
        noise_weight: float = 0.0,
    ) -> None:
        super().__init__(num_particles=check_count("num_particles", num_particles))
        self.estimator = check_choice("estimator", estimator, ESTIMATORS)
        self.kl_weight, self.rate_weight, self.noise_weight = kl_weight, rate_weight, noise_weight

    def terms(self, model: PyroCallable, guide: Guide, *args: Any, **kwargs: Any) -> Terms:
        """The terms of the ELBO, from one particle.

        Args:
            model: A Pyro model.
            guide: A Pyro guide.
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.

        Returns:
            The terms, differentiable.
        """
        handler = interpretation(self.estimator, model)
        return draw_terms(model, guide, args, kwargs, handler, with_noise=self.noise_weight != 0.0)

    def _get_trace(
        self, model: PyroCallable, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        # Pyro's base class requires it. Without the model the interpretation is not lazy: the traces hold real draws.
        return draw_traces(model, guide, args, kwargs, interpretation(self.estimator))

    def differentiable_loss(self, model: PyroCallable, guide: Guide, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, averaged over particles: -ELBO, its terms times their weights; call `.backward()` on it.

        Args:
            model: A Pyro model.
            guide: A Pyro guide.
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.
        """
        total: Any = 0.0
        draws = particles(self.num_particles)
        for draw in draws:
            with draw:
                terms = self.terms(model, guide, *args, **kwargs)
            total = total + terms.loss(self.kl_weight, self.rate_weight, noise_weight=self.noise_weight) / len(draws)
        loss: Tensor = torch.as_tensor(total)
        return loss

    def loss(self, model: PyroCallable, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients, for `SVI.evaluate_loss`.

        Args:
            model: A Pyro model.
            guide: A Pyro guide.
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.
        """
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: PyroCallable, guide: Guide, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the gradients of the parameters and return the detached loss, for `SVI.step`.

        Args:
            model: A Pyro model.
            guide: A Pyro guide.
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()
