"""The usual mistakes in a scene's numbers, each as what the numbers were meant to be."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kp_frontend.geometry import invert
from kp_frontend.quaternions import poses_from_quaternions, quaternions_from_poses
from kp_training.data.posed import PosedFrame


@dataclass(frozen=True)
class Convention:
    """What numbers may have been meant as: its name, what to do, and a frame with its numbers as ours should be."""

    name: str
    advice: str
    read: Callable[[PosedFrame], PosedFrame]


def _turned(frame: PosedFrame, axes: Sequence[Sequence[float]]) -> PosedFrame:
    pose = frame.world_from_camera.copy()
    pose[:3, :3] = pose[:3, :3] @ np.array(axes, float)
    return replace(frame, world_from_camera=pose)


def _inverted(frame: PosedFrame) -> PosedFrame:
    return replace(frame, world_from_camera=invert(frame.world_from_camera))


def _real_part_first(frame: PosedFrame) -> PosedFrame:
    pose = frame.world_from_camera[None]
    quaternions = np.roll(quaternions_from_poses(pose), -1, axis=1)
    return replace(frame, world_from_camera=poses_from_quaternions(pose[:, :3, 3], quaternions)[0])


def _scaled(frame: PosedFrame, factor: float) -> PosedFrame:
    return frame if frame.depth is None else replace(frame, depth=frame.depth * np.float32(factor))


def _along_ray(frame: PosedFrame) -> PosedFrame:
    if frame.depth is None:
        return frame
    y, x = np.mgrid[: frame.depth.shape[0], : frame.depth.shape[1]]
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(frame.intrinsics).T
    return replace(frame, depth=(frame.depth / np.linalg.norm(rays, axis=-1)).astype(np.float32))


ROTATIONS = (Convention("quaternions of w x y z", "give them as x y z w", _real_part_first),)
DIRECTIONS = (Convention("poses of camera_from_world", "invert each pose", _inverted),)
AXES = (
    Convention("camera axes of OpenGL (x right, y up, z back)", "multiply each pose by diag(1, -1, -1, 1) on the right",
               functools.partial(_turned, axes=np.diag([1, -1, -1]).tolist())),
    Convention("poses of a body (x forward, y left, z up)", "multiply each pose by body_from_camera on the right",
               functools.partial(_turned, axes=[[0, 0, 1], [-1, 0, 0], [0, -1, 0]])),
)
LENGTHS = (Convention("depth along the ray", "say so (depth_type: ray in intrinsics.yaml)", _along_ray),)
UNITS = (
    Convention("depth a thousand times too large for the poses", "divide depth by 1000 (millimetres for metres?)",
               functools.partial(_scaled, factor=1e-3)),
    Convention("depth a thousand times too small for the poses", "multiply depth by 1000 (metres for millimetres?)",
               functools.partial(_scaled, factor=1e3)),
    Convention("depth a hundred times too large for the poses", "divide depth by 100 (centimetres for metres?)",
               functools.partial(_scaled, factor=1e-2)),
    Convention("depth a hundred times too small for the poses",
               "divide the poses' translations by 100 (centimetres for metres?)",
               functools.partial(_scaled, factor=1e2)),
)
"""Each group in the order in which mistakes are taken back; of each, at most one is made."""


def combinations(has_depth: bool) -> list[tuple[Convention, ...]]:
    """All that the numbers of a scene may have been meant as; the first is empty: what they are."""
    groups = (ROTATIONS, DIRECTIONS, AXES, LENGTHS, UNITS) if has_depth else (ROTATIONS, DIRECTIONS, AXES)
    chosen = itertools.product(*((None, *group) for group in groups))
    return sorted((tuple(filter(None, conventions)) for conventions in chosen), key=len)


def from_one_place(first: PosedFrame, second: PosedFrame) -> PosedFrame:
    """The second frame as if it had been taken where the first one was."""
    pose = second.world_from_camera.copy()
    pose[:3, 3] = first.world_from_camera[:3, 3]
    return replace(second, world_from_camera=pose)


def read_as(frame: PosedFrame, conventions: Iterable[Convention]) -> PosedFrame:
    """The frame with its numbers as they should be, were they meant so."""
    for convention in conventions:
        frame = convention.read(frame)
    return frame
