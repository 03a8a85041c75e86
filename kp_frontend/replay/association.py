"""Which of two streams' stamps belong together."""

from __future__ import annotations

import numpy as np


def nearest(stamps: np.ndarray, wanted: np.ndarray, tolerance: int) -> np.ndarray:
    """For each of `wanted` the index of the nearest of `stamps` (ascending), or -1 beyond `tolerance`.

    All in nanoseconds, int64; a tie goes to the earlier stamp.
    """
    if len(stamps) == 0:
        return np.full(len(wanted), -1)
    right = np.clip(np.searchsorted(stamps, wanted), 0, len(stamps) - 1)
    left = np.maximum(right - 1, 0)
    best = np.where(np.abs(wanted - stamps[left]) <= np.abs(stamps[right] - wanted), left, right)
    return np.where(np.abs(stamps[best] - wanted) <= tolerance, best, -1)


def period(stamps: np.ndarray) -> int:
    """Median distance of ascending stamps in nanoseconds; one second where there are fewer than two."""
    return int(np.median(np.diff(stamps))) if len(stamps) > 1 else 10**9
