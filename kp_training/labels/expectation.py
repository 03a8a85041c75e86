"""Soft expectation: how often a detector finds each piece of a scene's surface, over all the frames that see it.

SEDM ("Soft expectation and deep maximization for image feature detection"), the E step.  Every pixel with depth falls
into a voxel, and a voxel's repeatability is the sum of the scores of all pixels of all frames that fell into it over
their number.  Each frame then reads the repeatability of the voxel behind each of its pixels.

Voxels are rows of arrays sorted by an integer key; no dict and no grid, so that a scene costs what its surface does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kp_training.data.posed import PosedFrame

BITS = 21
NOWHERE = np.int64(-1)
"""Key of a pixel without depth, or so far away that its voxel has no number."""
_MIDDLE, _MASK = 1 << (BITS - 1), (1 << BITS) - 1


class VoxelGrid(NamedTuple):
    """Cubes that fill the world.  origin: 3 float64, where the middle one begins.  side: both in the scene's unit."""

    origin: np.ndarray
    side: float

    def keys(self, frame: PosedFrame) -> np.ndarray:
        """H×W int64: the voxel of the surface behind each pixel of a frame with depth, NOWHERE where there is none."""
        height, width = frame.depth.shape
        rays = self._rotation(frame) @ np.linalg.inv(frame.intrinsics)
        y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
        usable = np.isfinite(frame.depth) & (frame.depth > 0)
        depth = np.where(usable, frame.depth, 0)
        keys = np.zeros((height, width), np.int64)
        for (a, b, c), camera in zip(rays.astype(np.float32), self.camera(frame).astype(np.float32)):
            number = np.floor((a * x + b * y + c) * depth + camera) + _MIDDLE
            usable &= (number >= 0) & (number <= _MASK)
            keys = keys << BITS | np.where(usable, number, 0).astype(np.int64)
        return np.where(usable, keys, NOWHERE)

    def camera(self, frame: PosedFrame) -> np.ndarray:
        """3 float64: where the frame was taken, in voxels from the origin."""
        return (frame.world_from_camera[:3, 3] - self.origin) / self.side

    def _rotation(self, frame: PosedFrame) -> np.ndarray:
        return frame.world_from_camera[:3, :3] / self.side


def voxel_centres(keys: np.ndarray) -> np.ndarray:
    """N×3 float32: centres of the voxels of N keys, in voxels from the grid's origin."""
    numbers = [(keys >> shift & _MASK) - _MIDDLE for shift in (2 * BITS, BITS, 0)]
    return np.stack(numbers, 1).astype(np.float32) + np.float32(0.5)


class Voxels(NamedTuple):
    """What frames saw of some voxels.

    keys: M int64, ascending, each once.  sums: M×6 float32: of the scores and the number of the pixels that fell into
    the voxel; of the frames that saw it, their number and (x, y, z) of the unit vectors from it to their cameras.
    """

    keys: np.ndarray
    sums: np.ndarray

    def __or__(self, other: Voxels) -> Voxels:
        """What both saw together."""
        keys, order, starts = _grouped(np.concatenate([self.keys, other.keys]), "stable")  # merges what is in order
        return Voxels(keys, np.add.reduceat(np.concatenate([self.sums, other.sums])[order], starts, axis=0))


def voxels_of_frame(keys: np.ndarray, scores: np.ndarray, camera: np.ndarray) -> Voxels:
    """Of one frame: H×W voxel keys, H×W scores, camera position in voxels from the grid's origin."""
    seen = keys != NOWHERE
    found, order, starts = _grouped(keys[seen])
    hits = np.diff(starts, append=len(order))
    towards = camera.astype(np.float32) - voxel_centres(found)
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), np.float32(1e-6))
    total = np.add.reduceat(scores[seen][order], starts, dtype=np.float64)
    return Voxels(found, np.column_stack([total, hits, np.ones(len(found)), towards]).astype(np.float32))


def _grouped(keys: np.ndarray, kind: str = "quicksort") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """M different ones of N keys, ascending; the order that sorts the N, and where in it each of the M begins.

    What `np.unique` does, which takes three times as long for the order.
    """
    order = np.argsort(keys, kind=kind)
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[starts], order, starts


class Expectation:
    """Repeatability of the voxels that the frames added so far have seen.

    least_angle: degrees.  A voxel seen from a single direction is unknown, since there nothing was repeated.  The paper
    does not say when directions are one; here, when they are spread less than two directions of this angle between
    them would be, the spread being the length of the mean of the unit vectors (two at angle a: cos a/2).
    """

    def __init__(self, grid: VoxelGrid, least_angle: float) -> None:
        self.grid, self.least_angle = grid, least_angle
        self._parts: list[Voxels] = []

    def add(self, frame: PosedFrame, scores: np.ndarray) -> None:
        """Count a frame with depth in, with its H×W float32 scores."""
        self._parts.append(voxels_of_frame(self.grid.keys(frame), scores, self.grid.camera(frame)))
        # Like goes with like, so that a voxel is sorted as often as the number of frames has binary digits.
        while len(self._parts) > 1 and len(self._parts[-2].keys) < 2 * len(self._parts[-1].keys):
            self._merge()

    def _merge(self) -> None:
        last = self._parts.pop()
        self._parts[-1] |= last

    def voxels(self) -> Voxels:
        """All voxels that were seen."""
        while len(self._parts) > 1:
            self._merge()
        return self._parts[0] if self._parts else Voxels(np.zeros(0, np.int64), np.zeros((0, 6), np.float32))

    def repeatability(self, frame: PosedFrame) -> tuple[np.ndarray, np.ndarray]:
        """H×W float32 of the voxel behind each pixel, and H×W bool, where it is known; 0 where it is not."""
        keys, (known_keys, sums) = self.grid.keys(frame), self.voxels()
        if not len(known_keys):
            return np.zeros(keys.shape, np.float32), np.zeros(keys.shape, bool)
        rows = np.minimum(np.searchsorted(known_keys, keys), len(known_keys) - 1)
        score, hits, views, *towards = np.moveaxis(sums[rows], -1, 0)
        spread = np.linalg.norm(towards, axis=0) <= np.cos(np.radians(self.least_angle) / 2) * views
        known = (known_keys[rows] == keys) & spread
        return np.where(known, score / hits, 0).astype(np.float32), known
