"""A guide whose random activations depend on the data: q(h | x) of a network's stochastic layers."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.effects.activation_sites import guide_draws_activations
from pyrostoch.guides.base import sites_of
from pyrostoch.guides.gap import ZeroMeanGap
from pyrostoch.guides.per_site import PerSite
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import Inputs

__all__ = ["Amortised", "weights_of"]


class Amortised(nn.Module):
    r"""A guide that draws weights from another guide, and random activations from q(h | x), by running the network.

    $$ q(w, h \mid x) = q(w)\,\prod_l q(h_l \mid h_{l-1}, w, x). $$

    The kernels of the stochastic layers are this inference network; they are parameters of the model. With it Pyro's
    own algorithms (`Trace_ELBO`, `TraceMeanField_ELBO`, `TraceGraph_ELBO`, `Predictive`) treat a model with random
    activations rightly: without it, they would draw them from their prior. `pyrostoch.ELBO` and all verbs of this
    library need no such guide. They draw activations from q(h | x) in the model, so that the network runs once in a
    step and not twice, and take an `Amortised` guide as they take that of its weights.

    Under Pyro's ELBOs discrete activations are differentiated by the score function, whatever their layer's `gradient`.
    For `TraceGraph_ELBO`, a layer with `gradient="score"` may name one of Pyro's baselines: its `pyro_baseline`.

    Copy a model and its guide together (`copy.deepcopy((model, guide))`): a guide runs the network of its own model,
    and is refused by another.

    Args:
        model: The model.
        weights: The guide of its weights and other latent variables; it may be left out where there are none.

    Raises:
        TypeError: The model is not a `BayesianModel`.
        ValueError: The model has random weights and no guide of them is given.

    References:
        Kingma, Welling, "Auto-encoding variational Bayes", 2014; Alemi, Fischer, Dillon, Murphy, "Deep variational
        information bottleneck", 2017.

    Example:
        >>> import pyro, torch, pyrostoch as ps
        >>> net = nn.Sequential(ps.layers.StochasticLinear(2, 3, prior="standard"), nn.Linear(3, 1))
        >>> model = BayesianModel(net, prior={"1.weight": ps.priors.Normal()},
        ...                       likelihood=ps.likelihoods.Gaussian(0.1), num_data=100)
        >>> guide = Amortised(model, weights=ps.guides.Additive(model))
        >>> trace = pyro.poutine.trace(guide).get_trace(torch.randn(5, 2), torch.randn(5, 1))
        >>> [name for name, node in trace.nodes.items() if node["type"] == "sample"], trace.nodes["0"]["value"].shape
        (['1.weight', 'data', '0'], torch.Size([5, 3]))
    """

    def __init__(self, model: BayesianModel, weights: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(model, BayesianModel):
            raise TypeError(f"guide Amortised: expected a BayesianModel, got {type(model).__name__}")
        sites = list(sites_of(model, "Amortised"))
        if weights is None and sites:
            raise ValueError(
                f"guide Amortised: the model has random weights {name_list(sites)}: give their guide, such as "
                f"weights=guides.Additive(model){see('how-to/stochastic_layers')}"
            )
        self.weights = weights
        # Not a submodule: the model's parameters are the model's.
        self._model = (model,)

    def forward(self, x: Inputs, y: Tensor | None = None) -> dict[str, Tensor]:
        """The Pyro guide: draws the weights, and the random activations for the inputs.

        Args:
            x: Inputs, as the model gets them.
            y: Targets, as the model gets them; with them, sites are scaled to the whole data set.

        Returns:
            The draws of the weights, by site name.
        """
        drawn = {} if self.weights is None else self.weights(x, y)
        if guide_draws_activations():
            self._model[0].draw_activations(x, drawn, y)
        return cast(dict[str, Tensor], drawn)

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites of the guide of the weights."""
        return self._of_weights("site_names", ())

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Those of them that are weights of the network."""
        return self._of_weights("weight_names", ())

    def site_distribution(self, site: str) -> Distribution:
        """The present distribution of one site of the guide of the weights.

        Args:
            site: The site's name.

        Raises:
            ValueError: The guide has no such site.
        """
        self._check(site)
        return self._of_weights("site_distribution")(site)

    def parameters_for(self, site: str) -> dict[str, nn.Parameter]:
        """The variational parameters of one site of the guide of the weights, by name.

        Args:
            site: The site's name.

        Raises:
            ValueError: The guide has no such site.
        """
        self._check(site)
        return self._of_weights("parameters_for")(site)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by learning rate, `"main"` and `"alpha"`; see `Guide.parameter_groups`."""
        if hasattr(self.weights, "parameter_groups"):
            return self._of_weights("parameter_groups")()
        return {"main": list(self.parameters()), "alpha": []}

    def zero_mean_gap(self) -> ZeroMeanGap:
        """The cost in nats of setting all means of weights to zero; see `ZeroMeanGap`."""
        if self.weights is None:
            raise ValueError("guide Amortised: no weight is random, so that there are no means to set to zero")
        return self._of_weights("zero_mean_gap")()

    def _of_weights(self, name: str, default: Any = None) -> Any:
        return default if self.weights is None else getattr(self.weights, name)

    def _check(self, site: str) -> None:
        if site not in self.site_names:
            raise ValueError(f"guide Amortised: no site {site!r} of a weight; it has {name_list(self.site_names)}")


def weights_of(guide: Any) -> Any:
    """The guide of the weights inside an `Amortised` one, an empty one where it has none; any other guide as it is.

    Args:
        guide: The guide.
    """
    if not isinstance(guide, Amortised):
        return guide
    return PerSite.of([], sites=[]) if guide.weights is None else guide.weights
