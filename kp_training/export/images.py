"""Images that an export is calibrated and checked on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_training.data.photos import PhotoFolder, is_held_out
from kp_training.data.posed import evenly
from kp_training.data.survey import read_photo, survey

COUNT = 32
LONGEST = 400
"""Pixels of the longer side, at most: for the time it takes, more images tell more than larger ones."""
PHOTOGRAPHS = ("brick", "chelsea", "coffee", "coins", "grass", "gravel", "rocket")
"""Of scikit-image's, which it comes with; those of `check_images` are not among them."""


def calibration_images(folder: Path | None) -> list[np.ndarray]:
    """Images that int8 ranges are taken from, H×W×3 BGR uint8: COUNT spread over `folder`; without one, PHOTOGRAPHS.

    None is of the tenth that training never sees, where there are others: figures measured on it are to hold.
    Raises InputError where the folder is missing or holds no usable image.
    """
    if folder is None:
        from skimage import data

        codes = {2: cv2.COLOR_GRAY2BGR, 3: cv2.COLOR_RGB2BGR}
        found = [getattr(data, name)() for name in PHOTOGRAPHS]
        return [_smaller(cv2.cvtColor(image, codes[image.ndim])) for image in found]
    if not folder.is_dir():
        raise InputError(f"--calibration {folder} is no folder; give a folder of images")
    usable = survey(folder).usable
    files = [file for file in usable if not is_held_out(Path(file.name).name)] or usable
    read = [read_photo(folder / files[index].name) for index in evenly(len(files), COUNT)]
    images = [_smaller(image) for image in read if image is not None]
    if not images:
        raise InputError(f"--calibration {folder} holds no usable image ({survey(folder)}); give a folder with images "
                         "such as the robot sees")
    return images


def _smaller(image: np.ndarray) -> np.ndarray:
    scale = LONGEST / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def check_images(folder: Path | None, count: int = 4) -> list[np.ndarray]:
    """Images of different sizes to compare on, H×W×3 BGR uint8: the first of a folder, or scikit-image's."""
    if folder is not None:
        photos = PhotoFolder(folder)
        chosen = [photos[index] for index in range(min(count, len(photos)))]
    else:
        from skimage import data

        chosen = [cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR), cv2.cvtColor(data.camera(), cv2.COLOR_GRAY2BGR)]
    return [*chosen, cv2.resize(chosen[0], (320, 256))]
