"""HPatches-style sequences: a folder with images ``1.png, 2.png …`` and ``H_1_2 …``, image 1 the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_training.geometry.homography import scale_homography

SPLITS = {"i_": "illumination", "v_": "viewpoint"}
"""HPatches names its sequences by what changes in them."""


@dataclass(frozen=True)
class Size:
    """What images are brought to: stretched to width × height, or by one of their sides, or (all 0) left as they are.

    short: aspect kept, the long side rounded up to a multiple of 8; the second image gets the first one's size.
    long: aspect kept, the short side rounded.
    """

    width: int = 0
    height: int = 0
    short: int = 0
    long: int = 0

    def of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(width, height) for an image of `shape` (height, width, …)."""
        if self.short:
            height, width = (max(self.short, int(-(-side * self.short // min(shape[:2])))) for side in shape[:2])
            return -(-width // 8) * 8, -(-height // 8) * 8
        if self.long:
            height, width = (round(side * self.long / max(shape[:2])) for side in shape[:2])
            return width, height
        return (self.width, self.height) if self.width else (shape[1], shape[0])

    def __str__(self) -> str:
        side = f"short{self.short}" if self.short else f"long{self.long}" if self.long else "full"
        return f"{self.width}x{self.height}" if self.width else side

    @classmethod
    def parse(cls, text: str) -> Size:
        """Of ``640x480``, ``short480``, ``long1600`` or ``full``; InputError for anything else."""
        if text == "full":
            return FULL
        found = re.fullmatch(r"(?:(\d{2,5})[x×](\d{2,5})|short(\d{2,5})|long(\d{2,5}))", text)
        if not found or min(int(side) for side in found.groups() if side) < 32:
            raise InputError(f"--size {text}: expected WIDTHxHEIGHT of at least 32 each, as in 640x480, "
                             "or short480, long1600, or full")
        return cls(*(int(side or 0) for side in found.groups()))


FULL = Size()


@dataclass(frozen=True)
class Loading:
    """How images are read.

    plain_scaling: resize bilinearly and rescale the homography by plain factors, as KP2D's loader does; else shrink
    by area, enlarge bilinearly, and keep pixel centres at integers.  gray: one channel.
    """

    size: Size = FULL
    plain_scaling: bool = False
    gray: bool = False


@dataclass(frozen=True, eq=False)
class HomographyPair:
    """Two images, H×W×3 BGR or H×W uint8, with the 3×3 homography image1_from_image0 in pixels.

    group: folder name, or what changes between the images.  name: of the pair.  source: what its pairs have in common.
    """

    group: str
    name: str
    image0: np.ndarray
    image1: np.ndarray
    homography: np.ndarray
    source: str


class Sequences:
    """All sequences under a folder (or itself), in name order; all is checked but the pixels.

    Raises InputError where there is none, and for a homography or image that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folders = tuple(sorted({path.parent for path in folder.rglob("H_1_*") if path.is_file()}))
        if not self.folders:
            raise InputError(f"{folder} holds no sequence: expected folders with images 1.png, 2.png … and H_1_2 …")
        for sequence in self.folders:
            _image_file(sequence, "1")
            for file in homography_files(sequence):
                _load_homography(file)
                _image_file(sequence, file.name.removeprefix("H_1_"))
        self.names = tuple(sequence.name for sequence in self.folders)

    def __str__(self) -> str:
        return f"{len(self.folders)} sequence{'s' * (len(self.folders) > 1)}"

    def units(self, left_out: frozenset[str]) -> dict[int, int]:
        """Number → pairs of each sequence whose name is not `left_out`."""
        return {number: len(homography_files(sequence)) for number, sequence in enumerate(self.folders)
                if sequence.name not in left_out}

    def pairs(self, number: int, loading: Loading) -> Iterator[HomographyPair]:
        """Pairs (1, k) of a sequence; InputError for an image that cannot be read."""
        return load_pairs(self.folders[number], loading)


def homography_files(sequence: Path) -> list[Path]:
    """``H_1_2, H_1_3 …`` in the order of their numbers."""
    return sorted(sequence.glob("H_1_*"), key=lambda path: (len(path.name), path.name))


def load_pairs(sequence: Path, loading: Loading) -> Iterator[HomographyPair]:
    """Pairs (1, k) of a sequence folder; InputError for an image or homography that cannot be read."""
    original = _load_image(_image_file(sequence, "1"), loading)
    first_size = loading.size.of(original.shape)
    first, first_scale = resize(original, first_size, loading)
    for file in homography_files(sequence):
        name = file.name.removeprefix("H_1_")
        original = _load_image(_image_file(sequence, name), loading)
        size = first_size if loading.size.short else loading.size.of(original.shape)
        second, second_scale = resize(original, size, loading)
        homography = _load_homography(file)
        if loading.plain_scaling:
            homography = np.diag([*second_scale, 1]) @ homography @ np.diag([*(1 / first_scale), 1])
        else:
            homography = scale_homography(homography, first_scale, second_scale)
        yield HomographyPair(sequence.name, f"1-{name}", first, second, homography, sequence.name)


def _image_file(sequence: Path, name: str) -> Path:
    files = sorted(sequence.glob(f"{name}.*"))
    if not files or not cv2.haveImageReader(str(files[0])):
        raise InputError(f"{sequence}: no readable image {name}.png (or .ppm, .jpg …) beside H_1_{name}"
                         if name != "1" else f"{sequence}: no readable image 1.png (or .ppm, .jpg …), the reference")
    return files[0]


def _load_image(file: Path, loading: Loading) -> np.ndarray:
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{file} cannot be read as an image; put back the original file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if loading.gray else image


def resize(image: np.ndarray, size: tuple[int, int], loading: Loading) -> tuple[np.ndarray, np.ndarray]:
    """The image at (width, height) `size`, and its (x, y) scale."""
    scale = np.array(size) / image.shape[1::-1]
    if (scale == 1).all():
        return image, scale
    by_area = not loading.plain_scaling and (scale <= 1).all()
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR), scale


def _load_homography(file: Path) -> np.ndarray:
    try:
        lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
        homography = np.array(lines, float)
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: expected 3×3 numbers ({error})") from error
    if homography.shape != (3, 3) or not np.isfinite(homography).all() or abs(np.linalg.det(homography)) < 1e-12:
        raise InputError(f"{file}: expected an invertible 3×3 matrix, got shape {homography.shape}")
    return homography / homography[2, 2] if homography[2, 2] else homography
