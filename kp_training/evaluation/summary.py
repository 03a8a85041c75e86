"""Rows of pairs → means by group with standard errors, and differences between extractors pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kp_training.evaluation.sequences import SPLITS

NAMES = ("sequence", "pair", "source")
MEAN = "mean"
Estimate = tuple[float, float]  # mean and its standard error
Summary = dict[str, dict[str, Estimate]]  # group → metric → estimate


def summarize(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Each metric's mean and standard error by group, and over all pairs under ``mean``; see `estimate`."""
    return {name: {key: estimate([row[key] for row in group], [row["source"] for row in group])
                   for key in group[0] if key not in NAMES}
            for name, group in groups(rows).items()}


def differences(rows: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> Summary:
    """`rows` − `baseline`, pair by pair; the noise that both share, of hard and easy pairs, falls out."""
    return summarize([{key: row[key] if key in NAMES else row[key] - other[key] for key in row}
                      for row, other in zip(rows, baseline)])


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by sequence or kind of change, by HPatches' split where names tell it, and all under ``mean``."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["sequence"], []).append(row)
        splits.setdefault(SPLITS.get(row["sequence"][:2], ""), []).append(row)
    return found | (splits if "" not in splits else {}) | {MEAN: list(rows)}


def estimate(values: Sequence[float], sources: Sequence[str]) -> Estimate:
    """Mean of the finite values, and its standard error; nan where there is nothing to tell it from.

    sources: what each value's image comes from.  Pairs of one photograph or sequence go up and down together, so
    the error is the cluster-robust one over sources; within a single source, that over its pairs.
    """
    column = np.asarray(values, float)
    finite = np.isfinite(column)
    if not finite.any():
        return float("nan"), float("nan")
    column, names = column[finite], np.asarray(sources)[finite]
    residuals = column - column.mean()
    clusters = np.unique(names, return_inverse=True)[1]
    totals = np.bincount(clusters, residuals) if clusters.max() else residuals
    count = len(totals)
    if count < 2:
        return float(column.mean()), float("nan")
    return float(column.mean()), float(np.sqrt(count / (count - 1) * (totals**2).sum()) / len(column))
