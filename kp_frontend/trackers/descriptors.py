"""An extractor's features, matched by descriptor to those of the frames before."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from kp_frontend.extractors.base import Extractor
from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.images import to_gray
from kp_frontend.matching import match
from kp_frontend.stereo import refine_disparities
from kp_frontend.trackers.base import Seen, Tracked, Tracker, TrackerConfig, TrackIds

LEAST_RADIUS = 0.02  # of the longer side: narrower is not faster


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


class DescriptorTracker(Tracker):
    """Tracks the features of an extractor by matching them to a bank of live tracks."""

    def __init__(self, extractor: Extractor, config: TrackerConfig | None = None) -> None:
        self.extractor = extractor
        self.config = config or TrackerConfig()
        self.name = extractor.name
        self._ids = TrackIds()
        self.reset()

    @property
    def concurrent(self) -> bool:
        """As the extractor."""
        return self.extractor.concurrent

    def reset(self) -> None:
        """Forget all tracks; see Tracker."""
        self._bank: _Bank | None = None
        self._radius = np.inf  # pixels round the predicted places where the next frame is searched first
        self._matched = 0

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None, right: np.ndarray | None = None) -> Seen:
        """The extractor's features of both images; see Tracker."""
        begin = time.perf_counter()
        features = self.extractor.extract(image, mask)
        others = self.extractor.extract(right) if right is not None else None
        return Seen(image, mask, right, features, others, {"extract": (time.perf_counter() - begin) * 1e3})

    def follow(self, seen: Seen) -> Tracked:
        """Match to the bank, start new tracks with what matched none; see Tracker."""
        begin = time.perf_counter()
        features = seen.features
        bank = self._bank or _empty_bank(features)
        matches = self._match(features, bank, max(seen.image.shape[:2]))
        tracks = self._assign(len(features), bank, matches)
        self._bank = self._update(features, tracks, bank, matches)
        rows = bank.rows[matches.train]
        to_previous = Matches(matches.query[rows >= 0], rows[rows >= 0], matches.distances[rows >= 0])
        timings = {**seen.timings, "match": (time.perf_counter() - begin) * 1e3}
        return Tracked(features, tracks, to_previous, timings)

    def match_stereo(self, seen: Seen, features: Features) -> np.ndarray:
        """Match along rows by descriptor, then refine to sub-pixel; see Tracker."""
        disparities = np.full(len(features), np.nan, np.float32)
        if seen.right is None or seen.right_features is None:
            return disparities
        largest = self.config.max_disparity * max(seen.image.shape[:2])
        pairs = self._compare(features, seen.right_features, stereo_rows=(self.config.stereo_rows, largest))
        there = seen.right_features.keypoints[pairs.train, 0]
        disparities[pairs.query] = features.keypoints[pairs.query, 0] - there
        return refine_disparities(
            to_gray(seen.image), to_gray(seen.right), features.keypoints, disparities, self.config.stereo_rows
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
        ids[fresh] = self._ids.take(len(fresh))
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
