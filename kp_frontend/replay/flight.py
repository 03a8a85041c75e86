"""A rendered flight through a textured room: real photographs on exact geometry, in changing light.

World frame: x and y along the floor, z up, metres. Every surface is a flat rectangle, so depth, the second
image and the poses are exact; textures are filtered trilinearly, so that edges keep their sub-pixel place.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError

ROOM = np.array([6.0, 5.0, 3.0])  # metres
TEXELS_PER_METRE = 300.0
NEAR = 0.05  # metres; nothing nearer is drawn


@dataclass(frozen=True, eq=False)
class Surface:
    """A textured rectangle: the point at (u, v) in [0, 1]² is corner + u·right + v·down, in metres.

    mipmaps: the texture, H×W×3 float32, each level half the size of the one before.
    """

    corner: np.ndarray
    right: np.ndarray
    down: np.ndarray
    mipmaps: tuple[np.ndarray, ...]

    @classmethod
    def textured(cls, corner, right, down, photo: np.ndarray, tile: bool = False) -> Surface:
        """Cover the rectangle with `photo` (H×W×3 uint8), stretched over it or tiled at its own scale."""
        corner, right, down = (np.asarray(vector, np.float64) for vector in (corner, right, down))
        width, height = (max(8, round(float(np.linalg.norm(edge)) * TEXELS_PER_METRE)) for edge in (right, down))
        if tile:
            mirrored = np.block([[[photo], [photo[:, ::-1]]], [[photo[::-1]], [photo[::-1, ::-1]]]])
            counts = (-(-height // mirrored.shape[0]), -(-width // mirrored.shape[1]), 1)
            texture = np.tile(mirrored, counts)[:height, :width]
        else:
            texture = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
        levels: list[np.ndarray] = [texture.astype(np.float32)]
        while min(levels[-1].shape[:2]) > 8 and len(levels) < 6:
            levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
        return cls(corner, right, down, tuple(levels))


@dataclass(frozen=True)
class Light:
    """A lamp over ambient light. lamp: its place in metres; power: at one metre; ambient: the rest; both as gains."""

    lamp: np.ndarray
    power: float
    ambient: float


@dataclass(frozen=True, eq=False)
class View:
    """One rendered instant. image, right: H×W×3 uint8 BGR.  depth: H×W float32 metres along z, exact."""

    stamp: int
    world_from_camera: np.ndarray
    image: np.ndarray
    right: np.ndarray
    depth: np.ndarray


def render(
    surfaces: list[Surface], camera: CameraModel, world_from_camera: np.ndarray, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `surfaces` by ray casting: H×W×3 float32 colours (0 to 255 and above) and H×W float32 depth."""
    color = np.zeros((camera.height, camera.width, 3), np.float32)
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    for surface in surfaces:
        box = _screen_box(surface, camera, world_from_camera)
        if box is not None:
            _draw(surface, camera, world_from_camera, light, box, color, depth)
    return color, np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def _screen_box(surface: Surface, camera: CameraModel, world_from_camera: np.ndarray):
    """Rows and columns that the surface can cover, None where it faces away or lies behind or outside."""
    corners = surface.corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ np.stack([surface.right, surface.down])
    center = world_from_camera[:3, 3]
    if np.cross(surface.right, surface.down) @ (center - surface.corner) >= 0:
        return None
    points = (corners - center) @ world_from_camera[:3, :3]
    behind = points[:, 2] < NEAR
    if behind.all():
        return None
    if behind.any():  # cut the edges that cross the near plane
        following = np.roll(points, -1, axis=0)
        crossing = behind != (following[:, 2] < NEAR)
        start, end = points[crossing], following[crossing]
        share = ((NEAR - start[:, 2]) / (end[:, 2] - start[:, 2]))[:, None]
        points = np.concatenate([points[~behind], start + share * (end - start)])
    pixels = (points / points[:, 2:]) @ camera.matrix[:2].T
    low = np.clip(np.floor(pixels.min(axis=0)), 0, (camera.width, camera.height)).astype(int)
    high = np.clip(np.ceil(pixels.max(axis=0)) + 1, 0, (camera.width, camera.height)).astype(int)
    if (high <= low).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def _draw(surface, camera, world_from_camera, light, box, color, depth) -> None:
    """Ray–plane intersection for each pixel of `box`; keeps what is nearer than `depth` and updates both buffers."""
    center = world_from_camera[:3, 3]
    # Rays have z = 1 in the camera, so the ray parameter is the depth, and every dot product is affine in x and y.
    ray_from_pixel = world_from_camera[:3, :3] @ np.linalg.inv(camera.matrix)
    x = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None]
    y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None]

    def along(direction: np.ndarray) -> np.ndarray:
        a, b, c = (direction @ ray_from_pixel).astype(np.float32)
        return a * x + (b * y + c)

    normal = np.cross(surface.right, surface.down)
    normal /= np.linalg.norm(normal)
    facing = along(normal)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.float32(normal @ (surface.corner - center)) / facing
    u, v = (
        np.float32(edge @ (center - surface.corner) / (edge @ edge)) + distance * along(edge / (edge @ edge))
        for edge in (surface.right, surface.down)
    )
    with np.errstate(invalid="ignore"):
        seen = (facing > 0) & (distance > NEAR) & (distance < depth[box])
        seen &= (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    if not seen.any():
        return
    colors = _sample(surface.mipmaps, u, v, distance / camera.matrix[0, 0] * TEXELS_PER_METRE, seen)
    colors *= _shade(light, normal, [center[axis] + distance * along(np.eye(3)[axis]) for axis in range(3)])[..., None]
    np.copyto(color[box], colors, where=seen[..., None])
    np.copyto(depth[box], distance, where=seen)


def _sample(mipmaps, u, v, texels_per_pixel, seen) -> np.ndarray:
    """Trilinear texture look-up at u, v (H×W) → H×W×3 float32."""
    level = np.log2(np.clip(np.where(seen, texels_per_pixel, 1), 1, 2.0 ** (len(mipmaps) - 1)))
    colors = np.zeros((*u.shape, 3), np.float32)
    for index in range(int(level[seen].min()), int(np.ceil(level[seen].max())) + 1):
        height, width = mipmaps[index].shape[:2]
        texture = cv2.remap(
            mipmaps[index], np.where(seen, u * width - 0.5, 0).astype(np.float32),
            np.where(seen, v * height - 0.5, 0).astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
        )
        colors += texture * np.clip(1 - np.abs(level - index), 0, 1).astype(np.float32)[..., None]
    return colors


def _shade(light: Light, normal: np.ndarray, point: list[np.ndarray]) -> np.ndarray:
    """Lambertian gain at `point` (three H×W arrays, metres)."""
    to_lamp = [np.float32(light.lamp[axis]) - point[axis] for axis in range(3)]
    squared = sum(component * component for component in to_lamp) + np.float32(0.05)
    cosine = np.abs(sum(component * np.float32(normal[axis]) for axis, component in enumerate(to_lamp)))
    falloff = (1 + squared / 4) / (squared * np.sqrt(squared))  # softer than 1/d², as with light off white walls
    return np.float32(light.ambient) + np.float32(light.power) * cosine * falloff


def photographs() -> dict[str, np.ndarray]:
    """The openly licensed photographs in scikit-image's wheel, by name, H×W×3 uint8 BGR."""
    try:
        from skimage import io
        from skimage.data import data_dir
    except ModuleNotFoundError as error:
        raise InputError("the demo's room needs photographs: pip install scikit-image (or run `make setup`)") from error
    names = {
        "brick": "brick.png", "gravel": "gravel.png", "grass": "grass.png", "astronaut": "astronaut.png",
        "camera": "camera.png", "chelsea": "chelsea.png", "coffee": "coffee.png", "motorcycle": "motorcycle_left.png",
        "page": "page.png", "rocket": "rocket.jpg", "hubble": "hubble_deep_field.jpg", "ihc": "ihc.png",
        "coins": "coins.png", "text": "text.png",
    }
    missing = sorted(file for file in names.values() if not (Path(data_dir) / file).is_file())
    if missing:
        raise InputError(f"scikit-image's wheel lacks {', '.join(missing)}; install another version of it")
    photos = {name: io.imread(Path(data_dir) / file) for name, file in names.items()}
    return {
        name: cv2.cvtColor(photo, cv2.COLOR_GRAY2BGR if photo.ndim == 2 else cv2.COLOR_RGB2BGR)
        for name, photo in photos.items()
    }


@cache
def room() -> list[Surface]:
    """Brick walls with pictures, a gravel floor, a plain ceiling with fields of stars, and crates to look behind."""
    photos = photographs()
    width, length, height = ROOM
    up = np.array([0, 0, -height])

    def large(name: str, size: int) -> np.ndarray:
        return cv2.resize(photos[name], (size, size), interpolation=cv2.INTER_CUBIC)

    brick = np.rot90(large("brick", 600))
    surfaces = [
        Surface.textured((0, length, height), (width, 0, 0), up, brick, tile=True),
        Surface.textured((width, length, height), (0, -length, 0), up, brick, tile=True),
        Surface.textured((width, 0, height), (-width, 0, 0), up, brick, tile=True),
        Surface.textured((0, 0, height), (0, length, 0), up, brick, tile=True),
        Surface.textured((0, length, 0), (width, 0, 0), (0, -length, 0), large("gravel", 700), tile=True),
        Surface.textured((0, 0, height), (width, 0, 0), (0, length, 0), large("hubble", 1500), tile=True),
    ]
    pictures = [
        ("astronaut", 0.4, 1.2), ("coffee", 2.0, 1.6), ("motorcycle", 3.8, 1.7),
        ("chelsea", 0.5, 1.6), ("page", 2.5, 1.1), ("rocket", 3.8, 0.9),
        ("camera", 0.6, 1.3), ("ihc", 2.3, 1.2), ("text", 4.0, 1.6),
        ("coins", 0.5, 1.2), ("astronaut", 2.0, 1.0), ("coffee", 3.3, 1.3),
    ]
    for wall, trio in zip(surfaces[:4], (pictures[index:index + 3] for index in range(0, 12, 3))):
        along = wall.right / np.linalg.norm(wall.right)
        inward = np.cross(wall.right, wall.down)
        inward *= -0.02 / np.linalg.norm(inward)
        for name, offset, size in trio:
            tall = size * photos[name].shape[0] / photos[name].shape[1]
            corner = wall.corner + along * offset + inward - [0, 0, 1.5 - tall / 2]
            surfaces.append(Surface.textured(corner, along * size, (0, 0, -tall), photos[name]))
    crates = [
        ((1.0, 3.9, 0.0), (0.7, 0.6, 0.8), "chelsea"), ((4.5, 3.8, 0.0), (0.8, 0.7, 1.1), "grass"),
        ((5.0, 1.2, 0.0), (0.6, 0.9, 0.7), "motorcycle"), ((0.4, 0.5, 0.0), (0.8, 0.6, 0.9), "ihc"),
        ((2.8, 4.2, 0.0), (0.5, 0.4, 0.6), "camera"),
    ]
    for low, extent, name in crates:
        surfaces += _crate(np.array(low), np.array(extent), photos[name])
    return surfaces


def _crate(low: np.ndarray, size: np.ndarray, photo: np.ndarray) -> list[Surface]:
    """Five sides of a box that stands on the floor, seen from outside."""
    (x, y, _), (w, d, h) = low.tolist(), size.tolist()
    sides = [
        ((x, y, h), (w, 0, 0)), ((x + w, y, h), (0, d, 0)),
        ((x + w, y + d, h), (-w, 0, 0)), ((x, y + d, h), (0, -d, 0)),
    ]
    walls = [Surface.textured(corner, right, (0, 0, -h), photo) for corner, right in sides]
    return [*walls, Surface.textured((x, y + d, h), (w, 0, 0), (0, -d, 0), photo)]


def camera() -> CameraModel:
    """The flight's camera: 640×480, 70° wide, no distortion."""
    matrix = np.array([[460.0, 0, 319.5], [0, 460.0, 239.5], [0, 0, 1]])
    return CameraModel(640, 480, matrix, np.zeros(5), "plumb_bob")


def pose_at(share: float) -> np.ndarray:
    """world_from_camera after `share` (0 to 1) of a flight that circles in the room, looking at its far side."""
    angle = 2 * np.pi * share
    middle = ROOM / 2
    position = middle + [1.3 * np.sin(angle), -0.9 * np.cos(angle), 0.25 * np.sin(2 * angle)]
    target = middle + [2.6 * np.sin(angle / 2 - 0.6) + 0.9 * np.sin(2 * angle), 2.4 + 0.4 * np.sin(angle), -0.3]
    forward = target - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def light_at(share: float) -> Light:
    """A lamp that swings under the ceiling while the daylight fades to a third and comes back."""
    angle = 2 * np.pi * share
    lamp = ROOM / 2 + [1.5 * np.cos(angle), 1.2 * np.sin(angle), 1.1]
    return Light(lamp, power=0.6 + 0.25 * np.sin(3 * angle), ambient=0.6 + 0.3 * np.cos(angle))


@dataclass(frozen=True)
class Flight:
    """The flight as a camera sees it: `frames` views at `rate` Hz, a second camera `baseline` metres to the right.

    A view depends on its number and on `seed` alone, whatever process renders it.
    """

    frames: int = 240
    rate: float = 20.0
    baseline: float = 0.12
    seed: int = 0

    def view(self, index: int) -> View:
        """Render view number `index`."""
        share = index / self.frames
        pose, light, noise = pose_at(share), light_at(share), np.random.default_rng((self.seed, index))
        right_from_left = np.eye(4)
        right_from_left[0, 3] = self.baseline
        color, depth = render(room(), camera(), pose, light)
        second, _ = render(room(), camera(), pose @ right_from_left, light)
        stamp = 1_000_000_000 + round(index * 1e9 / self.rate)
        return View(stamp, pose, _expose(color, noise), _expose(second, noise), depth)

    def views(self, processes: int | None = None) -> Iterator[View]:
        """All views in order, rendered on `processes` cores (default: all)."""
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(self.view, range(self.frames), chunksize=4)


def _expose(color: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Sensor: clipping at 255 and noise of about two grey levels."""
    grain = noise.standard_normal(color.shape[:2], dtype=np.float32)[..., None] * 2
    return np.clip(color + grain + 0.5, 0, 255).astype(np.uint8)
