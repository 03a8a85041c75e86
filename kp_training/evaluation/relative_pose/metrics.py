"""How far an estimated pose is from the true one, and what that is worth; a pose is 4×4, second_from_first.

Errors are in degrees.  A pose that was not found has the error ∞, never left out (EVALUATION.md, trap 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kp_frontend.geometry import skew, so3_log

LEAST_LENGTH = 1e-9  # of a translation that has a direction


def rotation_error(pose: np.ndarray, truth: np.ndarray) -> float:
    """Angle between two rotations."""
    return float(np.degrees(np.linalg.norm(so3_log(pose[:3, :3].T @ truth[:3, :3]))))


def direction_error(pose: np.ndarray, truth: np.ndarray, folded: bool = False) -> float:
    """Angle between the directions of two translations; 0 where the true one has none.

    folded: min(e, 180 − e), as the papers do: a camera that moved the wrong way is right.
    """
    length = np.linalg.norm(truth[:3, 3])
    if length < LEAST_LENGTH:
        return 0.0
    first, second = pose[:3, 3] / max(np.linalg.norm(pose[:3, 3]), LEAST_LENGTH), truth[:3, 3] / length
    # arctan2, for arccos tells no angle below 1e-6 degrees from 0
    error = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second)), first @ second)))
    return min(error, 180 - error) if folded else error


def position_error(pose: np.ndarray, truth: np.ndarray) -> float:
    """Distance between the places of the first camera in the second one's frame, in the unit of the poses."""
    return float(np.linalg.norm(pose[:3, 3] - truth[:3, 3]))


def area_under_curve(errors: Sequence[float], thresholds: Sequence[float]) -> list[float]:
    """Area under recall over error up to each threshold, divided by it (EVALUATION.md section D).

    Recall of the k-th of N sorted errors is k/N; between them, and from (0, 0), it is a straight line (trapezoids),
    and after the last one below the threshold it stays.  No error gives 0.
    """
    ordered = np.sort(np.asarray(errors, float))
    recall = np.arange(len(ordered) + 1) / max(len(ordered), 1)
    areas = []
    for threshold in thresholds:
        count = int(np.searchsorted(ordered, threshold))
        x = np.concatenate([[0], ordered[:count], [threshold]])
        y = np.concatenate([recall[: count + 1], recall[count : count + 1]])
        areas.append(float(np.trapezoid(y, x) / threshold))
    return areas


def pair_scores(errors: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """What each error adds to the area under the curve of steps (without trapezoids): max(0, 1 − error/threshold).

    errors: N, possibly ∞.  Returns N×T; means of it are `area_under_curve` but for 1/N.
    """
    return np.maximum(0, 1 - np.asarray(errors, float)[:, None] / np.asarray(thresholds, float))


def epipolar_errors(
    truth: np.ndarray, rays0: np.ndarray, rays1: np.ndarray, focal: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far matches are from the true epipolar geometry, in pixels and as the papers measure it.

    rays0, rays1: N×2 undistorted image points at z = 1.  focal: pixels.
    Pixels: the larger of the distances of both points to their lines.  Papers (SuperGlue's precision): the squared
    distances to both lines, added, at z = 1; compared with 5e-4.
    """
    direction = truth[:3, 3] / max(np.linalg.norm(truth[:3, 3]), LEAST_LENGTH)
    essential = skew(direction) @ truth[:3, :3]
    points = [np.column_stack([rays, np.ones(len(rays))]) for rays in (rays0, rays1)]
    lines1, lines0 = points[0] @ essential.T, points[1] @ essential
    algebraic = np.square(np.sum(points[1] * lines1, axis=1))
    widths = [np.maximum(np.square(lines[:, :2]).sum(axis=1), 1e-18) for lines in (lines0, lines1)]
    squared = [algebraic / width for width in widths]
    return focal * np.sqrt(np.maximum(*squared)), squared[0] + squared[1]
