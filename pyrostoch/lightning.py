"""Model and guide as a LightningModule, for training by Lightning's Trainer, on clusters for example.

Lightning is an optional extra, `pip install pyrostoch[lightning]`; importing pyrostoch does not import it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from pyrostoch._checks import name_list
from pyrostoch._seeds import forked, mixed_seed
from pyrostoch.infer.elbo import ELBO, Estimator
from pyrostoch.infer.items import reader_of
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.compare import compare
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import parse_mode
from pyrostoch.prediction.scores import NothingToScoreError
from pyrostoch.training.checks import check_model_and_guide, check_param_store
from pyrostoch.training.optimizer import make_optimizer
from pyrostoch.training.schedule import ScheduleName, kl_weight, rate_factor
from pyrostoch.training.settings import Settings
from pyrostoch.training.state import parameter_names

try:
    from lightning.pytorch import LightningModule
except ModuleNotFoundError as error:
    raise ImportError(
        f"pyrostoch.lightning needs Lightning, which is not installed ({error}): pip install pyrostoch[lightning]"
    ) from error

__all__ = ["SVIModule"]

# Part of the seed of each step, so that held-out data never have the noise of a training step.
_TRAINING, _HELD_OUT = 0, 1


def _pair(batch: Sequence[Any]) -> tuple[Any, Any]:
    """Inputs and targets of a batch."""
    *inputs, y = batch
    return (inputs[0] if len(inputs) == 1 else tuple(inputs)), y


class SVIModule(LightningModule):
    r"""A model and its guide, trained by Lightning's Trainer as `fit` trains them.

    Each step minimizes $-\mathrm{ELBO}$ of the whole data set, in nats, estimated from a batch. On R devices the
    Trainer averages the gradients of R such losses, each with its own batch $B_r$ and noise:

    $$ \frac1R \sum_{r=1}^R \Bigl[-\frac{N}{B}\sum_{i \in B_r} \log p(y_i \mid x_i, w_r) + \beta\,\mathrm{KL}\Bigr] =
    -\frac{N}{RB}\sum_r \sum_{i \in B_r} \log p(y_i \mid x_i, w_r) + \beta\,\mathrm{KL}, $$

    which is the loss of the joint batch of RB examples, with its KL counted once: `num_data` and `lr` have the same
    meaning as on one device, and `lr` should not be divided by R.

    The arguments say how to train, as those of `fit` do (`estimator` to `kl_warmup`), how to predict (`mode`), and how
    to repeat the run (`seed`). The other arguments of `fit` are arguments of the Trainer: `max_epochs`,
    `gradient_clip_val`, `accelerator`, `devices`, `num_nodes`, `precision="bf16-mixed"`, callbacks for checkpoints and
    early stopping (`monitor="val_nll"`), loggers. Batches are `(x, y)`, or `(x1, x2, ..., y)` for several inputs. The
    module logs:

    | name | content | when |
    | --- | --- | --- |
    | `loss`, `kl_weight` | the loss on this device, and its weight of the KL | each step |
    | `elbo`, `data`, `kl`, `penalty` | the terms, KL at weight 1, mean over examples and devices | each epoch |
    | `val_nll`, `val_accuracy` | mean negative log predictive density; fraction of correct labels | each validation |
    | `test_nll`, `test_accuracy` | the same | each test |

    The noise of a step depends on the seed, the device's rank, the epoch and the batch, so that a run resumed from one
    of the Trainer's checkpoints has the same noise as an uninterrupted one. The order of the examples is the loader's
    own: under DDP Lightning's sampler repeats it; on one device, give the loader a sampler that follows `set_epoch`,
    such as `DistributedSampler(data, num_replicas=1, rank=0)`. The noise on held-out data is the same at every
    validation.

    Args:
        model: The model.
        guide: Its guide: one of `pyrostoch.guides`, or a module that is a Pyro guide and has its parameters already
            (call an autoguide of Pyro once before).
        estimator: How random weights are treated; see `ELBO`.
        num_particles: Number of independent draws averaged in a step.
        lr: Learning rate at the start.
        lr_alpha: Learning rate of the guide's logarithms of ratios (log alpha, logits of levels); by default `lr`.
        schedule: How the learning rate falls over the steps of the Trainer's run: `"linear"` or `"cosine"` to 0, or
            `"constant"`.
        kl_warmup: Number of epochs over which the weight of the KL rises linearly from 0 to 1; or a pair of epochs
            between which it rises.
        rate_weight: Weight of the rate of random activations with a prior; see `ELBO`.
        mode: Mode of prediction in validation, test and prediction: `"mean"`, `"mc"`, `"mc:K"`, ...; see `predict`.
        seed: Seed of the training noise; by default drawn from torch's generator.

    Raises:
        TypeError: Model or guide have a wrong type.
        ValueError: A setting is out of range; the message names it. While the Trainer runs: the data are not `num_data`
            examples, parameters have half precision or were made after the optimizer, or the length of the run, which
            the schedule needs, is unknown.

    Example:
        >>> import pyrostoch as ps
        >>> from torch.utils.data import TensorDataset
        >>> model = BayesianModel(nn.Linear(1, 1), prior=ps.priors.Normal(),
        ...                       likelihood=ps.likelihoods.Gaussian(0.1), num_data=64)
        >>> module = SVIModule(model, ps.guides.Additive(model), lr=0.1, kl_warmup=2.0)
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> loader = DataLoader(TensorDataset(x, 2 * x), batch_size=32, shuffle=True)
        >>> # Trainer(max_epochs=20, accelerator="auto", precision="bf16-mixed").fit(module, loader)
        >>> module.predict_step(next(iter(loader)), 0)["mean"].shape
        torch.Size([32, 1])

    References:
        Graves, "Practical variational inference for neural networks", 2011; Li et al., "PyTorch distributed:
        experiences on accelerating data parallel training", 2020, for the mean over devices.
    """

    def __init__(
        self,
        model: BayesianModel,
        guide: nn.Module,
        *,
        # How.
        estimator: Estimator | str = "local",
        num_particles: int = 1,
        lr: float = 1e-3,
        lr_alpha: float | None = None,
        schedule: ScheduleName = "linear",
        kl_warmup: float | tuple[float, float] = 0.0,
        rate_weight: float = 1.0,
        # Prediction.
        mode: str = "mc:20",
        # Repeating the run.
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model", "guide"])
        # The Trainer decides about the number of epochs.
        self._settings = Settings(
            epochs=1,
            estimator=estimator,
            num_particles=num_particles,
            lr=lr,
            lr_alpha=lr_alpha,
            schedule=schedule,
            kl_warmup=kl_warmup,
            rate_weight=rate_weight,
            seed=seed,
        )
        check_model_and_guide(model, guide)
        parse_mode(mode)
        self.model, self.guide = model, guide
        self._mode = mode
        self._elbo = ELBO(estimator, rate_weight=rate_weight)
        self._seed = int(torch.randint(2**31, ())) if seed is None else seed
        self._is_first_step = True

    def configure_optimizers(self) -> Any:
        """Adam, with the logarithms of alpha as a group with its own learning rate, and the schedule of the rates."""
        settings = self._settings
        names = parameter_names(self.model, self.guide)
        if not names:
            raise ValueError(
                "SVIModule: nothing to train: neither the guide nor the model has a parameter with requires_grad=True; "
                "an autoguide of Pyro has none before it is called once, guide(x, y)"
            )
        optimizer = make_optimizer(self.guide, names, settings)
        steps = self._number_of_steps() if settings.schedule != "constant" else 1
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(settings.schedule, min(step, steps), steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _number_of_steps(self) -> int:
        """Number of optimizer steps in the Trainer's run."""
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps) or steps < 1:
            raise ValueError(
                f"schedule={self._settings.schedule!r} needs a run of known length: give Trainer(max_steps=...), or "
                "max_epochs and a loader that has a length, or use schedule='constant'"
            )
        return int(steps)

    def on_train_start(self) -> None:
        """Check the data and the precision of the parameters, and give all devices the same seed."""
        self._check_data()
        names = parameter_names(self.model, self.guide)
        half = [name for parameter, name in names.items() if parameter.dtype in (torch.bfloat16, torch.float16)]
        if half:
            raise ValueError(
                f"Trainer(precision={self.trainer.precision!r}): the KL of {name_list(half)} would be summed with 8 to "
                "11 bits; use precision='bf16-mixed', which keeps the dtype of parameters and KL"
            )
        if not math.isfinite(self.trainer.num_training_batches) and self._settings.kl_warmup != 0.0:
            raise ValueError(
                f"kl_warmup={self._settings.kl_warmup} counts epochs, but the loader has no length; "
                "give the Trainer limit_train_batches=..., or kl_warmup=0.0"
            )
        self._seed = self.trainer.strategy.broadcast(self._seed)
        self._is_first_step = True

    def _check_data(self) -> None:
        loader = self.trainer.train_dataloader
        if not isinstance(loader, DataLoader):
            return
        # The sampler's length is the number of examples, since it may leave some out. Not so for a DistributedSampler,
        # which divides its data set among the devices, nor without a batch_size, where the loader does not batch by it.
        counted: Any = loader.dataset if loader.batch_size is None else loader.sampler
        counted = counted.dataset if isinstance(counted, DistributedSampler) else counted
        try:
            count = len(counted)
        except TypeError:
            return
        if count != self.model.num_data:
            raise ValueError(
                f"data: expected num_data={self.model.num_data} examples, as the model was built for, got {count}; "
                f"build it with num_data={count}, or give all of its training data"
            )

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """The loss of one batch: -ELBO of the whole data set with the KL weighted, in nats.

        Args:
            batch: `(x, y)`, or `(x1, x2, ..., y)`.
            batch_idx: Number of the batch in the epoch.

        Returns:
            The loss, differentiable.
        """
        x, y = reader_of(self.model).split(batch)
        weight = self._kl_weight(batch_idx)
        total: Any = [0.0] * 5
        seed = mixed_seed(self._seed, _TRAINING, self.global_rank, self.trainer.current_epoch, batch_idx)
        # Pyro's autoguides look in the parameter store first, which may hold another guide's parameters by the same
        # names: the store is empty during the step. Pyro's validation waits for the device: only the first step has it.
        with pyro.get_param_store().scope(), pyro.validation_enabled(self._is_first_step), forked(self.device, seed):
            for _ in range(self._settings.num_particles):
                terms = self._elbo.terms(self.model, self.guide, x, y)
                loss = terms.loss(weight, self._elbo.rate_weight)
                values = (loss, terms.data, terms.kl, terms.rate, terms.penalty)
                total = [before + value for before, value in zip(total, values, strict=True)]
            if self._is_first_step:
                self._check_trained()
        self._is_first_step = False
        loss, data, kl, rate, penalty = (torch.as_tensor(value / self._settings.num_particles) for value in total)
        by_step = {"loss": self._as_tensor(loss), "kl_weight": self._as_tensor(weight)}
        by_epoch = {"elbo": data - kl - rate - penalty, "data": data, "kl": kl, "rate": rate, "penalty": penalty}
        means = {name: self._as_tensor(value) for name, value in by_epoch.items()}
        self.log_dict(by_step, on_step=True, on_epoch=False)
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))
        return loss

    def _kl_weight(self, batch_idx: int) -> float:
        warmup = self._settings.kl_warmup
        if warmup == 0.0:
            return 1.0
        steps_per_epoch = int(self.trainer.num_training_batches)
        return kl_weight(self.trainer.current_epoch * steps_per_epoch + batch_idx, steps_per_epoch, warmup)

    def _check_trained(self) -> None:
        """Raise an error for trainable parameters that no optimizer has: they would silently keep their values."""
        check_param_store(self.model, self.guide)
        optimized = {
            id(p) for optimizer in self.trainer.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        missed = [name for p, name in parameter_names(self.model, self.guide).items() if id(p) not in optimized]
        if missed:
            raise ValueError(
                f"SVIModule: parameter(s) {name_list(missed)} are not in the optimizer and would not be trained; were "
                "they made by the first call of an autoguide? Call guide(x, y) once before the SVIModule is made"
            )

    def _as_tensor(self, value: Tensor | float) -> Tensor:
        # Made on the device, since a copy from the host would wait for it.
        return value.detach() if isinstance(value, Tensor) else torch.full((), value, device=self.device)

    def validation_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log `val_nll` and, for classes, `val_accuracy` of a batch; for several heads `val_digit_nll` and so on, too.

        Args:
            batch: `(x, y)`, or `(x1, x2, ..., y)`.
            batch_idx: Number of the batch.
            dataloader_idx: Number of the loader.
        """
        self._score("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log `test_nll` and, for classes, `test_accuracy` of a batch.

        Args:
            batch: `(x, y)`, or `(x1, x2, ..., y)`.
            batch_idx: Number of the batch.
            dataloader_idx: Number of the loader.
        """
        self._score("test", batch, batch_idx, dataloader_idx)

    def _score(self, stage: str, batch: Sequence[Any], batch_idx: int, dataloader_idx: int) -> None:
        data: Any = batch if isinstance(batch, Mapping) else _pair(batch)
        # The noise is the same at every validation, so that epochs can be compared.
        with forked(self.device, mixed_seed(0, _HELD_OUT, self.global_rank, dataloader_idx, batch_idx)):
            try:
                scores = compare(self.model, self.guide, data, modes=[self._mode], batch_size=sys.maxsize)
            except NothingToScoreError:  # every target of the batch is missing
                return
        for head, found in {"": scores, **scores.heads}.items():
            row, name = found.rows[0], f"{stage}_{head}_" if head else f"{stage}_"
            values = {"nll": row.nll, "accuracy": row.accuracy}
            named = {f"{name}{key}": value for key, value in values.items() if value is not None}
            self.log_dict(named, on_epoch=True, sync_dist=True, batch_size=found.num_examples, prog_bar=True)

    def predict_step(self, batch: Tensor | Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The prediction for a batch, as a dictionary, since the Trainer cannot move the tensors of a `Prediction`.

        Args:
            batch: `(x, y)` as in training, whose targets are ignored; or the inputs `x`, as such or in a list of one.
            batch_idx: Number of the batch.
            dataloader_idx: Number of the loader.

        Returns:
            The tensors of a `Prediction` by name: `total`, `aleatoric`, `epistemic`, and `log_probs`, or `mean` and
            `variance`; of several heads under names such as `digit_log_probs`.
        """
        found = predict(self.model, self.guide, reader_of(self.model).inputs(batch), mode=self._mode)
        parts = {"": found} if found.heads is None else {f"{head}_": part for head, part in found.heads.items()}
        return {
            f"{prefix}{name}": value
            for prefix, part in parts.items()
            for name, value in vars(part).items()
            if isinstance(value, Tensor)
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the seed of the noise in the checkpoint.

        Args:
            checkpoint: The checkpoint.
        """
        checkpoint["pyrostoch_seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the seed of the noise from the checkpoint.

        Args:
            checkpoint: The checkpoint.
        """
        self._seed = checkpoint["pyrostoch_seed"]
