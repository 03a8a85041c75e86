"""What two posed frames say of each other: depth that agrees, and matches beside their epipolar lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kp_frontend.geometry import invert, skew, transform
from kp_training.data.posed import PosedFrame

METRES, FAR_SHARE, SHARE = 0.05, 0.01, 0.02
"""By which depth may differ and agree: in metres or, beyond 5 m, as a share; as a share where the unit is unknown."""


@dataclass(frozen=True, eq=False)
class Reprojected:
    """N pixels of known depth of a frame, in another one.

    pixels: N×2 int, of the first.  points: N×2, in the second.  depth: N, along its z axis.
    seen: N, the second's depth there, 0 = unknown or outside.
    """

    pixels: np.ndarray
    points: np.ndarray
    depth: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True, eq=False)
class Agreement:
    """Pixels of a frame in another one.

    hidden: N bool, behind what the other sees, which the first sees too.  covisible: N bool, not hidden, and the other
    knows a depth there.  agree: N bool, the co-visible ones whose depth is the other's.
    """

    pixels: Reprojected
    hidden: np.ndarray
    covisible: np.ndarray
    agree: np.ndarray


def spread_pixels(height: int, width: int, most: int) -> np.ndarray:
    """N×2 int pixels, evenly spread, about `most` of them at most."""
    step = int(np.ceil(np.sqrt(height * width / most)))
    return np.stack(np.meshgrid(np.arange(0, width, step), np.arange(0, height, step)), -1).reshape(-1, 2)


def reproject(first: PosedFrame, second: PosedFrame, pixels: np.ndarray) -> Reprojected:
    """Those of N×2 int `pixels` of `first` that have a depth, in `second`."""
    depth = first.depth[pixels[:, 1], pixels[:, 0]].astype(float)
    pixels, depth = pixels[depth > 0], depth[depth > 0]
    rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(first.intrinsics).T
    moved = transform(invert(second.world_from_camera) @ first.world_from_camera, rays * depth[:, None])
    z = moved[:, 2:]
    points = np.where(z > 1e-9, (moved @ second.intrinsics.T)[:, :2] / np.maximum(z, 1e-9), -1e6)
    return Reprojected(pixels, points, moved[:, 2], _depth_at(second.depth, points))


def agreement(first: PosedFrame, second: PosedFrame, pixels: np.ndarray, metric: bool) -> Agreement:
    """Which of N×2 int `pixels` of `first` are in `second`, and as far away as it says.

    A pixel behind what `second` sees is hidden, and not co-visible, if `first` sees what hides it where it should be;
    were the poses wrong, it would not.
    """
    there = reproject(first, second, pixels)
    known, limit = there.seen > 0, _limit(there.depth, metric)
    agree = known & (np.abs(there.depth - there.seen) <= limit)
    behind = np.flatnonzero(known & (there.depth > there.seen + limit))
    back = reproject(second, first, np.rint(there.points[behind]).astype(int))
    hidden = np.zeros(len(known), bool)
    hidden[behind] = (back.seen > 0) & (np.abs(back.depth - back.seen) <= _limit(back.depth, metric))
    return Agreement(there, hidden, known & ~hidden, agree)


def fundamental_matrix(first: PosedFrame, second: PosedFrame) -> np.ndarray:
    """3×3 F with x_secondᵀ·F·x_first = 0 in pixels."""
    pose = invert(second.world_from_camera) @ first.world_from_camera
    essential = skew(pose[:3, 3]) @ pose[:3, :3]
    return np.linalg.inv(second.intrinsics).T @ essential @ np.linalg.inv(first.intrinsics)


def line_distances(fundamental: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """M pixels from M×2 points `second` to the epipolar lines of M×2 points `first`."""
    lines = np.column_stack([first, np.ones(len(first))]) @ fundamental.T
    residual = (lines[:, :2] * second).sum(1) + lines[:, 2]
    return np.abs(residual) / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)


def _limit(depth: np.ndarray, metric: bool) -> np.ndarray:
    return np.maximum(METRES, FAR_SHARE * depth) if metric else SHARE * depth


def _depth_at(depth: np.ndarray, points: np.ndarray) -> np.ndarray:
    """N depths of the pixels nearest to N×2 points, 0 outside."""
    x, y = np.rint(points).astype(np.int64).T
    within = (x >= 0) & (x < depth.shape[1]) & (y >= 0) & (y < depth.shape[0])
    return np.where(within, depth[np.where(within, y, 0), np.where(within, x, 0)], 0)
