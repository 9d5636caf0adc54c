"""The hinge loss of support vector machines as a pseudo-likelihood of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch._checks import check_positive
from pyrostoch._manual import see
from pyrostoch.likelihoods.base import Likelihood, elementwise
from pyrostoch.likelihoods.pseudo import PseudoCategorical

__all__ = ["BayesianSVM"]


class BayesianSVM(Likelihood):
    r"""Classes with the hinge loss of a support vector machine: a pseudo-likelihood, and no probability of the labels.

    With a single output f and $s = 2y - 1$ for labels 0 and 1, or with an output $f_j$ for each of C classes,

    $$ \log L(y \mid f) = -2c \max(0,\, 1 - s f), \qquad
    \log L(y \mid f) = -2c \max\bigl(0,\, 1 + \max_{j \ne y} f_j - f_y\bigr) $$

    in nats. The second is the hinge of Crammer and Singer; for two outputs it is the first with $f = f_1 - f_0$. Under
    the prior $N(0, \sigma^2)$ the weights of largest posterior density are those of a support vector machine: they
    minimize $\sum_i \max(0, 1 - s_i f(x_i)) + \|w\|^2 / (4 c \sigma^2)$.

    Since $\sum_y L(y \mid f)$ is not one but depends on f, three things are to be known:

    - **Training** uses L: the ELBO, `decompose` and MCMC are about the pseudo-posterior, proportional to
      $p(w) \prod_i L(y_i \mid f(x_i))$. The ELBO bounds the log of this product's integral over w, the
      pseudo-evidence, which is no probability of the data: compare it under the same c only, and not with the ELBO of
      another likelihood.
    - **Predictions** use the class probabilities $p(y \mid f) = L(y \mid f) / \sum_k L(k \mid f)$ of Sollich, averaged
      over draws: `predict`, `compare` with all its scores, the validation loss of `fit`, and drawn targets.
    - **Leave-one-out scores** would need both at once, so that `to_arviz` refuses the group `log_likelihood`.

    The constant c is fixed: fitted by the ELBO it would go to zero, where every loss is zero.

    Args:
        c: Weight of the loss, a positive number; 1 is the pseudo-likelihood of Polson and Scott.

    Example:
        >>> observations = BayesianSVM()(torch.tensor([[0.5], [3.0]]))
        >>> observations.log_prob(torch.tensor([1, 0]))
        tensor([-1., -8.])
        >>> observations.probs[0]
        tensor([0.1192, 0.8808])

    References:
        Polson, Scott, "Data augmentation for support vector machines", Bayesian Analysis, 2011; Crammer, Singer, "On
        the algorithmic implementation of multiclass kernel-based vector machines", 2001; Sollich, "Bayesian methods for
        support vector machines: evidence and predictive class probabilities", 2002.
    """

    pseudo = True

    def __init__(self, c: float = 1.0) -> None:
        super().__init__()
        self.c = float(check_positive("likelihood BayesianSVM c", c))

    def distribution(self, output: Tensor, **quantities: Tensor | float) -> Distribution:
        """The pseudo-likelihood of two classes for an output (batch,) or (batch, 1), else of C for (batch, C)."""
        if output.dim() not in (1, 2) or output.shape[-1] == 0:
            raise ValueError(
                "likelihood BayesianSVM: expected a network output of shape (batch,) or (batch, 1) for two classes, or "
                f"(batch, classes), got {tuple(output.shape)}"
            )
        if output.dim() == 2 and output.shape[1] > 1:
            margin = output - _largest_other(output)
        else:
            decision = output.reshape(-1)
            margin = torch.stack([-decision, decision], dim=-1)
        return PseudoCategorical(-2.0 * self.c * torch.relu(1.0 - margin))

    def check_shape(self, distribution: Distribution, target: Tensor) -> None:
        """Raise an error if the targets are not integers, or are not one label for each example."""
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            expected = tuple(distribution.batch_shape + distribution.event_shape)
            convert = "(y > 0).long()" if _classes(distribution) == 2 else "y.long()"
            raise TypeError(
                f"likelihood BayesianSVM: expected integer class labels of shape {expected}, got {target.dtype} of "
                f"shape {tuple(target.shape)}; convert with {convert}{see('how-to/write_a_likelihood')}"
            )
        super().check_shape(distribution, target)

    def check_target(self, distribution: Distribution, target: Tensor) -> None:
        """Raise a `ValueError` if labels are outside 0 ... C - 1, such as -1."""
        classes = _classes(distribution)
        wrong = (target < 0) | (target >= classes)
        if bool(wrong.any()):
            value = target[wrong][0].item()
            if value >= classes:
                advice = "give the network an output for each class"
            elif classes == 2:
                advice = "use 0 and 1 in place of an SVM's -1 and +1: y = (y > 0).long()"
            else:
                advice = "leave unlabeled examples out"
            raise ValueError(
                f"likelihood BayesianSVM: expected labels from 0 to {classes - 1}, got {int(wrong.sum())} outside, "
                f"among them {value:g}; {advice}{see('how-to/write_a_likelihood')}"
            )

    def extra_repr(self) -> str:
        """The weight of the loss."""
        return f"c={self.c:g}"


def _classes(distribution: Distribution) -> int:
    return int(elementwise(distribution).logits.shape[-1])


def _largest_other(output: Tensor) -> Tensor:
    """For each class the largest output of the other classes, in the shape of the output, (batch, C)."""
    values, classes = output.topk(2, dim=-1)
    first = torch.arange(output.shape[-1], device=output.device) == classes[:, :1]
    return torch.where(first, values[:, 1:], values[:, :1])
