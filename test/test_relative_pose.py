"""Relative pose: errors and areas worked by hand, solvers on exact points, pair lists, the command on known planes."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from posed_scenes import plane_scene

from kp_frontend.errors import InputError
from kp_frontend.geometry import invert, so3_exp
from kp_training.__main__ import main
from kp_training.evaluation.relative_pose import pairs as pair_sources
from kp_training.evaluation.relative_pose import scoring
from kp_training.evaluation.relative_pose.metrics import (
    area_under_curve,
    direction_error,
    epipolar_errors,
    pair_scores,
    position_error,
    rotation_error,
)
from kp_training.evaluation.relative_pose.pair_list import ListedPairs, turn_intrinsics, turned
from kp_training.evaluation.relative_pose.pairs import ByOverlap, ByStride, PosePair, ScenePairs, View, open_scene_pairs
from kp_training.evaluation.relative_pose.protocols import NORMALISED, PIXELS, choose_pose_setting, published_poses
from kp_training.evaluation.relative_pose.report import conclude_poses, other_figures, pose_figures, poses_to_json
from kp_training.evaluation.relative_pose.scoring import Attempts, PairResult, evaluate_poses, open_matcher, score_pair
from kp_training.evaluation.relative_pose.solvers import SOLVERS
from kp_training.evaluation.sequences import FULL, Size

INTRINSICS = np.array([[300.0, 0, 160], [0, 310, 120], [0, 0, 1]])
_scene = functools.cache(plane_scene)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _pose(rotation, translation) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = so3_exp(np.radians(np.array(rotation, float))), translation
    return pose


TRUTH = _pose((2, -5, 3), (0.3, -0.05, 0.1))


def _views(depth=None) -> tuple[View, View]:
    image = np.zeros((240, 320, 3), np.uint8)
    return View(image, depth, INTRINSICS, np.ones(2)), View(image, None, INTRINSICS, np.ones(2))


def _exact_matches(count: int, noise: float = 0.0, flat: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in both views of TRUTH, and their depth in the first."""
    rng = np.random.default_rng(0)
    points = rng.integers((20, 20), (300, 220), (count, 2)).astype(float)
    depths = np.full(count, 2.0) if flat else rng.uniform(1, 4, count)
    lifted = np.column_stack([points, np.ones(count)]) @ np.linalg.inv(INTRINSICS).T * depths[:, None]
    moved = (lifted @ TRUTH[:3, :3].T + TRUTH[:3, 3]) @ INTRINSICS.T
    seen = moved[:, :2] / moved[:, 2:] + rng.normal(0, noise, (count, 2))
    return points.astype(np.float32), seen.astype(np.float32), depths


def test_errors_of_poses_by_hand():
    assert rotation_error(_pose((0, 0, 0), (1, 0, 0)), _pose((0, 7, 0), (1, 0, 0))) == pytest.approx(7)
    assert rotation_error(_pose((0, 170, 0), (0, 0, 1)), _pose((0, -170, 0), (0, 0, 1))) == pytest.approx(20)
    right, back = _pose((0, 0, 0), (2, 0, 0)), _pose((0, 0, 0), (-3, 0, 0))
    diagonal = _pose((0, 0, 0), (1, 1, 0))
    assert direction_error(right, diagonal) == pytest.approx(45)
    assert direction_error(back, diagonal) == pytest.approx(135)
    assert direction_error(back, diagonal, folded=True) == pytest.approx(45)
    assert direction_error(right, right) == 0
    tiny = _pose((0, 0, 0), (1, 1e-9, 0))
    assert direction_error(right, tiny) == pytest.approx(np.degrees(1e-9)), "arccos would say 0"
    assert direction_error(right, np.eye(4)) == 0, "a camera that stood still has no direction to miss"
    assert position_error(right, back) == 5


def test_area_by_hand():
    """Of errors 2, 4 and ∞, up to 4: recall climbs to 1/3 at 2, where it stays (4 is not below 4)."""
    area = (2 * (1 / 3) / 2 + 2 / 3) / 4
    assert area_under_curve([math.inf, 2, 4], [4]) == pytest.approx([area])
    # Up to 10: triangle to (2, 1/3), trapezoid to (4, 2/3), flat from there.
    assert area_under_curve([4, math.inf, 2], [10]) == pytest.approx([(1 / 3 + 1 + 4) / 10])
    assert area_under_curve([0, 0, 0], [1, 5]) == [1, 1]
    assert area_under_curve([math.inf], [5]) == [0]
    assert area_under_curve([], [5]) == [0]


def test_area_against_a_slow_reference():
    """The polyline through (error, recall), integrated by a fine grid; sums of pairs' scores are near it."""
    errors = np.append(np.random.default_rng(1).exponential(4, 60), [math.inf] * 5)
    ordered = sorted(errors)
    for threshold in (1, 5, 20):
        corners = [(0.0, 0.0), *((error, (k + 1) / 65) for k, error in enumerate(ordered) if error < threshold)]
        corners.append((threshold, corners[-1][1]))
        grid = np.linspace(0, threshold, 200_001)
        reference = np.interp(grid, *zip(*corners)).mean()
        assert area_under_curve(errors, [threshold])[0] == pytest.approx(reference, abs=1e-4)
        assert pair_scores(errors, [threshold]).mean() == pytest.approx(reference, abs=1 / 65)


def test_epipolar_errors_by_hand():
    """A step to the right: lines are rows.  2 px up in image 1 are 2 px in both; doubled focal, doubled pixels."""
    truth = _pose((0, 0, 0), (0.1, 0, 0))
    rays = np.array([[0.1, 0.2], [0.0, -0.1]])
    moved = rays + [[0.3, 0], [0.05, 2 / 300]]
    pixels, normalised = epipolar_errors(truth, rays, moved, 300)
    np.testing.assert_allclose(pixels, [0, 2], atol=1e-9)
    np.testing.assert_allclose(normalised, [0, 2 * (2 / 300) ** 2], atol=1e-12)
    assert epipolar_errors(truth, rays, moved, 600)[0][1] == pytest.approx(4)
    still = epipolar_errors(np.eye(4), rays, moved, 300)[0]
    assert np.isfinite(still).all()


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_exact_points_give_the_exact_pose(solver):
    points0, points1, _ = _exact_matches(80)
    view, _ = _views()
    solution = SOLVERS[solver].solve(view.rays(points0), view.rays(points1), view.focal, 0)
    assert rotation_error(solution.pose, TRUTH) < 0.01
    assert direction_error(solution.pose, TRUTH) < 0.05
    assert solution.inliers == 80


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("count", [0, 1, 4])
def test_too_few_matches_have_no_pose(solver, count):
    points0, points1, _ = _exact_matches(count)
    view, _ = _views()
    assert SOLVERS[solver].solve(view.rays(points0), view.rays(points1), view.focal, 0) is None


def test_degenerate_points_do_not_raise():
    same = np.zeros((20, 2))
    for solver in SOLVERS.values():
        found = solver.solve(same, same, 300.0, 0)
        assert found is None or np.isfinite(found.pose).all()


def test_opencv_counts_points_far_away():
    """A short step: all points are more than 50 baselines away, where recoverPose would drop them by default."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-1, 1, (60, 2)), np.ones(60)]) * rng.uniform(20, 60, (60, 1))
    truth = _pose((0, 1, 0), (0.3, 0, 0))
    moved = points @ truth[:3, :3].T + truth[:3, 3]
    found = SOLVERS["opencv"].solve(points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:], 3000.0, 0)
    assert found.inliers > 50
    assert direction_error(found.pose, truth) < 2


def test_score_of_exact_matches_with_depth():
    points0, points1, depths = _exact_matches(80)
    depth = np.zeros((240, 320), np.float32)
    x, y = points0.astype(int).T
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            depth[y + dy, x + dx] = depths
    pair = PosePair("all", "0-1", "plane", 0, 1, TRUTH)
    result = score_pair(pair, *_views(depth), (points0, points1), choose_pose_setting("shared", repeats=2))
    assert (result.matches, result.precision) == (80, {PIXELS: 1.0, NORMALISED: 1.0})
    for solver in SOLVERS:
        assert result.errors(solver).shape == (2,)
        assert (result.errors(solver) < 0.1).all()
    assert max(result.pnp.rotation) < 0.02
    assert max(result.pnp.translation) < 1e-3
    assert min(result.pnp.inliers) > 40, "neighbours of other depth hide some points"
    shifted = points1 + np.float32([0, 30])
    wrong = score_pair(pair, *_views(), (points0, shifted), choose_pose_setting("shared"))
    assert wrong.precision[PIXELS] < 0.1
    assert wrong.pnp is None


def test_resized_views_keep_depth_and_rays():
    """Keypoints of a half-size image look depth up in the frame; the same point has the same ray."""
    image, depth = np.zeros((240, 320, 3), np.uint8), np.zeros((240, 320), np.float32)
    full, half = View.of(image, depth, INTRINSICS), View.of(image, depth, INTRINSICS, Size(160, 120))
    assert half.image.shape == (120, 160, 3)
    np.testing.assert_allclose(half.frame_points(np.array([[10.0, 20]])), [[20.5, 40.5]])
    np.testing.assert_allclose(half.rays(np.array([[10.0, 20]])), full.rays(np.array([[20.5, 40.5]])))
    assert half.focal == full.focal / 2


def test_nothing_is_a_failure():
    """No match: errors are ∞, precision and areas 0; as by any protocol, nothing is left out."""
    none = np.zeros((0, 2), np.float32)
    pair, setting = PosePair("all", "0-1", "plane", 0, 1, TRUTH), choose_pose_setting("shared")
    result = score_pair(pair, *_views(np.ones((240, 320), np.float32)), (none, none), setting)
    assert result.precision == {PIXELS: 0, NORMALISED: 0}
    for solver in SOLVERS:
        assert (result.errors(solver) == math.inf).all()
        figures = pose_figures([result], solver)
        assert figures["AUC@20"][0] == 0
        assert figures["rot °"][0] == math.inf
    assert result.pnp.rotation == (math.inf,) * 3
    assert other_figures([result], PIXELS, metric=True)["PnP cm p50"][0] == math.inf
    json.dumps(poses_to_json(conclude_poses(setting, {"orb": [result]}, True)), allow_nan=False)


def _result(errors, translation=None, pair="0-1", source="a", **changes) -> PairResult:
    attempts = Attempts(tuple(errors), tuple(translation or [0.0] * len(errors)), (10,) * len(errors))
    return replace(PairResult("all", pair, source, 1.0, False, 20, {PIXELS: 0.5, NORMALISED: 0.5},
                              {"opencv": attempts}, None), **changes)


def test_figures_by_hand():
    """Two pairs, two seeds: the area is the mean of both seeds' areas, the median is over all four errors."""
    results = [_result([1, 3], [2, 0]), _result([8, math.inf], [0, math.inf])]
    figures = pose_figures(results, "opencv")
    expected = np.mean([area_under_curve([2, 8], [10]), area_under_curve([3, math.inf], [10])])
    assert figures["AUC@10"][0] == pytest.approx(expected)
    assert figures["rot °"][0] == 8, "of 1 3 8 ∞, the upper of the middle two: none is made between 8 and ∞"
    assert figures["inliers"][0] == 10


def test_rotation_alone_where_the_translation_is_short():
    """The refined ScanNet protocol: a direction of a translation up to .15 does not count."""
    points0, points1, _ = _exact_matches(60)
    view, _ = _views()
    for length, only in ((0.1, True), (0.2, False)):
        truth = TRUTH.copy()
        truth[:3, 3] = np.array([0, 1, 0]) * length  # not where the points say that the camera went
        pair = PosePair("all", "0-1", "plane", 0, 1, truth)
        refined = score_pair(pair, view, view, (points0, points1), choose_pose_setting("scannet_refined"))
        assert refined.rotation_only is only
        assert (refined.errors("poselib") < 1).all() == only
        plain = score_pair(pair, view, view, (points0, points1), choose_pose_setting("scannet"))
        assert not plain.rotation_only
    folded = score_pair(PosePair("all", "0-1", "plane", 0, 1, _flipped(TRUTH)), view, view, (points0, points1),
                        choose_pose_setting("scannet"))
    assert (folded.errors("opencv") < 1).all(), "the papers do not look at the translation's sign"
    strict = score_pair(PosePair("all", "0-1", "plane", 0, 1, _flipped(TRUTH)), view, view, (points0, points1),
                        choose_pose_setting("shared"))
    assert (strict.errors("opencv") > 179).all()


def _flipped(pose: np.ndarray) -> np.ndarray:
    return pose * np.array([1, 1, 1, -1]) + np.diag([0, 0, 0, 2])


def test_differences_are_paired():
    results = {"a": [_result([10.0], pair=str(k), source=str(k)) for k in range(4)],
               "b": [_result([5.0], pair=str(k), source=str(k)) for k in range(4)]}
    setting = choose_pose_setting("shared", solvers=["opencv"], repeats=1)
    outcome = conclude_poses(setting, {spec: [*entries[:3], None] for spec, entries in results.items()}, True)
    assert outcome.unreadable == 1
    assert outcome.differences["all"]["b"]["opencv"]["AUC@20"] == (0.25, 0.0)
    assert "a" not in outcome.differences["all"]


def test_pairs_that_cannot_be_read_are_one_error():
    with pytest.raises(InputError, match="none of 2 pairs of views can be read"):
        conclude_poses(choose_pose_setting("shared"), {"orb": [None, None]}, True)


def test_published_figures_need_the_same_protocol():
    assert published_poses(choose_pose_setting("scannet"), 1500)["SuperPoint (PrP)"] == (0.0756, 0.1776, 0.3043)
    assert list(published_poses(choose_pose_setting("yfcc"), 4000)) == ["SuperPoint (PrP)", "Hyb", "SuperPoint-PrP"]
    silk = choose_pose_setting("yfcc", Size(long=1600), 20_000)
    assert list(published_poses(silk, 4000)) == ["SiLK", "SiLK-PrP", "Aug"]
    assert not silk.changed
    assert choose_pose_setting("yfcc", Size(long=1600)).changed == "--size long1600"
    for setting, pairs in ((choose_pose_setting("scannet"), 10), (choose_pose_setting("shared"), 1500),
                           (choose_pose_setting("scannet", Size(320, 240)), 1500),
                           (choose_pose_setting("yfcc", Size(long=1600)), 4000)):
        assert published_poses(setting, pairs) == {}


def test_pairs_by_stride_and_overlap(tmp_path, monkeypatch):
    scene = _scene(6, step=0.4)
    source = ScenePairs([scene], ByStride((1, 3)))
    assert [(pair.group, pair.first[1], pair.second[1]) for pair in source.pairs] == [
        ("stride 1", 0, 1), ("stride 3", 0, 3), ("stride 1", 1, 2), ("stride 3", 1, 4), ("stride 1", 2, 3),
        ("stride 3", 2, 5), ("stride 1", 3, 4), ("stride 1", 4, 5)]
    np.testing.assert_allclose(source.pairs[1].second_from_first, invert(scene.poses[3]) @ scene.poses[0])
    assert len(ScenePairs([scene], ByStride((1,)), most=2).pairs) == 2
    monkeypatch.setattr(pair_sources, "cache_folder", lambda name: tmp_path)
    near, far = (ScenePairs([scene], ByOverlap(*limits)).pairs for limits in ((0.8, 1), (0.2, 0.8)))
    assert near
    assert far
    steps = [np.mean([pair.second[1] - pair.first[1] for pair in pairs]) for pairs in (near, far)]
    assert steps[0] < steps[1]
    assert len(ScenePairs([scene], ByOverlap(0.2, 1, count=3)).pairs) == 3


@pytest.mark.parametrize(("arguments", "message"), [
    (((5,), None, None, 0), "no two frames are a pair by stride 5"),
    (((0,), None, None, 0), "--stride 0"),
    (((1,), (0.1, 0.2), None, 0), "give one"),
    ((None, (0.9, 0.2), None, 0), "--overlap 0.9 0.2"),
    (((1,), None, 0, 0), "--pairs 0"),
])
def test_bad_choices(arguments, message):
    with pytest.raises(InputError, match=message):
        open_scene_pairs([_scene(4)], *arguments)


def test_scenes_without_order_or_depth():
    unordered, bare = replace(_scene(4), ordered=False), _scene(4, depth=False)
    assert isinstance(open_scene_pairs([unordered], None, None, None, 0).choice, ByOverlap)
    assert isinstance(open_scene_pairs([bare], [1], None, None, 0).choice, ByStride)
    with pytest.raises(InputError, match="give --overlap"):
        open_scene_pairs([unordered], [1], None, None, 0)
    with pytest.raises(InputError, match="no depth"):
        open_scene_pairs([bare], None, (0.2, 0.9), None, 0)


def test_rooms_are_those_that_training_never_sees(monkeypatch):
    asked = []
    monkeypatch.setattr("kp_training.data.rooms.source.open_rooms",
                        lambda *words, **names: asked.append((words, names)))
    for data in ("rooms", "rooms:2"):
        pair_sources.open_scenes(data)
    assert asked == [((count, 480, 640), {"held_out": True}) for count in (3, 2)]
    for data in ("rooms:x", "rooms:0"):
        with pytest.raises(InputError, match="rooms:3"):
            pair_sources.open_scenes(data)
    with pytest.raises(InputError, match="nowhere"):
        pair_sources.open_scenes("posed:/nowhere")


def test_quarter_turns():
    """A pixel of the stored image, its ray turned, is the pixel of the turned image."""
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    intrinsics = np.array([[5.0, 0, 1.3], [0, 6, 0.8], [0, 0, 1]])
    for turns in range(4):
        after = turn_intrinsics(intrinsics, turns, *image.shape)
        rotated = np.rot90(image, turns)
        for y in range(3):
            for x in range(4):
                ray = turned(turns)[:3, :3] @ np.linalg.inv(intrinsics) @ [x, y, 1]
                column, row, _ = after @ ray
                assert rotated[round(row), round(column)] == image[y, x]
                assert (column, row) == pytest.approx((round(column), round(row)))


def _write_list(folder: Path, scene, codes=(0, 0), count=2) -> Path:
    """A pair list of neighbours of `scene`, its images stored so that `codes` bring them upright."""
    lines = []
    for k in range(count):
        fields, cameras = [], []
        for number, code in zip((k, k + 1), codes):
            image = scene[number].image
            stored = np.ascontiguousarray(np.rot90(image, -code))
            cv2.imwrite(str(folder / f"{k}_{number}.png"), stored)
            fields.append(f"{k}_{number}.png")
            cameras.append(turn_intrinsics(scene.intrinsics[number], -code % 4, *image.shape[:2]))
        upright = invert(scene.poses[k + 1]) @ scene.poses[k]
        stored_pose = turned(codes[1]).T @ upright @ turned(codes[0])
        numbers = np.concatenate([cameras[0].ravel(), cameras[1].ravel(), stored_pose.ravel()])
        lines.append(" ".join([*fields, *map(str, codes), *(repr(float(value)) for value in numbers)]))
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder / "pairs.txt"


@pytest.mark.parametrize("codes", [(0, 0), (1, 3), (2, 0)])
def test_pair_list_with_rotation_codes(tmp_path, codes):
    """Whatever way the images are stored, turned upright they are the scene's frames, K and relative pose."""
    scene = _scene(3)
    source = ListedPairs(tmp_path, _write_list(tmp_path, scene, codes))
    pair = source.pairs[1]
    np.testing.assert_allclose(pair.second_from_first, invert(scene.poses[2]) @ scene.poses[1], atol=1e-12)
    for key, number in ((pair.first, 1), (pair.second, 2)):
        view = source.view(key, FULL)
        np.testing.assert_array_equal(view.image, scene[number].image)
        np.testing.assert_allclose(view.intrinsics, scene.intrinsics[number])


def test_bad_pair_lists(tmp_path):
    file = _write_list(tmp_path, _scene(3))
    good = file.read_text().splitlines()[0].split()
    for fields, message in (
        (good[:-1], "37 fields"), ([*good[:2], "5", *good[3:]], r"rotation codes \[5, 0\]"),
        ([*good[:4], "x", *good[5:]], "could not convert"), (["none.png", *good[1:]], "no image"),
        ([*good[:-16], *["0"] * 16], "no rotation"), ([], "lists no pair"),
    ):
        file.write_text(" ".join(fields) + "\n")
        with pytest.raises(InputError, match=message):
            ListedPairs(tmp_path, file)
    with pytest.raises(InputError, match="cannot be read"):
        ListedPairs(tmp_path, tmp_path / "missing.txt")


def test_results_do_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the worker finds the scene's class
    scene = _scene(5, 120, 160, unreadable=(4,))
    source = ScenePairs([scene], ByStride((1,)))
    setting = choose_pose_setting("shared", top_k=200, repeats=1)
    monkeypatch.setattr(scoring, "CHUNK", 2)
    one, two = (evaluate_poses(source, ["orb", "gftt_lk"], setting, jobs) for jobs in (1, 2))
    assert one == two
    assert one["orb"][3] is None, "its second frame cannot be read"
    for spec in ("orb", "gftt_lk"):
        assert min(result.precision[PIXELS] for result in one[spec][:3]) > 0.5
        assert max(result.pnp.rotation[0] for result in one[spec][:3]) < 5, "a pixel is half a degree"


def test_flow_forgets_the_pair_before():
    """Images of another size or scene have nothing in common with the pair before them."""
    first, second = (_scene(2, seed=seed) for seed in (0, 1))
    matcher = open_matcher("gftt_lk", 100)
    fresh = matcher.match(first[0].image, first[1].image)
    matcher.match(second[1].image, second[0].image)
    again = matcher.match(first[0].image, first[1].image)
    np.testing.assert_array_equal(fresh[0], again[0])
    np.testing.assert_array_equal(fresh[1], again[1])
    assert len(fresh[0]) > 10
    assert len(matcher.match(first[0].image, first[1].image[:-8])[0]) == 0


def test_command_end_to_end(tmp_path, capsys):
    file = _write_list(tmp_path, _scene(3, 120, 160))
    figures, output = tmp_path / "figures.json", tmp_path / "out"
    arguments = ["evaluate", "relative_pose", str(tmp_path), "--pair-list", str(file), "--features", "orb", "gftt_lk",
                 "--top-k", "300", "--repeats", "2", "--jobs", "1", "--json", str(figures), "--output", str(output)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "relative pose, preset shared, full, 300 points (--top-k 300: not as published)" in table
    assert "PoseLib" in table
    assert "seeds 0 to 1, averaged" in table
    assert "gftt_lk − orb" in table
    report = json.loads(figures.read_text())
    assert report["benchmark"] == "relative_pose"
    assert len(report["pairs"]["orb"]) == 2
    assert len(report["pairs"]["orb"][0]["solved"]["opencv"]["rotation"]) == 2
    assert set(report["figures"]["mean"]["orb"]) == {"poselib", "opencv"}
    assert report == json.loads((output / "results.json").read_text())
    assert cv2.imread(str(output / "recall.png")) is not None
    assert len(list((output / "worst").iterdir())) == 4


@pytest.mark.parametrize(("change", "message"), [
    (["--preset", "best"], "unknown preset 'best'"), (["--solver", "magic"], "unknown solver 'magic'"),
    (["--repeats", "0"], "--repeats 0"), (["--stride", "1"], "leave --stride"), (["--data", "x"], "give the data once"),
])
def test_bad_input_is_one_line(tmp_path, capsys, change, message):
    file = _write_list(tmp_path, _scene(2), count=1)
    arguments = ["evaluate", "relative_pose", str(tmp_path), "--features", "orb", "--pair-list", str(file)]
    assert main([*arguments, *change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data are not here")
def test_reference_figures(tmp_path):
    """data/README.md, measured by independent code: SIFT on new_tsukuba at stride 5 has AUC@5 .85 and @20 .96."""
    figures = tmp_path / "figures.json"
    scene = SHARED / "vo" / "new_tsukuba"
    assert main(["evaluate", "relative_pose", str(scene), "--features", "sift", "--stride", "5", "--pairs", "16",
                 "--solver", "poselib", "--repeats", "1", "--jobs", "1", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["figures"]["stride 5"]["sift"]["poselib"]
    assert found["AUC@5"] == pytest.approx(0.85, abs=0.08)
    assert found["AUC@20"] == pytest.approx(0.96, abs=0.03)
