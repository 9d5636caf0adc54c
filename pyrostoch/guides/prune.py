"""Pruning: which weights a posterior can do without, beside what magnitude alone would remove."""

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
from pyrostoch.guides.export import make_sparse, with_weights
from pyrostoch.guides.ratio import is_zero_mean, log_alpha, weight_distributions
from pyrostoch.model import BayesianModel
from pyrostoch.priors import clean_name
from pyrostoch.records import Record, table

__all__ = ["Pruning", "PruningRow", "magnitude_masks", "prune"]


@dataclass(frozen=True)
class PruningRow(Record):
    """What is kept of one site.

    Args:
        site: Name of the site.
        weights: Number of weights.
        kept: How many of them are kept.
    """

    site: str
    weights: int
    kept: int

    @property
    def sparsity(self) -> float:
        """Share of the weights that is removed."""
        return 1 - self.kept / self.weights


@dataclass(frozen=True, eq=False)
class Pruning(Record):
    """Masks of the weights worth keeping, with the values they have.

    Counts are over the sites listed, and nothing else: parameters that no guide covers (biases and normalization layers
    without a prior) are kept as they are and counted nowhere, as is the custom of published rates.

    Args:
        criterion: What was kept, in words.
        sites: What is kept, site by site.
        masks: For each site, where its weights are kept: True.
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
        """Weights of the listed sites over those kept; infinite where none is."""
        return self.weights / self.kept if self.kept else math.inf

    def export(self, model: nn.Module, *, dense: bool = False) -> nn.Module:
        """A network with the kept weights and zeros elsewhere: a plain module in evaluation mode, nothing random.

        It is a copy: it shares no tensor with model or guide, and needs no hook to keep its zeros. Everything that is
        no site of the pruning stays as trained. Linear and 2d convolution layers become `SparseLinear` and
        `SparseConv2d` where that is smaller (about half of a float32 weight must be zero); what holds any other weight
        (embeddings, recurrent and attention layers, other convolutions, biases) stays dense with zeros in it.

        The kept values are parameters, so the network can be fine-tuned; in sparse layers the zeros stay zero.

        What is saved is its state dict, and `load_pruned` makes the network of it again:

            exported = pruning.export(model)
            safetensors.torch.save_file(exported.state_dict(), "pruned.safetensors")  # or torch.save(..., "pruned.pt")
            state = safetensors.torch.load_file("pruned.safetensors")  # or torch.load("pruned.pt", weights_only=True)
            exported = ps.guides.load_pruned(plain_net, state)  # plain_net: the same architecture, dense, untrained

        (`save_file` refuses tied layers, whose tensors are shared: use `torch.save` there.)

        Args:
            model: The `BayesianModel` that was trained, or its network; for a magnitude pruning, the network it is of.
            dense: Whether to keep every layer dense, for comparison or for hardware that prefers it.

        Returns:
            The network.

        Raises:
            ValueError: A site of the pruning is no parameter of the network or has another shape there, or a random
                weight of the model is no site of the pruning. Only names and shapes are checked: a network with the
                same ones passes, and everything that is no site (biases, normalization) is then that network's own.
        """
        masked = {site: torch.where(mask, self.values[site], 0) for site, mask in self.masks.items()}
        net = with_weights(model, masked)
        return net if dense else make_sparse(net, list(masked))

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain data; masks and values are tensors and left out.

        `compression` is infinite where nothing is kept, for which strict JSON has no number.
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
        share = 1 - self.kept / self.weights if self.weights else 0.0
        rows.append(("total", self.weights, self.kept, f"{share:.2%}"))
        amount = f"{self.compression:.4g}x" if self.kept else "nothing kept"
        head = f"Pruning, kept {self.criterion}: {amount} of the weights listed"
        return f"{head}\n{table(('site', 'weights', 'kept', 'sparsity'), rows)}"


def prune(guide: Any, threshold: float = 3.0) -> Pruning:
    r"""Remove the weights that are noise: keep those with $\log\alpha = \log(\sigma^2/\mu^2) \le$ `threshold`.

    At a log alpha of 3 a weight's standard deviation is 4.5 times its mean. Exact zeros of the mean are removed. With
    an alpha shared by a neuron or a layer, whole neurons or layers go; a site that is emptied is warned of.

    Args:
        guide: A guide with normal distributions; random scales of priors are passed over.
        threshold: The largest log alpha that is kept, a finite number.

    Returns:
        Masks and means.

    Raises:
        TypeError: The threshold is no number, or a weight's distribution is not normal; its site is named.
        ValueError: The threshold is not finite, or a distribution has mean zero by construction, so that nothing of it
            would be left, or is not finite; named.

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
        for site, distribution in weight_distributions(guide, "prune").items():
            if is_zero_mean(distribution):
                raise ValueError(
                    f"prune: the distribution at site {site!r} has mean zero by construction: its weights act by their "
                    "variances alone, and no network of fixed weights stands for it"
                )
            if not isinstance(distribution, Normal):
                raise TypeError(
                    f"prune: expected a normal distribution at site {site!r}, got {type(distribution).__name__}"
                )
            ratio = log_alpha(distribution)
            if bool(torch.isnan(ratio).any()) or not bool(torch.isfinite(distribution.loc).all()):
                raise ValueError(f"prune: the guide's parameters at site {site!r} are not finite")
            masks[site] = ratio <= threshold
            values[site] = distribution.loc.clone()
    found = _pruning(f"log alpha <= {threshold:g}", masks, values)
    emptied = [row.site for row in found.sites if row.weights and not row.kept]
    if emptied:
        warnings.warn(
            f"prune: nothing is kept of {name_list(emptied)}: every log alpha there is above {threshold:g} (or its "
            "mean zero), and a network with nothing but zeros in a layer seldom works; raise the threshold or train on",
            UserWarning,
            stacklevel=2,
        )
    return found


def magnitude_masks(model: nn.Module, like: Pruning, scope: Literal["layer", "global"] = "layer") -> Pruning:
    """A baseline at the same sparsity: keep the largest weights of a network, as many as another pruning keeps.

    They are removed at one stroke, without fine-tuning, which is no fair baseline at high sparsity. The benchmark
    `pruning` prunes gradually while the network trains: `pyrostoch.bench.published.magnitude.train_and_prune`.

    Of weights of one size, the first in memory are kept (site by site in the order of `like`, then by index).

    Args:
        model: A trained plain network. Of a `BayesianModel` only weights that are not random can be meant, which are
            trained with it; its network holds random ones as they were before training.
        like: The pruning whose sites are pruned and whose counts are kept.
        scope: `"layer"` keeps as many weights in each site as `like`; `"global"` as many in total, the largest of all.

    Returns:
        Masks and the network's weights.

    Raises:
        TypeError: `like` is no `Pruning`.
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
        raise TypeError(f"magnitude_masks: expected a Pruning for like, as prune returns it, got {type(like).__name__}")
    net = model
    if isinstance(model, BayesianModel):
        random = [site for site in like.masks if site in model.sites]
        if random:
            raise ValueError(
                f"magnitude_masks: {name_list(random)} of the model are random, and its network holds the weights they "
                "had before training: pass a trained plain network, such as the means of the guide, "
                "prune(guide, threshold=100).export(model, dense=True)"
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
