"""Posed pairs: the numbers of every view must fit its picture, and pairs must be what their choice says."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from posed_scenes import (
    Frames,
    Rectangle,
    make_scene,
    moving_poses,
    plane_homography,
    plane_scene,
    texture,
    wall_scene,
)

from kp_frontend.errors import InputError
from kp_frontend.geometry import invert, so3_exp, transform
from kp_training.data.overlap import GRID, depth_overlap, pose_overlap, scene_distance
from kp_training.data.posed import PosedFrame
from kp_training.data.posed_pairs import (
    LEAST_SHARED,
    PosedBatch,
    PosedPairConfig,
    PosedPairs,
    make_view,
    share_something,
)
from kp_training.geometry.homography import warp_points
from kp_training.geometry.sampling import pixel_grid, sample
from kp_training.geometry.warps import PosedView, Reprojection

PLAIN = PosedPairConfig(most_overlap=1.0, style="off", height=60, width=70)
TURNED = replace(PLAIN, view_share=1.0)
CLOSE = replace(PLAIN, closest=2.5)


def batch_of(*items: PosedBatch) -> PosedBatch:
    return PosedBatch(*map(torch.stack, zip(*items)))


@pytest.mark.parametrize(("aspect", "zoom", "roll", "middle"), [
    ("crop", 1.0, None, None), ("stretch", 1.0, None, None), ("crop", 1.3, 0.0, None), ("crop", 0.7, 1.2, None),
    ("stretch", 1.1, -0.6, None), ("crop", 2.0, None, (80.0, 40.0)), ("stretch", 1.7, 0.8, (50.5, 61.25))])
def test_a_views_numbers_fit_its_pixels(aspect, zoom, roll, middle):
    scene = plane_scene(3, step=0.3)
    frame, config = scene[2], replace(PLAIN, aspect=aspect)
    middle = middle and np.array(middle)
    view = make_view(frame, config, np.random.default_rng(0), zoom, roll, middle)
    if middle is not None:
        np.testing.assert_allclose(warp_points(view.view_from_frame, middle[None]), [[34.5, 29.5]], atol=1e-9)
    points = np.random.default_rng(1).uniform([-1, -1, 2], [1, 1, 4], (50, 3))
    seen = transform(invert(frame.world_from_camera), points) @ frame.intrinsics.T
    seen_in_view = transform(invert(view.world_from_view), points) @ view.intrinsics.T
    expected = warp_points(view.view_from_frame, seen[:, :2] / seen[:, 2:])
    np.testing.assert_allclose(seen_in_view[:, :2] / seen_in_view[:, 2:], expected, atol=1e-9)
    np.testing.assert_allclose(seen_in_view[:, 2], seen[:, 2], atol=1e-12)  # depth along z is as it was


@pytest.mark.parametrize(("zoom", "roll"), [(1.0, None), (1.3, 0.4), (0.7, -1.5)])
def test_the_warp_of_two_views_of_a_plane_is_its_homography(zoom, roll):
    scene, rng = plane_scene(4, 192, 256), np.random.default_rng(0)
    views = make_view(scene[0], PLAIN, rng), make_view(scene[3], PLAIN, rng, zoom, roll)
    homography = views[1].view_from_frame @ plane_homography(scene, 0, 3) @ np.linalg.inv(views[0].view_from_frame)
    numbers = [PosedView(*(torch.from_numpy(values)[None] for values in (view.depth, view.intrinsics.astype("f4"),
                                                                         view.mask))) for view in views]
    pose = (invert(views[1].world_from_view) @ views[0].world_from_view).astype("f4")
    grid = pixel_grid(60, 70).reshape(1, -1, 2)
    warped = Reprojection(*numbers, torch.from_numpy(pose)[None])(grid)
    assert warped.known.all()
    distances = np.linalg.norm(warped.points[0].numpy() - warp_points(homography, grid[0].numpy()), axis=1)
    assert distances.max() < 0.1  # depth of the nearest pixel of a frame thrice as fine


def test_views_show_what_their_warp_says():
    scene = plane_scene(4, 192, 256)
    configs = (PLAIN, TURNED, CLOSE, replace(CLOSE, view_share=1.0))
    items = [PosedPairs([scene], config, 0)[n] for config in configs for n in range(6)]
    batch = batch_of(*items)
    warped = batch.warp()(pixel_grid(60, 70).reshape(1, -1, 2).expand(len(items), -1, -1))
    there = sample(batch.image1.float(), warped.points)[..., 0]
    difference = (there - batch.image0.float().flatten(1)).abs()
    elsewhere = (there.flip(1) - batch.image0.float().flatten(1)).abs()
    for values, others, visible in zip(difference, elsewhere, warped.visible):
        assert visible.float().mean() > 0.25
        assert values[visible].median() < 0.4 * others[visible].median()


def test_closer_views_show_the_same_place_and_stay_in_their_frames():
    scene = plane_scene(4, 192, 256)
    items = [PosedPairs([scene], replace(PLAIN, closest=closest), 0)[n] for closest in (1.0, 2.5) for n in range(12)]
    batch = batch_of(*items)
    assert batch.mask0.all()
    assert batch.mask1.all()
    focal = batch.intrinsics0[:, 0, 0] / batch.intrinsics0[0, 0, 0]
    assert (focal[:12] == 1).all()
    assert 1 < focal[12:].min() < focal[12:].max() < 2.6
    middle = batch.warp()(torch.tensor([34.5, 29.5]).expand(len(items), 1, 2))
    off = (middle.points[12:, 0] - torch.tensor([34.5, 29.5])).abs()
    assert (off < 1).all(1).float().mean() > 0.6  # else the second frame's border is near


def test_depth_is_never_a_mean_of_two_surfaces():
    scene = wall_scene()
    for zoom, roll in ((1.0, None), (0.8, 0.7)):
        view = make_view(scene[1], PLAIN, np.random.default_rng(0), zoom, roll)
        assert set(np.unique(view.depth[view.mask])) <= set(np.unique(scene[1].depth))
        assert (view.depth[~view.mask] == 0).all()


def test_the_mask_is_where_the_frame_is_and_its_middle_stays_in_the_middle():
    frame = plane_scene(1)[0]
    whole = replace(PLAIN, height=96, width=128)
    view = make_view(frame, whole, np.random.default_rng(0), 0.5, np.pi / 2)
    assert view.mask.sum() == pytest.approx(96 * 128 / 4, rel=0.03)
    np.testing.assert_allclose(warp_points(view.view_from_frame, np.array([[63.5, 47.5]])), [[63.5, 47.5]], atol=1e-9)
    y, x = np.nonzero(view.mask)
    assert (x.min(), x.max(), y.min(), y.max()) == (41, 86, 15, 80)  # 0.9 / 0.92 pixels are square
    right = warp_points(view.view_from_frame, np.array([[100.0, 47.5]]))[0]
    # The camera turns clockwise, its picture the other way.
    assert right == pytest.approx([63.5, 47.5 - 36.5 / 2 * 0.92 / 0.9])
    assert make_view(frame, whole, np.random.default_rng(0)).mask.all()


def test_hidden_points_are_not_visible():
    scene = wall_scene(2, step=0.6)
    config = replace(PLAIN, height=96, width=128)
    batch = next(item for item in map(PosedPairs([scene], config, 0).__getitem__, range(9))
                 if item.view1_from_view0[0, 3] > 0)  # from frame 1 to frame 0
    grid = pixel_grid(96, 128).reshape(1, -1, 2)
    warp = replace(batch_of(batch).warp(), window=0)
    warped = warp(grid)
    rays = np.column_stack([grid[0], np.ones(len(grid[0]))]) @ np.linalg.inv(scene.intrinsics[1]).T
    points = transform(scene.poses[1], rays * scene[1].depth.reshape(-1, 1))
    eye = scene.poses[0, :3, 3]
    crossing = eye + (points - eye) * ((2 - eye[2]) / (points[:, 2:] - eye[2]))
    hidden = (points[:, 2] > 3) & (crossing[:, 0] < 0)
    sure = np.abs(crossing[:, 0]) > 0.06  # three pixels off the front wall's edge
    x, y = warped.points[0].numpy().T
    inside = (x > 0) & (x < 127) & (y > 0) & (y < 95)
    assert (hidden & sure & inside).sum() > 20
    np.testing.assert_array_equal(warped.visible[0].numpy()[sure & inside], ~hidden[sure & inside])


def test_overlap_against_a_slow_reference():
    for scene in (wall_scene(4, step=0.5), plane_scene(4, step=0.8)):
        overlap, expected = depth_overlap(scene, np.arange(4)), np.zeros((4, 4))
        height, width = scene[0].image.shape[:2]
        y, x = np.mgrid[: GRID[0], : GRID[1]]
        pixels = np.floor(np.column_stack([(x.ravel() + 0.5) / GRID[1] * width, (y.ravel() + 0.5) / GRID[0] * height]))
        for i in range(4):
            for j in range(4):
                views = [PosedView(*(torch.from_numpy(np.asarray(values))[None] for values in (
                    scene[k].depth, scene.intrinsics[k].astype("f4"), np.ones((height, width), bool)))) for k in (i, j)]
                pose = torch.from_numpy((invert(scene.poses[j]) @ scene.poses[i]).astype("f4"))[None]
                visible = Reprojection(*views, pose, window=0)(torch.from_numpy(pixels.astype("f4"))[None]).visible
                expected[i, j] = visible.float().mean()
        assert np.abs(overlap - expected).max() < 0.06  # a column of the grid, at the wall's edge, is 0.05
        assert np.abs(overlap - expected).mean() < 0.015
        assert overlap[0, 1] > overlap[0, 3] > 0


def test_overlap_is_kept_on_disk_and_only_of_scenes_that_were_read_whole(tmp_path, caplog):
    scene = plane_scene(3)
    first = depth_overlap(scene, np.arange(3), tmp_path)
    blind = replace(scene, read=Frames([], [], range(3)))
    np.testing.assert_array_equal(depth_overlap(blind, np.arange(3), tmp_path), first)
    broken = replace(plane_scene(3, unreadable=[1]), identity="broken")
    with caplog.at_level(logging.WARNING):
        overlap = depth_overlap(broken, np.arange(3), tmp_path)
    assert "1 of 3 frames" in caplog.text
    assert (overlap[1] == 0).all()
    assert (overlap[:, 1] == 0).all()
    assert overlap[0, 2] == first[0, 2]
    assert len(list(tmp_path.iterdir())) == 1


def circle(count: int, radius: float, arc: float) -> np.ndarray:
    """Poses on an arc round the origin that look at it."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = so3_exp(np.linspace(0, arc, count)[:, None] * [0, 1, 0])
    poses[:, :3, 3] = -radius * poses[:, :3, 2]
    return poses


def test_the_distance_of_a_scene():
    assert scene_distance(circle(9, 2.5, 1.5)) == pytest.approx(2.5)
    road = np.tile(np.eye(4), (9, 1, 1))
    road[:, 2, 3] = 1.3 * np.arange(9)
    assert scene_distance(road) == pytest.approx(13)
    assert scene_distance(road[:1]) == 1


def test_pairs_by_pose_alone_look_at_the_same_and_have_parallax():
    poses = np.concatenate([circle(7, 2.0, 1.5), circle(7, 2.0, 1.5)[2:3]])
    scene = make_scene("circle", [], poses, 48, 64, depth=False)
    config = replace(PLAIN, choice="rotation", largest_rotation=30.0, least_parallax=0.02)  # neighbours: 14.3° apart
    pairs = {tuple(pair) for pair in PosedPairs([scene], config, 0).pairs[0].tolist()}
    assert {(i, i + 1) for i in range(6)} | {(i, i + 2) for i in range(5)} == {pair for pair in pairs if 7 not in pair}
    assert {pair for pair in pairs if 7 in pair} == {(0, 7), (1, 7), (3, 7), (4, 7)}  # not (2, 7): the same place
    away = poses.copy()
    away[1::2, 0, 3] += 30
    assert (pose_overlap(replace(scene, poses=away), np.arange(8))[0, 1::2] == 0).all()
    item = PosedPairs([scene], config, 0)[0]
    assert not item.depth0.any()


def test_cameras_back_to_back_share_nothing():
    poses = circle(2, 1.0, np.pi)
    poses[:, :3, 3] *= [[-1], [-1]]
    scene = make_scene("away", [], poses, 48, 64)
    np.testing.assert_array_equal(pose_overlap(scene, np.arange(2)), np.eye(2))


@pytest.mark.parametrize(("count", "least", "most"), [(200, 70, 149), (100, 47, 99), (2, 1, 1)])
def test_pairs_by_offset(count, least, most):
    still = make_scene("still", [], moving_poses(1, 0), 8, 8, depth=False)
    scene = replace(still, poses=np.tile(np.eye(4), (count, 1, 1)), names=tuple(map(str, range(count))))
    pairs = PosedPairs([scene], replace(PLAIN, choice="offset"), 0).pairs[0]
    offsets = pairs[:, 1] - pairs[:, 0]
    assert (offsets.min(), offsets.max()) == (least, most)
    assert len(np.unique(pairs, axis=0)) == len(pairs) == sum(count - k for k in range(least, most + 1))
    assert pairs.min() == 0
    assert pairs.max() == count - 1


def test_frames_that_see_nothing_of_each_other_are_no_pairs_by_offset():
    config = replace(PLAIN, choice="offset", least_offset=1, most_offset=3)
    assert len(PosedPairs([plane_scene(5)], config, 0).pairs[0]) == 9
    with pytest.raises(InputError, match="frames 1 to 2 apart see nothing of each other by their depth"):
        PosedPairs([plane_scene(3, step=20)], replace(config, most_offset=2), 0)


def shared(item: PosedBatch) -> float:
    """Share of all pixels of view 0 that view 1 sees."""
    height, width = item.depth0.shape
    warped = batch_of(item).warp()(pixel_grid(height, width).reshape(1, -1, 2))
    return float(warped.visible.float().mean())


@pytest.mark.parametrize("config", [PLAIN, CLOSE, TURNED])
def test_views_that_share_nothing_are_drawn_again(config):
    """Of frames that are 1 m apart and 2.7 m wide, those by offset may be up to 7 m apart."""
    scene, config = plane_scene(8, step=1.0), replace(config, choice="offset", least_offset=1, most_offset=7)
    data = PosedPairs([scene], config, 0)
    assert min(shared(data[n]) for n in range(20)) > 0.5 * LEAST_SHARED
    drawn = {tuple(pair) for pair in data.pairs[0].tolist()}
    assert {(0, 7), (0, 6), (1, 7)} < drawn  # which see nothing of each other


def test_what_is_shared_is_as_much_as_the_warp_says():
    """A step to the right of so much that a little is left of what was seen, and nothing."""
    rng = np.random.default_rng(0)
    for step, expected in ((0.1, True), (2.0, True), (4.0, False), (50.0, False)):
        scene = plane_scene(2, step=step)
        views = [make_view(scene[k], PLAIN, rng) for k in range(2)]
        assert share_something(*views) == share_something(*views[::-1]) == expected, step


def test_pairs_by_overlap_are_those_within_the_limits():
    scene = plane_scene(8, step=0.4)
    overlap = depth_overlap(scene, np.arange(8))
    pairs = PosedPairs([scene], replace(PLAIN, least_overlap=0.5, most_overlap=0.8), 0).pairs[0]
    expected = [(i, j) for i in range(8) for j in range(i + 1, 8) if 0.5 <= min(overlap[i, j], overlap[j, i]) <= 0.8]
    assert 3 < len(expected) < 28
    assert [tuple(pair) for pair in pairs.tolist()] == expected


def test_pairs_by_overlap_have_parallax_where_it_is_asked_for():
    """The third camera stands where the first does, and looks a little elsewhere."""
    poses = moving_poses(3, 0.4)
    poses[2] = poses[0]
    poses[2, :3, :3] = so3_exp(np.array([0, 0.15, 0]))
    wall = Rectangle(np.array([0, 0, 3.0]), np.eye(3)[:2], (np.inf, np.inf), texture(0))
    scene = make_scene("turning", [wall], poses, 48, 64)
    assert len(PosedPairs([scene], PLAIN, 0).pairs[0]) == 3
    config = replace(PLAIN, least_parallax=0.02)
    assert PosedPairs([scene], config, 0).pairs[0].tolist() == [[0, 1], [1, 2]]
    with pytest.raises(InputError, match="cameras must be 200% of the scene's distance apart"):
        PosedPairs([scene], replace(PLAIN, least_parallax=2), 0)


def test_an_item_depends_on_the_seed_and_its_number_alone():
    scenes = [plane_scene(), wall_scene()]
    config = replace(TURNED, style="camera", view_share=0.5)
    data, again = PosedPairs(scenes, config, 3), pickle.loads(pickle.dumps(PosedPairs(scenes, config, 3)))
    items = [data[n] for n in (0, 5, 5, 1)]
    for number, item in zip((0, 5, 5, 1), items):
        assert all(map(torch.equal, item, again[number]))
    assert not torch.equal(items[0].image0, items[1].image0)
    assert not torch.equal(items[0].image0, PosedPairs(scenes, config, 4)[0].image0)
    either = [item.view1_from_view0[0, 3] > 0 for item in map(PosedPairs(scenes[:1], PLAIN, 0).__getitem__, range(20))]
    assert 3 < sum(either) < 17  # both directions


def test_images_are_lit_each_on_its_own():
    scene = plane_scene(2)
    still = replace(scene, read=Frames([scene[0].image] * 2, [scene[0].depth] * 2),
                    poses=np.tile(np.eye(4), (2, 1, 1)), identity="still")
    data = PosedPairs([still], replace(PLAIN, style="camera", color="rgb", height=96, width=128), 0)
    assert data[0].image0.shape == (3, 96, 128)
    assert not torch.equal(data[0].image0, data[0].image1)
    plain = PosedPairs([still], replace(PLAIN, color="rgb", height=96, width=128), 0)[0]
    assert np.array_equal(plain.image0.numpy().transpose(1, 2, 0)[..., ::-1], scene[0].image)


def test_a_frame_that_cannot_be_read_is_replaced_and_said_once(caplog):
    scene = plane_scene(4, unreadable=[2])
    data = PosedPairs([plane_scene(4)], PLAIN, 0)
    data.frames.scenes = (scene,)
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            assert data[number].depth0.all()
    assert data.unreadable == {2}
    assert caplog.text.count("frame 2 cannot be read") == 1
    data.frames.scenes = (plane_scene(4, unreadable=range(4)),)
    with pytest.raises(InputError, match="4 frames could not be read"):
        data[0]


def test_what_cannot_be_paired_is_said_with_its_numbers(caplog):
    apart = plane_scene(3, step=20)
    with pytest.raises(InputError, match=r"no two of 3 frames .* 0% to 0%, expected 30% to 100%.*check_scene"):
        PosedPairs([apart], PLAIN, 0)
    with caplog.at_level(logging.WARNING):
        data = PosedPairs([apart, plane_scene()], PLAIN, 0)
    assert "1 of 2 scenes" in caplog.text
    assert data[0].depth0.any()
    with pytest.raises(InputError, match=r"no depth.*choice=rotation or choice=offset"):
        PosedPairs([plane_scene(depth=False)], PLAIN, 0)
    with pytest.raises(InputError, match=r"in no order.*choice=overlap"):
        PosedPairs([replace(plane_scene(), ordered=False)], replace(PLAIN, choice="offset"), 0)
    with pytest.raises(InputError, match="choice of pairs 'near'"):
        PosedPairs([plane_scene()], replace(PLAIN, choice="near"), 0)
    opposite = replace(apart, poses=circle(3, 1, 2 * np.pi))
    with pytest.raises(InputError, match=r"of its 3 pairs, 1 look within 80° .* and 1 of these"):
        PosedPairs([opposite], replace(PLAIN, choice="rotation", least_parallax=0.02), 0)


def test_labels_are_drawn_where_the_points_are_seen():
    scenes = [wall_scene(), plane_scene()]
    asked = []

    def points(index: int) -> np.ndarray:
        asked.append(index)
        x, y = np.meshgrid([20, 64, 100], [20, 48, 80])
        return np.column_stack([x.ravel(), y.ravel(), np.ones(9)]).astype(np.float32)

    white = replace(scenes[1], read=Frames([dotted(scenes[1].read(k)[0], points(k)) for k in range(4)],
                                           [scenes[1].read(k)[1] for k in range(4)]), identity="white")
    asked.clear()
    item = PosedPairs([white], replace(TURNED, height=96, width=128), 0, points)[0]
    for image, labels in ((item.image0, item.labels0), (item.image1, item.labels1)):
        assert 2 < (labels > 0).sum() <= 9
        assert image[0][labels > 0].float().mean() > 150  # a dot of white on black
    PosedPairs([scenes[0], white], PLAIN, 0, points)[3]
    assert set(asked) <= set(range(8))


def test_labels_are_believed_where_their_cells_say_so():
    """Frames that are white where they are known show it."""
    cells = np.zeros((12, 16), bool)
    cells[2:7, 3:8] = cells[8:, 10:] = True
    scene = plane_scene()
    white = cv2.resize(np.where(cells, 255, 0).astype(np.uint8), (128, 96), interpolation=cv2.INTER_NEAREST)
    frames = Frames([np.repeat(white[..., None], 3, 2)] * 4, [scene.read(k)[1] for k in range(4)])
    scene = replace(scene, read=frames, identity="known")

    def known_cells(index: int, height: int, width: int) -> np.ndarray:
        assert (height, width) == (96, 128)
        return cells

    pairs = PosedPairs([scene], replace(TURNED, closest=2.0), 0, None, known_cells)
    for item in (pairs[0], pairs[1], pairs[2]):
        for image, mask, known in ((item.image0, item.mask0, item.known0), (item.image1, item.mask1, item.known1)):
            assert not (known & ~mask).any()
            seen = (image[0] > 127)[mask]
            assert 0.05 < seen.float().mean() < 0.95
            assert (seen == known[mask]).float().mean() > 0.97  # all but edges
    item = PosedPairs([scene], TURNED, 0)[0]
    assert torch.equal(item.known1, item.mask1)


def dotted(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    black = np.zeros_like(image)
    for x, y, _ in points.tolist():
        cv2.circle(black, (int(x), int(y)), 2, (255, 255, 255), -1)
    return black


def test_frames_of_other_sizes_and_smaller_than_the_view():
    scene = plane_scene(2, 40, 60)
    item = PosedPairs([scene], replace(PLAIN, height=100, width=100), 0)[0]
    assert item.image0.shape == (1, 100, 100)
    assert item.mask0.all()
    frame = PosedFrame(np.zeros((31, 47, 3), np.uint8), None, scene.intrinsics[0], np.eye(4))
    view = make_view(frame, PLAIN, np.random.default_rng(0))
    assert view.image.shape == view.depth.shape == view.mask.shape == (60, 70)
