"""The audit of what a client sends: what attackers read that are trained on its very noise, and what is guaranteed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch.metrics.running import Estimate
from pyrostoch.obfuscate.attackers import Attribute, Reconstruction, Sent, Trained, read_by, train_attacker
from pyrostoch.obfuscate.audit_data import Pair, check_pair, check_parts, check_private
from pyrostoch.obfuscate.audit_record import Audit, Strength
from pyrostoch.obfuscate.bounds import RateBound, fisher_bound, rate_bound
from pyrostoch.obfuscate.client import Client, alike, on_rows
from pyrostoch.obfuscate.contrast import CHOICES, contrast_bound
from pyrostoch.obfuscate.inversion import inversions
from pyrostoch.obfuscate.keyed import KeyedClient
from pyrostoch.obfuscate.pictures import Pictures, rounded
from pyrostoch.obfuscate.scores import LONGER, attack_result, estimate, judged
from pyrostoch.obfuscate.sender import Sender
from pyrostoch.obfuscate.weights import weights_before
from pyrostoch.obfuscate.work import multiplications
from pyrostoch.prediction.predict import predict

__all__ = ["audit"]

# Share of the attacker's examples by which it tells when to stop.
_HELD_OUT = 0.1
# Test images of which there are pictures, and examples of which two queries are compared.
_SHOWN, _TRIED = 6, 64


def audit(
    client: Client,
    data: Pair,
    test: Pair,
    *,
    private: Mapping[str, Pair] | None = None,
    labels: bool = False,
    queries: Sequence[int] = (1, 10, 100),
    epochs: int = 10,
    most_epochs: int = 100,
    inverted: int = 100,
    steps: int = 50,
    bounds: bool = True,
    key: bytes | None = None,
    value_range: float = 1.0,
    seed: int = 0,
    callback: Callable[[str, int, int], None] | None = None,
) -> Audit:
    r"""Attack what a client sends, and bound what it tells.

    The attackers know the client and its guide, though not its draws, and are trained on fresh draws of its noise, for
    the mean of 1, 10 and 100 queries of each example. One reconstructs the input; others read private attributes. Two
    more search for the most probable input of what was sent, with a normal prior and with that of a small generative
    network, both learned from the attacker's examples; they need a client that sends the draws of one layer of normal
    activations. Each is beside what the task label alone allows: the client might send nothing but its answer.

    An attacker counts only if it is strong enough: on what would be sent without noise, ten times its budget of epochs
    must not read more, by one point of accuracy or 5 % of the squared error; and on noise it is trained until its
    validation loss stops falling. Else the verdict is "attacker too weak", unless even this one reads more than the
    label tells. No audit shows that a stronger attacker would read no more; only bounds do.

    Args:
        client: The client; what it sends is checked to be all that leaves it.
        data: The attacker's examples, inputs and task labels.
        test: The examples that are attacked.
        private: Attributes by name, whole numbers for the examples of both parts.
        labels: Whether the client's conditional layers are given the task labels.
        queries: Numbers of queries whose mean an attacker reads.
        epochs: The attackers' budget where there is no noise.
        most_epochs: The largest number of epochs on noise.
        inverted: Number of test examples that are attacked by optimization, too; 0 for none.
        steps: The largest number of its steps.
        bounds: Whether to take bounds, where the client's draws have densities.
        key: A secret by which the noise of the test examples is fixed (`KeyedClient`). Queries after the first one are
            then of inputs near each example. Attackers do not know it, and train on draws with other keys: fresh ones.
        value_range: The largest value of an image less the smallest one.
        seed: Seed of everything that is random.
        callback: Called when a part of the audit begins, with its name, the number of parts that are done, and that of
            all.

    Returns:
        What was found; `print` shows tables. Where inputs are images, `pictures` has some of them, what was sent, and
        what attackers made of it.

    Raises:
        ValueError: The input reaches the output beside what is sent, or data do not fit.

    Example:
        >>> import pyrostoch as ps
        >>> _ = torch.manual_seed(0)
        >>> x = torch.rand(300, 1, 6, 6); y = (x.mean((1, 2, 3)) > 0.5).long(); s = (x[:, 0, 0, 0] > 0.5).long()
        >>> net = torch.nn.Sequential(ps.layers.StochasticAdditive((1, 6, 6), scale=0.5), torch.nn.Flatten(),
        ...                           torch.nn.Linear(36, 2))
        >>> model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=300)
        >>> client = Client(model, ps.guides.Additive(model), at="0")
        >>> found = audit(client, (x[:200], y[:200]), (x[200:], y[200:]), private={"corner": (s[:200], s[200:])},
        ...               queries=(1,), epochs=1, most_epochs=2, inverted=0)
        >>> [(row.attack, row.queries) for row in found.attacks]
        [('reconstruction', 1), ('corner', 1)]

    References:
        Carlini, Wagner, "Adversarial examples are not easily detected", 2017, for attackers that adapt; Osia et al., "A
        hybrid deep learning architecture for privacy-preserving mobile analytics", 2020.
    """
    if not isinstance(client, Client):
        advice = "; a keyed client is audited as audit(client, key=...)" if isinstance(client, KeyedClient) else ""
        raise TypeError(
            f"audit client: expected a Client, got {type(client).__name__}{advice}{see('how-to/audit_a_layer')}"
        )
    (x, y), (x_test, y_test) = check_pair(data, "data"), check_pair(test, "test")
    check_parts(x, x_test)
    attributes = check_private(private or {}, len(x), len(x_test))
    counts = _counts(queries)
    client.check(x, labels=y if labels else None)
    targets: dict[str, tuple[Any, Tensor, Tensor]] = {"reconstruction": (Reconstruction(x.shape[1:]), x, x_test)}
    for name, (classes, own, own_test) in attributes.items():
        targets[name] = (Attribute(classes), own, own_test)
    known = y_test if labels else None
    begin = _beginnings(callback, len(targets) * (1 + len(counts)) + bool(inverted) + 2 * bool(bounds))
    parts = _Parts(client, x, x_test, y if labels else None, y_test if labels else None, seed, key)
    answer, answer_test = (_answers(client, part, own if labels else None, seed) for part, own in (data, test))
    task = estimate((answer_test == y_test.cpu()).double())
    # Examples are often sorted by class: the few that are searched for, and shown, are from all over the test part.
    order = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(mixed_seed(seed, 10)))
    few, shown = order[:inverted], order[:_SHOWN]
    pictures = _pictures(x, x_test[shown])
    results, seen = [], dict[int, Sent]()
    for number, (name, (attack, own, own_test)) in enumerate(targets.items()):
        training = {part: own[rows] for part, rows in parts.rows.items()}
        begin(f"{name}, without noise")
        strength = _strength(attack, parts, training, own_test, epochs, mixed_seed(seed, number))
        start: Trained | None = None
        for count in counts:
            begin(f"{name}, {count} {'query' if count == 1 else 'queries'}")
            send = parts.sender(count)
            start = train_attacker(
                attack,
                send,
                training,
                epochs=most_epochs,
                until_it_stops=True,
                start=None if start is None else start.network,
                seed=mixed_seed(seed, number, count),
            )
            sent = send("test", mixed_seed(seed, number, count, 1))
            output = read_by(start.network, sent).cpu()
            how: dict[str, Any] = {"strength": strength, "epochs": start.epochs, "stopped": start.stopped}
            how |= {"queries": count, "value_range": value_range}
            results.append(attack_result(name, attack, output, (own, own_test), (answer, answer_test), **how))
            if isinstance(attack, Reconstruction):
                seen[count] = tuple(z[few] for z in sent)
                if pictures is not None:
                    pictures.keep_sent(count, tuple(z[shown] for z in sent))
                    pictures.keep_found(name, count, output[shown])
    if not inverted:
        skipped = ["attacks by optimization: not asked for"]
    else:
        begin("attacks by optimization")
        pair, answers = (x, x_test[few]), (answer, answer_test[few])
        found, skipped = inversions(
            client, pair, answers, None if known is None else known[few], seen, steps, value_range, seed
        )
        for row, images in found:
            results.append(row)
            if pictures is not None:
                pictures.keep_found(row.attack, row.queries, images[:_SHOWN])
    if bounds:
        begin("bounds from above")
    rate, fisher, reason = None, None, "there is none for noise that is fixed by a key"
    if key is None:
        rate, fisher, reason = _bounds(client, x, x_test, y, y_test, labels, bounds, seed)
    least = None
    if bounds:
        begin("bound from below")
    if bounds and len(x_test) >= 2 * CHOICES:
        every = {**{part: x[rows] for part, rows in parts.rows.items()}, "test": x_test}
        least = contrast_bound(parts.sender(1), every, epochs=most_epochs, seed=mixed_seed(seed, 9))
    share = multiplications(client, x[:1], None if not labels else y[:1])
    tried, tried_labels = x_test[:_TRIED], None if known is None else known[:_TRIED]
    once, again = (client.send(tried, labels=tried_labels, seed=number) for number in (0, 1))
    with client.knowing(tried_labels):
        weights = weights_before(client, on_rows(client.read(tried, tried_labels), torch.arange(1), client.device))
    return Audit(
        client.at,
        labels,
        share,
        task,
        tuple(results),
        rate,
        fisher,
        reason,
        len(x_test),
        tuple(skipped),
        key is not None,
        least,
        not alike(once, again),
        tuple(weights),
        pictures,
    )


def _counts(queries: Any) -> list[int]:
    """Numbers of queries, at least one."""
    if not isinstance(queries, Sequence) or isinstance(queries, str) or not queries:
        raise ValueError(
            f"audit queries: expected at least one number, such as (1, 10, 100), got {queries!r}"
            f"{see('how-to/audit_a_layer')}"
        )
    return [check_count("audit queries", count) for count in queries]


def _beginnings(callback: Callable[[str, int, int], None] | None, total: int) -> Callable[[str], None]:
    """Tells a callback what begins, and how many of all parts are done."""
    done = 0

    def begin(part: str) -> None:
        nonlocal done
        if callback is not None:
            callback(part, done, total)
        done += 1

    return begin


def _pictures(x: Tensor, shown: Tensor) -> Pictures | None:
    """Some images to show; `None` where inputs are no images of one channel or three."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return None
    return Pictures(float(x.min()), float(x.max()), rounded(shown))


class _Parts:
    """The attacker's examples, in two parts, and those that are attacked."""

    def __init__(
        self,
        client: Client,
        x: Tensor,
        x_test: Tensor,
        y: Tensor | None,
        y_test: Tensor | None,
        seed: int,
        key: bytes | None,
    ) -> None:
        held = max(1, int(_HELD_OUT * len(x)))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(mixed_seed(seed, 7)))
        self.rows = {"validation": order[:held], "train": order[held:]}
        self._senders = {
            part: Sender(client, x[rows], None if y is None else y[rows]) for part, rows in self.rows.items()
        }
        self._senders["test"] = Sender(client, x_test, y_test)
        self._test = x_test, y_test
        self._keyed = None if key is None else KeyedClient(client, key)

    def send(self, part: str, queries: int, seed: int) -> Sent:
        """The mean of some queries of a part."""
        if part == "test" and self._keyed is not None:
            return self._keyed.send_near(self._test[0], queries, labels=self._test[1], seed=seed)
        return self._senders[part].send(queries, seed=seed)

    def sender(self, queries: int | None) -> Callable[[str, int], Sent]:
        """Sends a part with the draws of a seed: the mean of some queries; `None`, without noise."""
        if queries is not None:
            return lambda part, seed: self.send(part, queries, seed)
        kept = {part: sender.noise_free() for part, sender in self._senders.items()}
        return lambda part, seed: kept[part]


def _answers(client: Client, x: Tensor, labels: Tensor | None, seed: int) -> Tensor:
    """The task labels that the whole network finds from what is sent once, which the client might send instead."""
    found = predict(client.model, client.guide, x, mode="mc:1", seed=seed, labels=labels)
    if found.probs is None:
        raise ValueError(
            "audit: expected a model of classes, whose label is what the client might send instead"
            f"{see('how-to/should_i_obfuscate')}"
        )
    return found.probs.argmax(-1).cpu()


def _strength(
    attack: Any, parts: _Parts, targets: dict[str, Tensor], target: Tensor, epochs: int, seed: int
) -> Strength:
    """The attacker without noise, with its budget and with ten times as much."""
    send = parts.sender(None)
    sent, scores = send("test", 0), []
    for budget in (epochs, LONGER * epochs):
        found = train_attacker(attack, send, targets, epochs=budget, until_it_stops=False, seed=seed)
        scores.append(attack.score(read_by(found.network, sent).cpu(), target))
    return judged(attack, *scores)


def _bounds(
    client: Client, x: Tensor, x_test: Tensor, y: Tensor, y_test: Tensor, labels: bool, wanted: bool, seed: int
) -> tuple[RateBound | None, Estimate | None, str]:
    if not wanted:
        return None, None, "not asked for"
    known, known_test = (y, y_test) if labels else (None, None)
    try:
        rate = rate_bound(client, x, x_test, y=y, labels=known, labels_test=known_test, seed=seed)
    except ValueError as error:
        return None, None, str(error).removeprefix("audit: ")
    try:
        fisher = fisher_bound(client, x_test, labels=known_test, seed=seed)
    except ValueError as error:
        return rate, None, str(error)
    return rate, fisher, ""
