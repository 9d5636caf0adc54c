"""The running statistics of each network of a guide, where batch normalization is used: kept by `fit`, or computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyrostoch._checks import name_list
from pyrostoch._inputs import to_device
from pyrostoch._manual import see
from pyrostoch._seeds import forked
from pyrostoch.effects import SharedSample
from pyrostoch.effects.held_state import HeldState
from pyrostoch.effects.statistics import holding_buffers
from pyrostoch.guides import Ensemble, Samples, Swag
from pyrostoch.guides.amortised import weights_of
from pyrostoch.guides.statistics import (
    Statistics,
    give_statistics,
    layers_with_statistics,
    running_buffers,
    statistics_of,
)
from pyrostoch.guides.statistics_owner import note_owner, owners, set_owners
from pyrostoch.infer.batches import Batches
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import batches_for, batches_on_device, device_of
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import Data
from pyrostoch.staging import restore_tensors, unique
from pyrostoch.training.batch_checks import check_last_batch
from pyrostoch.training.checks import keep_fixed_statistics

__all__ = ["check_buffers", "fit_statistics", "give_members_statistics", "training_statistics"]


def fit_statistics(model: BayesianModel, guide: nn.Module, data: Data, *, batch_size: int = 100) -> None:
    """Compute the running statistics of batch normalization for each network of a guide, in one pass for each.

    Normalization is in training mode, everything else in evaluation mode, and the statistics are means over the
    batches, weighted by their size; with `momentum=None` torch would give a short last batch the weight of the others.
    They belong to the guide from then on: its draws run through the network with them, and the network's own stay as
    they are. Spectral normalization goes on from the network's vectors.

    - `Samples`: each draw gets its own. For SWAG, keep some draws first: `Samples.of(model, guide, 30)`.
    - `Ensemble`: each member gets its own; members with a density are drawn once for each batch. Members that `fit` has
      trained together have theirs already.
    - Any other guide: as a member. So a `Delta` at the mean of SWAG's iterates is stochastic weight averaging.

    Args:
        model: The model.
        guide: The guide, which is changed.
        data: Inputs and targets, as for `fit`; targets are not used.
        batch_size: Number of examples in a batch.

    Raises:
        TypeError: The model is no `BayesianModel`.
        ValueError: The network has no such layer, the guide has other networks at each draw (`Swag`), or training
            changes a buffer of another kind, which is named.

    Example:
        >>> import pyrostoch as ps
        >>> net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> model = ps.BayesianModel(net, prior=lambda name, value: ps.priors.Normal(), num_data=40,
        ...                          likelihood=ps.likelihoods.Gaussian(0.1))
        >>> samples = ps.guides.Samples.of(model, ps.guides.Additive(model), 5)
        >>> fit_statistics(model, samples, (x, x))
        >>> ps.predict(model, samples, x, mode="mc:5").mean.shape
        torch.Size([40, 1])

    References:
        Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging weights leads to wider optima and better
        generalization", 2018; Maddox, Garipov, Izmailov, Vetrov, Wilson, "A simple baseline for Bayesian uncertainty in
        deep learning", 2019.
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(f"fit_statistics: expected a BayesianModel, got {type(model).__name__}")
    guide = weights_of(guide)
    if not layers_with_statistics(model.net):
        raise ValueError(
            f"fit_statistics: expected batch normalization with running statistics, got a {type(model.net).__name__} "
            f"without, or whose parameters are fixed, so that its statistics are, too{see('how-to/ensembles')}"
        )
    for part in guide.modules():
        if isinstance(part, Swag):
            part.announce_statistics()  # refuses draws that are not kept
    batches, device = batches_for(model, data, batch_size), device_of(model, guide)
    check_last_batch(model, batches)
    _check_changes(model, guide, batches, device or torch.device("cpu"), "fit_statistics")
    if isinstance(guide, Samples):
        guide.make_statistics(model.net)
    parts: list[Any] = list(guide.members) if isinstance(guide, Ensemble) else [guide]
    with training_mode(False, model, guide), torch.no_grad():
        for part in parts:
            own: Any = give_statistics(model.net, part)
            for index in range(len(part)) if isinstance(part, Samples) else [None]:
                found = _estimated(model, part, index, batches, device)
                for name, target in own.values(index).items():
                    if name in found:
                        target.copy_(found[name])
            own.known.fill_(True)


def give_members_statistics(model: nn.Module, guide: nn.Module) -> list[Statistics]:
    """Give each member of an ensemble buffers of its own, where the network has some; what is no ensemble is left.

    Args:
        model: The model.
        guide: The guide, which is changed.

    Returns:
        The buffers of the members.
    """
    found: Any = weights_of(guide)
    members = found.members if isinstance(found, Ensemble) and isinstance(model, BayesianModel) else ()
    own = [give_statistics(model.net, member, known=len(members) == 1) for member in members]  # type: ignore[arg-type]
    return [statistics for statistics in own if statistics is not None]


@contextmanager
def training_statistics(model: BayesianModel, guide: nn.Module) -> Iterator[None]:
    """Within the block, a training run makes the guide's statistics: members have theirs, draws of a chain have none.

    Args:
        model: The model.
        guide: The guide.
    """
    own = give_members_statistics(model, guide)
    notes, shared = owners(model, guide), {name: value.clone() for name, value in running_buffers(model.net).items()}
    note_owner(model, guide)
    own += [found for part in guide.modules() if (found := statistics_of(part)) is not None and found not in own]
    before = [found.known.clone() for found in own]
    ends = [not (found is statistics_of(guide) and isinstance(guide, Samples)) for found in own]
    try:
        for found, end in zip(own, ends, strict=True):
            found.known.fill_(end)
        yield
    except BaseException:
        if all(torch.equal(shared[name], value) for name, value in running_buffers(model.net).items()):
            set_owners(model, guide, notes)
        for found, known in zip(own, before, strict=True):
            found.known.copy_(known)
        raise


def check_buffers(model: BayesianModel, guide: nn.Module, batches: Batches, device: torch.device) -> None:
    """Raise an error where a buffer that training changes would have to belong to a draw, and cannot be computed.

    Args:
        model: The model.
        guide: The guide; only SWAG and chains are looked at, whose draws are other weights than those trained.
        batches: The data.
        device: The device of model and guide.

    Raises:
        ValueError: There is such a buffer; it is named.
    """
    if any(isinstance(part, (Swag, Samples)) for part in guide.modules()):
        _check_changes(model, guide, batches, device, "fit")


def _check_changes(model: BayesianModel, guide: nn.Module, batches: Batches, device: torch.device, verb: str) -> None:
    """Run the network once in training mode, see which buffers it changes, and put all of them back."""
    buffers = dict(model.net.named_buffers())
    known = layers_with_statistics(model.net)
    others = [name for name in buffers if name.rpartition(".")[0] not in known]
    if not others:
        return
    generators = [(generator, generator.get_state()) for generator in batches.generators()]
    held = HeldState(model.modules())
    weights = {name: site.init for name, site in model.sites.items()}
    copies = {name: value.clone() for name, value in buffers.items()}
    try:
        with (
            forked(device),
            training_mode(True, model.net),
            torch.no_grad(),
            restore_tensors(unique([*buffers.values()])),
        ):
            keep_fixed_statistics(model.net)
            x = to_device(batches.first()[0], device)
            with holding_buffers(model.net, copies), SharedSample():
                model.outputs(x, weights)
    finally:
        held.restore()
        for generator, state in generators:
            generator.set_state(state)
    changed = [name for name in others if not torch.equal(copies[name], buffers[name])]
    if changed:
        raise ValueError(
            f"{verb}: expected buffers that training leaves as they are, or those of batch normalization, but a pass "
            f"in training mode changes {name_list(changed)}, which cannot be computed for the draws of "
            f"{type(guide).__name__}; freeze them, or train Ensemble.of(model), whose members have buffers of their own"
            f"{see('how-to/ensembles')}"
        )


def _estimated(
    model: BayesianModel, guide: Any, index: int | None, batches: Batches, device: torch.device | None
) -> dict[str, Tensor]:
    """The buffers of the network's normalization under a draw, after one pass over the data."""
    layers = layers_with_statistics(model.net)
    buffers = {
        f"{name}.{last}" if name else last: value.clone()
        for name, layer in layers.items()
        for last, value in layer._buffers.items()
        if value is not None
    }
    norms: list[Any] = [layer for layer in layers.values() if isinstance(layer, _NormBase)]
    momenta = [layer.momentum for layer in norms]
    with holding_buffers(model.net, buffers), training_mode(False, model.net):
        try:
            for layer in layers.values():
                layer.training = True
            for norm in norms:
                norm.reset_running_stats()
            seen = 0
            for x, y in batches_on_device(batches, device):
                seen += len(y)
                for norm in norms:
                    norm.momentum = len(y) / seen  # the mean over batches, weighted by their size
                with SharedSample():
                    drawn = guide.draw() if index is None else {n: guide.values(n)[index] for n in guide.site_names}
                    model.outputs(x, drawn)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return buffers
