"""Checks of how a training run cuts its data into batches."""

from __future__ import annotations

from torch import nn

from pyrostoch._inputs import example_axes
from pyrostoch._manual import see
from pyrostoch.infer.batches import Batches, must_stay_whole
from pyrostoch.infer.data_sets import as_batches
from pyrostoch.infer.items import reader_of
from pyrostoch.infer.known_labels import check_no_labels_around
from pyrostoch.infer.loaders import Stream
from pyrostoch.infer.parallel import Ranks
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import Data

__all__ = ["check_batches", "check_last_batch", "training_batches"]


def training_batches(
    model: BayesianModel, data: Data, batch_size: int, *, shuffle: bool = True, steps_per_epoch: int | None = None
) -> Batches:
    """The batches of the training data.

    Args:
        model: The model.
        data: The data.
        batch_size: Number of examples in a batch.
        shuffle: Whether their order is random.
        steps_per_epoch: Number of batches in an epoch of a stream.

    Raises:
        TypeError: The data are of another type, or a stream has no length.
        ValueError: The data do not fit.
    """
    stream = Stream(model.num_data, steps_per_epoch, is_trained=True)
    return as_batches(data, batch_size, shuffle=shuffle, in_dims=model.in_dims, reader=reader_of(model), stream=stream)


def check_batches(model: BayesianModel, batches: Batches, shuffle: bool, ranks: Ranks, accumulate: int = 1) -> None:
    """Raise an error if examples that meet in the network would be trained in random parts of the data set.

    Labels that are entered around a run belong to the examples of one batch, and would be those of all others, too.

    Args:
        model: The model.
        batches: The training data.
        shuffle: Whether their order is random.
        ranks: The processes among which each batch is divided.
        accumulate: Number of parts in which a batch is computed.

    Raises:
        ValueError: They would.
    """
    if len(batches) > 1 or accumulate > 1:
        check_no_labels_around("fit", model)
    if accumulate > 1 and batches.items_are_batches:
        raise ValueError(
            f"accumulate={accumulate}: expected batches that can be cut, got a loader of whole ones, as parts of "
            f"graphs; let the loader make smaller ones{see('how-to/whole_batches')}"
        )
    if accumulate > 1 and all(axis is None for axis in example_axes(batches.first()[0], model.in_dims)):
        raise ValueError(
            f"accumulate={accumulate}: expected an input with an axis of examples, got in_dims={model.in_dims}; leave "
            f"accumulate out{see('how-to/whole_batches')}"
        )
    _check_parts(model, batches, accumulate)
    divided = ranks.is_distributed or (shuffle and len(batches) > 1) or accumulate > 1
    if not divided or not must_stay_whole(batches, model, also_of_loader=accumulate > 1):
        return
    start = (
        f"{type(model.net).__name__}: its output for one example depends on others in the batch (a graph, attention "
        "over the batch, a mean over it, batch statistics)"
    )
    if ranks.is_distributed:
        raise ValueError(
            f"{start}, so a batch cannot be divided among {ranks.world_size} processes; train in one"
            f"{see('how-to/whole_batches')}"
        )
    if accumulate > 1:
        raise ValueError(
            f"{start}, so a batch cannot be computed in accumulate={accumulate} parts; leave accumulate out"
            f"{see('how-to/whole_batches')}"
        )
    declare = (
        ""
        if model.in_dims != 0
        else ". Inputs that belong to all examples (edges, masks) are declared by BayesianModel(..., in_dims=(0, None))"
    )
    raise ValueError(
        f"{start}, so random batches of {batches.batch_size} are not what it computes on all examples. Keep them "
        f"together with batch_size={batches.num_data}; where the network runs on a part of them (a series), cut them "
        f"in their own order with shuffle=False; or make the batches yourself by a DataLoader{declare}"
        f"{see('how-to/whole_batches')}"
    )


def _check_parts(model: BayesianModel, batches: Batches, accumulate: int) -> None:
    """Raise an error for parts of one example, by which a BatchNorm1d in training mode cannot normalize."""
    if accumulate < 2 or batches.batch_size is None:
        return
    full, last = batches.batch_size, batches.num_data - (len(batches) - 1) * batches.batch_size
    sizes = [min(full, batches.num_data), last] if 0 < last < full and not batches.is_stream else [full]
    size = next((size for size in sizes if size // min(accumulate, size) == 1), None)
    found = (name for name, part in model.net.named_modules() if isinstance(part, nn.BatchNorm1d) and part.training)
    name = next(found, None)
    if size is not None and name is not None:
        raise ValueError(
            f"accumulate={accumulate} leaves a part of one example of a batch of {size}, which the BatchNorm1d "
            f"{name!r} cannot normalize; take fewer parts, at most {max(size // 2, 1)}, or another batch_size"
            f"{see('how-to/several_devices')}"
        )


def check_last_batch(model: BayesianModel, batches: Batches) -> None:
    """Raise an error for a last batch of one example, which has no variance by which a BatchNorm1d could normalize.

    Args:
        model: The model.
        batches: The training data.

    Raises:
        ValueError: There is one; batch size and layer are named.
    """
    if batches.batch_size is None or batches.num_data - (len(batches) - 1) * batches.batch_size != 1:
        return
    name = next((name for name, part in model.net.named_modules() if isinstance(part, nn.BatchNorm1d)), None)
    if name is not None:
        raise ValueError(
            f"batch_size={batches.batch_size} leaves a last batch of one example out of {batches.num_data}, which the "
            f"BatchNorm1d {name!r} cannot normalize; choose another batch_size"
        )
