"""Training on clusters: model and guide as a LightningModule, for Lightning's Trainer.

Lightning is an optional extra, `pip install pyrostoch[lightning]`; importing pyrostoch does not import it.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from pyrostoch._checks import name_list
from pyrostoch._seeds import forked, mixed_seed
from pyrostoch.infer.batches import pair
from pyrostoch.infer.elbo import ELBO, Estimator
from pyrostoch.metrics.accuracy import correct
from pyrostoch.model import BayesianModel
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.readouts import parse_mode
from pyrostoch.training.checks import check_parties, check_store
from pyrostoch.training.schedule import Schedule, kl_weight, rate_factor
from pyrostoch.training.settings import Settings
from pyrostoch.training.state import make_adam, parameter_names

try:
    from lightning.pytorch import LightningModule
except ModuleNotFoundError as error:
    raise ImportError(
        f"pyrostoch.lightning needs Lightning, which is not installed ({error}): pip install pyrostoch[lightning]"
    ) from error

__all__ = ["SVIModule"]

# The last part of the seed, so that the noise of held-out data is never that of a training step.
_TRAINING, _HELD_OUT = 0, 1


class SVIModule(LightningModule):
    r"""A model and its guide, trained by Lightning's Trainer as `fit` trains them.

    Each step minimizes $-\mathrm{ELBO}$ of the whole data set, in nats, estimated from its batch. On R devices the
    Trainer averages the gradients of R such losses, each with a batch $B_r$ and noise of its own:

    $$ \frac1R \sum_{r=1}^R \Bigl[-\frac{N}{B}\sum_{i \in B_r} \log p(y_i \mid x_i, w_r) + \beta\,\mathrm{KL}\Bigr] =
    -\frac{N}{RB}\sum_r \sum_{i \in B_r} \log p(y_i \mid x_i, w_r) + \beta\,\mathrm{KL}, $$

    which is the loss of the joint batch of RB examples, its KL counted once: `num_data` and `lr` mean what they mean on
    one device, and `lr` is not to be divided by R.

    Where `fit` has an argument, the Trainer has its own: `max_epochs`, `gradient_clip_val`, `accelerator`, `devices`,
    `num_nodes`, `precision="bf16-mixed"`, callbacks for checkpoints and early stopping (`monitor="val_nll"`), loggers.
    Batches are `(x, y)`, or `(x1, x2, ..., y)` for several inputs. It logs:

    | name | what | when |
    | --- | --- | --- |
    | `loss`, `kl_weight` | what this device minimized, and its weight of the KL | by step |
    | `elbo`, `data`, `kl`, `penalty` | the terms, KL at weight 1, mean over examples and devices | by epoch |
    | `val_nll`, `val_accuracy` | negative log predictive density, mean; share of right labels | by validation |
    | `test_nll`, `test_accuracy` | the same | by test |

    The noise of a step is drawn from the seed, the device's rank, the epoch and the batch, so that a run resumed from
    one of the Trainer's checkpoints draws what it would have drawn. The order of the examples is the loader's own:
    under DDP Lightning's sampler repeats it; on one device give the loader a sampler that follows `set_epoch`, such as
    `DistributedSampler(data, num_replicas=1, rank=0)`. Noise on held-out data is the same at every validation.

    Args:
        model: The model.
        guide: Its guide: one of `pyrostoch.guides`, or a module that is a Pyro guide and holds its parameters already
            (run one of Pyro's autoguides once before).
        lr: Learning rate at the start.
        lr_alpha: Learning rate of the guide's logarithms of alpha; by default `lr`.
        estimator: How random weights are treated; see `ELBO`.
        schedule: How the learning rate falls, step by step, over the Trainer's run: `"linear"` or `"cosine"` to 0, or
            `"constant"`.
        kl_warmup: Epochs over which the weight of the KL rises linearly from 0 to 1; a pair of epochs between which it
            does so.
        num_particles: Independent draws averaged in a step.
        mode: How validation, test and prediction predict: `"mean"`, `"mc"` or `"mc:K"`; see `predict`.
        seed: Seed of the training noise; drawn from torch's generator where it is not given.

    Raises:
        TypeError: Model or guide are of no known type.
        ValueError: A setting is out of range; named. While the Trainer runs: the data are not `num_data` examples,
            parameters are of half precision or were made after the optimizer, or the run has no known length for the
            schedule to follow.

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
        lr: float = 1e-3,
        lr_alpha: float | None = None,
        estimator: Estimator = "local",
        schedule: Schedule = "linear",
        kl_warmup: float | tuple[float, float] = 0.0,
        num_particles: int = 1,
        mode: str = "mc:20",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model", "guide"])
        # The number of epochs is the Trainer's.
        self._settings = Settings(
            epochs=1,
            lr=lr,
            lr_alpha=lr_alpha,
            estimator=estimator,
            schedule=schedule,
            kl_warmup=kl_warmup,
            num_particles=num_particles,
            seed=seed,
        )
        check_parties(model, guide)
        parse_mode(mode)
        self.model, self.guide = model, guide
        self._mode = mode
        self._elbo = ELBO(estimator)
        self._seed = int(torch.randint(2**31, ())) if seed is None else seed
        self._look = True

    def configure_optimizers(self) -> Any:
        """Adam over two groups, logarithms of alpha apart, and a learning rate that follows the schedule by step."""
        settings = self._settings
        names = parameter_names(self.model, self.guide)
        if not names:
            raise ValueError(
                "SVIModule: nothing to train: neither the guide nor the model has a parameter with requires_grad=True; "
                "an autoguide of Pyro has none before it is called once, guide(x, y)"
            )
        optimizer = make_adam(self.guide, names, settings)
        steps = self._length() if settings.schedule != "constant" else 1
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(settings.schedule, min(step, steps), steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _length(self) -> int:
        """Number of optimizer's steps of the Trainer's run."""
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps) or steps < 1:
            raise ValueError(
                f"schedule={self._settings.schedule!r} falls over a run of known length: give Trainer(max_steps=...), "
                "or max_epochs and a loader that knows its length, or use schedule='constant'"
            )
        return int(steps)

    def on_train_start(self) -> None:
        """Look at the run once: its data, the parameters' precision, and one seed for all devices."""
        self._check_data()
        names = parameter_names(self.model, self.guide)
        half = [name for parameter, name in names.items() if parameter.dtype in (torch.bfloat16, torch.float16)]
        if half:
            raise ValueError(
                f"Trainer(precision={self.trainer.precision!r}): the KL of {name_list(half)} would be summed with 8 to "
                "11 bits; use precision='bf16-mixed', which keeps parameters and KL as they are"
            )
        if not math.isfinite(self.trainer.num_training_batches) and self._settings.kl_warmup != 0.0:
            raise ValueError(
                f"kl_warmup={self._settings.kl_warmup} counts epochs, and the loader does not know the length of one; "
                "give the Trainer limit_train_batches=..., or kl_warmup=0.0"
            )
        self._seed = self.trainer.strategy.broadcast(self._seed)
        self._look = True

    def _check_data(self) -> None:
        loader = self.trainer.train_dataloader
        if not isinstance(loader, DataLoader):
            return
        # A sampler may leave examples out; one that serves several devices cuts those of its data set among them, and
        # without batch_size the sampler is not the one that makes the batches.
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

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch: -ELBO of the whole data set with the KL weighted, in nats.

        Args:
            batch: `(x, y)`.
            batch_idx: Its number in the epoch.

        Returns:
            The loss, differentiable.
        """
        x, y = pair(batch)
        data: Any = 0.0
        kl: Any = 0.0
        penalty: Any = 0.0
        seed = mixed_seed(self._seed, _TRAINING, self.global_rank, self.trainer.current_epoch, batch_idx)
        # Autoguides ask the parameter store first, which may hold a namesake's parameters: an empty one meanwhile.
        # Pyro's validation, which waits for the device, sees the first batch of a run only.
        with pyro.get_param_store().scope(), pyro.validation_enabled(self._look), forked(self.device, seed):
            for _ in range(self._settings.num_particles):
                terms = self._elbo.terms(self.model, self.guide, x, y)
                data, kl, penalty = data + terms.data, kl + terms.kl, penalty + terms.penalty
            if self._look:
                self._check_trained()
        self._look = False
        data, kl, penalty = (value / self._settings.num_particles for value in (data, kl, penalty))
        weight = self._kl_weight(batch_idx)
        loss = torch.as_tensor(kl * weight + penalty - data)
        by_step = {"loss": self._number(loss), "kl_weight": self._number(weight)}
        by_epoch = {"elbo": data - kl - penalty, "data": data, "kl": kl, "penalty": penalty}
        means = {name: self._number(value) for name, value in by_epoch.items()}
        self.log_dict(by_step, on_step=True, on_epoch=False)
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))
        return loss

    def _kl_weight(self, batch_idx: int) -> float:
        warmup = self._settings.kl_warmup
        if warmup == 0.0:
            return 1.0
        each = int(self.trainer.num_training_batches)
        return kl_weight(self.trainer.current_epoch * each + batch_idx, each, warmup)

    def _check_trained(self) -> None:
        """Refuse parameters that no optimizer holds: they would silently stay as they are."""
        check_store(self.model, self.guide)
        held = {
            id(p) for optimizer in self.trainer.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        late = [name for p, name in parameter_names(self.model, self.guide).items() if id(p) not in held]
        if late:
            raise ValueError(
                f"SVIModule: parameter(s) {name_list(late)} are not in the optimizer and would not be trained; were "
                "they made by the first call of an autoguide? Call guide(x, y) once before the SVIModule is made"
            )

    def _number(self, value: Tensor | float) -> Tensor:
        # Filled on the device: a copy from the host would wait for it.
        return value.detach() if isinstance(value, Tensor) else torch.full((), value, device=self.device)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log `val_nll` and, for classes, `val_accuracy` of a batch."""
        self._score("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log `test_nll` and, for classes, `test_accuracy` of a batch."""
        self._score("test", batch, batch_idx, dataloader_idx)

    def _score(self, stage: str, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        x, y = pair(batch)
        # The same at every validation, so that epochs are compared on equal terms.
        with forked(self.device, mixed_seed(0, _HELD_OUT, self.global_rank, dataloader_idx, batch_idx)):
            found = predict(self.model, self.guide, x, y=y, mode=self._mode, batch_size=len(y))
        scores = {"nll": -found.log_density.mean()}  # type: ignore[union-attr]
        if found.log_probs is not None:
            right = correct(found.log_probs, y.reshape(found.log_probs.shape[:-1]))
            scores["accuracy"] = right.float().mean()
        named = {f"{stage}_{name}": value for name, value in scores.items()}
        self.log_dict(named, on_epoch=True, sync_dist=True, batch_size=len(y), prog_bar=True)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """The prediction for a batch, as a dictionary, since the Trainer moves it and takes no frozen result.

        Args:
            batch: `(x, y)` as in training, whose targets are not looked at; or `x` alone, bare or in a list of one.
            batch_idx: Its number.
            dataloader_idx: The loader's number.

        Returns:
            The tensors of a `Prediction` by name: `total`, `aleatoric`, `epistemic`, and `log_probs`, or `mean` and
            `variance`.
        """
        if isinstance(batch, (tuple, list)):
            x = batch[0] if len(batch) == 1 else pair(batch)[0]
        else:
            x = batch
        found = predict(self.model, self.guide, x, mode=self._mode)
        return {name: value for name, value in vars(found).items() if isinstance(value, Tensor)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the noise with the parameters."""
        checkpoint["pyrostoch_seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the noise of the run that is resumed."""
        self._seed = checkpoint["pyrostoch_seed"]
