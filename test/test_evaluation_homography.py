"""Metrics on cases counted by hand, reading of sequences, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from kp_frontend.features import Features
from kp_training.__main__ import main
from kp_training.evaluation import homography as benchmark

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "homography"
SHIFT = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1.0]])


def _features(points, codes, scores=None) -> Features:
    """Points with descriptors that are the unit vectors number `codes`."""
    descriptors = np.eye(8, dtype=np.float32)[codes]
    scores = np.arange(len(points), 0, -1, np.float32) if scores is None else np.array(scores, np.float32)
    return Features(np.array(points, np.float32).reshape(-1, 2), scores, descriptors)


def _sides(first: Features, second: Features):
    return benchmark.Side(first, (100, 100)), benchmark.Side(second, (100, 100))


def test_visible_counts_the_border_pixels():
    points = np.array([[0, 0], [89, 99], [90, 50], [-11, 0], [-10, 0]])
    assert benchmark.visible(points, SHIFT, (100, 100)).tolist() == [True, True, False, False, True]


def test_repeatability_by_hand():
    """Two of two points of image 0 are found again, 0 and 2 px off; two of three of image 1."""
    points0 = np.array([[10, 10], [40, 40.0]])
    points1 = np.array([[20, 10], [50, 42], [80, 80.0]])
    repeated, error = benchmark.repeatability(points0, points1, SHIFT)
    assert repeated == pytest.approx(4 / 5)
    assert error == pytest.approx(1.0)
    assert benchmark.repeatability(points0, points1[2:], SHIFT)[0] == 0
    empty = benchmark.repeatability(np.zeros((0, 2)), points1, SHIFT)
    assert empty[0] == 0
    assert math.isnan(empty[1])


def test_frames_of_repeatability():
    """Under a zoom by 4, 8 px in image 1 are 2 px in image 0: KP2D sees a miss both ways, the other preset one."""
    zoom = np.diag([4, 4, 1.0])
    points0, points1 = np.array([[10, 10.0]]), np.array([[48, 40.0]])
    assert benchmark.repeatability(points0, points1, zoom, one_frame=True)[0] == 0
    assert benchmark.repeatability(points0, points1, zoom) == (0.5, 2.0)


def test_shared_preset_by_hand():
    """Four matches: exact, 2 px off, 20 px off, and one of a point that image 1 does not show."""
    first = _features([[10, 10], [20, 20], [30, 30], [95, 50]], [0, 1, 2, 3])
    second = _features([[20, 10], [30, 22], [40, 50], [60, 60]], [0, 1, 2, 3])
    metrics = benchmark.score_shared(*_sides(first, second), SHIFT, 10)
    assert metrics["matches"] == 4
    assert (metrics["MMA@1"], metrics["MMA@3"], metrics["MMA@10"]) == (0.25, 0.5, 0.5)
    assert metrics["points"] == 3, "three of image 0's points are shared"
    assert metrics["M.Score"] == pytest.approx(2 / 3)


def test_kp2d_preset_filters_before_it_cuts():
    """The best point is not shared: KP2D takes the next one instead, the other preset is left with one."""
    first = _features([[95, 50], [10, 10], [20, 20]], [0, 1, 2])
    second = _features([[20, 10], [30, 20]], [1, 2])
    assert benchmark.score_kp2d(*_sides(first, second), SHIFT, 2)["points"] == 2
    assert benchmark.score_shared(*_sides(first, second), SHIFT, 2)["points"] == 1


def test_kp2d_matching_score_by_hand():
    """One way: neighbours that fall outside do not count; exactly 3 px is a miss; ways are averaged."""
    query = _features([[10, 10], [20, 20], [30, 30]], [0, 1, 2])
    train = _features([[20, 10], [33, 20], [5, 5]], [0, 1, 2])
    back = np.linalg.inv(SHIFT)
    assert benchmark.one_way_score(query, train, back, (100, 100)) == pytest.approx(1 / 2)
    forth = benchmark.one_way_score(train, query, SHIFT, (100, 100))
    assert forth == pytest.approx(1 / 3)
    metrics = benchmark.score_kp2d(*_sides(query, train), SHIFT, 10)
    assert metrics["M.Score"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_corner_error_by_hand():
    points = np.array([[0, 0], [90, 0], [90, 90], [0, 90], [45, 30]], np.float32)
    assert benchmark.corner_error(points, points + [10, 0], SHIFT, (100, 100)) == pytest.approx(0, abs=1e-3)
    assert benchmark.corner_error(points, points + np.float32([10, 2]), SHIFT, (100, 100)) == pytest.approx(2, abs=1e-3)
    assert benchmark.corner_error(points[:3], points[:3], SHIFT, (100, 100)) == math.inf
    sides = _sides(_features(points[:4], range(4)), _features(points[:4] + [10, 2], range(4)))
    metrics = benchmark.score_shared(*sides, SHIFT, 10)
    assert (metrics["Cor-1"], metrics["Cor-3"], metrics["Cor-5"]) == (0, 1, 1)


@pytest.mark.parametrize("preset", list(benchmark.PRESETS))
@pytest.mark.parametrize("count", [0, 1])
def test_no_or_one_keypoint_scores_nothing(preset, count):
    few = _features([[50, 50]] * count, [0] * count)
    none = Features.empty(8)
    for first, second in ((few, none), (none, few), (none, none)):
        metrics = benchmark.PRESETS[preset].score(*_sides(first, second), SHIFT, 10)
        assert metrics["Rep"] == metrics["M.Score"] == metrics["Cor-5"] == 0


@pytest.fixture
def sequences(tmp_path):
    """Two textured sequences of one pair each: the identity, and a shift by (16, 8) of 160×128 images."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8), (0, 0), 1.5)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    for name, (x, y) in (("still", (0, 0)), ("moved", (16, 8))):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "1.png"), texture[:128, :160])
        cv2.imwrite(str(folder / "2.png"), texture[y : y + 128, x : x + 160])
        np.savetxt(folder / "H_1_2", np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]]))
    return tmp_path / "data"


@pytest.mark.parametrize("as_kp2d", [True, False])
def test_pairs_are_resized_with_their_homography(sequences, as_kp2d):
    pair, = benchmark.load_pairs(sequences / "moved", (320, 64), as_kp2d)
    assert pair.image0.shape == pair.image1.shape == (64, 320, 3)
    np.testing.assert_allclose(pair.homography[:2, 2], [-32, -4], atol=1e-9)


def test_centres_are_kept_under_zoom(tmp_path):
    """A dot in both images: after shrinking, our homography still maps it exactly, KP2D's is off."""
    for name, place in (("1", 16), ("2", 32)):
        image = np.zeros((128, 128), np.uint8)
        image[place : place + int(name) * 4, place : place + int(name) * 4] = 255
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    # 4 pixels about 17.5 become 8 about 35.5: x' + .5 = 2 (x + .5)
    np.savetxt(tmp_path / "H_1_2", [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    pair, = benchmark.load_pairs(tmp_path, (64, 64), as_kp2d=False)
    centres = [np.argwhere(image[..., 0] > 100).mean(0)[None] for image in (pair.image0, pair.image1)]
    np.testing.assert_allclose(benchmark.warp_points(pair.homography, centres[0]), centres[1], atol=1e-6)
    plain, = benchmark.load_pairs(tmp_path, (64, 64), as_kp2d=True)
    assert np.abs(benchmark.warp_points(plain.homography, centres[0]) - centres[1]).max() > 0.2


def test_command_end_to_end(sequences, tmp_path, capsys):
    arguments = ["evaluate", "homography", str(sequences), "--features", "orb", "sift", "--size", "full",
                 "--top-k", "200", "--json", str(tmp_path / "figures.json"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "preset shared" in table
    assert "preset kp2d" in table
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report == json.loads((tmp_path / "out" / "results.json").read_text())
    still = report["means"]["shared"]["orb"]["still"]
    assert (still["MMA@1"], still["M.Score"], still["LE"]) == (1.0, 1.0, 0.0)
    moved = report["pairs"]["shared"]["sift"][0]
    assert (moved["sequence"], moved["pair"]) == ("moved", "1-2")
    assert moved["MMA@1"] > 0.8
    assert cv2.imread(str(tmp_path / "out" / "mma.png")) is not None


@pytest.mark.parametrize(("change", "message"), [
    (["nothing"], "unknown benchmark 'nothing'; choose one of: homography"),
    (["homography", "--features", "orb"], "give the folder of sequences once"),
    (["homography", "{data}", "--data", "{data}", "--features", "orb"], "give the folder of sequences once"),
    (["homography", "{data}/none", "--features", "orb"], "no folder"),
    (["homography", "{empty}", "--features", "orb"], "holds no sequence"),
    (["homography", "{data}", "--features", "nope"], "unknown features 'nope'"),
    (["homography", "{data}", "--features", "orb", "--preset", "best"], "unknown preset 'best'; choose one of: kp2d"),
    (["homography", "{data}", "--features", "orb", "--size", "big"], "--size big: expected WIDTHxHEIGHT"),
    (["homography", "{data}", "--features", "orb", "--top-k", "0"], "--top-k 0: expected at least 1"),
])
def test_bad_input_is_one_line(sequences, tmp_path, capsys, change, message):
    (tmp_path / "empty").mkdir()
    words = [word.format(data=sequences, empty=tmp_path / "empty") for word in change]
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("file", "content", "message"), [
    ("H_1_2", "1 0 0\n0 1", "expected 3×3 numbers"),
    ("H_1_2", "0 0 0\n0 0 0\n0 0 0\n", "expected an invertible 3×3 matrix"),
    ("2.png", "no image", "no readable image 2.png"),
])
def test_broken_sequences(sequences, capsys, file, content, message):
    (sequences / "still" / file).write_text(content)
    assert main(["evaluate", "homography", str(sequences), "--features", "orb", "--size", "full"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data (shared/data/homography) is not here")
def test_orb_agrees_with_the_reference_table():
    """data/README.md's row of ORB on ubc: Rep .95, MMA .85 .97, M.Score .78, corners 1 1 1."""
    from kp_frontend import load_extractor

    def load(top_k):
        return load_extractor("orb", top_k=top_k)

    rows = benchmark.evaluate([SHARED / "ubc"], load, "shared", (640, 480), 1000)
    means = benchmark.averages(rows)["ubc"]
    for name, value in {"Rep": 0.95, "MMA@1": 0.85, "MMA@3": 0.97, "M.Score": 0.78, "Cor-1": 1.0}.items():
        assert means[name] == pytest.approx(value, abs=0.015), name
