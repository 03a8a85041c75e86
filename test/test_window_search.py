"""Neighbours by grid against the plain table of distances."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from kp_frontend.window_search import pairs_within


@pytest.mark.parametrize("radius", [1.5, 13.0, 64.0, 1000.0])
@pytest.mark.parametrize("seed", range(8))
def test_all_pairs_and_only_those(radius, seed):
    random = np.random.default_rng(seed)
    points = random.uniform([-20, 5], [600, 470], (random.integers(1, 300), 2)).astype(np.float32)
    predicted = random.uniform(-300, 900, (random.integers(1, 300), 2)).astype(np.float32)
    predicted[: len(predicted) // 2] = random.choice(points, len(predicted) // 2) + random.normal(0, radius)
    apart = points[:, None] - predicted[None]
    wanted = (apart * apart).sum(axis=2) <= np.float32(radius * radius)
    i, j = pairs_within(points, radius, predicted)
    assert len(set(zip(i.tolist(), j.tolist()))) == len(i)
    found = np.zeros_like(wanted)
    found[i, j] = True
    assert np.array_equal(found, wanted)


def test_one_point_and_places_at_its_cell_borders():
    point = np.float32([[100, 100]])
    places = np.float32([[100, 100], [110, 100], [90, 100], [100, 110.01], [93, 107], [93, 108]])
    i, j = pairs_within(point, 10.0, places)
    assert i.tolist() == [0] * 4
    assert j.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("far", [1e5, 3e7, 1e15])
def test_rays_of_a_lens_of_180_degrees_need_no_table_of_the_space_between_them(far):
    random = np.random.default_rng(1)
    points = random.uniform(0, 600, (300, 2)).astype(np.float32)
    points[:4] = [[far, 7], [-far, far], [9, -far], [far, 7]]
    predicted = points + random.normal(0, 1, points.shape)
    predicted[:4] = points[:4]
    distances = np.linalg.norm(points[:, None].astype(float) - predicted, axis=2)
    tracemalloc.start()
    i, j = pairs_within(points, 8.0, predicted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = np.zeros_like(distances, bool)
    found[i, j] = True
    assert np.array_equal(found, distances <= 8)
    assert peak < 1e7


def test_what_is_not_a_number_is_in_no_pair():
    points = np.float32([[100, 100], [np.nan, 100], [105, np.nan], [300, 40]])
    i, j = pairs_within(points, 10.0, points)
    assert i.tolist() == j.tolist() == [0, 3]


def test_too_many_pairs_are_not_made():
    points = np.random.default_rng(0).uniform(0, 100, (200, 2)).astype(np.float32)
    i, _ = pairs_within(points, 20.0, points, most=200 * 200)
    assert len(i) > 2000
    assert pairs_within(points, 20.0, points, most=100) is None
