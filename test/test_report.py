"""Figures of hand-made runs, the pictures of tracks, and the page: right numbers, nothing fetched, nothing executed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("evo")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from skimage import data

from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.odometry import OdometryState
from kp_frontend.overlay import draw_tracks
from kp_frontend.pipeline import FrontendOutput
from kp_frontend.replay.evaluation import evaluate
from kp_frontend.replay.report import Recording, write_report
from kp_frontend.replay.result import Recorder, RunResult
from kp_frontend.replay.summary import (
    Evaluation,
    Percentiles,
    accuracy_rows,
    cost_rows,
    number,
    significant,
    table,
    write_json,
)
from kp_frontend.replay.trajectory import Trajectory

PERIOD = 100_000_000


def features(count: int) -> Features:
    keypoints = np.stack([np.arange(count) * 10.0 + 20, np.full(count, 30.0)], axis=1).astype(np.float32)
    return Features(keypoints, np.ones(count, np.float32), np.zeros((count, 32), np.uint8), "hamming")


def record(statuses: str, name: str = "orb", mode: str = "rgbd", **figures) -> RunResult:
    """A run of frames by status letter: t(racking), i(nitialising), l(ost), e(rror), d(ropped)."""
    recorder = Recorder(name, mode)
    for k, letter in enumerate(statuses):
        stamp = 10**9 + k * PERIOD
        if letter == "e":
            recorder.fail(stamp, "image is 1×1")
        elif letter == "d":
            recorder.drop(stamp)
        else:
            pose = np.eye(4)
            pose[:3, 3] = (np.cos(k), np.sin(k), k)
            status = {"t": "tracking", "i": "initialising", "l": "lost"}[letter]
            state = OdometryState(stamp, status, pose if letter == "t" else None, inliers=8 + k, tracked=20)
            count = k % 3 + 1
            ids = np.arange(1, count + 1, dtype=np.uint32)
            output = FrontendOutput(
                stamp, features(count), Tracks(ids, ids), Matches.empty(), None, 0, state, {"extract": 10.0 + k}
            )
            recorder.add(output, {"decode": 1.0, "total": 12.0 + k})
    return recorder.result(**{"seconds": 2.0, "cpu_seconds": 3.0, "memory_mb": 100.0, **figures})


def test_a_run_is_counted():
    entry = Evaluation(record("ittlted"))
    assert entry.share("tracking") == pytest.approx(100 * 3 / 7)
    assert entry.share("lost") == pytest.approx(100 / 7)
    assert entry.mean("keypoints") == pytest.approx((1 + 2 + 3 + 1 + 2) / 5)  # frames that failed do not count
    assert entry.mean("inliers") == pytest.approx((8 + 9 + 10 + 11 + 12) / 5)
    assert entry.run.track_lengths.tolist() == [5, 3, 1]
    assert entry.track_length == 3
    assert entry.rate == 3.5
    assert entry.processor == 150
    assert len(entry.run.trajectory) == 3
    assert entry.run.errors == ((10**9 + 5 * PERIOD, "image is 1×1"),)
    assert np.isnan(entry.run.timings["extract"][5])
    assert list(entry.times()) == ["decode", "extract", "total"]
    assert entry.times()["extract"].p50 == 12


def test_percentiles():
    assert Percentiles.of(np.r_[np.arange(101.0), np.nan]) == Percentiles(50, 90, 99)
    assert np.isnan(Percentiles.of(None).p50)
    assert np.isnan(Percentiles.of(np.array([np.nan])).p50)


def test_numbers_are_written_for_people():
    assert [significant(value) for value in (0.0123456, 12.3456, 1234.5, 0, float("nan"))] == [
        "0.0123", "12.3", "1234", "0", "–",
    ]
    assert number(float("nan")) == "–"
    assert number(2.345, 1) == "2.3"


def evaluated(name: str = "orb", offset: float = 0.0) -> Evaluation:
    run = record("it" + "t" * 28, name)
    truth = Trajectory(run.trajectory.stamps, run.trajectory.poses.copy())
    truth.poses[::2, 0, 3] += offset
    return Evaluation(run, evaluate(run.trajectory, truth, "se3"))


def test_rows_have_units_and_match_their_titles():
    evaluations = [evaluated("orb", 0.1), Evaluation(record("ttt", "sift", "features"))]
    for titles, rows in (accuracy_rows(evaluations), cost_rows(evaluations)):
        assert {len(row) for row in rows} == {len(titles)}
    titles, rows = accuracy_rows(evaluations)
    assert "ATE m (se3)" in titles
    assert rows[0][titles.index("ATE m (se3)")] == significant(evaluations[0].error.rmse)
    assert rows[1][titles.index("ATE m (se3)")] == "–"
    titles, rows = cost_rows(evaluations)
    assert rows[0][titles.index("decode ms")] == "1.0/1.0/1.0"


def test_json_has_null_for_what_is_unknown(tmp_path):
    results = [evaluated().to_json(), Evaluation(record("i")).to_json()]
    write_json(tmp_path / "deep" / "results.json", {"results": results})
    first, second = json.loads((tmp_path / "deep" / "results.json").read_text())["results"]
    assert first["trajectory_error"]["ate_rmse_m"] == pytest.approx(0, abs=1e-9)
    assert first["percent_of_frames"]["initialising"] == pytest.approx(100 / 30)
    assert first["milliseconds"]["extract"]["p50"] == pytest.approx(10 + 14.5)
    assert "trajectory_error" not in second
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "results.json"]
    write_json(tmp_path / "nan.json", {"value": float("nan")})
    assert json.loads((tmp_path / "nan.json").read_text())["value"] is None


def test_the_report_holds_everything_itself(tmp_path):
    picture = {10**9 + PERIOD: data.astronaut()[:100, :100].copy()}
    orb = Evaluation(record("ttttttet", "<script>alert(1)</script>", overlays=picture))
    sift = evaluated("sift", 0.05)
    words = ("no depth <here>",), ("python", "x y")
    recording = Recording("a & b", "rgbd", 30, 2.9, (640, 480), sift.error.truth, *words)
    write_report(tmp_path / "report.html", recording, [orb, sift])
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "no depth &lt;here&gt;" in page
    assert "python &#x27;x y&#x27;" in page
    assert "image is 1×1" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert page.count("data:image/svg+xml;base64,") >= 8
    assert not re.search(r'(src|href)="(?!data:)|url\(', page)
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)


def test_names_are_no_formulas(tmp_path):
    entry = evaluated(r"$\frac$.onnx", 0.1)
    recording = Recording("a", "rgbd", 30, 2.9, (640, 480), entry.error.truth, (), ())
    write_report(tmp_path / "report.html", recording, [entry])
    assert r"$\frac$.onnx" in (tmp_path / "report.html").read_text()


def test_a_report_without_ground_truth_or_pose(tmp_path):
    entry = Evaluation(record("tt", mode="features"))
    write_report(tmp_path / "report.html", Recording("bag", "features", 2, 0.1), [entry])
    page = (tmp_path / "report.html").read_text()
    assert "Without a calibration" in page
    assert "Frames that could not be used" not in page


def test_live_runs_show_latency_and_drops():
    run = record("ttdt", latency=np.array([5.0, 7.0, np.nan, 6.0], np.float32), dropped=(10**9 + 2 * PERIOD,))
    titles, rows = cost_rows([Evaluation(run)])
    assert rows[0][titles.index("dropped")] == "1"
    assert rows[0][titles.index("latency ms")].startswith("6.0/")
    assert Evaluation(run).to_json()["live"]["dropped_stamps_ns"] == [10**9 + 2 * PERIOD]


def test_tracks_are_drawn_where_they_are():
    image = np.full((100, 200), 128, np.uint8)
    now, before = features(3), features(3)
    before = Features(before.keypoints + np.float32([0, 30]), before.scores, before.descriptors, "hamming")
    tracks = Tracks(np.array([7, 8, 0], np.uint32), np.array([30, 2, 0], np.uint32))
    matches = Matches(np.array([0]), np.array([0]), np.zeros(1, np.float32))
    drawn = draw_tracks(image, now, tracks, matches, before)
    assert drawn.shape == (100, 200, 3)
    assert (image == 128).all()
    changed = (drawn != 128).any(axis=2)
    assert changed[45, 20]  # the tail of the first
    assert not changed[45, 26:].any()
    assert not changed[70:].any()
    oldest, younger, untracked = (drawn[30, x].astype(int) for x in (20, 30, 40))
    assert oldest[2] > younger[2] + 80  # yellow has more red than blue-green
    assert np.ptp(untracked) == 0
    assert np.array_equal(draw_tracks(image, features(0), Tracks.empty()), np.full((100, 200, 3), 128))


def test_a_wide_table_is_turned_on_a_narrow_terminal():
    titles, rows = ["features", "a long title", "another one"], [["orb", "1", "2"], ["sift", "3", "4"]]
    wide, narrow = table("figures", titles, rows, 60), table("figures", titles, rows, 30)
    assert [column.header for column in wide.columns] == titles
    assert [column.header for column in narrow.columns] == ["features", "orb", "sift"]
    assert list(narrow.columns[1].cells) == ["1", "2"]
