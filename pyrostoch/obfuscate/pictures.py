"""Pictures of an audit: some images, what was sent of them, and what attackers make of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyrostoch.records import Record

__all__ = ["Pictures"]

# Channels of what is sent that are kept; more would be too small to see.
_CHANNELS = 16
# Values are kept to this share of their range, and files remain small.
_DIGITS = 3


@dataclass(frozen=True, eq=False)
class Pictures(Record):
    """A few images of an audit, as tensors.

    Args:
        low: The smallest value of the attacker's images.
        high: The largest one.
        originals: The images, (examples, channels, height, width).
        sent: What was sent of them, the mean of some queries by their number, (examples, channels, height, width), at
            most 16 channels; empty where this has no such shape.
        found: Reconstructions by the name of the attack, and the number of queries.

    Example:
        >>> import torch
        >>> pictures = Pictures(0.0, 1.0, torch.rand(2, 1, 4, 4))
        >>> pictures.keep_sent(1, (torch.rand(2, 40, 3, 3), torch.rand(2, 5)))
        >>> pictures.keep_found("reconstruction", 1, torch.rand(2, 1, 4, 4))
        >>> pictures.sent[1].shape, list(pictures.to_dict()["found"]["reconstruction"])
        (torch.Size([2, 16, 3, 3]), ['1'])
    """

    low: float
    high: float
    originals: Tensor
    sent: dict[int, Tensor] = field(default_factory=dict)
    found: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def keep_sent(self, queries: int, sent: tuple[Tensor, ...]) -> None:
        """Keep what was sent, as far as it has the shape of images: the first of such tensors.

        Args:
            queries: Number of queries of which it is the mean.
            sent: The tensors.
        """
        shaped = [tensor for tensor in sent if tensor.dim() == 4]
        if shaped:
            self.sent[queries] = rounded(shaped[0][:, :_CHANNELS])

    def keep_found(self, attack: str, queries: int, images: Tensor) -> None:
        """Keep reconstructions.

        Args:
            attack: Name of the attack.
            queries: Number of queries.
            images: The images.
        """
        self.found.setdefault(attack, {})[queries] = rounded(images)


def rounded(images: Tensor) -> Tensor:
    """Images with fewer digits than the eye could tell.

    Args:
        images: The images.

    Example:
        >>> import torch
        >>> rounded(torch.tensor([0.0, 100.0, 33.333333])).tolist()
        [0.0, 100.0, 33.3]
    """
    images = images.detach().cpu().double()
    spread = float(images.max() - images.min())
    digits = _DIGITS - math.ceil(math.log10(spread)) if spread > 0 and math.isfinite(spread) else _DIGITS
    return images.round(decimals=digits)
