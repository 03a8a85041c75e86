"""How much of what a frame sees another one sees, for all pairs of a scene's frames."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_frontend.geometry import invert
from kp_training.data.posed import PosedFrame, PosedScene

GRID = (16, 20)
"""Points of a frame, rows × columns, whose depth is looked up and that are looked for in the others."""
CELLS = (72, 96)
"""Of a frame, rows × columns, each with the least and the greatest depth in it."""
TOLERANCE = 0.05
"""Share of the depth by which two frames may differ in it and still see the same (``Reprojection.occlusion``)."""
LARGEST_GAP = 0.5
"""Between two optical axes that are said to cross, in distances of the crossing from the nearer camera."""
STEPS_AWAY = 10.0
"""Distance of a scene that no axes cross in, in steps between neighbouring cameras."""
MANY = 200
"""Frames, the reading of which takes long enough to say so."""
FORMAT = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Samples:
    """What the overlap needs of N frames.

    points: N×P×3 float32 in the world (about `centre`), of which N×P bool `known` count.
    pixels_from_world: N×3×4 float32, pixels in units of the frame's width and height, of homogeneous world points.
    near, far: N×CELLS float32, least (inf where none is known) and greatest depth; None: nothing hides anything.
    """

    points: Tensor
    known: Tensor
    pixels_from_world: Tensor
    near: Tensor | None = None
    far: Tensor | None = None


def depth_overlap(scene: PosedScene, frames: np.ndarray, cache: Path | None = None) -> np.ndarray:
    """M×M float32: share of the points of known depth of frame i that frame j sees, of M `frames` of a scene.

    A point is seen where it is in front of the camera, inside the image, and as far away as the depth there, up to
    TOLERANCE of it.  A frame that cannot be read sees nothing and is not seen.  Kept in the folder `cache`.
    """
    key = hashlib.sha256(repr((FORMAT, scene.identity, frames.tolist(), GRID, CELLS, TOLERANCE)).encode())
    file = None if cache is None else cache / f"{key.hexdigest()[:32]}.npy"
    found = _read(file, len(frames))
    if found is not None:
        return found
    if len(frames) >= MANY:
        print(f"reading {len(frames)} frames of {scene.name} for what they share", flush=True)
    samples, unreadable = _sample_frames(scene, frames)
    overlap = _overlap(samples)
    if unreadable:
        log.warning("%s: %d of %d frames cannot be read and are left out", scene.name, unreadable, len(frames))
    elif file is not None:
        _write(file, overlap)
    return overlap


def pose_overlap(scene: PosedScene, frames: np.ndarray) -> np.ndarray:
    """M×M float32: as `depth_overlap`, were all that M `frames` see as far away as `scene_distance`, hiding nothing.

    The images' size is taken to be twice that of the principal point.
    """
    poses, intrinsics = scene.poses[frames], scene.intrinsics[frames]
    depth = scene_distance(poses)
    sizes = 2 * intrinsics[:, :2, 2] + 1
    pixels = _grid(8, 10) * sizes[:, None] - 0.5
    depths = np.full(pixels.shape[:2], depth)
    return _overlap(_samples(pixels, depths, poses, intrinsics, sizes))


def scene_distance(poses: np.ndarray) -> float:
    """How far from the cameras N×4×4 world_from_camera their scene may be, in its unit of length.

    The median distance to where two optical axes pass each other in front of both cameras, as round an object; where
    none do, as on a road, STEPS_AWAY median distances to the nearest other camera.
    """
    centres, axes = poses[:, :3, 3] - poses[:, :3, 3].mean(0), poses[:, :3, 2]
    own = (centres * axes).sum(1)
    along, back = axes @ centres.T - own[:, None], own - centres @ axes.T  # from i to j, along i's axis and j's
    cosines = axes @ axes.T
    sines = np.sqrt(np.maximum(1 - cosines**2, 1e-12))
    reach = (along - cosines * back) / sines**2  # on i's axis, to where it is nearest to j's
    moments = np.cross(centres, axes)
    gap = np.abs(axes @ moments.T + moments @ axes.T) / sines
    nearer = np.minimum(reach, reach.T)
    crossing = (sines > np.sin(np.radians(5))) & (nearer > 0) & (gap < LARGEST_GAP * nearer)
    if crossing.any():
        return float(np.median(reach[crossing]))
    distances = np.linalg.norm(centres[:, None] - centres, axis=-1)
    distances[distances <= 1e-6 * distances.max()] = np.inf  # from the same place
    nearest = distances.min(1)
    return STEPS_AWAY * float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else 1.0


def _overlap(samples: Samples) -> np.ndarray:
    """M×M float32 share of the known points of frame i that frame j sees, a frame i at a time."""
    count = len(samples.points)
    overlap = np.zeros((count, count), np.float32)
    for i in range(count):
        known = samples.points[i][samples.known[i]]
        if len(known):
            overlap[i] = _seen(samples, known).float().mean(1).numpy()
    return overlap


def _seen(samples: Samples, points: Tensor) -> Tensor:
    """M×P bool: which of P×3 world points each frame sees."""
    homogeneous = torch.cat([points, torch.ones_like(points[:, :1])], 1).T
    projected = (samples.pixels_from_world.flatten(0, 1) @ homogeneous).unflatten(0, (-1, 3))
    x, y, z = projected.unbind(1)
    front = z > 1e-6
    inverse = 1 / torch.where(front, z, torch.ones_like(z))
    x, y = x * inverse, y * inverse
    seen = front & (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    if samples.near is None or samples.far is None:
        return seen
    rows, columns = CELLS
    column, row = ((values.clamp(0, 1) * side).long().clamp_max(side - 1) for values, side in ((x, columns), (y, rows)))
    cell = row * columns + column
    near, far = (bound.flatten(1).gather(1, cell) for bound in (samples.near, samples.far))
    return seen & (z >= near * (1 - TOLERANCE)) & (z <= far * (1 + TOLERANCE))


def _sample_frames(scene: PosedScene, frames: np.ndarray) -> tuple[Samples, int]:
    """Samples of `frames` of a scene, and how many of them cannot be read; in memory are only a few at a time."""
    count, unit = len(frames), _grid(*GRID)
    depths, sizes = np.zeros((count, len(unit))), np.ones((count, 2))
    near, far = torch.full((count, *CELLS), torch.inf), torch.zeros((count, *CELLS))
    unreadable = 0
    for k, frame in enumerate(_frames_of(scene, frames)):
        if frame is None or frame.depth is None:
            unreadable += 1
            continue
        height, width = frame.depth.shape
        sizes[k] = width, height
        x, y = (unit * sizes[k]).astype(int).T
        depths[k] = frame.depth[y, x]
        depth = torch.from_numpy(frame.depth)[None, None]
        near[k] = -F.adaptive_max_pool2d(torch.where(depth > 0, -depth, -torch.inf), CELLS)[0, 0]
        far[k] = F.adaptive_max_pool2d(depth, CELLS)[0, 0]
    pixels = np.floor(unit * sizes[:, None])
    samples = _samples(pixels, depths, scene.poses[frames], scene.intrinsics[frames], sizes, near, far)
    return samples, unreadable


def _samples(
    pixels: np.ndarray, depths: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray, sizes: np.ndarray,
    near: Tensor | None = None, far: Tensor | None = None,
) -> Samples:
    """Of M×P×2 pixels with M×P depths (0 = unknown); M×2 `sizes` of the images are (width, height)."""
    centre = poses[:, :3, 3].mean(0)  # so that 32 bits do
    poses = poses.copy()
    poses[:, :3, 3] -= centre
    rays = np.concatenate([pixels, np.ones_like(pixels[..., :1])], -1) @ np.swapaxes(np.linalg.inv(intrinsics), 1, 2)
    points = (rays * depths[..., None]) @ np.swapaxes(poses[:, :3, :3], 1, 2) + poses[:, None, :3, 3]
    units = np.zeros((len(poses), 3, 3))
    units[:, 0, 0], units[:, 1, 1], units[:, 2, 2] = 1 / sizes[:, 0], 1 / sizes[:, 1], 1
    units[:, :2, 2] = 0.5 / sizes  # the image covers half a pixel more than its outermost centres
    projections = units @ intrinsics @ invert(poses)[:, :3]
    return Samples(torch.from_numpy(points).float(), torch.from_numpy(depths > 0),
                   torch.from_numpy(projections).float(), near, far)


def _grid(rows: int, columns: int) -> np.ndarray:
    """P×2 float64: x, y in (0, 1) of the centres of rows × columns cells."""
    y, x = np.mgrid[:rows, :columns]
    return np.column_stack([(x.ravel() + 0.5) / columns, (y.ravel() + 0.5) / rows])


def _frames_of(scene: PosedScene, frames: np.ndarray) -> Iterator[PosedFrame | None]:
    """The frames one after another, None for those that cannot be read; two are read at once."""
    def read(index: int) -> PosedFrame | None:
        try:
            return scene[int(index)]
        except InputError as error:
            log.info("%s", error)
            return None

    with ThreadPoolExecutor(2) as readers:
        for start in range(0, len(frames), 32):  # all at once would hold all of them
            yield from readers.map(read, frames[start : start + 32])


def _read(file: Path | None, count: int) -> np.ndarray | None:
    """The overlap in `file`, None where there is none of `count` frames."""
    if file is None:
        return None
    try:
        overlap = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return overlap if overlap.shape == (count, count) else None


def _write(file: Path, overlap: np.ndarray) -> None:
    """Kept where the folder takes it; else it is made again the next time."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as beside:
            np.save(beside, overlap)
