"""The picture a person looks at: keypoints coloured by age, with the way they came since the frame before."""

from __future__ import annotations

import cv2
import numpy as np

from kp_frontend.features import Features, Matches, Tracks

OLDEST = 30  # frames; from there on the colour stays the same
_SHADES = 12
_SHIFT = 3  # fractional bits of OpenCV's drawing coordinates
# Viridis without its darkest part: readable on most pictures, and for the colour-blind.
_COLOURS = cv2.applyColorMap(np.linspace(80, 255, _SHADES).astype(np.uint8).reshape(-1, 1), cv2.COLORMAP_VIRIDIS)
_UNTRACKED = (160, 160, 160)
_OUTLINE = (0, 0, 0)


def draw_tracks(
    image: np.ndarray,
    features: Features,
    tracks: Tracks,
    matches: Matches | None = None,
    previous: Features | None = None,
) -> np.ndarray:
    """A BGR copy of `image` (H×W or H×W×3 uint8) with its features drawn in.

    Dots are keypoints: grey when new or without a track, then from blue to yellow with age (30 frames and more).
    Lines lead from where `matches` (query = this frame) saw them in the features of the frame before, `previous`.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    size = max(1, round(max(image.shape[:2]) / 640))
    points = np.round(features.keypoints * (1 << _SHIFT)).astype(np.int32)
    shades = _shades(tracks)
    if matches is not None and previous is not None and len(matches):
        starts = np.round(previous.keypoints[matches.train] * (1 << _SHIFT)).astype(np.int32)
        tails = np.stack([starts, points[matches.query]], axis=1)
        _draw(canvas, tails, shades[matches.query], size)
    dots = np.stack([points, points], axis=1)
    cv2.polylines(canvas, list(dots), False, _OUTLINE, 4 * size + 1, cv2.LINE_8, _SHIFT)
    _draw(canvas, dots, shades, 4 * size - 1)
    return canvas


def _shades(tracks: Tracks) -> np.ndarray:
    """N shades, logarithmic in age: −1 for what has been seen once or has no track."""
    ages = np.minimum(tracks.ages, OLDEST).astype(np.float32)
    shades = (np.log(np.maximum(ages, 1)) / np.log(OLDEST) * (_SHADES - 1)).astype(int)
    return np.where((tracks.ids == 0) | (ages <= 1), -1, shades)


def _draw(canvas: np.ndarray, lines: np.ndarray, shades: np.ndarray, thickness: int) -> None:
    """Draw N×2×2 lines (a dot is one of no length), a call of OpenCV for each shade, the oldest on top."""
    for shade in np.unique(shades):
        colour = _UNTRACKED if shade < 0 else tuple(int(value) for value in _COLOURS[shade, 0])
        cv2.polylines(canvas, list(lines[shades == shade]), False, colour, thickness, cv2.LINE_AA, _SHIFT)
