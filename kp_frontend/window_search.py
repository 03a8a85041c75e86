"""Which points lie near which predicted places: a grid of cells, no loop over points."""

from __future__ import annotations

import numpy as np


def pairs_within(
    points: np.ndarray, radius: float, predicted: np.ndarray, most: int | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """All pairs (i, j), two int64 arrays ordered by j, with |points[i] − predicted[j]| ≤ radius; both N×2 pixels.

    None, and soon, where they would be more than about `most`.

    Cells are as wide as the radius, so that a place's points are in its own cell and the eight round it, and the
    three of a row are neighbours in the order of cells.
    """
    (x, y), (there_x, there_y) = points.astype(np.float32).T, predicted.astype(np.float32).T
    left, top = x.min(), y.min()
    column, row = ((x - left) / radius).astype(np.int64), ((y - top) / radius).astype(np.int64)
    width, height = int(column.max()) + 3, int(row.max()) + 3  # with an empty cell all round
    cell = (row + 1) * width + column + 1
    order = np.argsort(cell, kind="stable")
    begin = np.searchsorted(cell[order], np.arange(width * height + 1))
    # A place far outside falls into the empty border, or next to it, where the distance decides.
    middle = np.clip(np.floor((there_y - top) / radius), -1, height - 2).astype(np.int64) + 1
    middle = middle * width + np.clip(np.floor((there_x - left) / radius), -1, width - 2).astype(np.int64) + 1
    rows = np.clip(np.stack([middle - width, middle, middle + width]), 1, width * height - 2).T.ravel()
    start = begin[rows - 1]
    count = begin[rows + 2] - start
    if most is not None and count.sum() > 9 / np.pi * most:  # nine cells hold a circle
        return None
    j = np.repeat(np.repeat(np.arange(len(predicted)), 3), count)
    i = order[np.arange(len(j)) + np.repeat(start - np.cumsum(count) + count, count)]
    across, down = x[i] - there_x[j], y[i] - there_y[j]
    near = np.flatnonzero(across * across + down * down <= np.float32(radius * radius))
    return i[near], j[near]
