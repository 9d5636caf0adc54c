"""A compiled step of SVI: Pyro's handlers run while the step is traced, not at every training step."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch._checks import name_list
from pyrostoch.staging import StagedStep, missing

__all__ = ["CompiledStep", "compile_step", "worth_compiling"]

# Seconds that compiling saves at each step, as a constant and per trained number; and seconds that it takes once, as a
# constant and per tensor. Measured on two CPU cores (benchmarks/RESULTS.md), with a margin in favor of the eager step.
_SAVED_PER_STEP, _SAVED_PER_NUMBER = 2e-3, 5e-9
_COMPILE_SECONDS, _COMPILE_SECONDS_PER_TENSOR = 20.0, 0.2

# The weights of an ELBO's terms, which may change between steps.
_WEIGHTS = ("kl_weight", "rate_weight")


class CompiledStep:
    """A step of SVI that is compiled at its second call; see `compile_step`.

    Args:
        loss: A module that returns the loss of a batch.
        optimizer: The optimizer of its parameters.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> step = CompiledStep(net, torch.optim.SGD(net.parameters(), lr=0.1))
        >>> step.reason is None, step.seconds
        (True, 0.0)
    """

    def __init__(self, loss: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._loss = loss
        self._elbo = getattr(loss, "elbo", None)
        self._weights = [name for name in _WEIGHTS if isinstance(getattr(self._elbo, name, None), (int, float, Tensor))]
        self._step = StagedStep(self._compute, optimizer, [loss])
        dtypes = {parameter.dtype for parameter in self._step.parameters}
        self._dtype = torch.float64 if torch.float64 in dtypes else torch.float32

    @property
    def reason(self) -> str | None:
        """Why the step runs eagerly; `None` while it does not."""
        return self._step.reason

    @property
    def seconds(self) -> float:
        """Seconds spent on tracing and compiling so far."""
        return self._step.seconds

    @property
    def stagings(self) -> int:
        """Number of programs compiled so far, one for each combination of shapes and modes."""
        return self._step.stagings

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Make one step: loss, gradients, update.

        Args:
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.

        Returns:
            The loss before the update, detached.
        """
        # Tensors, since they may change between steps: the compiled program would keep a number for ever.
        weights = [torch.as_tensor(getattr(self._elbo, name), dtype=self._dtype) for name in self._weights]
        # Unused by the computation, but an argument, so that the step is traced anew when the ELBO's settings change.
        settings = str((getattr(self._elbo, "num_particles", None), getattr(self._elbo, "estimator", None)))
        return self._step(weights, settings, *args, **kwargs)[0]

    def _compute(self, weights: list[Tensor], settings: str, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        before = [getattr(self._elbo, name) for name in self._weights]
        try:
            for name, weight in zip(self._weights, weights, strict=True):
                setattr(self._elbo, name, weight)
            return (self._loss(*args, **kwargs),)
        finally:
            for name, weight in zip(self._weights, before, strict=True):
                setattr(self._elbo, name, weight)


def compile_step(loss: nn.Module, optimizer: torch.optim.Optimizer) -> CompiledStep:
    """Compile one SVI step (loss, gradients and update) into one program.

    This works with every guide and estimator of this library, and with any Pyro model, guide and ELBO that do the same
    operations at each step and do not read values of tensors into Python. The first call runs eagerly. The second
    traces the step, compares it with the eager step on the same noise, and compiles it (some ten to thirty seconds,
    once; less when torch has compiled the same step before). Every later call runs the program with fresh noise from
    torch's generators; with the same seed it gives the same result as the eager step. Calls with another shape (such as
    the last, smaller batch), dtype or mode (`train()`, `eval()`) run eagerly until there have been a thousand of them,
    and are then compiled, too. Learning rates, betas, momentum and the ELBO's weights may change between steps.

    A step that cannot be compiled runs eagerly, with one warning that names the reason; `.reason` keeps it.

    Args:
        loss: `elbo(model, guide)`: an ELBO of this library or of Pyro, called with model and guide; or any module whose
            output is a loss.
        optimizer: A torch optimizer of the loss's parameters: those of the guide, and those of the network that have no
            prior. The updates of Adam, AdamW and SGD become part of the program; any other optimizer makes its own step
            on the program's gradients.

    Returns:
        The step: `step(x, y)` returns the loss.

    Raises:
        TypeError: `loss` is not a module, or `optimizer` is not a torch optimizer.

    Example:
        >>> import pyrostoch as ps
        >>> model = ps.BayesianModel(nn.Linear(2, 1), prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.5),
        ...                          num_data=10)
        >>> guide = ps.guides.Additive(model)
        >>> loss = ps.ELBO()(model, guide)
        >>> step = compile_step(loss, torch.optim.Adam(loss.parameters(), lr=0.01))
        >>> x = torch.randn(10, 2)
        >>> bool(step(x, x.sum(1, keepdim=True)) > 0)
        True
    """
    if not isinstance(loss, nn.Module):
        raise TypeError(
            f"compile_step: expected elbo(model, guide), a module that returns the loss, got {type(loss).__name__}"
            + ("; call it with model and guide first" if isinstance(loss, type) or callable(loss) else "")
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"compile_step: expected a torch.optim.Optimizer, got {type(optimizer).__name__}; Pyro's optimizers keep "
            "parameters by name in the parameter store: give torch.optim.Adam(loss.parameters(), lr=...)"
        )
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missed = [
        name
        for name, parameter in loss.named_parameters()
        if parameter.requires_grad and id(parameter) not in optimized
    ]
    if missed:
        warnings.warn(
            f"compile_step: the optimizer does not update {name_list(missed)}, though requires_grad is set: give it "
            "loss.parameters(), which are those of the guide and those of the network that have no prior, or freeze "
            "the parameters by requires_grad_(False)",
            UserWarning,
            stacklevel=2,
        )
    return CompiledStep(loss, optimizer)


def worth_compiling(choice: bool | str, guide: nn.Module, steps: int, device: torch.device) -> bool:
    """Whether a run compiles its step.

    `"auto"` counts steps and parameters instead of measuring time, so that the same run makes the same choice every
    time.

    Args:
        choice: `True`, `False` or `"auto"`.
        guide: The guide.
        steps: Number of steps of the run.
        device: The device of the run.

    Raises:
        ValueError: `choice` is something else.

    Example:
        >>> worth_compiling("auto", nn.Linear(100, 100), 100, torch.device("cpu"))
        False
    """
    if isinstance(choice, bool):
        return choice
    if choice != "auto":
        raise ValueError(f"compile: expected True, False or 'auto', got {choice!r}")
    if missing(device) is not None:
        return False
    sizes = [parameter.numel() for parameter in guide.parameters()]
    return steps * (
        _SAVED_PER_STEP + _SAVED_PER_NUMBER * sum(sizes)
    ) > _COMPILE_SECONDS + _COMPILE_SECONDS_PER_TENSOR * len(sizes)
