"""What a front-end knows about one image: features, matches between two images, tracks over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

METRICS = ("l2", "hamming")


def _require(name: str, array: np.ndarray, shape: tuple[int | None, ...], dtypes: tuple[type, ...]) -> None:
    fits = array.ndim == len(shape) and all(want is None or want == have for want, have in zip(shape, array.shape))
    if not fits or array.dtype.type not in dtypes:
        wanted = "×".join("any" if size is None else str(size) for size in shape)
        kinds = " or ".join(np.dtype(kind).name for kind in dtypes)
        raise ValueError(f"{name}: expected {wanted} {kinds}, got {array.shape} {array.dtype}")


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of one image with their descriptors.

    keypoints: N×2 float32, x right and y down in pixels; the centre of the top-left pixel is (0, 0).
    scores: N float32, larger is better; comparable within one extractor only.
    descriptors: N×D float32 of unit length (metric ``l2``) or N×D uint8 bit strings (``hamming``);
        D = 0 where a tracker needs none.
    sizes: N float32, diameter of the described patch in pixels, 0 = unknown.
    angles: N float32, degrees clockwise in [0, 360), -1 = unknown.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    descriptors: np.ndarray
    metric: str = "l2"
    sizes: np.ndarray = None  # type: ignore[assignment]
    angles: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if self.sizes is None:
            object.__setattr__(self, "sizes", np.zeros(count, np.float32))
        if self.angles is None:
            object.__setattr__(self, "angles", np.full(count, -1, np.float32))
        if self.metric not in METRICS:
            raise ValueError(f"metric: expected one of {METRICS}, got {self.metric!r}")
        _require("keypoints", self.keypoints, (count, 2), (np.float32,))
        _require("scores", self.scores, (count,), (np.float32,))
        kind = np.uint8 if self.metric == "hamming" else np.float32
        _require("descriptors", self.descriptors, (count, None), (kind,))
        _require("sizes", self.sizes, (count,), (np.float32,))
        _require("angles", self.angles, (count,), (np.float32,))

    def __len__(self) -> int:
        return len(self.keypoints)

    def select(self, which: np.ndarray) -> Features:
        """Features at `which` (indices or a boolean mask), in that order."""
        return Features(
            self.keypoints[which], self.scores[which], self.descriptors[which],
            self.metric, self.sizes[which], self.angles[which],
        )

    def append(self, other: Features) -> Features:
        """These features, then those of `other`, which have the same kind of descriptor."""
        names = ("keypoints", "scores", "descriptors", "sizes", "angles")
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names}
        return Features(metric=self.metric, **joined)

    def top_k(self, count: int) -> Features:
        """The `count` features of the highest score, best first; ties keep their order."""
        return self.select(np.argsort(-self.scores, kind="stable")[:count])

    @classmethod
    def empty(cls, descriptor_size: int, metric: str = "l2") -> Features:
        """No features, with descriptors of the right width and type."""
        dtype = np.uint8 if metric == "hamming" else np.float32
        return cls(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros((0, descriptor_size), dtype), metric)


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of features in two images.

    query: M int64, indices into the query image's features (the current frame).
    train: M int64, indices into the train image's features (the frame it is compared with).
    distances: M float32 in the descriptors' metric (L2 of unit vectors, or bits); for optical flow,
        the forward-backward error in pixels.
    """

    query: np.ndarray
    train: np.ndarray
    distances: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.query)
        _require("query", self.query, (count,), (np.int64,))
        _require("train", self.train, (count,), (np.int64,))
        _require("distances", self.distances, (count,), (np.float32,))

    def __len__(self) -> int:
        return len(self.query)

    def select(self, which: np.ndarray) -> Matches:
        """Matches at `which` (indices or a boolean mask), in that order."""
        return Matches(self.query[which], self.train[which], self.distances[which])

    @classmethod
    def empty(cls) -> Matches:
        """No matches."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True, eq=False)
class Tracks:
    """Identity over time of one frame's features, row by row.

    ids: N uint32, the same number for the same scene point in every frame; 0 = no track.
    ages: N uint32, in how many frames the track has been seen, this one included; 0 where id is 0.
    """

    ids: np.ndarray
    ages: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.ids)
        _require("ids", self.ids, (count,), (np.uint32,))
        _require("ages", self.ages, (count,), (np.uint32,))

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls, count: int = 0) -> Tracks:
        """`count` features without a track."""
        return cls(np.zeros(count, np.uint32), np.zeros(count, np.uint32))
