"""Frames as files → ``PosedScene``: what every layout does after it has found its files."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import read_image
from kp_frontend.replay.scene_folder import ray_lengths
from kp_training.data.layouts.depth_files import read_depth
from kp_training.data.posed import PosedScene

ORTHONORMAL = 1e-2  # of R·Rᵀ − I: published poses are rounded, but not more than this
FARTHEST = 200.0  # metres: a greater median depth in a metric scene is one of millimetres …
FARTHEST_FLOAT = 100.0  # … which .npy files hold more often than others

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FrameFiles:
    """One frame as found on disk.

    camera: of the image file, with its lens; frames of one camera share the object.
    pose: 4×4 world_from_camera, or None or not finite where there is none.
    stamp: nanoseconds, None where there is none.
    """

    image: Path
    camera: CameraModel
    pose: np.ndarray | None
    depth: Path | None = None
    stamp: int | None = None


@dataclass(frozen=True, eq=False)
class FrameReader:
    """Index → image and depth, without lens distortion; travels to other processes.

    images, depths, stamps: of the N frames.  cameras: of the image files; which: index of each frame's.
    depth_factor, void: of ``read_depth``.  ray: depth is along the ray.
    fitted: image files of another size than the camera's are resized to it (ScanNet's colour images).
    """

    images: tuple[Path, ...]
    depths: tuple[Path | None, ...]
    stamps: tuple[int, ...] | None
    cameras: tuple[CameraModel, ...]
    which: tuple[int, ...]
    depth_factor: float = 1e-3
    void: float | None = None
    ray: bool = False
    fitted: bool = False

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        camera, path = self.cameras[self.which[index]], self.images[index]
        image = read_image(path)
        size = (camera.width, camera.height)
        if self.fitted and image.shape[1::-1] != size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if image.shape[1::-1] != size:
            raise InputError(f"{path} is {image.shape[1]}×{image.shape[0]}, its calibration is of "
                             f"{camera.width}×{camera.height}")
        return to_pinhole(image, self._depth(index, camera), camera)

    def original(self, index: int) -> Path | None:
        """The image file, where reading it changes no pixel; else None."""
        changed = self.fitted or not self.cameras[self.which[index]].undistorted
        return None if changed else self.images[index]

    def _depth(self, index: int, camera: CameraModel) -> np.ndarray | None:
        path = self.depths[index]
        if path is None:
            return None
        depth = read_depth(path, self.depth_factor, self.void)
        if depth.shape != (camera.height, camera.width):
            raise InputError(f"{path} is {depth.shape[1]}×{depth.shape[0]}, unlike its image {self.images[index].name} "
                             f"of {camera.width}×{camera.height}")
        return depth / _rays(camera) if self.ray else depth


def to_pinhole(
    image: np.ndarray, depth: np.ndarray | None, camera: CameraModel,
) -> tuple[np.ndarray, np.ndarray | None]:
    """H×W×3 image and depth, as a camera of the same K without the lens of `camera` shows them."""
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if camera.undistorted:
        return image, depth
    # Replicated, not black: a black border would be an edge that no view of the scene has.
    image = cv2.remap(image, *_pinhole_maps(camera), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return image, None if depth is None else cv2.remap(depth, *_pinhole_maps(camera), cv2.INTER_NEAREST)


@functools.lru_cache(maxsize=16)
def _pinhole_maps(camera: CameraModel) -> tuple[np.ndarray, np.ndarray]:
    """Maps of `cv2.remap` to the same K without a lens."""
    size, lens = (camera.width, camera.height), camera.distortion
    make = cv2.fisheye.initUndistortRectifyMap if camera.model == "equidistant" else cv2.initUndistortRectifyMap
    return make(camera.matrix, lens, np.eye(3), camera.matrix, size, cv2.CV_32FC1)


@functools.lru_cache(maxsize=16)
def _rays(camera: CameraModel) -> np.ndarray:
    return np.nan_to_num(ray_lengths(camera), nan=np.inf).astype(np.float32)


@dataclass(frozen=True)
class SceneKind:
    """What holds for all frames of a scene.

    metric, ordered: as in PosedScene.  depth_factor, void, ray, fitted: as in FrameReader.
    """

    metric: bool
    ordered: bool
    depth_factor: float = 1e-3
    void: float | None = None
    ray: bool = False
    fitted: bool = False


def make_scene(name: str, folder: Path, found: Sequence[FrameFiles], kind: SceneKind) -> PosedScene:
    """The scene of the usable ones of `found`; the others are counted in a warning.

    name: for people.  Raises InputError where none is left, a pose is no rotation, or depth cannot be.
    """
    frames = _usable(name, found)
    poses = _rotations(name, frames)
    cameras = list({id(frame.camera): frame.camera for frame in frames}.values())
    place = {id(camera): k for k, camera in enumerate(cameras)}
    which = tuple(place[id(frame.camera)] for frame in frames)
    stamps = tuple(frame.stamp for frame in frames if frame.stamp is not None)
    reader = FrameReader(
        tuple(frame.image for frame in frames), tuple(frame.depth for frame in frames),
        stamps if len(stamps) == len(frames) else None, tuple(cameras), which,
        kind.depth_factor, kind.void, kind.ray, kind.fitted,
    )
    intrinsics = np.stack([camera.matrix for camera in cameras])[list(which)]
    names = tuple(str(frame.image.relative_to(folder)) if frame.image.is_relative_to(folder) else frame.image.name
                  for frame in frames)
    scene = PosedScene(name, _identity(reader, poses, intrinsics), names, poses, intrinsics, reader,
                       frames[0].depth is not None, kind.metric, kind.ordered)
    _check_frames(scene, reader)
    return scene


def _usable(name: str, found: Sequence[FrameFiles]) -> list[FrameFiles]:
    has_depth = any(frame.depth for frame in found)
    faults = [_fault(frame, has_depth) for frame in found]
    counts = Counter(fault for fault in faults if fault)
    said = ", ".join(f"{count} {fault}" for fault, count in sorted(counts.items()))
    if not found or len(faults) == sum(counts.values()):
        raise InputError(f"{name} has no usable frame{': ' if said else ''}{said}; expected images with pose")
    if counts:
        log.warning("%s: left out %s, of %d frames", name, said, len(found))
    return [frame for frame, fault in zip(found, faults) if not fault]


def _fault(frame: FrameFiles, has_depth: bool) -> str:
    """Why a frame cannot be used, "" where it can."""
    if frame.pose is None:
        return "without pose"
    if not np.isfinite(frame.pose).all():
        return "with a pose of nan or infinity"
    if not frame.pose[:3, :3].any():
        return "with a pose of 0"
    if not frame.image.is_file():
        return "without image file"
    if has_depth and (frame.depth is None or not frame.depth.is_file()):
        return "without depth"
    return ""


def _rotations(name: str, frames: Sequence[FrameFiles]) -> np.ndarray:
    """N×4×4 poses; InputError where one is none, else its rotation is made exact."""
    poses = np.stack([frame.pose for frame in frames]).astype(np.float64)
    rotations = poses[:, :3, :3]
    off = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    signs = np.linalg.det(rotations)
    bad = np.flatnonzero((off > ORTHONORMAL) | (signs < 0))
    if len(bad):
        k = int(bad[0])
        lengths = " ".join(f"{value:.3g}" for value in np.linalg.norm(rotations[k], axis=1))
        raise InputError(f"{name}: {len(bad)} of {len(poses)} poses are no rotation, the first that of "
                         f"{frames[k].image.name}: determinant {signs[k]:.3g}, rows of length {lengths}; expected 1, "
                         "world_from_camera (poses in another convention, mirrored or scaled?)")
    left, _, right = np.linalg.svd(rotations)
    poses[:, :3, :3] = left @ right
    poses[:, 3] = (0, 0, 0, 1)
    return poses


def _identity(reader: FrameReader, poses: np.ndarray, intrinsics: np.ndarray) -> str:
    """Of the files' names, sizes and times of change, and of all that decides how they are read."""
    digest = hashlib.sha256(poses.tobytes() + intrinsics.tobytes())
    for path in (*reader.images, *filter(None, reader.depths)):
        stat = path.stat()
        digest.update(repr((str(path), stat.st_size, stat.st_mtime_ns)).encode())
    lenses = [(camera.width, camera.height, camera.model, camera.distortion.tolist()) for camera in reader.cameras]
    digest.update(repr((lenses, reader.depth_factor, reader.void, reader.ray, reader.fitted)).encode())
    return "posed:" + digest.hexdigest()[:16]


def _check_frames(scene: PosedScene, reader: FrameReader) -> None:
    """Look at the first, the middle and the last frame; InputError where none can be read or depth cannot be."""
    depths, error = [], None
    looked = sorted({0, len(scene) // 2, len(scene) - 1})
    for k in looked:
        try:
            depths.append(scene[k].depth)
        except InputError as fault:
            error = error or fault
    if not depths:
        raise InputError(f"{scene.name}: not one of {len(looked)} frames looked at can be read: {error}")
    path = reader.depths[0]
    if path is None:
        return
    known = np.concatenate([depth[depth > 0] for depth in depths if depth is not None])
    if not len(known):
        raise InputError(f"{scene.name}: depth is 0 or not finite everywhere in {len(depths)} frames looked at, "
                         f"such as {path}")
    median = float(np.median(known))
    if scene.metric and median > (FARTHEST_FLOAT if path.suffix == ".npy" else FARTHEST):
        raise InputError(f"{scene.name}: the median depth is {median:.4g} m ({path}): millimetres taken for metres? "
                         "expected metres in .npy, millimetres in .png")
