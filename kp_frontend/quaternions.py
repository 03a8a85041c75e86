"""Poses ↔ positions and quaternions, as files and messages have them (x y z w)."""

from __future__ import annotations

import numpy as np

from kp_frontend.errors import InputError


def poses_from_quaternions(positions: np.ndarray, quaternions: np.ndarray) -> np.ndarray:
    """N×4×4 poses from N×3 positions and N×4 quaternions x y z w; these need no unit length, but a length."""
    positions, quaternions = np.asarray(positions, float), np.asarray(quaternions, float)
    norms = np.linalg.norm(quaternions, axis=1, keepdims=True)
    if (norms < 1e-6).any() or not np.isfinite(norms).all():
        row = int(np.argmin(np.nan_to_num(norms[:, 0])))
        raise InputError(f"pose {row} has the quaternion {quaternions[row]}, which is no rotation")
    x, y, z, w = (quaternions / norms).T
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, :3, :3] = np.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ], axis=1).reshape(-1, 3, 3)
    poses[:, :3, 3] = positions
    return poses


def quaternions_from_poses(poses: np.ndarray) -> np.ndarray:
    """N×4 unit quaternions x y z w (w ≥ 0) of N×4×4 poses: the eigenvector of Bar-Itzhack's symmetric matrix."""
    r = np.asarray(poses, float)[:, :3, :3]
    k = np.empty((len(r), 4, 4))
    k[:, 0, 0] = r[:, 0, 0] - r[:, 1, 1] - r[:, 2, 2]
    k[:, 1, 1] = r[:, 1, 1] - r[:, 0, 0] - r[:, 2, 2]
    k[:, 2, 2] = r[:, 2, 2] - r[:, 0, 0] - r[:, 1, 1]
    k[:, 3, 3] = r[:, 0, 0] + r[:, 1, 1] + r[:, 2, 2]
    k[:, 0, 1] = k[:, 1, 0] = r[:, 1, 0] + r[:, 0, 1]
    k[:, 0, 2] = k[:, 2, 0] = r[:, 2, 0] + r[:, 0, 2]
    k[:, 1, 2] = k[:, 2, 1] = r[:, 2, 1] + r[:, 1, 2]
    k[:, 0, 3] = k[:, 3, 0] = r[:, 2, 1] - r[:, 1, 2]
    k[:, 1, 3] = k[:, 3, 1] = r[:, 0, 2] - r[:, 2, 0]
    k[:, 2, 3] = k[:, 3, 2] = r[:, 1, 0] - r[:, 0, 1]
    quaternions = np.linalg.eigh(k)[1][:, :, -1]
    return quaternions * np.where(quaternions[:, 3:] < 0, -1.0, 1.0)
