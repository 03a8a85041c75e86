"""Which points lie near which predicted places: a grid of cells, no loop over points."""

from __future__ import annotations

import numpy as np

FARTHEST = 2.0**30  # columns and rows of the grid; what lies beyond shares the last, and width·height fits an int64


def pairs_within(
    points: np.ndarray, radius: float, predicted: np.ndarray, most: int | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """All pairs (i, j), two int64 arrays ordered by j, with |points[i] − predicted[j]| ≤ radius; both N×2 pixels.

    None, and soon, where they would be more than about `most`.  A point or place that is nan is in no pair.

    Cells are as wide as the radius, so that a place's points are in its own cell and the eight round it, and the
    three of a row are neighbours in the order of cells.
    """
    corner = np.fmin.reduce(points, axis=0).astype(float)  # float32 loses the near points where one is very far
    column, row = np.fmin((points - corner) / radius, FARTHEST).astype(np.int64).T
    width, height = int(column.max()) + 3, int(row.max()) + 3  # with an empty cell all round
    cell = (row + 1) * width + column + 1
    order = np.argsort(cell, kind="stable")
    # A place far outside falls into the empty border, or next to it, where the distance decides.
    there = np.fmin(np.floor((predicted - corner) / radius), (width - 2, height - 2))
    middle = (np.fmax(there, -1).astype(np.int64) + 1) @ (1, width)
    rows = np.clip(np.stack([middle - width, middle, middle + width]), 1, width * height - 2).T.ravel()
    start, count = _runs(cell[order], rows, width * height)
    if most is not None and count.sum() > 9 / np.pi * most:  # nine cells hold a circle
        return None
    i = np.repeat(start - np.cumsum(count) + count, count)
    i += np.arange(len(i))
    gap = _complex(points)[order].take(i)
    gap -= np.repeat(_complex(predicted), 3).repeat(count)
    near = np.flatnonzero(gap.real * gap.real + gap.imag * gap.imag <= np.float32(radius * radius))
    j = np.repeat(np.arange(len(predicted)), 3).repeat(count)
    return order[i[near]], j[near]


def _runs(cells: np.ndarray, middle: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in the sorted `cells` those from middle − 1 to middle + 1 begin, and how many they are.

    A table of all `count` cells is fastest while they are not many more than the places; the rays of a wide lens can
    spread over 10¹².
    """
    if count <= 8 * len(middle):
        begin = np.searchsorted(cells, np.arange(count + 1))
        start, end = begin[middle - 1], begin[middle + 2]
    else:
        start, end = np.searchsorted(cells, middle - 1), np.searchsorted(cells, middle + 2)
    return start, end - start


def _complex(points: np.ndarray) -> np.ndarray:
    """N complex64 of N×2 numbers: one step through memory a point."""
    return np.ascontiguousarray(points, np.float32).view(np.complex64)[:, 0]
