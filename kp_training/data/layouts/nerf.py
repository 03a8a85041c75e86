"""Renders and photographs posed by NeRF tools: ``transforms.json``, and the layout of the NeRF-supervised papers."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import IMAGE_SUFFIXES, files_in, natural, need, read_image, read_npy
from kp_training.data.layouts.frames import FrameFiles, SceneKind, make_scene
from kp_training.data.layouts.poses import OPENCV_FROM_OPENGL
from kp_training.data.posed import PosedScene

TRANSFORMS = ("transforms.json", "transforms_train.json")
# Of the layout of METHODS.md section 3: 640×480, 44° from top to bottom, centre as the paper's code has it.
_FOCAL = 240 / np.tan(np.deg2rad(22))
NERF_CAMERA = CameraModel(640, 480, np.array([[_FOCAL, 0, 320], [0, _FOCAL, 240], [0, 0, 1]]))
# Keys of each lens model, in OpenCV's order, and the model's name here.
LENSES = {
    "": ("plumb_bob", ("k1", "k2", "p1", "p2", "k3")),
    "OPENCV": ("plumb_bob", ("k1", "k2", "p1", "p2", "k3")),
    "PINHOLE": ("plumb_bob", ()),
    "SIMPLE_PINHOLE": ("plumb_bob", ()),
    "SIMPLE_RADIAL": ("plumb_bob", ("k1", "k2", "p1", "p2", "k3")),
    "RADIAL": ("plumb_bob", ("k1", "k2", "p1", "p2", "k3")),
    "OPENCV_FISHEYE": ("equidistant", ("k1", "k2", "k3", "k4")),
}

log = logging.getLogger(__name__)


def read_transforms(source: Path, name: str) -> PosedScene:
    """``transforms.json`` of nerfstudio, instant-ngp or Blender, a folder's or itself; of a split the training part.

    The camera's pose is camera-to-world with x right, y up, z back.  cx and cy count from the picture's corner, as
    COLMAP's, from whom these tools have them.  ``depth_file_path`` is along z; its numbers are multiplied by
    ``depth_unit_scale_factor``, which is 0.001 where the file does not give it (1 for .npy).  Frames are put in the
    order of their names.
    """
    path = source if source.is_file() else need(*(source / file for file in TRANSFORMS))
    folder = path.parent
    try:
        values = json.loads(path.read_text())
        frames = sorted(values["frames"], key=lambda frame: natural(frame["file_path"]))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no transforms.json with frames of a file_path each: {error!r}") from None
    cameras: dict[str, CameraModel] = {}
    found, suffixes, missing = [], set(), 0
    for frame in frames:
        image = _image(folder, frame["file_path"])
        if not image.is_file():  # which may be all that tells the camera its size
            missing += 1
            continue
        own = {**values, **frame}
        key = repr([own.get(key) for key in _CAMERA_KEYS])
        if key not in cameras:
            cameras[key] = _camera(own, image, path)
        depth = folder / frame["depth_file_path"] if frame.get("depth_file_path") else None
        suffixes |= {depth.suffix.lower()} if depth else set()
        found.append(FrameFiles(image, cameras[key], _pose(frame, path), depth))
    if not found:
        raise InputError(f"{path}: not one of {len(frames)} images is there, such as "
                         f"{frames[0]['file_path'] if frames else 'none'}")
    if missing:
        log.warning("%s: left out %d without image file, of %d frames", name, missing, len(frames))
    factor = _number(values, "depth_unit_scale_factor", path, 1.0 if suffixes == {".npy"} else 1e-3)
    kind = SceneKind(metric=False, ordered=follow_each_other([frame.pose for frame in found]), depth_factor=factor)
    return make_scene(name, folder, found, kind)


_CAMERA_KEYS = ("camera_model", "is_fisheye", "fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x",
                "camera_angle_y", "k1", "k2", "k3", "k4", "p1", "p2")


def _image(folder: Path, name: str) -> Path:
    """Blender's files are named without their ending."""
    path = folder / name
    candidates = [path] if path.suffix else [Path(f"{path}{suffix}") for suffix in IMAGE_SUFFIXES]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def _pose(frame: dict[str, Any], path: Path) -> np.ndarray | None:
    matrix = frame.get("transform_matrix")
    return None if matrix is None else _turned(matrix, f"{path}: transform_matrix of {frame['file_path']}")


def _turned(matrix: Any, what: str) -> np.ndarray:
    """world_from_camera, 4×4, of 4×4 or 3×4 numbers whose camera has y up and z back; what: names them in errors."""
    try:
        rows = np.asarray(matrix, float).reshape(-1, 4)
    except (TypeError, ValueError):
        rows = np.zeros((0, 4))
    if len(rows) not in (3, 4):
        raise InputError(f"{what} is no 4×4 numbers: {str(matrix)[:60]}")
    pose = np.eye(4)
    pose[:3] = rows[:3]
    return pose @ OPENCV_FROM_OPENGL


def _camera(values: dict[str, Any], image: Path, path: Path) -> CameraModel:
    """Camera of a frame; what the file leaves out of its size is the image's.

    ``is_fisheye`` is how instant-ngp says OPENCV_FISHEYE, ``camera_model`` how nerfstudio does.
    """
    fisheye = bool(values.get("is_fisheye"))
    model = str(values.get("camera_model") or ("OPENCV_FISHEYE" if fisheye else "")).upper()
    if model not in LENSES:
        raise InputError(f"{path}: camera_model {model!r} is not read, expected one of "
                         f"{', '.join(filter(None, LENSES))}")
    if "w" in values and "h" in values:
        width, height = round(_number(values, "w", path)), round(_number(values, "h", path))
    else:
        height, width = read_image(image).shape[:2]
    focals = [_focal(values, "fl_x", "camera_angle_x", width, path),
              _focal(values, "fl_y", "camera_angle_y", height, path)]
    fx, fy = focals[0] or focals[1], focals[1] or focals[0]
    if not fx or not fy:
        raise InputError(f"{path} has no intrinsics: neither fl_x nor camera_angle_x, of the file or of the frame")
    cx, cy = _number(values, "cx", path, width / 2) - 0.5, _number(values, "cy", path, height / 2) - 0.5
    name, keys = LENSES[model]
    if fisheye and name != "equidistant":
        raise InputError(f"{path}: camera_model is {model}, yet is_fisheye is {values['is_fisheye']}; correct the one "
                         "that is wrong")
    if "k4" not in keys and values.get("k4"):
        raise InputError(f"{path}: k4 = {values['k4']} of a lens that is no fisheye is not read; undistort the images")
    lens = np.array([_number(values, key, path, 0.0) for key in keys])
    return CameraModel(width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), lens, name)


def _focal(values: dict[str, Any], focal: str, angle: str, side: int, path: Path) -> float | None:
    if focal in values:
        return _number(values, focal, path)
    return side / 2 / np.tan(_number(values, angle, path) / 2) if angle in values else None


def _number(values: dict[str, Any], key: str, path: Path, default: float | None = None) -> float:
    value = values.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise InputError(f"{path}: {key} is {value!r}, expected a finite number")
    return number


def follow_each_other(poses: list[np.ndarray | None]) -> bool:
    """Whether a camera moved along these poses: neighbours lie less than half as far apart as others do."""
    places = np.array([pose[:3, 3] for pose in poses if pose is not None and np.isfinite(pose).all()])
    if len(places) < 3:
        return False
    steps = np.median(np.linalg.norm(np.diff(places, axis=0), axis=1))
    others = np.median(np.linalg.norm(places - np.roll(places, len(places) // 2, axis=0), axis=1))
    return bool(steps < 0.5 * others)


def read_nerf(source: Path, name: str) -> list[PosedScene]:
    """``images/``, ``depth/``, ``camera_transforms/``, each with ``training/`` and ``validation/``, files name + index.

    The camera is the renders' (640×480, 44° from top to bottom); poses are camera-to-world with x right, y up, z back,
    depth is along the ray.  A scene for each name; its training part (METHODS.md section 3).
    """
    root = source / "NeRF" if (source / "NeRF").is_dir() else source
    parts = [need(root / kind / "training") for kind in ("images", "depth", "camera_transforms")]
    groups: dict[str, list[Path]] = defaultdict(list)
    for image in sorted(files_in(parts[0]), key=lambda path: natural(path.name)):
        groups[image.stem.rstrip("0123456789")].append(image)
    kind = SceneKind(metric=False, ordered=True, depth_factor=1.0, ray=True)
    scenes = []
    for stem, images in sorted(groups.items()):
        found = [
            FrameFiles(image, NERF_CAMERA, _saved_pose(parts[2] / f"{image.stem}.npy"), parts[1] / f"{image.stem}.npy")
            for image in images
        ]
        scenes.append(make_scene(f"{name}/{stem.rstrip('_-')}", root, found, kind))
    return scenes


def _saved_pose(path: Path) -> np.ndarray | None:
    return _turned(read_npy(path).tolist(), str(path)) if path.is_file() else None
