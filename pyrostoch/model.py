"""A network with random weights as a Pyro model."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyrostoch._checks import check_finite, name_list
from pyrostoch._fixed_entries import FixedEntries, fixed_entries, partly_fixed
from pyrostoch._inputs import (
    check_in_dims,
    count_examples,
    device_of_inputs,
    explain_dtypes,
    flat_dims,
    have_common_part,
)
from pyrostoch._manual import see
from pyrostoch._structure import flat_inputs
from pyrostoch._targets import Target
from pyrostoch.effects import call_network
from pyrostoch.effects.activation import InvalidParametersError
from pyrostoch.effects.activation_rows import activations_are_by_example, uses_batch_statistics
from pyrostoch.effects.activation_sites import ActivationSites, ExamplePlate, needs_score, site_names
from pyrostoch.effects.meeting import MOST_EXAMPLES, depends_on_place, examples_meet
from pyrostoch.effects.statistics import holding_buffers, replayed_buffers
from pyrostoch.effects.usage import UsageCache, call_kind
from pyrostoch.likelihoods import LikelihoodSpec, as_likelihood
from pyrostoch.likelihoods.apart import densities_meet
from pyrostoch.likelihoods.observe import observe
from pyrostoch.likelihoods.parts import reads_in_its_own_way
from pyrostoch.likelihoods.reading import LogDensities, full_precision, reading_of
from pyrostoch.moments import Moments
from pyrostoch.priors import Prior, PriorSpec, assign, clean_name, freeze_random, is_bias
from pyrostoch.protocols import FlatInputs, GivenTargets, InDims, Inputs, Output, TargetKeys
from pyrostoch.sites import Site, announce_parameters, describe_sites, draw_weight, site_key

__all__ = ["BayesianModel"]

# Names of the Pyro sites that a model has besides its weights.
_RESERVED_SITES = {"data", "obs", "penalty"}


@dataclass(frozen=True)
class _Call:
    """A call of the model in progress: its targets, its plate, and whether activations are drawn as in a guide."""

    y: Target | None = None
    plate: ExamplePlate | None = None
    from_posterior: bool = False


class BayesianModel(nn.Module):
    r"""Any `nn.Module` as a Pyro model: its parameters get priors, its output a likelihood.

    $$ w \sim p(w), \qquad y_i \sim p(y \mid \mathrm{net}_w(x_i)), \quad i = 1 \ldots N. $$

    Random activations with a prior (`layers.StochasticLayer`) are sites, too; `guides.Amortised` has their q(h | x).

    Called as `model(x, y)` it draws the weights by `pyro.sample`, runs the unchanged network with them in place of its
    parameters, and observes `y` in a plate that scales the log-likelihood of the batch to all N examples. Pyro's
    inference algorithms and handlers work with it: `SVI`, `Trace_ELBO`, NUTS, `Predictive`, `AutoNormal`,
    `poutine.condition`.

    The parameters with a prior are frozen in `net` (`requires_grad=False`): draws replace them, and their values are
    the initial values of guides. A parameter without a prior is trained as usual.

    Args:
        net: The network. If it takes several inputs, `x` is a tuple of them, or a dictionary of keyword inputs.
        prior: A prior, a Pyro distribution, a guide (its present posterior), a dictionary from name patterns to priors,
            a callable, or `None`; see `pyrostoch.priors.assign`.
        likelihood: A likelihood, or a function from the network's output to a Pyro distribution.
        num_data: Number N of training examples; the ELBO is that of the whole data set.
        penalty: A function of `net` that returns a penalty in nats for the whole data set, added to the loss; it may
            read the parameters that have no prior.
        in_dims: The axis of each input that counts the examples, as in `torch.vmap`: a number for all inputs, or a
            tuple, or dictionary, with an entry for each. `None` marks an input that belongs to all examples, such as
            the edges of a graph or a mask of its labeled nodes: it is never cut into batches. Where no input has such
            an axis, there is a single batch.
        target: Where items of the data are dictionaries, the key of the targets, or a tuple of the keys of several.

    Raises:
        ValueError: The likelihood or `num_data` is missing, `num_data` is not positive, a pattern matches no parameter,
            or a parameter cannot be made random.
        TypeError: `net`, `prior`, `likelihood` or `in_dims` is of another kind.

    Example:
        >>> import pyro, torch, pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> model = BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.1), num_data=100)
        >>> list(model.sites)
        ['0.weight', '2.weight']
        >>> x, y = torch.zeros(10, 2), torch.zeros(10, 1)
        >>> trace = pyro.poutine.trace(model).get_trace(x, y)
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
        in_dims: InDims = 0,
        target: TargetKeys = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}{see('how-to/convert_network')}")
        if likelihood is None:
            raise ValueError(
                "likelihood is missing: pass one of pyrostoch.likelihoods, such as Categorical()"
                f"{see('how-to/write_a_likelihood')}"
            )
        count: Any = num_data  # a whole number of NumPy is none for the type checker
        if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 1:
            raise ValueError(
                f"num_data: expected the number of training examples, got {num_data!r}; the ELBO needs it to scale the "
                f"log-likelihood of a batch to the whole data set{see('how-to/convert_network')}"
            )
        self.net = net
        self.likelihood = as_likelihood(likelihood)
        self.num_data = int(count)
        self.penalty = penalty
        self.in_dims = check_in_dims(in_dims)
        self.target = target
        #: What makes known classes of the targets, for the network's conditional layers; see `known_labels`.
        self.labels_from: Callable[[Any], Tensor] | None = None
        priors = assign(net, prior)
        self._parameter_of = {clean_name(name): name for name in priors}
        reserved = _RESERVED_SITES | {f"obs.{name}" for name in self.likelihood.head_names}
        if taken := sorted({*map(clean_name, priors), *site_names(net)} & reserved):
            raise ValueError(
                f"parameter(s) or layer(s) {name_list(taken)} have the names of sites that every model has; rename them"
            )
        self._partly_fixed = partly_fixed(net) & set(priors)
        self.priors = nn.ModuleDict({site_key(clean_name(name)): p for name, p in priors.items()})
        self._usage_cache: UsageCache = {}
        self._calls: list[_Call] = []
        self._meeting_cache: dict[tuple[Any, ...], bool] = {}
        self._describe_sites()  # raises an error if a site cannot be drawn, before the network is changed
        freeze_random(net, priors)

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
        site_of, known = {name: site for site, name in self._parameter_of.items()}, list(self._usage_cache.values())
        return [site_of[name] for name in site_of if known and all(name in usage.unused for usage in known)]

    def examples_meet(self, x: Inputs, y: Target | None = None) -> bool:
        """Whether a batch of inputs must stay whole: the network's output for an example depends on others.

        That is so in a graph network, in attention over the batch, in a mean over it, or where an example's number in
        the batch counts. It is found by experiment in evaluation mode, on up to 64 examples where the network runs on
        so few; the result is kept.

        Args:
            x: Inputs.
            y: Their targets, which a density of your own may bring together; drawn by default.

        Example:
            >>> import torch, pyrostoch as ps
            >>> net = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=0))
            >>> model = BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(), num_data=9)
            >>> model.examples_meet(torch.randn(9, 2))
            True
        """
        x = flat_inputs(x, self.target)
        inputs = x if isinstance(x, tuple) else (x,)
        y = None if y is None else self.likelihood.read_target(y)
        if have_common_part(x, self.in_dims):  # the next one may say otherwise which examples meet
            return examples_meet(self.net, inputs, self.in_dims, self._reading(y))
        # What is found on so many examples holds for any number.
        size = min(count_examples(x, self.in_dims) or 0, MOST_EXAMPLES)
        kind = (*call_kind(self.net, {}, inputs, {})[1:], size, y is not None and reads_in_its_own_way(self.likelihood))
        if kind not in self._meeting_cache:
            self._meeting_cache[kind] = (
                densities_meet(self.net, self.likelihood, inputs, self.in_dims, y)
                or examples_meet(self.net, inputs, self.in_dims, self._reading(y))
                or depends_on_place(self.net, inputs, self.in_dims)
            )
        return self._meeting_cache[kind]

    @property
    def improper(self) -> bool:
        """Whether a prior is improper, so that the ELBO is defined up to a constant per weight."""
        return any(site.improper for site in self.sites.values())

    def draw(self) -> dict[str, Tensor]:
        """Draw every random weight, by site name; this part of the model needs no data."""
        weights = {}
        for site, parameter in self._parameter_of.items():
            shape = self._parameter(parameter).shape
            weights[site] = draw_weight(
                site, self.prior(site).distribution(site, shape), shape, self._fixed_entries(parameter)
            )
        return weights

    def _parameter(self, name: str) -> Tensor:
        try:
            return self.net.get_parameter(name)
        except AttributeError as error:
            raise ValueError(
                f"parameter {name!r} of {type(self.net).__name__} is random, but is no parameter any more: it was "
                "pruned, parametrized or removed after the model was built; change the network, then build the model"
                f"{see('how-to/convert_network')}"
            ) from error

    def _fixed_entries(self, parameter: str) -> FixedEntries | None:
        return fixed_entries(self.net, parameter) if parameter in self._partly_fixed else None

    def without_data(self) -> None:
        """The Pyro statements that need no data: weights, random quantities of the likelihood, and the penalty."""
        self.draw()
        self.likelihood.draw()
        if self.penalty is not None:
            pyro.factor("penalty", -self.penalty(self.net))

    def outputs(self, x: Inputs, weights: dict[str, Tensor]) -> Output | Moments:
        """The network's output for given weights, under the active interpretation.

        Args:
            x: Inputs.
            weights: The weights by site name, as `draw` returns them.
        """
        x = flat_inputs(x, self.target)
        inputs = x if isinstance(x, tuple) else (x,)
        values = {self._parameter_of[site]: weights[site] for site in self._parameter_of}
        sites = {parameter: site for site, parameter in self._parameter_of.items()}
        call = self._calls[-1] if self._calls else _Call()
        activations = ActivationSites(
            self.net,
            call.plate,
            from_posterior=call.from_posterior,
            separate=needs_score(self.net) and self._keeps_examples_apart(x),
        )
        try:
            with holding_buffers(self.net, replayed_buffers()), activations:
                return call_network(
                    self.net,
                    values,
                    inputs,
                    sites=sites,
                    usage_cache=self._usage_cache,
                    in_dims=flat_dims(inputs, self.in_dims),
                    reading=self._reading(),
                    fixed={name: fixed_entries(self.net, name) for name in self._partly_fixed},
                )
        except InvalidParametersError as error:
            raise error.named(self.net) from error
        except RuntimeError as error:
            if (explained := explain_dtypes(error, self.net, inputs)) is not None:
                raise explained from error
            raise

    def _reading(self, y: Target | None = None) -> LogDensities | None:
        """What a likelihood of the user's own reads of the output; those of this library keep examples apart."""
        y = self._calls[-1].y if y is None and self._calls else y
        return reading_of(self.likelihood, y)

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
        distribution: Distribution = self.likelihood(full_precision(self.outputs(x, weights)), quantities)
        return distribution

    def forward(self, x: Inputs, y: GivenTargets | Target | None = None) -> Any:
        """The Pyro model.

        Args:
            x: Inputs; the first axis counts the examples, unless `in_dims` says otherwise.
            y: Targets, several as a dictionary; `None` draws them.

        Returns:
            The observed or drawn targets; a dictionary of several.

        Raises:
            ValueError: Shapes do not fit, the batch is larger than `num_data`, or (with Pyro's validation on) an input
                is not finite or a target is out of range.
            TypeError: The inputs or targets are not tensors.
        """
        x = flat_inputs(x, self.target)
        count = count_examples(x, self.in_dims)
        if y is not None:
            y = self.likelihood.read_target(y)
            count = self._check_sizes(count, y)
        if pyro.settings.get("validate_poutine"):
            check_finite("inputs x", x)
        plate = self._plate(x, y, count)
        with self._calling(_Call(y, plate)):
            distribution = self.observation(x)
        if y is not None:
            self.likelihood.check_shape(distribution, y)
            if pyro.settings.get("validate_poutine"):
                self.likelihood.check_target(distribution, y)
            if self.penalty is not None:
                pyro.factor("penalty", -self.penalty(self.net))
        if plate.count is None:
            plate = self._plate(x, y, distribution.batch_shape[0])
        with plate.plate:
            return observe(distribution, y)

    def draw_activations(self, x: Inputs, weights: dict[str, Tensor], y: GivenTargets | Target | None = None) -> None:
        """Draw the random activations that have a prior from q(h | x) as Pyro sites, as a guide does.

        Args:
            x: Inputs.
            weights: The weights by site name.
            y: Targets, as the model gets them: with them, the sites are scaled to the whole data set.
        """
        x = flat_inputs(x, self.target)
        y = None if y is None else self.likelihood.read_target(y)
        with self._calling(_Call(y, self._plate(x, y, count_examples(x, self.in_dims)), from_posterior=True)):
            self.outputs(x, weights)

    def _plate(self, x: FlatInputs, y: Target | None, count: int | None) -> ExamplePlate:
        size, device = (count or 0, device_of_inputs(x)) if y is None else (self.num_data, y.device)
        return ExamplePlate(size, count, device, shares_inputs=have_common_part(x, self.in_dims))

    @contextlib.contextmanager
    def _calling(self, call: _Call) -> Iterator[None]:
        self._calls.append(call)
        try:
            yield
        finally:
            self._calls.pop()

    def _keeps_examples_apart(self, x: FlatInputs) -> bool:
        """Whether the output for an example depends on its own activations only, in the network's present mode."""
        inputs = x if isinstance(x, tuple) else (x,)
        kind = ("rows", *call_kind(self.net, {}, inputs, {})[1:], count_examples(x, self.in_dims))
        if kind not in self._meeting_cache:
            self._meeting_cache[kind] = activations_are_by_example(self.net, inputs, self.in_dims)
        return self._meeting_cache[kind] and not uses_batch_statistics(self.net) and not self.examples_meet(x)

    def _check_sizes(self, count: int | None, y: Target) -> int:
        """The number of examples, which inputs and targets must have."""
        count = len(y) if count is None else count
        if count == 0:
            raise ValueError("inputs x: expected at least one example, got an empty batch")
        if len(y) != count:
            raise ValueError(f"inputs and targets: expected as many of each, got {count} inputs and {len(y)} targets")
        if count > self.num_data:
            raise ValueError(
                f"num_data: expected the size of the whole training set, got {self.num_data} with a batch of {count}"
            )
        return count

    def _describe_sites(self) -> dict[str, Site]:
        def describe_weight(site: str, init: Tensor, support: Constraint) -> Site:
            prior, parameter = self.prior(site), self._parameter_of[site]
            layer = self.net.get_submodule(parameter.rpartition(".")[0])
            role = "bias" if is_bias(site) else "weight"
            out_axis = 1 if getattr(layer, "transposed", False) and init.dim() > 2 else 0
            kind, fixed = type(layer).__name__, self._fixed_entries(parameter)
            return Site(site, init, support, role, repr(prior), prior.improper, out_axis, kind, fixed)

        def draw() -> None:
            self.draw()
            self.likelihood.draw()

        start = {site: self._parameter(name).detach() for site, name in self._parameter_of.items()}
        return describe_sites(draw, start, describe_weight)
