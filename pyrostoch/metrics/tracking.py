"""Scores of tracking: MOTA and IDF1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrostoch.metrics.overlaps import check_overlaps
from pyrostoch.records import Record

__all__ = ["Tracking", "TrackingScores", "assignment"]


@dataclass(frozen=True)
class TrackingScores(Record):
    """How well objects are followed.

    Args:
        mota: Multiple object tracking accuracy, 1 - (misses + false positives + switches) / objects; may be negative.
        idf1: The share of detections and objects, twice the matched ones over all, under the best assignment of tracks
            to objects for whole clips.
        misses: Objects of frames that were not found.
        false_positives: Detections of frames without an object.
        switches: How often an object went over to another track.
        num_objects: Objects, summed over frames.
    """

    mota: float
    idf1: float
    misses: int
    false_positives: int
    switches: int
    num_objects: int


@dataclass(frozen=True)
class _Held:
    """The track that an object had, and the frame in which it had it last."""

    track: int
    frame: int


class Tracking:
    r"""MOTA and IDF1 over clips, added clip by clip.

    In each frame objects keep the track that they had, where their overlap with it is still large enough; all others
    are assigned so that the sum of overlaps is largest (CLEAR MOT). For IDF1, whole tracks are assigned to whole
    objects of a clip so that most frames agree.

    Args:
        overlap: Smallest intersection over union that counts as a match.

    Example:
        >>> import torch
        >>> metric = Tracking()
        >>> frames = [torch.eye(2), torch.eye(2).flip(0)]
        >>> metric.update(frames, [torch.tensor([7, 8]), torch.tensor([8, 7])], [torch.tensor([0, 1])] * 2)
        >>> metric.compute().mota, metric.compute().idf1
        (1.0, 1.0)

    References:
        Bernardin, Stiefelhagen, "Evaluating multiple object tracking performance: the CLEAR MOT metrics", 2008;
        Ristani, Solera, Zou, Cucchiara, Tomasi, "Performance measures and a data set for multi-target, multi-camera
        tracking", 2016.
    """

    def __init__(self, overlap: float = 0.5) -> None:
        if not 0.0 < overlap <= 1.0:
            raise ValueError(f"Tracking needs an overlap above 0 and up to 1, got {overlap}")
        self.overlap = overlap
        self._misses = self._false = self._switches = self._objects = self._detections = self._agreeing = 0

    def update(self, overlaps: list[Tensor], tracks: list[Tensor], objects: list[Tensor]) -> None:
        """Add a clip.

        Args:
            overlaps: For each frame the overlap of each detection with each object, (detections, objects).
            tracks: For each frame the number of the track of each detection, (detections,).
            objects: For each frame the number of each object, (objects,).

        Raises:
            ValueError: The lists differ in length, shapes do not fit, a number is there twice in a frame, or overlaps
                are not from 0 to 1. Nothing has been added then.
        """
        if not len(overlaps) == len(tracks) == len(objects):
            raise ValueError(
                f"Tracking expects one entry for each frame, got {len(overlaps)} overlaps, {len(tracks)} tracks and "
                f"{len(objects)} objects; clips of other lengths are added one by one"
            )
        frames = []
        for number, (table, own, given) in enumerate(zip(overlaps, tracks, objects, strict=True)):
            names, truths = own.tolist(), given.tolist()
            if tuple(table.shape) != (len(names), len(truths)):
                raise ValueError(
                    f"Tracking, frame {number}: expected overlaps ({len(names)}, {len(truths)}), got "
                    f"{tuple(table.shape)}"
                )
            if len(set(names)) < len(names) or len(set(truths)) < len(truths):
                raise ValueError(f"Tracking, frame {number}: a track or an object is there twice")
            check_overlaps(table, f"Tracking, frame {number}")
            frames.append((table.detach().double().cpu().numpy(), names, truths))
        before: dict[int, _Held] = {}
        agreeing: dict[tuple[int, int], int] = {}
        for number, (close, names, truths) in enumerate(frames):
            pairs = self._matched(close, names, truths, before)
            for row, column in pairs:
                held = before.get(truths[column])
                self._switches += held is not None and held.track != names[row]
                before[truths[column]] = _Held(names[row], number)
            self._misses += len(truths) - len(pairs)
            self._false += len(names) - len(pairs)
            self._objects += len(truths)
            self._detections += len(names)
            for row, column in np.argwhere(close >= self.overlap).tolist():
                key = (names[row], truths[column])
                agreeing[key] = agreeing.get(key, 0) + 1
        self._agreeing += _most_agreeing(agreeing)

    def _matched(
        self, close: NDArray[np.float64], names: list[int], truths: list[int], before: dict[int, _Held]
    ) -> list[tuple[int, int]]:
        """Pairs of a detection and an object of a frame, none of which is there twice."""
        kept: list[tuple[int, int]] = []
        # Of objects that had the same track, the latest one keeps it.
        columns = [column for column, truth in enumerate(truths) if truth in before]
        for column in sorted(columns, key=lambda column: -before[truths[column]].frame):
            track = before[truths[column]].track
            row = names.index(track) if track in names else None
            if row is not None and close[row, column] >= self.overlap and all(row != pair[0] for pair in kept):
                kept.append((row, column))
        rows = [row for row in range(len(names)) if row not in {pair[0] for pair in kept}]
        columns = [column for column in range(len(truths)) if column not in {pair[1] for pair in kept}]
        if rows and columns:
            # What is too far apart is worth nothing, so that it is not preferred to a pair that counts.
            worth = np.where(close >= self.overlap, close, 0.0)[np.ix_(rows, columns)]
            kept += [(rows[i], columns[j]) for i, j in assignment(worth) if worth[i, j] > 0.0]
        return kept

    def merge(self, other: Tracking) -> None:
        """Add another accumulator, of other clips.

        Args:
            other: The accumulator, which is not changed.
        """
        if other.overlap != self.overlap:
            raise ValueError(f"Tracking with the overlap {self.overlap} cannot merge one with {other.overlap}")
        for name in ("_misses", "_false", "_switches", "_objects", "_detections", "_agreeing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def compute(self) -> TrackingScores:
        """The scores of all clips so far.

        Raises:
            ValueError: There was no object.
        """
        if not self._objects:
            raise ValueError("Tracking has seen no objects")
        mota = 1.0 - (self._misses + self._false + self._switches) / self._objects
        idf1 = 2.0 * self._agreeing / (self._objects + self._detections)
        return TrackingScores(mota, idf1, self._misses, self._false, self._switches, self._objects)


def assignment(worth: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of rows and columns with the largest sum.

    Args:
        worth: What each pair is worth, (rows, columns).
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(worth, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _most_agreeing(agreeing: dict[tuple[int, int], int]) -> int:
    """Frames that agree under the best assignment of tracks to objects."""
    tracks, objects = (sorted({key[place] for key in agreeing}) for place in (0, 1))
    table = np.zeros((len(tracks), len(objects)))
    for (track, truth), count in agreeing.items():
        table[tracks.index(track), objects.index(truth)] = count
    return int(sum(table[pair] for pair in assignment(table))) if agreeing else 0
