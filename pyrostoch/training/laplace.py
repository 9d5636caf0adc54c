"""The Laplace approximation: a posterior from the curvature of the log joint density at trained weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyrostoch._checks import check_choice, name_list
from pyrostoch._manual import see
from pyrostoch.effects import base_distribution
from pyrostoch.guides import Laplace
from pyrostoch.guides.statistics import layers_with_statistics
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.compare import compare
from pyrostoch.priors import Normal
from pyrostoch.protocols import Data
from pyrostoch.sites import trace_of
from pyrostoch.training.curvature import Curvature, DiagonalCurvature, FullCurvature, KroneckerCurvature
from pyrostoch.training.kronecker_factors import kronecker_factors
from pyrostoch.training.laplace_fit import LaplaceFit
from pyrostoch.training.log_joint import DataPasses
from pyrostoch.training.marginal_likelihood import best_precision, effective_number
from pyrostoch.training.optimum import find_negative_curvature, largest_sites
from pyrostoch.training.output_curvature import check_likelihood

__all__ = ["fit_laplace"]

# The precisions that are tried on held-out data.
_PRECISIONS = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 9))
# How many nats, for each effective weight, a Newton step may add to the log joint density at what counts as a maximum;
# and how negative the curvature of a direction may be in units of that of the approximation.
_MOST_GAIN, _MOST_NEGATIVE = 0.05, 0.1


def fit_laplace(
    model: BayesianModel,
    guide: Laplace,
    data: Data,
    *,
    prior_precision: Literal["given", "marginal"] | Data = "given",
    per_site: bool = False,
    batch_size: int = 1000,
    not_optimum: Literal["raise", "warn"] = "raise",
    curvature_steps: int = 5,
) -> LaplaceFit:
    r"""Set a `guides.Laplace` guide to the Laplace approximation at its means, and give the log marginal likelihood.

    The covariance is $(H + P)^{-1}$ in the guide's structure, where P is the precision of the normal prior and
    $H = \sum_i J_i^\top \Lambda_i J_i$ the generalized Gauss-Newton matrix of the negative log-likelihood: $J_i$ are
    the derivatives of the network's output by the weights, and $\Lambda_i$ is the Hessian of $-\log p(y_i \mid f)$ by
    the output. With a determinant and a log density of the prior at the means $w^*$,

    $$ \log p(D) \approx \log p(D \mid w^*) + \log p(w^*) + \tfrac{n}{2} \log 2\pi - \tfrac{1}{2} \log\det(H + P), $$

    which is exact where the output is linear in the weights and the noise Gaussian. The network is in evaluation mode,
    sums are in double precision, and any network works, with weights that are used in any way; `"kronecker"` knows
    linear layers and convolutions, and takes the positions where one is applied as unrelated ("expand").

    Train the network first: at a point that is no maximum of the log joint density the approximation means little, and
    is refused. Predict by `mode="linearized"`, whose linear output the curvature belongs to.

    Args:
        model: The model, with normal priors, and the likelihood `likelihoods.Categorical`, `likelihoods.Bernoulli`, or
            `likelihoods.Gaussian` with a fixed or learned scale.
        guide: Its guide, which is changed.
        data: The training set of `num_data` examples, as `fit` takes it.
        prior_precision: `"given"` takes the model's priors. `"marginal"` takes the one precision of all sites with the
            largest marginal likelihood, held-out data the one (of 17, from 1e-4 to 1e4) with the largest log predictive
            density on them by `mode="linearized"`; both change the scale of the model's priors, `priors.Normal`, so
            that what the guide and the model say fits together. The means stay where they are: train on and call again.
        per_site: With `"marginal"`, whether each site has a precision of its own; for `"diagonal"` and `"kronecker"`.
        batch_size: Number of examples in a batch; it has no influence on the result.
        not_optimum: What is done at a point that is no maximum: `"raise"` an error, or `"warn"`.
        curvature_steps: Number of passes in which a direction of negative curvature is looked for, by Lanczos steps
            with the exact Hessian, which sees saddles that H does not; 0 leaves the search out.

    Returns:
        The marginal likelihood and its terms.

    Raises:
        TypeError: The guide is another.
        ValueError: The likelihood or a prior has no curvature known here, sites of the model are not in the guide, the
            data are not `num_data` examples, or the means are no maximum.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> net = torch.nn.Linear(1, 1)
        >>> model = ps.BayesianModel(net, prior={"*": ps.priors.Normal(0.0, 10.0)},
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=50)
        >>> guide = ps.guides.Laplace(model, "full", init_loc=lambda site: 2.0 if site.role == "weight" else 1.0)
        >>> found = fit_laplace(model, guide, (x, 2 * x + 1), not_optimum="warn")
        >>> guide, round(found.effective_weights, 2)
        (Laplace(structure='full'), 2.0)

    References:
        MacKay, "The evidence framework applied to classification networks", 1992; Immer, Bauer, Fortuin, Rätsch, Khan,
        "Scalable marginal likelihood estimation for model selection in deep learning", 2021; Daxberger et al., "Laplace
        redux: effortless Bayesian deep learning", 2021.
    """
    if not isinstance(guide, Laplace):
        raise TypeError(
            f"fit_laplace: expected a guide Laplace, got {type(guide).__name__}{see('how-to/choose_guide')}"
        )
    check_choice("not_optimum", not_optimum, ("raise", "warn"))
    how = (
        check_choice("prior_precision", prior_precision, ("given", "marginal"))
        if isinstance(prior_precision, str)
        else "held-out"
    )
    check_likelihood(model.likelihood)
    _check_sites(model, guide)
    if per_site and (how != "marginal" or guide.tied_sites):
        raise ValueError(
            "fit_laplace per_site=True: expected prior_precision='marginal' and the structure 'diagonal' or "
            f"'kronecker', got {guide.structure!r} and {how!r}{see('how-to/choose_guide')}"
        )
    if how != "given":
        _check_changeable(model, guide)
    with torch.no_grad():
        fitter = _Fitter(model, guide, DataPasses(model, guide, data, batch_size))
        gain, negative = fitter.check_maximum(not_optimum, curvature_steps)
        scores: dict[float, float] | None = None
        if how == "marginal":
            fitter.set_precisions(fitter.marginal_precisions(per_site=per_site))
        elif how == "held-out":
            scores = {}
            held_out: Any = prior_precision
            for precision in _PRECISIONS:
                fitter.set_precisions(dict.fromkeys(guide.site_names, precision))
                scores[precision] = compare(model, guide, held_out, modes=("linearized",)).rows[0].nll
            fitter.set_precisions(dict.fromkeys(guide.site_names, min(scores, key=scores.__getitem__)))
        fitter.curvature.set(guide, fitter.precisions)
        return fitter.result(how, gain, negative, scores)


class _Fitter:
    """One fit: the point, the prior there, and the curvature."""

    def __init__(self, model: BayesianModel, guide: Laplace, passes: DataPasses) -> None:
        self.model, self.guide, self.passes = model, guide, passes
        distributions = {name: base_distribution(guide.site_distribution(name)) for name in guide.site_names}
        self.weights = {name: distribution.mean.detach().clone() for name, distribution in distributions.items()}
        self.free = {
            name: getattr(distribution, "free", torch.ones_like(self.weights[name], dtype=torch.bool))
            for name, distribution in distributions.items()
        }
        self.means, self.precisions = _normal_priors(model, guide)
        self.log_likelihood = passes.log_likelihood(self.weights)
        self.curvature = self._curvature()

    def _curvature(self) -> Curvature:
        guide = self.guide
        if guide.structure == "kronecker":
            factors = kronecker_factors(self.passes, self.weights)
            out_axes = {name: site.out_axis for name, site in self.model.sites.items()}
            return KroneckerCurvature(factors, out_axes)
        found: FullCurvature | DiagonalCurvature
        if guide.structure == "diagonal":
            found = DiagonalCurvature(self.weights, self.free)
        else:
            found = FullCurvature({name: self.weights[name] for name in guide.tied_sites})
        self.passes.whitened_rows(self.weights, found.add)
        return found

    def _of_batches(self) -> str:
        """What batch normalization has to do with it: a run maximizes under the statistics of each batch."""
        layers = layers_with_statistics(self.model.net)
        if not layers:
            return ""
        return (
            f". The layer(s) {name_list(layers)} are trained with the statistics of each batch, and read here with the "
            "running ones: fix their parameters by requires_grad_(False), build the model again, and go on from there"
        )

    def check_maximum(self, not_optimum: str, steps: int) -> tuple[float, float | None]:
        """Raise an error, or warn, where the means are no maximum; gain of a Newton step, and a negative curvature."""
        slopes = self.passes.gradient(self.weights)
        gradient = {
            name: (slopes[name] - self.precisions[name] * self._distances(name)) * self.free[name] for name in slopes
        }
        squares = self.curvature.squares(gradient, self.precisions)
        gain = 0.5 * squares
        limit = _MOST_GAIN * max(1.0, self.effective_weights())
        if not math.isfinite(gain) or gain > limit:
            _report(
                not_optimum,
                f"the means are no maximum of the log joint density: a Newton step would add about {gain:.4g} nats to "
                f"it, where up to {limit:.4g} are taken for rounding and early stopping; the gradient is largest at "
                f"{largest_sites(gradient)}{self._of_batches()}",
            )

        def product(vector: dict[str, Tensor]) -> dict[str, Tensor]:
            vector = {name: value * self.free[name] for name, value in vector.items()}
            of_data = self.passes.hessian_product(self.weights, vector)
            return {
                name: (self.precisions[name] * value - of_data[name]) * self.free[name]
                for name, value in vector.items()
            }

        try:
            found = find_negative_curvature(product, self.weights, steps)
        except RuntimeError as error:  # of an operation that torch can differentiate once only
            raise ValueError(
                f"fit_laplace: the search for negative curvature needs second derivatives of the network, but {error}; "
                f"leave it out by curvature_steps=0{see('how-to/choose_guide')}"
            ) from error
        if found is not None:
            relative = found.value * self.curvature.squares(found.vector, self.precisions)
            if relative < -_MOST_NEGATIVE:
                _report(
                    not_optimum,
                    f"the means are no maximum of the log joint density: it has negative curvature ({found.value:.4g}, "
                    f"where the approximation has about {found.value / relative:.4g}) in a direction that is mostly of "
                    f"{largest_sites(found.vector)}, so that they are at a saddle, or far from a maximum",
                )
        return gain, None if found is None else found.value

    def _distances(self, name: str) -> Tensor:
        return (self.weights[name].double() - self.means[name]) * self.free[name]

    def effective_weights(self) -> float:
        """How many weights the data determine."""
        total = 0.0
        for name, values in self.curvature.eigenvalues().items():
            parts = self.precisions if not name else {name: self.precisions[name]}
            logs = torch.cat([value[self.free[site]].log() for site, value in parts.items()])
            same = logs if values.numel() == logs.numel() and name else logs.mean()
            total += effective_number(values, same.exp())
        return total

    def marginal_precisions(self, *, per_site: bool) -> dict[str, float]:
        """The precisions of the largest marginal likelihood."""
        values = self.curvature.eigenvalues()
        squares = {name: self._distances(name).square().sum().item() for name in self.guide.site_names}
        if per_site:
            return {name: best_precision(values[name], squares[name], f"site {name!r}") for name in squares}
        best = best_precision(torch.cat(list(values.values())), math.fsum(squares.values()), "all weights")
        return dict.fromkeys(self.guide.site_names, best)

    def set_precisions(self, precisions: Mapping[str, float]) -> None:
        """Change the model's priors, and the guide's covariance."""
        for name, precision in precisions.items():
            prior: Any = self.model.prior(name)
            prior.scale = torch.full_like(prior.scale, precision**-0.5)
        # What the model says in its own precision is what counts.
        self.means, self.precisions = _normal_priors(self.model, self.guide)
        self.curvature.set(self.guide, self.precisions)

    def result(self, how: str, gain: float, negative: float | None, scores: dict[float, float] | None) -> LaplaceFit:
        """The marginal likelihood and its terms."""
        size = sum(int(free.sum()) for free in self.free.values())
        log_prior = -0.5 * size * math.log(2 * math.pi)
        shown: dict[str, float | tuple[float, float]] = {}
        for name, precision in self.precisions.items():
            terms = precision.log() - precision * self._distances(name).square()
            log_prior += 0.5 * terms[self.free[name]].sum().item()
            low, high = precision.min().item(), precision.max().item()
            shown[name] = low if low == high else (low, high)
        log_det = self.curvature.log_det(self.precisions)
        return LaplaceFit(
            structure=self.guide.structure,
            log_marginal_likelihood=self.log_likelihood + log_prior + 0.5 * (size * math.log(2 * math.pi) - log_det),
            log_likelihood=self.log_likelihood,
            log_prior=log_prior,
            log_det=log_det,
            prior_precision=shown,
            chosen=how,
            effective_weights=self.effective_weights(),
            num_weights=size,
            newton_gain=gain,
            negative_curvature=negative,
            num_data=self.model.num_data,
            held_out=scores,
        )


def _check_sites(model: BayesianModel, guide: Laplace) -> None:
    scales = [name for name, site in model.sites.items() if site.role == "scale"]
    if scales:
        raise ValueError(
            f"fit_laplace: expected weights as the only random sites, got the random scale(s) {name_list(scales)}; "
            "take a fixed or fitted scale (priors.Normal, "
            f"likelihoods.Gaussian(learn=True)){see('how-to/choose_guide')}"
        )
    if model.penalty is not None:
        raise ValueError(
            "fit_laplace: expected a model without a penalty, whose curvature is not known; say by a normal prior "
            f"what it says{see('how-to/choose_guide')}"
        )
    if not model.sites or set(model.sites) != set(guide.site_names):
        raise ValueError(
            f"fit_laplace: expected a guide of all random weights of the model, {name_list(model.sites) or 'none'}, "
            f"got one of {name_list(guide.site_names)}; give the others no prior (prior={{'head.*': ...}}), so that "
            f"they are fixed{see('how-to/choose_guide')}"
        )


def _check_changeable(model: BayesianModel, guide: Laplace) -> None:
    others = [name for name in guide.site_names if type(model.prior(name)) is not Normal]
    if others:
        raise ValueError(
            "fit_laplace prior_precision: expected the priors priors.Normal, whose scale can be changed, got another "
            f"at site(s) {name_list(others)}; take prior_precision='given'{see('how-to/choose_guide')}"
        )


def _normal_priors(model: BayesianModel, guide: Laplace) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means and precisions of the priors, in double precision and the weights' shapes."""
    nodes = trace_of(model.without_data).nodes
    means, precisions = {}, {}
    for name in guide.site_names:
        found: Any = base_distribution(nodes[name]["fn"])
        prior: Any = getattr(found, "base_dist", found)
        if type(prior).__name__ != "Normal" or not isinstance(prior, torch.distributions.Normal):
            raise ValueError(
                f"fit_laplace: expected a normal prior at site {name!r}, got {type(prior).__name__}: its precision is "
                "what is added to the curvature; take priors.Normal, or train a guide such as Additive by fit"
                f"{see('how-to/choose_guide')}"
            )
        shape = model.sites[name].init.shape
        means[name] = prior.loc.detach().double().expand(shape)
        precisions[name] = prior.scale.detach().double().expand(shape).square().reciprocal()
    return means, precisions


def _report(not_optimum: str, what: str) -> None:
    text = (
        f"fit_laplace: {what}. Train longer, with the model's prior as weight decay, or by fit with this guide, which "
        "maximizes the log joint density; then call fit_laplace again"
    )
    if not_optimum == "raise":
        raise ValueError(f"{text}; or take the point as it is by not_optimum='warn'{see('how-to/choose_guide')}")
    warnings.warn(text, UserWarning, stacklevel=4)
