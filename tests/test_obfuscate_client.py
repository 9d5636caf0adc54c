"""What leaves a client: the draws behind the cut, every branch beside it, and no hook that stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.layers import Conditional, StochasticAdditive, embody
from pyrostoch.obfuscate import Client

CATEGORICAL = ps.likelihoods.Categorical()


def model_of(net: nn.Module, prior: Any = None) -> tuple[ps.BayesianModel, Any]:
    model = ps.BayesianModel(net, prior=prior, likelihood=CATEGORICAL, num_data=50)
    return model, ps.guides.Additive(model)


def noisy(scale: float = 0.5, prior: Any = None) -> tuple[ps.BayesianModel, Any]:
    return model_of(nn.Sequential(StochasticAdditive(3, scale=scale), nn.Tanh(), nn.Linear(3, 2)), prior)


def test_what_is_sent_is_the_input_with_noise_of_the_layer() -> None:
    client = Client(*noisy(0.5), at="0")
    x = torch.randn(4000, 3)
    (sent,) = client.send(x, seed=3)
    added = (sent - x).double()
    assert added.mean().abs() < 5 * 0.5 / 12000**0.5
    assert abs(added.std() - 0.5) < 5 * 0.5 / 24000**0.5
    (mean,) = client.send(x, mode="noise-free")
    torch.testing.assert_close(mean, x)


def test_a_mean_of_queries_is_that_of_single_ones_and_has_their_noise() -> None:
    client = Client(*noisy(0.5), at="0")
    x = torch.randn(2000, 3)
    (four,) = client.send(x, mode="mc:4", seed=1)
    assert abs((four - x).double().std() - 0.25) < 5 * 0.25 / 12000**0.5
    (first,) = client.send(x, mode="mc:1", seed=1)
    (two,) = client.send(x, mode="mc:2", seed=1)
    (other,) = client.send(x, mode="mc:1", seed=2)
    assert not torch.equal(2 * two - first, first)  # a fresh draw
    assert not torch.equal(first, other)


def test_examples_of_a_query_share_the_weights_though_they_run_in_pieces() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    client = Client(*model_of(net, ps.priors.Normal()), at="0")
    with torch.no_grad():
        for name, parameter in client.guide.named_parameters():  # type: ignore[attr-defined]
            if "scale" in name:
                parameter.fill_(0.5)
    x = torch.randn(1, 3).expand(7, 3)
    (sent,) = client.send(x, batch_size=2)
    torch.testing.assert_close(sent, sent[:1].expand_as(sent))
    (other,) = client.send(x, batch_size=2, seed=1)
    assert not torch.allclose(other, sent)


def test_labels_choose_the_noise_of_their_class() -> None:
    layer = Conditional(lambda: StochasticAdditive(3, scale=0.1), 2, where="output")
    with torch.no_grad():
        for c, part in enumerate(layer.classes):
            part.get_parameter("loc").fill_(10.0 * c)
    client = Client(*model_of(embody.prepend(nn.Linear(3, 2), layer)), at="stochastic")
    x, y = torch.zeros(5, 3), torch.tensor([0, 1, 1, 0, 1])
    (sent,) = client.send(x, labels=y, batch_size=2)
    assert torch.equal(sent.mean(1).round(), 10.0 * y)
    with pytest.raises(ValueError, match="class of each example is not known"):
        client.send(x)


def test_random_numbers_and_modes_are_as_they_were() -> None:
    model, guide = noisy()
    model.train()
    x = torch.randn(4, 3)
    before = torch.get_rng_state()
    Client(model, guide, "0").send(x)
    Client(model, guide, "0").check(x)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("kind", ["merge_then_sample", "sample_then_merge"])
def test_a_merged_activation_is_sent_behind_the_merge(kind: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(6, 3)
    whole = getattr(embody, kind)(net, "1", StochasticAdditive(4, scale=0.5), nn.Linear(3, 4), example=x)
    client = Client(*model_of(whole), at="network.1")
    read: list[Tensor] = []
    net[2].register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    (sent,) = client.send(x)
    torch.testing.assert_close(sent, read[-1], rtol=0, atol=0)
    client.check(x)


def test_a_clean_branch_beside_the_cut_is_found_and_may_be_named() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(20, 3)
    whole = embody.sample_then_merge(net, "1", StochasticAdditive(4, scale=0.5), nn.Linear(3, 4), example=x)
    model, guide = model_of(whole)
    with pytest.raises(ValueError, match="beside this cut"):
        Client(model, guide, "stochastic").check(x)
    client = Client(model, guide, ["stochastic", "network.0"])
    client.check(x)
    assert [tuple(part.shape) for part in client.send(x)] == [(20, 4), (20, 4)]


class Skip(nn.Module):
    """A path from the input to the output that no module is on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = StochasticAdditive(3, scale=0.5), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + 0.1 * x[:, :2]


def test_a_path_through_no_module_is_found() -> None:
    with pytest.raises(ValueError, match="beside this cut"):
        Client(*model_of(Skip()), at="first").check(torch.randn(5, 3))


def test_examples_that_are_all_the_same_prove_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="examples that differ"):
        Client(*model_of(net), at="0").check(torch.ones(5, 3))


class Recurrent(nn.Module):
    """States are sent besides the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(x)[0][:, -1])


def test_states_with_the_examples_on_another_axis_are_refused() -> None:
    client = Client(*model_of(Recurrent()), at="cell")
    with pytest.raises(TypeError, match=r"'cell'.*\(1, 5, 4\)"):
        client.send(torch.randn(5, 2, 3))


class Twice(nn.Module):
    """One module at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.layer(x)))


def test_modules_that_cannot_be_cut_at_are_named() -> None:
    with pytest.raises(ValueError, match="calls this module 2 times"):
        Client(*model_of(Twice()), at="layer").send(torch.zeros(2, 3))
    model, guide = model_of(Twice())
    with pytest.raises(ValueError, match=r"no module 'layr'.*layer"):
        Client(model, guide, "layr")
    with pytest.raises(ValueError, match="name of a module of the network"):
        Client(model, guide, [])
    with pytest.raises(ValueError, match="inputs x"):
        Client(model, guide, "last").send(torch.full((2, 3), float("nan")))


@pytest.mark.parametrize("last", [nn.ReLU(inplace=True), nn.Identity()])
def test_what_is_sent_is_not_what_the_network_makes_of_it_in_place(last: nn.Module) -> None:
    client = Client(*model_of(nn.Sequential(StochasticAdditive(3, scale=0.5), last, nn.Linear(3, 2))), at="0")
    x = torch.randn(500, 3)
    (sent,) = client.send(x)
    assert float(sent.min()) < -0.5
    client.check(x)


class Hidden:
    """Holds a tensor where no one looks for it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Wrapped(nn.Module):
    """Sends an object of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = WithObject(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).x)


class WithObject(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Hidden(x)


def test_objects_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(TypeError, match="Hidden"):
        Client(*model_of(Wrapped()), at="first").check(torch.randn(5, 3))


class Small(nn.Module):
    """A branch beside the cut whose values are small, and that only few examples use."""

    def __init__(self, size: float, threshold: float) -> None:
        super().__init__()
        self.first, self.last, self.size = StochasticAdditive(3, scale=0.5), nn.Linear(3, 2), size
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + self.size * (x[:, :2] - self.threshold).relu()


def test_small_and_rarely_used_branches_are_found() -> None:
    x = torch.randn(200, 3).sort(0).values
    for size, threshold in ((1e-5, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="beside this cut"):
            Client(*model_of(Small(size, threshold)), at="first").check(x)


def test_examples_on_another_axis_and_moments_are_refused() -> None:
    net = nn.Linear(3, 2)
    model = ps.BayesianModel(net, likelihood=CATEGORICAL, num_data=5, in_dims=1)
    with pytest.raises(ValueError, match="first axis"):
        Client(model, ps.guides.Additive(model), at="")
    with pytest.raises(ValueError, match="moments are not sent"):
        Client(*noisy(), at="0").send(torch.zeros(2, 3), mode="moments")
