"""Linearization: the network's output as a linear function of its weights, at their means."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.distributions import JointWeights
from pyrostoch.distributions.shared_draw import depends_on_given
from pyrostoch.effects.interpretation import Interpretation, SiteDraw
from pyrostoch.effects.jacobians import jacobian_rows, output_of
from pyrostoch.effects.mean import stand_in_mean
from pyrostoch.effects.network import NetworkCall
from pyrostoch.effects.trees import map_tensors
from pyrostoch.effects.unsupported import entries_may_depend
from pyrostoch.effects.usage import batch_of
from pyrostoch.moments import Moments, MomentSettings

__all__ = ["Linearization"]

# With more outputs only their variances are computed, as a prediction uses no more.
_MAX_OUTPUTS = 256


class Linearization(Interpretation):
    r"""The output is $f(x, \mu) + J(x)\,(w - \mu)$, and so Gaussian with covariance $J \Sigma J^\top$.

    J is the derivative of the output by all random weights, at their means $\mu$; $\Sigma$ is their covariance, with
    that between sites. Exact for normal weights where the output is linear in them; elsewhere it is the prediction that
    goes with a Laplace approximation, whose curvature belongs to this linear function. Nothing is drawn, and any
    network works: weights may be used in any operation, and several times.

    Latent variables that are not weights of the network, such as the scale of an observation's noise, are replaced by
    their means.

    Args:
        closed: As in `MomentPropagation`.

    Raises:
        ValueError: The covariance of a site is not known, or it depends on what was drawn elsewhere; the site is named.
            Or the network has random activations.

    References:
        Khan, Immer, Abedi, Korzepa, "Approximate inference turns deep networks into Gaussian processes", 2019; Immer,
        Korzepa, Bauer, "Improving predictions of Bayesian neural nets via local linearization", 2021.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyrostoch.effects import call_network, independent
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> with Linearization() as linear:
        ...     weight = pyro.sample("w", dist.Normal(torch.ones(1, 1), 2.0).to_event(2), infer=independent())
        ...     out = call_network(net, {"weight": weight}, (torch.full((1, 1), 3.0),), sites={"weight": "w"})
        >>> out.loc.item(), out.var.item(), linear.treatments
        (3.0, 36.0, {'w': 'linearized'})
    """

    name = "linearized"

    def __init__(self, *, closed: bool = False) -> None:
        super().__init__()
        self.settings = MomentSettings(closed=closed)

    def export_draws(self, drawn: Any) -> dict[str, SiteDraw]:
        """The value and the distribution of each site; the values are the means, so none is drawn.

        Args:
            drawn: Not used.
        """
        return super().export_draws(())

    def _pyro_sample(self, msg: Any) -> None:
        stand_in_mean(msg)

    def _pyro_network(self, msg: Any) -> None:
        call: NetworkCall = msg["args"][0]
        if call.apply is not None:
            return  # an interpretation that was entered after this one handles the call
        random = {name: self._checked(call.sites[name], value) for name, value in call.weights.items()}
        random = {name: distribution for name, distribution in random.items() if distribution is not None}
        self.prepare(call)
        output, tensor = output_of(call)
        if not random:
            raise ValueError(
                f"{type(call.net).__name__}: none of its weights has a distribution, so that its output has no "
                f"uncertainty to linearize; predict with mode='mean'{see('how-to/choose_guide')}"
            )
        entries = tensor[0].numel()
        full = entries <= _MAX_OUTPUTS
        variances, covariances = [], []
        for rows in jacobian_rows(call, tensor):
            roots = _products({name: rows.jacobian[name] for name in random}, random, entries)
            variances.append(sum(root.square().sum(2) for root in roots))
            if full:
                covariances.append(sum(root @ root.mT for root in roots))
        variance: Tensor = torch.cat(variances).reshape(tensor.shape)  # type: ignore[arg-type]
        covariance = torch.cat(covariances) if full else None  # type: ignore[arg-type]
        lazy = None if covariance is None else _Constant(covariance)
        moments = Moments(tensor, variance, None, self.settings, lazy_covariance=lazy)
        put: Any = _Put(tensor, moments)
        msg["value"] = map_tensors(put, output)
        msg["done"] = True
        self.replaced |= {call.sites[name] for name in random}

    def prepare(self, call: NetworkCall) -> None:
        """Find out how a network uses its weights and inputs, of which it gets copies where it writes into them.

        Args:
            call: The network call.
        """
        self.batch = batch_of(call.args, call.kwargs, call.in_dims)
        call.usage = self._usage_of(call)

    def _checked(self, site: str, value: Tensor) -> Any:
        """The distribution of a site whose covariance is known; `None` where its value is given."""
        draw = self._draws.get(site)
        if draw is None or draw.value is not value:
            self.treatments[site] = "shared (value given)"
            return None
        distribution = draw.distribution
        if not draw.independent:
            _refuse(site, "it is not marked independent, so that its distribution may depend on another draw")
        if depends_on_given(distribution):
            _refuse(site, "its distribution depends on a value that is given")
        if isinstance(distribution, JointWeights):
            has_root = type(distribution).root_products is not JointWeights.root_products
            if not distribution.has_mean or not has_root:
                _refuse(site, f"{type(distribution).__name__} has no covariance in closed form")
        elif entries_may_depend(distribution):
            _refuse(site, f"entries of {type(distribution).__name__} may depend on each other")
        else:
            try:
                known = bool(torch.isfinite(distribution.variance).all())
            except NotImplementedError:  # raised by torch's distributions without a variance
                known = False
            if not known:
                _refuse(site, f"{type(distribution).__name__} has no known variance")
        self.treatments[site] = "linearized"
        return distribution

    def _pyro_dropout(self, msg: Any) -> NoReturn:
        raise ValueError(_ACTIVATIONS)

    def _pyro_activation(self, msg: Any) -> NoReturn:
        raise ValueError(_ACTIVATIONS)


_ACTIVATIONS = (
    "linearization: expected a network whose weights alone are random, got random activations (a stochastic layer, "
    "neuron or dropout), whose noise is no function of the weights; predict with mode='moments' or mode='mc'"
    f"{see('how-to/choose_estimator')}"
)


class _Put:
    """Puts moments in the place of a tensor."""

    def __init__(self, tensor: Tensor, moments: Moments) -> None:
        self.tensor, self.moments = tensor, moments

    def __call__(self, leaf: Tensor) -> Tensor | Moments:
        return self.moments if leaf is self.tensor else leaf


class _Constant:
    """A covariance that is known, called for like one that is computed on demand."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self) -> Tensor:
        return self.value


def _refuse(site: str, reason: str) -> NoReturn:
    raise ValueError(
        f"site {site!r}: linearization expects a weight whose mean and covariance are known; the reason here: "
        f"{reason}. Predict with mode='mc', which draws the whole network{see('how-to/choose_guide')}"
    )


def _products(jacobian: dict[str, Tensor], random: dict[str, Any], entries: int) -> list[Tensor]:
    """The derivatives times roots of the covariance, each (n, outputs, m); those of shared numbers are added."""
    found: list[Tensor] = []
    common: dict[int, Tensor] = {}
    for name, distribution in random.items():
        axes = jacobian[name].dim() - len(distribution.batch_shape + distribution.event_shape)
        rows = jacobian[name].flatten(1, axes - 1) if axes > 2 else jacobian[name]
        rows = rows.unsqueeze(1) if axes == 1 else rows
        rows = rows.reshape((len(rows), entries, *rows.shape[2:]))
        if not isinstance(distribution, JointWeights):
            found.append((rows * distribution.variance.clamp_min(0.0).sqrt()).reshape(len(rows), entries, -1))
            continue
        own = distribution.own_products(rows)
        if own is not None:
            found.append(own)
        products = distribution.root_products(rows)
        if distribution.shared is None:
            found.append(products)
        else:
            key = id(distribution.shared)
            common[key] = products if key not in common else common[key] + products
    return [*found, *common.values()]
