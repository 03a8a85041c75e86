"""Visual odometry on tracks: metric with depth (RGB-D, stereo), up to scale without."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from kp_frontend.bundle_adjustment import Observations, refine_pose, residuals
from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.features import Features, Tracks
from kp_frontend.geometry import (
    absolute_pose,
    invert,
    relative_pose,
    rotation_residual,
    so3_exp,
    so3_log,
    transform,
    triangulate,
)
from kp_frontend.local_map import UNKNOWN, Keyframe, LocalMap
from kp_frontend.matching import match


@dataclass(frozen=True)
class OdometryConfig:
    """Options of odometry; lengths in pixels hold at the image's own resolution.

    ray_sigma: standard deviation in pixels of the place of the smallest keypoints; it grows with their size to the
        power of size_weight.  flow_sigma: that of a point without descriptor, followed by optical flow.
    outlier: standard deviations of a wrong sighting.
    ransac_threshold: reprojection error of an inlier of PnP, pixels.
    min_inliers: points that a pose needs.  min_inlier_share: of the points seen.
    depth_noise, depth_noise_growth: standard deviation of depth is depth_noise + depth_noise_growth·z², metres.
        The defaults are above a depth camera's own noise, because its errors are shared by neighbours and frames.
    max_depth: metres; beyond, depth is not used.
    keyframe_share: a keyframe is made where fewer of the last one's points are left.
    keyframe_motion: or where points have moved by this share of the focal length (median).
    window: keyframes that bundle adjustment refines.  capacity: keyframes that are kept.
    recall_radius: ray pixels within which a point of the map is looked for by its descriptor.
    recall_below: inliers below which that is done in every frame, not only in keyframes.
    min_angle: degrees between two rays to triangulate.  start_angle: their median to start without depth.
    start_parallax: pixels (median) that no rotation explains, to start without depth.
    patience: frames without a pose, though with features, before the map is started anew.
    """

    ray_sigma: float = 0.6
    outlier: float = 3.0
    ransac_threshold: float = 3.0
    min_inliers: int = 12
    min_inlier_share: float = 0.2
    depth_noise: float = 0.015
    depth_noise_growth: float = 0.016
    max_depth: float = 20.0
    keyframe_share: float = 0.7
    keyframe_motion: float = 0.06
    window: int = 8
    capacity: int = 20
    recall_radius: float = 8.0
    recall_below: int = 150
    size_weight: float = 0.5
    flow_sigma: float = 2.2
    min_angle: float = 0.5
    start_angle: float = 0.5
    start_parallax: float = 4.0
    patience: int = 5

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not getattr(self, entry.name) >= 0:
                raise InputError(f"odometry option {entry.name} is {getattr(self, entry.name)}, expected 0 or more")
        if self.window < 2 or self.capacity < self.window:
            seen = f"window is {self.window}, capacity {self.capacity}"
            raise InputError(f"odometry {seen}: expected 2 ≤ window ≤ capacity")

    @classmethod
    def for_stereo(cls, focal: float, baseline: float, disparity_sigma: float = 0.5, **options) -> OdometryConfig:
        """Depth noise of a stereo pair: focal in pixels, baseline in metres, disparity_sigma in pixels."""
        return cls(depth_noise=0.0, depth_noise_growth=disparity_sigma / (focal * baseline), **options)


@dataclass(frozen=True, eq=False)
class OdometryState:
    """What odometry knows after a frame.

    stamp: nanoseconds.  status: ``initialising``, ``tracking`` or ``lost``.
    world_from_camera: 4×4, None unless tracking; the world is the first camera, or up to scale where not `metric`.
    covariance: 6×6 of x y z (metres) and rotation (radians), world axes, None without a pose.
    inliers, tracked: points that agree with the pose, of those seen again.  keyframe: whether the frame became one.
    message: empty, or what the user should know.
    recovered: stamp and world_from_camera of earlier frames, which had to wait for a monocular map to start.
    """

    stamp: int
    status: str
    world_from_camera: np.ndarray | None = None
    covariance: np.ndarray | None = None
    inliers: int = 0
    tracked: int = 0
    keyframe: bool = False
    metric: bool = False
    message: str = ""
    recovered: tuple[tuple[int, np.ndarray], ...] = ()


@dataclass(frozen=True, eq=False)
class _View:
    """One frame as odometry sees it."""

    stamp: int
    features: Features
    tracks: np.ndarray
    ages: np.ndarray
    seen: Observations

    def select(self, which: np.ndarray) -> _View:
        return _View(
            self.stamp, self.features.select(which), self.tracks[which], self.ages[which], self.seen.select(which)
        )


class Odometry:
    """Tracks in, poses out; one camera."""

    def __init__(self, camera: CameraModel, config: OdometryConfig | None = None) -> None:
        self.camera = camera
        self.config = config or OdometryConfig()
        self.focal = float(camera.matrix[0, 0] + camera.matrix[1, 1]) / 2
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next frame is the origin."""
        self._origin = np.eye(4)  # world_from_camera where a map starts
        self._start_depth = 1.0  # median depth of a map that starts without metres
        self._forget()

    def _forget(self) -> None:
        config = self.config
        self._map = LocalMap(self.focal, config.window, config.capacity, np.radians(config.min_angle), config.outlier)
        self._landmark_of: dict[int, int] = {}
        self._waiting: list[_View] = []  # views that may become the first of two
        self._metric = False
        self._pose: np.ndarray | None = None
        self._before: tuple[int, np.ndarray] | None = None
        self._last: tuple[int, np.ndarray] | None = None
        self._kept = 0
        self._misses = 0

    def process(self, stamp: int, features: Features, tracks: Tracks, depths: np.ndarray | None) -> OdometryState:
        """The pose of the next frame.

        stamp: nanoseconds, later than the last.  tracks: row by row with features.
        depths: N float32 metres along z, nan = unknown; None where the sensor has no depth.
        """
        view = self._view(stamp, features, tracks, depths)
        if not np.isfinite(view.seen.rays).all():  # the lens model has no ray for every pixel
            view = view.select(np.isfinite(view.seen.rays).all(axis=1))
        if not self._map.keyframes:
            return self._initialise(view)
        return self._track(view)

    def _view(self, stamp: int, features: Features, tracks: Tracks, depths: np.ndarray | None) -> _View:
        count = len(features)
        rays = self.camera.bearings(features.keypoints)[:, :2].astype(np.float64) * self.focal
        depth = np.full(count, np.nan) if depths is None else np.asarray(depths, np.float64)
        depth = np.where((depth > 0) & (depth <= self.config.max_depth), depth, np.nan)
        spread = self.config.depth_noise + self.config.depth_noise_growth * depth**2
        seen = Observations(rays, self._ray_sigmas(features), 1 / depth, spread / depth**2)
        return _View(stamp, features, tracks.ids, tracks.ages, seen)

    def _ray_sigmas(self, features: Features) -> np.ndarray:
        """Standard deviations in pixels (N) of keypoints: a larger patch is placed less exactly.

        A feature without a descriptor was followed by optical flow, whose error is shared by all of its sightings.
        """
        if not features.descriptors.shape[1]:
            return np.full(len(features), self.config.flow_sigma)
        sizes = np.maximum(features.sizes, 1e-6).astype(np.float64)
        smallest = np.percentile(sizes, 10) if len(sizes) else 1.0
        return self.config.ray_sigma * np.maximum(sizes / smallest, 1) ** self.config.size_weight

    def _initialise(self, view: _View, message: str = "") -> OdometryState:
        if self._has_depth(view):
            self._metric = True
            return self._accept(view, invert(self._origin), None, 0, 0, message or "map started from depth", True)
        while self._waiting and not self._overlap(self._waiting[0], view):
            self._waiting.pop(0)
        few = f"{len(view.tracks)} features, waiting for more and for parallax"
        state = OdometryState(view.stamp, "initialising", message=message or few)
        if self._waiting:
            state = self._start_from_two_views(self._waiting[0], view, message)
        if state.status == "tracking":
            state, self._waiting = replace(state, recovered=self._recovered()), []
        elif len(view.tracks) >= 4 * self.config.min_inliers:
            self._waiting.append(view)
        return state

    def _has_depth(self, view: _View) -> bool:
        """Whether a map in metres can start from the view."""
        return bool(np.isfinite(view.seen.inverse_depths).sum() >= 2 * self.config.min_inliers)

    def _recovered(self) -> tuple[tuple[int, np.ndarray], ...]:
        """Poses of the frames that waited for the map to start, as far as they can be placed in it."""
        first = self._map.keyframes[0]
        poses = [(first.stamp, invert(first.pose))]
        for view in self._waiting[1:]:
            landmarks = self._landmarks(view.tracks)
            found = self._locate(view, landmarks, np.flatnonzero(self._map.known(landmarks)), invert(poses[-1][1]))
            if found is not None:
                poses.append((view.stamp, invert(found[0])))
        return tuple(poses)

    def _overlap(self, first: _View, second: _View) -> bool:
        return len(np.intersect1d(first.tracks, second.tracks)) >= max(
            0.3 * len(first.tracks), 4 * self.config.min_inliers
        )

    def _start_from_two_views(self, first: _View, second: _View, message: str) -> OdometryState:
        common, here, there = np.intersect1d(first.tracks, second.tracks, return_indices=True)
        why = message or "waiting for parallax"
        waiting = OdometryState(second.stamp, "initialising", tracked=len(common), message=why)
        rays = first.seen.rays[here], second.seen.rays[there]
        if rotation_residual(*rays, self.focal) < self.config.start_parallax:
            return waiting
        found = relative_pose(*rays, self.focal, self.config.ransac_threshold / 2)
        if found is None or found.inliers.sum() < max(4 * self.config.min_inliers, 0.5 * len(common)):
            return waiting
        points, angles = triangulate(np.eye(4), found.pose, rays[0], rays[1], self.focal)
        good = found.inliers & np.isfinite(points[:, 0])
        if good.sum() < 0.8 * found.inliers.sum() or np.median(angles[good]) < np.radians(self.config.start_angle):
            return waiting
        scale = self._start_depth / np.median(points[good, 2])
        pose = found.pose.copy()
        pose[:3, 3] *= scale
        start = invert(self._origin)
        landmarks = np.full(len(first.tracks), UNKNOWN)
        landmarks[here[found.inliers]] = self._map.new_landmarks(first.features.select(here[found.inliers]))
        self._remember(first.tracks, landmarks)
        self._map.add(Keyframe(first.stamp, start, first.features, first.tracks, first.seen, landmarks), False)
        message = message or "map started from two views"
        return self._accept(second, pose @ start, None, int(found.inliers.sum()), len(common), message, True)

    def _remember(self, tracks: np.ndarray, landmarks: np.ndarray) -> None:
        used = landmarks != UNKNOWN
        self._landmark_of.update(zip(tracks[used].tolist(), landmarks[used].tolist()))

    def _landmarks(self, tracks: np.ndarray) -> np.ndarray:
        """The landmark of each track, −1 = none; of tracks that share one, only the first has it."""
        known = self._landmark_of
        landmarks = np.array([known.get(track, UNKNOWN) for track in tracks.tolist()], np.int64).reshape(-1)
        again = np.ones(len(landmarks), bool)
        again[np.unique(landmarks, return_index=True)[1]] = False
        landmarks[again] = UNKNOWN
        return landmarks

    def _predict(self, stamp: int) -> np.ndarray:
        """camera_from_world at constant velocity."""
        assert self._last is not None
        last_stamp, last = self._last
        if self._before is None:
            return last
        share = min((stamp - last_stamp) / (last_stamp - self._before[0]), 3.0)
        step = last @ invert(self._before[1])
        moved = np.eye(4)
        moved[:3, :3], moved[:3, 3] = so3_exp(share * so3_log(step[:3, :3])), share * step[:3, 3]
        return moved @ last

    def _track(self, view: _View) -> OdometryState:
        landmarks = self._landmarks(view.tracks)
        known = np.flatnonzero(self._map.known(landmarks))
        found = self._locate(view, landmarks, known, self._predict(view.stamp))
        if found is None and view.features.descriptors.shape[1]:
            again = self._relocalise(view)
            if again is not None:
                landmarks, known, found = again
                self._remember(view.tracks, landmarks)
        if found is None:
            return self._lose(view, len(known))
        pose, covariance, inliers = found
        if not self._metric and self._has_depth(view):
            self._origin = invert(pose)
            self._forget()
            return self._initialise(view, "map started anew at this pose, in metres, since there is depth now")
        if inliers.sum() < self.config.recall_below:
            known, (pose, covariance, inliers) = self._recall(view, landmarks, known, found)
        self._strike(view.tracks, landmarks, known, inliers)
        message = f"found again after {self._misses} frames" if self._misses else ""
        keyframe = self._wants_keyframe(view, landmarks, known[inliers])
        return self._accept(view, pose, covariance, int(inliers.sum()), len(known), message, keyframe)

    def _recall(self, view: _View, landmarks: np.ndarray, known: np.ndarray, found: tuple) -> tuple[np.ndarray, tuple]:
        """`known` and `found` (see _locate) with more points of the map, where these agree; fills in `landmarks`."""
        self._map.recall(found[0], view.features, view.seen.rays, landmarks, self.config.recall_radius)
        more = np.flatnonzero(self._map.known(landmarks))
        again = self._locate(view, landmarks, more, found[0]) if len(more) > len(known) else None
        if again is None or again[2].sum() <= found[2].sum():
            return known, found
        agreed = more[again[2]]
        self._remember(view.tracks[agreed], landmarks[agreed])
        return more, again

    def _locate(
        self, view: _View, landmarks: np.ndarray, known: np.ndarray, predicted: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Pose, its covariance, and which of the features `known` agree; None without enough that do."""
        config = self.config
        if len(known) < config.min_inliers:
            return None
        points, seen = self._map.positions[landmarks[known]], view.seen.select(known)
        start = absolute_pose(points, seen.rays, self.focal, config.ransac_threshold, predicted)
        if start is None:
            return None
        pose, inliers = start.pose, start.inliers
        for _ in range(2):
            pose, covariance = refine_pose(pose, points[inliers], self._usable(seen).select(inliers), self.focal)
            errors = residuals(transform(pose, points), seen, self.focal)
            inliers = np.hypot(errors[:, 0], errors[:, 1]) <= config.outlier
            if inliers.sum() < max(config.min_inliers, config.min_inlier_share * len(known)):
                return None
        return pose, covariance, inliers

    def _usable(self, seen: Observations) -> Observations:
        """Without depth where the map has no metres."""
        if self._metric:
            return seen
        return Observations(seen.rays, seen.ray_sigmas, np.full(len(seen.rays), np.nan), seen.inverse_depth_sigmas)

    def _relocalise(self, view: _View) -> tuple[np.ndarray, np.ndarray, tuple] | None:
        """Landmarks and pose by matching descriptors with the last keyframes."""
        for keyframe in self._map.keyframes[: -6 : -1]:
            pairs = match(view.features, keyframe.features, ratio=0.8)
            landmarks = np.full(len(view.features), UNKNOWN)
            landmarks[pairs.query] = keyframe.landmarks[pairs.train]
            known = np.flatnonzero(self._map.known(landmarks))
            found = self._locate(view, landmarks, known, None)
            if found is not None and found[2].sum() >= 2 * self.config.min_inliers:
                landmarks[np.setdiff1d(np.arange(len(landmarks)), known[found[2]])] = UNKNOWN
                return landmarks, known[found[2]], (found[0], found[1], np.ones(found[2].sum(), bool))
        return None

    def _strike(self, tracks: np.ndarray, landmarks: np.ndarray, known: np.ndarray, inliers: np.ndarray) -> None:
        """Part tracks from the landmark that they have missed three frames running."""
        self._map.strikes[landmarks[known[inliers]]] = 0
        self._map.strikes[landmarks[known[~inliers]]] += 1
        for row in known[self._map.strikes[landmarks[known]] >= 3]:
            self._landmark_of.pop(int(tracks[row]), None)

    def _wants_keyframe(self, view: _View, landmarks: np.ndarray, agreed: np.ndarray) -> bool:
        if np.count_nonzero((landmarks == UNKNOWN) & (view.ages >= 3)) > len(agreed):
            return True  # steady tracks that no keyframe has seen outnumber the map
        last = self._map.keyframes[-1]
        common, here, there = np.intersect1d(landmarks[agreed], last.landmarks, return_indices=True)
        self._kept = max(self._kept, len(common))
        if len(common) < max(self.config.keyframe_share * self._kept, 2 * self.config.min_inliers):
            return True
        moved = np.linalg.norm(view.seen.rays[agreed][here] - last.seen.rays[there], axis=1)
        return bool(np.median(moved) > self.config.keyframe_motion * self.focal)

    def _lose(self, view: _View, tracked: int) -> OdometryState:
        self._misses += 1
        seen = f"{len(view.features)} features, {tracked} of known points"
        message = f"lost: {seen}; a pose needs {self.config.min_inliers} that agree"
        state = OdometryState(view.stamp, "lost", tracked=tracked, metric=self._metric, message=message)
        ready = len(view.features) >= 4 * self.config.min_inliers
        if self._misses < self.config.patience or not ready:
            return state
        assert self._last is not None
        self._origin = invert(self._last[1])
        self._start_depth = self._map.median_depth(self._last[1])
        misses = self._misses
        self._forget()
        return self._initialise(view, f"map started anew at the last known pose after {misses} frames without one")

    def _accept(
        self,
        view: _View,
        pose: np.ndarray,
        covariance: np.ndarray | None,
        inliers: int,
        tracked: int,
        message: str,
        keyframe: bool,
    ) -> OdometryState:
        if keyframe:
            pose = self._insert(view, pose)
        self._before, self._last = (self._last if not self._misses else None), (view.stamp, pose)
        self._misses = 0
        turn = np.kron(np.eye(2), pose[:3, :3].T)
        world_covariance = np.zeros((6, 6)) if covariance is None else turn @ covariance @ turn.T
        return OdometryState(
            view.stamp, "tracking", invert(pose), world_covariance, inliers, tracked, keyframe, self._metric, message
        )

    def _insert(self, view: _View, pose: np.ndarray) -> np.ndarray:
        """Make a keyframe of the view; its refined pose."""
        landmarks = self._landmarks(view.tracks)
        self._map.recall(pose, view.features, view.seen.rays, landmarks, self.config.recall_radius)
        bare = landmarks == UNKNOWN
        landmarks[bare] = self._map.new_landmarks(view.features.select(bare))
        self._remember(view.tracks, landmarks)
        seen = self._usable(view.seen)
        self._map.add(Keyframe(view.stamp, pose, view.features, view.tracks, seen, landmarks), self._metric)
        last = self._map.keyframes[-1]
        self._kept = 0
        self._map.compact()
        # the last sighting of a track wins; tracks that no keyframe saw are forgotten
        self._landmark_of.clear()
        for frame in self._map.keyframes:
            self._remember(frame.tracks, frame.landmarks)
        return last.pose
