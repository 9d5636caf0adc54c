"""What tests of Laplace approximations compare with: maxima, curvature and evidence by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.distributions import MultivariateNormal

import pyrostoch as ps
from pyrostoch.likelihoods import Gaussian

NOISE = torch.tensor([0.3, 0.5], dtype=torch.float64)
PRIOR = {"*": ps.priors.Normal(0.1, 0.7)}


def model_of(net: nn.Module, likelihood: Any, num_data: int, prior: Any = None) -> ps.BayesianModel:
    return ps.BayesianModel(net, prior=PRIOR if prior is None else prior, likelihood=likelihood, num_data=num_data)


def classes(count: int = 60) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3).double()
    return x, ((x[:, 0] + 0.5 * torch.randn(count)) > 0).long() + (x[:, 1] > 0.7).long()


def train(model: ps.BayesianModel, data: tuple[Tensor, Tensor]) -> None:
    """Move the network to a maximum of the log joint density."""
    names = list(model.sites)
    parameters = [model.net.get_parameter(name).requires_grad_() for name in names]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    model.net.eval()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -log_joint(model, dict(zip(names, parameters, strict=True)), data)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[arg-type]
    for parameter in parameters:
        parameter.requires_grad_(False)


def log_prior(model: ps.BayesianModel, weights: dict[str, Tensor]) -> Tensor:
    parts = [model.prior(name).distribution(name, value.shape).log_prob(value).sum() for name, value in weights.items()]
    return torch.stack(parts).sum()


def log_joint(model: ps.BayesianModel, weights: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    output = torch.func.functional_call(model.net, weights, data[0])
    return model.likelihood(output).log_prob(data[1]).sum() + log_prior(model, weights)  # type: ignore[attr-defined]


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in weights.values()])


def unflat(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def weights_of(model: ps.BayesianModel) -> dict[str, Tensor]:
    return {name: site.init.clone() for name, site in model.sites.items()}


def ggn_by_hand(model: ps.BayesianModel, x: Tensor, y: Tensor) -> Tensor:
    """The sum over examples of J' (Hessian of -log p by the output) J, from derivatives of the whole batch."""
    like = weights_of(model)

    def output(vector: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model.net, unflat(vector, like), x)
        return found

    at = output(flat(like)).detach()
    rows = jacobian(output, flat(like)).reshape(at.numel(), -1)  # type: ignore[union-attr]

    def loss(values: Tensor) -> Tensor:
        return -model.likelihood(values).log_prob(y).sum()  # type: ignore[attr-defined,no-any-return]

    inner = hessian(loss, at).reshape(at.numel(), at.numel())  # type: ignore[union-attr]
    return rows.mT @ inner @ rows


def evidence_by_hand(model: ps.BayesianModel, data: tuple[Tensor, Tensor], precision: Tensor) -> float:
    weights = weights_of(model)
    size = flat(weights).numel()
    determinant = torch.linalg.slogdet(precision).logabsdet
    return (log_joint(model, weights, data) + 0.5 * size * math.log(2 * math.pi) - 0.5 * determinant).item()


def regression(count: int = 40) -> tuple[ps.BayesianModel, tuple[Tensor, Tensor], Tensor, float]:
    """A linear model at its exact posterior mean, its data, the covariance of an output's weights, and the evidence."""
    x, y = torch.randn(count, 3).double(), torch.randn(count, 2).double()
    net = nn.Linear(3, 2).double()
    phi = torch.cat([x, torch.ones(count, 1).double()], 1)
    evidence, covariances = 0.0, []
    with torch.no_grad():
        for o, noise in enumerate(NOISE.tolist()):
            precision = torch.eye(4).double() / 0.7**2 + phi.mT @ phi / noise**2
            mean = torch.linalg.solve(precision, 0.1 / 0.7**2 + phi.mT @ y[:, o] / noise**2)
            net.weight[o], net.bias[o] = mean[:3], mean[3]
            covariances.append(torch.linalg.inv(precision))
            spread = noise**2 * torch.eye(count).double() + 0.7**2 * phi @ phi.mT
            evidence += MultivariateNormal(0.1 * phi.sum(1), spread).log_prob(y[:, o]).item()
    return model_of(net, Gaussian(NOISE), count), (x, y), torch.stack(covariances), evidence


class Twice(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


def small(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def normalized() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for _ in range(3):
            net(1.0 + torch.randn(20, 3).double())
    return net


class Meeting(nn.Module):
    """Each example's output depends on all others; this belongs to one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.tanh(self.layer(x))
        return found + found.mean(0)
