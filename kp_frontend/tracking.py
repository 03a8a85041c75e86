"""Features that keep their identity from frame to frame: by descriptors, or by optical flow."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from kp_frontend.corners import shi_tomasi
from kp_frontend.errors import InputError
from kp_frontend.extractors import load_extractor
from kp_frontend.extractors.base import Extractor, check_image
from kp_frontend.extractors.options import parse_spec
from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.images import to_gray
from kp_frontend.matching import match
from kp_frontend.settings import read_settings
from kp_frontend.stereo import refine_disparities, search_rows

FLOW = "gftt_lk"
LEAST_RADIUS = 0.02  # of the longer side: narrower is not faster


@dataclass(frozen=True)
class TrackerConfig:
    """Options of both trackers; lengths that follow the image size are shares of its longer side.

    window: largest radius of the search round a track's predicted place, as a share, narrower while predictions are
        good; 0 = search everywhere.
    ratio: largest distance of the best to the second best candidate; 1 = no test.
    max_distance: largest descriptor distance in the metric's unit; 0 = any.
    max_missed: frames for which an unseen track is still looked for.
    stereo_rows: pixels by which the rows of a rectified pair may differ.
    max_disparity: largest disparity of a stereo pair, as a share.
    flow_window: side in pixels of the patch that optical flow follows.  flow_levels: pyramid levels above the image.
    flow_error: pixels by which tracking forth and back may miss the start.
    min_distance: pixels between corners of the flow tracker.  quality: least corner score, share of the best.
    """

    window: float = 0.1
    ratio: float = 0.9
    max_distance: float = 0.0
    max_missed: int = 3
    stereo_rows: float = 2.0
    max_disparity: float = 0.2
    flow_window: int = 15
    flow_levels: int = 3
    flow_error: float = 0.5
    min_distance: int = 9
    quality: float = 0.005

    def __post_init__(self) -> None:
        for name, low, high in (
            ("window", 0, 1), ("ratio", 0.1, 1), ("max_missed", 0, 100), ("max_distance", 0, np.inf),
            ("stereo_rows", 0, 100), ("max_disparity", 0.001, 1), ("flow_window", 5, 101), ("flow_levels", 0, 8),
            ("flow_error", 0.01, 100), ("min_distance", 1, 200), ("quality", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"tracker option {name} is {getattr(self, name)}, expected {low} … {high}")


@dataclass(frozen=True, eq=False)
class Tracked:
    """What a tracker found in one frame.

    tracks: row by row with features.  matches: query = this frame, train = the frame before.
    timings: milliseconds by stage (``extract``, ``match`` or ``flow``, ``detect``).
    """

    features: Features
    tracks: Tracks
    matches: Matches
    timings: dict[str, float]


class Tracker(Protocol):
    """Images in order of time → features with identities.  name: as the user asked for it."""

    name: str

    def track(self, image: np.ndarray, mask: np.ndarray | None = None) -> Tracked:
        """Features of the next `image` (H×W or H×W×3 BGR uint8), none where `mask` (H×W uint8) is 0."""
        ...

    def match_stereo(self, features: Features, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """N float32 disparities in pixels (nan = none) of `features` of `left` in the rectified `right` image."""
        ...

    def reset(self) -> None:
        """Forget all tracks; ids are not used again."""
        ...


@dataclass(frozen=True, eq=False)
class _Bank:
    """Live tracks as last seen, velocity (px a frame), frames missed, row in the frame before (−1 = none)."""

    features: Features
    tracks: Tracks
    velocities: np.ndarray
    missed: np.ndarray
    rows: np.ndarray

    def select(self, which: np.ndarray) -> _Bank:
        tracks = Tracks(self.tracks.ids[which], self.tracks.ages[which])
        return _Bank(self.features.select(which), tracks, self.velocities[which], self.missed[which], self.rows[which])

    def predicted(self) -> np.ndarray:
        """N×2 float32 places in the next frame, at constant velocity while the track is fresh."""
        return self.features.keypoints + self.velocities * (self.missed == 0)[:, None]


class DescriptorTracker:
    """Tracks the features of an extractor by matching them to a bank of live tracks."""

    def __init__(self, extractor: Extractor, config: TrackerConfig | None = None) -> None:
        self.extractor = extractor
        self.config = config or TrackerConfig()
        self.name = extractor.name
        self._next_id = 1
        self.reset()

    def reset(self) -> None:
        """Forget all tracks; ids are not used again."""
        self._bank: _Bank | None = None
        self._radius = np.inf  # pixels round the predicted places where the next frame is searched first
        self._matched = 0

    def track(self, image: np.ndarray, mask: np.ndarray | None = None) -> Tracked:
        """Extract, match to the bank, start new tracks with what matched none; see Tracker."""
        begin = time.perf_counter()
        features = self.extractor.extract(image, mask)
        extracted = time.perf_counter()
        bank = self._bank or _empty_bank(features)
        matches = self._match(features, bank, max(image.shape[:2]))
        tracks = self._assign(len(features), bank, matches)
        self._bank = self._update(features, tracks, bank, matches)
        rows = bank.rows[matches.train]
        to_previous = Matches(matches.query[rows >= 0], rows[rows >= 0], matches.distances[rows >= 0])
        timings = {"extract": (extracted - begin) * 1e3, "match": (time.perf_counter() - extracted) * 1e3}
        return Tracked(features, tracks, to_previous, timings)

    def match_stereo(self, features: Features, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Match along rows by descriptor, then refine to sub-pixel; see Tracker."""
        largest = self.config.max_disparity * max(left.shape[:2])
        others = self.extractor.extract(right)
        pairs = self._compare(features, others, stereo_rows=(self.config.stereo_rows, largest))
        disparities = np.full(len(features), np.nan, np.float32)
        disparities[pairs.query] = features.keypoints[pairs.query, 0] - others.keypoints[pairs.train, 0]
        return refine_disparities(
            to_gray(left), to_gray(right), features.keypoints, disparities, self.config.stereo_rows
        )

    def _compare(self, query: Features, train: Features, **guide: Any) -> Matches:
        ratio, largest = self.config.ratio, self.config.max_distance
        return match(
            query, train, ratio=ratio if ratio < 1 else None, max_distance=largest if largest > 0 else None, **guide
        )

    def _match(self, features: Features, bank: _Bank, side: int) -> Matches:
        """Search where the last frame's predictions say, then in the whole window, then everywhere."""
        predicted, widest = bank.predicted(), self.config.window * side
        live = min(len(features), int(np.sum(bank.missed == 0)))
        found = Matches.empty()
        for radius in sorted({min(self._radius, widest), widest} - {0.0}):
            found = self._compare(features, bank.features, window=(radius, predicted))
            if len(found) > 0.5 * self._matched:
                break
        if len(found) <= 0.2 * live:  # a jump of the camera leaves the windows empty
            anywhere = self._compare(features, bank.features)
            found = anywhere if len(anywhere) > 1.5 * len(found) else found
        steady = bank.missed[found.train] == 0
        misses = np.linalg.norm(features.keypoints[found.query] - predicted[found.train], axis=1)[steady]
        self._radius = max(3 * float(np.percentile(misses, 90)), LEAST_RADIUS * side) if len(misses) else np.inf
        self._matched = len(found)
        return found

    def _assign(self, count: int, bank: _Bank, matches: Matches) -> Tracks:
        ids, ages = np.zeros(count, np.uint32), np.ones(count, np.uint32)
        ids[matches.query] = bank.tracks.ids[matches.train]
        ages[matches.query] = bank.tracks.ages[matches.train] + 1
        fresh = np.flatnonzero(ids == 0)
        ids[fresh] = np.arange(self._next_id, self._next_id + len(fresh), dtype=np.uint32)
        self._next_id += len(fresh)
        return Tracks(ids, ages)

    def _update(self, features: Features, tracks: Tracks, bank: _Bank, matches: Matches) -> _Bank:
        velocities = np.zeros((len(features), 2), np.float32)
        moved = features.keypoints[matches.query] - bank.features.keypoints[matches.train]
        velocities[matches.query] = moved / (bank.missed[matches.train] + 1)[:, None]
        unseen = np.ones(len(bank.missed), bool)
        unseen[matches.train] = False
        # A feature that was seen only once was chance more often than not.
        old = bank.select(unseen & (bank.missed < self.config.max_missed) & (bank.tracks.ages > 1))
        return _Bank(
            features.append(old.features),
            Tracks(np.concatenate([tracks.ids, old.tracks.ids]), np.concatenate([tracks.ages, old.tracks.ages])),
            np.concatenate([velocities, old.velocities]),
            np.concatenate([np.zeros(len(features), np.int32), old.missed + 1]),
            np.concatenate([np.arange(len(features)), np.full(len(old.rows), -1)]),
        )


def _empty_bank(features: Features) -> _Bank:
    none = Features.empty(features.descriptors.shape[1], features.metric)
    return _Bank(none, Tracks.empty(), np.zeros((0, 2), np.float32), np.zeros(0, np.int32), np.zeros(0, np.int64))


class FlowTracker:
    """Shi-Tomasi corners followed by pyramidal Lucas-Kanade: the honest baseline (``gftt_lk``).

    Its features have no descriptors (N×0); their scores are those of the corner when it was detected.
    """

    def __init__(self, config: TrackerConfig | None = None, top_k: int = 1000) -> None:
        self.config = config or TrackerConfig()
        self.name = FLOW
        self.top_k = top_k
        self._next_id = 1
        self.reset()

    def reset(self) -> None:
        """Forget all tracks; ids are not used again."""
        self._gray: np.ndarray | None = None
        self._keypoints = self._velocities = np.zeros((0, 2), np.float32)
        self._scores = np.zeros(0, np.float32)
        self._tracks = Tracks.empty()
        self._missed = 0  # frames since that picture

    def track(self, image: np.ndarray, mask: np.ndarray | None = None) -> Tracked:
        """Follow the corners of the frame before, then detect new ones where the picture is empty; see Tracker."""
        check_image(image, mask)
        begin = time.perf_counter()
        gray = to_gray(image)
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
        ids = np.arange(self._next_id, self._next_id + len(fresh), dtype=np.uint32)
        self._next_id += len(fresh)
        velocities = (found - self._keypoints[rows]) / (self._missed + 1)
        self._tracks = Tracks(
            np.concatenate([self._tracks.ids[rows], ids]),
            np.concatenate([self._tracks.ages[rows] + 1, np.ones(len(fresh), np.uint32)]).astype(np.uint32),
        )
        self._keypoints = np.concatenate([found, fresh])
        self._velocities = np.concatenate([velocities, np.zeros_like(fresh)]).astype(np.float32)
        self._scores = np.concatenate([self._scores[rows], scores])
        self._gray, self._missed = gray, 0

    def match_stereo(self, features: Features, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Correlate along rows, then refine to sub-pixel; see Tracker."""
        left, right = to_gray(left), to_gray(right)
        largest = round(self.config.max_disparity * max(left.shape[:2]))
        rough = search_rows(left, right, features.keypoints, largest)
        return refine_disparities(left, right, features.keypoints, rough, self.config.stereo_rows)

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


def load_tracker(
    spec: str, top_k: int = 1000, backend: str = "auto", config: TrackerConfig | None = None
) -> Tracker:
    """The tracker that a features spec asks for; InputError where the spec is wrong.

    ``gftt_lk`` is optical flow and takes TrackerConfig's fields as options (``gftt_lk:flow_window=31``) and top_k;
    anything else is an extractor whose features are matched by descriptor.
    """
    name, options = parse_spec(spec)
    if name != FLOW:
        return DescriptorTracker(load_extractor(spec, top_k=top_k, backend=backend), config)
    chosen = read_settings(FLOW, FlowOptions, {"top_k": top_k, **vars(config or TrackerConfig()), **options})
    values = vars(chosen).copy()
    return FlowTracker(top_k=values.pop("top_k"), config=TrackerConfig(**values))
