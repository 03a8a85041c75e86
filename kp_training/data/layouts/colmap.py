"""COLMAP's models of cameras and images, as text and as binary."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.geometry import invert
from kp_frontend.quaternions import poses_from_quaternions

# By COLMAP's number: name, how many parameters, which of them are fx fy cx cy, our lens model, which are its lens'
# (-1: 0).
MODELS = (
    ("SIMPLE_PINHOLE", 3, (0, 0, 1, 2), "plumb_bob", ()),
    ("PINHOLE", 4, (0, 1, 2, 3), "plumb_bob", ()),
    ("SIMPLE_RADIAL", 4, (0, 0, 1, 2), "plumb_bob", (3, -1, -1, -1)),
    ("RADIAL", 5, (0, 0, 1, 2), "plumb_bob", (3, 4, -1, -1)),
    ("OPENCV", 8, (0, 1, 2, 3), "plumb_bob", (4, 5, 6, 7)),
    ("OPENCV_FISHEYE", 8, (0, 1, 2, 3), "equidistant", (4, 5, 6, 7)),
    ("FULL_OPENCV", 12, (0, 1, 2, 3), "rational_polynomial", tuple(range(4, 12))),
)
BY_NAME = {model[0]: model for model in MODELS}


@dataclass(frozen=True, eq=False)
class PosedImage:
    """An image of a model: its file's name, camera, and 4×4 world_from_camera."""

    name: str
    camera: CameraModel
    pose: np.ndarray


def read_model(folder: Path) -> list[PosedImage]:
    """Images of ``cameras.txt`` and ``images.txt``, or of the same as ``.bin``, in the order of their names."""
    for suffix, (cameras_of, images_of) in READERS.items():
        paths = folder / f"cameras{suffix}", folder / f"images{suffix}"
        if all(path.is_file() for path in paths):
            try:
                cameras, images = cameras_of(paths[0]), images_of(paths[1])
                return sorted((_posed(cameras, *image) for image in images), key=lambda image: image.name)
            except (ValueError, IndexError, KeyError, struct.error, OSError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{folder}: the COLMAP model is damaged: {error!r}") from None
    raise InputError(f"{folder} has no COLMAP model: neither cameras.txt with images.txt nor the same as .bin")


def _posed(cameras: dict[int, CameraModel], name: str, camera: int, row: list[float]) -> PosedImage:
    qw, qx, qy, qz, *position = row  # camera_from_world
    pose = poses_from_quaternions(np.array([position]), np.array([[qx, qy, qz, qw]]))
    return PosedImage(name, cameras[camera], invert(pose)[0])


def _camera(path: Path, name: str, width: int, height: int, parameters: list[float]) -> CameraModel:
    """Our camera of COLMAP's, whose pixel centres are at halves."""
    if name not in BY_NAME:
        raise InputError(f"{path}: camera model {name} is not read, expected one of {', '.join(BY_NAME)}")
    _, _, places, model, lens = BY_NAME[name]
    fx, fy, cx, cy = (parameters[place] for place in places)
    matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    distortion = np.array([0.0 if place < 0 else parameters[place] for place in lens])
    return CameraModel(width, height, matrix, distortion, model)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def _cameras_text(path: Path) -> dict[int, CameraModel]:
    rows = [line.split() for line in _lines(path) if line.strip()]
    return {int(row[0]): _camera(path, row[1], int(row[2]), int(row[3]), [float(value) for value in row[4:]])
            for row in rows}


def _images_text(path: Path) -> list[tuple[str, int, list[float]]]:
    rows = [line.split(maxsplit=9) for line in _lines(path)[::2] if line.strip()]  # each second line is of its points
    return [(row[9].strip(), int(row[8]), [float(value) for value in row[1:8]]) for row in rows]


def _cameras_binary(path: Path) -> dict[int, CameraModel]:
    data, place, cameras = path.read_bytes(), 8, {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, model, width, height = struct.unpack_from("<iiQQ", data, place)
        if not 0 <= model < len(MODELS):
            raise InputError(f"{path}: camera model number {model} is not read, expected 0 to {len(MODELS) - 1}")
        name, count = MODELS[model][:2]
        parameters = list(struct.unpack_from(f"<{count}d", data, place + 24))
        cameras[number] = _camera(path, name, width, height, parameters)
        place += 24 + 8 * count
    return cameras


def _images_binary(path: Path) -> list[tuple[str, int, list[float]]]:
    data, place, images = path.read_bytes(), 8, []
    for _ in range(struct.unpack_from("<Q", data)[0]):
        _, *row, camera = struct.unpack_from("<i7di", data, place)
        end = data.index(b"\0", place + 64)
        images.append((data[place + 64 : end].decode(), camera, row))
        place = end + 9 + 24 * struct.unpack_from("<Q", data, end + 1)[0]
    return images


# Of a model's files, by their ending: cameras and images.
READERS = {".txt": (_cameras_text, _images_text), ".bin": (_cameras_binary, _images_binary)}
