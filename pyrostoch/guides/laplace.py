"""A normal guide around trained weights, whose covariance is the inverse curvature of the log joint density there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrostoch._checks import check_choice, name_list
from pyrostoch._manual import see
from pyrostoch.distributions import KroneckerNormal, TiedDraw, TiedNormal
from pyrostoch.guides.base import Guide, sites_of
from pyrostoch.guides.joint import check_memory, draw_tied, refuse_constants
from pyrostoch.guides.last_layer import sites_of_layer
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.guides.starts import Start
from pyrostoch.guides.statistics_owner import share_owner
from pyrostoch.sites import Site, site_key

__all__ = ["Laplace", "Structure"]

#: The covariance of a Laplace approximation.
Structure = Literal["diagonal", "last_layer", "kronecker", "full"]


class Laplace(NormalStart):
    r"""Laplace approximation: $N(w^*, (H + P)^{-1})$ at trained weights $w^*$, set by `fit_laplace`.

    H is the generalized Gauss-Newton matrix of the negative log-likelihood of all data, and P the precision of the
    normal prior. Its structure is

    - `"diagonal"`: the diagonal of H alone; weights are independent;
    - `"last_layer"`: all of H for the weight of one linear layer, and its bias if that is random; the model has no
      other random weights;
    - `"full"`: all of H for all random weights, for small networks;
    - `"kronecker"`: for each site the Kronecker product of a matrix for the outputs and one for the inputs.

    Train the network first, to a maximum of the log joint density: in torch, with the prior as weight decay, or by
    `fit` with this guide. The means are its only parameters; until `fit_laplace` is called, the covariance is a narrow
    one, `init_scale`, that training does not change, so that `fit` maximizes the log joint density, up to that noise.
    Then `fit_laplace` sets the covariance in one pass, and gives the log marginal likelihood.

    The divergences to a normal prior are exact. `predict(mode="linearized")` is the prediction that goes with it.

    Args:
        model: A `BayesianModel`, whose priors are normal.
        structure: `"diagonal"`, `"last_layer"`, `"kronecker"` or `"full"`.
        init_loc: The means: a number, a function of the site, or a trained guide; by default the network's values.
        init_scale: Standard deviations before `fit_laplace`: a number, a function of the site, or a guide.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: The sites are not those of one linear layer (`"last_layer"`), the covariance does not fit into
            memory, or some entries of a site are constant (but for `"diagonal"`).

    References:
        MacKay, "A practical Bayesian framework for backpropagation networks", 1992; Ritter, Botev, Barber, "A scalable
        Laplace approximation for neural networks", 2018; Daxberger et al., "Laplace redux: effortless Bayesian deep
        learning", 2021.

    Example:
        >>> import pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> model = ps.BayesianModel(net, prior={"2.*": ps.priors.Normal()},
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=100)
        >>> guide = Laplace(model, "last_layer")
        >>> guide
        Laplace(structure='last_layer', not fitted: call fit_laplace)
        >>> guide.site_distribution("2.weight").covariance.shape
        torch.Size([16, 16])
    """

    fitted: Tensor

    def __init__(
        self,
        model: nn.Module,
        structure: Structure = "diagonal",
        *,
        init_loc: Start | Guide | None = None,
        init_scale: Start | Guide = 1e-2,
        sites: Iterable[str] | None = None,
    ) -> None:
        check_choice("structure", structure, ("diagonal", "last_layer", "kronecker", "full"))
        self.structure: Structure = structure
        known = sites_of(model, "Laplace")
        chosen = list(known) if sites is None else list(sites)
        if structure == "last_layer":
            sites_of_layer(known, chosen, "Laplace(structure='last_layer')")
        self._scales: dict[str, Tensor] = {}
        super().__init__(model, init_loc=init_loc, init_scale=init_scale, sites=chosen)
        share_owner(self, init_loc)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        #: What `distribution` makes of the means, a module of buffers for each site.
        self.spread = nn.ModuleDict()
        self._set_starts({name: known[name] for name in self._real_sites})

    @property
    def tied_sites(self) -> tuple[str, ...]:
        """The sites that have one covariance together."""
        return self._real_sites if self.structure in ("last_layer", "full") else ()

    @property
    def ties_sites(self) -> bool:
        """Whether the draw of one site depends on that of another."""
        return len(self.tied_sites) > 1

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc`, in the weight's shape."""
        if self.structure != "diagonal":
            refuse_constants(site, f"Laplace(structure={self.structure!r})")
        start = self.normal_start(site)
        self._scales[site.name] = start["log_scale"].detach().exp()
        return {"loc": start["loc"]}

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The normal distribution of the site alone: elementwise (`"diagonal"`), or an event of its shape."""
        loc, spread = parameters["loc"], dict(self.spread[site_key(site)].named_buffers())
        if self.structure == "diagonal":
            return dist.Normal(loc, spread["scale"])
        if self.structure == "kronecker":
            return KroneckerNormal(loc, **spread, out_axis=self._out_axes[site])
        return TiedNormal(loc, spread["root"])

    def draw(self) -> dict[str, Tensor]:
        """Draw every site, by name; those of one covariance in turn, each given those before it."""
        if not self.ties_sites:
            return self._draw_sites(marked=True)
        tied = self.tied_sites
        locs = [self.parameters_for(name)["loc"] for name in tied]
        shared = TiedDraw(locs, [self._root(name) for name in tied], tied, one_layer=self.structure == "last_layer")
        return draw_tied(self, shared, dict(zip(tied, shared.members, strict=True)).__getitem__)

    def set_scales(self, scales: dict[str, Tensor]) -> None:
        """Set the standard deviations of `"diagonal"`, and mark the guide as fitted.

        Args:
            scales: Standard deviations by site, in the shape of its weight.
        """
        self._set({name: {"scale": scale} for name, scale in scales.items()})

    def set_kronecker(self, parts: dict[str, tuple[Tensor, Tensor, Tensor]]) -> None:
        """Set the covariances of `"kronecker"`, and mark the guide as fitted.

        Args:
            parts: By site the bases of outputs, (out, out), and of inputs, (in, in), and standard deviations in them,
                (out, in).
        """
        names = ("rows", "columns", "scale")
        self._set({name: dict(zip(names, part, strict=True)) for name, part in parts.items()})

    def set_covariance(self, covariance: Tensor) -> None:
        """Set the covariance of `"last_layer"` and `"full"`, and mark the guide as fitted.

        Args:
            covariance: Of the entries of all sites, one after the other, (n, n).
        """
        self._set(self._roots_of(torch.linalg.cholesky(covariance.double())))

    def restricted_to(self, sites: Iterable[str]) -> Guide:
        """A copy of the guide that covers only some of its sites, which keep their covariance.

        Args:
            sites: Names of the sites to keep.

        Raises:
            ValueError: The guide has no such site.
        """
        kept = set(sites)
        restricted = super().restricted_to(kept)
        if self.ties_sites and isinstance(restricted, Laplace) and restricted.tied_sites:
            whole = self.factor().double()
            sizes = [self.parameters_for(name)["loc"].numel() for name in self.tied_sites]
            rows = [part for name, part in zip(self.tied_sites, whole.split(sizes), strict=True) if name in kept]
            covariance = torch.cat(rows) @ torch.cat(rows).mT
            fitted = bool(self.fitted)
            restricted.set_covariance(covariance)
            restricted.fitted.fill_(fitted)
        return restricted

    def factor(self) -> Tensor:
        """The lower triangular factor of the covariance of all tied sites together, (n, n)."""
        roots = [self._root(name) for name in self.tied_sites]
        size = roots[-1].shape[1]
        return torch.cat([nn.functional.pad(root, (0, size - root.shape[1])) for root in roots])

    def extra_repr(self) -> str:
        """The structure, and whether it was fitted."""
        return f"structure={self.structure!r}" + ("" if bool(self.fitted) else ", not fitted: call fit_laplace")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def _root(self, site: str) -> Tensor:
        root: Tensor = self.spread[site_key(site)].get_buffer("root")
        return root

    def _set_starts(self, sites: dict[str, Site]) -> None:
        """Make the buffers, of independent weights at first."""
        scales, self._scales = self._scales, {}
        if self.tied_sites:
            total = sum(scale.numel() for scale in scales.values())
            for site in sites.values():
                check_memory(site, site.init.numel() * total, f"Laplace(structure={self.structure!r})")
            parts = self._roots_of(torch.diag(torch.cat([scales[name].flatten() for name in self.tied_sites])))
        elif self.structure == "kronecker":
            parts = {name: _kronecker_start(site, scales[name]) for name, site in sites.items()}
        else:
            parts = {name: {"scale": scales[name]} for name in sites}
        for name, part in parts.items():
            self.spread[site_key(name)] = _Spread(part)

    def _roots_of(self, tril: Tensor) -> dict[str, dict[str, Tensor]]:
        """The rows of a lower triangular factor by site, up to the diagonal."""
        found, start = {}, 0
        for name in self.tied_sites:
            end = start + self.parameters_for(name)["loc"].numel()
            found[name] = {"root": tril[start:end, :end].clone()}
            start = end
        return found

    def _set(self, parts: dict[str, dict[str, Tensor]]) -> None:
        if parts.keys() != set(self._real_sites):
            raise ValueError(
                f"guide Laplace: expected what belongs to the sites {name_list(self._real_sites)}, got "
                f"{name_list(parts)}{see('how-to/choose_guide')}"
            )
        with torch.no_grad():
            for name, part in parts.items():
                module = self.spread[site_key(name)]
                for key, value in part.items():
                    buffer = module.get_buffer(key)
                    if buffer.shape == value.shape:
                        buffer.copy_(value)
                    else:  # of a guide that covers fewer sites than before
                        setattr(module, key, value.to(buffer))
            self.fitted.fill_(True)


class _Spread(nn.Module):
    """What a site's distribution has besides its means, as buffers, which move and are saved with the guide."""

    def __init__(self, parts: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in parts.items():
            self.register_buffer(name, value.detach().clone())


def _kronecker_start(site: Site, scale: Tensor) -> dict[str, Tensor]:
    """Independent weights: the bases are the axes themselves."""
    outputs = site.init.shape[site.out_axis] if site.init.dim() else 1
    inputs = site.init.numel() // max(outputs, 1)
    check_memory(site, outputs**2 + inputs**2, "Laplace(structure='kronecker')")
    matrix = scale.movedim(site.out_axis, 0).reshape(outputs, inputs) if scale.dim() > 1 else scale.reshape(-1, 1)
    rows, columns = (torch.eye(size, dtype=scale.dtype, device=scale.device) for size in (outputs, inputs))
    return {"rows": rows, "columns": columns, "scale": matrix}
