"""What a pair of feature sets is worth under a known homography: points, distances in pixels, shares.

Every ``homography`` maps image 0 to image 1.  Nothing to count is 0, never left out (EVALUATION.md, trap 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from kp_frontend.features import Features
from kp_frontend.matching import match
from kp_training.geometry.homography import warp_points

_BLOCK = 1 << 18  # distances at a time: those of 10 000 × 10 000 points fit no cache


@dataclass(frozen=True, eq=False)
class Side:
    """One image's features and size, for scoring.  shape: (height, width)."""

    features: Features
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Matched:
    """Mutual neighbours: M×2 points in both images, M errors in pixels of image 1 (nan behind the horizon)."""

    points0: np.ndarray
    points1: np.ndarray
    errors: np.ndarray

    def __len__(self) -> int:
        return len(self.errors)


def visible(points: np.ndarray, homography: np.ndarray, shape: tuple[int, int], margin: float = 0.0) -> np.ndarray:
    """N bool: N×2 `points` land inside an image of `shape` (height, width) under `homography`.

    margin: 0 reaches to the centres of the last pixels, w − 1; 1 to just below w, as KP2D filters its points.
    """
    warped = warp_points(homography, points)
    last = np.array(shape[::-1]) - 1 + margin
    with np.errstate(invalid="ignore"):
        return ((warped >= 0) & (warped < last if margin else warped <= last)).all(1)


def shared(features: Features, homography: np.ndarray, shape: tuple[int, int], margin: float = 0.0) -> Features:
    """The features that the other image, of `shape`, shows; see `visible`."""
    return features.select(visible(features.keypoints, homography, shape, margin))


def nearest_distances(points0: np.ndarray, points1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each of N×2 points to the nearest of M×2 others, and the reverse (N and M at least 1)."""
    forth, back = np.empty(len(points0)), np.full(len(points1), np.inf)
    step = max(1, _BLOCK // len(points1))
    for start in range(0, len(points0), step):
        rows = points0[start : start + step]
        squared = (rows[:, :1] - points1[:, 0]) ** 2
        squared += (rows[:, 1:] - points1[:, 1]) ** 2
        forth[start : start + step] = squared.min(1)
        np.minimum(back, squared.min(0), out=back)
    return np.sqrt(forth), np.sqrt(back)


def repeatability(
    points0: np.ndarray, points1: np.ndarray, homography: np.ndarray, *, one_frame: bool = False, radius: float = 3.0
) -> tuple[float, float]:
    """Share of points with a neighbour within `radius` pixels, both ways, and the mean distance of those.

    points0, points1: those that the other image shows.  (0, nan) where there is none.
    one_frame: measure both ways in image 1, as KP2D does; else each point in the image it is warped into.
    """
    if not len(points0) or not len(points1):
        return 0.0, float("nan")
    forth, back = nearest_distances(warp_points(homography, points0), points1)
    if not one_frame:
        back, _ = nearest_distances(warp_points(np.linalg.inv(homography), points1), points0)
    nearest = np.concatenate([forth, back])
    near = nearest[nearest <= radius]
    return len(near) / len(nearest), float(near.mean()) if len(near) else float("nan")


def matched(features0: Features, features1: Features, homography: np.ndarray) -> Matched:
    """Mutual nearest neighbours of two sets of features."""
    found = match(features0, features1, mutual=True)
    points0, points1 = features0.keypoints[found.query], features1.keypoints[found.train]
    return Matched(points0, points1, np.linalg.norm(warp_points(homography, points0) - points1, axis=1))


def accuracy(errors: np.ndarray, limits: Sequence[float]) -> dict[str, float]:
    """``MMA@t``: share of matches with an error of at most t pixels, for each t; 0 without a match."""
    return {f"MMA@{limit}": float(np.mean(errors <= limit)) if len(errors) else 0.0 for limit in limits}


def one_way_score(query: Features, train: Features, query_from_train: np.ndarray, shape: tuple[int, int]) -> float:
    """Of the neighbours in `train` that the query's image (`shape`) shows, the share less than 3 px from the truth."""
    if not len(query) or not len(train):
        return 0.0
    found = match(query, train, mutual=False)
    points = train.keypoints[found.train]
    shown = visible(points, query_from_train, shape)
    with np.errstate(invalid="ignore"):
        correct = np.linalg.norm(warp_points(query_from_train, points) - query.keypoints[found.query], axis=1) < 3
    return float((correct & shown).sum() / max(shown.sum(), 1))


def corner_error(pairs: Matched, homography: np.ndarray, shape: tuple[int, int], iterations: int = 5000) -> float:
    """Mean error in pixels of image 0's corners under the homography that RANSAC finds; inf where it finds none.

    shape: (height, width) of image 0.  RANSAC: OpenCV's, 3 px, at most so many `iterations`, always from one seed.
    """
    if len(pairs) < 4:
        return float("inf")
    cv2.setRNGSeed(0)
    estimate, _ = cv2.findHomography(
        pairs.points0[:, None], pairs.points1[:, None], cv2.RANSAC, 3.0, maxIters=iterations
    )
    if estimate is None:
        return float("inf")
    height, width = shape
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], float)
    error = np.linalg.norm(warp_points(estimate, corners) - warp_points(homography, corners), axis=1).mean()
    return float(np.nan_to_num(error, nan=np.inf))
