"""Scenes of posed views: what posed methods learn from, whatever it was stored as."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kp_frontend.errors import InputError
from kp_training.data.images import Joined


@dataclass(frozen=True, eq=False)
class PosedFrame:
    """One view of a scene, without lens distortion.

    image: H×W×3 BGR uint8.  depth: H×W float32 along z in the scene's unit of length, 0 = unknown; None = has none.
    intrinsics: 3×3 float64, K.  world_from_camera: 4×4 float64, camera x right, y down, z forward.
    Raises InputError where sizes differ or numbers cannot be.
    """

    image: np.ndarray
    depth: np.ndarray | None
    intrinsics: np.ndarray
    world_from_camera: np.ndarray

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth.shape != self.image.shape[:2]:
            raise InputError(f"depth of {self.depth.shape[1]}×{self.depth.shape[0]} for an image of "
                             f"{self.image.shape[1]}×{self.image.shape[0]}; expected the same size")


@dataclass(frozen=True, eq=False)
class PosedScene:
    """Frames of one scene; only their numbers are in memory.

    name: for people.  identity: changes whenever any frame does; what is kept on disk is keyed by it.
    names: of the N frames.  poses: N×4×4 float64, world_from_camera.  intrinsics: N×3×3 float64.
    read: index → image and depth as in PosedFrame; it travels to other processes.
    has_depth: whether frames have depth.  metric: whether a length of 1 is a metre.
    ordered: whether the frames are consecutive views of a moving camera.
    """

    name: str
    identity: str
    names: tuple[str, ...]
    poses: np.ndarray
    intrinsics: np.ndarray
    read: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    has_depth: bool
    metric: bool
    ordered: bool

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> PosedFrame:
        """Raises InputError for a frame that cannot be read."""
        return PosedFrame(*self.read(index), self.intrinsics[index], self.poses[index])

    def choose(self, which: np.ndarray, note: str) -> PosedScene:
        """The frames at `which` (M int64, in that order, a frame perhaps twice); `note` is added to the identity."""
        return replace(self, identity=f"{self.identity}{note}", names=tuple(self.names[k] for k in which),
                       poses=self.poses[which], intrinsics=self.intrinsics[which],
                       read=functools.partial(_read_chosen, self.read, which))


def _read_chosen(
    read: Callable[[int], tuple[np.ndarray, np.ndarray | None]], which: np.ndarray, index: int
) -> tuple[np.ndarray, np.ndarray | None]:
    return read(int(which[index]))


class SceneFrames(Joined):
    """The frames of several scenes as photographs by one running index (`Images`), and where each of them is.

    Raises InputError where there is none.
    """

    def __init__(self, scenes: Sequence[PosedScene]) -> None:
        if not any(len(scene) for scene in scenes):
            raise InputError("the scenes hold no usable frame; look at them with kp_training check_scene")
        super().__init__(scenes)
        self.scenes = tuple(scenes)

    def __getitem__(self, index: int) -> np.ndarray:
        scene, frame = self.locate(index)
        return self.scenes[scene][frame].image


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of so many indices, evenly spread, the first and the last among them; int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def need_depth(scenes: Sequence[PosedScene], purpose: str) -> None:
    """Raises InputError where a scene has no depth, which is needed for `purpose`."""
    if lacking := [scene.name for scene in scenes if not scene.has_depth]:
        raise InputError(f"{len(lacking)} of {len(scenes)} scenes have no depth (as {lacking[0]}), {purpose}; leave "
                         "them out, or train a method that needs none (pos_feat)")
