"""The replay command from a bag to its report, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("evo")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("psutil")

from skimage import data

from kp_frontend.__main__ import main
from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.isolated import Ended
from kp_frontend.replay import session
from kp_frontend.replay.bag import BagOptions, open_bag
from kp_frontend.replay.bag_writer import BagWriter
from kp_frontend.replay.feature_archive import read_features
from kp_frontend.replay.isolated import run_isolated
from kp_frontend.replay.offline import RunOptions, run_offline
from kp_frontend.replay.trajectory import read_tum

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CAMERA = CameraModel(320, 240, np.array([[300, 0, 160], [0, 300, 120], [0, 0, 1.0]]))
DEPTH = 2.0
FRAMES = 12
PERIOD = 100_000_000
PHOTO = data.camera()


def view(k: int) -> np.ndarray:
    """A photograph at 2 m that the camera passes, right and then down."""
    across, down = 3 * min(k, 6), 3 * max(k - 6, 0)
    return np.ascontiguousarray(PHOTO[120 + down : 360 + down, 80 + across : 400 + across])


def truth(k: int) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, 3] = np.array([3 * min(k, 6), 3 * max(k - 6, 0)]) * DEPTH / 300
    return pose


def write(path: Path, camera: CameraModel = CAMERA, frames: int = FRAMES) -> Path:
    with BagWriter(path, camera) as bag:
        for k in range(frames):
            bag.write(10**9 + k * PERIOD, view(k), np.full((240, 320), DEPTH, np.float32), world_from_camera=truth(k))
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("replay") / "bag")


@pytest.fixture(scope="module")
def replayed(bag) -> Path:
    folder = bag.parent / "out"
    arguments = ["replay", str(bag), "--features", "orb", "gftt_lk", "orb:top_k=200", "--output", str(folder)]
    assert main([*arguments, "--json", str(folder / "copy.json"), "--save-features"]) == 0
    return folder


def test_a_bag_becomes_figures(replayed):
    content = json.loads((replayed / "results.json").read_text())
    assert content == json.loads((replayed / "copy.json").read_text())
    assert content["recording"]["mode"] == "rgbd"
    assert content["schema_version"] == 1
    assert {"versions", "machine", "revision", "options"} <= content.keys()
    assert [entry["features"] for entry in content["results"]] == ["orb", "gftt_lk", "orb:top_k=200"]
    for entry in content["results"]:
        assert entry["frames"] == FRAMES
        assert entry["backend"] == "opencv"
        assert entry["percent_of_frames"] == {"tracking": 100.0}
        assert entry["trajectory_error"]["alignment"] == "se3"
        assert entry["trajectory_error"]["ate_rmse_m"] < 0.01
        assert entry["trajectory_error"]["path_m"] == pytest.approx(0.22)
        assert entry["peak_memory_mb"] > 30
        assert entry["milliseconds"]["total"]["p99"] >= entry["milliseconds"]["total"]["p50"] > 0
    assert content["results"][2]["mean_per_frame"]["keypoints"] <= 200


def test_a_bag_becomes_a_report_pictures_and_trajectories(replayed):
    page = (replayed / "report.html").read_text()
    assert all(f"<h3>{name}</h3>" in page for name in ("orb", "gftt_lk"))
    assert len(list((replayed / "overlays").glob("gftt_lk_*.png"))) == 6
    for name in ("orb", "gftt_lk", "orb_top_k=200", "ground_truth"):
        path = read_tum(replayed / "trajectories" / f"{name}.txt")
        assert len(path) == FRAMES
        assert np.linalg.norm(path.positions[-1] - path.positions[0]) == pytest.approx(0.158, abs=0.02)


def test_saved_features_are_those_of_the_frontend(replayed, bag):
    saved = read_features(replayed / "features" / "orb.npz")
    with open_bag(bag) as sequence:
        run = run_offline(sequence, "orb")
        assert list(saved) == sequence.stamps.tolist()
    assert [len(found) for found in saved.values()] == run.counts["keypoints"].tolist()
    with pytest.raises(InputError, match="no archive"):
        read_features(replayed / "results.json")


def test_a_process_of_its_own_gives_the_same(bag):
    steps = []
    apart = run_isolated(bag, BagOptions(), "orb", RunOptions(max_frames=5), lambda *done: steps.append(done))
    with open_bag(bag) as sequence:
        here = run_offline(sequence, "orb", RunOptions(max_frames=5))
    assert steps == [(k, 5) for k in range(1, 6)]
    assert len(apart) == 5
    assert all(np.array_equal(apart.counts[name], here.counts[name]) for name in here.counts)
    assert np.allclose(apart.trajectory.poses, here.trajectory.poses)
    with pytest.raises(InputError, match="unknown features 'nope'"):
        run_isolated(bag, BagOptions(), "nope", RunOptions())


def test_frames_that_cannot_be_used_are_counted_and_the_run_goes_on(tmp_path):
    class Careless(BagWriter):
        def write_bare(self, stamp: int, image: np.ndarray) -> None:
            self._write_image("/camera/image_raw", stamp, image)

    with Careless(tmp_path / "bag", CAMERA) as writer:
        for k in range(8):
            if k == 4:
                writer.write_bare(10**9 + k * PERIOD, view(k)[:200])
            else:
                writer.write(10**9 + k * PERIOD, view(k), np.full((240, 320), DEPTH, np.float32))
    with open_bag(tmp_path / "bag") as sequence:
        run = run_offline(sequence, "orb")
    assert run.status.tolist() == ["tracking"] * 4 + ["error"] + ["tracking"] * 3
    (stamp, message), = run.errors
    assert stamp == 10**9 + 4 * PERIOD
    assert "320×200" in message


def test_uncalibrated_images_are_measured_without_a_trajectory(tmp_path, capsys):
    path = write(tmp_path / "bag", frames=4)
    assert main(["replay", str(path), "--features", "orb", "--output", str(tmp_path / "calibrated")]) == 0
    with sqlite3.connect(path / "bag.db3") as database:
        infos = "SELECT id FROM topics WHERE name LIKE '%camera_info'"
        database.execute(f"DELETE FROM messages WHERE topic_id IN ({infos})")
    assert main(["replay", str(path), "--features", "orb", "--output", str(tmp_path / "out")]) == 0
    assert "no trajectory; give --info TOPIC or --calibration FILE" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["mode"] == "features"
    assert result["mean_per_frame"]["matches"] > 100
    assert "trajectory_error" not in result


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere", "--features", "orb"], "no bag nowhere"),
    (["BAG", "--features", "nope"], "unknown features 'nope'; choose one of"),
    (["BAG", "--features", "orb", "--image", "/cam9"], "no topic /cam9 (--image) in the bag; it has /camera/"),
    (["BAG", "--features", "orb", "--mode", "stereo"], "no second image was found"),
    (["BAG", "--features", "orb", "--ground-truth", "poses.txt"], "no topic poses.txt"),
    (["BAG", "--features", "orb", "--calibration", "lens.yaml"], "lens.yaml"),
    (["BAG", "--features", "orb", "--max-frames", "0"], "--max-frames is 0"),
    (["BAG", "--features", "orb", "--compare"], "--live"),
    (["BAG", "--features", "orb", "--rate", "-1"], "--rate is -1"),
    (["BAG", "--features", "a/net.onnx", "b/net.onnx"], "files of the same name"),
])
def test_what_cannot_be_replayed_says_why_in_one_line(bag, tmp_path, capsys, arguments, message):
    words = [str(bag) if word == "BAG" else word for word in arguments]
    assert main(["replay", *words, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "message"), [
    (["--output", "FILE"], "cannot make folder .*file"),
    (["--output", "OUT", "--json", "FILE/x.json"], "cannot make folder .*file"),
    (["--output", "OUT", "--json", "FOLDER"], "--json .*folder is a folder, expected a file"),
])
def test_what_cannot_be_written_is_refused_before_the_work(bag, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(session, "run_isolated", lambda *_: pytest.fail("ran"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    places = {"FILE": tmp_path / "file", "OUT": tmp_path / "out", "FOLDER": tmp_path / "folder"}
    words = [re.sub("^(FILE|OUT|FOLDER)", lambda found: str(places[found[0]]), word) for word in options]
    assert main(["replay", str(bag), "--features", "orb", *words]) == 2
    assert re.fullmatch(f"error: {message}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("error", [Ended("gftt_lk", -9), MemoryError(), InputError("the node ended")])
def test_features_that_cannot_be_run_do_not_cost_the_others(bag, tmp_path, capsys, monkeypatch, error):
    def run(path, options, spec, *rest):
        if spec == "gftt_lk":
            raise error
        return run_isolated(path, options, spec, *rest)

    monkeypatch.setattr(session, "run_isolated", run)
    message = str(error) or "out of memory"
    out = tmp_path / "out"
    assert main(["replay", str(bag), "--features", "gftt_lk", "orb", "--output", str(out), "--max-frames", "4"]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: gftt_lk: {message}\n"
    assert "orb" in said.out
    content = json.loads((out / "results.json").read_text())
    assert [entry["features"] for entry in content["results"]] == ["orb"]
    assert content["failed"] == {"gftt_lk": message}
    assert f"<li>gftt_lk: {message}</li>" in (out / "report.html").read_text()
    assert main(["replay", str(bag), "--features", "gftt_lk", "--output", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: gftt_lk: {message}\n"
    assert not (tmp_path / "none" / "results.json").exists()


def test_a_trajectory_survives_its_evaluation(bag, tmp_path, monkeypatch):
    def fail(*_):
        raise np.linalg.LinAlgError

    monkeypatch.setattr(session, "evaluate", fail)
    with pytest.raises(np.linalg.LinAlgError):
        main(["replay", str(bag), "--features", "orb", "--output", str(tmp_path / "out"), "--max-frames", "4"])
    assert len(read_tum(tmp_path / "out" / "trajectories" / "orb.txt")) == 4


def test_make_bag_and_replay_follow_a_real_camera(tmp_path):
    scene = SHARED / "rgbd" / "redkitchen_a"
    if not scene.is_dir():
        pytest.skip("the development data is not here")
    assert main(["make_bag", str(scene), "--output", str(tmp_path / "bag"), "--frames", "20", "--compressed"]) == 0
    assert main(["replay", str(tmp_path / "bag"), "--features", "gftt_lk", "--output", str(tmp_path / "out")]) == 0
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["percent_of_frames"] == {"tracking": 100.0}
    assert result["trajectory_error"]["ate_rmse_m"] < 0.02
