"""Projective adaptation against loops over pixels, what hides what, and what it keeps on disk."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from posed_scenes import Rectangle, make_scene, plane_homography, plane_scene, texture, wall_scene
from torch import nn

from kp_frontend.errors import InputError
from kp_training.data.posed import PosedFrame, SceneFrames
from kp_training.labels import projective
from kp_training.labels.projective import (
    Group,
    ProjectiveConfig,
    adapt_frames,
    average_scores,
    draw_others,
    draw_parts,
    label_scenes,
    part_of,
)

SMALL = ProjectiveConfig(height=64, width=96, border=1, group=4, others=2, fewest=0)
CPU = torch.device("cpu")


class Brightness(nn.Module):
    """A detector that finds what is bright.  seen: number of images it was given."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return (self.gain * images.float() / 2,)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(projective, "half_precision", lambda device: torch.autocast(device.type, enabled=False))


def _scores(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth maps, so that interpolation is no matter of taste."""
    noise = np.random.default_rng(seed).random((count, height, width)).astype(np.float32)
    return torch.from_numpy(np.stack([cv2.GaussianBlur(part, (0, 0), 2) for part in noise]))


def _group(scene, config) -> Group:
    return Group.of([scene[k] for k in range(len(scene))], config, "cpu")


def _bilinear(scores: np.ndarray, x: float, y: float) -> float:
    i, j = int(y), int(x)
    corners = scores[i : i + 2, j : j + 2]
    columns = corners @ [1 - (x - j), x - j] if corners.shape[1] == 2 else corners[:, 0]
    return float(columns[0] * (1 - (y - i)) + (columns[1] * (y - i) if len(columns) == 2 else 0))


def _seen_from(scene, frame: int, other: int, x: int, y: int):
    """Where pixel (x, y) of `frame` is in `other` and how far from it, by its own depth."""
    depth = float(scene[frame].depth[y, x])
    point = depth * np.linalg.inv(scene.intrinsics[frame]) @ [x, y, 1]
    moved = np.linalg.inv(scene.poses[other]) @ scene.poses[frame] @ [*point, 1]
    u, v, z = scene.intrinsics[other] @ moved[:3]
    return u / z, v / z, moved[2]


def _slow_average(scene, scores, drawn, config, normalised):
    """Every pixel by itself; window off."""
    count, height, width = scores.shape
    averaged = np.zeros(scores.shape)
    for frame, y, x in np.ndindex(count, height, width):
        values = [float(scores[frame, y, x])]
        for other in drawn[frame]:
            if scene[frame].depth[y, x] == 0:
                continue
            u, v, z = _seen_from(scene, frame, other, x, y)
            border = config.border
            if not (border <= u <= width - 1 - border and border <= v <= height - 1 - border):
                continue
            i, j = round(v), round(u)
            around = scene[other].depth[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            around = around[around > 0]
            if around.size and around.min() * (1 - config.occlusion) <= z <= around.max() * (1 + config.occlusion):
                values.append(_bilinear(scores[other], u, v))
        averaged[frame, y, x] = sum(values) / (len(values) if normalised else len(drawn[frame]) + 1)
    return averaged


@pytest.mark.parametrize("average", ["normalised", "sum"])
def test_averages_are_those_of_a_loop_over_pixels(average):
    """A wall before another: pixels whose rounding decides what they see may differ, and are few."""
    scene = wall_scene(4, 32, 48, step=0.25)
    scene.read.depths[1][:6, 20:30] = 0  # unknown
    config = replace(SMALL, average=average, window=0)
    drawn = np.array([[1, 2], [0, 3], [3, 1], [0, 1]])
    scores = _scores(4, 32, 48)
    ours = average_scores(scores, _group(scene, config), drawn, config).numpy()
    slow = _slow_average(scene, scores.numpy(), drawn, config, average == "normalised")
    wrong = np.abs(ours - slow) > 1e-3
    assert wrong.mean() < 5e-3
    assert np.abs(slow - scores.numpy()).max() > 0.05, "others have a say"
    np.testing.assert_allclose(ours[1, 1:5, 21:29] * (1 if average == "normalised" else 3),
                               scores[1, 1:5, 21:29].numpy(), rtol=1e-5, err_msg="without depth: a frame's own")


def test_what_another_frame_does_not_see_gets_nothing_from_it():
    """The far wall beside the near one's edge: hidden from a camera further to the left."""
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = -0.6
    walls = [Rectangle(np.array([0, 0, 4.0]), np.eye(3)[:2], (np.inf, np.inf), texture(0)),
             Rectangle(np.array([-50, 0, 2.0]), np.eye(3)[:2], (50, np.inf), texture(1))]
    scene = make_scene("wall", walls, poses, 48, 64)
    config = replace(SMALL, border=0, window=0)
    scores = torch.zeros(2, 48, 64)
    scores[1] = 1.0
    given = average_scores(scores, _group(scene, config), np.array([[1], [0]]), config)[0].numpy()
    far = scene[0].depth > 3
    hidden = np.zeros_like(far)
    seen = np.zeros_like(far)
    for y, x in zip(*np.nonzero(far)):
        u, v, _ = _seen_from(scene, 0, 1, x, y)
        if 1 <= u <= 62 and 1 <= v <= 46:
            around = scene[1].depth[round(v) - 1 : round(v) + 2, round(u) - 1 : round(u) + 2]
            hidden[y, x], seen[y, x] = around.max() < 3, around.min() > 3
    assert hidden.sum() > 50
    assert seen.sum() > 50
    assert (given[hidden] == 0).all()
    assert (given[seen] == 0.5).all()
    blind = replace(config, occlusion=0.0)
    assert average_scores(scores, _group(scene, blind), np.array([[1], [0]]), blind)[0].numpy()[hidden].min() == 0.5


def _spots(places, height: int = 48, width: int = 64) -> torch.Tensor:
    """len(places)×H×W scores: at each place (x, y) of a frame a 3×3 patch with its own middle."""
    scores = torch.zeros(len(places), height, width)
    for frame, spots in enumerate(places):
        for number, (x, y) in enumerate(spots):
            scores[frame, y - 1 : y + 2, x - 1 : x + 2] = 0.1
            scores[frame, y, x] = 0.3 + 0.1 * number
    return scores


def test_patches_are_added_where_their_points_land():
    scene = plane_scene(2, 48, 64, step=0.2)
    config = replace(SMALL, average="patches", others=1, border=3)
    scores = _spots([[(20, 12), (40, 30)], []])
    averaged = average_scores(scores, _group(scene, config), np.array([[1], [0]]), config)
    homography = plane_homography(scene, 0, 1)
    expected = torch.zeros(48, 64)
    for x, y in [(20, 12), (40, 30)]:
        u, v, w = homography @ [x, y, 1]
        u, v = round(u / w), round(v / w)
        expected[v - 1 : v + 2, u - 1 : u + 2] += scores[0, y - 1 : y + 2, x - 1 : x + 2]
    torch.testing.assert_close(averaged[1], expected / 2)
    torch.testing.assert_close(averaged[0], scores[0] / 2, msg="its own patches count as much")


def test_the_public_codes_defect_gives_points_the_patches_of_others():
    """Best first: the first point leaves the other frame, so that the second one gets the first one's patch."""
    scene = plane_scene(2, 48, 64, step=0.5)
    homography = plane_homography(scene, 0, 1)

    def lands(x, y):
        u, v, w = homography @ [x, y, 1]
        return round(u / w), round(v / w)

    left, kept = (6, 20), (50, 24)
    assert not 0 <= lands(*left)[0] < 64
    u, v = lands(*kept)
    scores = _spots([[kept, left], []])
    group, drawn = _group(scene, SMALL), np.array([[1], [0]])
    for average, strength in (("patches", 0.3), ("public", 0.4)):
        config = replace(SMALL, average=average, border=3)
        averaged = average_scores(scores, group, drawn, config)[1]
        assert float(averaged[v, u]) == pytest.approx(strength / 2)
        assert (averaged > 0).sum() == 9


def test_patches_that_the_border_cuts():
    """A camera whose principal point differs: a point lands in the corner, and what is outside is lost."""
    frame = plane_scene(1, 48, 64)[0]
    moved = frame.intrinsics.copy()
    moved[:2, 2] -= [19.7, 11.7]
    frames = [frame, PosedFrame(frame.image, frame.depth, moved, frame.world_from_camera)]
    config = replace(SMALL, average="patches", border=3)
    averaged = average_scores(_spots([[(20, 12)], []]), Group.of(frames, config, "cpu"), np.array([[1], [0]]), config)
    assert averaged[1].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert float(averaged[1, 0, 0]) == pytest.approx(0.15)


def test_frames_are_shrunk_together_and_points_are_in_their_own_pixels():
    """A bright dot on a plane, labelled at half the size, in frames of two sizes."""
    scene = plane_scene(2, 128, 192, step=0.1)
    images = [np.zeros((128, 192, 3), np.uint8) for _ in range(2)]
    u, v, w = plane_homography(scene, 0, 1) @ [81, 61, 1]
    for image, (x, y) in zip(images, [(81, 61), (round(u / w), round(v / w))]):
        cv2.circle(image, (x, y), 2, (255, 255, 255), -1)
    frames = [PosedFrame(image, scene[k].depth, scene.intrinsics[k], scene.poses[k]) for k, image in enumerate(images)]
    half = cv2.resize(frames[1].image, (96, 64), interpolation=cv2.INTER_AREA)
    halved = np.diag([0.5, 0.5, 1]) @ frames[1].intrinsics - np.array([[0, 0, 0.25], [0, 0, 0.25], [0, 0, 0]])
    small = PosedFrame(half, frames[1].depth[::2, ::2].copy(), halved, frames[1].world_from_camera)
    config = replace(SMALL, threshold=0.3)
    group = Group.of([frames[0], small], config, "cpu")
    assert group.images.shape == (2, 1, 64, 96)
    torch.testing.assert_close(group.intrinsics[0], torch.from_numpy(halved).float(), msg="centres at integers")
    first, second = adapt_frames(Brightness(), [frames[0], small], np.array([[1], [0]]), config)
    assert len(first) == len(second) == 1
    assert np.abs(first[0, :2] - [81, 61]).max() <= 1
    assert np.abs(2 * second[0, :2] + 0.5 - [u / w, v / w]).max() <= 2, "of the smaller frame"
    assert first[0, 2] > 0.35, "the other frame agrees"


def test_others_are_others_and_all_equally_likely():
    drawn = draw_others(20, 14, np.random.default_rng(0))
    assert drawn.shape == (20, 14)
    for frame, others in enumerate(drawn):
        assert len({*others.tolist(), frame}) == 15
        assert others.min() >= 0
        assert others.max() < 20
    counts = np.zeros((5, 5), int)
    for seed in range(400):
        for frame, others in enumerate(draw_others(5, 2, np.random.default_rng(seed))):
            counts[frame, others] += 1
    assert (np.diag(counts) == 0).all()
    assert np.abs(counts[~np.eye(5, dtype=bool)] - 200).max() < 50
    assert draw_others(3, 14, np.random.default_rng(0)).shape == (3, 2)
    assert draw_others(1, 14, np.random.default_rng(0)).shape == (1, 0)


@pytest.mark.parametrize("average", projective.AVERAGES)
def test_a_frame_alone_keeps_its_own_scores(average):
    scene, scores = plane_scene(1, 48, 64), _spots([[(20, 12)]])
    config = replace(SMALL, average=average)
    averaged = average_scores(scores, _group(scene, config), np.zeros((1, 0), int), config)
    torch.testing.assert_close(averaged, scores)


@functools.cache
def _scenes():
    return plane_scene(6, 64, 96), wall_scene(3, 64, 96)


def _label(detector, cache, scenes=None, limit=100, config=SMALL, seed=0):
    return label_scenes(detector, scenes or _scenes(), limit, config, seed,
                        cache, CPU)


def _same(labels, others):
    return all(np.array_equal(getattr(labels, name), getattr(others, name)) for name in ("indices", "starts", "points"))


def test_labels_of_all_frames_are_made_once(tmp_path):
    detector = Brightness()
    scenes, labels = _label(detector, tmp_path)
    assert [scene.name for scene in scenes] == ["plane", "wall"]
    assert labels.indices.tolist() == list(range(9))
    assert detector.seen == 9, "one look at each frame"
    assert all(len(labels(position)) for position in range(9))
    _, kept = _label(detector, tmp_path)
    assert detector.seen == 9
    assert _same(labels, kept)
    assert sorted(file.name for file in tmp_path.glob("*/*")) == ["000000-3.npz", "000000-4.npz", "000004-2.npz"]


def test_labels_are_those_of_the_group(tmp_path):
    """Each group draws for itself."""
    scene, config = _scenes()[0], replace(SMALL, group=3, others=1)
    _, labels = _label(Brightness(), tmp_path, [scene], config=config)
    drawn = draw_others(3, 1, np.random.default_rng([0, 6, 3]))
    expected = adapt_frames(Brightness(), [scene[3], scene[4], scene[5]], drawn, config)
    for k in range(3):
        np.testing.assert_array_equal(labels(3 + k), expected[k])


@pytest.mark.parametrize("change", [
    {"detector": Brightness(0.9)}, {"config": replace(SMALL, others=1)}, {"seed": 1},
    {"scenes": [plane_scene(6, 64, 96, step=0.1)]},
])
def test_labels_of_anything_else_are_made_anew(tmp_path, change):
    _label(Brightness(), tmp_path, [_scenes()[0]])
    detector = change.pop("detector", Brightness())
    _label(detector, tmp_path, **({"scenes": [_scenes()[0]]} | change))
    assert detector.seen == 6


def test_a_killed_labelling_goes_on_where_it_was(tmp_path, monkeypatch):
    _, whole = _label(Brightness(), tmp_path / "whole")
    killed = Brightness()
    forward = killed.forward

    def until_the_second_group(images):
        if killed.seen >= 4:
            raise KeyboardInterrupt
        return forward(images)

    monkeypatch.setattr(killed, "forward", until_the_second_group)
    with pytest.raises(KeyboardInterrupt):
        _label(killed, tmp_path / "killed")
    assert [file.name for file in (tmp_path / "killed").glob("*/*")] == ["000000-4.npz"]
    resumed = Brightness()
    _, labels = _label(resumed, tmp_path / "killed")
    assert resumed.seen == 5
    assert _same(labels, whole)


def test_more_frames_keep_the_labels_of_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(projective, "SPAN", 1)
    scene = plane_scene(12, 64, 96, step=0.05)
    detector = Brightness()
    (part,), few = _label(detector, tmp_path, [scene], limit=3)
    assert detector.seen == len(part) == 4
    start = int(few.indices[0])
    assert start % 4 == 0
    assert part.name == f"plane[{start}:{start + 4}]"
    for k in range(4):
        np.testing.assert_array_equal(part[k].image, scene[start + k].image)
        np.testing.assert_array_equal(part[k].world_from_camera, scene[start + k].world_from_camera)
    scenes, all_labels = _label(detector, tmp_path, [scene], limit=12)
    assert detector.seen == 12
    assert scenes == (scene,)
    np.testing.assert_array_equal(few(1), all_labels(start + 1))


def test_parts():
    scenes = [plane_scene(5, 16, 16), plane_scene(13, 16, 16)]
    assert draw_parts(scenes, 18, 2, 0) == [(0, 0, 5), (1, 0, 13)]
    for limit in range(1, 18):
        parts = draw_parts(scenes, limit, 2, 3)
        frames = [(number, k) for number, start, stop in parts for k in range(start, stop)]
        assert limit <= len(frames) == len(set(frames)) <= limit + 1
        assert all(start % 2 == 0 and (stop % 2 == 0 or stop == len(scenes[number])) for number, start, stop in parts)
    assert len(SceneFrames([part_of(scenes[1], 4, 9)])) == 5


def test_a_frame_that_cannot_be_read_has_no_points_and_the_others_do(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        _, labels = _label(Brightness(), tmp_path, [plane_scene(4, 64, 96, unreadable=(2,))])
    assert [len(labels(k)) > 0 for k in range(4)] == [True, True, False, True]
    assert "1 of 4 frames cannot be read and have no labels; the first: plane: frame 2 cannot be read" in caplog.text
    _, none = _label(Brightness(), tmp_path, [plane_scene(4, 64, 96, unreadable=range(4), step=0.2)])
    assert len(none.points) == 0


def test_errors():
    with pytest.raises(InputError, match=r"1 of 2 scenes have no depth \(as plane\), by which labels are mapped"):
        label_scenes(Brightness(), [_scenes()[1], plane_scene(1, 16, 16, depth=False)], 4, SMALL, 0, None, CPU)
    with pytest.raises(InputError, match="unknown average of projective adaptation 'median'; choose one of: norm"):
        ProjectiveConfig(average="median")


def test_poses_far_from_the_origin():
    """Geographic coordinates: relative poses do not suffer."""
    near, far = plane_scene(3, 48, 64), plane_scene(3, 48, 64)
    far.poses[:, :3, 3] += [4e6, -3e6, 2e5]
    torch.testing.assert_close(_group(far, SMALL).frame_from_frame, _group(near, SMALL).frame_from_frame, atol=1e-6,
                               rtol=0)


def test_suppression_is_that_of_the_public_boxes():
    """Boxes of 4 pixels overlap by more than a tenth up to 3 pixels apart along an axis."""
    overlaps = {d: (4 - d) * 4 / (32 - (4 - d) * 4) for d in range(5)}
    assert max(d for d, overlap in overlaps.items() if overlap > 0.1) == ProjectiveConfig().nms_radius
