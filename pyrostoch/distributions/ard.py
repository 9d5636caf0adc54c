"""Automatic relevance determination: a prior whose scale is fitted to each weight in closed form."""

from __future__ import annotations

from torch import Size, Tensor

from pyrostoch.distributions.improper import ImproperPrior


class ARD(ImproperPrior):
    r"""Automatic relevance determination: a prior $N(0, \tau_i^2)$ for each weight, with the optimal $\tau_i^2$.

    For any posterior $q$ the divergence $KL(q \| N(0, \tau^2))$ is smallest at $\tau^2 = E_q[w^2]$, where it is

    $$\tfrac{1}{2} \log\left(2\pi e\, E_q[w^2]\right) - H(q),$$

    which for $N(\mu, \alpha\mu^2)$ is $\tfrac{1}{2} \log(1 + 1/\alpha)$: 0 for a zero-mean Gaussian, large for a weight
    with a narrow posterior. The prior depends on the posterior, so it has no density of its own: `log_prob` raises an
    error, and `improper` is True.

    Args:
        validate_args: As in torch.

    Raises:
        ValueError: On `log_prob`, sampling, mean or variance.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from torch.distributions import kl_divergence
        >>> kl_divergence(dist.Normal(2.0, torch.tensor(1.0)), ARD())
        tensor(0.8047)

    References:
        MacKay 1994, "Bayesian Non-linear Modeling for the Prediction Competition";
        Tipping 2001, "Sparse Bayesian Learning and the Relevance Vector Machine";
        Kharitonov, Molchanov, Vetrov 2018, "Variational Dropout via Empirical Bayes" (arXiv 1811.00596).
    """

    def __init__(self, *, validate_args: bool | None = None) -> None:
        super().__init__(Size(), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises `ValueError`: the prior is defined only together with a posterior."""
        raise ValueError(
            "ARD has no density of its own: its scale is set by the posterior. Train with pyrostoch's ELBO, which uses "
            "its closed-form KL (Gaussian and uniform guides); with Trace_ELBO and TraceMeanField_ELBO use "
            "EmpiricalBayes or LogUniform, with NUTS EmpiricalBayes or a fixed proper prior."
        )
