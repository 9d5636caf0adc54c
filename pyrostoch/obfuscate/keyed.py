"""Noise that is fixed for each input by a secret key, so that asking again tells nothing new."""

from __future__ import annotations

import hashlib
import hmac

import torch
from torch import Tensor

from pyrostoch._checks import check_count
from pyrostoch._seeds import mixed_seed
from pyrostoch.obfuscate.client import Client
from pyrostoch.obfuscate.sender import Sender
from pyrostoch.prediction.readouts import seeded

__all__ = ["KeyedClient"]


class KeyedClient:
    """A client whose draws for an input depend on that input and a secret key only.

    Their seed is the HMAC-SHA256 of the input's bytes. The same input is sent in the same way whenever it is asked
    for; another one, however near, under other noise, so that near-duplicates are as good as repeated queries. Torch's
    random numbers are no cryptographic ones: who knows many of them may find the seed.

    Args:
        client: The client.
        key: The secret, at least 16 bytes.

    Raises:
        TypeError: The key is no bytes.
        ValueError: It is too short.

    Example:
        >>> import pyrostoch as ps
        >>> net = torch.nn.Sequential(ps.layers.StochasticAdditive(3, scale=0.5), torch.nn.Linear(3, 2))
        >>> model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=4)
        >>> client = KeyedClient(Client(model, ps.guides.Additive(model), at="0"), key=b"0123456789abcdef")
        >>> x = torch.zeros(2, 3)
        >>> (one,), (two,), (near,) = client.send(x), client.send(x), client.send(x + 1e-6)
        >>> bool((one == two).all()), bool((one == near).any())
        (True, False)

    References:
        Krawczyk, Bellare, Canetti, "HMAC: keyed-hashing for message authentication", 1997.
    """

    def __init__(self, client: Client, key: bytes) -> None:
        if not isinstance(key, bytes):
            raise TypeError(
                f"KeyedClient key: expected bytes, such as secrets.token_bytes(32), got {type(key).__name__}"
            )
        if len(key) < 16:
            raise ValueError(f"KeyedClient key: expected at least 16 bytes, got {len(key)}")
        self.client, self._key = client, key

    def send(self, x: Tensor, *, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """What leaves the client for some examples.

        Args:
            x: Inputs, (batch, ...).
            labels: Classes known to the client's conditional layers.
        """
        seeds = [self._seed(example) for example in x]
        sender = Sender(self.client, x, labels)
        parameters = sender.normal_parameters()
        if parameters is not None:
            loc, scale = parameters
            noise = [torch.randn(loc.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            return (loc + scale * torch.stack(noise).to(loc),)
        parts = [
            self.client.send(x[row : row + 1], labels=None if labels is None else labels[row : row + 1], seed=seed)
            for row, seed in enumerate(seeds)
        ]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def send_near(
        self, x: Tensor, count: int, *, labels: Tensor | None = None, spread: float = 1 / 255, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """The mean of what is sent for inputs near each example: what somebody gets who may ask for such.

        Args:
            x: Inputs.
            count: Number of inputs near each of them; of one it is the example itself.
            labels: Classes known to the client's conditional layers.
            spread: Standard deviation of what is added to them.
            seed: Seed of what is added.
        """
        totals: list[Tensor] = []
        for number in range(check_count("send_near count", count)):
            with seeded(mixed_seed(seed, number), None):
                near = x if number == 0 else x + spread * torch.randn(x.shape).to(x)
            sent = self.send(near, labels=labels)
            totals = list(sent) if not totals else [a + b for a, b in zip(totals, sent, strict=True)]
        return tuple(total / count for total in totals)

    def _seed(self, example: Tensor) -> int:
        data = example.detach().cpu().contiguous().numpy().tobytes()
        return int.from_bytes(hmac.new(self._key, data, hashlib.sha256).digest()[:8], "big") >> 1
