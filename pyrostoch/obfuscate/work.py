"""The client's part of the work: what it saves is the reason to send anything but the answer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyrostoch.obfuscate.client import Client
from pyrostoch.prediction.validation import training_mode
from pyrostoch.protocols import FlatInputs

__all__ = ["multiplications"]


def multiplications(client: Client, x: Tensor, labels: Tensor | None = None) -> float:
    """The client's share of a network's multiplications: those made before all that is sent has been computed.

    Args:
        client: The client.
        x: An example.
        labels: Its class, if the client's conditional layers are given it.

    Returns:
        A number from 0 to 1, of matrix products and convolutions.
    """
    with training_mode(False, *client.modules), torch.no_grad(), torch.random.fork_rng():
        given: FlatInputs = client.read(x, labels)
        with client.knowing(labels):
            list(client.run([given], "mc"))  # how weights are used is then known
            counter, at_cut = FlopCounterMode(display=False), list[int]()
            with counter:
                list(client.run([given], "mc", done=lambda: at_cut.append(counter.get_total_flops())))
    total = counter.get_total_flops()
    return at_cut[-1] / total if total else 0.0
