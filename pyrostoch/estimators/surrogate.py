"""One interface to the gradient estimators for networks whose neurons have random states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count
from pyrostoch._manual import see
from pyrostoch.estimators.arm import arm
from pyrostoch.estimators.enumeration import enumerated
from pyrostoch.estimators.psa import path_sample_analytic
from pyrostoch.estimators.score import score
from pyrostoch.estimators.states import Loss, checked_loss
from pyrostoch.layers import KState
from pyrostoch.model import BayesianModel

__all__ = ["ESTIMATORS", "surrogate"]


def _straight_through(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    """The mean loss of draws, whose backward pass uses the derivative of each neuron's expected state."""
    return torch.stack([loss(net(x)) for _ in range(samples)]).mean()


def _log_mean_exp(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    """The same with the likelihoods exp(-L) of the draws averaged in place of the losses."""
    losses = torch.stack([loss(net(x)) for _ in range(samples)])
    return -(torch.logsumexp(-losses, 0) - torch.log(torch.tensor(float(samples)))).mean()


def _enumeration(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    return enumerated(net, x, loss)


#: The estimators by name.
ESTIMATORS: dict[str, Callable[[nn.Module, Tensor, Loss, int], Tensor]] = {
    "straight-through": _straight_through,
    "score": score,
    "path-sample-analytic": path_sample_analytic,
    "arm": arm,
    "log-mean-exp": _log_mean_exp,
    "enumeration": _enumeration,
}


def surrogate(
    net: nn.Module, x: Tensor, loss: Loss, *, estimator: str = "straight-through", samples: int = 1
) -> Tensor:
    r"""A scalar whose gradient estimates that of the expected loss, $\nabla\,\frac1B\sum_b E\,L_b$.

    | estimator | gradient |
    | --- | --- |
    | `"straight-through"` | that of a draw, with the derivative of each neuron's expected state; biased |
    | `"score"` | $(L - b)\,\nabla \log p(s)$, b the other draws' mean loss; unbiased, of high variance |
    | `"path-sample-analytic"` | exact differences along a drawn path; small bias, small variance, slow |
    | `"arm"` | ARM, or ARSM for more than two states; unbiased, runs the network again for each layer |
    | `"log-mean-exp"` | straight-through, of $-\log \frac1M \sum_m e^{-L_m}$, where draws of high loss weigh less |
    | `"enumeration"` | exact, for few neurons |

    Parameters after the last neurons always get the ordinary gradient of the loss.

    Args:
        net: A network with `KState` layers (or `Ternary`, `Binary`, `ThresholdNeuron`).
        x: Inputs, (B, ...).
        loss: The loss of each example, (B,), from the network's output, (B, ...).
        estimator: Name of the estimator.
        samples: Number of draws that are averaged; `"score"` needs at least two.

    Returns:
        A scalar; call `.backward()` on it.

    Raises:
        ValueError: The estimator is unknown, the network does not suit it, or the loss is not one value per example.
        TypeError: The network is a `BayesianModel`, or has random activations of another kind.

    Example:
        >>> import torch.nn.functional as F
        >>> from pyrostoch.layers import Ternary
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 5), Ternary(), nn.Linear(5, 2))
        >>> x, y = torch.randn(8, 4), torch.randint(0, 2, (8,))
        >>> loss = surrogate(net, x, lambda out: F.cross_entropy(out, y, reduction="none"), estimator="arm")
        >>> loss.backward()
        >>> net[0].weight.grad.shape
        torch.Size([5, 4])

    References:
        Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons for conditional
        computation", 2013 (straight-through); Williams 1992 (score); Shekhovtsov, Yanush, Flach 2020 (path
        sample-analytic); Yin, Zhou 2019 (ARM); Raiko, Berglund, Alain, Dinh, "Techniques for learning binary stochastic
        feedforward neural networks", 2015 (log-mean-exp).
    """
    check_count("surrogate samples", samples)
    check_choice("estimator", estimator, ESTIMATORS)
    if isinstance(net, BayesianModel):
        raise TypeError("surrogate: expected a network, got a BayesianModel; give its .net")
    if not any(isinstance(module, KState) for module in net.modules()):
        raise ValueError(
            f"estimator {estimator!r}: {type(net).__name__} has no neurons with states{see('how-to/discrete_networks')}"
        )
    return ESTIMATORS[estimator](net, x, checked_loss(loss, len(x)), samples)
