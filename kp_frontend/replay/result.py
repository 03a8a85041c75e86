"""What one run of one kind of features over one recording gave, offline or live."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kp_frontend.features import Tracks
from kp_frontend.pipeline import FrontendOutput
from kp_frontend.replay.trajectory import Trajectory

COUNTS = ("keypoints", "matches", "tracked", "inliers")
STAGES = ("decode", "extract", "match", "flow", "detect", "depth", "odometry", "publish")  # in the order of work
SUMS = ("total",)  # timings that span several stages
STATUSES = ("tracking", "initialising", "lost", "error", "dropped", "none")


@dataclass(frozen=True, eq=False)
class RunResult:
    """Figures of every frame, and of the whole run.

    features: the spec as the user gave it.  mode: ``rgbd``, ``stereo``, ``mono`` or ``features`` (no poses).
    stamps: N int64 ns.  status: N strings of STATUSES; ``none`` without odometry, ``error`` where the frame failed,
        ``dropped`` where a live node left it out.
    counts: N int64 by name of COUNTS (matches: to the frame before; tracked: map points seen again).
    ages: N float32, mean age in frames of the frame's tracks.  timings: N float32 ms by stage, nan = did not run;
        ``total`` is all of them and what lies between.
    track_lengths: frames in which each track was seen.  trajectory: the poses that were found.
    errors: stamp and message of frames that could not be used.  notes: what else the user should know.
    seconds, cpu_seconds: wall and processor time.  memory_mb: peak resident memory of the process.
    overlays: BGR pictures by stamp.
    latency: N float32 ms from publishing the image to receiving its features, live runs only; nan = not received.
    dropped: stamps of frames that a live node left out.
    backend: what computed the features, "" = the node, which says it in its log.
    """

    features: str
    mode: str
    stamps: np.ndarray
    status: np.ndarray
    counts: dict[str, np.ndarray]
    ages: np.ndarray
    timings: dict[str, np.ndarray]
    track_lengths: np.ndarray
    trajectory: Trajectory
    errors: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = float("nan")
    cpu_seconds: float = float("nan")
    memory_mb: float = float("nan")
    overlays: dict[int, np.ndarray] = field(default_factory=dict)
    latency: np.ndarray | None = None
    dropped: tuple[int, ...] = ()
    backend: str = ""

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def used(self) -> np.ndarray:
        """N bool: frames that were processed."""
        return ~np.isin(self.status, ("error", "dropped"))


class Recorder:
    """Collects frames in order and makes the RunResult."""

    def __init__(self, features: str, mode: str) -> None:
        self.features, self.mode = features, mode
        self._stamps: list[int] = []
        self._status: list[str] = []
        self._counts: list[tuple[int, ...]] = []
        self._ages: list[float] = []
        self._timings: list[dict[str, float]] = []
        self._poses: list[tuple[int, np.ndarray]] = []
        self._seen = np.zeros(0, np.int64)
        self._errors: list[tuple[int, str]] = []

    def add(self, output: FrontendOutput, timings: dict[str, float]) -> None:
        """Add a processed frame; timings: ms of stages around the front-end's own, ``total`` among them."""
        state = output.state
        tracked, inliers = (state.tracked, state.inliers) if state is not None else (0, 0)
        self._append(
            output.stamp, state.status if state is not None else "none",
            (len(output.features), len(output.matches), tracked, inliers), {**timings, **output.timings},
        )
        used = output.tracks.ids > 0
        self._ages[-1] = float(output.tracks.ages[used].mean()) if used.any() else 0.0
        self._count(output.tracks)
        if state is not None and state.status == "tracking" and state.world_from_camera is not None:
            for stamp, pose in state.recovered:
                self._status[self._stamps.index(stamp)] = "tracking"
                self._poses.append((stamp, pose))
            self._poses.append((output.stamp, state.world_from_camera))

    def fail(self, stamp: int, message: str) -> None:
        """Add a frame that could not be used."""
        self._append(stamp, "error", (0,) * len(COUNTS), {})
        self._errors.append((stamp, message))

    def drop(self, stamp: int) -> None:
        """Add a frame that a live node left out."""
        self._append(stamp, "dropped", (0,) * len(COUNTS), {})

    def _append(self, stamp: int, status: str, counts: tuple[int, ...], timings: dict[str, float]) -> None:
        self._stamps.append(stamp)
        self._status.append(status)
        self._counts.append(counts)
        self._ages.append(0.0)
        self._timings.append(timings)

    def _count(self, tracks: Tracks) -> None:
        ids = tracks.ids[tracks.ids > 0].astype(np.int64)
        if len(ids) and (largest := int(ids.max())) >= len(self._seen):
            self._seen = np.pad(self._seen, (0, largest + 1 - len(self._seen)))
        np.add.at(self._seen, ids, 1)

    def result(self, **figures) -> RunResult:
        """The result; `figures` are the fields of RunResult that belong to the whole run."""
        counts = np.array(self._counts, np.int64).reshape(-1, len(COUNTS))
        stages = dict.fromkeys(stage for timings in self._timings for stage in timings)
        stamps, poses = [stamp for stamp, _ in self._poses], [pose for _, pose in self._poses]
        return RunResult(
            self.features, self.mode, np.array(self._stamps, np.int64), np.array(self._status, dtype="U12"),
            dict(zip(COUNTS, counts.T)), np.array(self._ages, np.float32),
            {s: np.array([timings.get(s, np.nan) for timings in self._timings], np.float32) for s in stages},
            self._seen[self._seen > 0], Trajectory.from_samples(np.array(stamps), np.array(poses).reshape(-1, 4, 4)),
            errors=tuple(self._errors), **figures,
        )
