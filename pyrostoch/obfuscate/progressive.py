"""Progressive training: a network learns from few clean examples and many that its own layer obfuscated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from pyrostoch._checks import check_choice
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch.infer.known_labels import GivenLabels, conditional_layers, known_labels
from pyrostoch.model import BayesianModel
from pyrostoch.obfuscate.bypass import LAYER, bypassed, check_prepended, only_the_layer
from pyrostoch.obfuscate.client import Client
from pyrostoch.obfuscate.examples import MixedExamples, tensors_of
from pyrostoch.obfuscate.manifest import check_manifest, fingerprint
from pyrostoch.obfuscate.progressive_settings import (
    Score,
    check_fit_settings,
    counts_of,
    epochs_of,
    examples_of,
    measured_by,
    order_of,
)
from pyrostoch.obfuscate.screening import Screening
from pyrostoch.obfuscate.stages import Progressive, ProgressiveStage
from pyrostoch.prediction.noise import activation_noise
from pyrostoch.prediction.readouts import batches_for
from pyrostoch.protocols import Data
from pyrostoch.training.fit import fit
from pyrostoch.training.fixed import fixed, parameters_below
from pyrostoch.training.two_steps import fit_two_steps

__all__ = ["progressive"]

_NOISE_EXAMPLES = 1000


def progressive(
    model: BayesianModel,
    guide: nn.Module,
    data: Data,
    *,
    # What.
    selection: nn.Module | None,
    shares: Sequence[float] = (0.05, 0.10, 0.15),
    order: Tensor | None = None,
    labels: GivenLabels = "known",
    obfuscate_by: Literal["labels", "selection"] = "labels",
    screening: Screening | None = Screening(),  # noqa: B008 - it is frozen
    # How long.
    epochs: Mapping[str, int],
    validation: Data | None = None,
    score: Score | None = None,
    wanted: float | None = None,
    # How.
    from_scratch: bool = False,
    steps: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Progressive:
    r"""Train a network on a growing clean part of the data, and on the rest as its own layer obfuscates it.

    With a network N, a stochastic layer S in front of it, and the first share of the examples clean, each stage has
    four steps:

    1. `"clean"`: N is trained on the clean examples, without S.
    2. `"classes"` and `"selection"`: S is trained in front of the fixed N on the clean examples, as in `fit_two_steps`:
       with known labels, then a selection for unknown ones.
    3. The rest of the examples is obfuscated by S, once each in a stage; their clean inputs are not used any more.
    4. `"mixed"`: N is trained further on both, without S, while parts of the obfuscated examples are hidden at random
       in every iteration.

    The next stage has a larger share of clean examples and goes on with N and S, until the score that is wanted is
    reached or the shares are used up.

    Args:
        model: A model of `layers.embody.prepend(N, S)`, where S is a `layers.Conditional` of the input itself. Its
            `num_data` is set to the number of examples of each step, and is what it was behind the training.
        guide: Its guide.
        data: All training data: tensors `(x, y)`, or a map-style data set of such pairs.
        selection: The selection for unknown labels, as in `fit_two_steps`; `None` where labels are known at inference.
        shares: The clean share of the data in each stage, rising, above 0 and up to 1.
        order: The order in which examples become clean, a permutation of their numbers or its first part, as active
            learning gives it; random by default.
        labels: What tells classes; see `fit_two_steps`.
        obfuscate_by: What selects the classes where the rest is obfuscated: their `"labels"`, which their owners know,
            or the trained `"selection"`.
        screening: What is hidden of obfuscated examples; `None` for nothing.
        epochs: Number of epochs of each step: `{"clean": 10, "classes": 5, "selection": 5, "mixed": 10}`.
        validation: Clean held-out data for the default score, the accuracy by the mean.
        score: Another score, a function of `(model, guide)` that returns a number, on data that it knows; a larger one
            is better. The network is without S while it runs.
        wanted: The score with which the training ends.
        from_scratch: Start each stage from the parameters of the beginning, in place of those of the last stage.
        steps: Settings of `fit` for single steps, by their names, such as `{"classes": {"noise_weight": 0.1}}`.
        seed: Seed of everything that is random.
        checkpoint: A folder for the checkpoints of all steps of all stages.
        resume: Go on from them: an interrupted training comes to the same result. Settings and data in memory must be
            the same; there may be more or fewer shares.
        **settings: Settings of `fit` for all steps.

    Returns:
        Scores of every stage.

    Raises:
        TypeError: The network has no stochastic layer in front of it, or data cannot be picked by number.
        ValueError: A setting does not fit.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 2); y = (x[:, 0] > 0).long()
        >>> layer = ps.layers.Conditional(lambda: ps.layers.StochasticAdditive(2, scale=0.3), 2, where="output")
        >>> model = BayesianModel(ps.layers.embody.prepend(nn.Linear(2, 2), layer), num_data=200,
        ...                       likelihood=ps.likelihoods.Categorical())
        >>> result = progressive(model, ps.guides.Additive(model), (x, y), shares=(0.1, 0.2), validation=(x, y),
        ...                      selection=ps.layers.GatedSelection(nn.Linear(2, 2)), screening=Screening(patch=1),
        ...                      epochs={"clean": 20, "classes": 5, "selection": 5, "mixed": 5},
        ...                      lr=0.05, batch_size=20, progress=False, compile=False)
        >>> [(stage.clean, stage.obfuscated) for stage in result.stages], result.stages[-1].mixed > 0.8
        ([(20, 180), (40, 160)], True)
    """
    net = check_prepended(model, "progressive")
    if not conditional_layers(net.stochastic):
        raise TypeError(
            f"progressive: expected a layers.Conditional in front of the network, got {type(net.stochastic).__name__}"
            f"{see('how-to/progressive_training')}"
        )
    check_choice("progressive obfuscate_by", obfuscate_by, ["labels", "selection"])
    if obfuscate_by == "selection" and selection is None:
        raise ValueError("progressive obfuscate_by='selection': there is none; give selection=, or use 'labels'")
    pairs, lengths = examples_of(data, screening), epochs_of(epochs, selection)
    own = check_fit_settings("progressive", settings, steps)
    counts = counts_of(shares, len(pairs))
    chosen = order_of(order, len(pairs), counts[-1], seed)
    measure = measured_by(score, validation)
    folder = None if checkpoint is None else Path(checkpoint)
    modules = [module for module in (model, guide, selection) if module is not None]
    start = [(module, {name: value.clone() for name, value in module.state_dict().items()}) for module in modules]
    if resume and folder is None:
        raise ValueError("progressive resume=True needs the folder to resume from: give checkpoint=")
    if folder is not None:
        check_manifest(
            folder,
            resume=resume,
            shares=[float(share) for share in shares],
            screening=screening,
            obfuscate_by=obfuscate_by,
            from_scratch=from_scratch,
            order=fingerprint(chosen),
            data=[len(pairs), fingerprint(*tensors_of(pairs))],
            start=fingerprint(*(value for _, state in start for value in state.values())) if from_scratch else None,
        )
    training = _Training(model, guide, folder, {"seed": seed, "resume": resume, **settings}, lengths, own)
    stages: list[ProgressiveStage] = []
    for share, count in zip(shares, counts, strict=True):
        began = time.perf_counter()
        if from_scratch:
            for module, state in start:
                module.load_state_dict(state, strict=False)  # the selection has joined the model since
        clean, rest = Subset(pairs, chosen[:count].tolist()), Subset(pairs, chosen[count:].tolist())
        name = f"{100 * share:g}"
        with bypassed(model):
            with fixed(parameters_below(model, guide, LAYER)):
                training.fit(name, "clean", clean)
            first = measure(model, guide)
        noise, second = None, first
        if len(rest):
            with only_the_layer(model, guide):
                training.two_steps(name, clean, selection, labels)
            known = labels if obfuscate_by == "labels" else None
            some = Subset(clean, range(min(len(clean), _NOISE_EXAMPLES)))
            with training.sized(len(some)):
                noise = activation_noise(model, guide, some, labels=known, seed=seed, batch_size=100).rows[0].ratio
            sent, targets = _obfuscated(model, guide, rest, known, mixed_seed(seed, count))
            mixed = MixedExamples(clean, sent, targets, screening)
            with bypassed(model):
                with fixed(parameters_below(model, guide, LAYER)):
                    training.fit(name, "mixed", mixed)
                second = measure(model, guide)
        seconds = time.perf_counter() - began
        stages.append(ProgressiveStage(float(share), len(clean), len(rest), first, second, noise, seconds))
        if wanted is not None and second >= wanted:
            break
    reached = wanted is not None and stages[-1].mixed >= wanted
    return Progressive(tuple(stages), obfuscate_by, screening, reached)


class _Training:
    """The steps of every stage, each with a checkpoint of its own."""

    def __init__(
        self,
        model: BayesianModel,
        guide: nn.Module,
        folder: Path | None,
        settings: Mapping[str, Any],
        epochs: Mapping[str, int],
        own: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._model, self._guide, self._folder = model, guide, folder
        self._settings, self._epochs, self._own = dict(settings), epochs, own
        if folder is None:
            self._settings["resume"] = False

    def fit(self, stage: str, step: str, data: Any) -> None:
        """Train what is trainable on some examples."""
        settings = {**self._settings, **self._own.get(step, {}), "checkpoint": self._path(stage, step)}
        with self.sized(len(data)):
            fit(self._model, self._guide, data, epochs=self._epochs[step], **settings)

    def two_steps(self, stage: str, data: Any, selection: nn.Module | None, labels: GivenLabels) -> None:
        """Train the layer and its selection."""
        with self.sized(len(data)):
            fit_two_steps(
                self._model,
                self._guide,
                data,
                selection=selection,
                epochs=(self._epochs["classes"], self._epochs.get("selection", 1)),
                labels=labels,
                train_network=False,
                checkpoint=self._path(stage, "layer"),
                first=self._own.get("classes", {}),
                second=self._own.get("selection", {}),
                **self._settings,
            )

    def _path(self, stage: str, step: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{stage}.{step}.safetensors"

    @contextlib.contextmanager
    def sized(self, count: int) -> Iterator[None]:
        """Within the block the data set has so many examples."""
        before, self._model.num_data = self._model.num_data, count
        try:
            yield
        finally:
            self._model.num_data = before


def _obfuscated(
    model: BayesianModel, guide: nn.Module, rest: Any, labels: GivenLabels, seed: int
) -> tuple[Tensor, list[Any]]:
    """The rest of the examples as the layer sends them, a draw each, and their targets."""
    client = Client(model, guide, at="stochastic")
    items, sent = [rest[index] for index in range(len(rest))], list[Tensor]()
    with known_labels(model, labels):
        batches = batches_for(model, Subset(items, range(len(items))), 500)  # type: ignore[arg-type]
        for number, (x, _) in enumerate(batches.epoch(None, 0)):
            sent += client.send(x, seed=mixed_seed(seed, number), device=client.device)
    return torch.cat([part.cpu() for part in sent]), [y for _, y in items]
