"""Attackers that read the objects of obfuscated scenes, and know where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrostoch.bench.published.privacy_scores import attack_numbers
from pyrostoch.bench.published.privacy_trial import QUERIES
from pyrostoch.obfuscate import Client, Sender
from pyrostoch.obfuscate.attackers import Attribute, Reconstruction, Sent, read_by, train_attacker
from pyrostoch.obfuscate.scores import LONGER, attack_result, judged

__all__ = ["SceneObjects", "objects_read"]

#: Height and width of what the attacker sees of an object; larger than any digit.
_CROP = 32


class SceneObjects:
    """All objects of some scenes: their digits, and what surrounds them in what is sent.

    Args:
        scenes: Stored scenes.
    """

    def __init__(self, scenes: Mapping[str, Tensor]) -> None:
        self.images, size = scenes["image"], scenes["image"].shape[-1]
        counted = torch.arange(scenes["labels"].shape[1]) < scenes["count"][:, None]
        self._scene = counted.nonzero()[:, 0]
        self.digit, boxes = scenes["labels"][counted], scenes["boxes"][counted]
        # Left and top of a crop around the middle of each box, in an image with a margin of half a crop.
        self._left, self._top = (((boxes[:, i] + boxes[:, i + 2]) / 2).round().long().clamp(0, size) for i in (0, 1))

    def crops(self, images: Tensor) -> Tensor:
        """What surrounds each object, (objects, channels, height, width).

        Args:
            images: Scenes, or what was sent of them.
        """
        padded = nn.functional.pad(images, [_CROP // 2] * 4)
        windows = padded.unfold(2, _CROP, 1).unfold(3, _CROP, 1)
        return windows[self._scene, :, self._top, self._left]


def objects_read(
    client: Client, parts: Mapping[str, SceneObjects], epochs: int, most_epochs: int, seed: int
) -> dict[str, float]:
    """What attackers read of objects whose boxes they know, from one query and from the mean of several.

    Args:
        client: The client, which sends images as large as the scenes.
        parts: Objects for `"train"` and `"validation"` of the attackers, and of `"test"` scenes.
        epochs: The attackers' budget of epochs where there is no noise.
        most_epochs: The largest number of epochs on noise.
        seed: Seed of everything that is random.
    """
    senders = {name: Sender(client, part.images) for name, part in parts.items()}
    kept = {name: parts[name].crops(sender.noise_free()[0]) for name, sender in senders.items()}
    own, test = parts["train"], parts["test"]
    labels = (own.digit > 5).long(), (test.digit > 5).long()
    images = {name: part.crops(part.images) for name, part in parts.items()}
    digits = {name: part.digit for name, part in parts.items()}
    metrics = dict[str, float]()
    for short, attack, wanted in (
        ("digit", Attribute(10), digits),
        ("mse", Reconstruction(images["test"].shape[1:]), images),
    ):
        training: dict[str, Any] = {name: wanted[name] for name in ("train", "validation")}
        settings: dict[str, Any] = {"targets": training, "seed": seed}

        def score(network: nn.Module, sent: Sent, attack: Any = attack, target: Any = wanted["test"]) -> Tensor:
            found: Tensor = attack.score(read_by(network, sent).cpu(), target)
            return found

        budgets = []
        for budget in (epochs, LONGER * epochs):
            found = train_attacker(
                attack, lambda name, seed: (kept[name],), epochs=budget, until_it_stops=False, **settings
            )
            budgets.append(score(found.network, (kept["test"],)))
        strength = judged(attack, *budgets)
        network: nn.Module | None = None
        for count in QUERIES:

            def send(name: str, seed: int, count: int = count) -> Sent:
                return (parts[name].crops(senders[name].send(count, seed=seed)[0]),)

            found = train_attacker(attack, send, epochs=most_epochs, until_it_stops=True, start=network, **settings)
            network = found.network
            output = read_by(network, send("test", seed)).cpu()
            row = attack_result(
                short,
                attack,
                output,
                (wanted["train"], wanted["test"]),
                labels,
                queries=count,
                strength=strength,
                epochs=found.epochs,
                stopped=found.stopped,
                value_range=1.0,
            )
            metrics |= attack_numbers(short, row)
    return metrics
