"""Attacks by optimization: the input that explains best what was sent, through the known client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from pyrostoch._manual import see
from pyrostoch.obfuscate.attackers import Reconstruction
from pyrostoch.obfuscate.audit_record import AttackResult
from pyrostoch.obfuscate.channel import DrawnActivations, is_normal
from pyrostoch.obfuscate.client import Client
from pyrostoch.obfuscate.image_priors import GaussianPrior, GenerativePrior, InputPrior
from pyrostoch.obfuscate.scores import LONGER, attack_result, judged
from pyrostoch.prediction.validation import training_mode

__all__ = ["inversions", "invert"]

_HISTORY = 20


def invert(
    client: Client,
    sent: tuple[Tensor, ...],
    prior: InputPrior,
    *,
    queries: int | None = 1,
    labels: Tensor | None = None,
    steps: int = 200,
) -> Tensor:
    r"""The most probable inputs given what was sent: $\arg\max_v\ \log q(z \mid x(v)) + \log p(v)$, by descent.

    For the mean of K queries of normal activations q has variance $\sigma(x)^2 / K$. For what would be sent without
    noise it is the limit of many queries.

    Args:
        client: The client, which sends the draws of one layer of normal activations.
        sent: What was sent.
        prior: What is known of inputs.
        queries: Number of queries whose mean was sent; `None` without noise.
        labels: Classes known to the client.
        steps: The largest number of steps of L-BFGS.

    Returns:
        Inputs.

    Raises:
        ValueError: What is sent is no draw of normal activations, whose density is known.

    References:
        He, Zhang, Lee, "Model inversion attacks against collaborative inference", 2019.
    """
    count = _MANY if queries is None else queries
    variables = prior.start(len(sent[0]))
    optimizer = torch.optim.LBFGS([variables], max_iter=steps, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        with torch.enable_grad():
            given = variables.detach().requires_grad_()
            q = _sent_distribution(client, prior.inputs(given), labels, sent)
            likely = Normal(q.loc, q.scale / count**0.5).log_prob(sent[0]).double().flatten(1).sum(1)
            total = -(likely + prior.log_prob(given)).mean()
            (variables.grad,) = torch.autograd.grad(total, given)
        return total.detach()

    optimizer.step(loss)
    return prior.inputs(variables)


# What is sent without noise is taken for the mean of so many queries.
_MANY = 10_000


def _sent_distribution(client: Client, x: Tensor, labels: Tensor | None, sent: tuple[Tensor, ...]) -> Any:
    drawn = DrawnActivations()
    with client.knowing(labels), training_mode(False, *client.modules), drawn:
        ((cut, _),) = client.run([client.read(x, labels)], "mc", done=drawn.close)
    found = list(cut.outputs.values())
    alone = len(drawn.layers) == 1 and len(found) == 1 and isinstance(found[0], Tensor)
    if not alone or not torch.equal(found[0], drawn.values[0]) or not is_normal(drawn.distributions[0]):
        raise ValueError(
            "invert: expected a client that sends the draws of one layer of normal activations, whose density is known"
            f"{see('how-to/audit_a_layer')}"
        )
    return drawn.distributions[0]


def inversions(
    client: Client,
    inputs: tuple[Tensor, Tensor],
    answers: tuple[Tensor, Tensor],
    labels: Tensor | None,
    sent: Mapping[int, tuple[Tensor, ...]],
    steps: int,
    value_range: float,
    seed: int,
) -> tuple[list[tuple[AttackResult, Tensor]], list[str]]:
    """Attacks by optimization with a normal prior and with a generative one, for an audit.

    Args:
        client: The client.
        inputs: The attacker's inputs, and those that are attacked.
        answers: Task labels of both.
        labels: Classes known to the client for those that are attacked.
        sent: What was sent for them, the mean of some queries by their number.
        steps: The largest number of steps.
        value_range: The largest value of an image less the smallest one.
        seed: Seed of the generative prior.

    Returns:
        Their results with the inputs that they found, or why there is none.
    """
    x, x_test = inputs
    attack, results = Reconstruction(x.shape[1:]), list[tuple[AttackResult, Tensor]]()
    without = client.send(x_test, labels=labels, mode="noise-free")
    priors: tuple[InputPrior, ...] = (GaussianPrior(x), GenerativePrior(x, seed=seed))
    try:
        for prior in priors:
            budgets = (
                invert(client, without, prior, queries=None, labels=labels, steps=count).cpu()
                for count in (steps, LONGER * steps)
            )
            strength = judged(attack, *(attack.score(images, x_test) for images in budgets))
            for count, given in sent.items():
                output = invert(client, given, prior, queries=count, labels=labels, steps=steps).cpu()
                how: dict[str, Any] = {"queries": count, "strength": strength, "epochs": steps, "stopped": True}
                name = f"optimization, {prior.name}"
                found = attack_result(name, attack, output, inputs, answers, value_range=value_range, **how)
                results.append((found, output))
    except ValueError as error:
        return [], [f"attacks by optimization: {str(error).removeprefix('invert: ')}"]
    return results, []
