"""Trajectory files and errors, on cases that can be worked out by hand, and against evo."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kp_frontend.errors import InputError
from kp_frontend.quaternions import poses_from_quaternions, quaternions_from_poses
from kp_frontend.replay.association import nearest, period
from kp_frontend.replay.evaluation import evaluate, relative_error
from kp_frontend.replay.trajectory import (
    Trajectory,
    read_trajectory,
    write_tum,
)

pytest.importorskip("evo")
RATE = 100_000_000
RNG = np.random.default_rng(7)


def walk(count: int = 40, step: int = RATE) -> Trajectory:
    """A winding path with turning camera."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for k in range(count):
        poses[k, :3, :3] = cv2.Rodrigues(np.array([0.02, 0.05, 0.01]) * k)[0]
        poses[k, :3, 3] = (np.cos(k / 7), 0.3 * np.sin(k / 3), k / 10)
    return Trajectory(10**18 + step * np.arange(count), poses)


def moved(trajectory: Trajectory, scale: float = 1.0) -> Trajectory:
    """The same motion, seen from another world."""
    poses = trajectory.poses.copy()
    poses[:, :3, 3] *= scale
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = cv2.Rodrigues(np.array([0.3, -1.0, 2.0]))[0], (5, -6, 7)
    return Trajectory(trajectory.stamps, world @ poses)


def test_the_world_does_not_matter():
    error = evaluate(moved(walk()), walk(), "se3")
    assert error.rmse == pytest.approx(0, abs=1e-9)
    assert error.per_frame.translation == pytest.approx(0, abs=1e-9)
    assert error.per_frame.pairs == 39
    assert error.per_second.pairs == 30
    assert error.scale == 1
    assert error.path == pytest.approx(walk().length)


def test_scale_is_forgiven_by_sim3_only():
    estimate = moved(walk(), 0.25)
    error = evaluate(estimate, walk(), "sim3")
    assert error.rmse == pytest.approx(0, abs=1e-9)
    assert error.scale == pytest.approx(4)
    assert error.per_second.translation == pytest.approx(0, abs=1e-9)
    assert evaluate(estimate, walk(), "se3").rmse > 0.3


def test_ate_of_a_square_bent_out_of_its_plane():
    corners = np.array([[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], float)
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, :3, 3] = corners
    truth = Trajectory(RATE * np.arange(4), poses)
    bent = poses.copy()
    bent[:, 2, 3] = (0.1, -0.1, 0.1, -0.1)  # no rotation or shift makes this any flatter
    error = evaluate(Trajectory(truth.stamps, bent), truth, "se3")
    assert error.rmse == pytest.approx(0.1)
    assert error.mean == error.median == error.max == pytest.approx(0.1)
    assert error.percent == pytest.approx(100 * 0.1 / 6)


def test_relative_error_is_evos():
    from evo.core.metrics import RPE, PoseRelation, Unit
    from evo.core.trajectory import PosePath3D

    truth = walk()
    noisy = truth.poses.copy()
    noisy[:, :3, 3] += RNG.normal(0, 0.02, (40, 3))
    for pose, turn in zip(noisy, RNG.normal(0, 0.02, (40, 3))):
        pose[:3, :3] = pose[:3, :3] @ cv2.Rodrigues(turn)[0]
    estimate = Trajectory(truth.stamps, noisy)
    for frames in (1, 10):
        ours = relative_error(estimate, truth, frames * RATE, RATE // 2)
        for relation, value in ((PoseRelation.translation_part, ours.translation),
                                (PoseRelation.rotation_angle_deg, ours.rotation)):
            metric = RPE(relation, frames, Unit.frames, all_pairs=True)
            metric.process_data((PosePath3D(poses_se3=list(truth.poses)), PosePath3D(poses_se3=list(noisy))))
            assert value == pytest.approx(metric.get_all_statistics()["rmse"], rel=1e-6)
            assert ours.pairs == len(metric.error)


def test_a_gap_is_no_pair():
    kept = np.r_[0:10, 20:40]
    error = evaluate(walk().select(kept), walk(), "se3")
    assert error.poses == 30
    assert error.per_frame.pairs == 28
    assert error.per_second.pairs == 10


@pytest.mark.parametrize(("step", "pairs"), [(RATE // 2, 20), (RATE * 10, 39), (RATE * 15, 0), (RATE * 25, 0)])
def test_a_pose_is_paired_with_one_about_a_second_later_or_with_none(step, pairs):
    truth = walk(40, step)
    off = truth.poses.copy()
    off[1::2, 0, 3] += 0.3
    error = evaluate(Trajectory(truth.stamps, off), truth, "se3")
    assert error.per_frame.pairs == 39
    assert error.per_frame.translation == pytest.approx(0.3, abs=0.01)
    second = error.per_second
    assert second.pairs == pairs
    assert np.isnan([second.translation, second.rotation]).all() == (not pairs)
    assert ("no two poses are one second (± 10 %) apart" in error.reason) == (not pairs)
    assert relative_error(truth, truth, step // 2, step).pairs == 0  # the nearest is the pose itself


def test_stamps_decide_who_belongs_to_whom():
    truth = walk(400, RATE // 10)
    estimate = Trajectory(truth.stamps[::10] + 4_000_000, truth.poses[::10])
    assert evaluate(estimate, truth, "se3").rmse == pytest.approx(0, abs=1e-9)
    late = Trajectory(truth.stamps[::10] + 10**10, truth.poses[::10])
    error = evaluate(late, truth, "se3")
    assert np.isnan(error.rmse)
    assert "0 of 40 poses" in error.reason


def test_what_cannot_be_aligned_says_why():
    still = Trajectory(walk().stamps, np.tile(np.eye(4), (40, 1, 1)))
    error = evaluate(still, still, "se3")
    assert np.isnan(error.rmse)
    assert "not unique" in error.reason
    assert "2 of 2 poses" in evaluate(walk(2), walk(2), "se3").reason
    with pytest.raises(InputError, match="unknown alignment"):
        evaluate(walk(), walk(), "none")


def test_positions_alone_give_no_relative_error():
    truth = walk()
    error = evaluate(walk(), Trajectory(truth.stamps, truth.poses, oriented=False), "se3")
    assert error.rmse == pytest.approx(0, abs=1e-9)
    assert np.isnan(error.per_frame.translation)
    assert "positions only" in error.reason


def test_nearest():
    stamps, wanted = np.array([0, 10, 20, 40]), np.array([-3, 4, 5, 6, 29, 31, 46])
    assert nearest(stamps, wanted, 5).tolist() == [0, 0, 0, 1, -1, -1, -1]
    assert nearest(stamps, wanted, 9).tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert nearest(stamps[:1], wanted, 5).tolist() == [0, 0, 0, -1, -1, -1, -1]
    assert nearest(stamps[:0], wanted, 5).tolist() == [-1] * 7
    assert period(stamps) == 10


def test_quaternions_and_back():
    quaternions = RNG.normal(size=(200, 4))
    quaternions[:3] = np.eye(4)[:3]  # half turns
    poses = poses_from_quaternions(RNG.normal(size=(200, 3)), quaternions)
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3))
    assert np.allclose(poses_from_quaternions(poses[:, :3, 3], quaternions_from_poses(poses)), poses)
    quarter = poses_from_quaternions(np.zeros((1, 3)), np.array([[0, 0, np.sqrt(0.5), np.sqrt(0.5)]]))[0]
    assert np.allclose(quarter[:3, :3] @ (1, 0, 0), (0, 1, 0))


def test_tum_files_keep_every_nanosecond(tmp_path):
    trajectory = Trajectory(1_700_000_000_123_456_789 + np.arange(5), walk(5).poses)
    write_tum(tmp_path / "a.txt", trajectory)
    again = read_trajectory(tmp_path / "a.txt", np.zeros(0, np.int64))
    assert again.stamps.tolist() == trajectory.stamps.tolist()
    assert np.allclose(again.poses, trajectory.poses, atol=1e-6)


def test_kitti_and_euroc_files(tmp_path):
    stamps = np.array([5, 6])
    (tmp_path / "kitti.txt").write_text("1 0 0 1 0 1 0 2 0 0 1 3\n0 -1 0 4 1 0 0 5 0 0 1 6\n")
    kitti = read_trajectory(tmp_path / "kitti.txt", stamps)
    assert kitti.positions.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert kitti.poses[1, 0, 1] == -1
    with pytest.raises(InputError, match="2 poses for 3 frames"):
        read_trajectory(tmp_path / "kitti.txt", np.arange(3))
    (tmp_path / "euroc.csv").write_text("#t, p\n1403636580838555648,1,2,3,0,0,0,1,9,9,9\n")
    euroc = read_trajectory(tmp_path / "euroc.csv", stamps)
    assert euroc.stamps.tolist() == [1403636580838555648]
    assert np.allclose(euroc.poses[0, :3, :3], np.diag([-1, -1, 1]))  # w = 0, z = 1


@pytest.mark.parametrize(("text", "message"), [
    ("1 2 3\n", "3 columns"), ("", "0 columns"), ("0 1 2 3 0 0 0 1\n1 2 3\n", "line 2"),
    ("0 1 2 3 0 0 0 0\n", "no rotation"), ("x 1 2 3 0 0 0 1\n", "stamp"), ("0 1 2 y 0 0 0 1\n", "'y'"),
])
def test_bad_trajectory_files_say_what_is_wrong(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_trajectory(tmp_path / "a.txt", np.zeros(0, np.int64))


def test_stamps_must_ascend():
    with pytest.raises(ValueError, match="ascending"):
        Trajectory(np.array([1, 1]), np.tile(np.eye(4), (2, 1, 1)))
    assert len(Trajectory.from_samples(np.array([3, 1, 3]), np.tile(np.eye(4), (3, 1, 1)))) == 2
