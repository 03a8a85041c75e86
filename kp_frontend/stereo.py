"""Disparities of keypoints in a rectified stereo pair, from rough to sub-pixel."""

from __future__ import annotations

import cv2
import numpy as np


def search_rows(
    left: np.ndarray, right: np.ndarray, keypoints: np.ndarray, max_disparity: int, radius: int = 5, least: float = 0.8
) -> np.ndarray:
    """Whole-pixel disparity of `keypoints` (N×2, left image) by normalised correlation along the row.

    left, right: H×W uint8, rectified.  max_disparity: pixels.  radius: of the compared patch.
    Returns N float32, nan where the best correlation is below `least` or is not a clear peak.
    """
    if not len(keypoints):
        return np.zeros(0, np.float32)
    disparities = np.full(len(keypoints), np.nan, np.float32)
    pad = ((radius, radius), (radius + max_disparity, radius))
    padded = [np.pad(image, pad, mode="edge") for image in (left, right)]
    x, y = np.rint(keypoints).astype(np.int64).T
    size = 2 * radius + 1
    patches = np.lib.stride_tricks.sliding_window_view(padded[0], (size, size))[y, x + max_disparity]
    strips = np.lib.stride_tricks.sliding_window_view(padded[1], (size, size + max_disparity))[y, x]
    for start in range(0, len(x), 256):  # in blocks, so that the unfolded strips stay small
        block = slice(start, start + 256)
        correlation = _correlate(patches[block].astype(np.float32), strips[block].astype(np.float32))
        best = correlation.argmax(axis=1)
        top = correlation[np.arange(len(best)), best]
        away = np.abs(np.arange(correlation.shape[1]) - best[:, None]) > 2
        clear = np.where(away, correlation, -1).max(axis=1, initial=-1) < 0.5 + 0.5 * top
        disparities[block] = np.where((top >= least) & clear, max_disparity - best, np.nan)
    return disparities


def _correlate(patches: np.ndarray, strips: np.ndarray) -> np.ndarray:
    """Normalised correlation of n×s×s patches with every place of n×s×(s+d) strips: n×(d+1)."""
    size = patches.shape[1]
    patches = patches - patches.mean(axis=(1, 2), keepdims=True)
    strips = strips - strips.mean(axis=(1, 2), keepdims=True)
    places = np.lib.stride_tricks.sliding_window_view(strips, size, axis=2)
    products = np.einsum("nij,nipj->np", patches, places, optimize=True)
    sums = np.lib.stride_tricks.sliding_window_view(strips.sum(axis=1), size, axis=1).sum(axis=2)
    squares = np.lib.stride_tricks.sliding_window_view(np.square(strips).sum(axis=1), size, axis=1).sum(axis=2)
    variance = np.maximum(squares - np.square(sums) / size**2, 1e-6)
    return products / np.sqrt(variance * np.maximum(np.square(patches).sum(axis=(1, 2)), 1e-6)[:, None])


def refine_disparities(
    left: np.ndarray, right: np.ndarray, keypoints: np.ndarray, disparities: np.ndarray, row_tolerance: float
) -> np.ndarray:
    """Sub-pixel disparities from rough ones (nan = none) by Lucas-Kanade in a small window.

    A point that leaves its row by more than `row_tolerance` pixels, or its rough place by 3, becomes nan.
    """
    refined = np.full(len(keypoints), np.nan, np.float32)
    known = np.flatnonzero(np.isfinite(disparities))
    if not len(known):
        return refined
    points = np.ascontiguousarray(keypoints[known], np.float32)
    guess = points - np.column_stack([disparities[known], np.zeros(len(known))]).astype(np.float32)
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        left, right, points.reshape(-1, 1, 2), guess.reshape(-1, 1, 2).copy(),
        winSize=(13, 13), maxLevel=0, flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    found = found.reshape(-1, 2)
    good = status.reshape(-1) == 1
    good &= (np.abs(found[:, 1] - points[:, 1]) <= row_tolerance) & (np.abs(found[:, 0] - guess[:, 0]) <= 3)
    refined[known[good]] = (points[:, 0] - found[:, 0])[good]
    return refined
