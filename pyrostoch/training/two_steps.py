"""Training of conditional layers in two steps: the classes under known labels, then a selection in place of these."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
from torch import nn

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.infer.known_labels import GivenLabels, conditional_layers
from pyrostoch.infer.parallel import local_device
from pyrostoch.layers.conditional import Conditional
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import Data
from pyrostoch.records import Record
from pyrostoch.training.batch_checks import training_batches
from pyrostoch.training.checks import check_data, move_modules
from pyrostoch.training.fit import fit
from pyrostoch.training.fixed import fixed, keeping_statistics, parameters_below
from pyrostoch.training.history import Fit

__all__ = ["TwoStepFit", "fit_two_steps"]


@dataclass(frozen=True)
class TwoStepFit(Record):
    """The outcome of both steps.

    Args:
        classes: Of the first step, with known labels.
        selection: Of the second step; `None` where there was none.
    """

    classes: Fit
    selection: Fit | None

    def __str__(self) -> str:
        second = "none: labels are known at inference" if self.selection is None else str(self.selection)
        return f"classes: {self.classes}\nselection: {second}"


def fit_two_steps(
    model: BayesianModel,
    guide: nn.Module,
    data: Data,
    *,
    selection: nn.Module | Mapping[str, nn.Module] | None,
    epochs: tuple[int, int],
    labels: GivenLabels = "known",
    train_network: bool = True,
    checkpoint: str | Path | None = None,
    first: Mapping[str, Any] | None = None,
    second: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TwoStepFit:
    r"""Train conditional layers with known labels, then, with them frozen, a selection for unknown ones.

    In the first step `fit(labels=...)` trains everything that is trainable; each example runs through the layer of
    its class. In the second one the conditional layers are fixed, the selection is put into them, and it is trained
    with the rest of the network, which then has to live with it, or alone with `train_network=False`. What was
    trainable before is trainable afterwards.

    Without a selection there is no second step: where labels are known at inference, too, the first one serves.

    Args:
        model: The model, whose network has `layers.Conditional` layers.
        guide: Its guide.
        data: Training data, whose targets are the classes, or tell them (`labels`).
        selection: `SoftSelection`, `GatedSelection` or another module for the only conditional layer, or for each of
            them by name.
        epochs: Number of epochs of the first and of the second step.
        labels: What the first step takes for the classes: `"known"`, the targets; or a function of the targets, such as
            `layers.PixelClasses` where they are boxes or masks.
        train_network: Whether the second step trains the other layers of the network, too.
        checkpoint: Path from which those of both steps are named, `name.classes.safetensors` and
            `name.selection.safetensors`. With `resume=True` among the settings, a run goes on from them, in whichever
            step it was interrupted.
        first: Settings of `fit` for the first step only.
        second: Settings of `fit` for the second step only.
        **settings: Settings of `fit` for both.

    Returns:
        History and outcome of both steps.

    Raises:
        ValueError: The network has no conditional layer, or selections are missing or have no layer.

    Example:
        >>> import torch, pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(60, 2); y = (x[:, 0] > 0).long()
        >>> layer = ps.layers.Conditional(lambda: ps.layers.StochasticLinear(2, 2), 2, where="output")
        >>> model = BayesianModel(nn.Sequential(layer, nn.Linear(2, 2)), num_data=60,
        ...                       likelihood=ps.likelihoods.Categorical())
        >>> result = fit_two_steps(model, ps.guides.Additive(model), (x, y), epochs=(5, 20), lr=0.05, seed=0,
        ...                        selection=ps.layers.GatedSelection(nn.Linear(2, 2)), progress=False, compile=False)
        >>> result.selection.history["elbo"][-1] > result.selection.history["elbo"][0]
        True
    """
    layers = conditional_layers(model.net)
    if not layers:
        raise ValueError(
            f"fit_two_steps: {type(model.net).__name__} has no Conditional layer{see('how-to/conditional_layers')}"
        )
    if not isinstance(epochs, (tuple, list)) or len(epochs) != 2:
        raise ValueError(f"fit_two_steps epochs: expected the epochs of both steps, such as (10, 10), got {epochs!r}")
    if labels is None or "labels" in {**(first or {}), **(second or {})}:
        raise TypeError(
            "fit_two_steps labels: labels are known in the first step and unknown in the second one; leave it out, or "
            "give a function of the targets that makes them, as labels="
        )
    selections = _by_layer(selection, layers)
    paths: list[Path | None] = [None, None]
    if checkpoint is not None:
        path = Path(checkpoint)
        base = path.name.removesuffix(".safetensors")
        paths = [path.with_name(f"{base}.{step}.safetensors") for step in ("classes", "selection")]
    if selections:
        _try_selections(model, guide, data, layers, selections, {**settings, **(second or {})})
    for name, layer in layers.items():
        if layer.selection is not selections.get(name):
            layer.selection = None
    one = fit(model, guide, data, epochs=epochs[0], labels=labels, checkpoint=paths[0], **{**settings, **(first or {})})
    if not selections:
        return TwoStepFit(one, None)
    device = next((p.device for p in model.parameters()), None)
    for name, layer in layers.items():
        layer.selection = selections[name].to(device)
    with _only_selections_train(model, guide, layers, train_network):
        two = fit(model, guide, data, epochs=epochs[1], checkpoint=paths[1], **{**settings, **(second or {})})
    return TwoStepFit(one, two)


def _try_selections(
    model: BayesianModel,
    guide: nn.Module,
    data: Data,
    layers: Mapping[str, Conditional],
    selections: Mapping[str, nn.Module],
    settings: Mapping[str, Any],
) -> None:
    """Run the first batch through the selections, so that one that does not fit is found before the first step."""
    device = move_modules(model, guide, local_device(settings.get("device")))
    batches = training_batches(
        model,
        data,
        settings.get("batch_size", 100),
        shuffle=settings.get("shuffle", True),
        steps_per_epoch=settings.get("steps_per_epoch"),
    )
    before = {name: layer.selection for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.selection = selections[name].to(device)
        with warnings.catch_warnings(), pyro.get_param_store().scope():
            warnings.simplefilter("ignore")  # fit itself warns
            check_data(model, guide, batches, device)
    except Exception as error:
        error.add_note("fit_two_steps: the selection was tried on the first batch; nothing has been trained yet.")
        raise
    finally:
        for name, layer in layers.items():
            layer.selection = before[name]


def _by_layer(selection: Any, layers: Mapping[str, Conditional]) -> dict[str, nn.Module]:
    if selection is None:
        return {}
    if not isinstance(selection, (nn.Module, Mapping)) or not all(
        isinstance(part, nn.Module) for part in (selection.values() if isinstance(selection, Mapping) else ())
    ):
        raise TypeError(
            "fit_two_steps selection: expected a module, such as SoftSelection or GatedSelection, or a dictionary of "
            f"these, got {type(selection).__name__}; where labels are known at inference, give selection=None"
            f"{see('how-to/conditional_layers')}"
        )
    if isinstance(selection, nn.Module):
        if len(layers) > 1:
            raise ValueError(
                f"fit_two_steps selection: the network has the conditional layers {name_list(layers)}; give a "
                "dictionary with a selection for each"
            )
        return {name: selection for name in layers}
    if selection.keys() != layers.keys():
        raise ValueError(
            f"fit_two_steps selection: expected one for each of {name_list(layers)}, got {name_list(selection)}"
        )
    return dict(selection)


@contextlib.contextmanager
def _only_selections_train(
    model: BayesianModel, guide: Any, layers: Mapping[str, Conditional], train_network: bool
) -> Iterator[None]:
    """Fix conditional layers, their weights' guide, and with `train_network=False` everything but the selections."""
    free = {id(p) for layer in layers.values() if layer.selection is not None for p in layer.selection.parameters()}
    prefixes = tuple("" if name == "network" else f"{name}." for name in layers)
    normalizations = [part for layer in layers.values() for part in layer.classes.modules()]
    parameters = [] if train_network else [*model.parameters(), *guide.parameters()]
    parameters += [p for layer in layers.values() for p in layer.parameters()]
    parameters += parameters_below(model, guide, prefixes)
    with fixed(p for p in parameters if id(p) not in free), keeping_statistics(normalizations):
        yield
