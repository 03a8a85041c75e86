"""A drawing board for synthetic shapes: polygons painted on a cloudy ground, and where their corners are."""

from __future__ import annotations

import cv2
import numpy as np

from kp_training.geometry.homography import warp_points

OVERSAMPLING = 4
CONTRAST = 30


class Canvas:
    """A grey drawing on a cloudy ground, and the corners on it.

    Shapes are drawn on a plane of `width`×`height` units that the view sees through `view_from_plane`; a view of
    the identity has plane coordinates for pixels.  unit: 1/120 of the shorter side, the paper's pixel.
    """

    def __init__(self, height: int, width: int, view_from_plane: np.ndarray, rng: np.random.Generator) -> None:
        self.height, self.width, self.view_from_plane, self.rng = height, width, view_from_plane, rng
        self.unit = min(height, width) / 120
        self.image = _clouds(height * OVERSAMPLING, width * OVERSAMPLING, rng)
        self.taken = np.zeros((height, width), np.uint8)
        self.corners: list[np.ndarray] = []

    def claim(self, outline: np.ndarray) -> bool:
        """Take the place of a shape (N×2 `outline`), unless an earlier one has it or the view cannot show it."""
        outline = warp_points(self.view_from_plane, outline)
        if not np.isfinite(outline).all():
            return False
        pixels = [_pixels(outline)]
        place = np.zeros_like(self.taken)
        cv2.fillPoly(place, pixels, 1)
        cv2.polylines(place, pixels, True, 1, max(round(6 * self.unit), 1))
        if (place & self.taken).any():
            return False
        self.taken |= place
        return True

    def level(self, points: np.ndarray, *others: float) -> float:
        """A grey level that stands out from the drawing at `points` (N×2) and from the `others`."""
        x, y = np.nan_to_num(warp_points(self.view_from_plane, points)).T * OVERSAMPLING
        rows, columns = (np.clip(c, 0, side - 1).astype(int) for c, side in zip((y, x), self.image.shape))
        near = np.append(self.image[rows, columns].astype(float), others)
        distance = np.abs(np.arange(256)[:, None] - near).min(1)
        free = np.flatnonzero(distance >= min(CONTRAST, distance.max()))
        return float(free[self.rng.integers(len(free))])

    def fill(self, outline: np.ndarray, level: float) -> None:
        """Paint the polygon `outline` (N×2)."""
        fine = OVERSAMPLING * warp_points(self.view_from_plane, outline) + (OVERSAMPLING - 1) / 2
        if np.isfinite(fine).all():
            # OpenCV's own smooth edges lie up to half a pixel off in y; averaging fine pixels is true.
            cv2.fillPoly(self.image, [_pixels(fine)], level)

    def mark(self, points: np.ndarray) -> None:
        """Corners at N×2 `points`."""
        self.corners.append(warp_points(self.view_from_plane, points))

    def place(self, largest: float) -> tuple[np.ndarray, float]:
        """Centre and radius of a shape of at most `largest` times the shorter side that lies mostly on the plane."""
        radius = self.rng.uniform(0.07, largest) * min(self.height, self.width)
        return self.rng.uniform(0.1, 0.9, 2) * [self.width, self.height], radius

    def finished(self) -> np.ndarray:
        """H×W uint8: the mean of its fine pixels, blurred as the paper blurs (21 pixels of 960 rows)."""
        small = cv2.resize(self.image, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return cv2.GaussianBlur(small, (0, 0), 0.44)


def _clouds(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """H×W uint8: a soft gradient and soft blobs about one level."""
    base = rng.uniform(0, 255)
    small = np.full((-(-height // 16), -(-width // 16)), base, np.float32)
    for x, y, radius, level in rng.uniform([0, 0, 1, -90], [*small.shape[::-1], 5, 90], (rng.integers(0, 40), 4)):
        cv2.circle(small, (int(x), int(y)), int(radius), base + level, -1)
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(2.5, 8))
    return np.clip(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def _pixels(points: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(points, -30000, 30000)).astype(np.int32)
