"""Kernels of counts: the weights of each output unit share the trials of one multinomial, and a site one scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_count
from pyrostoch.distributions import SignedMultinomial
from pyrostoch.effects import base_distribution
from pyrostoch.guides.base import Guide
from pyrostoch.guides.plain import with_weights
from pyrostoch.guides.starts import weights_with_a_scale
from pyrostoch.guides.statistics import refuse_own
from pyrostoch.sites import Site

__all__ = ["MultinomialWeights"]

# Trials for each weight of a kernel, where their number is not given.
_TRIALS_A_WEIGHT = 4
# The scale at the start, in units of the largest sum of absolute weights over a kernel. What is left of the
# probability is spread over all cells, so that none starts with none.
_SPARE = 1.1


class MultinomialWeights(Guide):
    r"""The kernel of each output unit or channel is made of n trials: $w_j = s\,(C_j^+ - C_j^-)/n$.

    A kernel is what one output sees, the F entries of a weight at one place of its axis of outputs. Each of its n
    trials falls on one of 2 F cells, an entry and a sign, with probabilities p that are learned; so the weights of a
    kernel compete for the trials, and the sum of $|w_j|$ is at most the scale s, one for each site. Kernels are
    independent. The guide starts with the network's own weights as means, $s\,(p_j^+ - p_j^-)$, exactly.

    The weights of a kernel depend on each other. Local reparameterization and flipout, which need independent weights,
    leave them alone, so that all examples share a draw, whose backward pass is that of its mean (straight-through).
    Moment propagation refuses them by name; `"moments:mc"` draws them. The logits are trained with `fit`'s `lr_alpha`.

    The prior must be `priors.UniformMultinomial()`, under which a trial falls on all cells alike. The KL is that of the
    counts, $n \sum_c p_c \log(2 F p_c)$ for each kernel, and so at least that of the weights, which do not tell all
    counts apart. The ELBO stays a lower bound. There is no log probability of the weights.

    A parameter with one axis, such as a bias, has kernels of one entry, and is binomial, like a single number. In an
    embedding a kernel is a row. Sites with constant entries, such as a padding row, are refused by name.

    Args:
        model: A `BayesianModel`.
        n: Number of trials of each kernel; by default, four for each of its weights. The variance of a weight, summed
            over a kernel, is at most $s^2/n$, so a wide kernel needs many trials.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: `n` is no whole number of at least 1, all of the network's weights at a site are 0, or some of its
            entries are constant.

    References:
        Johnson, Kotz, Balakrishnan, "Discrete multivariate distributions", 1997, chapter 35, for the moments.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(3, 2), prior=ps.priors.UniformMultinomial(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = MultinomialWeights(model)
        >>> bool(torch.allclose(guide.site_distribution("weight").mean, model.net.weight, atol=1e-6))
        True
    """

    alpha_parameters = ("logits",)

    def __init__(self, model: nn.Module, *, n: int | None = None, sites: Iterable[str] | None = None) -> None:
        self.n = None if n is None else check_count("MultinomialWeights n", n)
        super().__init__(model, sites=sites)

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`logits`, (2, *weight shape), of the positive and the negative cells; scalar `log_scale`."""
        if site.fixed is not None:
            raise ValueError(
                f"MultinomialWeights: expected a site without constant entries, on which trials would fall, got "
                f"{site.name!r}, where torch holds some constant (a padding row, or weights that "
                "torch.nn.utils.prune cut). Give it another guide, such as BinomialWeights, by PerSite, or no prior: "
                f"{{{site.name!r}: None}}"
            )
        weights = weights_with_a_scale(site, "MultinomialWeights")
        others = [axis for axis in range(weights.dim()) if axis != site.out_axis]
        sums = weights.abs().sum(others, keepdim=True) if others else weights.abs()
        scale = _SPARE * sums.max()
        rest = (1 - sums / scale) * sums.numel() / weights.numel()
        sizes = torch.stack([weights.clamp_min(0.0), (-weights).clamp_min(0.0)]) / scale
        return {"logits": (sizes + rest / 2).log(), "log_scale": scale.log()}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The multinomial distribution of the site's kernels."""
        logits, out_axis = parameters["logits"], self._out_axes[site]
        shape = logits.shape[1:]
        n = _TRIALS_A_WEIGHT * shape.numel() // (shape[out_axis] if shape else 1) if self.n is None else self.n
        return SignedMultinomial(logits, n, parameters["log_scale"].exp(), out_axis=out_axis)

    def export(self, model: nn.Module, *, draw: int | None = None) -> nn.Module:
        """A copy of the network, an ordinary module, whose weights are their means, rounded to multiples of s / n.

        Such a kernel need not be one that can be drawn, since its counts may not add up to n. The most probable counts
        would be no better a choice: many cells are then equally probable, and which of them has a trial is arbitrary.

        Args:
            model: The `BayesianModel`, or, without a draw, the network itself.
            draw: Seed of a draw, which takes the place of the means.

        Returns:
            The copy, in evaluation mode, with nothing random in it.
        """
        if draw is not None:
            return super().export(model, draw=draw)
        refuse_own(self, "export")
        weights = {}
        for name in self.weight_names:
            distribution = cast(SignedMultinomial, base_distribution(self.site_distribution(name)))
            step = distribution.scale / distribution.n
            weights[name] = step * (distribution.mean / step).round()
        return with_weights(model, weights)

    def extra_repr(self) -> str:
        """The number of trials of a kernel."""
        return f"n={_TRIALS_A_WEIGHT} for each weight" if self.n is None else f"n={self.n}"
