"""Poses as text, and between the instants at which they are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.geometry import so3_exp, so3_log
from kp_frontend.quaternions import poses_from_quaternions
from kp_frontend.replay.trajectory import Trajectory

LONGEST_GAP = 250_000_000  # nanoseconds between two poses beyond which nothing is known of what is between
REACH = 20_000_000  # nanoseconds that a stamp may lie off the nearest pose where it cannot be interpolated
OPENCV_FROM_OPENGL = np.diag([1.0, -1, -1, 1])  # camera axes: y up and z back ↔ y down and z forward


def read_matrix(path: Path, rows: int = 4) -> np.ndarray:
    """rows×4 numbers of a text file, as 4×4; nan and infinity are read as such.  InputError for anything else."""
    try:
        numbers = np.array(path.read_text().split(), float)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is no matrix of numbers: {error}") from None
    if numbers.size not in (4 * rows, 16):
        raise InputError(f"{path} holds {numbers.size} numbers, expected {4 * rows}")
    matrix = np.eye(4)
    matrix[: numbers.size // 4] = numbers.reshape(-1, 4)
    return matrix


def poses_of_rows(rows: np.ndarray) -> list[np.ndarray | None]:
    """world_from_camera, 4×4, of N×7 rows tx ty tz qx qy qz qw; None where a row is not finite or its quaternion 0."""
    good = np.isfinite(rows).all(1) & (np.abs(rows[:, 3:]).sum(1) > 1e-6)
    poses = iter(poses_from_quaternions(rows[good, :3], rows[good, 3:]))
    return [next(poses) if usable else None for usable in good]


def poses_at(trajectory: Trajectory, stamps: np.ndarray) -> list[np.ndarray | None]:
    """Poses, 4×4, at `stamps` (N int64 nanoseconds), turned and moved evenly between two known ones.

    None where the known ones are more than LONGEST_GAP apart and none is within REACH.
    """
    known, poses = trajectory.stamps, trajectory.poses
    right = np.clip(np.searchsorted(known, stamps), 0, len(known) - 1)
    left = np.maximum(right - 1, 0)
    near = np.where(np.abs(known[left] - stamps) <= np.abs(known[right] - stamps), left, right)
    between = (known[left] <= stamps) & (stamps <= known[right]) & (known[right] - known[left] <= LONGEST_GAP)
    span = np.maximum(known[right] - known[left], 1)
    share = np.clip((stamps - known[left]) / span, 0, 1)[:, None]
    turn = so3_log(poses[left, :3, :3].transpose(0, 2, 1) @ poses[right, :3, :3])
    result = poses[near].copy()
    result[between, :3, :3] = (poses[left, :3, :3] @ so3_exp(share * turn))[between]
    result[between, :3, 3] = ((1 - share) * poses[left, :3, 3] + share * poses[right, :3, 3])[between]
    covered = between | (np.abs(known[near] - stamps) <= REACH)
    return [pose if usable else None for pose, usable in zip(result, covered)]
