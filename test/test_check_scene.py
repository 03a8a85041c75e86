"""``check_scene``: right scenes pass, each usual mistake is recognised and named, and what cannot be read is said."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from posed_scenes import Rectangle, make_scene, moving_poses, plane_scene, texture, wall_scene

from kp_frontend.errors import InputError
from kp_frontend.geometry import invert, so3_exp
from kp_frontend.quaternions import poses_from_quaternions, quaternions_from_poses
from kp_training.__main__ import main
from kp_training.data.posed import PosedScene
from kp_training.evaluation.scene_check import recordings
from kp_training.evaluation.scene_check.check import check_scene, pairs_of
from kp_training.evaluation.scene_check.conventions import combinations
from kp_training.evaluation.scene_check.reprojection import (
    agreement,
    fundamental_matrix,
    line_distances,
    reproject,
    spread_pixels,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
OPENGL = np.diag([1.0, -1, -1, 1])


@dataclass(frozen=True)
class Changed:
    """``PosedScene.read`` of another one, with its depth changed."""

    read: Callable
    change: Callable

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, depth = self.read(index)
        return image, self.change(depth).astype(np.float32)


def corner_scene(
    count: int = 6, height: int = 96, width: int = 128, depth: bool = True, step: float = 0.2
) -> PosedScene:
    """Three walls of a room's corner, by a camera that moves and turns; nothing in it is flat or symmetric."""
    x, y, z = np.eye(3)
    walls = [Rectangle(np.array([0, 0, 4.0]), np.array([x, y]), (np.inf, np.inf), texture(0)),
             Rectangle(np.array([1.5, 0, 0]), np.array([z, y]), (np.inf, np.inf), texture(1)),
             Rectangle(np.array([0, 1.2, 0]), np.array([x, z]), (np.inf, np.inf), texture(2))]
    poses = moving_poses(count, step, turn=0.05)
    tilt = np.eye(4)
    tilt[:3, :3] = so3_exp(np.array([-0.3, 0.4, 0.5]))
    return make_scene("corner", walls, tilt @ poses, height, width, depth)


def ray_lengths(scene: PosedScene) -> np.ndarray:
    height, width = scene[0].image.shape[:2]
    y, x = np.mgrid[:height, :width]
    return np.linalg.norm(np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(scene.intrinsics[0]).T, axis=-1)


def real_part_first(poses: np.ndarray) -> np.ndarray:
    return poses_from_quaternions(poses[:, :3, 3], np.roll(quaternions_from_poses(poses), 1, axis=1))


def of_body(poses: np.ndarray) -> np.ndarray:
    body_from_camera = np.eye(4)
    body_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return poses @ invert(body_from_camera)


POSES = {
    "camera axes of OpenGL": lambda poses: poses @ OPENGL,
    "poses of camera_from_world": invert,
    "poses of camera_from_world and camera axes of OpenGL": lambda poses: invert(poses @ OPENGL),
    "quaternions of w x y z": real_part_first,
    "poses of a body": of_body,
    "quaternions of w x y z and poses of camera_from_world": lambda poses: real_part_first(invert(poses)),
}


@pytest.mark.parametrize("scene", [plane_scene(8), wall_scene(8), corner_scene()], ids=lambda scene: scene.name)
def test_right_scenes_agree(scene):
    check = check_scene(scene, (1, 3))
    assert check.good
    assert check.verdict.startswith("poses and depth agree: 9") or "100%" in check.verdict
    assert {pair.stride for pair in check.pairs} == {1, 3}
    for pair in check.pairs:
        assert pair.agree > 0.93
        assert pair.grey < 0.5 * pair.shuffled
        assert 0 < pair.overlap <= 1
    assert check.size == (128, 96)
    assert check.depth_known > 0.99
    depth = scene[0].depth
    assert depth.min() * 0.5 < check.depth_quantiles[1] < depth.max() * 1.5
    assert check.path == pytest.approx(np.linalg.norm(np.diff(scene.poses[:, :3, 3], axis=0), axis=1).sum())


@pytest.mark.parametrize("mistake", POSES)
def test_wrong_poses_are_recognised(mistake):
    scene = corner_scene()
    check = check_scene(replace(scene, poses=POSES[mistake](scene.poses)), (1, 3))
    assert check.good is False
    assert f"read as {mistake}" in check.verdict
    assert check.mistake.startswith(mistake)


def test_training_refuses_wrong_poses_and_warns_of_what_cannot_be_told(monkeypatch, caplog):
    scene = corner_scene()
    turned = replace(scene, name="turned", poses=next(iter(POSES.values()))(scene.poses))
    given = {"posed:good": [scene, plane_scene(1)], "posed:turned": [turned], "posed:apart": [plane_scene(3, step=30)]}
    for name in ("open_scenes", "training_scenes"):
        monkeypatch.setattr(recordings, name, lambda specs, height, width: given[specs[0]])
    with caplog.at_level(logging.WARNING):
        assert recordings.checked_scenes(["posed:good"], 8, 8) == given["posed:good"]
        assert caplog.text == ""
        recordings.checked_scenes(["posed:apart"], 8, 8)
        recordings.checked_scenes(["posed:apart"], 16, 16)
    assert caplog.text.count("plane: nothing to tell by: 0 points") == 1
    with pytest.raises(InputError, match=r"turned: poses and depth do not agree: .* would: .*check_scene"):
        recordings.checked_scenes(["posed:turned"], 8, 8)


@pytest.mark.parametrize(("mistake", "change"), [
    ("depth a thousand times too large", lambda depth: depth * 1000),
    ("depth a thousand times too small", lambda depth: depth / 1000),
    ("depth along the ray", lambda depth: depth * ray_lengths(corner_scene(1)))])
def test_wrong_depth_is_recognised(mistake, change):
    scene = corner_scene()
    wrong = replace(scene, read=Changed(scene.read, change))
    check = check_scene(wrong, (2, 5))
    assert check.good is False
    assert f"read as {mistake}" in check.verdict
    both = check_scene(replace(wrong, poses=scene.poses @ OPENGL), (2, 5))
    assert "camera axes of OpenGL" in both.verdict
    assert mistake in both.verdict


@pytest.mark.parametrize(("factor", "said"), [
    (100, "read as depth a hundred times too small for the poses, "),
    (0.01, "read as depth a hundred times too large for the poses, "),
    (10, "no usual mistake"),  # frames of little motion nearly agree were there none
    (0.1, "no usual mistake")])
def test_only_a_unit_that_motion_bears_out_is_named(factor, said):
    scene = corner_scene(12, step=0.04)
    poses = scene.poses.copy()
    poses[:, :3, 3] *= factor
    check = check_scene(replace(scene, poses=poses), (1, 3, 10))
    assert check.good is False
    assert said in check.verdict


def test_wrong_intrinsics_are_no_usual_mistake():
    scene = corner_scene()
    check = check_scene(replace(scene, intrinsics=scene.intrinsics * [[[1.6], [1.6], [1]]]), (2, 5))
    assert check.good is False
    assert "no usual mistake" in check.verdict


def test_without_depth_matches_tell():
    scene = corner_scene(4, 240, 320, depth=False)
    check = check_scene(scene, (1, 2))
    assert check.good
    assert "matches lie on their epipolar lines" in check.verdict
    assert all(pair.distance < 0.5 and pair.agree > 0.9 and pair.compared > 50 for pair in check.pairs)
    wrong = check_scene(replace(scene, poses=invert(scene.poses @ OPENGL)), (2,))
    assert "read as poses of camera_from_world and camera axes of OpenGL" in wrong.verdict


def test_nothing_to_tell_by():
    check = check_scene(plane_scene(3, step=30))
    assert check.good is None
    assert "0 points could be compared" in check.verdict
    with pytest.raises(InputError, match="plane has 1 usable frame, expected 2 or more"):
        check_scene(plane_scene(1))


def test_unreadable_frames_are_counted():
    check = check_scene(plane_scene(6, unreadable=[0, 2]), (1,))
    assert check.good
    assert check.unreadable == 2
    assert len(check.pairs) == 2
    with pytest.raises(InputError, match=r"not one of 3 frames can be read; the last: frame \d cannot"):
        check_scene(plane_scene(3, unreadable=range(3)))


def test_hidden_pixels_are_told_from_wrong_ones():
    scene = wall_scene(2, step=0.6)
    pixels = spread_pixels(96, 128, 96 * 128)
    assert len(pixels) == 96 * 128
    found = agreement(scene[1], scene[0], pixels, metric=True)
    assert found.hidden.mean() > 0.05
    assert (scene[1].depth[tuple(found.pixels.pixels[found.hidden].T[::-1])] > 3).all()  # of the wall at the back
    assert found.agree.sum() > 0.95 * found.covisible.sum()
    assert not (found.hidden & found.covisible).any()
    shifted = replace(scene[0], depth=scene[0].depth - np.float32(0.2))
    assert agreement(scene[1], shifted, pixels, metric=True).agree.mean() < 0.1
    nearer = replace(scene[0], depth=scene[0].depth - np.float32(0.04))
    assert agreement(scene[1], nearer, pixels, metric=True).agree.mean() > 0.5
    assert agreement(scene[1], nearer, pixels, metric=False).agree.mean() > 0.5  # 2 % of 2 m and more
    small = [replace(frame, depth=frame.depth / 10, world_from_camera=frame.world_from_camera * SMALL)
             for frame in (scene[1], replace(scene[0], depth=scene[0].depth * np.float32(0.95)))]
    assert agreement(*small, pixels, metric=True).agree.mean() > 0.5
    assert agreement(*small, pixels, metric=False).agree.mean() < 0.1


SMALL = np.array([[1, 1, 1, 0.1], [1, 1, 1, 0.1], [1, 1, 1, 0.1], [1, 1, 1, 1]])


def test_what_is_behind_a_camera_is_not_seen():
    first = wall_scene(1)[0]
    turned = first.world_from_camera @ np.diag([-1.0, 1, -1, 1])
    there = reproject(first, replace(first, world_from_camera=turned), spread_pixels(96, 128, 500))
    assert len(there.seen) > 200
    assert not there.seen.any()


def test_lines_of_a_sideways_move_are_rows():
    scene = plane_scene(2)
    moved = np.eye(4)
    moved[0, 3] = 0.3
    frames = scene[0], replace(scene[1], world_from_camera=moved)
    points = np.array([[10.0, 20], [50, 60]])
    fundamental = fundamental_matrix(*frames)
    np.testing.assert_allclose(line_distances(fundamental, points, points + [[-5, 0], [-9, 3]]), [0, 3], atol=1e-9)


def test_the_pairs_of_a_scene():
    scene = plane_scene(12)
    assert pairs_of(scene, (10, 5)) == [(0, 5, 5), (0, 10, 10), (1, 6, 5), (1, 11, 10),
                                        *((k, k + 5, 5) for k in range(2, 7))]
    many = replace(scene, names=tuple(map(str, range(500))), poses=np.tile(np.eye(4), (500, 1, 1)))
    pairs = pairs_of(many, (1, 100, 600))
    assert len(pairs) == 40
    assert {second - first for first, second, _ in pairs} == {1, 100}
    assert max(second for _, second, _ in pairs) == 499
    shuffled = np.random.default_rng(0).permutation(12)
    mixed = replace(plane_scene(12, step=1.5), ordered=False)
    mixed = replace(mixed, poses=mixed.poses[shuffled])
    for first, second, stride in pairs_of(mixed, (1,)):
        assert stride == 0
        assert abs(shuffled[first] - shuffled[second]) <= 2


def test_combinations_begin_with_none():
    assert combinations(True)[0] == combinations(False)[0] == ()
    assert (len(combinations(True)), len(combinations(False))) == (120, 12)


@pytest.fixture
def scenes(monkeypatch):
    """What the command opens."""
    opened: list[PosedScene] = []
    monkeypatch.setattr("kp_training.data.open_scenes", lambda specs, height, width: opened)
    return opened


def test_the_command_writes_a_table_figures_and_pictures(scenes, tmp_path, capsys):
    right, blind = corner_scene(4), replace(corner_scene(4, 240, 320, depth=False), name="blind")
    scenes += [right, replace(right, name="wrong", poses=right.poses @ OPENGL), blind,
               replace(plane_scene(2, unreadable=[0, 1]), name="lost")]
    code = main(["check_scene", "here", "--stride", "1", "3", "--output", str(tmp_path / "out"), "--json",
                 str(tmp_path / "out" / "figures.json")])
    printed = capsys.readouterr().out
    assert code == 0
    assert re.search(r"corner: 4 frames, 128×96, fx 115, depth .* m \(5 to 95 %.*path 0.6\d* m\nyes poses and", printed)
    assert re.search(r"wrong: 4 frames.*\nNO  poses and depth do not agree", printed)
    assert re.search(r"blind: 4 frames, 320×240, fx 288, no depth.*\nyes poses and matches agree", printed)
    assert "NO  lost: not one of 2 frames" in printed
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [scene["good"] for scene in figures["scenes"]] == [True, False, True]
    assert len(figures["unreadable"]) == 1
    assert figures["scenes"][2]["pairs"][0]["overlap"] is None
    names = {f"{name}_{stride}.png" for name in ("corner", "wrong", "blind") for stride in (1, 3)}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == names
    assert cv2.imread(str(tmp_path / "out" / "corner_3.png")).shape[1] == 256


def test_the_command_refuses_what_it_cannot_read(scenes, tmp_path, capsys):
    scenes.append(plane_scene(2, unreadable=[0, 1]))
    assert main(["check_scene", "here"]) == 2
    assert "not one of 2 frames can be read" in capsys.readouterr().err
    assert main(["check_scene", "here", "--stride", "0"]) == 2
    assert "--stride 0: expected 1 or more" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["check_scene", "here", "--output", str(tmp_path / "file")]) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
@pytest.mark.parametrize("place", ["rgbd/redkitchen_a", "multiview/fox"])
def test_real_recordings(place, monkeypatch):
    from kp_training.data import open_scenes
    from kp_training.evaluation.scene_check import check

    monkeypatch.setattr(check, "PAIRS", 6)
    [scene] = open_scenes([f"posed:{SHARED / place}"], 0, 0)
    check = check_scene(scene, (1, 10) if scene.has_depth else (1,))
    assert check.good
    if scene.has_depth:
        assert all(np.median([pair.agree for pair in check.pairs if pair.stride == stride]) > 0.9 for stride in (1, 10))
    else:
        assert np.median([pair.distance for pair in check.pairs]) < 0.5
