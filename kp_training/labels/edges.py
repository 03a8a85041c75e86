"""Which pixels of a repeatability map become labels: corners, not edges; apart from each other; the best of them."""

from __future__ import annotations

import cv2
import numpy as np

from kp_frontend.decoding import find_peaks

CELL = 8


def choose_points(
    values: np.ndarray, known: np.ndarray, count: int, *, threshold: float, nms_radius: int, border: int,
    edge_filter: bool, smoothing: float,
) -> np.ndarray:
    """N×3 float32 (x, y, smoothed value), N ≤ `count`, best first: peaks of an H×W map where it is `known`.

    threshold: least smoothed value.  nms_radius, border: pixels.  A cell of 8×8 pixels has one point at most.
    edge_filter: rank by `corner_response` instead of by the value.  smoothing: σ in pixels, 0 = none.
    """
    smooth = smooth_known(values, known, smoothing)
    response = corner_response(smooth) if edge_filter else smooth
    response = np.where(known & (smooth >= threshold), response, 0).astype(np.float32)
    peaks, _ = find_peaks(response, response.size, radius=nms_radius, border=border)
    peaks = one_per_cell(peaks, values.shape[1])[:count]
    return np.column_stack([peaks, smooth[peaks[:, 1], peaks[:, 0]].clip(0, 1)]).astype(np.float32)


def smooth_known(values: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """H×W float32: Gaussian mean of the known values around each pixel, 0 where there are none near."""
    weights = known.astype(np.float32)
    if not sigma:
        return values * weights
    total, weight = (cv2.GaussianBlur(maps, (0, 0), sigma) for maps in (values * weights, weights))
    return np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), 0).astype(np.float32)


def corner_response(values: np.ndarray) -> np.ndarray:
    """H×W float32: the smaller of a map's two negative second derivatives along its principal axes, at least 0.

    SEDM's edge filter, which the paper names without saying what it is: high on a peak, 0 along a ridge, which is what
    an edge makes, and wherever the map does not fall to both sides.
    """
    xx, yy, xy = (cv2.Sobel(values, cv2.CV_32F, *order, ksize=3, scale=0.25) for order in ((2, 0), (0, 2), (1, 1)))
    larger = (xx + yy) / 2 + np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return np.maximum(-larger, 0)


def one_per_cell(points: np.ndarray, width: int) -> np.ndarray:
    """Those of N×2 integer points, given best first, that are the first in their cell; in the same order."""
    cells = points[:, 1] // CELL * (-(-width // CELL)) + points[:, 0] // CELL
    _, first = np.unique(cells, return_index=True)
    return points[np.sort(first)]
