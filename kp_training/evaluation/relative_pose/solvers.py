"""Relative pose from matches, by the estimators that papers and robots use (``SOLVERS``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import cv2
import numpy as np

from kp_frontend.errors import InputError

FEWEST = 5  # of an essential matrix


@dataclass(frozen=True, eq=False)
class Solution:
    """pose: 4×4 second_from_first, its translation of any length.  inliers: how many matches agree with it."""

    pose: np.ndarray
    inliers: int


@dataclass(frozen=True)
class Solver:
    """An estimator.

    solve: N×2 undistorted points at z = 1 in both views, the mean focal length in pixels, a seed → Solution or None.
    version: what it is; raises where it is missing.  how: threshold and limits, for the title of a table.
    """

    solve: Callable[[np.ndarray, np.ndarray, float, int], Solution | None]
    version: Callable[[], str]
    how: str

    def __str__(self) -> str:
        return f"{self.version()}: {self.how}"


def solve_poselib(rays0: np.ndarray, rays1: np.ndarray, focal: float, seed: int) -> Solution | None:
    """LO-RANSAC over five points and a robust refinement, 1 px, with PoseLib's own limits.

    Odometry gives up after 5000 iterations; on pairs with few inliers that costs up to .08 of AUC@20.
    """
    import poselib

    if len(rays0) < FEWEST:
        return None
    camera = {"model": "SIMPLE_PINHOLE", "width": 1, "height": 1, "params": [focal, 0, 0]}
    ransac = {"max_epipolar_error": 1.0, "seed": seed}
    found, report = poselib.estimate_relative_pose(rays0 * focal, rays1 * focal, camera, camera, ransac, {})
    if report["num_inliers"] < FEWEST:
        return None
    return _solution(found.R, found.t, report["num_inliers"])


def solve_opencv(rays0: np.ndarray, rays1: np.ndarray, focal: float, seed: int) -> Solution | None:
    """EVALUATION.md section D: RANSAC, .5 px over the mean focal length; of several matrices the most inliers.

    Points count at any distance where recoverPose looks at their depth: its own limit of 50 baselines drops most of
    what a short step sees.
    """
    if len(rays0) < FEWEST:
        return None
    cv2.setRNGSeed(seed)
    essentials, mask = cv2.findEssentialMat(
        rays0, rays1, np.eye(3), method=cv2.RANSAC, prob=0.99999, threshold=0.5 / focal
    )
    if essentials is None:
        return None
    best: Solution | None = None
    for essential in np.split(essentials, len(essentials) // 3):
        count, rotation, direction, _, _ = cv2.recoverPose(
            essential, rays0, rays1, np.eye(3), distanceThresh=1e9, mask=mask.copy()
        )
        if count > (best.inliers if best else 0):
            best = _solution(rotation, direction[:, 0], count)
    return best


def _solution(rotation: np.ndarray, translation: np.ndarray, inliers: int) -> Solution | None:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    return Solution(pose, int(inliers)) if np.isfinite(pose).all() else None


def _poselib_version() -> str:
    try:
        return f"PoseLib {metadata.version('poselib')}"
    except metadata.PackageNotFoundError:
        raise InputError("--solver poselib needs the Python package poselib: pip install poselib, "
                         "or give --solver opencv") from None


SOLVERS = {
    "poselib": Solver(solve_poselib, _poselib_version, "LO-RANSAC, 1 px"),
    "opencv": Solver(solve_opencv, lambda: f"OpenCV {cv2.__version__}", "RANSAC, .5 px, confidence .99999"),
}
