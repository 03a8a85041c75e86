"""Images that the ranges of an int8 network are taken from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_training.data.survey import read_photo, survey

COUNT = 32
LONGEST = 640
"""Pixels of the longer side, at most: larger images cost memory and show no other ranges."""
PHOTOGRAPHS = ("brick", "chelsea", "coffee", "coins", "grass", "gravel", "rocket")
"""Of scikit-image's, which it comes with; those that exports are checked on are not among them."""


def calibration_images(folder: Path | None) -> list[np.ndarray]:
    """H×W×3 BGR uint8: COUNT images spread over `folder`, or PHOTOGRAPHS where none is given.

    Raises InputError where the folder is missing or holds no usable image.
    """
    if folder is None:
        from skimage import data

        codes = {2: cv2.COLOR_GRAY2BGR, 3: cv2.COLOR_RGB2BGR}
        found = [getattr(data, name)() for name in PHOTOGRAPHS]
        return [_smaller(cv2.cvtColor(image, codes[image.ndim])) for image in found]
    if not folder.is_dir():
        raise InputError(f"--calibration {folder} is no folder; give a folder of images")
    files = survey(folder).usable
    chosen = np.unique(np.linspace(0, len(files) - 1, COUNT).round().astype(int)) if files else []
    read = [read_photo(folder / files[index].name) for index in chosen]
    images = [_smaller(image) for image in read if image is not None]
    if not images:
        raise InputError(f"--calibration {folder} holds no usable image ({survey(folder)}); give a folder with images "
                         "such as the robot sees")
    return images


def _smaller(image: np.ndarray) -> np.ndarray:
    scale = LONGEST / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
