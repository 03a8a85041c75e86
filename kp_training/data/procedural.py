"""Pictures made of nothing but a seed, so that training runs where there is no photograph."""

from __future__ import annotations

import cv2
import numpy as np


class ProceduralImages:
    """`count` images of overlapping shapes, stripes and letters on cloudy grounds, by index, H×W×3 BGR uint8.

    held_out: another set of images, never trained on.
    """

    def __init__(self, count: int = 400, size: tuple[int, int] = (320, 420), held_out: bool = False) -> None:
        self.count, self.size, self.first = count, size, count if held_out else 0
        self.identity = f"procedural:{self.first}:{count}:{size[0]}x{size[1]}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        rng = np.random.default_rng([20_26, self.first + index])
        height, width = self.size
        image = np.clip(128 + 40 * clouds(rng, height, width, 64, 4, 3), 0, 255).astype(np.uint8)
        for _ in range(rng.integers(25, 80)):
            _draw_shape(image, rng)
        grain = (clouds(rng, height, width, 4, 1) * np.float32(10 * rng.uniform())).astype(np.int16)
        return cv2.add(image, cv2.merge([grain] * 3), dtype=cv2.CV_8U)


def clouds(
    rng: np.random.Generator, height: int, width: int, coarsest: int, finest: int, channels: int = 1
) -> np.ndarray:
    """H×W[×channels] float32 noise of deviation 1 with the 1/f spectrum of natural images.

    coarsest, finest: cells in pixels, powers of two; finer ones are drawn on top of coarser ones made twice as large.
    """
    total = np.zeros((1, 1, channels), np.float32)
    while coarsest >= finest:
        rows, columns = -(-height // coarsest) + 1, -(-width // coarsest) + 1
        grown = cv2.resize(total, (columns, rows), interpolation=cv2.INTER_CUBIC).reshape(rows, columns, channels)
        total = grown + coarsest * rng.standard_normal(grown.shape, np.float32)
        coarsest //= 2
    if finest > 1:
        total = cv2.resize(total, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.squeeze(total[:height, :width] / total.std())


def _draw_shape(image: np.ndarray, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    centre = rng.uniform([0, 0], [width, height])
    radius = float(np.exp(rng.uniform(np.log(6), np.log(70))))
    color = tuple(float(value) for value in rng.integers(0, 256, 3))
    kind = rng.integers(4)
    if kind == 0:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        spokes = radius * rng.uniform(0.5, 1, (len(angles), 1))
        corners = centre + spokes * np.column_stack([np.cos(angles), np.sin(angles)])
        cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], color, cv2.LINE_AA)
    elif kind == 1:
        axes = (int(radius), int(radius * rng.uniform(0.3, 1)))
        x, y = np.rint(centre).astype(int).tolist()
        cv2.ellipse(image, (x, y), axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
    elif kind == 2:
        _draw_checks(image, rng, centre, radius)
    else:
        text = "".join(chr(code) for code in rng.integers(33, 127, rng.integers(1, 8)))
        x, y = np.rint(centre).astype(int).tolist()
        weight = int(rng.integers(1, 4))
        cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_DUPLEX, radius / 30, color, weight, cv2.LINE_AA)


def _draw_checks(image: np.ndarray, rng: np.random.Generator, centre: np.ndarray, radius: float) -> None:
    """A patch of a chessboard or, with one row, of stripes, seen at a slant."""
    rows, columns = rng.integers(1, 6, 2)
    frame = rng.normal(0, radius, (2, 2)) / 2
    colors = rng.integers(0, 256, (2, 3)).astype(float)
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    for row in range(rows):
        for column in range(columns):
            corners = centre + (unit + [column, row]) @ frame / [[max(rows, columns) / 2]]
            cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], tuple(colors[(row + column) % 2]), cv2.LINE_AA)
