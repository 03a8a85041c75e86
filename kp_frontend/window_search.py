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
    left, top = points.min(axis=0)
    column, row = ((points - (left, top)) / radius).astype(np.int64).T
    width, height = int(column.max()) + 3, int(row.max()) + 3  # with an empty cell all round
    cell = (row + 1) * width + column + 1
    order = np.argsort(cell, kind="stable")
    begin = np.searchsorted(cell[order], np.arange(width * height + 1))
    # A place far outside falls into the empty border, or next to it, where the distance decides.
    there = np.clip(np.floor((predicted - (left, top)) / radius), -1, (width - 2, height - 2)).astype(np.int64) + 1
    middle = there @ (1, width)
    rows = np.clip(np.stack([middle - width, middle, middle + width]), 1, width * height - 2).T.ravel()
    start = begin[rows - 1]
    count = begin[rows + 2] - start
    if most is not None and count.sum() > 9 / np.pi * most:  # nine cells hold a circle
        return None
    i = np.repeat(start - np.cumsum(count) + count, count)
    i += np.arange(len(i))
    gap = _complex(points)[order].take(i)
    gap -= np.repeat(_complex(predicted), 3).repeat(count)
    near = np.flatnonzero(gap.real * gap.real + gap.imag * gap.imag <= np.float32(radius * radius))
    j = np.repeat(np.arange(len(predicted)), 3).repeat(count)
    return order[i[near]], j[near]


def _complex(points: np.ndarray) -> np.ndarray:
    """N complex64 of N×2 numbers: one step through memory a point."""
    return np.ascontiguousarray(points, np.float32).view(np.complex64)[:, 0]
