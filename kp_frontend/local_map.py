"""Keyframes and the points they share: what odometry holds its poses against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kp_frontend.bundle_adjustment import Observations, Problem, adjust, residuals
from kp_frontend.features import Features
from kp_frontend.geometry import invert, project, transform, triangulate, unproject
from kp_frontend.matching import match

UNKNOWN = -1
ANCHORS = 5  # keyframes older than the window that hold it in place


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A frame that stays.

    pose: camera_from_world 4×4.  features, tracks (N uint32 ids), seen: row by row.
    landmarks: N int64, which point of the map each feature sees, −1 = none.
    """

    stamp: int
    pose: np.ndarray
    features: Features
    tracks: np.ndarray
    seen: Observations
    landmarks: np.ndarray


class LocalMap:
    """The last keyframes, the points they see, and the refinement of both."""

    def __init__(self, focal: float, window: int, capacity: int, min_angle: float, outlier: float) -> None:
        """focal: of the ray pixels.  window: keyframes that are refined; capacity: keyframes that are kept.

        min_angle: radians between rays to triangulate.  outlier: standard deviations of a wrong sighting.
        """
        self.focal = focal
        self.window = window
        self.capacity = capacity
        self.min_angle = min_angle
        self.outlier = outlier
        self.keyframes: list[Keyframe] = []
        self.positions = np.zeros((0, 3))  # world; nan = not known yet
        self.strikes = np.zeros(0, np.int64)  # frames in a row in which a point was an outlier
        self.appearance: Features | None = None  # descriptors of the points as first seen

    def new_landmarks(self, features: Features) -> np.ndarray:
        """Ids (int64) of new points that look like `features`, and whose positions are not known yet."""
        first, count = len(self.positions), len(features)
        self.positions = np.concatenate([self.positions, np.full((count, 3), np.nan)])
        self.strikes = np.concatenate([self.strikes, np.zeros(count, np.int64)])
        self.appearance = features if self.appearance is None else self.appearance.append(features)
        return np.arange(first, first + count)

    def compact(self) -> None:
        """Renumber the points so that those of dropped keyframes go, once these are the most."""
        used = np.zeros(len(self.positions) + 1, bool)
        for frame in self.keyframes:
            used[frame.landmarks] = True
        used[UNKNOWN] = False
        if self.appearance is None or 2 * used.sum() > len(self.positions):
            return
        renumbered = np.where(used, np.cumsum(used) - 1, UNKNOWN)
        kept = used[:-1]
        self.positions, self.strikes = self.positions[kept], self.strikes[kept]
        self.appearance = self.appearance.select(kept)
        self.keyframes = [replace(frame, landmarks=renumbered[frame.landmarks]) for frame in self.keyframes]

    def recall(
        self, pose: np.ndarray, features: Features, rays: np.ndarray, landmarks: np.ndarray, radius: float
    ) -> None:
        """Fill in `landmarks` (N, −1 = none) of `features` with known points that a camera at `pose` should see.

        A point and a feature belong together if they match mutually by descriptor within `radius` ray pixels.
        """
        bare = np.flatnonzero(landmarks == UNKNOWN)
        if self.appearance is None or not features.descriptors.shape[1] or not len(bare):
            return
        seen = np.unique(np.concatenate([frame.landmarks for frame in self.keyframes]))
        hidden = np.setdiff1d(seen[self.known(seen)], landmarks)
        places, _ = project(pose, self.positions[hidden], self.focal)
        low, high = rays.min(axis=0) - radius, rays.max(axis=0) + radius
        inside = ((places > low) & (places < high)).all(axis=1)  # nan compares False
        hidden, places = hidden[inside], places[inside]
        query = replace(features.select(bare), keypoints=rays[bare].astype(np.float32))
        pairs = match(query, self.appearance.select(hidden), ratio=0.8, window=(radius, places))
        landmarks[bare[pairs.query]] = hidden[pairs.train]

    def known(self, landmarks: np.ndarray) -> np.ndarray:
        """Which of `landmarks` (N, −1 = none) have a position: N bool."""
        known = landmarks != UNKNOWN
        known[known] = np.isfinite(self.positions[landmarks[known], 0])
        return known

    def median_depth(self, pose: np.ndarray) -> float:
        """Median depth of the last keyframe's points before a camera at `pose`; 1 where there are none."""
        seen = self.keyframes[-1].landmarks
        _, depths = project(pose, self.positions[seen[self.known(seen)]], self.focal)
        return float(np.median(depths[depths > 0])) if (depths > 0).any() else 1.0

    def add(self, keyframe: Keyframe, metric: bool) -> None:
        """Add a keyframe, place the points it sees for the first time, refine the window, drop what was wrong."""
        self.keyframes.append(keyframe)
        if metric:
            self._place_by_depth(keyframe)
        self._place_by_triangulation(keyframe)
        self._refine()
        del self.keyframes[: -self.capacity]

    def _place_by_depth(self, keyframe: Keyframe) -> None:
        new = (keyframe.landmarks != UNKNOWN) & ~self.known(keyframe.landmarks)
        new &= np.isfinite(keyframe.seen.inverse_depths)
        local = unproject(keyframe.seen.rays[new], 1 / keyframe.seen.inverse_depths[new], self.focal)
        self.positions[keyframe.landmarks[new]] = transform(invert(keyframe.pose), local)

    def _place_by_triangulation(self, keyframe: Keyframe) -> None:
        """Triangulate with the earliest keyframe that saw the same landmark and has enough parallax."""
        for other in self.keyframes[-self.window : -1]:
            new = (keyframe.landmarks != UNKNOWN) & ~self.known(keyframe.landmarks)
            _, here, there = np.intersect1d(
                np.where(new, keyframe.landmarks, -2), other.landmarks, return_indices=True
            )
            if not len(here):
                continue
            rays = keyframe.seen.rays[here], other.seen.rays[there]
            points, angles = triangulate(keyframe.pose, other.pose, *rays, self.focal)
            good = angles > self.min_angle
            for frame, ray, rows in ((keyframe, rays[0], here), (other, rays[1], there)):
                error = np.linalg.norm(project(frame.pose, points, self.focal)[0] - ray, axis=1)
                good &= error < self.outlier * frame.seen.ray_sigmas[rows]
            self.positions[keyframe.landmarks[here[good]]] = points[good]

    def _refine(self) -> None:
        """Adjust the window; older keyframes that share enough points take part but stay where they are."""
        start = max(len(self.keyframes) - self.window, 0)
        visible = self._shared(self.keyframes[start:])
        index_of = np.full(len(self.positions) + 1, UNKNOWN)  # the last entry answers for landmark −1
        index_of[visible] = np.arange(len(visible))
        rows = [np.flatnonzero(index_of[frame.landmarks] != UNKNOWN) for frame in self.keyframes]
        anchors = sorted(range(start), key=lambda index: -len(rows[index]))[:ANCHORS]
        anchors = sorted(index for index in anchors if len(rows[index]) >= 15)
        taking_part = [*anchors, *range(start, len(self.keyframes))]
        if len(taking_part) < 2:
            return
        frames, rows = [self.keyframes[index] for index in taking_part], [rows[index] for index in taking_part]
        fixed = np.array([index < start for index in taking_part])
        fixed[0] = True
        landmarks = index_of[np.concatenate([frame.landmarks[r] for frame, r in zip(frames, rows)])]
        seen = Observations.concatenate([frame.seen.select(r) for frame, r in zip(frames, rows)])
        cameras = np.repeat(np.arange(len(frames)), [len(r) for r in rows])
        poses = np.stack([frame.pose for frame in frames])
        problem = Problem(poses, fixed, self.positions[visible], cameras, landmarks, seen, self.focal)
        poses, self.positions[visible] = adjust(problem)
        errors = residuals(problem.local(poses, self.positions[visible]), seen, self.focal)
        wrong = np.hypot(errors[:, 0], errors[:, 1]) > self.outlier
        for place, (index, r) in enumerate(zip(taking_part, rows)):
            kept = frames[place].landmarks.copy()
            kept[r[wrong[cameras == place]]] = UNKNOWN
            self.keyframes[index] = replace(frames[place], pose=poses[place], landmarks=kept)
        self._forget_unsupported(visible, landmarks[~wrong], seen.select(~wrong))

    def _shared(self, recent: list[Keyframe]) -> np.ndarray:
        """Sorted placed landmarks that `recent` keyframes see, and any two keyframes."""
        counts, lately = np.zeros((2, len(self.positions) + 1), np.int64)
        for frame in self.keyframes:
            counts[frame.landmarks] += 1  # a keyframe sees a landmark once
        for frame in recent:
            lately[frame.landmarks] += 1
        return np.flatnonzero((counts[:-1] >= 2) & (lately[:-1] > 0) & np.isfinite(self.positions[:, 0]))

    def _forget_unsupported(self, visible: np.ndarray, landmarks: np.ndarray, seen: Observations) -> None:
        """Points that fewer than two keyframes agree on, and no depth, have no position."""
        support = np.bincount(landmarks, minlength=len(visible))
        support += np.bincount(landmarks, np.isfinite(seen.inverse_depths), minlength=len(visible)).astype(np.int64)
        self.positions[visible[support < 2]] = np.nan
