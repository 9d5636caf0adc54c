"""The audit of what a client sends: what attackers read that are trained on its very noise, and what is guaranteed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyrostoch._checks import check_count
from pyrostoch._manual import see
from pyrostoch._seeds import mixed_seed
from pyrostoch.metrics import psnr, ssim
from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.obfuscate.attackers import Attribute, Reconstruction, Sent, Trained, read_by, train_attacker
from pyrostoch.obfuscate.audit_record import AttackResult, Audit, Strength
from pyrostoch.obfuscate.bounds import RateBound, fisher_bound, rate_bound
from pyrostoch.obfuscate.client import Client
from pyrostoch.obfuscate.sender import Sender
from pyrostoch.prediction.predict import predict
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import FlatInputs

__all__ = ["audit"]

# Share of the attacker's examples by which it tells when to stop.
_HELD_OUT = 0.1
# How much better ten times the training may be without noise: points of accuracy, or a share of the squared error.
_POINTS, _SHARE = 1.0, 0.05
_LONGER = 10

Pair = tuple[Tensor, Tensor]


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
    bounds: bool = True,
    value_range: float = 1.0,
    seed: int = 0,
) -> Audit:
    r"""Attack what a client sends, and bound what it tells.

    The attackers know the client and its guide, though not its draws, and are trained on fresh draws of its noise, for
    the mean of 1, 10 and 100 queries of each example. One reconstructs the input; others read private attributes. Each
    is beside what the task label alone allows: the client might send nothing but its answer.

    An attacker counts only if it is strong enough: on what would be sent without noise, ten times its budget of epochs
    must not read more, by one point of accuracy or 5 % of the squared error; and on noise it is trained until its
    validation loss stops falling. Else the verdict is "attacker too weak". No audit shows that a stronger attacker
    would read no more; only bounds do.

    Args:
        client: The client; what it sends is checked to be all that leaves it.
        data: The attacker's examples, inputs and task labels.
        test: The examples that are attacked.
        private: Attributes by name, whole numbers for the examples of both parts.
        labels: Whether the client's conditional layers are given the task labels.
        queries: Numbers of queries whose mean an attacker reads.
        epochs: The attackers' budget where there is no noise.
        most_epochs: The largest number of epochs on noise.
        bounds: Whether to take bounds, where the client's draws have densities.
        value_range: The largest value of an image less the smallest one.
        seed: Seed of everything that is random.

    Returns:
        What was found; `print` shows tables.

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
        ...               queries=(1,), epochs=1, most_epochs=2)
        >>> [(row.attack, row.queries) for row in found.attacks]
        [('reconstruction', 1), ('corner', 1)]

    References:
        Carlini, Wagner, "Adversarial examples are not easily detected", 2017, for attackers that adapt; Osia et al., "A
        hybrid deep learning architecture for privacy-preserving mobile analytics", 2020.
    """
    (x, y), (x_test, y_test) = _checked(data, "data"), _checked(test, "test")
    client.check(x, labels=y if labels else None)
    targets: dict[str, tuple[Any, Tensor, Tensor]] = {"reconstruction": (Reconstruction(x.shape[1:]), x, x_test)}
    for name, (own, own_test) in (private or {}).items():
        classes = _attribute(name, own, own_test, len(x), len(x_test))
        targets[name] = (Attribute(classes), own, own_test)
    counts = [check_count("audit queries", count) for count in queries]
    parts = _Parts(client, x, x_test, y if labels else None, y_test if labels else None, seed)
    answer, answer_test = (_answers(client, part, own if labels else None, seed) for part, own in (data, test))
    task = _estimate((answer_test == y_test.cpu()).double())
    results = []
    for number, (name, (attack, own, own_test)) in enumerate(targets.items()):
        training = {part: own[rows] for part, rows in parts.rows.items()}
        strength, _ = _strength(attack, parts, training, own_test, epochs, mixed_seed(seed, number))
        start: Trained | None = None
        for count in counts:
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
            results.append(
                _result(name, attack, count, start, sent, (own, own_test), (answer, answer_test), strength, value_range)
            )
    rate, fisher, reason = _bounds(client, x, x_test, y, y_test, labels, bounds, seed)
    share = multiplications(client, x[:1], None if not labels else y[:1])
    return Audit(client.at, labels, share, task, tuple(results), rate, fisher, reason, len(x_test))


def multiplications(client: Client, x: Tensor, labels: Tensor | None = None) -> float:
    """The client's share of a network's multiplications: those made before all that is sent has been computed.

    Args:
        client: The client.
        x: An example.
        labels: Its class, if the client's conditional layers are given it.

    Returns:
        A number from 0 to 1, of matrix products and convolutions.
    """
    modules = [m for m in (client.model, client.guide) if isinstance(m, torch.nn.Module)]
    with training_mode(False, *modules), torch.no_grad(), torch.random.fork_rng():
        given: FlatInputs = client.read(x, labels)
        with client.knowing(labels):
            list(client.run([given], "mc"))  # how weights are used is then known
            counter, at_cut = FlopCounterMode(display=False), list[int]()
            with counter:
                list(client.run([given], "mc", done=lambda: at_cut.append(counter.get_total_flops())))
    total = counter.get_total_flops()
    return at_cut[-1] / total if total else 0.0


class _Parts:
    """The attacker's examples, in two parts, and those that are attacked."""

    def __init__(self, client: Client, x: Tensor, x_test: Tensor, y: Tensor | None, y_test: Tensor | None, seed: int):
        held = max(1, int(_HELD_OUT * len(x)))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(mixed_seed(seed, 7)))
        self.rows = {"validation": order[:held], "train": order[held:]}
        self._senders = {
            part: Sender(client, x[rows], None if y is None else y[rows]) for part, rows in self.rows.items()
        }
        self._senders["test"] = Sender(client, x_test, y_test)

    def sender(self, queries: int | None) -> Callable[[str, int], Sent]:
        """Sends a part with the draws of a seed: the mean of some queries; `None`, without noise."""
        if queries is not None:
            return lambda part, seed: self._senders[part].send(queries, seed=seed)
        kept = {part: sender.noise_free() for part, sender in self._senders.items()}
        return lambda part, seed: kept[part]


def _answers(client: Client, x: Tensor, labels: Tensor | None, seed: int) -> Tensor:
    """The task labels that the whole network finds from what is sent once, which the client might send instead."""
    found = predict(client.model, client.guide, x, mode="mc:1", seed=seed, labels=labels)
    if found.probs is None:
        raise ValueError("audit: expected a model of classes, whose label is what the client might send instead")
    return found.probs.argmax(-1).cpu()


def _strength(
    attack: Any, parts: _Parts, targets: dict[str, Tensor], target: Tensor, epochs: int, seed: int
) -> tuple[Strength, Trained]:
    """The attacker without noise, with its budget and with ten times as much."""
    send = parts.sender(None)
    sent, scores = send("test", 0), []
    for budget in (epochs, _LONGER * epochs):
        found = train_attacker(attack, send, targets, epochs=budget, until_it_stops=False, seed=seed)
        scores.append(float(attack.score(read_by(found.network, sent), target).mean()))
    one, longer = scores
    enough = longer - one <= _POINTS if isinstance(attack, Attribute) else one - longer <= _SHARE * one
    return Strength(one, longer, enough), found


def _result(
    name: str,
    attack: Any,
    count: int,
    trained: Trained,
    sent: Sent,
    own: Pair,
    labels: Pair,
    strength: Strength,
    value_range: float,
) -> AttackResult:
    target, y, y_test = own[1], labels[0], labels[1]
    output = read_by(trained.network, sent)
    score = _estimate(attack.score(output, target))
    by_label = _guess(attack, own[0], y, y_test)
    blind = _guess(attack, own[0], torch.zeros_like(y), torch.zeros_like(y_test))
    label = float(attack.score(by_label, target).mean())
    values: dict[str, Any] = {"psnr": None, "ssim": None, "ssim_label": None, "information": None}
    if isinstance(attack, Attribute):
        frequencies = torch.bincount(target, minlength=attack.num_classes).double() / len(target)
        entropy = float(torch.special.entr(frequencies).sum())
        told = _estimate(entropy - attack.loss(output.double(), target))
        values["information"] = told
    elif target.dim() == 4:
        values["psnr"] = psnr(score.value, value_range)
        values["ssim"] = float(ssim(output, target, value_range).mean())
        values["ssim_label"] = float(ssim(by_label, target, value_range).mean())
    return AttackResult(
        attack=name,
        unit=attack.unit,
        queries=count,
        score=score,
        label=label,
        blind=float(attack.score(blind, target).mean()),
        strength=strength,
        epochs=trained.epochs,
        stopped=trained.stopped,
        **values,
    )


def _guess(attack: Any, own: Tensor, y: Tensor, y_test: Tensor) -> Tensor:
    """The best guess from a label alone: the mean input of its class, or the most frequent attribute."""
    found = []
    for c in range(int(torch.cat([y, y_test]).max()) + 1):
        chosen = own[y == c] if bool((y == c).any()) else own
        if isinstance(attack, Attribute):
            found.append(torch.bincount(chosen, minlength=attack.num_classes).double())
        else:
            found.append(chosen.mean(0))
    return torch.stack(found)[y_test]


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


def _estimate(values: Tensor) -> Estimate:
    mean = RunningMean()
    mean.update(values)
    return mean.compute()


def _checked(pair: Any, what: str) -> Pair:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise TypeError(f"audit {what}: expected tensors (x, y){see('how-to/audit_a_layer')}")
    x, y = pair
    if not x.is_floating_point() or y.is_floating_point() or y.dim() != 1 or len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"audit {what}: expected real inputs and as many class indices, at least two, got {x.dtype} of shape "
            f"{tuple(x.shape)} and {y.dtype} of shape {tuple(y.shape)}{see('how-to/audit_a_layer')}"
        )
    return x, y


def _attribute(name: str, own: Tensor, test: Tensor, count: int, count_test: int) -> int:
    for values, expected in ((own, count), (test, count_test)):
        if values.is_floating_point() or values.dim() != 1 or len(values) != expected or int(values.min()) < 0:
            raise ValueError(
                f"audit private={name!r}: expected whole numbers from 0 up, one for each of {expected} examples, got "
                f"{values.dtype} of shape {tuple(values.shape)}{see('how-to/audit_a_layer')}"
            )
    return int(torch.cat([own, test]).max()) + 1
