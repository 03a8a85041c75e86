"""Epipolar geometry: fundamental matrices, lines cut to an image, distances both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kp_training.geometry.epipolar import (
    EpipolarViews,
    Segments,
    distances_to_lines,
    epipolar_distances,
    epipolar_lines,
    fundamental_matrix,
    line_distance,
    points_on_segments,
    segments_within,
)

HEIGHT, WIDTH = 48, 64


def _rotation(x: float, y: float, z: float) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    return (np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
            @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]))


def _rig() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K0, K1 and view1_from_view0 of two pairs of different cameras."""
    intrinsics0 = np.array([[[60, 0, 30], [0, 62, 25], [0, 0, 1]], [[500, 0, 320], [0, 500, 240], [0, 0, 1.0]]])
    intrinsics1 = np.array([[[70, 0, 33], [0, 71, 22], [0, 0, 1]], [[450, 0, 300], [0, 460, 250], [0, 0, 1.0]]])
    pose = np.tile(np.eye(4), (2, 1, 1))
    pose[:, :3, :3] = _rotation(0.1, -0.2, 0.3), _rotation(-0.3, 0.4, 0.05)
    pose[:, :3, 3] = [0.5, -0.1, 0.2], [-30.0, 10, 4]
    return intrinsics0, intrinsics1, pose


def _fundamental() -> torch.Tensor:
    return fundamental_matrix(*(torch.from_numpy(part).float() for part in _rig()))


def _project(intrinsics: np.ndarray, points: np.ndarray) -> np.ndarray:
    projected = points @ intrinsics.swapaxes(1, 2)
    return projected[..., :2] / projected[..., 2:]


def _sightings() -> tuple[np.ndarray, np.ndarray]:
    """2×20×2 pixels each: points in space as both views of the rig see them."""
    intrinsics0, intrinsics1, pose = _rig()
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -2, 4], [2, 2, 9], (2, 20, 3)) * np.array([1, 60])[:, None, None]
    moved = points @ pose[:, :3, :3].swapaxes(1, 2) + pose[:, None, :3, 3]
    return _project(intrinsics0, points), _project(intrinsics1, moved)


def test_points_in_space_lie_on_each_others_lines():
    seen0, seen1 = (torch.from_numpy(seen).float() for seen in _sightings())
    fundamental = _fundamental()
    assert line_distance(epipolar_lines(fundamental, seen0), seen1).max() < 1e-3
    assert line_distance(epipolar_lines(fundamental.mT, seen1), seen0).max() < 1e-3
    assert line_distance(epipolar_lines(fundamental, seen1), seen0).max() > 10, "not the other way round"
    torch.testing.assert_close(fundamental.norm(dim=(1, 2)), torch.ones(2))


def test_a_step_to_the_right_gives_the_same_row():
    """Of two equal cameras side by side: the line of (x, y) is the row y, and a point 5 rows off misses by 5."""
    intrinsics = torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]])
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 3] = -0.4
    fundamental = fundamental_matrix(intrinsics, intrinsics, pose)
    points0, points1 = torch.tensor([[[10.0, 20], [3, 7]]]), torch.tensor([[[40.0, 25], [1, 7], [60, 0]]])
    lines = epipolar_lines(fundamental, points0)
    torch.testing.assert_close(lines[..., :2].abs(), torch.tensor([[[0.0, 1], [0, 1]]]))
    expected = torch.tensor([[[5.0, 13, 20], [18, 0, 7]]])
    for distance in epipolar_distances(fundamental, points0, points1):
        torch.testing.assert_close(distance, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(distances_to_lines(lines, points1), expected, atol=1e-4, rtol=0)


def test_distances_both_ways_against_one_pair_at_a_time():
    seen0, seen1 = (torch.from_numpy(seen).float() + torch.randn(2, 20, 2, generator=torch.Generator().manual_seed(1))
                    for seen in _sightings())
    fundamental = _fundamental()
    in1, in0 = epipolar_distances(fundamental, seen0[:, :3], seen1[:, :5])
    for pair in range(2):
        matrix = fundamental[pair].double().numpy()
        for i in range(3):
            for j in range(5):
                x0, x1 = (np.append(seen[pair, k].double().numpy(), 1) for seen, k in ((seen0, i), (seen1, j)))
                error = abs(x1 @ matrix @ x0)
                assert float(in1[pair, i, j]) == pytest.approx(error / np.hypot(*(matrix @ x0)[:2]), rel=1e-3, abs=1e-3)
                assert float(in0[pair, i, j]) == pytest.approx(error / np.hypot(*(matrix.T @ x1)[:2]), rel=1e-3,
                                                              abs=1e-3)
    assert not torch.allclose(in1, in0)


def test_no_motion_and_the_epipole_have_no_line():
    """Forward motion: the epipole is the principal point."""
    intrinsics = torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]])
    assert not fundamental_matrix(intrinsics, intrinsics, torch.eye(4)[None]).any()
    pose = torch.eye(4)[None].clone()
    pose[0, 2, 3] = -1
    fundamental = fundamental_matrix(intrinsics, intrinsics, pose)
    points = torch.tensor([[[32.0, 24], [40, 24]]])
    lines = epipolar_lines(fundamental, points)
    assert not lines[0, 0].any()
    assert lines[0, 1, 1].abs() == 1
    assert segments_within(lines, HEIGHT, WIDTH).valid.tolist() == [[False, True]]
    in1, in0 = epipolar_distances(fundamental, points, points)
    assert in1.isinf().tolist() == [[[True, True], [False, False]]]
    assert in0.isinf().tolist() == [[[True, False], [True, False]]]


def _line(start, end) -> torch.Tensor:
    """The line through two points."""
    (x0, y0), (x1, y1) = start, end
    line = torch.tensor([y0 - y1, x1 - x0, x0 * y1 - x1 * y0], dtype=torch.float64)
    return (line / line[:2].norm()).float()


RIGHT, BOTTOM = WIDTH - 1.0, HEIGHT - 1.0
CUTS = {
    "through two corners": (((0, 0), (RIGHT, BOTTOM)), ((0, 0), (RIGHT, BOTTOM))),
    "through the other two": (((RIGHT, 0), (0, BOTTOM)), ((RIGHT, 0), (0, BOTTOM))),
    "through one corner": (((0, 0), (30, BOTTOM)), ((0, 0), (30, BOTTOM))),
    "from a corner to a side": (((RIGHT, BOTTOM), (0, 10)), ((RIGHT, BOTTOM), (0, 10))),
    "across": (((0, 5), (RIGHT, 40)), ((0, 5), (RIGHT, 40))),
    "two neighbouring sides": (((0, 10), (20, 0)), ((0, 10), (20, 0))),
    "a row": (((-50, 7), (200, 7)), ((0, 7), (RIGHT, 7))),
    "a column": (((9, -80), (9, 3)), ((9, 0), (9, BOTTOM))),
    "the first row": (((0, 0), (5, 0)), ((0, 0), (RIGHT, 0))),
    "touches a corner": (((-10, 10), (10, -10)), None),
    "less than a pixel of it": (((0, 0.4), (0.4, 0)), None),
    "a row above": (((0, -1), (30, -1)), None),
    "a column beyond": (((RIGHT + 0.5, 0), (RIGHT + 0.5, 9)), None),
    "passes outside": (((-20, 10), (10, -20)), None),
}


@pytest.mark.parametrize("name", CUTS)
def test_lines_are_cut_where_they_cross_the_border(name):
    through, expected = CUTS[name]
    for ends in (through, through[::-1]):
        segments = segments_within(_line(*ends)[None, None], HEIGHT, WIDTH)
        assert bool(segments.valid) == (expected is not None)
        found = sorted([segments.start[0, 0].tolist(), segments.end[0, 0].tolist()])
        if expected is not None:
            np.testing.assert_allclose(found, sorted(map(list, expected)), atol=1e-3)


def test_an_epipolar_line_through_a_corner_has_its_candidates_in_the_image():
    """The camera turns so that the pixel's line runs exactly through the corner (0, 0): no candidate is lost."""
    intrinsics = torch.tensor([[[50.0, 0, 0], [0, 50, 0], [0, 0, 1]]])
    pose = torch.eye(4)[None].clone()
    pose[0, :3, 3] = torch.tensor([-0.3, -0.2, 0])  # lines of slope 2 / 3, and (0, 0) on its own
    lines = epipolar_lines(fundamental_matrix(intrinsics, intrinsics, pose), torch.tensor([[[30.0, 20]]]))
    segments = segments_within(lines, HEIGHT, WIDTH)
    assert segments.valid.all()
    points = points_on_segments(segments, 100)
    assert points.shape == (1, 1, 100, 2)
    assert points.min() >= 0
    assert (points <= torch.tensor([RIGHT, BOTTOM])).all()
    ends = sorted(points[0, 0, [0, -1]].tolist())
    np.testing.assert_allclose(ends, [[0, 0], [RIGHT, RIGHT * 2 / 3]], atol=1e-3)
    assert line_distance(lines.expand(-1, 100, -1), points[0]).max() < 1e-4
    steps = points[0, 0].diff(dim=0).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full((99,), float(np.hypot(RIGHT, RIGHT * 2 / 3) / 99)))


def test_segments_stay_in_the_image_whatever_the_line():
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(1, 4000, generator=generator) * 2 * torch.pi
    lines = torch.stack([angle.cos(), angle.sin(), 120 * (torch.rand(1, 4000, generator=generator) - 0.5)], -1)
    segments = segments_within(lines, HEIGHT, WIDTH)
    corners = torch.tensor([[[0.0, 0], [RIGHT, 0], [0, BOTTOM], [RIGHT, BOTTOM]]])
    sides = (lines[..., :2] @ corners.mT + lines[..., 2:]).sign().sum(-1).abs()
    assert (segments.valid == (sides < 4)).float().mean() > 0.98, "a line crosses what has corners on both its sides"
    assert (segments.valid <= (sides < 4)).all()
    points = points_on_segments(Segments(*(part[:, segments.valid[0]] for part in segments)), 3)
    assert ((points >= 0) & (points <= torch.tensor([RIGHT, BOTTOM]))).all()
    assert line_distance(lines[:, segments.valid[0]], points[:, :, 1]).max() < 1e-4


def test_views_exchange():
    fundamental = _fundamental()
    masks = torch.rand(2, 2, 4, 5) > 0.5
    views = EpipolarViews(fundamental, *masks).inverse
    assert torch.equal(views.fundamental, fundamental.mT)
    assert torch.equal(views.mask0, masks[1])
    assert torch.equal(views.mask1, masks[0])
