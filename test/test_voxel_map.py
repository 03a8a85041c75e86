"""Soft expectation: voxels by sorted keys against a dict, repeatability by hand, single directions, edges, corners."""

from __future__ import annotations

import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from posed_scenes import make_scene, moving_poses, plane_homography, plane_scene, wall_scene
from torch import nn

from kp_frontend.errors import InputError
from kp_training.data.posed import PosedFrame
from kp_training.geometry.homography import warp_points
from kp_training.labels import scenes as scene_labels
from kp_training.labels.edges import choose_points, corner_response, one_per_cell, smooth_known
from kp_training.labels.expectation import BITS, NOWHERE, Expectation, VoxelGrid, Voxels, voxel_centres
from kp_training.labels.points import AdaptedLabels
from kp_training.labels.scenes import ExpectationConfig, SceneLabels, label_scenes, some_frames, voxel_grid

GRID = VoxelGrid(np.zeros(3), 1.0)
UNIT = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
CHOICE = {"threshold": 0.0, "nms_radius": 6, "border": 4, "edge_filter": True, "smoothing": 1.0}
CPU = torch.device("cpu")


def _frame(depth: list[list[float]], position=(0.0, 0.0, 0.0), turn: float = 0.0) -> PosedFrame:
    """K = identity: pixel (x, y) at depth z lies at z·(x, y, 1) from the camera, which is turned about y."""
    depth = np.array(depth, np.float32)
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0, turn, 0]))[0]
    pose[:3, 3] = position
    return PosedFrame(np.zeros((*depth.shape, 3), np.uint8), depth, UNIT, pose)


def test_keys_name_the_cube_around_each_point():
    """Points (0, 0, 2), (2, 0, 2) | (0, 3, 3), none, from a camera at (.5, −1.5, 0): (.5, −1.5, 2), (2.5, −1.5, 2) …"""
    keys = GRID.keys(_frame([[2, 2], [3, 0]], (0.5, -1.5, 0)))
    assert keys[1, 1] == NOWHERE
    centres = voxel_centres(keys[keys != NOWHERE])
    assert centres.tolist() == [[0.5, -1.5, 2.5], [2.5, -1.5, 2.5], [0.5, 1.5, 3.5]]


def test_depth_that_says_nothing_and_points_beyond_the_grid():
    far = 2.0**BITS
    keys = GRID.keys(_frame([[np.nan, np.inf, -1], [0, far, 1]]))
    assert (keys == NOWHERE).tolist() == [[True, True, True], [True, True, False]]


def test_repeatability_of_two_views_by_hand():
    """Two cameras two units apart see the plane z = 4 in voxels of one unit; pixel x is at 4x, 4x + 2 in the second.

    With pixels an 8th apart, x = 0 … 15 at 0 … 7.5: two pixels a voxel.  Voxels 2 to 7 are seen by both.
    """
    intrinsics = np.diag([8.0, 8, 1])
    views = [replace(_frame([[4.0] * 16], (shift, 0, 0)), intrinsics=intrinsics) for shift in (0, 2)]
    scores = [np.arange(16, dtype=np.float32)[None], np.full((1, 16), 100, np.float32)]
    expectation = Expectation(GRID, least_angle=2.0)
    for view, score in zip(views, scores):
        expectation.add(view, score)
    value, known = expectation.repeatability(views[0])
    assert known[0].tolist() == [False] * 4 + [True] * 12, "voxels 0 and 1 have a single view"
    for pixel in range(4, 16):
        voxel = pixel // 2
        assert value[0, pixel] == pytest.approx((2 * voxel + 2 * voxel + 1 + 200) / 4)
    assert (value[0, :4] == 0).all()
    other, seen = expectation.repeatability(views[1])
    assert other[0, :12].tolist() == value[0, 4:].tolist()
    assert seen[0].tolist() == [True] * 12 + [False] * 4


def test_single_directions():
    """From one place, however often, and from two places along one ray, nothing is known; from aside it is."""
    spot = [[4.0]]
    for position, expected in (((0, 0, 0), False), ((0, 0, -4), False), ((0.05, 0, 0), False), ((1, 0, 0), True)):
        moved = _frame(spot, position, -np.arctan2(position[0], 4))
        moved = replace(moved, depth=np.full((1, 1), np.hypot(position[0], 4 - position[2]), np.float32))
        grid = VoxelGrid(np.array([-0.5, -0.5, -0.5]), 1.0)
        expectation = Expectation(grid, least_angle=2.0)
        for frame in (_frame(spot), _frame(spot), moved):
            expectation.add(frame, np.ones((1, 1), np.float32))
        assert expectation.repeatability(_frame(spot))[1][0, 0] == expected, position


def _slow(frames, scores, grid, least_angle):
    """The same with a dict of voxels."""
    table = {}

    def points(frame):
        for y, x in np.ndindex(frame.depth.shape):
            if frame.depth[y, x] > 0:
                ray = np.linalg.inv(frame.intrinsics) @ [x, y, 1] * frame.depth[y, x]
                world = frame.world_from_camera[:3, :3] @ ray + frame.world_from_camera[:3, 3]
                yield (y, x), tuple(np.floor((world - grid.origin) / grid.side).astype(int))

    for number, (frame, score) in enumerate(zip(frames, scores)):
        for pixel, voxel in points(frame):
            total, hits, towards = table.setdefault(voxel, [0.0, 0, {}])
            direction = (frame.world_from_camera[:3, 3] - grid.origin) / grid.side - np.array(voxel) - 0.5
            towards[number] = direction / np.linalg.norm(direction)
            table[voxel] = [total + score[pixel], hits + 1, towards]
    maps = []
    for frame in frames:
        value = np.full(frame.depth.shape, np.nan)
        for pixel, voxel in points(frame):
            total, hits, towards = table[voxel]
            if np.linalg.norm(np.mean(list(towards.values()), 0)) <= np.cos(np.radians(least_angle) / 2):
                value[pixel] = total / hits
        maps.append(value)
    return maps, len(table)


@pytest.mark.parametrize("make", [plane_scene, wall_scene])
def test_against_a_dict(make):
    scene = make(count=4, height=15, width=20, step=0.3)
    frames, rng = [scene[k] for k in range(4)], np.random.default_rng(0)
    frames[2].depth[rng.random(frames[2].depth.shape) < 0.2] = 0
    scores = [rng.random((15, 20), np.float32) for _ in frames]
    grid = VoxelGrid(np.array([0.013, -0.021, 0.007]), 0.17)  # off the walls, which floats would put on either side
    expectation = Expectation(grid, 4.0)
    for frame, score in zip(frames, scores):
        expectation.add(frame, score)
    slow, count = _slow(frames, scores, grid, 4.0)
    assert len(expectation.voxels().keys) == count
    unknown = 0
    for frame, expected in zip(frames, slow):
        value, known = expectation.repeatability(frame)
        np.testing.assert_array_equal(known, np.isfinite(expected))
        np.testing.assert_allclose(value[known], expected[known], rtol=1e-4)
        unknown += (~known).sum()
    assert 0 < unknown < 0.6 * 4 * 15 * 20


def test_voxels_join_in_any_order():
    rng = np.random.default_rng(1)
    parts = []
    for _ in range(7):
        keys = np.unique(rng.integers(0, 40, 25))
        parts.append(Voxels(keys, rng.random((len(keys), 6), np.float32)))
    forward, backward = parts[0], parts[-1]
    for part in parts[1:]:
        forward |= part
    for part in parts[-2::-1]:
        backward = part | backward
    np.testing.assert_array_equal(forward.keys, backward.keys)
    np.testing.assert_allclose(forward.sums, backward.sums, rtol=1e-5)
    for key, sums in zip(forward.keys, forward.sums):
        np.testing.assert_allclose(sums, sum(part.sums[part.keys == key].sum(0) for part in parts), rtol=1e-5)


def test_nothing_seen():
    value, known = Expectation(GRID, 2.0).repeatability(_frame([[1.0, 2.0]]))
    assert not known.any()
    assert not value.any()


def _cross(ridge: bool) -> np.ndarray:
    """A smooth bump at (40, 30), and a ridge as high along x = 12."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    bump = np.exp(-((x - 40) ** 2 + (y - 30) ** 2) / 8)
    return bump + ridge * np.exp(-((x - 12) ** 2) / 8)


def test_edge_filter_keeps_corners_and_drops_edges():
    known = np.ones((64, 64), bool)
    kept = choose_points(_cross(True), known, 3, **CHOICE | {"threshold": 0.3})
    assert kept[:, :2].tolist() == [[40, 30]]
    ridge = choose_points(_cross(True), known, 30, **CHOICE | {"threshold": 0.3, "edge_filter": False})
    assert {12} < set(ridge[:, 0].tolist()) <= {12, 40}, "without the filter the ridge is full of points"
    assert corner_response(_cross(False))[30, 40] == pytest.approx(1 / 4, rel=0.15)  # −f″ of exp(−r²/8) at its top


def test_points_keep_their_distance_and_their_number():
    rng = np.random.default_rng(2)
    values, known = rng.random((80, 96)).astype(np.float32), np.ones((80, 96), bool)
    known[:, 50:60] = False
    points = choose_points(values, known, 1000, **CHOICE)
    xy = points[:, :2].astype(int)
    apart = np.abs(xy[:, None] - xy[None]).max(-1) + 100 * np.eye(len(xy), dtype=int)
    assert apart.min() > 6
    assert len(np.unique(xy // 8, axis=0)) == len(xy)
    assert xy.min() >= 4
    assert (xy < [92, 76]).all()
    assert not ((xy[:, 0] >= 50) & (xy[:, 0] < 60)).any()
    assert np.array_equal(choose_points(values, known, 10, **CHOICE), points[:10])
    assert len(choose_points(values, known, 1000, **CHOICE | {"threshold": 0.99})) == 0


def test_one_point_a_cell():
    points = np.array([[15, 3], [9, 7], [3, 3], [16, 8], [15, 9]])
    assert one_per_cell(points, 24).tolist() == [[15, 3], [3, 3], [16, 8], [15, 9]]


def test_smoothing_does_not_mix_in_what_is_not_known():
    known = np.ones((32, 32), bool)
    known[:, 16:] = False
    values = np.where(known, 0.5, 77).astype(np.float32)
    np.testing.assert_allclose(smooth_known(values, known, 1.5)[:, :16], 0.5, rtol=1e-5)


class CornerDetector(nn.Module):
    """Shi-Tomasi's response, squashed: a detector that needs no training.  seen: images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3e3))
        self.seen = 0

    def forward(self, image):
        self.seen += len(image)
        response = [cv2.cornerMinEigenVal(view[0].float().numpy(), 3) for view in image]
        return (torch.tanh(self.gain.float() * torch.from_numpy(np.stack(response))[:, None]),)


SMALL = ExpectationConfig(height=96, width=128, points=2_000, nms_radius=20, least_angle=1.0, threshold=0.01)


@pytest.fixture
def _full_precision(monkeypatch):
    monkeypatch.setattr(scene_labels, "half_precision", lambda device: torch.autocast(device.type, enabled=False))


@pytest.mark.usefixtures("_full_precision")
def test_labels_are_the_same_places_in_all_frames(tmp_path):
    """A label of one frame, moved to the next by the plane's homography, lies at one of its labels there."""
    scene = plane_scene(count=4, step=0.1)
    labels = label_scenes(CornerDetector(), [scene], SMALL, tmp_path, CPU)
    first, second = labels(0), labels(1)
    assert len(first) > 30
    assert (first[:, 2] > 0).all()
    moved = warp_points(plane_homography(scene, 0, 1), first[:, :2])
    inner = ((moved > 8) & (moved < [119, 87])).all(1)
    distances = np.linalg.norm(moved[inner][:, None] - second[None, :, :2], axis=-1).min(1)
    assert (distances < 2).mean() > 0.5
    scattered = np.random.default_rng(0).uniform(8, [119, 87], (inner.sum(), 2))
    assert (np.linalg.norm(scattered[:, None] - second[None, :, :2], axis=-1).min(1) < 2).mean() < 0.3


@pytest.mark.usefixtures("_full_precision")
def test_cells_without_depth_are_not_known(tmp_path):
    scene = plane_scene(count=3, step=0.1)
    read = scene.read

    def holed(index):
        image, depth = read(index)
        depth = depth.copy()
        depth[:, 40:64] = 0
        return image, depth

    labels = label_scenes(CornerDetector(), [replace(scene, read=holed)], SMALL, tmp_path, CPU)
    cells = labels.known_cells(1, 96, 128)
    assert cells.shape == (12, 16)
    assert not cells[:, 5:8].any()
    assert cells[1:-1, 1:5].all()
    x = labels(1)[:, 0]
    assert not ((x >= 40) & (x < 64)).any()


@pytest.mark.usefixtures("_full_precision")
def test_a_large_frame_is_labelled_small_in_its_own_pixels(tmp_path):
    """Frames of 192×256 labelled at 96×128: points sit on the middles of 2×2 pixels."""
    scene = plane_scene(count=3, height=192, width=256, step=0.1)
    labels = label_scenes(CornerDetector(), [scene], SMALL, tmp_path, CPU)
    points = labels(1)
    assert set(np.unique((points[:, :2] - 0.5) % 2)) == {0}
    assert points[:, 0].max() > 130
    assert labels.known_cells(1, 192, 256).shape == (12, 16)


@pytest.mark.usefixtures("_full_precision")
def test_labels_resume_scene_by_scene(tmp_path):
    scenes = [plane_scene(count=3, step=0.1, seed=seed) for seed in (0, 1)]
    detector = CornerDetector()
    first = label_scenes(detector, scenes, SMALL, tmp_path, CPU)
    assert detector.seen == 6
    again = label_scenes(detector, scenes, SMALL, tmp_path, CPU)
    assert detector.seen == 6
    np.testing.assert_array_equal(first.rows.points, again.rows.points)
    sorted(tmp_path.rglob("*.npz"))[0].unlink()  # as if killed before
    label_scenes(detector, scenes, SMALL, tmp_path, CPU)
    assert detector.seen == 9, "only the missing scene"
    with torch.no_grad():
        detector.gain.mul_(1.5)
    label_scenes(detector, scenes, SMALL, tmp_path, CPU)
    assert detector.seen == 15, "another detector's labels are others"


def test_unusable_frames_and_scenes(tmp_path, caplog):
    scene = plane_scene(count=4, step=0.1, unreadable=(2,))
    with caplog.at_level(logging.WARNING):
        labels = label_scenes(CornerDetector(), [scene], SMALL, tmp_path, CPU)
    assert "1 of 4 frames could not be read" in caplog.text
    assert len(labels(2)) == 0
    assert len(labels(3)) > 10
    with pytest.raises(InputError, match=r"have no depth \(as plane\), by which a frame's points"):
        label_scenes(CornerDetector(), [plane_scene(depth=False)], SMALL, tmp_path, CPU)
    blind = replace(scene, read=lambda index: (np.zeros((96, 128, 3), np.uint8), np.zeros((96, 128), np.float32)))
    with pytest.raises(InputError, match="depth is unknown everywhere"):
        voxel_grid(blind, SMALL)


def test_size_of_voxels():
    """At a median depth of 3 m and a focal length of 115 px, two pixels cover 5 cm."""
    scene = plane_scene()
    median = np.median(np.concatenate([scene[k].depth.ravel() for k in range(4)]))
    assert voxel_grid(scene, SMALL).side == pytest.approx(2 * median / (0.9 * 128), rel=1e-3)
    assert voxel_grid(scene, replace(SMALL, voxel=0.01)).side == 0.01
    near = make_scene("near", [], moving_poses(2, 0.1), 96, 128)
    close = np.full((96, 128), 0.1, np.float32)
    near = replace(near, read=lambda index: (np.zeros((96, 128, 3), np.uint8), close))
    assert voxel_grid(near, SMALL).side == 0.005, "the paper's, where pixels are finer"
    assert voxel_grid(replace(near, metric=False), replace(SMALL, voxel_share=0.1)).side == pytest.approx(0.01)


def test_some_frames():
    scenes = [plane_scene(count=4, height=15, width=20)] * 3
    assert [len(scene) for scene in some_frames(scenes, 100, 0)] == [4, 4, 4]
    some = some_frames(scenes, 6, 0)
    assert [len(scene) for scene in some] == [3, 3]
    assert some[1].names == ("000", "002", "003")
    assert some[1].identity.endswith("[3]")
    np.testing.assert_array_equal(some[1][2].image, scenes[0][3].image)
    long = [plane_scene(count=count, height=15, width=20) for count in (100, 10, 100)]
    assert [len(scene) for scene in some_frames(long, 110, 0)] == [10, 50, 50]
    assert [len(scene) for scene in some_frames(long[:1] + long[2:], 32, 0)] == [32]


def test_scene_labels_by_hand():
    rows = np.array([[3, 4, 0.5], [11.5, 3.5, 0], [19.5, 11.5, 0]], np.float32)
    labels = SceneLabels(AdaptedLabels(np.arange(1), np.array([0, 3]), rows), SMALL)
    assert labels(0).tolist() == [[3, 4, 0.5]]
    assert np.argwhere(~labels.known_cells(0, 16, 24)).tolist() == [[0, 1], [1, 2]]
    assert labels.mean == 1


def test_a_smaller_frame_has_fewer_and_closer_points():
    """240×320: a quarter of the points, half as far apart."""
    values, known = np.random.default_rng(3).random((240, 320)).astype(np.float32), np.ones((240, 320), bool)
    config = ExpectationConfig(points=400, threshold=0.0)
    points = config.choose(values, known, 240, 320)
    assert len(points) == 100
    many = replace(config, points=100_000).choose(values, known, 240, 320)
    apart = np.abs(many[:, None, :2] - many[None, :, :2]).max(-1) + 100 * np.eye(len(many))
    assert apart.min() == 4
