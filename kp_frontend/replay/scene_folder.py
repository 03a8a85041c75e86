"""Our own layout of a posed scene: ``rgb/``, ``depth/``, ``poses.txt`` and ``intrinsics.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import DEPTH_READERS, Scene, SceneFrame, SceneOptions, files_in, need
from kp_frontend.replay.trajectory import as_floats, as_nanoseconds, read_rows, read_tum

UNITS = ("metre", "scene")
DEPTH_TYPES = ("z", "ray")


@dataclass(frozen=True, eq=False)
class SceneFolder:
    """What such a folder holds, as files; row k of the poses belongs to image k in the order of names.

    frames: depth is None where the image has none.  poses: the file of the rows below.
    rows: N×7 float64, tx ty tz qx qy qz qw of world_from_camera, as they stand there.
    camera: of all images, or of its size and lens alone where `focals` is not None.
    focals: N×4 float64, fx fy cx cy of each image (``intrinsics.txt``, which is there where images differ).
    depth_factor: numbers in the files × it = the scene's unit of length.  ray: they are along the ray, not along z.
    metric: whether that unit is the metre (``unit: scene`` says that it is not).
    ordered: whether frames are consecutive (``ordered: false`` says that they are not).
    """

    frames: tuple[SceneFrame, ...]
    poses: Path
    rows: np.ndarray
    camera: CameraModel
    focals: np.ndarray | None
    depth_factor: float
    ray: bool
    metric: bool
    ordered: bool


def list_scene_folder(source: Path, options: SceneOptions | None = None) -> SceneFolder:
    """Find the files of the scene folder `source`; InputError names what is missing or does not go together."""
    images = files_in(need(source / "rgb"))
    calibration = (options and options.intrinsics) or need(source / "intrinsics.yaml")
    camera = CameraModel.from_yaml(calibration)
    values: dict[str, Any] = yaml.safe_load(calibration.read_text())
    unit = values.get("unit", "metre")
    if unit not in UNITS:
        raise InputError(f"{calibration}: unit is {unit!r}, expected one of {', '.join(UNITS)}")
    depth_type = values.get("depth_type", "z")
    if depth_type not in DEPTH_TYPES:
        raise InputError(f"{calibration}: depth_type is {depth_type!r}, expected one of {', '.join(DEPTH_TYPES)}")
    poses = need(source / "poses.txt", source / "groundtruth.txt")
    rows = read_rows(poses, 8)
    if len(rows) != len(images):
        raise InputError(f"{poses} has {len(rows)} rows for {len(images)} images; row k must belong to image k")
    depths = _depths(source / "depth", images)
    suffix = next((path.suffix.lower() for path in depths if path), "")
    return SceneFolder(
        tuple(SceneFrame(*entry) for entry in zip(as_nanoseconds(rows[:, 0], poses).tolist(), images, depths)),
        poses, as_floats(rows[:, 1:], poses), camera, _focals(source / "intrinsics.txt", len(images)),
        1.0 if suffix == ".npy" else 1e-3, depth_type == "ray", unit == "metre",
        bool(values.get("ordered", True)),
    )


def _depths(folder: Path, images: list[Path]) -> list[Path | None]:
    """Depth map of each image: by position where there are as many, else by name."""
    if not folder.is_dir():
        return [None] * len(images)
    found = files_in(folder, tuple(DEPTH_READERS))
    by_stem = {path.stem: path for path in found}
    depths: list[Path | None] = [by_stem.get(path.stem) for path in images]
    if len(found) == len(images):
        depths = list(found)
    if not any(depths):
        raise InputError(f"{folder}: {len(found)} files, none named like the {len(images)} images")
    return depths


def _focals(path: Path, count: int) -> np.ndarray | None:
    """Rows ``fx fy cx cy``, one an image; None where there is no such file."""
    if not path.is_file():
        return None
    focals = as_floats(read_rows(path, 4), path)
    if len(focals) != count:
        raise InputError(f"{path} has {len(focals)} rows for {count} images; row k must belong to image k")
    return focals


def read_scene_folder(source: Path, options: SceneOptions) -> Scene:
    """Ours: ``rgb/``, ``depth/`` (mm PNG or m .npy), ``poses.txt`` or ``groundtruth.txt``, ``intrinsics.yaml``."""
    folder = list_scene_folder(source, options)
    if folder.focals is not None and options.intrinsics is None:
        raise InputError(f"{source / 'intrinsics.txt'} gives each image a calibration of its own; a sequence has one "
                         "camera")
    if not folder.metric:
        raise InputError(f"{source} has no metric scale (unit: scene); poses and depth must be in metres here")
    factor = folder.depth_factor / ray_lengths(folder.camera) if folder.ray else folder.depth_factor
    return Scene("scene", folder.camera, folder.frames, read_tum(folder.poses), depth_factor=factor)


def ray_lengths(camera: CameraModel) -> np.ndarray:
    """H×W: length of each pixel's bearing of z = 1."""
    pixels = np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1).reshape(-1, 2)
    bearings = camera.bearings(pixels.astype(np.float32))
    return np.linalg.norm(bearings, axis=1).reshape(camera.height, camera.width)
