"""NumPyro: AutoNormal, TraceMeanField_ELBO and a jitted update; one draw for the whole batch."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from .common import arrays
from .task import LR, NUM_DATA, SCALE, Task, TimedStep

__all__ = ["build"]

# Of batch normalization; torch's default values.
_MOMENTUM, _EPSILON = 0.1, 1e-5


def build(task: Task) -> TimedStep:
    """The implementation `numpyro`."""
    jax: Any = importlib.import_module("jax")
    numpyro: Any = importlib.import_module("numpyro")
    infer: Any = importlib.import_module("numpyro.infer")
    autoguide: Any = importlib.import_module("numpyro.infer.autoguide")

    shapes = _shapes(task)
    generator = np.random.default_rng(task.seed)
    values = {
        name: generator.standard_normal(shape, dtype=np.float32) * math.sqrt(2 / math.prod(shape[:-1] or shape))
        for name, shape in shapes.items()
    }
    net = _MLP(shapes, values, task.random == "all") if task.widths else _LeNet5(shapes)

    def model(x: Any, y: Any) -> None:
        logits = net(x)
        with numpyro.handlers.scale(scale=NUM_DATA / len(x)):
            numpyro.sample("y", numpyro.distributions.Categorical(logits=logits), obs=y)

    start = infer.init_to_value(values=values)
    guide = autoguide.AutoNormal(model, init_loc_fn=start, init_scale=SCALE)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(LR), infer.TraceMeanField_ELBO())
    # Channels are the last axis, as is usual in JAX.
    data = [
        (jax.numpy.asarray(np.moveaxis(x, 1, -1) if x.ndim == 4 else x), jax.numpy.asarray(y)) for x, y in arrays(task)
    ]
    state = svi.init(jax.random.PRNGKey(task.seed), *data[0])
    update = jax.jit(svi.update)

    def step(number: int) -> Any:
        nonlocal state
        state, loss = update(state, *data[number % len(data)])
        return loss, state

    return TimedStep(step, jax.block_until_ready)


def _shapes(task: Task) -> dict[str, tuple[int, ...]]:
    """Shapes of weights, inputs before outputs, and of the biases of a multilayer perceptron."""
    if not task.widths:
        return {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "dense1": (800, 500), "dense2": (500, 10)}
    pairs = list(zip(task.widths, task.widths[1:], strict=False))
    weights: dict[str, tuple[int, ...]] = {f"weight{i}": pair for i, pair in enumerate(pairs)}
    return weights | {f"bias{i}": (width,) for i, (_, width) in enumerate(pairs)}


def _weight(name: str, shape: tuple[int, ...]) -> Any:
    numpyro: Any = importlib.import_module("numpyro")
    return numpyro.sample(name, numpyro.distributions.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


class _MLP:
    """The multilayer perceptron, to be called in a model; its biases are random variables or parameters."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], values: dict[str, Any], random_bias: bool) -> None:
        self._shapes, self._values, self._random_bias = shapes, values, random_bias

    def __call__(self, x: Any) -> Any:
        jax: Any = importlib.import_module("jax")
        numpyro: Any = importlib.import_module("numpyro")
        count = len(self._shapes) // 2
        for i in range(count):
            weight, name = _weight(f"weight{i}", self._shapes[f"weight{i}"]), f"bias{i}"
            random = self._random_bias
            x = x @ weight + (_weight(name, self._shapes[name]) if random else numpyro.param(name, self._values[name]))
            x = jax.nn.relu(x) if i < count - 1 else x
        return x


class _LeNet5:
    """LeNet5, to be called in a model."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def __call__(self, x: Any) -> Any:
        jax: Any = importlib.import_module("jax")
        for i in (1, 2):
            kernel = _weight(f"conv{i}", self._shapes[f"conv{i}"])
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = _batch_norm(f"bn{i}", x)
            rows, height, width, channels = x.shape
            # The gradient of JAX's pooling is slow on CPUs.
            x = jax.nn.relu(x.reshape(rows, height // 2, 2, width // 2, 2, channels).max((2, 4)))
        x = jax.nn.relu(_batch_norm("bn3", x.reshape(len(x), -1) @ _weight("dense1", self._shapes["dense1"])))
        return x @ _weight("dense2", self._shapes["dense2"])


def _batch_norm(name: str, x: Any) -> Any:
    """Batch normalization in training mode, with running moments as in torch."""
    jax: Any = importlib.import_module("jax")
    numpyro: Any = importlib.import_module("numpyro")
    primitives: Any = importlib.import_module("numpyro.primitives")
    width, axes = x.shape[-1], tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    running = primitives.mutable(f"{name}.running", {"mean": zeros, "var": ones})
    count = x.size // width
    for key, value in (("mean", mean), ("var", variance * count / (count - 1))):
        running[key] = (1 - _MOMENTUM) * running[key] + _MOMENTUM * jax.lax.stop_gradient(value)
    gain, shift = numpyro.param(f"{name}.weight", ones), numpyro.param(f"{name}.bias", zeros)
    return (x - mean) * jax.lax.rsqrt(variance + _EPSILON) * gain + shift
