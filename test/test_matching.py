"""Matching: against slow, obvious references, and by each guide."""

import numpy as np
import pytest

from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_frontend.matching import match


def make(count, metric="l2", size=16, seed=0):
    random = np.random.default_rng(seed)
    keypoints = (random.random((count, 2)) * [640, 480]).astype(np.float32)
    if metric == "l2":
        descriptors = random.normal(size=(count, size)).astype(np.float32)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    else:
        descriptors = random.integers(0, 256, (count, size), dtype=np.uint8)
    return Features(keypoints, np.ones(count, np.float32), descriptors, metric)


def distances(query, train):
    if query.metric == "l2":
        return np.linalg.norm(query.descriptors[:, None] - train.descriptors, axis=2)
    return np.unpackbits(query.descriptors[:, None] ^ train.descriptors, axis=2).sum(axis=2).astype(float)


def reference(table, ratio=None, mutual=True, allowed=None):
    table = np.where(True if allowed is None else allowed, table, np.inf)
    pairs = set()
    for row, line in enumerate(table):
        best = int(np.argmin(line))
        second = np.sort(line)[1]
        good = np.isfinite(line[best])
        good &= not mutual or np.argmin(table[:, best]) == row
        good &= ratio is None or line[best] < ratio * second
        if good:
            pairs.add((row, best))
    return pairs


def pairs_of(matches):
    return set(zip(matches.query.tolist(), matches.train.tolist()))


@pytest.mark.parametrize("metric", ["l2", "hamming"])
@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("ratio", [None, 0.9])
def test_agrees_with_the_obvious_loop(metric, mutual, ratio):
    query, train = make(150, metric), make(130, metric, seed=1)
    table = distances(query, train)
    found = match(query, train, mutual=mutual, ratio=ratio)
    if metric == "hamming":  # equal distances may fall either way
        assert all(table[q, t] == table[q].min() for q, t in pairs_of(found))
        assert len(np.unique(found.query)) == len(found)
    else:
        assert pairs_of(found) == reference(table, ratio, mutual)
    np.testing.assert_allclose(found.distances, table[found.query, found.train], atol=2e-3)


def test_finds_a_permutation_exactly():
    train = make(200, "hamming", 32)
    order = np.random.default_rng(3).permutation(200)
    found = match(train.select(order), train)
    np.testing.assert_array_equal(found.train, order)
    np.testing.assert_array_equal(found.distances, 0)


def test_a_train_feature_is_used_once_even_when_queries_are_equal():
    train = make(5)
    query = train.select(np.array([2, 2, 2]))
    assert pairs_of(match(query, train)) == {(0, 2)}


@pytest.mark.parametrize("metric", ["l2", "hamming"])
def test_window_epipolar_and_row_guides(metric):
    query, train = make(150, metric), make(130, metric, seed=1)
    table = distances(query, train)
    difference = query.keypoints[:, None].astype(float) - train.keypoints
    near = np.linalg.norm(difference - [5, 0], axis=2) <= 60
    rows = (np.abs(difference[..., 1]) <= 20) & (difference[..., 0] >= 0) & (difference[..., 0] <= 200)
    # pure translation along x: the line of a train point is its own row
    fundamental = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], float)
    band = np.abs(difference[..., 1]) <= 10
    for options, allowed in (
        ({"window": (60.0, train.keypoints + np.float32([5, 0]))}, near),
        ({"stereo_rows": (20.0, 200.0)}, rows),
        ({"epipolar": (fundamental, 10.0)}, band),
        ({"stereo_rows": (20.0, 200.0), "epipolar": (fundamental, 10.0)}, rows & band),
    ):
        found = match(query, train, mutual=False, **options)
        assert len(found) == allowed.any(axis=1).sum()
        assert all(allowed[pair] for pair in pairs_of(found))
        assert all(table[q, t] == table[q][allowed[q]].min() for q, t in pairs_of(found))


@pytest.mark.parametrize("metric", ["l2", "hamming"])
def test_double_softmax_is_the_product_of_two_softmaxes(metric):
    query, train = make(40, metric, seed=5), make(50, metric, seed=6)
    copied = query.descriptors.copy()
    copied[:20] = train.descriptors[:20]  # half of them have a clear partner
    query = Features(query.keypoints, query.scores, copied, metric)
    bits = 8 * query.descriptors.shape[1]
    table = distances(query, train)
    similarity = 1 - table**2 / 2 if metric == "l2" else 1 - 2 * table / bits
    power = np.exp(similarity / 0.1)
    likelihood = power / power.sum(1, keepdims=True) * (power / power.sum(0, keepdims=True))
    found = match(query, train, method="double_softmax", temperature=0.1, threshold=0.3)
    expected = {(q, t) for q, t in pairs_of(match(query, train)) if likelihood[q, t] >= 0.3}
    assert pairs_of(found) == expected
    assert 15 < len(found) < 40


def test_max_distance_and_a_lone_candidate_passes_the_ratio():
    query, train = make(20), make(1, seed=1)
    assert len(match(query, train, ratio=0.5)) == 1
    assert len(match(query, train, max_distance=1e-3)) == 0


def test_nothing_in_nothing_out():
    some, none = make(5), make(0)
    assert len(match(some, none)) == len(match(none, some)) == len(match(none, none)) == 0
    assert len(match(some, make(4, seed=1), window=(0.001, make(4, seed=1).keypoints), method="double_softmax")) == 0


def test_bad_input_is_named():
    with pytest.raises(InputError, match="same extractor"):
        match(make(5), make(5, "hamming"))
    with pytest.raises(InputError, match="same extractor"):
        match(make(5), make(5, size=8))
    with pytest.raises(InputError, match="mutual_nn"):
        match(make(5), make(5), method="best")
    with pytest.raises(InputError, match="without descriptors"):
        match(make(5, size=0), make(5, size=0))
    with pytest.raises(InputError, match="temperature"):
        match(make(5), make(5), method="double_softmax", temperature=0.001)
