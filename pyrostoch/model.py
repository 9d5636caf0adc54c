"""A network with random weights as a Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, transform_to

from pyrostoch._checks import batch_size, check_finite, name_list
from pyrostoch.effects import base_distribution, call_network, independent
from pyrostoch.effects.usage import UsageCache
from pyrostoch.likelihoods import LikelihoodSpec, as_likelihood
from pyrostoch.moments import Moments
from pyrostoch.priors import Prior, PriorSpec, assign, clean_name, is_bias, owners
from pyrostoch.protocols import Inputs, Output

__all__ = ["BayesianModel", "Site", "announce_parameters", "draw_weight", "latent_sites", "site_key"]

# Names of the Pyro sites that a model has besides its weights.
_RESERVED_SITES = {"data", "obs", "penalty"}


@dataclass(frozen=True, eq=False)
class Site:
    """Description of a latent variable of a model, from which guides are built.

    Args:
        name: Name of the Pyro site; for a weight, the parameter's name.
        init: Initial value for a guide: the network's current value, or a typical value of the prior.
        support: Support of the prior: real for most weights, positive for scales.
        role: `"weight"`, `"bias"`, or `"scale"` for a random scale of a prior or a likelihood.
        prior: The prior as text.
        improper: Whether the prior is improper.
        out_axis: Axis of `init` that counts output neurons or channels.
        layer: Class name of the module that holds the weight.
    """

    name: str
    init: Tensor
    support: constraints.Constraint
    role: str
    prior: str
    improper: bool = False
    out_axis: int = 0
    layer: str = ""

    def __repr__(self) -> str:
        return f"Site({self.name!r}, {self.role} of shape {tuple(self.init.shape)}, prior {self.prior})"


class BayesianModel(nn.Module):
    r"""Any `nn.Module` as a Pyro model: its parameters get priors, its output a likelihood.

    $$ w \sim p(w), \qquad y_i \sim p(y \mid \mathrm{net}_w(x_i)), \quad i = 1 \dots N. $$

    Called as `model(x, y)` it draws the weights by `pyro.sample`, runs the unchanged network with them in place of its
    parameters, and observes `y` in a plate that scales the log-likelihood of the batch to all N examples. Pyro's
    inference algorithms and handlers work with it: `SVI`, `Trace_ELBO`, NUTS, `Predictive`, `AutoNormal`,
    `poutine.condition`.

    The parameters with a prior are frozen in `net` (`requires_grad=False`): draws replace them, and their values are
    the initial values of guides. A parameter without a prior is trained as usual.

    Args:
        net: The network. If it takes several inputs, `x` is a tuple of them.
        prior: A prior, a Pyro distribution, a dictionary from name patterns to priors, a callable, or `None`; see
            `pyrostoch.priors.assign`.
        likelihood: A likelihood, or a function from the network's output to a Pyro distribution.
        num_data: Number N of training examples; the ELBO is that of the whole data set.
        penalty: A function of `net` that returns a penalty in nats for the whole data set, added to the loss; it may
            read the parameters that have no prior.

    Raises:
        ValueError: The likelihood or `num_data` is missing, `num_data` is not positive, a pattern matches no parameter,
            or a parameter cannot be made random.
        TypeError: `net`, `prior` or `likelihood` is of another kind.

    Example:
        >>> import pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> model = BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.1), num_data=100)
        >>> list(model.sites)
        ['0.weight', '2.weight']
        >>> x, y = torch.zeros(10, 2), torch.zeros(10, 1)
        >>> trace = poutine.trace(model).get_trace(x, y)
        >>> [name for name, node in trace.nodes.items() if node["type"] == "sample"]
        ['0.weight', '2.weight', 'data', 'obs']
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        prior: PriorSpec = None,
        likelihood: LikelihoodSpec | None = None,
        num_data: int | None = None,
        penalty: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
        if likelihood is None:
            raise ValueError("likelihood is missing: pass one of pyrostoch.likelihoods, such as Categorical()")
        if not isinstance(num_data, int) or isinstance(num_data, bool) or num_data < 1:
            raise ValueError(
                f"num_data: expected the number of training examples, got {num_data!r}; the ELBO needs it to scale the "
                "log-likelihood of a batch to the whole data set"
            )
        self.net = net
        self.likelihood = as_likelihood(likelihood)
        self.num_data = num_data
        self.penalty = penalty
        priors = assign(net, prior)
        parameters = dict(net.named_parameters(remove_duplicate=True))
        self._parameter_of = {clean_name(name): name for name in priors}
        taken = sorted({clean_name(name) for name in priors} & _RESERVED_SITES)
        if taken:
            raise ValueError(
                f"parameter(s) {name_list(taken)} have the names of sites that every model has; rename them in the "
                "network, or wrap the network in a module"
            )
        self.priors = nn.ModuleDict({site_key(clean_name(name)): p for name, p in priors.items()})
        self._usage_cache: UsageCache = {}
        self._describe_sites()  # raises an error if a site cannot be drawn, before the network is changed
        for name, holder in owners(net).items():
            # Stored in the module, since copies of a parameter lose its attributes.
            frozen = holder.__dict__.setdefault("_pyrostoch_frozen", set())
            last = name.rpartition(".")[2]
            if name in priors:
                frozen.add(last)
                parameters[name].requires_grad_(False)
            elif last in frozen or last in getattr(holder, "priors", {}):
                # Frozen by another model, or by the layer's `prior=` which `prior` overrides: make it trainable again.
                frozen.discard(last)
                parameters[name].requires_grad_(True)

    @property
    def sites(self) -> dict[str, Site]:
        """The latent variables by name, in the order they are drawn; their `init` are the network's current values."""
        return self._describe_sites()

    def prior(self, site: str) -> Prior:
        """The prior of a weight site.

        Args:
            site: Name of the site.
        """
        if site not in self._parameter_of:
            raise ValueError(f"site {site!r}: expected one of the random weights {name_list(self._parameter_of)}")
        prior = self.priors[site_key(site)]
        if not isinstance(prior, Prior):
            raise TypeError(f"site {site!r}: expected a Prior, got {type(prior).__name__}")
        return prior

    def unused_weights(self) -> list[str]:
        """The random weights that no forward pass has used so far, by site name; none before the first pass."""
        site_of = {parameter: site for site, parameter in self._parameter_of.items()}
        known = list(self._usage_cache.values())
        return [site_of[name] for name in site_of if known and all(name in usage.unused for usage in known)]

    @property
    def improper(self) -> bool:
        """Whether a prior is improper, so that the ELBO is defined up to a constant per weight."""
        return any(site.improper for site in self.sites.values())

    def draw(self) -> dict[str, Tensor]:
        """Draw every random weight, by site name; this part of the model needs no data."""
        weights = {}
        for site, parameter in self._parameter_of.items():
            shape = self.net.get_parameter(parameter).shape
            weights[site] = draw_weight(site, self.prior(site).distribution(site, shape), shape)
        return weights

    def outputs(self, x: Inputs, weights: dict[str, Tensor]) -> Output | Moments:
        """The network's output for given weights, under the active interpretation.

        Args:
            x: Inputs.
            weights: The weights by site name, as `draw` returns them.
        """
        inputs = x if isinstance(x, tuple) else (x,)
        values = {self._parameter_of[site]: weights[site] for site in self._parameter_of}
        sites = {parameter: site for site, parameter in self._parameter_of.items()}
        try:
            return call_network(self.net, values, inputs, sites=sites, usage_cache=self._usage_cache)
        except RuntimeError as error:
            wanted = {p.dtype for p in self.net.parameters() if p.is_floating_point()}
            given = {t.dtype for t in inputs if isinstance(t, Tensor)}
            if ("dtype" in str(error) or "type" in str(error)) and wanted and given and wanted != given:
                real = all(dtype.is_floating_point for dtype in given)
                alternative = f" or model and guide (.to({_dtypes(given)}))" if real else ""
                raise ValueError(
                    f"inputs x are {_dtypes(given)}, the network's weights are {_dtypes(wanted)}: convert the inputs "
                    f"(x.to({_dtypes(wanted)})){alternative}"
                ) from error
            raise

    def observation(self, x: Inputs) -> Distribution:
        """Draw the weights and return the distribution of the observations given them; nothing is observed.

        Args:
            x: Inputs.

        Returns:
            A distribution with one batch axis, the examples.
        """
        announce_parameters(self, "model")
        weights = self.draw()
        quantities = self.likelihood.draw()
        distribution: Distribution = self.likelihood(_full_precision(self.outputs(x, weights)), quantities)
        return distribution

    def forward(self, x: Inputs, y: Tensor | None = None) -> Tensor:
        """The Pyro model.

        Args:
            x: Inputs; the first axis counts the examples.
            y: Targets; `None` draws them.

        Returns:
            The observed or drawn targets.

        Raises:
            ValueError: Shapes do not fit, the batch is larger than `num_data`, or (with Pyro's validation on) an input
                is not finite or a target is out of range.
            TypeError: The inputs or targets are not tensors.
        """
        count = batch_size(x)
        if y is not None:
            self._check_sizes(count, y)
        if pyro.settings.get("validate_poutine"):
            check_finite("inputs x", x)
        distribution = self.observation(x)
        if y is not None:
            self.likelihood.check_shape(distribution, y)
            if pyro.settings.get("validate_poutine"):
                self.likelihood.check_target(distribution, y)
            if self.penalty is not None:
                pyro.factor("penalty", -self.penalty(self.net))
        size = self.num_data if y is not None else count
        device = y.device if y is not None else _device(x)
        with pyro.plate("data", size=size, subsample=torch.arange(count, device=device)):
            targets: Tensor = pyro.sample("obs", cast(Any, distribution), obs=y)
        return targets

    def _check_sizes(self, count: int, y: Tensor) -> None:
        if not isinstance(y, Tensor):
            raise TypeError(f"targets y: expected a tensor, got {type(y).__name__}")
        if count == 0:
            raise ValueError("inputs x: expected at least one example, got an empty batch")
        if len(y) != count:
            raise ValueError(f"inputs and targets: expected as many of each, got {count} inputs and {len(y)} targets")
        if count > self.num_data:
            raise ValueError(
                f"num_data: expected the size of the whole training set, got {self.num_data} with a batch of {count}"
            )

    def _describe_sites(self) -> dict[str, Site]:
        start = {site: self.net.get_parameter(name).detach() for site, name in self._parameter_of.items()}
        described = {}
        with poutine.block(), _StartValues(start), poutine.trace() as tracer:
            self.draw()
            self.likelihood.draw()
        for name, node in latent_sites(tracer.trace):
            distribution = base_distribution(node["fn"])
            init = node["value"].detach().clone()
            if name not in start:
                described[name] = Site(name, init, _support(distribution), "scale", type(distribution).__name__)
                continue
            prior = self.prior(name)
            layer = self.net.get_submodule(self._parameter_of[name].rpartition(".")[0])
            described[name] = Site(
                name,
                init,
                _support(distribution),
                "bias" if is_bias(name) else "weight",
                repr(prior),
                prior.improper,
                1 if getattr(layer, "transposed", False) and init.dim() > 2 else 0,
                type(layer).__name__,
            )
        return described


def draw_weight(site: str, distribution: Distribution, shape: torch.Size) -> Tensor:
    """Draw a weight as a Pyro site that is marked by `pyrostoch.effects.independent`.

    Args:
        site: Name of the site.
        distribution: Its elementwise Pyro distribution.
        shape: Its shape.

    Raises:
        ValueError: An enclosing plate or a vectorized inference gave the draw another shape.
    """
    fn = cast(Any, distribution)  # torch's class has no `to_event`, Pyro's subclasses do
    value: Tensor = pyro.sample(site, fn.to_event(len(shape)), infer=independent())
    if value.shape != shape:
        raise ValueError(
            f"site {site!r}: expected a draw of shape {tuple(shape)}, got {tuple(value.shape)}. The weights are drawn "
            "inside a pyro.plate (vectorize_particles and Predictive(parallel=True) open one), which draws them once "
            "for each of its entries; put only the observation inside plates, and draw in a loop"
        )
    return value


class _StartValues(Messenger):
    """Sets weights to their initial values and scales to typical ones, so that improper priors need not be drawn."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.start = start

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.start:
            value = self.start[msg["name"]]
        else:
            distribution = base_distribution(msg["fn"])
            value = distribution.mean
            if not bool(torch.isfinite(value).all()):
                value = transform_to(distribution.support)(
                    torch.zeros(distribution.batch_shape, dtype=value.dtype, device=value.device)
                )
        msg["value"] = value
        msg["done"] = True


def site_key(site: str) -> str:
    """A site's name as the name of a submodule, which must not contain a dot or be that of a module's attribute.

    Example:
        >>> site_key("fc1.weight")
        'fc1/weight'
    """
    key = site.replace(".", "/")
    return f"/{key}" if hasattr(nn.ModuleDict, key) else key


def latent_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Name and message of the latent sample sites of a trace, in order; sites of subsampling plates are left out."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and type(node["fn"]).__name__ != "_Subsample":
            yield name, node


def announce_parameters(module: nn.Module, prefix: str) -> None:
    """Send Pyro's handlers a `param` message for each trainable parameter of a module.

    `pyro.infer.SVI` optimizes the parameters of which it sees such messages. Unlike `pyro.module`, this does not copy
    them to the global parameter store.

    Args:
        module: The module.
        prefix: Prefix of the parameters' names.
    """
    if not am_i_wrapped():
        return
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            value: Any = parameter.detach()
            value.unconstrained = lambda parameter=parameter: parameter
            full = f"{prefix}.{name}"
            _parameter(value, constraint=constraints.real, event_dim=0, name=full)


@effectful(type="param")
def _parameter(value: Tensor, **_: Any) -> Tensor:
    return value


def _dtypes(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(map(str, dtypes)))


def _support(distribution: Any) -> constraints.Constraint:
    support = distribution.support
    return support.base_constraint if isinstance(support, constraints.MixtureSameFamilyConstraint) else support


def _full_precision(output: Any) -> Any:
    """The output, converted from half precision to float32, which densities and their sums need."""
    half = isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16)
    return output.float() if half else output


def _device(x: Any) -> torch.device:
    return (x[0] if isinstance(x, tuple) else x).device
