"""Corners that survive a change of view: Shi-Tomasi's response averaged over random warps of a photograph.

Homographic adaptation (SuperPoint, section 5) of a classical corner: the averaged response keeps what is a
corner at several scales and slants and drops noise, and gives the detector something to start from.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import cv2
import numpy as np

from kp_frontend.atomic import written_whole
from kp_training.data.images import Images
from kp_training.geometry.homography import WideHomographies, homography_from_corners, view_corners

_WARPS = WideHomographies(zoom=1.0, stretch=0.7, perspective=0.2, shift=0.1, turn_share=1.0)
_BLOCK = 5
FORMAT = 1


class CornerPoints:
    """``averaged_corners`` of `images` by index, made once and kept in a folder under `cache`.

    All loader processes and later runs share them; where the folder takes nothing, they are made each time.
    """

    def __init__(self, images: Images, cache: Path) -> None:
        self.images = images
        self.folder = cache / f"corners-{FORMAT}-{hashlib.sha256(images.identity.encode()).hexdigest()[:24]}"
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, index: int) -> np.ndarray:
        """N×3 float32 of the image `index`."""
        file = self.folder / f"{index:07d}.npy"
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            pass
        grey = cv2.cvtColor(self.images[index], cv2.COLOR_BGR2GRAY)
        points = averaged_corners(grey, np.random.default_rng([3, index]))
        with contextlib.suppress(OSError), written_whole(file) as beside:
            np.save(beside, points)
        return points


def averaged_corners(grey: np.ndarray, rng: np.random.Generator, warps: int = 16, limit: int = 1500) -> np.ndarray:
    """N×3 float32: x, y and strength in (0, 1] of at most `limit` corners of an H×W uint8 image, strongest first."""
    height, width = grey.shape
    corners = view_corners(height, width)
    total, seen = _response(grey), np.ones((height, width), np.float32)
    for _ in range(warps - 1):
        view = _WARPS.sample(rng) * [width / 2, height / 2] + corners.mean(0)
        image_from_view = homography_from_corners(corners, view)
        warped = cv2.warpPerspective(grey, image_from_view, (width, height),
                                     flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101)
        response = _response(warped)
        total += cv2.warpPerspective(response, image_from_view, (width, height), flags=cv2.INTER_LINEAR)
        seen += cv2.warpPerspective(np.ones_like(response), image_from_view, (width, height), flags=cv2.INTER_LINEAR)
    return _peaks(total / seen, limit)


def _response(grey: np.ndarray) -> np.ndarray:
    return cv2.cornerMinEigenVal(cv2.GaussianBlur(grey, (0, 0), 0.7), _BLOCK, ksize=3)


def _peaks(response: np.ndarray, limit: int) -> np.ndarray:
    peak = (response == cv2.dilate(response, np.ones((5, 5)))) & (response > 0)
    y, x = np.nonzero(peak)
    strengths = response[y, x]
    best = np.argsort(-strengths, kind="stable")[:limit]
    # One spotless corner should not push all others below the threshold.
    top = strengths[best[:20]].mean() if len(best) else 1.0
    return np.column_stack([x[best], y[best], np.minimum(strengths[best] / top, 1)]).astype(np.float32)


def draw_labels(points: np.ndarray, strengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """H×W uint8: the fourth root of the strength, scaled to 255, at the pixel of each N×2 point; 0 elsewhere."""
    labels = np.zeros((height, width), np.uint8)
    x, y = np.rint(np.nan_to_num(points, nan=-1e6)).astype(np.int64).T
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    np.maximum.at(labels, (y[within], x[within]), np.rint(255 * strengths[within] ** 0.25).astype(np.uint8))
    return labels
