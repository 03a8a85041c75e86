"""Corners that are followed by optical flow, from picture to picture."""

from __future__ import annotations

import time
from dataclasses import dataclass

import cv2
import numpy as np

from kp_frontend.corners import shi_tomasi
from kp_frontend.errors import InputError
from kp_frontend.extractors.base import check_image
from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.images import to_gray
from kp_frontend.stereo import refine_disparities, search_rows
from kp_frontend.trackers.base import Seen, Tracked, Tracker, TrackerConfig, TrackIds

FLOW = "gftt_lk"


class FlowTracker(Tracker):
    """Shi-Tomasi corners followed by pyramidal Lucas-Kanade: the honest baseline (``gftt_lk``).

    Its features have no descriptors (N×0); their scores are those of the corner when it was detected.
    """

    concurrent = True

    def __init__(self, config: TrackerConfig | None = None, top_k: int = 1000) -> None:
        self.config = config or TrackerConfig()
        self.name = FLOW
        self.top_k = top_k
        self._ids = TrackIds()
        self.reset()

    def reset(self) -> None:
        """Forget all tracks; see Tracker."""
        self._gray: np.ndarray | None = None
        self._keypoints = self._velocities = np.zeros((0, 2), np.float32)
        self._scores = np.zeros(0, np.float32)
        self._tracks = Tracks.empty()
        self._missed = 0  # frames since that picture

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None, right: np.ndarray | None = None) -> Seen:
        """The grey images: corners are found where flow has left room; see Tracker."""
        check_image(image, mask)
        return Seen(to_gray(image), mask, None if right is None else to_gray(right), Features.empty(0), None, {})

    def follow(self, seen: Seen) -> Tracked:
        """Follow the corners of the frame before, then detect new ones where the picture is empty; see Tracker."""
        begin, gray, mask = time.perf_counter(), seen.image, seen.mask
        found, errors, rows = self._follow(gray, mask)
        followed = time.perf_counter()
        fresh, scores = self._detect(gray, mask, found)
        timings = {"flow": (followed - begin) * 1e3, "detect": (time.perf_counter() - followed) * 1e3}
        if len(found) + len(fresh) < 0.1 * len(self._keypoints) and self._missed < self.config.max_missed:
            return self._wait(np.concatenate([found, fresh]), timings)
        matches = Matches(np.arange(len(rows)), rows, errors) if not self._missed else Matches.empty()
        self._renew(gray, found, rows, fresh, scores)
        features = Features(self._keypoints, self._scores, np.zeros((len(self._keypoints), 0), np.float32))
        return Tracked(features, self._tracks, matches, timings)

    def _wait(self, keypoints: np.ndarray, timings: dict[str, float]) -> Tracked:
        """A picture in which next to nothing is seen: keep the one before, to follow from it when the view is back."""
        self._missed += 1
        count = len(keypoints)
        features = Features(keypoints, np.zeros(count, np.float32), np.zeros((count, 0), np.float32))
        return Tracked(features, Tracks.empty(count), Matches.empty(), timings)

    def _renew(
        self, gray: np.ndarray, found: np.ndarray, rows: np.ndarray, fresh: np.ndarray, scores: np.ndarray
    ) -> None:
        """Go on from this picture, with the corners of `rows` at `found` and the `fresh` ones."""
        velocities = (found - self._keypoints[rows]) / (self._missed + 1)
        self._tracks = Tracks(
            np.concatenate([self._tracks.ids[rows], self._ids.take(len(fresh))]),
            np.concatenate([self._tracks.ages[rows] + 1, np.ones(len(fresh), np.uint32)]).astype(np.uint32),
        )
        self._keypoints = np.concatenate([found, fresh])
        self._velocities = np.concatenate([velocities, np.zeros_like(fresh)]).astype(np.float32)
        self._scores = np.concatenate([self._scores[rows], scores])
        self._gray, self._missed = gray, 0

    def match_stereo(self, seen: Seen, features: Features) -> np.ndarray:
        """Correlate along rows, then refine to sub-pixel; see Tracker."""
        if seen.right is None:
            return np.full(len(features), np.nan, np.float32)
        largest = round(self.config.max_disparity * max(seen.image.shape))
        rough = search_rows(seen.image, seen.right, features.keypoints, largest)
        return refine_disparities(seen.image, seen.right, features.keypoints, rough, self.config.stereo_rows)

    def _follow(self, gray: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the corners kept: places in `gray` (M×2), forth-and-back errors (M), rows in the frame before (M)."""
        if self._gray is None or self._gray.shape != gray.shape or not len(self._keypoints):
            return np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        guess = self._keypoints + self._velocities * np.float32(self._missed + 1)
        found, good = self._flow(self._gray, gray, self._keypoints, guess)
        back, good_back = self._flow(gray, self._gray, found, self._keypoints)
        errors = np.linalg.norm(back - self._keypoints, axis=1).astype(np.float32)
        height, width = gray.shape
        inside = (found >= 0).all(axis=1) & (found <= (width - 1, height - 1)).all(axis=1)
        keep = good & good_back & inside & (errors <= self.config.flow_error)
        if mask is not None:
            x, y = np.rint(np.clip(found, 0, (width - 1, height - 1))).astype(np.int64).T
            keep &= mask[y, x] > 0
        rows = np.flatnonzero(keep)
        rows = rows[_apart(found[rows], self._tracks.ages[rows], self.config.min_distance / 2)]
        return found[rows], errors[rows], rows

    def _flow(
        self, source: np.ndarray, target: np.ndarray, points: np.ndarray, guess: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        found, status, _ = cv2.calcOpticalFlowPyrLK(
            source, target, points.reshape(-1, 1, 2), guess.reshape(-1, 1, 2).copy(),
            winSize=(self.config.flow_window, self.config.flow_window), maxLevel=self.config.flow_levels,
            criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.01), flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        return found.reshape(-1, 2), status.reshape(-1) == 1

    def _detect(self, gray: np.ndarray, mask: np.ndarray | None, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = self.top_k - len(taken)
        if wanted < 0.1 * self.top_k:
            return np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
        allowed = np.full(gray.shape, 255, np.uint8) if mask is None else mask.copy()
        distance = self.config.min_distance
        for x, y in np.rint(taken).astype(int).tolist():
            allowed[max(y - distance, 0) : y + distance + 1, max(x - distance, 0) : x + distance + 1] = 0
        return shi_tomasi(gray, wanted, allowed, min_distance=distance, quality=self.config.quality)


def _apart(points: np.ndarray, ages: np.ndarray, distance: float) -> np.ndarray:
    """Sorted indices of `points` so that of those in one square of side `distance` only the oldest stays."""
    squares = np.floor(points / distance).astype(np.int64)
    order = np.argsort(-ages.astype(np.int64), kind="stable")
    key = squares[order, 0] + 100_000 * squares[order, 1]
    return np.sort(order[np.unique(key, return_index=True)[1]])


@dataclass(frozen=True)
class FlowOptions(TrackerConfig):
    """What ``gftt_lk`` takes in a features spec.  top_k: at most so many corners."""

    top_k: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}, expected at least 1")
