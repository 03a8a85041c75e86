"""Matching in windows looks at the tiles of the image near each feature: the same pairs as looking everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from kp_frontend.features import Features
from kp_frontend.matching import match


def make_features(rng, count: int, metric: str, ties: bool) -> Features:
    keypoints = (rng.random((count, 2)) * (640, 480)).astype(np.float32)
    if metric == "hamming":
        descriptors = rng.integers(0, 4 if ties else 256, (count, 13)).astype(np.uint8)
    else:
        descriptors = rng.integers(-2, 3, (count, 4)).astype(np.float32) + (0 if ties else rng.random((count, 4)))
        descriptors = (descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-9)).astype("f4")
    return Features(keypoints, np.zeros(count, np.float32), descriptors, metric)


def distance(query: Features, train: Features, i: int, j: int) -> float:
    """Between two descriptors, in their metric."""
    if query.metric == "hamming":
        return float(np.unpackbits(query.descriptors[i] ^ train.descriptors[j]).sum())
    return float(np.linalg.norm(query.descriptors[i].astype(float) - train.descriptors[j]))


def brute_force(query: Features, train: Features, radius: float, predicted: np.ndarray, ratio: float) -> dict[int, int]:
    """Mutual nearest neighbours with ratio test, pair by pair; of queries that tie for one the first."""
    cost = np.full((len(query), len(train)), np.inf)
    for i, j in np.ndindex(cost.shape):
        if np.square(query.keypoints[i] - predicted[j]).sum(dtype=np.float32) <= np.float32(radius**2):
            cost[i, j] = distance(query, train, i, j)
    taken, pairs = set(), {}
    for i in range(len(query)):
        j, (best, second) = int(cost[i].argmin()), np.sort(cost[i])[:2]
        mutual = best < np.inf and best == cost[:, j].min() and j not in taken
        if mutual:
            taken.add(j)
        if mutual and best < ratio * second:
            pairs[i] = j
    return pairs


def matched_in_windows(rng, query, train, radius):
    """Matches round places that fit the first 50 pairs, and those of brute force by query: the same."""
    predicted = train.keypoints.copy()
    predicted[:50] = query.keypoints[:50] + rng.normal(size=(50, 2)) * 3
    found = match(query, train, ratio=0.95, window=(radius, predicted))
    expected = brute_force(query, train, radius, predicted, 0.95)
    assert dict(zip(found.query.tolist(), found.train.tolist())) == expected
    assert len(expected) > 10
    return found, expected


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("radius", [8.0, 60.0, 900.0])
def test_bits_in_windows_match_as_by_brute_force(radius, ties):
    rng = np.random.default_rng(int(radius) + ties)
    query, train = make_features(rng, 90, "hamming", ties), make_features(rng, 120, "hamming", ties)
    train.descriptors[:50] = query.descriptors[:50] ^ (rng.random((50, 13)) < 0.1)
    found, _ = matched_in_windows(rng, query, train, radius)
    bits = np.unpackbits(query.descriptors[found.query] ^ train.descriptors[found.train], axis=1).sum(axis=1)
    np.testing.assert_array_equal(found.distances, bits)


@pytest.mark.parametrize("buffer", [1 << 16, 12], ids=["one piece", "pieces of three"])
@pytest.mark.parametrize("radius", [8.0, 60.0, 900.0])
def test_vectors_in_windows_match_as_by_brute_force(radius, buffer, monkeypatch):
    monkeypatch.setattr("kp_frontend.matching._BUFFER", buffer)
    rng = np.random.default_rng(int(radius))
    query, train = make_features(rng, 90, "l2", False), make_features(rng, 120, "l2", False)
    train.descriptors[:50] = query.descriptors[:50] + rng.normal(0, 0.02, (50, 4))
    train.descriptors[:] /= np.linalg.norm(train.descriptors, axis=1, keepdims=True)
    found, expected = matched_in_windows(rng, query, train, radius)
    wanted = [distance(query, train, i, j) for i, j in expected.items()]
    np.testing.assert_allclose(found.distances, wanted, atol=1e-3)


@pytest.mark.parametrize("metric", ["hamming", "l2"])
def test_a_window_over_everything_changes_nothing(metric):
    rng = np.random.default_rng(1)
    query, train = make_features(rng, 300, metric, False), make_features(rng, 257, metric, False)
    wide, all_ = match(query, train, ratio=0.9, window=(2000.0, train.keypoints)), match(query, train, ratio=0.9)
    np.testing.assert_array_equal(wide.query, all_.query)
    np.testing.assert_array_equal(wide.train, all_.train)
    np.testing.assert_allclose(wide.distances, all_.distances, atol=1e-3)
    assert len(all_) > 5


@pytest.mark.parametrize("metric", ["hamming", "l2"])
def test_nothing_in_any_window(metric):
    rng = np.random.default_rng(2)
    query, train = make_features(rng, 20, metric, False), make_features(rng, 20, metric, False)
    assert len(match(query, train, window=(5.0, train.keypoints + 5000))) == 0


def test_without_numpy_2_bits_are_counted_by_products(monkeypatch):
    rng = np.random.default_rng(3)
    query, train = make_features(rng, 60, "hamming", False), make_features(rng, 70, "hamming", False)
    new = match(query, train)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    old = match(query, train)
    for name in ("query", "train", "distances"):
        np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
