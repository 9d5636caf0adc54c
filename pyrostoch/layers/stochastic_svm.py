"""A linear machine whose margin is random."""

from __future__ import annotations

from pyrostoch.layers.activations import ActivationDistribution, Gradient, PriorOfActivations
from pyrostoch.layers.stochastic_kernels import StochasticLinear

__all__ = ["StochasticSVM"]


class StochasticSVM(StochasticLinear):
    r"""A support vector machine whose decision is random: $f \sim N(w^\top x + b,\ \mathrm{softplus}(v^\top x + a)^2)$.

    It is a `StochasticLinear` for `likelihoods.BayesianSVM`: one output for labels 0 and 1, else one for each class.
    The expected hinge loss grows with the standard deviation wherever an example lies near its margin, so that training
    narrows it there, unless a prior p(f) holds against it. Give the weights a prior of the model, whose logarithm is
    the machine's $\|w\|^2$. Inputs are `(batch, ..., in_features)`.

    Args:
        in_features: Number of inputs.
        out_features: 1 for two classes, else the number of classes.
        bias: Whether there are biases.
        distribution: The distribution of the decision; see `StochasticLayer`.
        prior: The prior of the decision; see `StochasticLayer`.
        gradient: How draws are differentiated; see `StochasticLayer`.
        temperature: See `StochasticLayer`.

    References:
        Polson, Scott, "Data augmentation for support vector machines", Bayesian Analysis, 2011.

    Example:
        >>> import torch, pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 2)
        >>> y = (x[:, 0] > x[:, 1]).long()
        >>> model = ps.BayesianModel(StochasticSVM(2), prior=ps.priors.Normal(0.0, 10.0),
        ...                          likelihood=ps.likelihoods.BayesianSVM(), num_data=200)
        >>> guide = ps.guides.Additive(model, init_scale=0.1)
        >>> _ = ps.fit(model, guide, (x, y), epochs=100, lr=0.05, seed=0, progress=False, compile=False)
        >>> bool((ps.predict(model, guide, x, seed=0).probs.argmax(-1) == y).float().mean() > 0.95)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        bias: bool = True,
        *,
        distribution: ActivationDistribution | str = "gaussian",
        prior: PriorOfActivations = None,
        gradient: Gradient | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            distribution=distribution,
            prior=prior,
            gradient=gradient,
            temperature=temperature,
        )
