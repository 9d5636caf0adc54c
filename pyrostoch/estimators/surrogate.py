"""One interface to the estimators of the gradient of an expected loss over neurons' states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrostoch._checks import check_choice, check_count
from pyrostoch.estimators.arm import arm
from pyrostoch.estimators.enumeration import enumerated
from pyrostoch.estimators.psa import path_sample_analytic
from pyrostoch.estimators.score import score
from pyrostoch.estimators.states import Loss, each_example
from pyrostoch.layers import KState
from pyrostoch.model import BayesianModel

__all__ = ["ESTIMATORS", "surrogate"]


def _straight_through(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    """Draws whose backward pass is that of the expected states."""
    return torch.stack([loss(net(x)) for _ in range(samples)]).mean()


def _log_mean_exp(net: nn.Module, x: Tensor, loss: Loss, samples: int) -> Tensor:
    """Draws whose probabilities, and not their logarithms, are averaged, straight through."""
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
    r"""A loss whose gradient is an estimate of that of the expected loss, $\nabla\,\frac1B\sum_b E\,L_b$.

    | estimator | gradient |
    | --- | --- |
    | `"straight-through"` | a draw's, each neuron passing back the derivative of its expected state; biased |
    | `"score"` | $(L - b)\,\nabla \log p(s)$, b the other draws' mean; unbiased, of high variance |
    | `"path-sample-analytic"` | exact differences along a drawn path; small bias, small variance, dear |
    | `"arm"` | ARM, for more than two states ARSM; unbiased, runs the network again for each layer |
    | `"log-mean-exp"` | straight through, of $-\log \frac1M \sum_m e^{-L_m}$: does not punish being unsure |
    | `"enumeration"` | exact, for few neurons |

    The draw's own parameters behind the last neurons get the plain gradient of the loss in every case.

    Args:
        net: A network with `KState` layers (or `Ternary`, `Binary`, `ThresholdNeuron`).
        x: Inputs, (B, ...).
        loss: The loss of each example, (B,), from the network's output, (B, ...).
        estimator: The name.
        samples: Draws that are averaged; `"score"` takes two at least.

    Returns:
        A scalar; call `.backward()` on it.

    Raises:
        ValueError: The estimator is unknown, the network is none for it, or the loss is not one value an example.
        TypeError: The network has random activations of another kind.

    Example:
        >>> import torch.nn.functional as F
        >>> from pyrostoch.layers import Ternary
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 5), Ternary(), nn.Linear(5, 2))
        >>> x, y = torch.randn(8, 4), torch.randint(0, 2, (8,))
        >>> found = surrogate(net, x, lambda out: F.cross_entropy(out, y, reduction="none"), estimator="arm")
        >>> found.backward()
        >>> net[0].weight.grad.shape
        torch.Size([5, 4])

    References:
        Bengio, Leonard, Courville 2013; Williams 1992; Shekhovtsov, Yanush, Flach 2020; Yin, Zhou 2019; Raiko,
        Berglund, Alain, Dinh, "Techniques for learning binary stochastic feedforward neural networks", 2015.
    """
    check_count("surrogate samples", samples)
    check_choice("estimator", estimator, ESTIMATORS)
    if isinstance(net, BayesianModel):
        raise TypeError("surrogate: expected the network, got a BayesianModel; give its .net")
    if not any(isinstance(module, KState) for module in net.modules()):
        raise ValueError(f"estimator {estimator!r}: {type(net).__name__} has no neurons with states")
    return ESTIMATORS[estimator](net, x, each_example(loss, len(x)), samples)
