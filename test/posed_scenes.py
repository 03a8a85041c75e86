"""Small posed scenes with exact depth, made in memory: a slanted plane, and a wall that hides part of another."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.geometry import invert, so3_exp
from kp_training.data.posed import PosedScene

SLANT, DISTANCE = 0.5, 3.0
"""Of ``plane_scene``: the plane is z = DISTANCE + SLANT · x in the world."""


@dataclass(frozen=True, eq=False)
class Rectangle:
    """A textured rectangle: centre, 2×3 unit vectors along its sides, half their lengths, texture of 1 cm a texel."""

    centre: np.ndarray
    sides: np.ndarray
    half: tuple[float, float]
    texture: np.ndarray


@dataclass(frozen=True, eq=False)
class Frames:
    """``PosedScene.read`` of frames in memory; frames in `unreadable` raise InputError."""

    images: Sequence[np.ndarray]
    depths: Sequence[np.ndarray | None]
    unreadable: Collection[int] = ()

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        if index in self.unreadable:
            raise InputError(f"frame {index} cannot be read")
        return self.images[index], self.depths[index]


def plane_scene(
    count: int = 4, height: int = 96, width: int = 128, step: float = 0.15, depth: bool = True, metric: bool = True,
    unreadable: Collection[int] = (), seed: int = 0,
) -> PosedScene:
    """`count` views of the plane by a camera that moves `step` to the right a frame, and turns a little."""
    along = np.array([[1, 0, SLANT], [0, 1, 0]]) / [[np.hypot(1, SLANT)], [1]]
    plane = Rectangle(np.array([0, 0, DISTANCE]), along, (np.inf, np.inf), texture(seed))
    return make_scene("plane", [plane], moving_poses(count, step), height, width, depth, metric, unreadable)


def wall_scene(
    count: int = 4, height: int = 96, width: int = 128, step: float = 0.15, depth: bool = True, metric: bool = True,
    unreadable: Collection[int] = (), seed: int = 0,
) -> PosedScene:
    """`count` views of a wall at z = 4 and of one at z = 2 that hides its part to the left of x = 0."""
    axes = np.eye(3)[:2]
    back = Rectangle(np.array([0, 0, 4.0]), axes, (np.inf, np.inf), texture(seed))
    front = Rectangle(np.array([-50, 0, 2.0]), axes, (50, np.inf), texture(seed + 1))
    return make_scene("wall", [back, front], moving_poses(count, step, turn=0), height, width, depth, metric,
                      unreadable)


def make_scene(
    name: str, surfaces: Sequence[Rectangle], poses: np.ndarray, height: int, width: int, depth: bool = True,
    metric: bool = True, unreadable: Collection[int] = (),
) -> PosedScene:
    """Views of `surfaces` from N×4×4 world_from_camera with a focal length of 0.9 widths and an odd principal point."""
    intrinsics = np.array([[0.9 * width, 0, 0.48 * width], [0, 0.92 * width, 0.53 * height], [0, 0, 1]])
    views = [render(surfaces, pose, intrinsics, height, width) for pose in poses]
    images, depths = zip(*views)
    frames = Frames(images, depths if depth else [None] * len(poses), frozenset(unreadable))
    identity = f"{name}-{height}-{width}-{depth}-{zlib.crc32(poses.tobytes() + images[-1].tobytes()):08x}"
    names = tuple(f"{k:03d}" for k in range(len(poses)))
    return PosedScene(name, identity, names, poses, np.stack([intrinsics] * len(poses)), frames, depth, metric, True)


def moving_poses(count: int, step: float, turn: float = 0.02) -> np.ndarray:
    """N×4×4 world_from_camera; the first is the identity.  turn: radians a frame about each axis."""
    k = np.arange(count)[:, None]
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = so3_exp(k * turn * np.array([0.5, -1, 1]))
    poses[:, :3, 3] = k * step * np.array([1, 0.2, 0.1])
    return poses


def plane_homography(scene: PosedScene, source: int, target: int) -> np.ndarray:
    """3×3 target_from_source, pixels, of two frames of ``plane_scene``."""
    normal = np.array([-SLANT, 0, 1])
    world_from_source = scene.poses[source]
    in_source = normal @ world_from_source[:3, :3]
    distance = DISTANCE - normal @ world_from_source[:3, 3]
    moved = invert(scene.poses[target]) @ world_from_source
    return scene.intrinsics[target] @ (moved[:3, :3] + np.outer(moved[:3, 3], in_source) / distance) @ np.linalg.inv(
        scene.intrinsics[source])


def render(
    surfaces: Sequence[Rectangle], world_from_camera: np.ndarray, intrinsics: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """H×W×3 uint8 image and H×W float32 depth along z (0 where there is no surface)."""
    y, x = np.mgrid[:height, :width].astype(float)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T @ world_from_camera[:3, :3].T
    origin = world_from_camera[:3, 3]
    image, depth = np.zeros((height, width, 3), np.uint8), np.full((height, width), np.inf)
    for surface in surfaces:
        normal = np.cross(*surface.sides)
        distance = normal @ (surface.centre - origin) / (rays @ normal)
        place = (origin + distance[..., None] * rays - surface.centre) @ surface.sides.T
        nearer = (distance > 0) & (distance < depth) & (np.abs(place) <= surface.half).all(-1)
        texel = np.where(nearer[..., None], place, 0).astype(np.float32) * 100
        colour = cv2.remap(surface.texture, *np.moveaxis(texel, -1, 0), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        image[nearer], depth[nearer] = colour[nearer], distance[nearer]
    return image, np.where(np.isfinite(depth), depth, 0).astype(np.float32)


@functools.cache
def texture(seed: int, side: int = 512) -> np.ndarray:
    """side×side×3 uint8 noise of several sizes that joins at its borders."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for sigma in (2, 5, 12):
        noise = np.pad(rng.standard_normal((side, side, 3), np.float32), ((64, 64), (64, 64), (0, 0)), mode="wrap")
        smooth = cv2.GaussianBlur(noise, (0, 0), sigma)[64:-64, 64:-64]
        total += smooth / smooth.std()
    return np.clip(128 + 30 * total, 0, 255).astype(np.uint8)
