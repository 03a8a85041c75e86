"""Pairs from a list in the line format of ScanNet-1500 and YFCC (EVALUATION.md section 2)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.replay.scene_files import read_image
from kp_training.evaluation.relative_pose.pairs import PosePair, View
from kp_training.evaluation.sequences import Size

_FIELDS = 4 + 9 + 9 + 16
_QUARTER = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # x' = y, y' = −x: the camera turned with its image


class ListedPairs:
    """The pairs of a file with a line for each: two image paths below `folder`, two rotation codes, K0, K1, T_0to1.

    A rotation code counts the quarter turns anticlockwise that bring its image upright (EXIF); K and pose are those
    of the image as it is stored, and are turned with it.  most: only the first pairs.
    Raises InputError for a line that is not like that, and for an image that is not there.
    """

    has_depth = metric = False

    def __init__(self, folder: Path, file: Path, most: int | None = None) -> None:
        self.folder, self.file = folder, file
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as a list of pairs ({error})") from None
        kept = [(number, line.split()) for number, line in enumerate(lines) if line.strip()][:most]
        self.pairs = tuple(self._read(number, fields) for number, fields in kept)
        if not self.pairs:
            raise InputError(f"{file} lists no pair; expected lines of {_FIELDS} fields: two paths, two rotation "
                             "codes, K0, K1, T_0to1")

    def __str__(self) -> str:
        return f"{len(self.pairs)} pairs of {self.file.name}"

    def view(self, key: tuple[str, int, tuple[float, ...]], size: Size) -> View:
        """An image by path, rotation code and the nine numbers of K."""
        path, turns, numbers = key
        image = read_image(self.folder / path)
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
        intrinsics = turn_intrinsics(np.reshape(numbers, (3, 3)), turns, *image.shape[:2])
        return View.of(np.ascontiguousarray(np.rot90(image, turns)), None, intrinsics, size)

    def _read(self, number: int, fields: list[str]) -> PosePair:
        where = f"{self.file}, line {number + 1}"
        try:
            turns = [int(float(code)) for code in fields[2:4]]
            values = np.array(fields[4:], float)
        except ValueError as error:
            raise InputError(f"{where}: {error}; expected two paths, then numbers") from None
        if len(fields) != _FIELDS or not set(turns) <= {0, 1, 2, 3}:
            raise InputError(f"{where}: {len(fields)} fields, rotation codes {turns}; expected {_FIELDS}: two paths, "
                             "two rotation codes in 0 … 3, K0 (9), K1 (9), T_0to1 (16)")
        for path in fields[:2]:
            self._check(where, path)
        first, second = ((path, code, tuple(numbers.tolist()))
                         for path, code, numbers in zip(fields[:2], turns, (values[:9], values[9:18])))
        pose = turned(turns[1]) @ values[18:].reshape(4, 4) @ turned(turns[0]).T
        if abs(np.linalg.det(pose[:3, :3]) - 1) > 0.01:
            raise InputError(f"{where}: T_0to1 has no rotation: its determinant is {np.linalg.det(pose[:3, :3]):.3g}")
        name = f"{Path(fields[0]).stem}-{Path(fields[1]).stem}"
        return PosePair("mean", name, Path(fields[0]).parent.as_posix(), first, second, pose)

    def _check(self, where: str, path: str) -> None:
        if not (self.folder / path).is_file():
            raise InputError(f"{where}: no image {self.folder / path}; give the folder that its paths start from")


def turned(turns: int) -> np.ndarray:
    """4×4 turned_from_stored: the camera whose image is turned by so many quarters anticlockwise."""
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.matrix_power(_QUARTER, turns)
    return pose


def turn_intrinsics(intrinsics: np.ndarray, turns: int, height: int, width: int) -> np.ndarray:
    """K of an image of height × width after so many quarter turns anticlockwise (``numpy.rot90``)."""
    for _ in range(turns):
        (fx, _, cx), (_, fy, cy) = intrinsics[0], intrinsics[1]
        intrinsics = np.array([[fy, 0, cy], [0, fx, width - 1 - cx], [0, 0, 1]])
        height, width = width, height
    return intrinsics
