"""Stochastic layers: kernels whose outputs are the parameters of the distribution of an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_choice, check_positive
from pyrostoch._manual import see
from pyrostoch._precision import at_least_single
from pyrostoch.effects.activation import InvalidParametersError, random_activation
from pyrostoch.layers.activations import (
    ActivationDistribution,
    Bernoulli,
    Categorical,
    Gaussian,
    Gradient,
    Laplace,
    LogNormal,
    Poisson,
    PriorOfActivations,
    StudentT,
)
from pyrostoch.layers.activations.noisier import Noisier
from pyrostoch.layers.activations.priors import as_activation_prior
from pyrostoch.layers.partial import without_absent, zero_where_absent
from pyrostoch.moments import Moments
from pyrostoch.moments.gaussian import per_example
from pyrostoch.moments.smooth import Smooth
from pyrostoch.moments.table import refuse
from pyrostoch.moments.units import activate

__all__ = ["StochasticLayer"]

#: Distributions that may be given by their names.
NAMED: dict[str, Callable[[], ActivationDistribution]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "student-t": StudentT,
    "log-normal": LogNormal,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "poisson": Poisson,
}


class StochasticLayer(nn.Module):
    r"""As many copies of a trainable module as an activation's distribution has parameters, each giving one of them.

    $$ h \sim p(h; \theta_1, \theta_2, \ldots), \qquad \theta_i = l_i(k_i(x)). $$

    What it returns depends on the interpretation: a draw, fresh for each example, or under `MeanPropagation` the mean,
    under `NoiseFree` the activation without noise, under `MomentPropagation` mean and variance. It does not depend on
    `train()` and `eval()`.

    In a `BayesianModel`, activations with a prior p(h) are a Pyro site with the name of the layer. Their divergence
    from the prior, the rate, is a term of the ELBO; without a prior, it is 0, and the layer is noise of the model.

    Args:
        make_kernel: Makes one kernel, a module that maps the inputs to a tensor of the activations' shape,
            `(batch, ...)`. It is called once for each parameter. What else the layer is called with, such as masks,
            reaches every kernel.
        distribution: The distribution of the activations, or its name: `"gaussian"`, `"laplace"`, `"student-t"`,
            `"log-normal"`, `"bernoulli"`, `"categorical"` or `"poisson"`.
        prior: The prior of the activations: `"standard"` (of the family: N(0, 1), the fair coin), `"learned"` (the
            family with a learned parameter for each channel), a Pyro distribution, or one of `layers.activations`.
        gradient: How draws are differentiated: `"reparameterized"`, `"relaxed"`, `"straight-through"` or `"score"`; by
            default the first that the distribution has. `"score"` is unbiased and needs the ELBO of a `BayesianModel`.
        temperature: The temperature of `"relaxed"`; lower is nearer to discrete values, with a noisier gradient.
        channels: The axis of the output along which entries belong together, for categorical distributions. In the
            Pyro site it is the last one.

    Its `noise_factor`, 1 unless it is set, is a factor of the noise: 2 doubles scales and halves logits. It shows
    whether the noise that a network was trained with matters to it.

    Raises:
        ValueError: The distribution has no such gradient, or no such name is known.

    References:
        Alemi, Fischer, Dillon, Murphy, "Deep variational information bottleneck", 2017, for the rate; Williams, "Simple
        statistical gradient-following algorithms for connectionist reinforcement learning", 1992, for `"score"`.

    Example:
        >>> from pyrostoch.effects import MeanPropagation
        >>> layer = StochasticLayer(lambda: nn.Linear(3, 2))
        >>> layer(torch.zeros(4, 3)).shape, len(layer.kernels)
        (torch.Size([4, 2]), 2)
        >>> with MeanPropagation():
        ...     bool((layer(torch.zeros(4, 3)) == layer.kernels[0].bias).all())
        True
    """

    #: The mean cost of the data set in earlier steps, times the sum of their weights, and that sum; their ratio is what
    #: the score function's gradient subtracts.
    average_cost: Tensor
    cost_steps: Tensor
    baseline_decay = 0.9
    #: What Pyro's `TraceGraph_ELBO` takes as the entry "baseline" of the site, such as
    #: `dict(use_decaying_avg_baseline=True)`; Pyro keeps a value for each row, so all batches must have one size.
    pyro_baseline: dict[str, Any] | None = None

    def __init__(
        self,
        make_kernel: Callable[[], nn.Module],
        distribution: ActivationDistribution | str = "gaussian",
        *,
        prior: PriorOfActivations = None,
        gradient: Gradient | None = None,
        temperature: float = 0.5,
        channels: int = -1,
    ) -> None:
        super().__init__()
        self._set_distribution(distribution, prior, gradient, temperature, channels)
        self.kernels = nn.ModuleList(make_kernel() for _ in self.family.links)

    def _set_distribution(
        self,
        distribution: ActivationDistribution | str,
        prior: PriorOfActivations,
        gradient: Gradient | None,
        temperature: float,
        channels: int,
        shape: tuple[int, ...] | None = None,
        positions: int = 0,
    ) -> None:
        """Take over what all stochastic layers have; `shape` has one parameter for each channel."""
        name = self._title
        if isinstance(distribution, str):
            check_choice(f"{name} distribution", distribution, list(NAMED))
            distribution = NAMED[distribution]()
        if not isinstance(distribution, ActivationDistribution):
            raise TypeError(
                f"{name} distribution: expected one of layers.activations, such as Gaussian(), or a name, got "
                f"{distribution!r}{see('how-to/stochastic_layers')}"
            )
        self._family, self._noise_factor = distribution, 1.0
        self.gradient: Gradient = gradient or distribution.gradients[0]
        if self.gradient not in distribution.gradients:
            raise ValueError(
                f"{name} gradient: expected one of {', '.join(map(repr, distribution.gradients))} for a "
                f"{type(distribution).__name__} activation, got {gradient!r}{see('how-to/stochastic_layers')}"
            )
        self.temperature, self.channels = check_positive(f"{name} temperature", temperature), channels
        if shape is not None and not distribution.event:  # else channels are last in the distribution
            shape = (*shape, *(1,) * positions)
        self.prior = as_activation_prior(prior, distribution, shape, name)
        self._keep_costs()

    def _keep_costs(self) -> None:
        """Make room for what the gradient by the score function keeps between steps, if it is used."""
        if self.gradient == "score":
            self.register_buffer("average_cost", torch.zeros(()))
            self.register_buffer("cost_steps", torch.zeros(()))

    @property
    def noise_factor(self) -> float:
        """Factor of the noise, 1 unless it is set."""
        return self._noise_factor

    @noise_factor.setter
    def noise_factor(self, factor: float) -> None:
        self._noise_factor = check_positive(f"{self._title} noise_factor", factor)

    @property
    def family(self) -> ActivationDistribution:
        """The distribution of the activations, with its noise scaled by `noise_factor`."""
        return self._family if self.noise_factor == 1.0 else Noisier(self._family, self.noise_factor)

    @property
    def channel_axis(self) -> int:
        """The axis of the activations that counts channels, or features."""
        return self.channels

    def family_of(self, x: tuple[Tensor, ...]) -> ActivationDistribution:
        """The distribution of the activations for the kernels' outputs; `family`, unless a layer has several.

        Args:
            x: The kernels' outputs.
        """
        return self.family

    @property
    def _title(self) -> str:
        """The name of the layer's class in messages."""
        return type(self).__name__

    def forward(self, x: Tensor | Moments, *args: Any, **kwargs: Any) -> Tensor | Moments:
        """The activations: drawn, or what the interpretation puts in their place.

        Args:
            x: Inputs, or their moments, `(batch, ...)`.
            *args: Further inputs of every kernel, such as masks.
            **kwargs: The same by name.
        """
        return random_activation(self.outputs(x, *args, **kwargs), self)

    def outputs(self, x: Tensor | Moments, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The kernels' outputs, one for each parameter.

        Args:
            x: Inputs, or their moments.
            *args: Further inputs of every kernel.
            **kwargs: The same by name.

        Raises:
            TypeError: A kernel returns several tensors.
        """
        found = tuple(kernel(x, *args, **kwargs) for kernel in self.kernels)
        for kernel, output in zip(self.kernels, found, strict=True):
            if not isinstance(output, (Tensor, Moments)):
                raise TypeError(
                    f"{self._title}: expected kernels that return one tensor, got a {type(output).__name__} from "
                    f"{type(kernel).__name__}; use StochasticLSTM or StochasticGRU for recurrent networks, or a kernel "
                    f"that returns one of these values only{see('how-to/stochastic_layers')}"
                )
        return found

    def activation_distribution(self, x: Tensor, *args: Any, **kwargs: Any) -> Distribution:
        """The distribution of the activations; entries that belong together are on its last axis.

        Args:
            x: Inputs.
            *args: Further inputs of every kernel.
            **kwargs: The same by name.

        Raises:
            ValueError: The kernels' outputs have different shapes, or no axis of channels.
        """
        return self._distribution(self.outputs(x, *args, **kwargs))

    def posterior(self, x: tuple[Tensor, ...]) -> Distribution:
        """q(h | x) for the kernels' outputs; its batch axis is the first one.

        Args:
            x: The kernels' outputs.
        """
        return without_absent(self._distribution_of_examples(x), x, self._title, self.prior)

    def prior_of(self, x: tuple[Tensor, ...], posterior: Distribution) -> Distribution:
        """p(h) in the shape of q(h | x); q(h | x) itself where the layer has no prior.

        Args:
            x: The kernels' outputs.
            posterior: q(h | x).
        """
        if self.prior is None:
            return posterior
        if getattr(x, "absent", None) is not None:  # its shape is that of all activations
            return without_absent(self.prior(self._distribution_of_examples(x)), x, self._title, self.prior)
        return self.prior(posterior)

    def _distribution_of_examples(self, x: tuple[Tensor, ...]) -> Any:
        distribution: Any = self._distribution(x)
        return distribution.to_event(len(distribution.batch_shape) - 1)

    def draw_arranged(self, x: tuple[Tensor, ...]) -> Tensor:
        """A draw, fresh for each example; entries that belong together are on the last axis.

        Args:
            x: The kernels' outputs.
        """
        try:
            family = self.family_of(x)
            return family.draw(self._arranged(x), self._gradient_of(family), self.temperature)
        except ValueError as error:
            raise self._explained(error) from error

    def _gradient_of(self, family: ActivationDistribution) -> Gradient:
        """How draws from one of the layer's distributions are differentiated."""
        return self.gradient

    def draw(self, x: tuple[Tensor, ...]) -> Tensor:
        """A draw of the activations for the kernels' outputs, fresh for each example."""
        return self.restored(self.draw_arranged(x), x)

    def expected(self, x: tuple[Tensor, ...]) -> Tensor:
        """The mean of the activations for the kernels' outputs."""
        return self.restored(self._distribution(x).mean, x)

    def noise_free(self, x: tuple[Tensor, ...]) -> Tensor:
        """The activations without noise."""
        family = self.family_of(x)
        return self.restored(family.noise_free(*family.parameters(self._arranged(x))), x)

    def log_noise(self, x: tuple[Tensor, ...]) -> Tensor:
        """The logarithm of the scale of each activation's noise, or of its standard deviation in a mixture.

        Args:
            x: The kernels' outputs.

        Raises:
            ValueError: The noise of such activations has no scale.
        """
        if self._family.noise != "scale":
            raise ValueError(
                f"{self._title}: {type(self._family).__name__} activations have no scale that a weight of the noise "
                f"could enlarge; use a prior and rate_weight{see('how-to/stochastic_layers')}"
            )
        distribution: Any = self._distribution(x)
        found: Tensor = (distribution.scale if hasattr(distribution, "scale") else distribution.stddev).log()
        absent = getattr(x, "absent", None)
        return found if absent is None else found[absent.logical_not()]

    def propagate(self, x: tuple[Moments, ...]) -> Moments:
        r"""The moments of the activations, exact for Gaussian outputs of the kernels where there is a rule.

        With the mean $m(\theta)$ and the variance $v(\theta)$ of an activation given its parameters,
        $\mathrm{Var}\,h = \mathrm{Var}\,m(\theta) + E\,v(\theta)$.
        """
        if self.family.event:
            refuse(
                type(self).forward, f"the entries of a {type(self._family).__name__} activation depend on each other"
            )
        if len(x) == 1:
            result = activate(x[0], Smooth(lambda z: self.family.distribution((z,)).mean))
            noise = activate(x[0], Smooth(lambda z: self.family.distribution((z,)).variance)).loc
        elif isinstance(self._family, (Gaussian, Laplace, StudentT)):
            result = x[0]
            scale = x[-1]
            noise = activate(scale, Smooth(lambda z: self.family.distribution((torch.zeros_like(z), z)).variance)).loc
        else:
            refuse(type(self).forward, f"there is none for a {type(self._family).__name__} activation")
        var = result.var + noise
        cov = None if result.cov is None else result.cov + torch.diag_embed(per_example(noise))
        found: Moments = zero_where_absent(Moments(result.loc, var, cov, result.settings, result.links), x)
        return found

    def _distribution(self, outputs: tuple[Tensor, ...]) -> Distribution:
        arranged = self._arranged(outputs)
        try:
            return self.family_of(outputs).distribution(arranged)
        except ValueError as error:  # from Pyro's validation
            raise self._explained(error) from error

    def _explained(self, error: ValueError) -> InvalidParametersError:
        """What Pyro says of invalid parameters, without the tensor's values, and what to do."""
        text = str(error).split(", but found invalid values")[0].replace("\n", " ")
        return InvalidParametersError(
            self,
            f"the kernels' outputs give a {type(self._family).__name__} activation invalid parameters, such as a scale "
            f"that is 0 or has underflowed, or NaN: {text}; lower the learning rate, or keep the scale away from 0 "
            f"(a larger rate_weight, Gaussian('softplus')){see('how-to/stochastic_layers')}",
        )

    def _arranged(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The kernels' outputs in at least single precision, with the channels last where they belong together."""
        shapes = [tuple(output.shape) for output in outputs]
        if any(shape != shapes[0] for shape in shapes[1:]):  # sizes of a program that is exported cannot be hashed
            raise ValueError(
                f"{self._title}: expected kernels whose outputs have one shape, one for each of the parameters "
                f"{', '.join(self.family.links)}, got {', '.join(map(str, shapes))}"
            )
        # In half precision, divergences and log densities would keep two or three digits.
        precise = tuple(at_least_single(output) for output in outputs)
        return tuple(output.movedim(self.channels, -1) for output in precise) if self.family.event else precise

    def restored(self, value: Tensor, x: tuple[Tensor, ...]) -> Tensor:
        """Activations in the shape and the dtype of the layer's output.

        Args:
            value: Activations, with the channels last where entries along them belong together.
            x: The kernels' outputs.
        """
        value = zero_where_absent(value.to(x[0].dtype), x)
        return value.movedim(-1, self.channels) if self.family.event else value

    def extra_repr(self) -> str:
        """The distribution and the gradient."""
        return f"distribution={type(self._family).__name__}, gradient={self.gradient}"
