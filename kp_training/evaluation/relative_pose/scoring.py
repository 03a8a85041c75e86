"""The relative pose benchmark: pose from the matches of two views, and from depth where there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.extractors import TRACKERS, Extractor, parse_spec
from kp_frontend.features import Features
from kp_frontend.geometry import absolute_pose, depth_at, unproject
from kp_frontend.matching import match
from kp_frontend.trackers import Tracker, load_tracker
from kp_training.evaluation.homography import cached_extractor
from kp_training.evaluation.relative_pose.metrics import (
    direction_error,
    epipolar_errors,
    position_error,
    rotation_error,
)
from kp_training.evaluation.relative_pose.pairs import PosePair, PoseSource, View
from kp_training.evaluation.relative_pose.protocols import NORMALISED, PIXELS, PoseSetting
from kp_training.evaluation.relative_pose.solvers import SOLVERS, Solution
from kp_training.workers import run_tasks

CHUNK = 40  # pairs a task
_KEPT = 32  # views whose features are remembered: pairs that share one are near each other
Points = tuple[np.ndarray, np.ndarray]


class PairMatcher(Protocol):
    """Matches between any two images, by whatever means."""

    def prepare(self, image: np.ndarray) -> Any:
        """What to keep of an image for all of its pairs."""
        ...

    def match(self, first: Any, second: Any) -> Points:
        """M×2 float32 pixels in the first and in the second of two prepared images."""
        ...


@dataclass(frozen=True)
class DescriptorMatcher:
    """Mutual neighbours of an extractor's features."""

    extractor: Extractor

    def prepare(self, image: np.ndarray) -> Features:
        """The features."""
        return self.extractor.extract(image)

    def match(self, first: Features, second: Features) -> Points:
        """See PairMatcher."""
        found = match(first, second)
        return first.keypoints[found.query], second.keypoints[found.train]


@dataclass(frozen=True)
class FlowMatcher:
    """Corners of the first image followed into the second by optical flow, with a check back."""

    tracker: Tracker

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image."""
        return image

    def match(self, first: np.ndarray, second: np.ndarray) -> Points:
        """See PairMatcher; nothing between images of different size."""
        self.tracker.reset()
        before, after = self.tracker.track(first), self.tracker.track(second)
        found = after.matches
        return before.features.keypoints[found.train], after.features.keypoints[found.query]


@functools.cache
def open_matcher(spec: str, top_k: int) -> PairMatcher:
    """The matcher of a features spec, loaded once a process; InputError where the spec is wrong."""
    if parse_spec(spec)[0] in TRACKERS:
        return FlowMatcher(load_tracker(spec, top_k=top_k))
    return DescriptorMatcher(cached_extractor(spec, top_k))


@dataclass(frozen=True)
class Attempts:
    """What an estimator gave with each seed; ∞ = nothing.

    rotation: degrees.  translation: degrees between directions, or (PnP) distance in the unit of the poses.
    inliers: matches that agree.
    """

    rotation: tuple[float, ...]
    translation: tuple[float, ...]
    inliers: tuple[int, ...]


@dataclass(frozen=True)
class PairResult:
    """One pair for one extractor.

    group, pair, source: see PosePair.  length: of the true translation.  rotation_only: whether that is too short to
    judge its direction.  precision: name → share of the matches.  solved: estimator → attempts.
    pnp: pose from the first view's depth, None where it has none.
    """

    group: str
    pair: str
    source: str
    length: float
    rotation_only: bool
    matches: int
    precision: dict[str, float]
    solved: dict[str, Attempts]
    pnp: Attempts | None

    def errors(self, solver: str) -> np.ndarray:
        """What counts of each attempt, in degrees: the larger of the errors of rotation and direction."""
        found = self.solved[solver]
        return np.array(found.rotation if self.rotation_only else np.maximum(found.rotation, found.translation))


@dataclass(frozen=True)
class Task:
    """Pairs `start` to `stop` of a source for one extractor."""

    features: str
    setting: PoseSetting
    start: int
    stop: int


Results = dict[str, list[PairResult | None]]


def evaluate_poses(
    source: PoseSource, features: Sequence[str], setting: PoseSetting, jobs: int = 1,
    advance: Callable[[int], None] = lambda pairs: None,
) -> Results:
    """Features → a result for each pair of `source`, None where a view cannot be read.

    jobs: processes; results do not depend on it.  advance: called with the number of pairs that were done.
    """
    count = len(source.pairs)
    tasks = [Task(spec, setting, start, min(start + CHUNK, count))
             for spec in features for start in range(0, count, CHUNK)]
    done: dict[int, list[PairResult | None]] = {}
    for number, scored in run_tasks(functools.partial(score_task, source), tasks, jobs):
        done[number] = scored
        advance(len(scored))
    results: Results = {spec: [] for spec in features}
    for number, task in enumerate(tasks):
        results[task.features] += done[number]
    return results


def score_task(source: PoseSource, task: Task) -> list[PairResult | None]:
    """The results of a task, in order."""
    matcher = open_matcher(task.features, task.setting.top_k)

    @functools.lru_cache(_KEPT)
    def prepared(key: Any) -> tuple[View, Any] | None:
        try:
            view = source.view(key, task.setting.size)
        except InputError:
            return None
        return view, matcher.prepare(view.image)

    results: list[PairResult | None] = []
    for pair in source.pairs[task.start : task.stop]:
        first, second = prepared(pair.first), prepared(pair.second)
        if first is None or second is None:
            results.append(None)
            continue
        points = matcher.match(first[1], second[1])
        results.append(score_pair(pair, first[0], second[0], points, task.setting))
    return results


def score_pair(pair: PosePair, first: View, second: View, points: Points, setting: PoseSetting) -> PairResult:
    """What the matches of two views are worth.  points: M×2 pixels in each."""
    truth, protocol = pair.second_from_first, setting.protocol
    length = float(np.linalg.norm(truth[:3, 3]))
    rays = first.rays(points[0]), second.rays(points[1])
    focal = (first.focal + second.focal) / 2
    pixels, normalised = epipolar_errors(truth, *rays, focal)
    seeds = range(setting.seed, setting.seed + setting.repeats)
    solved = {}
    for name in setting.solvers:
        found = [SOLVERS[name].solve(*rays, focal, seed) for seed in seeds]
        solved[name] = _attempts(found, truth, lambda pose: direction_error(pose, truth, protocol.folded))
    return PairResult(
        pair.group, pair.name, pair.source, length, length <= protocol.still, len(points[0]),
        {PIXELS: _share(pixels <= 1), NORMALISED: _share(normalised < 5e-4)}, solved,
        None if first.depth is None else _by_depth(first, first.depth, second, points, truth, seeds),
    )


def _by_depth(
    first: View, depth: np.ndarray, second: View, points: Points, truth: np.ndarray, seeds: range
) -> Attempts:
    """Attempts at the pose from the first view's keypoints of known depth, seen in the second."""
    depths = depth_at(depth, first.frame_points(points[0]))
    known = np.isfinite(depths)
    lifted = unproject(first.rays(points[0][known]), depths[known], 1.0)
    seen = second.rays(points[1][known]) * second.focal
    found = [absolute_pose(lifted, seen, second.focal, seed=seed) for seed in seeds]
    solutions = [None if pose is None else Solution(pose.pose, int(pose.inliers.sum())) for pose in found]
    return _attempts(solutions, truth, lambda pose: position_error(pose, truth))


def _attempts(
    found: Sequence[Solution | None], truth: np.ndarray, translation: Callable[[np.ndarray], float]
) -> Attempts:
    rotations = tuple(np.inf if one is None else rotation_error(one.pose, truth) for one in found)
    translations = tuple(np.inf if one is None else translation(one.pose) for one in found)
    return Attempts(rotations, translations, tuple(0 if one is None else one.inliers for one in found))


def _share(agree: np.ndarray) -> float:
    return float(agree.mean()) if len(agree) else 0.0
