"""Pictures on surfaces: a set of textures with their halvings, looked up trilinearly for many points at once."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

LEVELS = 7
GRAIN = 2 ** (LEVELS - 1)  # sides are multiples of it, so that halves are exact
LARGEST = 2048  # texels a side
ROW = 1024  # of the look-up: OpenCV takes no more than 32767 points a row or column


class Textures:
    """`images`: H×W×3 uint8 BGR each, stretched a little to sides that halve exactly.

    Beyond its border a texture goes on mirrored, so that any photograph tiles without a seam.
    """

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.sizes = np.array([[min(max(GRAIN, round(side / GRAIN) * GRAIN), LARGEST) for side in image.shape[1::-1]]
                               for image in images])
        levels = [level for image, size in zip(images, self.sizes) for level in _halvings(image, size.tolist())]
        self._page, corners = _packed(levels)
        self._x, self._y = corners.astype(np.float32).T
        self._width, self._height = self.sizes.astype(np.float32).T

    def sample(self, texture: np.ndarray, x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
        """N×3 float32 at N places x, y in texels of the full size (the first texel spans 0 to 1).

        texture: N numbers of textures.  level: N float32, 0 = the full size, 1 = its half, …
        """
        width, height = self._width[texture], self._height[texture]
        x, y = _mirrored(x, width), _mirrored(y, height)
        level = np.clip(level, 0, LEVELS - 1)
        lower = np.minimum(level.astype(np.intp), LEVELS - 2)
        share = (level - lower).astype(np.float32)[:, None]
        first = texture * LEVELS + lower
        near, far = (self._look_up(first + step, lower + step, x, y, width, height) for step in (0, 1))
        return near + share * (far - near)

    def _look_up(self, place, level, x, y, width, height) -> np.ndarray:
        """N×3 float32, bilinear in one level; `place` is its number on the page."""
        shrink = np.ldexp(np.float32(1), -np.arange(LEVELS)).astype(np.float32)[level]
        half = np.float32(0.5)
        column = self._x[place] + np.clip(x * shrink - half, 0, width * shrink - 1)
        row = self._y[place] + np.clip(y * shrink - half, 0, height * shrink - 1)
        padded = -len(x) % ROW
        maps = (np.pad(values, (0, padded)).reshape(-1, ROW) for values in (column, row))
        return cv2.remap(self._page, *maps, cv2.INTER_LINEAR).reshape(-1, 3)[: len(x)].astype(np.float32)


def _halvings(image: np.ndarray, size: list[int]) -> list[np.ndarray]:
    levels = [cv2.resize(image, size, interpolation=cv2.INTER_AREA)]
    for _ in range(LEVELS - 1):
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return levels


def _packed(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All `images` on one page, in rows from the tallest to the lowest, and the corner x, y of each."""
    corners, x, y, bottom = np.zeros((len(images), 2), int), 0, 0, 0
    for number in sorted(range(len(images)), key=lambda number: -images[number].shape[0]):
        height, width = images[number].shape[:2]
        if x + width > LARGEST:
            x, y = 0, bottom
        corners[number] = x, y
        x, bottom = x + width, max(bottom, y + height)
    page = np.zeros((bottom, LARGEST, 3), np.uint8)
    for image, (x, y) in zip(images, corners):
        page[y : y + image.shape[0], x : x + image.shape[1]] = image
    return page, corners


def _mirrored(place: np.ndarray, side: np.ndarray) -> np.ndarray:
    """`place` folded into [0, side]."""
    period = 2 * side
    place = place - np.floor(place / period) * period
    return np.minimum(place, period - place)
