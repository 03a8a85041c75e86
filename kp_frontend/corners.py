"""Shi-Tomasi corners, spread over the picture."""

from __future__ import annotations

import cv2
import numpy as np

# (two grey levels per pixel)² would be 2.5e-4: below this there is sensor noise only
_FAINTEST = 1e-5


def shi_tomasi(
    gray: np.ndarray,
    count: int,
    allowed: np.ndarray | None = None,
    *,
    min_distance: int = 8,
    quality: float = 0.005,
    cells: tuple[int, int] = (8, 6),
    border: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` corners of `gray` (H×W uint8): N×2 float32 pixels and N float32 scores (least eigenvalue).

    allowed: H×W uint8, none where it is 0.  min_distance: pixels between corners.
    quality: least score as a share of the best.  cells: columns × rows that share `count` evenly; what one
    cell cannot fill goes to the strongest corners elsewhere.  border: pixels at the edge without corners.
    """
    score = cv2.cornerMinEigenVal(gray, 5)
    top = float(score.max())
    peaks = score >= cv2.dilate(score, np.ones((min_distance | 1, min_distance | 1), np.uint8))
    peaks &= score > max(quality * top, _FAINTEST)
    if allowed is not None:
        peaks &= allowed > 0
    peaks[:border], peaks[-border:], peaks[:, :border], peaks[:, -border:] = False, False, False, False
    y, x = np.nonzero(peaks)
    values = score[y, x]
    height, width = gray.shape
    cell = x * cells[0] // width + cells[0] * (y * cells[1] // height)
    chosen = _spread(cell, values, count, cells[0] * cells[1])
    return np.column_stack([x, y])[chosen].astype(np.float32), values[chosen].astype(np.float32)


def _spread(cell: np.ndarray, values: np.ndarray, count: int, cells: int) -> np.ndarray:
    """Indices of up to `count` values: first the best of each cell up to an even share, then the best left."""
    order = np.lexsort((-values, cell))
    starts = np.searchsorted(cell[order], np.arange(cells))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - starts[cell[order]]
    return np.lexsort((-values, rank >= -(-count // cells)))[:count]
