"""SWAG: a normal posterior from the iterates of stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch.distributions import LowRankDraw, LowRankNormal
from pyrostoch.guides.base import Guide
from pyrostoch.guides.collecting import Collecting
from pyrostoch.guides.delta import check_maximum, point
from pyrostoch.guides.joint import draw_tied, refuse_constants
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.guides.starts import Start
from pyrostoch.guides.statistics import refuse_unknown
from pyrostoch.sites import Site, site_key

__all__ = ["Swag"]

# Smallest variance of a weight, below which its density could not be computed.
_LEAST = 1e-20


class Swag(Collecting, NormalStart):
    r"""A normal posterior around the mean of SGD's iterates, with their variances and main directions.

    $$ w \sim N\left(\bar w,\; \tfrac{1}{2} \mathrm{diag}(s^2) + \tfrac{1}{2 (K - 1)} D D^\top\right), $$

    where $\bar w$ and $s^2$ are mean and variance of the weights at the ends of epochs, and D has the last K deviations
    from the mean as it was then. `fit` trains one point, as `Delta`, and collects its iterates from the epoch after
    `start`; give it `optimizer=torch.optim.SGD` (or a partial of it) and `schedule="constant"`, with a rate at which
    the iterates wander. The result has a density and an ELBO, which `decompose` gives; it was not maximized.

    A network with batch normalization needs running statistics of each draw: `Samples.of(model, guide, 30)` keeps some
    draws, and `fit_statistics(model, samples, train)` computes theirs. Without, draws are refused.

    Args:
        model: A `BayesianModel`.
        rank: K, the number of deviations that are kept, from 2 up.
        start: Number of epochs before the first that is collected.
        init_loc: Initial weights: a number, a function of the site, or a trained guide, such as a `Delta`; by default
            the network's own values.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: As `Delta`; or some entries of a site are constant.

    References:
        Maddox, Garipov, Izmailov, Vetrov, Wilson, "A simple baseline for Bayesian uncertainty in deep learning", 2019.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 2)
        >>> model = ps.BayesianModel(nn.Linear(2, 1), prior={"*": ps.priors.Normal()},
        ...                          likelihood=ps.likelihoods.Gaussian(0.5), num_data=64)
        >>> guide = Swag(model, rank=5, start=10)
        >>> _ = ps.fit(model, guide, (x, x.sum(1, keepdim=True)), epochs=40, batch_size=16, lr=2e-4, seed=0,
        ...            optimizer=torch.optim.SGD, schedule="constant", progress=False, compile=False)
        >>> len(guide), guide.site_distribution("weight").mean.round(decimals=1)
        (30, tensor([[1., 1.]]))
    """

    count: Tensor

    def __init__(
        self,
        model: nn.Module,
        rank: int = 20,
        *,
        start: int = 0,
        init_loc: Start | Guide | None = None,
        sites: Iterable[str] | None = None,
    ) -> None:
        self.rank, self.start = check_count("Swag rank", rank, 2), check_count("Swag start", start, 0)
        super().__init__(model, init_loc=init_loc, sites=sites)
        check_maximum(self, model)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.iterates = nn.ModuleDict(
            {site_key(name): _Iterates(self.parameters_for(name)["loc"], self.rank) for name in self.site_names}
        )

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc`, the point that is trained, in the weight's shape."""
        refuse_constants(site, "Swag")
        return {"loc": point(self, site)}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The normal distribution of the site alone, an event of the weight's shape."""
        return self._distribution(site, None)

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name: within `fit` the point that is trained, else from the posterior."""
        if self._collecting:
            return {
                name: pyro.sample(name, pyro.distributions.Delta(loc).to_event(loc.dim()))
                for name in self.site_names
                for loc in (self.parameters_for(name)["loc"],)
            }
        shared = LowRankDraw(self.rank, self.site_names)
        return draw_tied(self, shared, lambda name: self._distribution(name, shared))

    def announce_statistics(self) -> None:
        """Announce the running statistics of the point that is trained; those of other draws are not known.

        Raises:
            ValueError: The network has running statistics, and the draw is none that `fit` trains.
        """
        if self._layers_with_statistics and not self._collecting:
            refuse_unknown(
                "Swag",
                self._layers_with_statistics,
                "keep some draws, and compute theirs: samples = Samples.of(model, guide, 30); fit_statistics(model, "
                "samples, train)",
            )
        super().announce_statistics()

    @torch.no_grad()
    def collect(self) -> None:
        """Add the present point to the iterates."""
        self.count += 1
        for name in self.site_names:
            self._of(name).add(self.parameters_for(name)["loc"], len(self))

    def after_epoch(self, number: int) -> None:
        """Collect the point at the end of an epoch, once the first ones are over.

        Args:
            number: The epoch, counted from 1.
        """
        if number > self.start:
            self.collect()

    def __len__(self) -> int:
        return int(self.count)

    @property
    def ties_sites(self) -> bool:
        """Whether the draw of one site depends on that of another."""
        return len(self.site_names) > 1

    def _of(self, site: str) -> _Iterates:
        found: _Iterates = self.iterates[site_key(site)]  # type: ignore[assignment]
        return found

    def _distribution(self, site: str, shared: LowRankDraw | None) -> LowRankNormal:
        if len(self) < 2:
            raise ValueError(
                f"guide Swag: expected at least two iterates, got {len(self)}; train it by fit for more than "
                f"start={self.start} epochs, or call collect() in a loop of your own{see('how-to/ensembles')}"
            )
        return self._of(site).distribution(len(self), shared)

    def extra_repr(self) -> str:
        """The rank, and which epochs are left out."""
        return f"rank={self.rank}, start={self.start}"


class _Iterates(nn.Module):
    """Mean, variance and last deviations of the iterates of one site, as buffers."""

    mean: Tensor
    squares: Tensor
    deviations: Tensor

    def __init__(self, like: Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros_like(like.detach()))
        self.register_buffer("squares", torch.zeros_like(like.detach()))
        self.register_buffer("deviations", like.detach().new_zeros((rank, *like.shape)))

    def add(self, value: Tensor, count: int) -> None:
        # Welford's sums: differences of sums of squares would cancel.
        before = value - self.mean
        self.mean += before / count
        after = value - self.mean
        self.squares += before * after
        self.deviations[(count - 1) % len(self.deviations)] = after

    def distribution(self, count: int, shared: LowRankDraw | None) -> LowRankNormal:
        kept = min(count, len(self.deviations))
        scale = (self.squares / count / 2.0).clamp_min(_LEAST).sqrt()
        return LowRankNormal(self.mean, scale, self.deviations / (2.0 * (kept - 1)) ** 0.5, shared=shared)
