"""Bounds of what a client tells: of the mutual information from above, and of unbiased reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrostoch._checks import check_count
from pyrostoch._inputs import count_examples, take_examples
from pyrostoch._manual import see
from pyrostoch.infer.known_labels import known_labels
from pyrostoch.layers.activations import Gaussian
from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.obfuscate.channel import DrawnActivations, family_of, is_normal
from pyrostoch.obfuscate.client import Client, alike, chosen_rows, on_rows
from pyrostoch.obfuscate.marginals import Marginal, fitted_marginals
from pyrostoch.prediction.readouts import seeded
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import FlatInputs
from pyrostoch.records import Record

__all__ = ["RateBound", "fisher_bound", "rate_bound"]

_PIECE = 500
# Share of the examples on which marginals are compared.
_HELD_OUT = 0.2
_ROUNDING = 1e-3


@dataclass(frozen=True)
class RateBound(Record):
    """A bound from above of what one query tells about an example, in nats.

    Args:
        rate: Mean over examples of KL(q(h | x) || m(h)), and its standard error over these.
        marginals: The form of m(h) of each layer.
        with_labels: Whether the classes were known to the client, so that the bound is that of I((x, c); z).

    Example:
        >>> print(RateBound(Estimate(3.2, 0.1, 500), ("independent bits",), False))
        I(x; z) <= 3.2000 ± 0.1000 nats for each query (m: independent bits)
    """

    rate: Estimate
    marginals: tuple[str, ...]
    with_labels: bool

    def __str__(self) -> str:
        what = "I((x, c); z)" if self.with_labels else "I(x; z)"
        return f"{what} <= {self.rate} nats for each query (m: {'; '.join(self.marginals)})"


def rate_bound(
    client: Client,
    x: FlatInputs,
    x_test: FlatInputs,
    *,
    y: Tensor | None = None,
    labels: Tensor | None = None,
    labels_test: Tensor | None = None,
    draws: int = 10,
    seed: int = 0,
) -> RateBound:
    r"""A bound of the mutual information of an example and what is sent of it: $I(x; z) \le E\,KL(q(h|x)\,\|\,m(h))$.

    h are the activations that the client draws on the way to what it sends, in one layer or several, whose parts are
    added. That every path from the input to what is sent crosses them is tried: with the draws of some examples in
    place, others must send the same. Any marginal m gives a bound; normal ones of several forms are learned on some
    examples and the best is taken by others. It is for one query: K independent ones tell at most K times as much.

    Args:
        client: The client.
        x: Inputs on which marginals are learned.
        x_test: Inputs on which the bound is taken.
        y: Classes of `x`, for a marginal with a part for each class; none by default.
        labels: Classes known to the client for `x`.
        labels_test: The same for `x_test`.
        draws: Number of draws for each example.
        seed: Seed of the draws.

    Returns:
        The bound.

    Raises:
        ValueError: The client draws no activations, a path leads around them, or they have no density.

    References:
        Alemi, Fischer, Dillon, Murphy, "Deep variational information bottleneck", 2017; Poole, Ozair, van den Oord,
        Alemi, Tucker, "On variational bounds of mutual information", 2019.
    """
    _check_paths(client, x_test, labels_test)
    check_count("rate_bound draws", draws, 2 if client.model.sites else 1)
    kept: list[list[Tensor]] = []
    with _passes(client, labels is not None), seeded(seed, client.device):
        for drawn in _drawn(client, x, labels):
            kept.append([h.double().flatten(1).cpu() for h in drawn.values])
            families = [family_of(layer) for layer in drawn.layers]
    layers = [torch.cat(parts) for parts in zip(*kept, strict=True)]
    marginals = [_best(fam, h, y, seed) for fam, h in zip(families, layers, strict=True)]
    mean = RunningMean()
    with _passes(client, labels_test is not None), seeded(seed + 1, client.device):
        rates: list[Tensor] = []
        for _ in range(draws):
            pieces = []
            for drawn in _drawn(client, x_test, labels_test):
                parts = zip(drawn.log_densities(), drawn.values, marginals, strict=True)
                pieces.append(sum(q.cpu() - m.log_prob(h.double().flatten(1).cpu()) for q, h, m in parts))
            rates.append(torch.cat(pieces))  # type: ignore[arg-type]
    each = torch.stack(rates)
    mean.update(each.mean(0))
    rate = mean.compute()
    if client.model.sites and draws > 1:  # weights differ between draws, and are the same for all examples of a piece
        between = float(each.mean(1).var()) / draws
        rate = replace(rate, stderr=(rate.stderr**2 + between) ** 0.5)
    if rate.value < -5 * rate.stderr - _ROUNDING:
        raise ValueError(
            f"audit: the bound came out as {rate}, below 0: the draws are not those of their distributions"
            f"{see('how-to/audit_a_layer')}"
        )
    return RateBound(rate, tuple(m.name for m in marginals), labels_test is not None)


def _best(family: object, h: Tensor, y: Tensor | None, seed: int) -> Marginal:
    """The marginal that is best on held-out draws, learned on the others."""
    held = max(1, int(_HELD_OUT * len(h)))
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))
    out, rest = order[:held], order[held:]
    found = fitted_marginals(family, h[rest], None if y is None else y[rest])
    return max(found, key=lambda m: float(m.log_prob(h[out]).mean()))


def fisher_bound(
    client: Client,
    x: Tensor,
    *,
    labels: Tensor | None = None,
    queries: int = 1,
    probes: int = 20,
    seed: int = 0,
) -> Estimate:
    r"""A bound from below of the mean squared error of every unbiased reconstruction: $d / E\,\mathrm{tr}\,I(x)$.

    For Gaussian activations, with mean $\mu(x)$ and standard deviation $\sigma(x)$ of each, the Fisher information of
    the input is $I = \sum_j (\nabla \mu_j \nabla \mu_j^T + 2 \nabla \sigma_j \nabla \sigma_j^T) / \sigma_j^2$; its
    trace is estimated by random signs, and its mean over examples is taken: by Jensen's inequality the bound is below
    the mean of $d / \mathrm{tr}\,I(x)$. Reconstructions that know what images look like are biased, and may be better.

    Args:
        client: The client, which draws in one layer of Gaussian activations.
        x: Examples.
        labels: Classes known to the client.
        queries: Number of queries with fresh noise, whose information is added.
        probes: Number of random signs.
        seed: Seed of these and of the draws.

    Returns:
        The squared error for each entry of an input, and its standard error over examples.

    Raises:
        ValueError: The client draws otherwise, or a path leads around the draws.

    References:
        Guo, Karrer, Chaudhuri, van der Maaten, "Bounding training data reconstruction in private (deep) learning",
        2022; Maeng, Guo, Kariyappa, Suh, "Measuring and controlling split layer privacy leakage using Fisher
        information", 2022.
    """
    if client.model.sites:
        raise ValueError(
            "fisher_bound: the network has random weights, of which one draw gives no bound; give point estimates"
            f"{see('how-to/audit_a_layer')}"
        )
    _check_paths(client, x, labels)
    check_count("fisher_bound queries", queries)
    traces = []
    with _passes(client, labels is not None), seeded(seed, client.device):
        for rows in torch.arange(len(x)).split(_PIECE):
            part = x[rows].detach().clone().requires_grad_()
            known = None if labels is None else labels[rows]
            with torch.enable_grad():
                (drawn,) = _drawn(client, part, known)
                if len(drawn.layers) != 1 or not isinstance(family_of(drawn.layers[0]), Gaussian):
                    kinds = [type(family_of(layer)).__name__ for layer in drawn.layers]
                    raise ValueError(
                        f"fisher_bound: expected one layer of Gaussian activations, got {kinds}"
                        f"{see('how-to/audit_a_layer')}"
                    )
                q = drawn.distributions[0]
                if not is_normal(q):
                    raise ValueError(
                        "fisher_bound: the activations are mixtures of normal ones, whose information has no closed "
                        f"form{see('how-to/audit_a_layer')}"
                    )
                mean, scale = q.mean, q.stddev
                terms = ((mean / scale.detach(), 1.0), (scale.log(), 2.0))
                total = torch.zeros(len(part), dtype=torch.float64)
                for _ in range(probes):
                    for values, weight in terms:
                        total += weight * _squared(values, part) / probes
            traces.append(total)
    running = RunningMean()
    running.update(torch.cat(traces))
    trace = running.compute()
    if trace.value <= 0:
        raise ValueError(
            "fisher_bound: no gradient of the activations' distribution reaches the input, as where the network "
            f"detaches it, so there is no bound{see('how-to/audit_a_layer')}"
        )
    error = x[0].numel() / (queries * trace.value)
    return Estimate(error, error * trace.stderr / trace.value, trace.count)


def _squared(values: Tensor, x: Tensor) -> Tensor:
    """The squared norm of the gradient by each example of a sum with random signs."""
    if not values.requires_grad:
        return torch.zeros(len(x), dtype=torch.float64)
    signs = torch.randint(0, 2, values.shape, device=values.device) * 2 - 1
    (found,) = torch.autograd.grad((signs * values).sum(), x, retain_graph=True, allow_unused=True)
    if found is None:
        return torch.zeros(len(x), dtype=torch.float64)
    squares: Tensor = found.double().flatten(1).square().sum(1).cpu()
    return squares


@contextmanager
def _passes(client: Client, with_labels: bool) -> Iterator[None]:
    with (
        known_labels(client.model, "known" if with_labels else None),
        training_mode(False, *client.modules),
        torch.no_grad(),
    ):
        yield


def _drawn(client: Client, x: FlatInputs, labels: Tensor | None) -> Iterator[DrawnActivations]:
    """What the client draws for each piece of some examples."""
    count = count_examples(x, client.model.in_dims) or 1
    for rows in torch.arange(count).split(_PIECE):
        part = x if len(rows) == count else take_examples(x, rows, client.model.in_dims)
        given = client.read(part, None if labels is None else labels[rows])
        drawn = DrawnActivations()
        with drawn:
            for _ in client.run([given], "mc", done=drawn.close):
                pass
        if not drawn.layers:
            raise ValueError(
                f"audit: the client draws no activations on the way to {', '.join(client.at)}, so there is no bound "
                f"from above{see('how-to/audit_a_layer')}"
            )
        yield drawn


def _check_paths(client: Client, x: FlatInputs, labels: Tensor | None) -> None:
    """Raise an error if what is sent depends on the input otherwise than through the draws."""
    rows, orders = chosen_rows(count_examples(x, 0) or 1, labels)
    few, known = on_rows(x, rows, None), None if labels is None else labels[rows]
    with _passes(client, known is not None):
        drawn = DrawnActivations()
        with seeded(0, client.device), drawn:
            ((cut, _),) = client.run([client.read(few, known)], "mc", done=drawn.close)
        if not drawn.layers:
            raise ValueError(
                f"audit: the client draws no activations on the way to {', '.join(client.at)}, so there is no bound "
                f"from above{see('how-to/audit_a_layer')}"
            )
        for order in orders:
            again = DrawnActivations(list(drawn.values))
            other = client.read(on_rows(few, order, None), None if known is None else known[order])
            with seeded(0, client.device), again:
                ((other_cut, _),) = client.run([other], "mc", done=again.close)
            if not alike(cut.outputs, other_cut.outputs):
                raise ValueError(
                    f"audit: what is sent at {', '.join(client.at)} depends on the input by a path around the "
                    "activations that are drawn, so that there is no bound from above"
                    f"{see('how-to/audit_a_layer')}"
                )
