"""What an audit is given, checked before any attacker is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrostoch._checks import name_list
from pyrostoch._manual import see

__all__ = ["LEAST", "Pair", "check_pair", "check_parts", "check_private"]

Pair = tuple[Tensor, Tensor]

#: With fewer examples standard errors mean nothing.
LEAST = 30


def check_pair(pair: Any, what: str) -> Pair:
    """Inputs and task labels.

    Args:
        pair: What was given.
        what: Its name.

    Raises:
        TypeError: They are no pair of tensors.
        ValueError: They do not fit, or are too few.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise TypeError(f"audit {what}: expected tensors (x, y){see('how-to/audit_a_layer')}")
    x, y = pair
    if not x.is_floating_point() or y.is_floating_point() or y.dim() != 1 or len(x) != len(y):
        raise ValueError(
            f"audit {what}: expected real inputs and as many class indices of the task, got {x.dtype} of shape "
            f"{tuple(x.shape)} and {y.dtype} of shape {tuple(y.shape)}; a task that is no classification has no label "
            f"that the client might send instead{see('how-to/audit_a_layer')}"
        )
    if len(x) < LEAST:
        raise ValueError(
            f"audit {what}: expected at least {LEAST} examples, got {len(x)}: what is read of so few says nothing of "
            f"others{see('how-to/audit_a_layer')}"
        )
    return x, y


def check_parts(x: Tensor, x_test: Tensor) -> None:
    """Raise an error if the attacker's examples are those that are attacked.

    Args:
        x: Inputs of the attacker.
        x_test: Inputs that are attacked.

    Raises:
        ValueError: They are the same.
    """
    if x.shape == x_test.shape and torch.equal(x, x_test):
        raise ValueError(
            "audit test: expected other examples than the attacker's, got the same; an attacker would know the answers"
            f"{see('how-to/audit_a_layer')}"
        )


def check_private(private: Any, count: int, count_test: int) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Private attributes: the number of values, and those of the attacker's examples and of the test examples.

    Args:
        private: What was given.
        count: Number of the attacker's examples.
        count_test: Number of test examples.

    Raises:
        TypeError: It is no mapping of names to pairs of tensors.
        ValueError: Values are not numbered from 0 up, or a test example has one that the attacker has not seen.
    """
    if not isinstance(private, Mapping):
        raise TypeError(
            f"audit private: expected attributes by name, such as {{'writer': (writer, writer_test)}}, got "
            f"{type(private).__name__}{see('how-to/audit_a_layer')}"
        )
    found = {}
    for name, pair in private.items():
        if not isinstance(pair, (tuple, list)) or [isinstance(part, Tensor) for part in pair] != [True] * 2:
            raise TypeError(
                f"audit private={name!r}: expected a pair of tensors, for the attacker's examples and for the test "
                f"examples, got {type(pair).__name__}{see('how-to/audit_a_layer')}"
            )
        if name == "reconstruction":
            raise ValueError("audit private: 'reconstruction' is the name of an attack; give the attribute another one")
        own, test = (part.long() if part.dtype == torch.bool else part for part in pair)
        for part, values, expected in (("data", own, count), ("test", test, count_test)):
            if values.is_floating_point() or values.is_complex() or tuple(values.shape) != (expected,):
                raise ValueError(
                    f"audit private={name!r}: expected whole numbers from 0 up, one for each of {expected} examples of "
                    f"{part}, got {values.dtype} of shape {tuple(values.shape)}; "
                    f"torch.unique(values, return_inverse=True) numbers them{see('how-to/audit_a_layer')}"
                )
        found[name] = (_numbered(name, own, test), own, test)
    return found


def _numbered(name: str, own: Tensor, test: Tensor) -> int:
    """The number of values, which must be 0, 1, 2 and so on, each among the attacker's examples."""
    values = own.unique()
    if int(values.min()) < 0 or int(values.max()) != len(values) - 1:
        raise ValueError(
            f"audit private={name!r}: expected values that are numbered 0, 1, 2 and so on, got {len(values)} of them "
            f"from {int(values.min())} to {int(values.max())} among the attacker's examples; number them, as "
            f"torch.unique(values, return_inverse=True) does{see('how-to/audit_a_layer')}"
        )
    if len(values) < 2:
        raise ValueError(
            f"audit private={name!r}: all of the attacker's examples have the value {int(values[0])}, so that there is "
            f"nothing to read{see('how-to/audit_a_layer')}"
        )
    unseen = sorted(set(test.unique().tolist()) - set(values.tolist()))
    if unseen:
        raise ValueError(
            f"audit private={name!r}: test examples have the values {name_list(map(str, unseen))}, of which the "
            f"attacker has no example and which it cannot learn to tell; leave such examples out"
            f"{see('how-to/audit_a_layer')}"
        )
    return len(values)
