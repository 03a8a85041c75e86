"""Pairs of views with known relative pose: of posed scenes, by frame stride or by overlap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.geometry import invert
from kp_frontend.resources import cache_folder
from kp_training.data.posed import PosedScene, evenly
from kp_training.evaluation.sequences import FULL, Loading, Size, resize
from kp_training.geometry.homography import scale_homography

STRIDES = (5, 10)
OVERLAP = (0.3, 0.9)
PAIRS = 300
ROOMS = 3
MOST_FRAMES = 1000
"""Of a scene, whose overlap is computed; of longer ones evenly spread frames are taken."""
_BLOCKS = 10


@dataclass(frozen=True, eq=False)
class View:
    """image: H×W×3 BGR uint8 without distortion.  depth: as in PosedFrame, of `frame_size`.  intrinsics: 3×3, K.

    scale: (x, y), what the frame was resized by to make the image.
    """

    image: np.ndarray
    depth: np.ndarray | None
    intrinsics: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, depth: np.ndarray | None, intrinsics: np.ndarray, size: Size = FULL) -> View:
        """A frame brought to `size`; its depth stays as it is.

        The papers' loaders scale K by plain factors, which puts pixel centres up to half a pixel off; we keep them.
        """
        resized, scale = resize(image, size.of(image.shape), Loading())
        return cls(resized, depth, scale_homography(intrinsics, np.ones(2), scale), scale)

    def rays(self, points: np.ndarray) -> np.ndarray:
        """N×2 float64: pixels at z = 1."""
        rays = np.column_stack([points, np.ones(len(points))]) @ np.linalg.inv(self.intrinsics).T
        return rays[:, :2] / rays[:, 2:]

    def frame_points(self, points: np.ndarray) -> np.ndarray:
        """N×2: pixels of the image → pixels of the frame and its depth."""
        return (points + 0.5) / self.scale - 0.5

    @property
    def focal(self) -> float:
        """Mean focal length in pixels."""
        return float(self.intrinsics[0, 0] + self.intrinsics[1, 1]) / 2


@dataclass(frozen=True, eq=False)
class PosePair:
    """Two views by the keys of their source, and how they lie: 4×4 second_from_first, in the source's unit of length.

    group: what is summed up together.  name: of the pair.  source: what goes up and down together (see `estimate`).
    """

    group: str
    name: str
    source: str
    first: Hashable
    second: Hashable
    second_from_first: np.ndarray


class PoseSource(Protocol):
    """Where pairs come from, those that share views near each other.

    has_depth: whether views have.  metric: whether a length of 1 is a metre.
    """

    pairs: tuple[PosePair, ...]
    has_depth: bool
    metric: bool

    def view(self, key: Any, size: Size) -> View:
        """A view of a pair; InputError where it cannot be read."""
        ...


class ScenePairs:
    """Pairs of the frames of scenes: `choice` of each, in groups of its own making.

    most: pairs a group at most, evenly spread over those that there are.  Raises InputError where there is none.
    """

    def __init__(self, scenes: Sequence[PosedScene], choice: Choice, most: int | None = None) -> None:
        self.scenes, self.choice = tuple(scenes), choice
        self.has_depth = all(scene.has_depth for scene in scenes)
        self.metric = all(scene.metric for scene in scenes)
        found = [(group, number, *frames) for number, scene in enumerate(scenes)
                 for group, pairs in choice.pairs(scene).items() for frames in pairs.tolist()]
        groups = dict.fromkeys(group for group, *_ in found)
        kept = [entry for group in groups for entry in _spread([entry for entry in found if entry[0] == group], most)]
        kept.sort(key=lambda entry: entry[1:])
        if not kept:
            frames = ", ".join(f"{scene.name}: {len(scene)}" for scene in scenes[:5])
            raise InputError(f"no two frames are a pair by {choice} (frames of {frames}); {choice.advice}")
        self.pairs = tuple(self._pair(*entry) for entry in kept)

    def __str__(self) -> str:
        names = self.scenes[0].name if len(self.scenes) == 1 else f"{len(self.scenes)} scenes"
        return f"{names}, {self.choice}"

    def view(self, key: tuple[int, int], size: Size) -> View:
        """A frame by the number of its scene and its own."""
        scene, frame = key
        posed = self.scenes[scene][frame]
        return View.of(posed.image, posed.depth, posed.intrinsics, size)

    def _pair(self, group: str, number: int, first: int, second: int) -> PosePair:
        scene = self.scenes[number]
        block = first * _BLOCKS // len(scene)
        return PosePair(group, f"{scene.names[first]}-{scene.names[second]}", f"{scene.name}, part {block + 1}",
                        (number, first), (number, second), invert(scene.poses[second]) @ scene.poses[first])


def _spread(entries: list, most: int | None) -> list:
    """At most so many of `entries`, evenly spread."""
    if most is None or most >= len(entries):
        return entries
    return [entries[k] for k in evenly(len(entries), most)]


class Choice(Protocol):
    """Which frames of a scene are pairs.  advice: what to do where there are none."""

    advice: str

    def pairs(self, scene: PosedScene) -> dict[str, np.ndarray]:
        """Group → M×2 indices of frames, ordered by the first."""
        ...


@dataclass(frozen=True)
class ByStride:
    """Frames i and i + stride, for every i; a group for each stride."""

    strides: tuple[int, ...] = STRIDES
    advice = "give a smaller --stride"

    def __str__(self) -> str:
        return f"stride {' '.join(map(str, self.strides))}"

    def pairs(self, scene: PosedScene) -> dict[str, np.ndarray]:
        """Raises InputError for frames that are not consecutive views."""
        if not scene.ordered:
            raise InputError(f"{scene.name}: its frames are not in the order of a moving camera, so that a stride "
                             "means nothing; give --overlap LO HI")
        return {f"stride {stride}": np.arange(max(len(scene) - stride, 0))[:, None] + [0, stride]
                for stride in self.strides}


@dataclass(frozen=True)
class ByOverlap:
    """Frames of which each sees between `least` and `most` of what the other sees (the lesser share); PAIRS drawn."""

    least: float = OVERLAP[0]
    most: float = OVERLAP[1]
    seed: int = 0
    count: int = PAIRS
    advice = "give a wider --overlap, or --stride"

    def __str__(self) -> str:
        return f"overlap {self.least:g} to {self.most:g}"

    def pairs(self, scene: PosedScene) -> dict[str, np.ndarray]:
        """Raises InputError for a scene without depth."""
        from kp_training.data.overlap import depth_overlap  # torch, which is slow to import

        if not scene.has_depth:
            raise InputError(f"{scene.name} has no depth to tell the overlap of frames from; give --stride")
        frames = evenly(len(scene), MOST_FRAMES)
        overlap = depth_overlap(scene, frames, cache_folder("overlap"))
        shared = np.triu(np.minimum(overlap, overlap.T), 1)
        found = np.argwhere((shared >= self.least) & (shared <= self.most) & (shared > 0))
        if len(found) > self.count:
            rng = np.random.default_rng(self.seed)
            found = found[np.sort(rng.choice(len(found), self.count, replace=False))]
        return {str(self): frames[found]}


def open_scene_pairs(
    scenes: Sequence[PosedScene], strides: Sequence[int] | None, overlap: Sequence[float] | None,
    most: int | None, seed: int,
) -> ScenePairs:
    """Pairs of `scenes` as the user asked; by default by stride where frames are ordered, else by overlap.

    Raises InputError for what cannot be.
    """
    if strides and overlap:
        raise InputError("--stride and --overlap are two ways to choose pairs; give one")
    if strides and min(strides) < 1:
        raise InputError(f"--stride {' '.join(map(str, strides))}: expected at least 1")
    if overlap and not 0 <= overlap[0] < overlap[1] <= 1:
        raise InputError(f"--overlap {overlap[0]:g} {overlap[1]:g}: expected 0 ≤ LO < HI ≤ 1")
    if most is not None and most < 1:
        raise InputError(f"--pairs {most}: expected at least 1")
    if overlap or not (strides or all(scene.ordered for scene in scenes)):
        least, largest = overlap or OVERLAP
        return ScenePairs(scenes, ByOverlap(least, largest, seed, most or PAIRS), most)
    return ScenePairs(scenes, ByStride(tuple(dict.fromkeys(strides or STRIDES))), most)


def open_scenes(data: str) -> list[PosedScene]:
    """Posed scenes of a path, or ``rooms[:COUNT]`` that training never sees; InputError for what is neither."""
    from kp_training.data.layouts import open_posed
    from kp_training.data.rooms.source import open_rooms

    kind, _, argument = data.partition(":")
    if kind != "rooms" or Path(data).exists():
        return open_posed(data.removeprefix("posed:"))
    if argument and not (argument.isdecimal() and int(argument)):
        raise InputError(f"{data}: expected a number of scenes, as in rooms:{ROOMS}")
    return open_rooms(int(argument or ROOMS), 480, 640, held_out=True)
