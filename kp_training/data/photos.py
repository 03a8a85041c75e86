"""A folder of photographs as training data; one in ten is kept from training."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
MINIMUM_SIDE = 64

log = logging.getLogger(__name__)


class PhotoFolder:
    """The photographs under a folder, by index, as H×W×3 BGR uint8.

    held_out: give the tenth that is kept from training (chosen by a hash of the file's name, so that it stays
    the same when photographs come and go) instead of the nine tenths for training.
    Raises InputError where the folder is missing or holds no usable photograph.
    """

    def __init__(self, folder: str | Path, held_out: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise InputError(f"photos:{folder} is no folder; give a folder of photographs")
        every = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        readable = [path for path in every if _readable(path)]
        if len(readable) < len(every):
            log.warning("%s: left out %d of %d files that are no image or smaller than %d pixels",
                        self.folder, len(every) - len(readable), len(every), MINIMUM_SIDE)
        self.paths = [path for path in readable if is_held_out(path.name) == held_out]
        if not self.paths:
            kind = "held-out photograph" if held_out else "photograph for training"
            found = f"{len(every)} image files, {len(readable)} usable"
            raise InputError(f"photos:{folder} holds no {kind} ({found}); give a folder with "
                             f"{', '.join(sorted(SUFFIXES))} files of at least {MINIMUM_SIDE} pixels a side")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        image = cv2.imread(str(self.paths[index]), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{self.paths[index]} was readable when training began and is not now; put it back")
        return image


def is_held_out(name: str) -> bool:
    """Whether the photograph of this file name belongs to the tenth that training never sees."""
    return hashlib.sha256(name.encode()).digest()[0] < 26


def _readable(path: Path) -> bool:
    image = cv2.imread(str(path), cv2.IMREAD_REDUCED_GRAYSCALE_2)
    return image is not None and 2 * min(image.shape) >= MINIMUM_SIDE
