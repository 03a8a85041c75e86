"""Geometry: known poses come back, known points come back, unknown depth stays unknown."""

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_frontend import geometry
from kp_frontend.geometry import (
    absolute_pose,
    depth_at,
    disparity_to_depth,
    invert,
    project,
    relative_pose,
    rotation_residual,
    sampson_error,
    se3_exp,
    se3_log,
    so3_exp,
    so3_log,
    transform,
    triangulate,
    unproject,
)

FOCAL = 500.0


def scene(count=200, seed=0):
    random = np.random.default_rng(seed)
    points = random.uniform([-2, -1.5, 3], [2, 1.5, 8], (count, 3))
    second = se3_exp(np.array([0.4, -0.1, 0.2, 0.05, -0.1, 0.03]))
    return points, second, project(np.eye(4), points, FOCAL)[0], project(second, points, FOCAL)[0]


def with_outliers(rays, share, seed=1):
    random = np.random.default_rng(seed)
    wrong = random.random(len(rays)) < share
    return np.where(wrong[:, None], random.uniform(-300, 300, rays.shape), rays), wrong


@pytest.fixture(params=["poselib", "opencv"])
def solver(request, monkeypatch):
    if request.param == "poselib":
        pytest.importorskip("poselib")
        return
    real = builtins.__import__

    def without_poselib(name, *rest, **options):
        if name == "poselib":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_poselib)


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_se3_log_inverts_exp(values):
    twist = np.array(values)
    angle = np.linalg.norm(twist[3:])
    if angle > 3.1:
        twist[3:] *= 3.1 / angle
    np.testing.assert_allclose(se3_log(se3_exp(twist)), twist, atol=1e-7)
    np.testing.assert_allclose(se3_exp(twist) @ invert(se3_exp(twist)), np.eye(4), atol=1e-9)


def test_so3_by_hand_and_at_its_limits():
    np.testing.assert_allclose(so3_exp(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    vectors = np.array([[0, 0, 0], [1e-9, 0, 0], [np.pi, 0, 0], [0, np.pi - 1e-7, 0], [0.3, -0.2, 0.1]])
    np.testing.assert_allclose(np.abs(so3_log(so3_exp(vectors))), np.abs(vectors), atol=1e-9)


def test_triangulation_returns_the_points_and_their_angles():
    points, second, first_rays, second_rays = scene()
    found, angles = triangulate(np.eye(4), second, first_rays, second_rays, FOCAL)
    np.testing.assert_allclose(found, points, atol=1e-8)
    centre = invert(second)[:3, 3]
    towards = points / np.linalg.norm(points, axis=1, keepdims=True), points - centre
    expected = np.arccos(np.sum(towards[0] * towards[1], axis=1) / np.linalg.norm(towards[1], axis=1))
    np.testing.assert_allclose(angles, expected, atol=1e-8)
    each, _ = triangulate(np.eye(4), np.repeat(second[None], len(points), axis=0), first_rays, second_rays, FOCAL)
    np.testing.assert_allclose(each, found)


def test_triangulation_refuses_points_behind_and_parallel_rays():
    points, _, first_rays, _ = scene(20)
    sideways = se3_exp(np.array([0.3, 0, 0, 0, 0, 0]))
    rays = project(sideways, points, FOCAL)[0]
    behind, angles = triangulate(np.eye(4), invert(sideways), first_rays, rays, FOCAL)
    assert np.isnan(behind).all()
    assert (angles == 0).all()
    same, angles = triangulate(np.eye(4), np.eye(4), first_rays, first_rays, FOCAL)
    assert np.isnan(same).all()
    assert (angles == 0).all()


def test_absolute_pose_among_outliers(solver):
    points, second, _, rays = scene()
    rays, wrong = with_outliers(rays, 0.4)
    found = absolute_pose(points, rays, FOCAL, threshold=1.0)
    np.testing.assert_allclose(found.pose, second, atol=1e-4)
    assert found.inliers[~wrong].all()
    assert found.inliers.sum() <= (~wrong).sum() + 2


def test_relative_pose_among_outliers(solver):
    _, second, first_rays, second_rays = scene()
    second_rays, wrong = with_outliers(second_rays, 0.3)
    found = relative_pose(first_rays, second_rays, FOCAL)
    expected = second.copy()
    expected[:3, 3] /= np.linalg.norm(expected[:3, 3])
    np.testing.assert_allclose(found.pose, expected, atol=2e-3)
    assert found.inliers[~wrong].mean() > 0.99


def test_too_few_points_give_no_pose(solver):
    points, _, first_rays, second_rays = scene(3)
    assert absolute_pose(points, second_rays, FOCAL) is None
    assert relative_pose(first_rays, second_rays, FOCAL) is None
    assert absolute_pose(np.zeros((0, 3)), np.zeros((0, 2)), FOCAL) is None


def test_the_same_input_gives_the_same_pose():
    points, _, first_rays, second_rays = scene()
    rays, _ = with_outliers(second_rays, 0.5)
    first, again = (absolute_pose(points, rays, FOCAL).pose for _ in range(2))
    np.testing.assert_array_equal(first, again)
    first, again = (relative_pose(first_rays, rays, FOCAL).pose for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_sampson_error_is_the_distance_to_the_line_where_one_view_moves():
    # sideways motion: lines are rows; both views share the error, so Sampson's is 1/√2 of the row offset
    sideways = np.eye(4)
    sideways[0, 3] = 1
    errors = sampson_error(sideways, np.array([[10.0, 20.0]]), np.array([[50.0, 23.0]]), FOCAL)
    np.testing.assert_allclose(errors, 3 / np.sqrt(2))


def test_rotation_residual_tells_parallax_from_rotation():
    points, _, first_rays, second_rays = scene()
    turn = se3_exp(np.array([0, 0, 0, 0.05, -0.2, 0.1]))
    turned, _ = with_outliers(project(turn, points, FOCAL)[0], 0.2)
    assert rotation_residual(first_rays, turned, FOCAL) < 0.5
    assert rotation_residual(first_rays, second_rays, FOCAL) > 5


def test_depth_is_the_median_and_unknown_at_edges_and_holes():
    depth = np.full((60, 80), 2.0, np.float32)
    depth[20, 20] = 0  # one hole in a plane
    depth[:, 50:] = 3.0  # an edge between columns 49 and 50
    depth[40:, :30] = np.nan
    keypoints = np.float32([[20, 20], [10.4, 10.4], [49, 10], [60, 10], [10, 50], [79, 59], [200, 5], [-3, 5]])
    expected = [2, 2, np.nan, 3, np.nan, 3, np.nan, np.nan]
    np.testing.assert_array_equal(depth_at(depth, keypoints), np.float32(expected))
    assert np.isnan(depth_at(np.zeros_like(depth), keypoints)).all()
    assert depth_at(depth, np.zeros((0, 2), np.float32)).shape == (0,)


def test_disparity_to_depth_by_hand():
    depth = disparity_to_depth(np.float32([10, 0, -1, np.nan]), 500.0, 0.1)
    np.testing.assert_allclose(depth, [5, np.nan, np.nan, np.nan])


def test_project_inverts_unproject_and_hides_what_is_behind():
    points, *_ = scene(10)
    rays, depths = project(np.eye(4), points, FOCAL)
    np.testing.assert_allclose(unproject(rays, depths, FOCAL), points)
    np.testing.assert_allclose(transform(np.eye(4), points), points)
    assert np.isnan(project(np.eye(4), -points, FOCAL)[0]).all()


def test_the_fallback_is_used_where_poselib_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "poselib", None)
    assert geometry._poselib() is None
