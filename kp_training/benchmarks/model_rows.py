"""What ``benchmark model`` times: the rows of its table, and how each is run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from kp_frontend import load_extractor
from kp_frontend.engines import LiveEngine, open_engine
from kp_frontend.engines.parity import compare
from kp_frontend.errors import InputError
from kp_frontend.extractors.base import Extractor
from kp_frontend.extractors.learned import from_engine
from kp_frontend.features import Features
from kp_frontend.matching import match
from kp_training.benchmarks.photographs import photographs
from kp_training.evaluation.metrics import Side
from kp_training.evaluation.photo_pairs import PhotoPairs
from kp_training.evaluation.protocols import Setting
from kp_training.evaluation.sequences import HomographyPair, Size

PHOTOGRAPHS = 96
COMPARED = 3
"""Images that the parity is taken from, and the times."""
BASELINE = "cpu"
"""What has no engine."""
METRICS = ("M.Score", "MMA@3", "Cor-3")


@dataclass(frozen=True)
class Row:
    """One line of the table before it is measured.

    kind: of RUNNERS.  features: what is run.  backend: of the engines, or BASELINE's.
    label: of the file, as in ``int8 dense``.  file: of a network.  trained: whether accuracy means anything.
    height, width: of the images, 0 = none.  top_k: points asked for.  size: of the descriptors of ``matching``.
    """

    kind: str
    features: str
    backend: str
    label: str = ""
    file: Path | None = None
    height: int = 0
    width: int = 0
    top_k: int = 1000
    trained: bool = True
    size: int = 0

    @property
    def name(self) -> str:
        """Of the row, in plots, errors and comparisons."""
        size = f"{self.width}×{self.height}" * bool(self.height)
        return " ".join(filter(None, [self.features, self.label, size, f"k={self.top_k}", self.backend]))


@dataclass(frozen=True)
class Facts:
    """What a row is once it runs.

    engine: what runs it.  keypoints: median over the images.  descriptor_size: of them.
    within, cosine: parity with the reference (share of its keypoints that have one within a pixel; median cosine of
    their descriptors), nan without one.  accuracy: METRICS by name, empty where they mean nothing.
    """

    engine: str
    keypoints: float = float("nan")
    descriptor_size: int = 0
    input_dtype: str = ""
    within: float = float("nan")
    cosine: float = float("nan")
    accuracy: dict[str, float] = field(default_factory=dict)


class Runner(Protocol):
    """A row that runs."""

    def facts(self, reference: list[Features] | None, pairs: int) -> Facts:
        """What it is; `reference`: features of the images that another row found."""
        ...

    def run(self, number: int) -> dict[str, float]:
        """Milliseconds of run `number`: ``whole``, and its parts."""
        ...


class ExtractorRunner:
    """Image in, Features in hand."""

    def __init__(self, row: Row, extractor: Extractor, engine: _Timed | None = None) -> None:
        self.row, self.extractor, self.engine = row, extractor, engine
        self.images = views(row.height, row.width)

    @classmethod
    def of_classical(cls, row: Row) -> ExtractorRunner:
        return cls(row, load_extractor(row.features, top_k=row.top_k))

    @classmethod
    def of_network(cls, row: Row) -> ExtractorRunner:
        timed = _Timed(open_row(row))
        return cls(row, from_engine(row.features, timed, {"top_k": row.top_k}), timed)

    def features(self) -> list[Features]:
        """Of each image."""
        return [self.extractor.extract(image) for image in self.images]

    def facts(self, reference: list[Features] | None, pairs: int) -> Facts:
        """See `Runner.facts`."""
        found = self.features()
        within, cosine = agreement(reference, found) if reference is not None else (float("nan"), float("nan"))
        return Facts(
            self.engine.backend if self.engine else self.row.backend, float(np.median([len(each) for each in found])),
            self.extractor.descriptor_size, self.engine.metadata.input_dtype if self.engine else "", within, cosine,
            accuracy(self.extractor, self.row, pairs) if self.row.trained else {},
        )

    def run(self, number: int) -> dict[str, float]:
        """See `Runner.run`."""
        image = self.images[number % len(self.images)]
        begin = time.perf_counter()
        self.extractor.extract(image)
        end = time.perf_counter()
        times = {"whole": end - begin}
        if self.engine:
            ran = self.engine
            times |= {"before": ran.begin - begin, "network": ran.end - ran.begin, "after": end - ran.end}
        return {name: 1e3 * seconds for name, seconds in times.items()}


def open_row(row: Row) -> LiveEngine:
    """The engine of a network's row; InputError where it does not run here."""
    assert row.file is not None
    return open_engine(row.file, row.backend, height=row.height, width=row.width)


class MatchingRunner:
    """Mutual nearest neighbours of top_k × top_k random descriptors."""

    def __init__(self, row: Row) -> None:
        rng = np.random.default_rng(0)
        self.sides = [_random_features(rng, row.top_k, row.size) for _ in range(2)]

    def facts(self, reference: list[Features] | None, pairs: int) -> Facts:
        """See `Runner.facts`."""
        return Facts(BASELINE, len(self.sides[0]), self.sides[0].descriptors.shape[1])

    def run(self, number: int) -> dict[str, float]:
        """See `Runner.run`."""
        begin = time.perf_counter()
        match(*self.sides)
        return {"whole": 1e3 * (time.perf_counter() - begin)}


RUNNERS: dict[str, Callable[[Row], Runner]] = {
    "network": ExtractorRunner.of_network, "classical": ExtractorRunner.of_classical, "matching": MatchingRunner,
}


class _Timed:
    """An engine that knows when its last run began and ended."""

    def __init__(self, engine: LiveEngine) -> None:
        self.engine, self.begin, self.end = engine, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        self.begin = time.perf_counter()
        outputs = self.engine.run(image, **points)
        self.end = time.perf_counter()
        if self.engine.fallbacks:
            raise InputError(f"the engine was lost while it ran; {self.engine.backend} took its place")
        return outputs


def _random_features(rng: np.random.Generator, count: int, size: int) -> Features:
    descriptors = rng.standard_normal((count, size), np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return Features(rng.random((count, 2), np.float32), np.ones(count, np.float32), descriptors)


@functools.cache
def pairs_of(height: int, width: int, count: int) -> tuple[HomographyPair, ...]:
    """Pairs made from scikit-image's photographs, the same in every process."""
    source = PhotoPairs(photographs(PHOTOGRAPHS), count)
    setting = Setting("shared", Size(width, height), 0)
    return tuple(pair for number in range(count) for pair in source.pairs(number, setting.loading))


@functools.cache
def views(height: int, width: int) -> list[np.ndarray]:
    """What is timed and compared: grey views of photographs as a camera gives them, those with the most texture.

    So that every extractor finds its points.
    """
    grays = [cv2.cvtColor(pair.image0, cv2.COLOR_BGR2GRAY) for pair in pairs_of(height, width, 12)]
    texture = [np.abs(cv2.Laplacian(gray, cv2.CV_32F)).mean() for gray in grays]
    return [grays[number] for number in np.argsort(texture)[::-1][:COMPARED]]


def accuracy(extractor: Extractor, row: Row, count: int) -> dict[str, float]:
    """Means of METRICS over `count` pairs by the protocol ``shared``; empty for none."""
    setting = Setting("shared", Size(row.width, row.height), row.top_k)
    scores = []
    for pair in pairs_of(row.height, row.width, count) if count else ():
        sides = [Side(extractor.extract(image), image.shape[:2]) for image in (pair.image0, pair.image1)]
        scores.append(setting.protocol.score(*sides, pair.homography, row.top_k))
    return {name: float(np.mean([score[name] for score in scores])) for name in METRICS if scores}


def agreement(reference: list[Features], found: list[Features]) -> tuple[float, float]:
    """Share of the reference's keypoints with one of `found` within a pixel, and the median cosine of the two."""
    each = [compare((theirs.keypoints, theirs.descriptors), (ours.keypoints, ours.descriptors))
            for theirs, ours in zip(reference, found)]
    return float(np.mean([one.within_pixel for one in each])), float(np.median([one.cosine for one in each]))
