"""Pictures of how two posed frames fit: one drawn into the other, or points with their epipolar lines."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from kp_training.data.posed import PosedFrame
from kp_training.evaluation.scene_check.reprojection import METRES, SHARE, agreement, fundamental_matrix, spread_pixels

WIDEST = 640
"""Pixels of one image in a picture."""
TILE = 40
LINES = 14
GREEN = (120, 160, 60)


def draw_depth(first: PosedFrame, second: PosedFrame, metric: bool, title: str) -> np.ndarray:
    """BGR uint8: both frames, the second drawn into every other square of the first, and how their depths differ."""
    height, width = first.image.shape[:2]
    found = agreement(first, second, spread_pixels(height, width, height * width), metric)
    there = found.pixels
    x, y = there.pixels.T
    u, v = np.rint(there.points).astype(int).T
    within = (u >= 0) & (u < second.image.shape[1]) & (v >= 0) & (v < second.image.shape[0])
    drawn = np.zeros_like(first.image)
    drawn[y[within], x[within]] = second.image[v[within], u[within]]
    squares = (np.add.outer(np.arange(height) // TILE, np.arange(width) // TILE) % 2).astype(bool)
    mixed = np.where(squares[..., None], drawn, first.image)
    unit = METRES if metric else SHARE * there.depth
    difference = np.full((height, width, 3), 60, np.uint8)
    known = there.seen > 0
    levels = np.clip(128 + 42 * ((there.depth - there.seen) / unit)[known], 0, 255).astype(np.uint8)
    difference[y[known], x[known]] = cv2.applyColorMap(levels[:, None], _BLUE_WHITE_RED)[:, 0]
    difference[y[found.hidden], x[found.hidden]] = GREEN
    scale = "5 cm" if metric else "2 % of the depth"
    return _framed([[first.image, second.image], [mixed, difference]], [
        title,
        "above: first, second; below: the second in every other square of the first (black: nothing); and depth:",
        f"white the same, grey unknown, green hidden, red up to 3 times {scale} behind the second's, blue before",
    ])


def draw_lines(
    first: PosedFrame, second: PosedFrame, points: tuple[np.ndarray, np.ndarray], distances: np.ndarray, title: str
) -> np.ndarray:
    """BGR uint8: M×2 matched `points` of both frames, some of them, and their epipolar lines in the second."""
    left, right = first.image.copy(), second.image.copy()
    chosen = np.unique(np.linspace(0, len(distances) - 1, min(LINES, len(distances))).astype(int))
    lines = np.column_stack([points[0][chosen], np.ones(len(chosen))]) @ fundamental_matrix(first, second).T
    reach = float(sum(right.shape[:2]))
    for number, (line, here, there) in enumerate(zip(lines, points[0][chosen], points[1][chosen])):
        hue = np.array([[[180 * number // LINES, 255, 255]]], np.uint8)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
        normal = line[:2] / max(np.linalg.norm(line[:2]), 1e-12)
        foot = there - normal * (normal @ there + line[2] / max(np.linalg.norm(line[:2]), 1e-12))
        ends = [np.rint(foot + sign * reach * np.array([-normal[1], normal[0]])).astype(int).tolist()
                for sign in (-1, 1)]
        cv2.line(right, *ends, colour, 1, cv2.LINE_AA)
        for image, point in ((left, here), (right, there)):
            cv2.circle(image, np.rint(point).astype(int).tolist(), 5, colour, 2, cv2.LINE_AA)
    return _framed([[left, right]], [
        title, f"{len(distances)} matches, {len(chosen)} of them drawn: a right one lies on its epipolar line"])


def _blue_white_red() -> np.ndarray:
    """256×1×3 uint8 colours, BGR, from blue through white to red."""
    rise = np.linspace(0, 2, 256)
    up, down = np.minimum(rise, 1), np.minimum(2 - rise, 1)
    return (255 * np.stack([down, np.minimum(up, down), up], -1)).astype(np.uint8)[:, None]


_BLUE_WHITE_RED = _blue_white_red()


def _framed(rows: Sequence[Sequence[np.ndarray]], text: Sequence[str]) -> np.ndarray:
    """Rows of images, each made as large as the first, under lines of text."""
    height, width = rows[0][0].shape[:2]
    scale = min(1.0, WIDEST / width)
    size = (round(width * scale), round(height * scale))
    picture = np.vstack([np.hstack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in row])
                         for row in rows])
    strip = np.zeros((22 * len(text) + 8, picture.shape[1], 3), np.uint8)
    for number, line in enumerate(text):
        plain = line.encode("ascii", "replace").decode()  # all that OpenCV's fonts have
        (reach, _), _ = cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        size_of_text = 0.5 * min(1.0, (strip.shape[1] - 12) / reach)
        cv2.putText(strip, plain, (6, 18 + 22 * number), cv2.FONT_HERSHEY_SIMPLEX, size_of_text, (255, 255, 255), 1,
                    cv2.LINE_AA)
    return np.vstack([strip, picture])
