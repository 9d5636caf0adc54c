"""Training by stochastic variational inference, with checkpoints from which an interrupted run can be resumed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyro
import torch
from torch import nn

from pyrostoch._descriptions import describe_function
from pyrostoch._seeds import forked
from pyrostoch.guides import Ensemble
from pyrostoch.guides.collecting import Collecting
from pyrostoch.infer.batches import Batches
from pyrostoch.infer.compile import worth_compiling
from pyrostoch.infer.data_sets import move_to_device
from pyrostoch.infer.elbo import Estimator
from pyrostoch.infer.known_labels import GivenLabels, known_labels, warn_of_unseen_classes
from pyrostoch.infer.parallel import join_process_group, local_device
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.readouts import batches_for
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import Data
from pyrostoch.safefile import only_writer_of, read_file
from pyrostoch.training.batch_checks import check_batches, training_batches
from pyrostoch.training.checks import (
    check_all_batches,
    check_data,
    check_likelihood_function,
    check_model_and_guide,
    check_param_store,
    check_rate_weight,
    keep_fixed_statistics,
    move_modules,
)
from pyrostoch.training.history import Fit
from pyrostoch.training.members import MembersTrainer, check_several
from pyrostoch.training.optimizer import OptimizerFactory
from pyrostoch.training.resume import read_training
from pyrostoch.training.run import Callback, Run
from pyrostoch.training.schedule import Schedule
from pyrostoch.training.settings import OWN, Settings
from pyrostoch.training.sgmcmc import SGHMC, Dynamics, check_sampler
from pyrostoch.training.statistics import check_buffers, training_statistics
from pyrostoch.training.trainer import Trainer

__all__ = ["fit"]


def fit(
    model: BayesianModel,
    guide: nn.Module,
    data: Data,
    *,
    # What.
    validation: Data | None = None,
    # How long.
    epochs: int,
    batch_size: int = 100,
    shuffle: bool = True,
    steps_per_epoch: int | None = None,
    patience: int | None = None,
    # How.
    estimator: Estimator | str = "local",
    num_particles: int = 1,
    accumulate: int = 1,
    lr: float = 1e-3,
    lr_alpha: float | None = None,
    schedule: Schedule | None = None,
    optimizer: OptimizerFactory | None = None,
    sampler: SGHMC | None = None,
    kl_warmup: float | tuple[float, float] = 0.0,
    temperature: float = 1.0,
    rate_weight: float = 1.0,
    noise_weight: float = 0.0,
    clip: float | None = None,
    labels: GivenLabels = None,
    # Where.
    device: str | torch.device | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    compile: bool | Literal["auto"] = "auto",
    # Repeating, saving and following the run.
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    callback: Callback | None = None,
    progress: bool = True,
) -> Fit:
    r"""Train a guide, and the parameters of the model that have no prior, by maximizing the ELBO.

    The network is in training mode during the run, and every submodule is put back into its own mode afterwards; batch
    normalization whose parameters the user has fixed (`requires_grad=False`) keeps its running statistics. The
    data are checked once, before the first step if they are in memory, else during the first epoch; Pyro's validation
    is off during the steps, which never wait for the device. With `seed`, a run on a CPU repeats bit for bit, and the
    caller's random state is restored afterwards. With `checkpoint`, the state of the run is saved at the end of every
    epoch; with `resume=True`, an interrupted run continues from there to the same result.

    The arguments come in groups: what is trained on which data (`model` to `validation`), how long (`epochs` to
    `patience`), how (`estimator` to `clip`), where (`device` to `compile`), and how the run is repeated, saved and
    followed (`seed` to `progress`).

    Args:
        model: The model.
        guide: Its guide: one of `pyrostoch.guides`, or any module that is a Pyro guide.
        data: Training data: `(x, y)` tensors on any device, where `x` may be a tuple of tensors; a map-style `Dataset`;
            or a `DataLoader`, whose batches and order are kept.
        validation: Held-out data, as `data`; their predictive loss is recorded each epoch.
        epochs: Number of passes through the data.
        batch_size: Number of examples in a step; the loss of a smaller last batch is scaled correctly.
        shuffle: Whether each epoch has a new random order; a `DataLoader` has its own. A single batch with all examples
            keeps their order. Where examples meet in the network, as in a graph, give that, or `shuffle=False`.
        steps_per_epoch: Number of batches in an epoch of a stream: a `DataLoader` or `IterableDataset` without an end,
            or without a known length. The next epoch goes on where one ended. `num_data` of the model is N.
        patience: Stop after this many epochs without a better loss on the held-out data. At the end, the parameters of
            the epoch with the best loss are restored.
        estimator: How random weights are treated; see `ELBO`.
        num_particles: Number of independent draws averaged in a step.
        accumulate: Number of parts in which a batch runs through the network one after another, to take the memory of
            one part. Their gradients are averaged before the optimizer's step, so that only the noise and the batch
            statistics are those of each part.
        lr: Learning rate at the start.
        lr_alpha: Learning rate of the guide's logarithms of ratios (log alpha, logits of levels); by default `lr`.
        schedule: How the learning rate falls over the steps of the run: `"linear"` (the default) or `"cosine"` to 0,
            `"constant"`, or a function of yours from the fraction of steps already made, from 0 to 1, to the factor of
            the rate.
        optimizer: Makes the optimizer from parameter groups that have learning rates: a class of `torch.optim`, or
            `functools.partial(torch.optim.SGD, momentum=0.9)`; Adam by default.
        sampler: Run a Markov chain in place of an optimizer, whose draws `guides.Samples.chain` keeps.
        kl_warmup: Number of epochs over which the weight of the KL rises linearly from 0 to 1; or a pair of epochs
            between which it rises.
        temperature: T of a cold (below 1) or warm posterior, proportional to $p(y \mid x, w)^{1/T} p(w)$: the weight of
            the KL at the end of its warm-up. Other than 1, the loss is no ELBO, and the result says so.
        rate_weight: Weight of the rate of random activations with a prior; see `ELBO`.
        noise_weight: Weight of the size of the noise of random activations, which is enlarged; see `ELBO`.
        clip: Largest norm of the whole gradient.
        labels: `"known"` hands the targets to `layers.Conditional` as known classes, also for `validation`; a function
            of the targets, such as `layers.PixelClasses`, what it makes of them. By default such layers must combine
            the classes by a selection.
        device: Device to which model and guide are moved; by default they stay where they are.
        precision: `"bf16"` runs network and likelihood under autocast to bfloat16; parameters keep their dtype.
        compile: Whether to compile the step, as `compile_step` does. `"auto"` does so if there is a compiler and the
            run has enough steps to save the time that compiling takes. A resumed run keeps the choice of its start.
        seed: Seed of the noise and of the order of the examples.
        checkpoint: Path of the checkpoint, a safetensors file; its folder is made if it is missing. Without `resume`,
            an existing file is replaced at the end of the first epoch. The run locks it against other runs.
        resume: Continue from the checkpoint if it exists, with the settings with which the run was started. Only with
            `schedule="constant"` may `epochs` be raised, since the other schedules depend on the length of the run.
        callback: Called after each epoch, when its checkpoint has been written, with that epoch's row of the history.
            The network is then in evaluation mode, and random numbers that the callback draws do not change the run.
        progress: Whether to show a progress bar on stderr, with the terms of the ELBO in nats per example.

    Returns:
        History, time and outcome of the run.

    Raises:
        TypeError: Model, guide or data have a wrong type.
        ValueError: A setting or the data do not fit; the message names them.
        CheckpointError: The checkpoint to resume from is damaged, or belongs to another model or run. Model, guide and
            random states are as they were.
        BlockingIOError: Another run is writing this checkpoint; its process is named.
        OSError: The checkpoint cannot be written; an existing file is left as it was.
        NonFiniteLossError: The loss became NaN or infinite; the message names epoch, step and site. Model and guide are
            restored to the end of the last good epoch, which is also what the checkpoint holds.

    Example:
        >>> import pyrostoch as ps
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> model = BayesianModel(nn.Linear(1, 1), prior=ps.priors.Normal(),
        ...                       likelihood=ps.likelihoods.Gaussian(0.1), num_data=64)
        >>> guide = ps.guides.Additive(model)
        >>> result = fit(model, guide, (x, 2 * x), epochs=20, batch_size=32, lr=0.1, seed=0, progress=False)
        >>> result.history["elbo"][-1] > result.history["elbo"][0], result.stopped
        (True, 'finished')

    References:
        Graves, "Practical variational inference for neural networks", 2011; Kingma, Ba, "Adam", 2015; Wenzel et al.,
        "How good is the Bayes posterior in deep neural networks really?", 2020, for cold posteriors.
    """
    if sampler is not None:
        check_sampler(sampler, guide, epochs, optimizer, schedule, patience, clip)
        optimizer = partial(Dynamics, friction=sampler.friction, temperature=temperature)
        schedule = sampler.factor
    schedule = "linear" if schedule is None else schedule
    settings = Settings(
        epochs=epochs,
        patience=patience,
        estimator=estimator,
        num_particles=num_particles,
        accumulate=accumulate,
        lr=lr,
        lr_alpha=lr_alpha,
        schedule=_text(schedule, sampler),
        optimizer=repr(sampler) if sampler else "Adam" if optimizer is None else describe_function(optimizer)[0],
        temperature=temperature,
        kl_warmup=kl_warmup,
        rate_weight=rate_weight,
        noise_weight=noise_weight,
        clip=clip,
        precision=precision,
        seed=seed,
        labels=labels if labels is None or isinstance(labels, str) else describe_function(labels)[0],
    )
    seed = settings.seed
    check_model_and_guide(model, guide)
    check_likelihood_function(model)
    check_several(model, guide, clip, schedule)
    check_rate_weight(model, settings.rate_weight)
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} needs held-out data: give validation=(x, y)")
    if resume and checkpoint is None:
        raise ValueError("resume=True needs the path to resume from: give checkpoint=")
    path = None if checkpoint is None else Path(checkpoint)
    used_device = move_modules(model, guide, local_device(device))
    ranks = join_process_group(used_device)
    with ExitStack() as stack:
        batches, held_out = stack.enter_context(
            _batches(model, data, validation, batch_size, shuffle, labels, steps_per_epoch)
        )
        if path is not None:
            ranks.run_on_first(lambda: stack.enter_context(only_writer_of(path)))
        stack.enter_context(training_mode(True, model, guide))
        for part in guide.modules():
            if isinstance(part, Collecting):
                stack.enter_context(part.collecting())
        keep_fixed_statistics(model.net)
        stack.enter_context(training_statistics(model, guide))
        stack.enter_context(pyro.validation_enabled(False))
        # Pyro's autoguides look in the global parameter store first, which may hold another guide's parameters by the
        # same names: the store is empty during the run.
        stack.enter_context(pyro.get_param_store().scope())
        if seed is not None or ranks.is_distributed:
            stack.enter_context(forked(used_device, seed))
        check_batches(model, batches, shuffle, ranks, settings.accumulate)
        check = check_data(model, guide, batches, used_device)
        check_buffers(model, guide, batches, used_device)
        check_param_store(model, guide)
        if held_out is not None:
            check_all_batches(held_out, used_device, check_data(model, guide, held_out, used_device, "validation"))
            held_out = move_to_device(held_out, used_device)
        batches = move_to_device(batches, used_device)
        exists = ranks.broadcast_from_first(resume and path is not None and path.exists())
        resumed = read_training(path, *read_file(path)) if exists and path is not None else None
        if resumed is not None and batches.is_stream:
            warnings.warn(
                "fit: a stream begins anew where a run is resumed, since its position is not saved; the run does not "
                "end in the same bits as one that was not interrupted",
                UserWarning,
                stacklevel=2,
            )
        if resumed is not None:
            order_seed = resumed.order_seed  # no number is drawn, since the checkpoint may still be refused
        else:
            order_seed = ranks.broadcast_from_first(int(torch.randint(2**31, ())) if seed is None else seed)
        # With several processes, gradients are averaged between the backward pass and the update, which are one program
        # in a compiled step.
        compiled = worth_compiling(compile, guide, len(batches) * epochs, used_device)
        if compile == "auto" and (ranks.is_distributed or labels is not None):  # which classes occur is read
            compiled = False
        if ranks.is_distributed and compiled:
            raise ValueError("compile=True: the step of several processes is not compiled; leave compile out")
        if resumed is not None and compile == "auto" and not ranks.is_distributed:
            compiled = resumed.compiled
        trainer = (MembersTrainer if isinstance(guide, Ensemble) else Trainer)(
            model,
            guide,
            batches,
            settings,
            used_device,
            order_seed,
            compiled=compiled,
            ranks=ranks,
            optimizer=optimizer,
            schedule=schedule,
            sampler=sampler,
        )
        run = Run(trainer, held_out, path)
        if resumed is not None:
            run.resume(resumed)
        result = run.finish(check, callback, progress)
        if labels is not None:
            warn_of_unseen_classes(model.net)
        return replace(result, labels=None if labels is None else "known")


def _text(schedule: Schedule, sampler: SGHMC | None) -> str:
    """The schedule in the settings of a run."""
    if sampler is not None:
        return f"{OWN}that of the sampler"
    return OWN + describe_function(schedule)[0] if callable(schedule) else schedule


@contextmanager
def _batches(
    model: BayesianModel,
    data: Data,
    validation: Data | None,
    batch_size: int,
    shuffle: bool,
    labels: GivenLabels,
    steps_per_epoch: int | None,
) -> Iterator[tuple[Batches, Batches | None]]:
    """The batches of the training data and of the held-out data, with labels as an input where they are known."""
    with known_labels(model, labels):
        yield (
            training_batches(model, data, batch_size, shuffle=shuffle, steps_per_epoch=steps_per_epoch),
            None if validation is None else batches_for(model, validation, batch_size, "validation"),
        )
