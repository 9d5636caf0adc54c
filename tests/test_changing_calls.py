"""Networks that do something else in some calls, by their data, options, state, number of examples or memory layout."""

import collections
import itertools
import random
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.quasirandom import SobolEngine

import pyrostoch as ps
from pyrostoch.effects.held_state import HeldState
from pyrostoch.effects.meeting import depends_on_place, scrambled_examples_meet

COUNT = 24


class Layer(nn.Module):
    """A linear layer, and what a function makes of its output, its input and the module."""

    def __init__(self, then, inputs=3, outputs=2):
        super().__init__()
        self.l, self.then = nn.Linear(inputs, outputs), then

    def forward(self, x, *options):
        return self.then(self, self.l(x), x, *options)


def bayes(net, likelihood=None, num_data=COUNT, scale=0.5):
    model = ps.BayesianModel(
        net, prior=ps.priors.Normal(), likelihood=likelihood or ps.likelihoods.Gaussian(1.0), num_data=num_data
    )
    return model, ps.guides.Additive(model, init_scale=scale)


def treatment(model, guide, x, estimator="local"):
    return ps.ELBO(estimator).terms(model, guide, x, torch.zeros(COUNT, 2)).treatments["l.weight"]


def centered(net, h, x):
    return h - h.mean(0)


@pytest.mark.parametrize("mode", ["mean", "mc:20", "moments"])
def test_one_example_may_take_a_way_of_its_own(mode):
    class Single(nn.Linear):
        def forward(self, x):
            return x @ self.weight.t() if len(x) == 1 else super().forward(x)

    model, guide = bayes(Single(3, 1, bias=False), scale=1e-4)
    with torch.no_grad():
        guide.parameters_for("weight")["loc"].fill_(2.0)
    x = torch.ones(9, 3)
    if mode == "moments":
        with pytest.raises(ValueError, match=r"used in torch\.Tensor\.t"):
            ps.predict(model, guide, x, mode=mode, batch_size=8)
        return
    mean = ps.predict(model, guide, x, mode=mode, batch_size=8).mean
    torch.testing.assert_close(mean, torch.full((9, 1), 6.0, dtype=torch.float64), atol=0.01, rtol=0)


@pytest.mark.parametrize("estimator", ["local", "moments"])
def test_a_weight_that_a_later_pass_uses_otherwise_is_no_placeholder(estimator):
    class Branch(nn.Linear):
        def forward(self, x):
            return x @ self.weight.t() if x[0, 0] > 3 else super().forward(x)

    model, guide = bayes(Branch(3, 2, bias=False))
    x, y = torch.zeros(COUNT, 3), torch.zeros(COUNT, 2)
    ps.ELBO(estimator).loss(model, guide, x, y)
    with pytest.raises(RuntimeError, match=r"'weight' in torch\.Tensor\.t.*estimator='shared'"):
        ps.ELBO(estimator).loss(model, guide, x + 5, y)


def test_results_are_not_kept_for_other_flags_options_and_indices():
    net = Layer(lambda net, h, x, strength=0.0: h - net.mixing * h.mean(0) - strength * h.mean(0))
    net.mixing = False
    model, guide = bayes(net)
    x = torch.randn(COUNT, 3)
    assert treatment(model, guide, x) == "local (exact)" and not model.examples_meet(x)
    net.mixing = True
    assert treatment(model, guide, x) == "shared (examples meet)" and model.examples_meet(x)
    net.mixing = False
    assert treatment(model, guide, (x, 0.0)) == "local (exact)"
    assert treatment(model, guide, (x, 1.0)) == "shared (examples meet)"

    neighbors = Layer(lambda net, h, x: h + h[net.index])
    neighbors.register_buffer("index", torch.arange(COUNT))
    model, guide = bayes(neighbors)
    assert treatment(model, guide, x) == "local (exact)"
    neighbors.index.copy_(torch.arange(COUNT).flip(0))
    assert treatment(model, guide, x) == "shared (examples meet)"


def test_a_network_with_other_options_at_each_call_is_shared_at_last():
    model, guide = bayes(Layer(lambda net, h, x, time: h * time, inputs=1, outputs=1))
    x, y = torch.randn(4, 1), torch.zeros(4, 1)
    found = [ps.ELBO().terms(model, guide, (x, 1.0 + step), y).treatments["l.weight"] for step in range(35)]
    assert found[0] == "local (exact)"
    assert found[-1] == "shared (its options or attributes differ from call to call)"


def test_other_inputs_may_bring_examples_together():
    def group(net, h, x):
        same = (x[:, :1] == x[:, :1].T).to(h.dtype)
        return h - 0.9 * same @ h / same.sum(1, keepdim=True)

    def radius(net, h, x):
        near = (torch.cdist(x[:, :1], x[:, :1]) < 0.5).to(h.dtype)
        return near @ h / near.sum(1, keepdim=True)

    def largest(net, h, x):
        return h - h.mean(0) if x.max() > 8 else h

    apart = torch.cat([torch.arange(COUNT)[:, None] * 0.9, torch.rand(COUNT, 2)], 1) / 4
    for function, x in ((group, apart), (radius, apart * 4), (largest, apart)):
        model, guide = bayes(Layer(function))
        assert treatment(model, guide, x) == "shared (examples meet)", function
        assert model.examples_meet(x), function
    assert not scrambled_examples_meet(nn.Linear(3, 2), (apart,))


def test_what_only_many_examples_together_do_is_seen():
    def leaves_early(net, h, x):
        return 3 * h if (h.softmax(1).amax(1) > 0.55).all() else h

    def gate(net, h, x):
        return h * (1 + 5 * (h.amax(0) < 0))

    def classes(net, h, x):
        return h * len(h.detach().argmax(1).unique())

    for function in (leaves_early, gate, classes):
        model, guide = bayes(Layer(function))
        assert treatment(model, guide, torch.randn(COUNT, 3) + 1) == "shared (examples meet)", function


def test_what_feeds_a_guilty_operation_is_guilty():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.o = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.o(torch.tanh(self.l(x)))
            return h * len(h.detach().argmax(1).unique())

    model, guide = bayes(Two())
    assert treatment(model, guide, torch.randn(COUNT, 3) + 2) == "shared (examples meet)"


def test_the_number_of_an_example_and_of_all_of_them_may_count():
    functions = {
        "table": lambda net, h, x: h + torch.linspace(0, 1, 64, dtype=h.dtype)[: len(h), None],
        "size": lambda net, h, x: h * (len(h) / 40),
    }
    x = torch.randn(COUNT, 3)
    for name, function in functions.items():
        model, guide = bayes(Layer(function))
        assert model.examples_meet(x), name
        assert treatment(model, guide, x) == "local (exact)", name  # which is right: rows stay apart
        with pytest.raises(ValueError, match="random batches of 8"):
            ps.fit(model, guide, (x, torch.zeros(COUNT, 2)), epochs=1, batch_size=8, progress=False)
    pairs = Layer(lambda net, h, x: (h, h @ h.T))
    noisy = Layer(lambda net, h, x: h + torch.randn(len(h), 1, dtype=h.dtype))
    for net in (pairs, noisy, Layer(lambda net, h, x: h)):
        assert not depends_on_place(net, (x,))


class Cox(dist.TorchDistribution):
    """The partial likelihood of event times: a density alone, in which all examples meet."""

    arg_constraints = {}
    support = dist.constraints.real

    def __init__(self, risk):
        self.risk = risk
        super().__init__(risk.shape[:1], validate_args=False)

    def log_prob(self, value):
        at_risk = value[None, :] >= value[:, None]
        return self.risk - torch.where(at_risk, self.risk, -torch.inf).logsumexp(1)

    def expand(self, batch_shape, _instance=None):
        return self


def test_densities_without_draws_are_read_at_the_targets():
    model, guide = bayes(Layer(lambda net, h, x: h[:, 0]), lambda out: Cox(out))
    x, y = torch.randn(COUNT, 3), torch.rand(COUNT)
    assert ps.ELBO("local").terms(model, guide, x, y).treatments["l.weight"] == "shared (examples meet)"
    with pytest.raises(ValueError, match="random batches of 8"):
        ps.fit(model, guide, (x, y), epochs=1, batch_size=8, progress=False)


GENERATORS = {
    "numpy": lambda: np.random.default_rng(0),
    "legacy numpy": lambda: np.random.RandomState(0),
    "python": lambda: random.Random(0),
    "sobol": lambda: SobolEngine(1, scramble=True, seed=0),
    "iterator": lambda: itertools.cycle([-3.0, 3.0]),
}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("kind", GENERATORS)
def test_each_draw_takes_new_numbers_from_a_network_s_own_generator(kind, joint):
    def number(source):
        if kind == "iterator":
            return next(source)
        if kind == "sobol":
            return 6 * source.draw(1).item() - 3
        return 3 * (source.gauss(0, 1) if kind == "python" else source.normal())

    net = Layer(lambda net, h, x: h + number(net.source))
    net.source = GENERATORS[kind]()
    model, guide = bayes(net, scale=0.01)
    prediction = ps.predict(model, guide, torch.randn(4, 3), mode="mc:100", joint=joint)
    assert (prediction.epistemic > 1.0).all()


def test_strides_are_not_changed_under_a_network_that_reads_them():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            n, c, h, w = x.shape
            return self.conv(x).mean((2, 3)) + x.as_strided((n, 4), (c * h * w, 1))

    model, guide = bayes(Strided(), scale=1e-3)
    x = torch.randn(6, 3, 5, 5)
    for mode in ("mean", "mc:5", "moments"):
        found = ps.predict(model, guide, x, mode=mode).mean
        torch.testing.assert_close(found, model.net(x).double(), atol=0.05, rtol=0)


def test_a_network_that_writes_into_its_inputs_gets_copies():
    class Standardizing(nn.Linear):
        def forward(self, x):
            return super().forward(x.sub_(1.0).div_(2.0))

    model, guide = bayes(Standardizing(3, 1), scale=1e-3)
    x = torch.full((COUNT, 3), 5.0)
    with torch.no_grad():
        expected = model.net(x.clone()).double()
    y = torch.zeros(COUNT, 1)
    data = {ps.ELBO(name).terms(model, guide, x, y).data.item() for name in ("shared", "local") for _ in range(2)}
    assert max(data) - min(data) < 0.5
    for mode in ("mean", "mc:7"):
        torch.testing.assert_close(ps.predict(model, guide, x, mode=mode).mean, expected, atol=0.02, rtol=0)
    assert (x == 5.0).all()


@pytest.mark.parametrize("make", [dict, collections.OrderedDict, lambda: collections.defaultdict(list)])
def test_caches_and_recorders_are_left_as_they_were(make):
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.l, self.cache = nn.Linear(3, 3), nn.Linear(3, 2), make()

        def forward(self, x):
            if "features" not in self.cache:
                self.cache["features"] = self.frozen(torch.ones(3))
            return self.l(x + self.cache["features"].detach())

    model, guide = bayes(Caching())
    assert not model.examples_meet(torch.randn(COUNT, 3))
    assert len(model.net.cache) == 0

    recorder = Layer(lambda net, h, x: (net.seen.__setitem__("h", h.detach()), h)[1])
    recorder.seen = make()
    model, guide = bayes(recorder)
    for _ in range(2):
        ps.predict(model, guide, torch.randn(5, 3), mode="mc:20")
    assert recorder.seen["h"].sum().isfinite()


def test_a_buffer_made_in_the_first_pass_is_made_in_the_users_precision():
    class Late(nn.Linear):
        def forward(self, x):
            if not hasattr(self, "scale"):
                self.register_buffer("scale", x.abs().mean())
            return super().forward(x) * self.scale

    model, guide = bayes(Late(3, 2))
    x = torch.randn(COUNT, 3)
    ps.fit(model, guide, (x, torch.zeros(COUNT, 2)), epochs=1, progress=False, compile=False)
    assert model.net.scale.dtype == torch.float32 and model.net(x).dtype == torch.float32


def test_moments_do_not_take_the_networks_own_noise_for_certain():
    model, guide = bayes(Layer(lambda net, h, x: h + torch.randn_like(x[:, :1])))
    with pytest.raises(ValueError, match="draws random numbers of its own"):
        ps.predict(model, guide, torch.randn(4, 3), mode="moments")
    assert ps.predict(model, guide, torch.randn(4, 3), mode="moments:mc:50").epistemic.mean() > 0.5


def test_moments_that_do_not_reach_the_output_are_missed():
    def swallow(net, h, x):
        try:
            return torch.linalg.qr(h[:, None])[1][:, 0] + h
        except Exception:
            return x[:, :2]

    for function in (lambda net, h, x: h if isinstance(h, torch.Tensor) else torch.zeros(len(x), 2), swallow):
        model, guide = bayes(Layer(function))
        with pytest.raises(ValueError, match="moments do not reach its output"):
            ps.predict(model, guide, torch.randn(4, 3), mode="moments")


@pytest.mark.parametrize("make", [lambda: {"n": 0}, lambda: [0], lambda: collections.Counter(n=0)])
def test_a_compiled_step_does_not_freeze_state_in_containers(make):
    def count(net, h, x):
        key = 0 if isinstance(net.state, list) else "n"
        net.state[key] += 1
        return h * (1.0 if net.state[key] < 8 else 10.0)

    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        net = Layer(count)
        net.state = make()
        model, guide = bayes(net)
        loss = ps.ELBO("shared")(model, guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
        x, y = torch.randn(COUNT, 3), torch.zeros(COUNT, 2)
        step = ps.compile_step(loss, optimizer)
        torch.manual_seed(1)
        found = []
        for _ in range(12):
            if compiled:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the reason, which is looked at below
                    found.append(step(x, y).item())
            else:
                optimizer.zero_grad()
                value = loss(x, y)
                value.backward()
                optimizer.step()
                found.append(value.item())
        losses[compiled] = found
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert step.reason is not None and "it changes" in step.reason


def test_held_state_finds_and_restores_changes():
    class Config:
        def __init__(self):
            self.steps, self.inner = 0, {"list": [1, 2]}

    net = nn.Linear(2, 1)
    net.config, net.memory, net.log = Config(), torch.zeros(3), collections.deque([1], maxlen=4)
    state = HeldState([net])
    assert state.change() is None
    net.config.steps = 3
    assert state.change() == "it changes 'steps' in a Config"
    net.config.inner["list"].append(3)
    net.memory += 1
    net.log.append(2)
    net.extra = "new"
    net.register_buffer("late", torch.zeros(1))
    state.restore()
    assert state.change() is None and net.config.steps == 0 and net.config.inner == {"list": [1, 2]}
    assert (net.memory == 0).all() and list(net.log) == [1]
    assert not hasattr(net, "extra") and not hasattr(net, "late")


def test_distributions_are_values_and_no_state():
    net = nn.Linear(2, 1)
    net.scales = [dist.HalfNormal(1.0)]
    state = HeldState([net])
    assert net.scales[0].transforms[0].inv is not None and state.change() is None


def test_the_order_of_a_set_is_no_state():
    net = nn.Linear(2, 1)
    net.numbers = {7, 15}  # they collide: refilled in its own order, the set would change that order
    order, state = list(net.numbers), HeldState([net])
    state.restore()
    assert list(net.numbers) == order and state.change() is None
    net.numbers.discard(7)
    net.numbers.add(8)
    assert state.change() is not None
    state.restore()
    assert net.numbers == {7, 15} and state.change() is None
