"""The steps of a training run, which never wait for the device within an epoch, and the search for a NaN's origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyrostoch._inputs import to_device
from pyrostoch._seeds import mixed_seed, reseed
from pyrostoch._targets import Target
from pyrostoch.effects.frozen import particles
from pyrostoch.effects.trees import tensors_in
from pyrostoch.infer.batches import Batches, Share
from pyrostoch.infer.elbo import ELBO
from pyrostoch.infer.parallel import Ranks
from pyrostoch.infer.terms import Terms
from pyrostoch.model import BayesianModel
from pyrostoch.protocols import FlatInputs
from pyrostoch.staging import StagedStep
from pyrostoch.training.accumulate import Accumulation, parts_of_batch
from pyrostoch.training.optimizer import OptimizerFactory, make_optimizer
from pyrostoch.training.schedule import Schedule, kl_weight, rate_factor
from pyrostoch.training.settings import Settings
from pyrostoch.training.sgmcmc import SGHMC, Dynamics
from pyrostoch.training.state import TrainingState, parameter_names

__all__ = ["NonFiniteLossError", "Trainer"]


class NonFiniteLossError(FloatingPointError):
    """The loss, or a parameter, has become NaN or infinite.

    Args:
        epoch: The epoch, counted from 1.
        step: The step of that epoch, counted from 1.
        where: What was not finite in that step: terms, sites, parameters, inputs.
        message: The error message.

    Example:
        >>> NonFiniteLossError(3, 17, ["the data term"], "epoch 3, step 17: ...").where
        ['the data term']
    """

    def __init__(self, epoch: int, step: int, where: list[str], message: str) -> None:
        super().__init__(message)
        self.epoch, self.step, self.where = epoch, step, where


class _Loss(nn.Module):
    """The loss as a module that contains model and guide, as DistributedDataParallel needs it."""

    def __init__(self, model: nn.Module, guide: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.guide, self._loss = model, guide, loss

    def forward(self, *args: Any) -> Any:
        return self._loss(*args)


class Trainer:
    """Model, guide and their optimizer, trained epoch by epoch.

    Args:
        model: The model.
        guide: Its guide.
        batches: The training data.
        settings: The settings of the run.
        device: The device of model and guide.
        order_seed: Seed of the order of the examples.
        compiled: Whether to compile the step.
        ranks: The processes that train together, if there are several.
        optimizer: Makes the optimizer; Adam by default.
        schedule: How the learning rates fall; that of the settings by default, which must be a name.
        sampler: The sampler, where a Markov chain is run.

    Raises:
        ValueError: Neither guide nor model has a parameter to train.
    """

    def __init__(
        self,
        model: BayesianModel,
        guide: nn.Module,
        batches: Batches,
        settings: Settings,
        device: torch.device,
        order_seed: int,
        *,
        compiled: bool = False,
        ranks: Ranks | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | str | None = None,
        sampler: SGHMC | None = None,
    ) -> None:
        self.model, self.guide, self.batches = model, guide, batches
        self.settings, self.device, self.order_seed = settings, device, order_seed
        self.elbo = ELBO(settings.estimator, rate_weight=settings.rate_weight, noise_weight=settings.noise_weight)
        self.kl_weight = 1.0
        self.names = parameter_names(model, guide)
        if not self.names:
            raise ValueError(
                "fit: nothing to train: neither the guide nor the model has a parameter with requires_grad=True"
            )
        self.optimizer = make_optimizer(guide, self.names, settings, optimizer)
        self.sampler = sampler
        self._schedule: Schedule | str = settings.schedule if schedule is None else schedule
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.state = TrainingState(model, guide, self.optimizer, self.names, device, batches.generators())
        self.ranks = Ranks() if ranks is None else ranks
        loss: Any = self._loss
        if self.ranks.is_distributed:
            # Copies the parameters of the first rank to all ranks, and averages the gradients.
            loss = nn.parallel.DistributedDataParallel(_Loss(model, guide, self._loss))
        self._accumulation = Accumulation(self.optimizer, settings.clip) if settings.accumulate > 1 else None
        updates, clip = (self._accumulation, None) if self._accumulation else (self.optimizer, settings.clip)
        self.step = StagedStep(loss, updates, [guide, model], clip=clip, staged=compiled, name="fit")
        # A tensor, since a compiled step would keep a number for ever.
        dtypes = {p.dtype for p in self.names if p.dtype.is_floating_point}
        self._kl_weight = torch.ones((), dtype=torch.float64 if torch.float64 in dtypes else torch.float32)

    def run_epoch(self, number: int, check: Callable[[FlatInputs, Target], None] | None = None) -> dict[str, Any]:
        """Train for one epoch; no value is read from the device before its end.

        Args:
            number: The epoch, counted from 1.
            check: Called with each batch before it is used.

        Returns:
            The terms of the epoch: means over its steps, weighted by batch size.

        Raises:
            NonFiniteLossError: A loss or a parameter is not finite; the state at the start of the epoch is restored.
            ValueError: A loader of whole batches has other than `num_data` examples; the state is restored likewise, as
                after any other error in a batch.
        """
        start = self.state.capture()
        rows: list[Tensor] = []
        sizes: list[int] = []
        try:
            for part in self._shares(number):
                if check is not None:
                    check(part.x, part.y)
                rows.append(self._step(part, number, len(rows)))
                sizes.append(part.count)
            if self.batches.items_are_batches and sum(sizes) != self.model.num_data:
                raise ValueError(
                    f"data: expected num_data={self.model.num_data} examples, as the model was built for, got batches "
                    f"with {sum(sizes)} in all; build it with num_data={sum(sizes)}"
                )
        except Exception as error:
            self.state.restore(start)
            if self._accumulation is not None:
                self._accumulation.discard()
            error.add_note(
                f"This was step {len(rows) + 1} of epoch {number}; model and guide are as they were before that epoch."
            )
            raise
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        terms = self.ranks.mean(torch.stack(rows)).cpu().double()
        bad = (~torch.isfinite(terms).all(1)).nonzero()
        if len(bad) or self._nonfinite_parameters():
            self._raise_nonfinite(number, int(bad[0]) if len(bad) else len(rows), len(rows), start)
        weights = torch.tensor(sizes, dtype=torch.float64)
        loss, data, kl, rate, penalty = ((terms * weights[:, None]).sum(0) / weights.sum()).tolist()
        row = {"epoch": number, "loss": loss, "elbo": data - kl - rate - penalty, "data": data, "kl": kl}
        row |= {"rate": rate, "penalty": penalty}
        return {**row, "kl_weight": self.kl_weight, "lr": self.optimizer.param_groups[0]["lr"]}

    def _shares(self, number: int) -> Iterator[Share]:
        """This process's part of each batch of an epoch; if there are several processes, each is seeded differently."""
        if self.ranks.is_distributed:
            reseed(self.device, mixed_seed(self.order_seed, number, self.ranks.rank))
        return self.batches.shares(self.order_seed, number, self.ranks)

    def _step(self, share: Share, number: int, index: int) -> Tensor:
        """Make one step of the optimizer; return the loss and the terms of the ELBO as a tensor on the device."""
        self._set_schedules(number, index)
        parts = self._parts(share)
        if self._accumulation is not None:
            self._accumulation.expected = len(parts)
        rows = [self.step(*self._arguments(part), self._kl_weight, part.weight)[1] for part in parts]
        return rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)

    def _parts(self, share: Share) -> list[Share]:
        """What of a batch is computed at a time; as many parts in all processes, which wait for one another."""
        if self._accumulation is None:
            return [share]
        count = min(self.settings.accumulate, max(1, share.count // self.ranks.world_size))
        return parts_of_batch(share, count, self.model.in_dims)

    def _arguments(self, share: Share) -> tuple[Any, Any]:
        """Inputs and targets of a batch, on the device."""
        return to_device(share.x, self.device), to_device(share.y, self.device)

    def _loss(self, x: FlatInputs, y: Target, kl_weight: Tensor, weight: float | None) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and a tensor of loss, data term, KL, rate and penalty."""
        return self._loss_of(self.guide, x, y, kl_weight, weight)

    def _loss_of(
        self, guide: nn.Module, x: FlatInputs, y: Target, kl_weight: Tensor, weight: float | None
    ) -> tuple[Tensor, Tensor]:
        total: Any = [0.0] * 5
        draws = particles(self.settings.num_particles)
        for draw in draws:
            with draw:
                terms = self._terms(guide, x, y)
            part = 1.0 if weight is None else weight
            loss = terms.loss(kl_weight, self.elbo.rate_weight, weight, self.elbo.noise_weight)
            values = (loss, terms.data * part, terms.kl, terms.rate * part, terms.penalty)
            total = [before + value / len(draws) for before, value in zip(total, values, strict=True)]
        return total[0], torch.stack([self._as_tensor(value) for value in total])

    def _set_schedules(self, number: int, index: int) -> None:
        """Set the learning rates and the weight of the KL for a step."""
        steps_per_epoch = len(self.batches)
        step, steps = (number - 1) * steps_per_epoch + index, self.settings.epochs * steps_per_epoch
        factor = rate_factor(self._schedule, min(step, steps), steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self.sampler is not None and isinstance(self.optimizer, Dynamics):
            self.optimizer.noise = self.sampler.has_noise(step / steps)
        self.kl_weight = self.settings.temperature * kl_weight(step, steps_per_epoch, self.settings.kl_warmup)
        self._kl_weight.fill_(self.kl_weight)

    def _terms(self, guide: nn.Module, x: FlatInputs, y: Target) -> Terms:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            return self.elbo.terms(self.model, guide, x, y)

    def _as_tensor(self, value: Tensor | float) -> Tensor:
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        if isinstance(value, Tensor):
            return value.detach().to(dtype)
        return torch.full((), value, dtype=dtype, device=self.device)

    def _nonfinite_parameters(self) -> list[str]:
        """Names of the parameters that are not finite; the device is read once."""
        finite = torch.stack([torch.isfinite(parameter.detach()).all() for parameter in self.names]).tolist()
        return [name for name, good in zip(self.names.values(), finite, strict=True) if not good]

    def _raise_nonfinite(self, number: int, bad: int, steps: int, start: dict[str, Tensor]) -> NoReturn:
        """Repeat the epoch up to the bad step, find what is not finite there, restore the start, and raise."""
        self.state.restore(start)
        where: list[str] = []
        for index, share in enumerate(self._shares(number)):
            if index == bad:
                self._set_schedules(number, index)
                where = self._find_nonfinite(share)
                break
            self._step(share, number, index)
        if not where:
            where = [f"parameter {name!r}" for name in self._nonfinite_parameters()]
        self.state.restore(start)
        self.optimizer.zero_grad(set_to_none=True)
        step = min(bad + 1, steps)
        found = ", ".join(where) if where else "nothing when the epoch was run again, so it does not repeat"
        moment = "" if bad < steps else ", after its update"
        raise NonFiniteLossError(
            number,
            step,
            where,
            f"epoch {number}, step {step} of {steps}{moment}: NaN or infinite: {found}. Model and guide are back where "
            + (f"epoch {number - 1} left them" if number > 1 else "they started")
            + "; try a smaller lr, clip=1.0, kl_warmup, or a smaller initial scale",
        )

    def _find_nonfinite(self, share: Share) -> list[str]:
        """What is not finite in a step that has not been made: inputs, parameters, terms."""
        found = [name for part in self._parts(share) for name in self._nonfinite_in(self.guide, *self._arguments(part))]
        return list(dict.fromkeys(found))

    def _nonfinite_in(self, guide: nn.Module, x: FlatInputs, y: Target) -> list[str]:
        parts = [part.coalesce().values() if part.layout is torch.sparse_coo else part for part in tensors_in(x)]
        found = [] if all(bool(torch.isfinite(part).all()) for part in parts) else ["inputs x of this batch"]
        found += [f"parameter {name!r}" for name in self._nonfinite_parameters()]
        for draw in particles(self.settings.num_particles):
            with draw:
                terms = self._terms(guide, x, y)
            values: dict[str, Tensor | float] = {"data term": terms.data, "penalty": terms.penalty}
            values |= {f"KL of site {name!r}": site.kl for name, site in terms.sites.items()}
            values |= {f"rate of layer {name!r} (a scale of 0?)": term.rate for name, term in terms.rates.items()}
            found += [name for name, value in values.items() if not bool(torch.isfinite(self._as_tensor(value)))]
        return list(dict.fromkeys(found))
