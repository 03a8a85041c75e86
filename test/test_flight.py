"""The rendered flight: pictures, depth and poses must agree with each other exactly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kp_frontend.replay import flight


@pytest.fixture(scope="module")
def views() -> list[flight.View]:
    path = flight.Flight(frames=240)
    return [path.view(index) for index in (20, 24)]


def grid(step: int = 7) -> np.ndarray:
    x, y = np.meshgrid(np.arange(10, 630, step), np.arange(10, 470, step))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def test_poses_are_rigid_and_move_smoothly():
    poses = np.array([flight.pose_at(index / 240) for index in range(240)])
    rotations = poses[:, :3, :3]
    assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(rotations), 1)
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() < 0.05
    assert (poses[:, :3, 3] > 0.3).all()
    assert (poses[:, :3, 3] < flight.ROOM - 0.3).all()


def test_depth_carries_one_view_onto_the_other(views):
    first, second = views
    pixels = grid()
    matrix = flight.camera().matrix
    depth = first.depth[pixels[:, 1], pixels[:, 0]]
    points = depth[:, None] * (np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(matrix).T)
    second_from_first = np.linalg.inv(second.world_from_camera) @ first.world_from_camera
    moved = points @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    target = moved[:, :2] / moved[:, 2:] @ matrix[:2, :2].T + matrix[:2, 2]
    inside = (target > 2).all(axis=1) & (target < (637, 477)).all(axis=1)
    there = cv2.remap(second.depth, target[inside].astype(np.float32)[:, None], None, cv2.INTER_NEAREST)[:, 0]
    agrees = np.abs(there - moved[inside, 2]) < 0.02 * moved[inside, 2]
    assert agrees.mean() > 0.95  # the rest is hidden in one of the views

    gray = [cv2.GaussianBlur(cv2.cvtColor(view.image, cv2.COLOR_BGR2GRAY), (5, 5), 0) for view in views]
    source = gray[0][pixels[inside, 1], pixels[inside, 0]].astype(float)
    seen = cv2.remap(gray[1], target[inside].astype(np.float32)[:, None], None, cv2.INTER_LINEAR)[:, 0].astype(float)
    assert np.corrcoef(source[agrees], seen[agrees])[0, 1] > 0.9


def test_second_camera_is_the_baseline_to_the_right(views):
    view = views[0]
    disparity = 460 * flight.Flight().baseline / view.depth
    x, y = np.meshgrid(np.arange(640, dtype=np.float32), np.arange(480, dtype=np.float32))
    left_from_right = cv2.remap(view.right, x - disparity.astype(np.float32), y, cv2.INTER_LINEAR)[:, 60:]
    difference = np.abs(left_from_right.astype(float) - view.image[:, 60:]).mean(axis=2)
    assert np.median(difference) < 4  # two grey levels of noise in each picture


def test_same_seed_same_picture_and_light_changes(views):
    again = flight.Flight(frames=240).view(20)
    assert np.array_equal(again.image, views[0].image)
    assert not np.array_equal(flight.Flight(frames=240, seed=1).view(20).image, again.image)
    assert again.image.mean() / flight.Flight(frames=240).view(120).image.mean() > 1.5


def test_a_surface_across_the_near_plane_is_cut_not_dropped():
    wall = flight.Surface.textured((-5, 1, 1), (10, 0, 0), (0, 0, -2), np.full((8, 8, 3), 200, np.uint8))
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])  # looks along +x, the wall to its left
    light = flight.Light(np.array([0, 0, 0.5]), 0.0, 1.0)
    color, depth = flight.render([wall], flight.camera(), pose, light)
    assert (color[240, :30] > 150).all()
    assert (depth[240, 400:] == 0).all()
    assert depth[240, 0] == pytest.approx(460 / 319.5, rel=1e-5)
