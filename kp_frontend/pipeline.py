"""The one road from image to pose: what the nodes deploy is what replay evaluates. No ROS in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.geometry import depth_at, disparity_to_depth
from kp_frontend.odometry import Odometry, OdometryConfig, OdometryState
from kp_frontend.trackers import load_tracker
from kp_frontend.trackers.base import Seen, Tracker, TrackerConfig


@dataclass(frozen=True, eq=False)
class Frame:
    """One instant of one camera.

    stamp: nanoseconds.  image: H×W or H×W×3 (BGR) uint8.  mask: H×W uint8, 0 = ignore there.
    depth: H×W float32, metres along z in the image's own camera, 0 or nan = unknown.
    right: second image of a rectified stereo pair, same size and rows as `image`.
    """

    stamp: int
    image: np.ndarray
    mask: np.ndarray | None = None
    depth: np.ndarray | None = None
    right: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class FrontendOutput:
    """What the front-end found in one frame.

    tracks: row by row with features.  matches: query = this frame, train = `previous`.
    previous, previous_stamp: features of the frame before and its stamp in nanoseconds; None and 0 at the start.
    state: pose and status, None without odometry.  timings: milliseconds by stage.
    """

    stamp: int
    features: Features
    tracks: Tracks
    matches: Matches
    previous: Features | None
    previous_stamp: int
    state: OdometryState | None
    timings: dict[str, float]


@dataclass(frozen=True, eq=False)
class Extracted:
    """A frame and what its images show by themselves: the first half of the road."""

    frame: Frame
    seen: Seen


class Stopwatch:
    """Collects milliseconds by stage."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + (time.perf_counter() - start) * 1e3


class Frontend:
    """Image → features → matches → tracks → pose, for one camera.

    features: a features spec (``orb``, ``gftt_lk``, a model name or path, with options) or a Tracker.
    camera: calibration of `image`; without it there are features and tracks but no pose.
    baseline: metres from the left to the right camera of a rectified pair; needed for `Frame.right`.
    odometry: its configuration, or None for no poses.

    The first frame decides nothing: depth or a second image may come and go from frame to frame.
    """

    def __init__(
        self,
        features: str | Tracker,
        *,
        top_k: int = 1000,
        backend: str = "auto",
        camera: CameraModel | None = None,
        baseline: float | None = None,
        tracker: TrackerConfig | None = None,
        odometry: OdometryConfig | None = None,
    ) -> None:
        if odometry is not None and camera is None:
            raise InputError("odometry needs a calibrated camera: publish camera_info or set calibration_file")
        if isinstance(features, str):
            features = load_tracker(features, top_k=top_k, backend=backend, config=tracker)
        self.tracker = features
        self.camera = camera
        self.baseline = baseline
        self.odometry = Odometry(camera, odometry) if odometry is not None and camera is not None else None
        self._previous: Features | None = None
        self._previous_stamp = 0

    def reset(self) -> None:
        """Forget tracks and map; the next frame starts anew."""
        self.tracker.reset()
        if self.odometry is not None:
            self.odometry.reset()
        self._previous, self._previous_stamp = None, 0

    def process(self, frame: Frame) -> FrontendOutput:
        """Process the next frame in time.

        Raises InputError, and stays usable, where the stamp does not advance or a size is not the camera's.
        A caller that sees time jump back on purpose (a looped bag) calls `reset` first.
        """
        self._check_stamp(frame.stamp)
        return self.follow(self.extract(frame))

    def extract(self, frame: Frame) -> Extracted:
        """The first half of `process`, which knows nothing of other frames.

        One thread, or several where ``tracker.concurrent``, may be in it while another is in `follow` or `reset` with
        what was extracted before.
        """
        self._check_sizes(frame)
        right = frame.right if self._needs_right(frame) else None
        return Extracted(frame, self.tracker.extract(frame.image, frame.mask, right))

    def follow(self, extracted: Extracted) -> FrontendOutput:
        """The second half of `process`: frames in order of time."""
        frame, seen = extracted.frame, extracted.seen
        self._check_stamp(frame.stamp)
        watch = Stopwatch()
        tracked = self.tracker.follow(seen)
        previous, previous_stamp = self._previous, self._previous_stamp
        # The tracker is at this frame now, even where what follows raises: the next matches are to its features.
        self._previous, self._previous_stamp = tracked.features, frame.stamp
        watch.timings.update(tracked.timings)
        state = None
        if self.odometry is not None:
            with watch.stage("depth"):
                depths = self._depths(extracted, tracked.features)
            with watch.stage("odometry"):
                state = self.odometry.process(frame.stamp, tracked.features, tracked.tracks, depths)
        return FrontendOutput(
            frame.stamp, tracked.features, tracked.tracks, tracked.matches,
            previous, previous_stamp, state, watch.timings,
        )

    def _needs_right(self, frame: Frame) -> bool:
        calibrated = self.odometry is not None and self.camera is not None and self.baseline is not None
        return calibrated and frame.depth is None and frame.right is not None

    def _depths(self, extracted: Extracted, features: Features) -> np.ndarray | None:
        """N float32 metres of the keypoints, nan = unknown; None where the frame has neither depth nor second image."""
        if extracted.frame.depth is not None:
            return depth_at(extracted.frame.depth, features.keypoints)
        if extracted.seen.right is None or self.camera is None or self.baseline is None:
            return None
        disparity = self.tracker.match_stereo(extracted.seen, features)
        return disparity_to_depth(disparity, self.camera.matrix[0, 0], self.baseline)

    def _check_stamp(self, stamp: int) -> None:
        if self._previous is not None and stamp <= self._previous_stamp:
            verb = "repeats" if stamp == self._previous_stamp else "jumps back"
            seconds = (stamp - self._previous_stamp) * 1e-9
            raise InputError(f"stamp {verb} ({seconds:+.3f} s after the frame before): frame skipped")

    def _check_sizes(self, frame: Frame) -> None:
        size = frame.image.shape[:2]
        if self.camera is not None and size != (self.camera.height, self.camera.width):
            raise InputError(
                f"image is {size[1]}×{size[0]} but camera_info says {self.camera.width}×{self.camera.height}; "
                "publish the calibration of this resolution"
            )
        if frame.right is not None and self.odometry is not None and self.baseline is None:
            raise InputError("a second image without a baseline: the right camera_info must have P[0,3] = -fx·baseline")
        for name, other in (("depth", frame.depth), ("second image", frame.right), ("mask", frame.mask)):
            if other is not None and other.shape[:2] != size:
                seen = f"{other.shape[1]}×{other.shape[0]}"
                raise InputError(f"{name} is {seen}, expected the image's {size[1]}×{size[0]}")
