"""The ELBO as a loss, for `pyro.infer.SVI` and for plain `torch.optim`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrostoch._checks import check_choice
from pyrostoch.effects import Flipout, Interpretation, LocalReparameterization, MomentPropagation, SharedSample
from pyrostoch.effects.frozen import particles
from pyrostoch.infer.terms import Terms, draw_terms, draw_traces
from pyrostoch.model import BayesianModel

__all__ = ["ELBO", "ESTIMATORS", "MOMENTS", "Estimator", "interpretation"]

Estimator = Literal[
    "local", "shared", "flipout", "marginal", "moments", "moments:closed", "moments:full", "moments:full:closed"
]


def _ways_of_moments() -> dict[str, Callable[[], MomentPropagation]]:
    ways: dict[str, Callable[[], MomentPropagation]] = {}
    for full, sampled, closed in itertools.product((False, True), repeat=3):
        name = "moments" + ":full" * full + ":mc" * sampled + ":closed" * closed
        ways[name] = partial(
            MomentPropagation, "full" if full else "diagonal", fallback="mc" if sampled else None, closed=closed
        )
    return ways


#: The ways to propagate moments, by name: with full covariances, by sampling through operations without a rule, and
#: with the output read by a closed approximation.
MOMENTS: dict[str, Callable[[], MomentPropagation]] = _ways_of_moments()


def _moments(name: str, *, lazy: bool = False) -> Interpretation:
    """Moment propagation draws nothing, so there is nothing to leave undrawn."""
    return MOMENTS[name]()


#: How an estimator's name becomes an interpretation. "marginal" keeps every example's marginal exact.
ESTIMATORS: dict[str, Callable[..., Interpretation]] = {
    "local": LocalReparameterization,
    "shared": SharedSample,
    "flipout": Flipout,
    "marginal": lambda lazy=False: LocalReparameterization(factorized=False, lazy=lazy),
    **{name: partial(_moments, name) for name in MOMENTS},
}


def interpretation(estimator: str, model: Any = None) -> Interpretation:
    """A fresh interpretation for an estimator's name.

    Args:
        estimator: `"local"`, `"shared"`, `"flipout"`, `"marginal"` (local where exact, else shared), or one of
            `MOMENTS`.
        model: The model it is for. In a `BayesianModel` nothing but the network reads a weight, so draws may stay
            undrawn until the network needs them; in any other model they are drawn.

    Returns:
        A handler.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> interpretation("flipout").name
        'flipout'
    """
    # A subclass may read its weights elsewhere.
    lazy = type(model) is BayesianModel
    return ESTIMATORS[check_choice("estimator", estimator, ESTIMATORS)](lazy=lazy)


class ELBO(PyroELBO):
    r"""The evidence lower bound of the whole data set, in nats, as a loss to minimize.

    $$ -\mathrm{ELBO} = -\frac{N}{B}\sum_{i \in B} \log p(y_i \mid x_i, w) + \beta\,\mathrm{KL}(q(w) \,\|\, p(w)) +
    \mathrm{penalty}. $$

    Each site's KL is a closed form where one is registered, else the Monte-Carlo estimate from the draw (`decompose`
    says which). A `pyro.infer.ELBO`: use it in `pyro.infer.SVI`, or as an `nn.Module` by `ELBO()(model, guide)`, whose
    `forward` is the differentiable loss. With Pyro's validation off, a step reads no value back from the device. The KL
    weight scales both sides of every latent site, so that annealing it anneals what it says.

    Args:
        estimator: How random weights are treated: `"local"` reparameterization, one `"shared"` sample, `"flipout"`,
            `"marginal"` (local only where it is exact), or `"moments"`: no draw at all, the mean log-likelihood under
            the output's Gaussian, by fixed points of it or, `"moments:closed"`, to second order; `"moments:full"`
            carries covariances, `"moments:mc"` samples through operations without a rule.
        num_particles: Independent draws averaged in one step.
        kl_weight: Weight beta of the KL, for annealing; 1 is the ELBO itself. It may be set between steps.

    References:
        Graves 2011; Kingma, Salimans, Welling 2015; Wen et al. 2018.

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
        self, estimator: Estimator | str = "local", *, num_particles: int = 1, kl_weight: float | Tensor = 1.0
    ) -> None:
        super().__init__(num_particles=num_particles)
        self.estimator = check_choice("estimator", estimator, ESTIMATORS)
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(f"num_particles: expected a whole number from 1 up, got {num_particles!r}")
        self.kl_weight = kl_weight

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Terms:
        """The ELBO's terms from one particle.

        Args:
            model: A Pyro model.
            guide: A Pyro guide.
            args: Arguments of both.
            kwargs: Keyword arguments of both.

        Returns:
            The terms, differentiable.
        """
        return draw_terms(model, guide, args, kwargs, interpretation(self.estimator, model))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        # Asked for by Pyro's base class: the traces of model and guide, their values really drawn.
        return draw_traces(model, guide, args, kwargs, interpretation(self.estimator))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, -ELBO with the KL weighted, averaged over particles; call `.backward()` on it."""
        total: Any = 0.0
        draws = particles(self.num_particles)
        for draw in draws:
            with draw:
                terms = self.terms(model, guide, *args, **kwargs)
            total = total + (terms.kl * self.kl_weight + terms.penalty - terms.data) / len(draws)
        loss: Tensor = torch.as_tensor(total)
        return loss

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, for `SVI.evaluate_loss`."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Put gradients on the parameters and return the detached loss, for `SVI.step`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()
