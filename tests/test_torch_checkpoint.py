"""torch's own gradient checkpointing is refused only where it would recompute something random."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import pyrostoch as ps
from pyrostoch.priors import Normal


class Parts(nn.Module):
    """A network in three parts whose middle may be checkpointed."""

    def __init__(self, middle, checkpointing):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 3), middle, nn.Linear(3, 2)
        self.checkpointing = checkpointing

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = self.middle(h) if self.checkpointing is None else self.checkpointing(self.middle, h)
        return self.last(h)


HELD = {
    "module": lambda part, h: torch_checkpoint(part, h, use_reentrant=False),
    "reentrant": lambda part, h: torch_checkpoint(part, h, use_reentrant=True),
    "method": lambda part, h: torch_checkpoint(part.__call__, h, use_reentrant=False),
    "partial": lambda part, h: torch_checkpoint(partial(part.forward), h, use_reentrant=False),
    "closure": lambda part, h: torch_checkpoint(lambda x: part(x), h, use_reentrant=False),
}


@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize("estimator", ["shared", "local", "flipout", "marginal"])
def test_torchs_checkpointing_of_a_part_without_random_weights_is_allowed(estimator, how):
    found = {}
    for name, checkpointing in (("plain", None), (how, HELD[how])):
        torch.manual_seed(0)
        net = Parts(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), checkpointing).double()
        model = ps.BayesianModel(
            net, prior={"last.weight": Normal()}, likelihood=ps.likelihoods.Gaussian(1.0), num_data=6
        )
        guide = ps.guides.Additive(model, init_scale=0.3)
        x, y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.randn(6, 2, dtype=torch.float64)
        torch.manual_seed(1)
        loss = ps.ELBO(estimator)(model, guide)(x, y)
        loss.backward()
        gradients = {key: p.grad for key, p in (*guide.named_parameters(), *net.named_parameters()) if p.requires_grad}
        found[name] = (loss.detach(), gradients)
    (value, expected), (other, gradients) = found["plain"], found[how]
    assert value == other and len(expected) > 4
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.parametrize("inner", ["dropout", "site", "moments"])
def test_torchs_checkpointing_of_other_random_things_is_refused(inner):
    class Noisy(nn.Module):
        def forward(self, h):
            return h + pyro.sample("noise", dist.Normal(torch.zeros(()), 1.0))

    class Frozen(nn.Module):
        def forward(self, h):
            return torch.tanh(h)

    part = {"dropout": ps.layers.MCDropout(0.5), "site": Noisy(), "moments": Frozen()}[inner]
    net = Parts(nn.Sequential(part), HELD["module"])
    prior = {"first.weight" if inner == "moments" else "last.weight": Normal()}
    model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Gaussian(1.0), num_data=6)
    guide = ps.guides.Additive(model)
    x, y = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2)
    with pytest.raises(RuntimeError, match=r"something random in it .*pyrostoch\.effects\.checkpoint"):
        if inner == "site":
            ps.predict(model, guide, x, mode="mc:1")
        ps.ELBO("moments" if inner == "moments" else "shared")(model, guide)(x, y)
