"""What a data set folder is made of: frames as files, the camera they share, and how they are read."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.trajectory import Trajectory

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp", ".tif", ".tiff")
ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
"""What files of a kind that begin so end with."""


@dataclass(frozen=True)
class SceneOptions:
    """intrinsics: YAML that replaces the data set's calibration.  mono: leave the second camera and depth out."""

    intrinsics: Path | None = None
    mono: bool = False

    @property
    def camera(self) -> CameraModel | None:
        """The camera of `intrinsics`."""
        return CameraModel.from_yaml(self.intrinsics) if self.intrinsics is not None else None


@dataclass(frozen=True)
class SceneFrame:
    """Files of one instant; stamp in nanoseconds."""

    stamp: int
    image: Path
    depth: Path | None = None
    right: Path | None = None


@dataclass(frozen=True, eq=False)
class Rectification:
    """Maps of `cv2.remap` that make rows of the left and the right image correspond."""

    left: tuple[np.ndarray, np.ndarray]
    right: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Scene:
    """A posed sequence of one camera, as files.

    camera: of the images that `load` returns.  baseline: metres to the second camera of a rectified pair.
    ground_truth: world_from_camera of that camera.  depth_factor: file values × it = metres along z;
    a number, or H×W.  rectification: applied by `load`.
    """

    layout: str
    camera: CameraModel
    frames: tuple[SceneFrame, ...]
    ground_truth: Trajectory | None = None
    baseline: float | None = None
    depth_factor: float | np.ndarray = 1.0
    rectification: Rectification | None = None

    def load(self, frame: SceneFrame) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Image, depth (float32 metres, 0 = unknown) and right image of `frame`; None where there is none."""
        image = read_image(frame.image)
        right = read_image(frame.right) if frame.right is not None else None
        depth = None
        if frame.depth is not None:
            depth = (read_depth(frame.depth) * self.depth_factor).astype(np.float32)
            if depth.shape != image.shape[:2]:
                raise InputError(f"{frame.depth} is {depth.shape[1]}×{depth.shape[0]}, unlike its image {frame.image}")
        if self.rectification is not None:
            image = cv2.remap(image, *self.rectification.left, cv2.INTER_LINEAR)
            right = None if right is None else cv2.remap(right, *self.rectification.right, cv2.INTER_LINEAR)
        return image, depth, right


def read_image(path: Path) -> np.ndarray:
    """H×W or H×W×3 BGR uint8; 16-bit images keep their high byte, alpha is dropped."""
    image = _decode(path)
    if image is None:
        raise InputError(f"{path} is missing, cut short or no readable image")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return np.ascontiguousarray(image[..., :3]) if image.ndim == 3 and image.shape[2] == 4 else image


def is_cut_short(data: np.ndarray) -> bool:
    """Whether the bytes (N uint8) of a JPEG or PNG file lack their end: OpenCV decodes what there is of a JPEG, grey
    below the cut, and libpng says so on the terminal."""
    mark = next((end for begin, end in ENDS.items() if data[: len(begin)].tobytes() == begin), b"")
    return data[len(data) // 2 :].tobytes().rfind(mark) < 0


def _decode(path: Path) -> np.ndarray | None:
    """The pixels of an image file as they are stored; None where it is missing, cut short or no image."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return None
    return None if not len(data) or is_cut_short(data) else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def read_npy(path: Path) -> np.ndarray:
    """The numbers of a .npy file; InputError for what is cut short, an archive (.npz) or holds pickled objects."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, MemoryError, tokenize.TokenError) as error:  # the last two: of a damaged header
        raise InputError(f"{path} is no readable .npy file: {error}") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path} holds {array.dtype}, expected numbers")
    return array


def _read_depth_xml(path: Path) -> np.ndarray | None:
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    return file.getFirstTopLevelNode().mat()


DEPTH_READERS: dict[str, Callable[[Path], np.ndarray | None]] = {
    ".png": _decode, ".npy": read_npy, ".xml": _read_depth_xml,
}


def read_depth(path: Path) -> np.ndarray:
    """H×W numbers in the file's own unit; what is not finite becomes 0."""
    try:
        depth = DEPTH_READERS[path.suffix.lower()](path)
    except (SystemError, cv2.error) as error:
        raise InputError(f"{path} is no readable depth map: {error}") from None
    if depth is None:
        raise InputError(f"{path} is missing, cut short or no depth map")
    return np.nan_to_num(one_channel(depth, path), nan=0.0, posinf=0.0, neginf=0.0)


def one_channel(numbers: np.ndarray, path: Path) -> np.ndarray:
    """H×W of the H×W or H×W×1 numbers of the file `path`; InputError for another shape."""
    if numbers.ndim == 3 and numbers.shape[2] == 1:
        numbers = numbers[..., 0]
    if numbers.ndim != 2:
        raise InputError(f"{path} has shape {numbers.shape}, expected H×W: depth of one channel")
    return numbers


def need(*candidates: Path) -> Path:
    """The first of `candidates` that exists; InputError names them all."""
    for path in candidates:
        if path.exists():
            return path
    names = " or ".join(path.name for path in candidates)
    raise InputError(f"{candidates[0].parent} has no {names}, which this layout needs")


def files_in(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if not found:
        raise InputError(f"{folder} holds no files of kind {' '.join(suffixes)}")
    return found


def natural(name: str) -> list[str | int]:
    """Sort key that has 2.png before 10.png."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]


def pinhole(matrix: np.ndarray, image: Path) -> CameraModel:
    height, width = read_image(image).shape[:2]
    return CameraModel(width, height, np.asarray(matrix, float))
