"""The compiled SVI step against a plain loop: every guide and estimator, users' own models, fresh noise.

Except where a test is named `compiled`, the traced graph runs operation by operation, which takes no compiler.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from staged_guides import GUIDES, NORMAL
from torch import Tensor, nn

import pyrostoch as ps
from pyrostoch.infer.elbo import ESTIMATORS
from pyrostoch.staging import missing

# The estimators that draw; moments have their own tests.
DRAWN = [name for name in ESTIMATORS if not name.startswith("moments")]

STEPS, SHORT = 7, 4
NO_COMPILER = missing(torch.device("cpu"))
compiles = pytest.mark.skipif(NO_COMPILER is not None, reason=f"nothing to compile with: {NO_COMPILER}")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrostoch.staging.step.lower", lambda module, inputs: module)
    monkeypatch.setattr("pyrostoch.staging.step.missing", lambda device: None)


def conv() -> nn.Module:
    # No bias before the BatchNorm: its gradient is pure rounding error, which Adam would amplify.
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(12, 3)
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.attend, self.head = nn.MultiheadAttention(6, 2, batch_first=True, dropout=0.1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x[:, 0]))
        return self.head((x + self.attend(x, x, x)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x[:, 0])[0][:, -1])


def bayesian(
    net: Callable[[], nn.Module] = conv, guide: str = "additive", prior: Any = None, penalty: Any = None, **options: Any
) -> tuple[Any, nn.Module]:
    """An ELBO with model and guide, and the same ELBO as a loss."""
    make, distribution = GUIDES[guide]
    model = ps.BayesianModel(
        net(),
        prior=distribution if prior is None else prior,
        likelihood=ps.likelihoods.Categorical(),
        num_data=50,
        penalty=penalty,
    )
    elbo = ps.ELBO(**options)
    return elbo, elbo(model, make(model))


def data(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.randint(3, (count,), generator=generator)


def course(
    build: Callable[[], tuple[Any, nn.Module]],
    staged: bool,
    batch: tuple[Tensor, Tensor],
    *,
    change: bool = True,
    lr: float = 0.02,
) -> tuple[Tensor, list[Tensor], Tensor, Any]:
    """Losses, all parameters and buffers, and the random state after some steps, compiled or by a plain loop."""
    torch.manual_seed(0)
    elbo, loss = build()
    named = dict(loss.named_parameters()) or dict(pyro.get_param_store().named_parameters())
    alphas = [p for name, p in named.items() if name.endswith("log_alpha")]
    others = [p for name, p in named.items() if not name.endswith("log_alpha")]
    optimizer = torch.optim.Adam([{"params": p, "lr": lr} for p in (others, alphas) if p])
    step = ps.compile_step(loss, optimizer) if staged else None
    losses = []
    torch.manual_seed(1)
    for index in range(STEPS):
        if change:
            elbo.kl_weight = 0.1 + 0.2 * index
            for number, group in enumerate(optimizer.param_groups):
                group["lr"] = lr * (1 + index % 3) * (1 + 2 * number)
        count = SHORT if index == 4 else None
        parts = [part[:count] for part in batch]
        if step is not None:
            losses.append(step(*parts))
            assert not losses[-1].requires_grad
        else:
            optimizer.zero_grad()
            value = loss(*parts)
            value.backward()
            optimizer.step()
            losses.append(value.detach())
    return torch.stack(losses), [*named.values(), *loss.buffers()], torch.get_rng_state(), step


def agree(build: Any, batch: Any = None, *, tolerance: float = 1e-10, **options: Any) -> Any:
    """Compare compiled steps with eager ones; return the compiled step."""
    batch = data() if batch is None else batch
    expected, state, generator, _ = course(build, False, batch, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, staged, noise, step = course(build, True, batch, **options)
    assert (step.reason, step.stagings) == (None, 1)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(staged, state, rtol=100 * tolerance, atol=100 * tolerance)
    assert torch.equal(noise, generator)
    return step


# Every guide, and every estimator: what one does to a step does not depend on the other.
PAIRS = [(guide, "local") for guide in GUIDES] + [(next(iter(GUIDES)), estimator) for estimator in DRAWN[1:]]


@pytest.mark.parametrize(("guide", "estimator"), PAIRS)
def test_every_guide_and_estimator_is_the_eager_step(guide, estimator, float64, interpreted):
    agree(functools.partial(bayesian, guide=guide, estimator=estimator))


class Drawn(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x[:, 0])
        return self.head((h[0] if isinstance(h, tuple) else h).mean(1))


DRAWS = {"batch_first": True, "prior": "standard"}
NETS: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "stochastic lstm": lambda: Drawn(ps.layers.StochasticLSTM(4, 4, **DRAWS)),
    "stochastic lstm, states": lambda: Drawn(ps.layers.StochasticLSTM(4, 4, sample="state", **DRAWS)),
    "stochastic gru, states": lambda: Drawn(
        ps.layers.StochasticGRU(4, 2, 2, bidirectional=True, sample="state", **DRAWS)
    ),
    "stochastic encoder layer": lambda: Drawn(ps.layers.StochasticTransformerEncoderLayer(4, 2, 8, **DRAWS)),
}


@pytest.mark.parametrize("net", NETS)
def test_sequences_are_the_eager_step(net, float64, interpreted):
    agree(functools.partial(bayesian, net=NETS[net], estimator="shared"))


def decay(net: nn.Module) -> Tensor:
    return 0.3 * torch.stack([p.square().sum() for p in net.parameters()]).sum()


CASES: dict[str, dict[str, Any]] = {
    "particles": {"num_particles": 3},
    "penalty": {"penalty": decay, "prior": {"5.weight": NORMAL}},
    "learned scales": {"prior": ps.priors.EmpiricalBayes(0.5)},
    "random scales": {"prior": {"0.*": NORMAL, "5.*": ps.priors.Hierarchical(dist.HalfNormal(1.0))}},
    "kl weight a tensor": {"kl_weight": torch.tensor(0.5)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_options_of_model_and_elbo_are_the_eager_step(case, float64, interpreted):
    agree(functools.partial(bayesian, **CASES[case]))


def test_the_loss_has_the_eager_dtype(interpreted):
    _, loss = bayesian()
    step = ps.compile_step(loss, torch.optim.Adam(loss.parameters()))
    assert [step(*data()).dtype for _ in range(3)] == [loss(*data()).dtype] * 3


@pytest.mark.parametrize("change", [{"num_particles": 2}, {"estimator": "local"}])
def test_settings_of_the_elbo_may_change_between_steps(change, float64, interpreted):
    elbo, loss = bayesian(estimator="shared")
    step = ps.compile_step(loss, torch.optim.Adam(loss.parameters(), lr=0.0))
    for _ in range(2):
        step(*data())
    vars(elbo).update(change)
    torch.manual_seed(5)
    found = step(*data())
    torch.manual_seed(5)
    torch.testing.assert_close(found, loss(*data()).detach(), rtol=1e-10, atol=0)


def line_model(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    with pyro.plate("data", 40, subsample=x):
        pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)


def line_guide(x: Tensor, y: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    spread = pyro.param("spread", torch.full((2,), 0.3), constraint=dist.constraints.positive)
    pyro.sample("weight", dist.Normal(loc, spread).to_event(1))


def line_data() -> tuple[Tensor, Tensor]:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    return x, x @ torch.tensor([1.0, -2.0]) + 0.1


def functions(elbo: Any) -> tuple[Any, nn.Module]:
    pyro.clear_param_store()
    loss = elbo(line_model, line_guide)
    loss(*line_data())  # makes the parameters
    return elbo, loss


def auto(elbo: Any, kind: Any) -> tuple[Any, nn.Module]:
    pyro.clear_param_store()

    def model(x: Tensor, y: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=5.0):
            pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)

    guide = kind(model)
    guide(*line_data())
    return elbo, elbo(model, guide)


USERS = {
    "functions": lambda: functions(ps.ELBO()),
    "AutoNormal": lambda: auto(ps.ELBO(), AutoNormal),
    "AutoLowRankMultivariateNormal": lambda: auto(ps.ELBO(), AutoLowRankMultivariateNormal),
}


@pytest.mark.parametrize("case", USERS)
def test_a_users_own_model_and_guide_are_the_eager_step(case, float64, interpreted):
    agree(USERS[case], line_data())


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("case", ["functions", "AutoNormal"])
def test_pyros_own_elbos(elbo, case, float64, interpreted):
    build = functools.partial(functions, elbo()) if case == "functions" else functools.partial(auto, elbo(), AutoNormal)
    expected, state, _, _ = course(build, False, line_data(), change=False)
    with pytest.warns(UserWarning, match=r"compile_step: the step runs eagerly: it reads a tensor's value") as caught:
        found, staged, _, step = course(build, True, line_data(), change=False)
    assert len(caught) == 1 and step.stagings == 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(staged, state, rtol=0, atol=0)


def test_the_noise_is_fresh_and_follows_the_seed(float64, interpreted):
    found, _, _, step = course(bayesian, True, data(), change=False, lr=0.0)
    assert step.stagings == 1 and len(found.unique()) == STEPS
    again = []
    for _ in range(2):
        torch.manual_seed(5)
        again.append(step(*data()))
    assert torch.equal(*again)
    torch.manual_seed(5)
    torch.testing.assert_close(step._loss(*data()).detach(), again[0], rtol=1e-12, atol=0)


def test_staging_leaves_no_trace(float64, interpreted, monkeypatch):
    """The state at the time of compiling is restored before the compiled step runs."""
    _, loss = bayesian()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    step = ps.compile_step(loss, optimizer)
    step(*data())
    memory = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*loss.parameters(), *loss.buffers(), *memory]
    before = [tensor.detach().clone() for tensor in tensors]
    generator = torch.get_rng_state()

    def replay(found: Any, leaves: Any) -> tuple[Tensor]:
        torch.testing.assert_close([t.detach() for t in tensors], before, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), generator)
        return (torch.zeros(()),)

    monkeypatch.setattr(step._step, "_replay", replay)
    step(*data())
    assert step.stagings == 1 and step.seconds > 0


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3)
    )


@compiles
def test_the_compiled_step_is_the_eager_step(float64):
    agree(functools.partial(bayesian, net=dense, guide="layerwise"), tolerance=1e-9)


class Squares(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        value: Tensor = scale * self.layer(x).float().square().mean()
        return value


def test_rounding_of_large_scores_in_half_precision_is_no_difference(interpreted):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 10))
    x = torch.randn(200, 20)
    y = net(x).argmax(1)
    with torch.no_grad():
        net[2].weight.mul_(60.0), net[2].bias.mul_(60.0)
    model = ps.BayesianModel(net, prior={}, likelihood=ps.likelihoods.Categorical(), num_data=200)
    loss = ps.ELBO()(model, ps.guides.Additive(model))

    class Inside(nn.Module):
        """Cast within, as `fit` does it."""

        def __init__(self):
            super().__init__()
            self.loss = loss

        def forward(self, x, y):
            with torch.autocast("cpu", torch.bfloat16):
                return self.loss(x, y)

    step = ps.compile_step(Inside(), torch.optim.SGD(loss.parameters(), lr=1e-6))
    values = [step(x, y).item() for _ in range(4)]
    assert step.reason is None and step.stagings == 1 and max(values) < 1.3 * min(values)


def test_another_autocast_dtype_is_followed(interpreted):
    loss = Squares(nn.Linear(32, 32))
    step = ps.compile_step(loss, torch.optim.SGD(loss.parameters(), lr=0.0))
    x = torch.ones(5, 32)
    for index in range(5):
        with torch.autocast("cpu", torch.bfloat16 if index < 3 else torch.float16):
            torch.testing.assert_close(step(x), loss(x).detach(), rtol=1e-6, atol=0)


def test_arguments_that_never_repeat_are_not_kept(interpreted):
    loss = Squares(nn.Linear(3, 1))
    step = ps.compile_step(loss, torch.optim.SGD(loss.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="its arguments keep changing"):
        for index in range(150):
            step(torch.ones(2, 3), 1 + index / 10)
    assert len(step._step._occurrences) < 110 and step.stagings == 0


@pytest.mark.parametrize(
    ("loss", "optimizer", "told"),
    [
        (ps.ELBO(), torch.optim.SGD([torch.zeros(1)]), r"expected elbo\(model, guide\).*got ELBO; call it with model"),
        (nn.Linear(1, 1), pyro.optim.Adam({"lr": 0.1}), r"expected a torch.optim.Optimizer, got PyroOptim"),
        (3, torch.optim.SGD([torch.zeros(1)]), r"got int$"),
    ],
)
def test_other_losses_and_optimizers_are_refused(loss, optimizer, told):
    with pytest.raises(TypeError, match=told):
        ps.compile_step(loss, optimizer)
