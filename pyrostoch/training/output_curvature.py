"""The curvature of a likelihood in a network's output, of which the generalized Gauss-Newton matrix is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrostoch._manual import see
from pyrostoch.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood

__all__ = ["check_likelihood", "noise_of", "whitened"]


def check_likelihood(likelihood: Likelihood) -> None:
    """Raise an error for a likelihood whose curvature in the output is not known here.

    Args:
        likelihood: The likelihood.

    Raises:
        ValueError: It is another than `Categorical`, `Bernoulli` and `Gaussian`, or has missing targets, class weights
            or a random scale.
    """
    known = type(likelihood) in _RULES
    random = isinstance(likelihood, Gaussian) and likelihood.scale.prior is not None
    weighted = isinstance(likelihood, Categorical) and likelihood.class_weights is not None
    if known and not (random or weighted or likelihood.missing):
        return
    raise ValueError(
        "fit_laplace: expected the likelihood Categorical, Bernoulli, or Gaussian with a fixed or learned scale, "
        f"without missing targets or class weights, got {likelihood!r}; train a guide such as Additive by fit instead"
        f"{see('how-to/choose_guide')}"
    )


def noise_of(likelihood: Gaussian, like: Tensor) -> Tensor:
    """The standard deviation of Gaussian noise, in double precision.

    Args:
        likelihood: The likelihood.
        like: Tells the device.
    """
    scale: Any = likelihood.scale()
    return torch.as_tensor(scale, dtype=torch.float64, device=like.device).detach()


def whitened(likelihood: Likelihood, output: Tensor, jacobian: Tensor) -> Tensor:
    r"""$R^\top J$, where $R R^\top$ is the Hessian of $-\log p(y \mid f)$ by the output f, the same for every y.

    Args:
        likelihood: The likelihood.
        output: The network's output for some examples, (n, *output).
        jacobian: Its derivatives by m weights, (n, *output, m).

    Returns:
        In double precision, (n, outputs, m). The sum over examples of $J^\top R R^\top J$ is the generalized
        Gauss-Newton matrix.

    Example:
        >>> rows = whitened(Bernoulli(), torch.zeros(1, 1), torch.ones(1, 1, 1))
        >>> rows.square().sum()  # p (1 - p)
        tensor(0.2500, dtype=torch.float64)
    """
    rule = _RULES[type(likelihood)]
    found = rule(likelihood, output.double(), jacobian.double())
    return found.reshape(len(output), -1, jacobian.shape[-1])


def _categorical(likelihood: Any, output: Tensor, jacobian: Tensor) -> Tensor:
    # The Hessian diag(p) - p p' has the root diag(sqrt p) - p sqrt(p)'.
    axis = likelihood.axis % output.dim()
    probs = output.softmax(axis).unsqueeze(-1)
    mean = (probs * jacobian).sum(axis, keepdim=True)
    return probs.sqrt() * (jacobian - mean)


def _bernoulli(likelihood: Any, output: Tensor, jacobian: Tensor) -> Tensor:
    p = output.sigmoid()
    return (p * (1.0 - p)).sqrt().unsqueeze(-1) * jacobian


def _gaussian(likelihood: Any, output: Tensor, jacobian: Tensor) -> Tensor:
    return jacobian / noise_of(likelihood, output).expand(output.shape).unsqueeze(-1)


_RULES: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    Categorical: _categorical,
    Bernoulli: _bernoulli,
    Gaussian: _gaussian,
}
