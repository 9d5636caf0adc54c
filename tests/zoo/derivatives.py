"""Networks that differentiate themselves, and networks that solve a differential equation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import Made, network

B = 8


class _Energy(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(size, 6), nn.Linear(6, 1, bias=False)

    def energy(self, x: Tensor) -> Tensor:
        return self.o(self.a(x).tanh()).sum()


@network("forces by torch.autograd.grad")
def forces() -> Made:
    class Forces(_Energy):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                return -torch.autograd.grad(self.energy(x), x, create_graph=True)[0]

    return Forces(), torch.randn(B, 3)


@network("forces by torch.func.grad")
def functional_forces() -> Made:
    class Forces(_Energy):
        def forward(self, x: Tensor) -> Tensor:
            return -torch.func.grad(self.energy)(x)

    return Forces(), torch.randn(B, 3)


@network("Hamiltonian network")
def hamiltonian() -> Made:
    class Hamiltonian(_Energy):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                q, p = torch.autograd.grad(self.energy(x), x, create_graph=True)[0].chunk(2, 1)
            return torch.cat([p, -q], 1)

    return Hamiltonian(4), torch.randn(B, 4)


@network("residual of a differential equation")
def pinn() -> Made:
    class Residual(_Energy):
        """u'' + u for u = net(t)."""

        def forward(self, t: Tensor) -> Tensor:
            with torch.enable_grad():
                t = t.detach().requires_grad_(True)
                u = self.o(self.a(t).tanh())
                first = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
                second = torch.autograd.grad(first.sum(), t, create_graph=True)[0]
            return second + u

    return Residual(1), torch.randn(B, 1)


@network("score and its divergence by jacrev")
def divergence() -> Made:
    class Divergence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(2, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            def score(row: Tensor) -> Tensor:
                return self.o(torch.tanh(self.a(row)))

            jacobian = torch.vmap(torch.func.jacrev(score))(x)
            return jacobian.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)

    return Divergence(), torch.randn(B, 2)


@network("neural differential equation")
def neural_ode() -> Made:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field, self.head = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(5):
                x = x + 0.2 * self.field(x)
            return self.head(x)

    return Flow(), torch.randn(B, 2)


@network("continuous flow with Hutchinson's trace")
def hutchinson() -> Made:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(2, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                noise = torch.ones_like(x)
                out = self.o(torch.tanh(self.a(x)))
                product = torch.autograd.grad(out, x, noise, create_graph=True)[0]
            return torch.cat([x + out, (product * noise).sum(1, keepdim=True)], 1)

    return Flow(), torch.randn(B, 2)
