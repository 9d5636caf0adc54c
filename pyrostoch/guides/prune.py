"""Pruning by the posterior's signal-to-noise ratio, and by magnitude as a baseline."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pyrostoch._checks import check_choice, name_list
from pyrostoch._manual import see
from pyrostoch.guides.export import make_sparse
from pyrostoch.guides.plain import with_weights
from pyrostoch.guides.ratio import free_entries, is_zero_mean, log_alpha, weight_distributions
from pyrostoch.model import BayesianModel
from pyrostoch.priors import clean_name
from pyrostoch.protocols import SiteGuide
from pyrostoch.records import Record, table

__all__ = ["Pruning", "PruningRow", "magnitude_masks", "prune"]


@dataclass(frozen=True)
class PruningRow(Record):
    """Counts of one site.

    Args:
        site: Name of the site.
        weights: Number of weights.
        kept: Number of weights that are kept.
    """

    site: str
    weights: int
    kept: int

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is removed."""
        return 1 - self.kept / self.weights


@dataclass(frozen=True, eq=False)
class Pruning(Record):
    """Which weights are kept, and their values.

    Counts are over the listed sites only. Parameters that no guide covers (biases and normalization layers without a
    prior) are kept as they are and not counted, as is usual for published compression rates.

    Args:
        criterion: Which weights were kept, in words.
        sites: The counts of each site.
        masks: For each site, a boolean tensor in the weight's shape, True where a weight is kept.
        values: For each site, its weights before masking: the guide's means, or a network's own weights.
    """

    criterion: str
    sites: tuple[PruningRow, ...]
    masks: dict[str, Tensor]
    values: dict[str, Tensor]

    @property
    def weights(self) -> int:
        """Number of weights of all sites."""
        return sum(row.weights for row in self.sites)

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return sum(row.kept for row in self.sites)

    @property
    def compression(self) -> float:
        """Number of weights over number of weights kept; infinite if none is kept."""
        return self.weights / self.kept if self.kept else math.inf

    def export(self, model: nn.Module, *, dense: bool = False) -> nn.Module:
        """A plain network with the kept weights and zeros elsewhere, in evaluation mode, with nothing random in it.

        It is a copy: it shares no tensor with model or guide, and needs no hook to keep its zeros. Parameters that are
        not sites of the pruning keep their trained values. Linear and 2d convolution layers become `SparseLinear` and
        `SparseConv2d` where that takes less memory (about half of a float32 weight must be zero). Other layers that
        hold a pruned weight (embeddings, recurrent and attention layers, other convolutions), and biases, stay dense
        and contain zeros.

        The kept values are parameters, so the network can be fine-tuned; in sparse layers the zeros stay zero.

        Save the network's state dict; `load_pruned` makes the network from it again:

            exported = pruning.export(model)
            safetensors.torch.save_file(exported.state_dict(), "pruned.safetensors")  # or torch.save(..., "pruned.pt")
            state = safetensors.torch.load_file("pruned.safetensors")  # or torch.load("pruned.pt", weights_only=True)
            exported = ps.guides.load_pruned(plain_net, state)  # plain_net: the same architecture, dense, untrained

        (`save_file` refuses tied layers, whose tensors are shared: use `torch.save` there.)

        Args:
            model: The trained `BayesianModel`, or its network; for a pruning by magnitude, the pruned network.
            dense: Whether to keep every layer dense, for comparison or because the hardware is faster with it.

        Returns:
            The network.

        Raises:
            ValueError: A site of the pruning is not a parameter of the network or has another shape there, or a random
                weight of the model is not a site of the pruning. Only names and shapes are checked: another network of
                the same architecture passes, and the result then has that network's biases and normalization.
        """
        masked = {site: torch.where(mask, self.values[site], 0) for site, mask in self.masks.items()}
        net = with_weights(model, masked)
        return net if dense else make_sparse(net, list(masked))

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain data, without the tensors `masks` and `values`.

        `compression` is infinite if nothing is kept; strict JSON has no number for it.
        """
        return {
            "criterion": self.criterion,
            "weights": self.weights,
            "kept": self.kept,
            "compression": self.compression,
            "sites": [{**row.to_dict(), "sparsity": row.sparsity} for row in self.sites],
        }

    def __str__(self) -> str:
        rows = [(row.site, row.weights, row.kept, f"{row.sparsity:.2%}") for row in self.sites]
        sparsity = 1 - self.kept / self.weights if self.weights else 0.0
        rows.append(("total", self.weights, self.kept, f"{sparsity:.2%}"))
        amount = f"{self.compression:.4g}x" if self.kept else "nothing kept"
        head = f"Pruning, kept {self.criterion}: {amount} of the weights listed"
        return f"{head}\n{table(('site', 'weights', 'kept', 'sparsity'), rows)}"


def prune(guide: SiteGuide, threshold: float = 3.0) -> Pruning:
    r"""Remove the weights that are mostly noise: keep those with $\log(\sigma^2/\mu^2) = \log\alpha \le$ `threshold`.

    At a log alpha of 3 a weight's standard deviation is 4.5 times its mean. A weight of mean exactly 0 is removed.
    Where a neuron or a layer shares an alpha, it is kept or removed as a whole. A site of which nothing is kept gives a
    warning.

    Args:
        guide: A guide with normal distributions; random scales of priors and likelihoods are skipped.
        threshold: The largest log alpha that is kept, a finite number.

    Returns:
        The masks, with the guide's means as values.

    Raises:
        TypeError: The threshold is not a number, or a weight's distribution is not normal; its site is named.
        ValueError: The threshold is not finite, a distribution has mean zero by construction (all its weights would be
            removed), or a parameter is not finite; its site is named.

    References:
        Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", 2017; Gale, Elsen, Hooker,
        "The state of sparsity in deep neural networks", 2019 (arXiv 1902.09574), on baselines.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(4, 1, bias=False), prior=ps.priors.LogUniform(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = ps.guides.WeightwiseAlpha(model, init_loc=1.0, init_log_alpha=lambda s: torch.tensor([0, 4, 5, 6.]))
        >>> pruning = prune(guide)
        >>> print(pruning)
        Pruning, kept log alpha <= 3: 4x of the weights listed
        site    weights  kept  sparsity
        weight        4     1    75.00%
        total         4     1    75.00%
        >>> pruning.export(model, dense=True)(torch.ones(1, 4)).item()
        1.0
    """
    if isinstance(threshold, bool) or not isinstance(threshold, Real):
        raise TypeError(f"prune: expected a number for threshold, got {threshold!r} ({type(threshold).__name__})")
    threshold = float(threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"prune: expected a finite threshold, got {threshold!r}")
    masks, values = {}, {}
    with torch.no_grad():
        for site, whole in weight_distributions(guide, "prune").items():
            distribution, fixed = free_entries(whole)
            if is_zero_mean(distribution):
                raise ValueError(
                    f"prune: the distribution at site {site!r} has mean zero by construction: its weights act through "
                    "their variances only, so that no network of fixed weights can replace it"
                    f"{see('how-to/prune_and_export')}"
                )
            if not isinstance(distribution, Normal):
                raise TypeError(
                    f"prune: expected a normal distribution at site {site!r}, got {type(distribution).__name__}"
                    f"{see('how-to/prune_and_export')}"
                )
            ratio = log_alpha(distribution)
            if bool(torch.isnan(ratio).any()) or not bool(torch.isfinite(distribution.loc).all()):
                raise ValueError(f"prune: the guide's parameters at site {site!r} are not finite")
            masks[site], values[site] = ratio <= threshold, distribution.loc.clone()
            if fixed is not None:  # constants are kept
                values[site] = fixed.put_into(values[site])
                masks[site] = torch.where(fixed.mask, values[site] != 0, masks[site])
    pruning = _pruning(f"log alpha <= {threshold:g}", masks, values)
    emptied = [row.site for row in pruning.sites if row.weights and not row.kept]
    if emptied:
        warnings.warn(
            f"prune: nothing is kept of {name_list(emptied)}: every log alpha there is above {threshold:g} (or the "
            "mean is zero), and a network with only zeros in a layer seldom works; raise the threshold or train longer",
            UserWarning,
            stacklevel=2,
        )
    return pruning


def magnitude_masks(model: nn.Module, like: Pruning, scope: Literal["layer", "global"] = "layer") -> Pruning:
    """A baseline of the same sparsity: keep the largest weights of a network, as many as another pruning keeps.

    All others are removed at once, without fine-tuning, which is not a fair baseline at high sparsity. The benchmark
    `pruning` prunes gradually during training instead: `pyrostoch.bench.published.magnitude.train_and_prune`.

    Of weights of equal size, the first in memory are kept (in the order of the sites of `like`, then by index).

    Args:
        model: A trained plain network. A `BayesianModel` is accepted only if the sites of `like` are not random in it:
            its network holds random weights as they were before training.
        like: The pruning that gives the sites and the number of weights to keep.
        scope: `"layer"` keeps as many weights of each site as `like`; `"global"` as many in total, the largest of all.

    Returns:
        The masks, with the network's weights as values.

    Raises:
        TypeError: `like` is not a `Pruning`.
        ValueError: A site of `like` is random in the model, is not in the network, has another shape there, or is not
            finite.

    References:
        Gale, Elsen, Hooker, "The state of sparsity in deep neural networks", 2019 (arXiv 1902.09574).

    Example:
        >>> net = nn.Linear(4, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.1, -3.0, 2.0, 0.5]]))
        >>> like = Pruning("", (PruningRow("weight", 4, 2),), {"weight": torch.ones(1, 4) > 0}, {})
        >>> magnitude_masks(net, like).masks["weight"]
        tensor([[False,  True,  True, False]])
    """
    check_choice("magnitude_masks scope", scope, ("layer", "global"))
    if not isinstance(like, Pruning):
        raise TypeError(
            f"magnitude_masks: expected a Pruning (as prune returns it) for like, got {type(like).__name__}"
        )
    net = model
    if isinstance(model, BayesianModel):
        random = [site for site in like.masks if site in model.sites]
        if random:
            raise ValueError(
                f"magnitude_masks: {name_list(random)} of the model are random, and its network holds their values "
                "from before training: pass a trained plain network, such as one of the guide's means: "
                "prune(guide, threshold=100).export(model, dense=True)"
                f"{see('how-to/prune_and_export')}"
            )
        net = model.net
    parameters = {clean_name(name): parameter.detach() for name, parameter in net.named_parameters()}
    values = {}
    for site, mask in like.masks.items():
        if site not in parameters or parameters[site].shape != mask.shape:
            raise ValueError(
                f"magnitude_masks: expected a parameter {site!r} of shape {tuple(mask.shape)} in the network, got "
                f"{name_list(f'{name} {tuple(value.shape)}' for name, value in parameters.items())}"
            )
        if not bool(torch.isfinite(parameters[site]).all()):
            raise ValueError(f"magnitude_masks: the network's parameter {site!r} is not finite")
        values[site] = parameters[site].clone()
    if scope == "layer":
        masks = {row.site: _largest(values[row.site].abs().flatten(), row.kept) for row in like.sites}
    else:
        sizes = [value.numel() for value in values.values()]
        joined = torch.cat([value.abs().flatten() for value in values.values()])
        masks = dict(zip(values, _largest(joined, like.kept).split(sizes), strict=True))
    shaped = {site: mask.reshape(values[site].shape) for site, mask in masks.items()}
    return _pruning(f"the largest weights, {'layer by layer' if scope == 'layer' else 'of all layers'}", shaped, values)


def _largest(sizes: Tensor, count: int) -> Tensor:
    order = torch.sort(sizes, descending=True, stable=True).indices
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def _pruning(criterion: str, masks: dict[str, Tensor], values: dict[str, Tensor]) -> Pruning:
    rows = tuple(PruningRow(site, mask.numel(), int(mask.sum())) for site, mask in masks.items())
    return Pruning(criterion, rows, masks, values)
