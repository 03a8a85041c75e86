"""Metrics on cases counted by hand and against slow references; reading of sequences."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from kp_frontend.errors import InputError
from kp_frontend.features import Features
from kp_training.evaluation import homography as benchmark
from kp_training.evaluation import metrics, protocols
from kp_training.evaluation.metrics import Matched, Side
from kp_training.evaluation.protocols import PRESETS, choose_setting
from kp_training.evaluation.sequences import FULL, Loading, Sequences, Size, load_pairs
from kp_training.evaluation.summary import summarize
from kp_training.geometry.homography import warp_points

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "homography"
SHIFT = np.array([[1, 0, 10], [0, 1, 0], [0, 0, 1.0]])


def _features(points, codes, scores=None) -> Features:
    """Points with descriptors that are the unit vectors number `codes`."""
    descriptors = np.eye(8, dtype=np.float32)[codes]
    scores = np.arange(len(points), 0, -1, np.float32) if scores is None else np.array(scores, np.float32)
    return Features(np.array(points, np.float32).reshape(-1, 2), scores, descriptors)


def _sides(first: Features, second: Features):
    return Side(first, (100, 100)), Side(second, (100, 100))


def test_visible_counts_the_border_pixels():
    points = np.array([[0, 0], [89, 99], [90, 50], [-11, 0], [-10, 0], [89.5, 50]])
    assert metrics.visible(points, SHIFT, (100, 100)).tolist() == [True, True, False, False, True, False]
    assert metrics.visible(points, SHIFT, (100, 100), margin=1).tolist() == [True, True, False, False, True, True]


def test_repeatability_by_hand():
    """Two of two points of image 0 are found again, 0 and 2 px off; two of three of image 1."""
    points0 = np.array([[10, 10], [40, 40.0]])
    points1 = np.array([[20, 10], [50, 42], [80, 80.0]])
    repeated, error = metrics.repeatability(points0, points1, SHIFT)
    assert repeated == pytest.approx(4 / 5)
    assert error == pytest.approx(1.0)
    assert metrics.repeatability(points0, points1, SHIFT, radius=1)[0] == pytest.approx(2 / 5)
    assert metrics.repeatability(points0, points1[2:], SHIFT)[0] == 0
    empty = metrics.repeatability(np.zeros((0, 2)), points1, SHIFT)
    assert empty[0] == 0
    assert math.isnan(empty[1])


def test_frames_of_repeatability():
    """Under a zoom by 4, 8 px in image 1 are 2 px in image 0: KP2D sees a miss both ways, the other preset one."""
    zoom = np.diag([4, 4, 1.0])
    points0, points1 = np.array([[10, 10.0]]), np.array([[48, 40.0]])
    assert metrics.repeatability(points0, points1, zoom, one_frame=True)[0] == 0
    assert metrics.repeatability(points0, points1, zoom) == (0.5, 2.0)


def test_nearest_distances_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    points0, points1 = rng.uniform(0, 9, (23, 2)), rng.uniform(0, 9, (17, 2))
    monkeypatch.setattr(metrics, "_BLOCK", 40)
    forth, back = metrics.nearest_distances(points0, points1)
    np.testing.assert_allclose(forth, [min(math.dist(p, q) for q in points1) for p in points0])
    np.testing.assert_allclose(back, [min(math.dist(p, q) for p in points0) for q in points1])


def test_shared_preset_by_hand():
    """Four matches: exact, 2 px off, 20 px off, and one of a point that image 1 does not show."""
    first = _features([[10, 10], [20, 20], [30, 30], [95, 50]], [0, 1, 2, 3])
    second = _features([[20, 10], [30, 22], [40, 50], [60, 60]], [0, 1, 2, 3])
    scores = protocols.score_shared(*_sides(first, second), SHIFT, 10)
    assert scores["matches"] == 4
    assert (scores["MMA@1"], scores["MMA@3"], scores["MMA@10"]) == (0.25, 0.5, 0.5)
    assert scores["points"] == 3, "three of image 0's points are shared"
    assert scores["M.Score"] == pytest.approx(2 / 3)


def test_kp2d_preset_filters_before_it_cuts():
    """The best point is not shared: KP2D takes the next one instead, the other presets are left with one."""
    first = _features([[95, 50], [10, 10], [20, 20]], [0, 1, 2])
    second = _features([[20, 10], [30, 20]], [1, 2])
    assert protocols.score_kp2d(*_sides(first, second), SHIFT, 2)["points"] == 2
    assert protocols.score_shared(*_sides(first, second), SHIFT, 2)["points"] == 1
    assert protocols.score_silk(*_sides(first, second), SHIFT, 2)["Rep@3"] == pytest.approx(2 / 3)


def test_kp2d_matching_score_by_hand():
    """One way: neighbours that fall outside do not count; exactly 3 px is a miss; ways are averaged."""
    query = _features([[10, 10], [20, 20], [30, 30]], [0, 1, 2])
    train = _features([[20, 10], [33, 20], [5, 5]], [0, 1, 2])
    back = np.linalg.inv(SHIFT)
    assert metrics.one_way_score(query, train, back, (100, 100)) == pytest.approx(1 / 2)
    forth = metrics.one_way_score(train, query, SHIFT, (100, 100))
    assert forth == pytest.approx(1 / 3)
    scores = protocols.score_kp2d(*_sides(query, train), SHIFT, 10)
    assert scores["M.Score"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_silk_preset_by_hand():
    """All matches 2 px off: HAUC is what is left of ε; MS divides by all detected points of both images."""
    corners = np.array([[0, 0], [80, 0], [80, 80], [0, 80], [45, 30]], np.float32)
    first = _features([*corners, [50, 90]], [0, 1, 2, 3, 4, 5])
    second = _features([*(corners + np.float32([10, 2])), [3, 3], [5, 60]], [0, 1, 2, 3, 4, 6, 7])
    scores = protocols.score_silk(*_sides(first, second), SHIFT, 10)
    assert (scores["HAcc@3"], scores["HAcc@5"]) == (1, 1)
    assert (scores["HAUC@3"], scores["HAUC@5"]) == pytest.approx((1 / 3, 3 / 5), abs=1e-3)
    assert (scores["MMA@3"], scores["MMA@1"]) == (1, 0)
    assert scores["MS"] == pytest.approx(5 / 6.5)
    # Image 1 shows all six of image 0's points; image 0 shows five of image 1's seven: two lie left of it.
    assert scores["Rep@3"] == pytest.approx((5 + 5) / (6 + 5))


def test_d2net_preset_by_hand():
    """Two matches, exact and 4 px off: MMA is ½ up to 3 px and 1 from 4 px on; weights 1.9, 1.8 … 1."""
    first = _features([[10, 10], [20, 20]], [0, 1])
    second = _features([[20, 10], [30, 24]], [0, 1])
    scores = protocols.score_d2net(*_sides(first, second), SHIFT, 10)
    assert [scores[f"MMA@{limit}"] for limit in (1, 2, 3, 4, 10)] == [0.5, 0.5, 0.5, 1, 1]
    assert scores["MMAscore"] == pytest.approx((0.5 * (1.9 + 1.8 + 1.7) + 1.6 + 1.5 + 1.4 + 1.3 + 1.2 + 1.1 + 1) / 14.5)


def test_corner_error_by_hand():
    points = np.array([[0, 0], [90, 0], [90, 90], [0, 90], [45, 30]], np.float32)

    def error(first, second):
        return metrics.corner_error(Matched(first, second, np.zeros(len(first))), SHIFT, (100, 100))

    assert error(points, points + [10, 0]) == pytest.approx(0, abs=1e-3)
    assert error(points, points + np.float32([10, 2])) == pytest.approx(2, abs=1e-3)
    assert error(points[:3], points[:3]) == math.inf
    assert error(np.zeros((6, 2), np.float32), np.zeros((6, 2), np.float32)) == math.inf
    sides = _sides(_features(points[:4], range(4)), _features(points[:4] + [10, 2], range(4)))
    scores = protocols.score_shared(*sides, SHIFT, 10)
    assert (scores["Cor-1"], scores["Cor-3"], scores["Cor-5"]) == (0, 1, 1)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("count", [0, 1])
def test_no_or_one_keypoint_scores_nothing(preset, count):
    few = _features([[50, 50]] * count, [0] * count)
    none = Features.empty(8)
    for first, second in ((few, none), (none, few), (none, none)):
        scores = PRESETS[preset].score(*_sides(first, second), SHIFT, 10)
        assert set(PRESETS[preset].columns) <= set(scores)
        assert not any(scores[name] for name in scores if name not in ("LE", "points"))


class Slow:
    """One pair's features as plain lists, and the protocols of EVALUATION.md in loops."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.homography = np.array([[1.1, 0.2, 4], [-0.15, 0.9, 12], [4e-4, -3e-4, 1]])
        self.shapes = (110, 150), (100, 160)
        points0 = rng.uniform(0, [149, 109], (70, 2))
        points1 = warp_points(self.homography, points0[:50]) + rng.normal(0, 2, (50, 2))
        points1 = np.vstack([points1, rng.uniform(0, [159, 99], (30, 2))])
        codes = rng.normal(size=(100, 16))
        descriptors = codes[:70] + rng.normal(0, 0.4, (70, 16)), codes[:80] + rng.normal(0, 0.4, (80, 16))
        self.features = [
            Features(points.astype(np.float32), rng.uniform(0, 1, len(points)).astype(np.float32),
                     (code / np.linalg.norm(code, axis=1, keepdims=True)).astype(np.float32))
            for points, code in zip((points0, points1), descriptors)
        ]
        self.sides = [Side(features, shape) for features, shape in zip(self.features, self.shapes)]

    def warp(self, point, backwards=False):
        matrix = np.linalg.inv(self.homography) if backwards else self.homography
        x, y, z = matrix @ [*point, 1.0]
        return x / z, y / z

    def best(self, image, indices, top_k):
        return sorted(indices, key=lambda i: -self.features[image].scores[i])[:top_k]

    def all(self, image):
        return list(range(len(self.features[image])))

    def seen(self, image, indices, edge):
        """Of image's points, those that land in the other image: up to w − 1, or below w where edge is 1."""
        height, width = self.shapes[1 - image]
        kept = []
        for i in indices:
            x, y = self.warp(self.features[image].keypoints[i], backwards=image == 1)
            inside = 0 <= x < width and 0 <= y < height if edge else 0 <= x <= width - 1 and 0 <= y <= height - 1
            kept += [i] if inside else []
        return kept

    def nearest(self, image, i, others):
        code = self.features[image].descriptors[i].astype(float)
        return min(others, key=lambda j: np.linalg.norm(code - self.features[1 - image].descriptors[j].astype(float)))

    def mutual(self, kept0, kept1):
        pairs = [(i, self.nearest(0, i, kept1)) for i in kept0]
        return [(i, j) for i, j in pairs if self.nearest(1, j, kept0) == i]

    def error(self, i, j):
        return math.dist(self.warp(self.features[0].keypoints[i]), self.features[1].keypoints[j])

    def rep(self, kept0, kept1, limit, one_frame):
        in1 = [self.warp(self.features[0].keypoints[i]) for i in kept0]
        points1 = [self.features[1].keypoints[j] for j in kept1]
        points0 = [self.features[0].keypoints[i] for i in kept0]
        in0 = [self.warp(point, backwards=True) for point in points1]
        distances = [min(math.dist(p, q) for q in points1) for p in in1]
        if one_frame:
            distances += [min(math.dist(p, q) for p in in1) for q in points1]
        else:
            distances += [min(math.dist(p, q) for p in points0) for q in in0]
        near = [distance for distance in distances if distance <= limit]
        return len(near) / (len(kept0) + len(kept1)), sum(near) / len(near)

    def corners(self, pairs, iterations):
        points0, points1 = (np.array([self.features[k].keypoints[pair[k]] for pair in pairs]) for k in (0, 1))
        cv2.setRNGSeed(0)
        estimate, _ = cv2.findHomography(points0, points1, cv2.RANSAC, 3, maxIters=iterations)
        height, width = self.shapes[0]
        total = 0.0
        for corner in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)):
            x, y, z = estimate @ [*corner, 1.0]
            total += math.dist((x / z, y / z), self.warp(corner)) / 4
        return total

    def share(self, pairs, limit):
        return sum(self.error(i, j) <= limit for i, j in pairs) / len(pairs)

    def one_way(self, image, top_k):
        kept0, kept1 = self.best(image, self.all(image), top_k), self.best(1 - image, self.all(1 - image), top_k)
        height, width = self.shapes[image]
        correct = shown = 0
        for i in kept0:
            neighbour = self.features[1 - image].keypoints[self.nearest(image, i, kept1)]
            x, y = self.warp(neighbour, backwards=image == 0)
            if 0 <= x <= width - 1 and 0 <= y <= height - 1:
                shown += 1
                correct += math.dist((x, y), self.features[image].keypoints[i]) < 3
        return correct / shown

    def shared(self, top_k):
        all0, all1 = (self.best(k, self.all(k), top_k) for k in (0, 1))
        kept0, kept1 = self.seen(0, all0, 0), self.seen(1, all1, 0)
        pairs = self.mutual(all0, all1)
        repeated, location = self.rep(kept0, kept1, 3, one_frame=False)
        corners = self.corners(pairs, 5000)
        correct = sum(self.error(i, j) <= 3 for i, j in pairs)
        return {"Rep": repeated, "LE": location, "M.Score": correct / min(len(kept0), len(kept1)),
                "matches": len(pairs), "points": min(len(kept0), len(kept1)),
                **{f"MMA@{t}": self.share(pairs, t) for t in range(1, 11)},
                **{f"Cor-{t}": corners <= t for t in (1, 3, 5)}}

    def kp2d(self, top_k):
        kept0, kept1 = (self.best(k, self.seen(k, self.all(k), 1), top_k) for k in (0, 1))
        repeated, location = self.rep(kept0, kept1, 3, one_frame=True)
        pairs = self.mutual(kept0, kept1)
        corners = self.corners(pairs, 5000)
        return {"Rep": repeated, "LE": location, "M.Score": (self.one_way(0, top_k) + self.one_way(1, top_k)) / 2,
                "matches": len(pairs), "points": min(len(kept0), len(kept1)),
                **{f"Cor-{t}": corners <= t for t in (1, 3, 5)}}

    def silk(self, top_k):
        all0, all1 = (self.best(k, self.all(k), top_k) for k in (0, 1))
        kept0, kept1 = self.seen(0, all0, 0), self.seen(1, all1, 0)
        pairs = self.mutual(all0, all1)
        corners = self.corners(pairs, 2000)
        points = (len(all0) + len(all1)) / 2
        scores = {"MS": sum(self.error(i, j) <= 3 for i, j in pairs) / points, "matches": len(pairs), "points": points,
                  **{f"MMA@{t}": self.share(pairs, t) for t in range(1, 11)}}
        for limit in (3, 5):
            scores[f"Rep@{limit}"] = self.rep(kept0, kept1, limit, one_frame=True)[0]
            scores[f"HAcc@{limit}"] = corners <= limit
            errors = np.linspace(0, limit, 20001)
            scores[f"HAUC@{limit}"] = np.mean([corners <= error for error in errors])
        return scores

    def d2net(self, top_k):
        all0, all1 = (self.best(k, self.all(k), top_k) for k in (0, 1))
        pairs = self.mutual(all0, all1)
        curve = {t: self.share(pairs, t) for t in range(1, 11)}
        weighted = sum((2 - 0.1 * t) * share for t, share in curve.items()) / sum(2 - 0.1 * t for t in curve)
        return {"MMAscore": weighted, "matches": len(pairs), "points": min(len(all0), len(all1)),
                **{f"MMA@{t}": share for t, share in curve.items()}}


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("top_k", [40, 1000])
def test_presets_agree_with_loops(preset, top_k):
    for seed in range(3):
        slow = Slow(np.random.default_rng(seed))
        scores = PRESETS[preset].score(*slow.sides, slow.homography, top_k)
        expected = getattr(slow, preset)(top_k)
        assert set(scores) == set(expected)
        for name, value in expected.items():
            assert scores[name] == pytest.approx(float(value), abs=1e-4), f"{name}, seed {seed}"


def test_presets_choose_size_and_points():
    assert choose_setting("kp2d") == protocols.Setting("kp2d", Size(320, 240), 300)
    assert choose_setting("kp2d", Size(640, 480)) == protocols.Setting("kp2d", Size(640, 480), 1000)
    assert choose_setting("silk") == protocols.Setting("silk", Size(short=480), 1000)
    assert choose_setting("d2net", None, 8192) == protocols.Setting("d2net", FULL, 8192)
    other = choose_setting("silk", FULL, 500)
    assert (other.size, other.top_k) == (FULL, 500)
    assert "--size full, --top-k 500: not as published" in str(other)
    assert "published" not in str(choose_setting("kp2d", Size(640, 480), 1000))
    assert "published" not in str(choose_setting("silk", None, 10_000))
    assert choose_setting("silk", None, 5000).changed == "--top-k 5000"
    with pytest.raises(InputError, match="--top-k 0"):
        choose_setting("shared", None, 0)


def test_sizes():
    assert Size.parse("320x240") == Size(320, 240)
    assert [str(Size.parse(text)) for text in ("320x240", "short480", "full")] == ["320x240", "short480", "full"]
    assert Size(short=480).of((640, 800, 3)) == (600, 480)
    assert Size(short=480).of((1000, 747)) == (480, 648), "642.6, and up to a multiple of 8"
    assert FULL.of((64, 100)) == (100, 64)
    for text in ("big", "10x10", "short8", "320", "0x0", "short00", "00x640", "640x00"):
        with pytest.raises(InputError, match=f"--size {text}: expected"):
            Size.parse(text)


def _write_sequence(folder: Path, homography, *images) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images, 1):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    np.savetxt(folder / "H_1_2", homography)
    return folder


@pytest.mark.parametrize("plain", [True, False])
def test_pairs_are_resized_with_their_homography(tmp_path, plain):
    image = np.zeros((128, 160, 3), np.uint8)
    folder = _write_sequence(tmp_path / "moved", np.array([[1, 0, -16], [0, 1, -8], [0, 0, 1]]), image, image)
    pair, = load_pairs(folder, Loading(Size(320, 64), plain))
    assert pair.image0.shape == pair.image1.shape == (64, 320, 3)
    np.testing.assert_allclose(pair.homography[:2, 2], [-32, -4], atol=1e-9)


def test_centres_are_kept_under_zoom(tmp_path):
    """A dot in both images: after shrinking, our homography still maps it exactly, KP2D's is off."""
    images = [np.zeros((128, 128), np.uint8) for _ in range(2)]
    images[0][16:20, 16:20] = images[1][32:40, 32:40] = 255
    # 4 pixels about 17.5 become 8 about 35.5: x' + .5 = 2 (x + .5)
    folder = _write_sequence(tmp_path / "dot", [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]], *images)
    pair, = load_pairs(folder, Loading(Size(64, 64)))
    centres = [np.argwhere(image[..., 0] > 100).mean(0)[None] for image in (pair.image0, pair.image1)]
    np.testing.assert_allclose(warp_points(pair.homography, centres[0]), centres[1], atol=1e-6)
    plain, = load_pairs(folder, Loading(Size(64, 64), plain_scaling=True))
    assert np.abs(warp_points(plain.homography, centres[0]) - centres[1]).max() > 0.2


def test_short_side_gives_both_images_the_first_ones_size(tmp_path):
    images = np.zeros((90, 120), np.uint8), np.zeros((50, 120), np.uint8)
    folder = _write_sequence(tmp_path / "a", -2 * np.eye(3), *images)
    pair, = load_pairs(folder, Loading(Size(short=64), gray=True))
    assert pair.image0.shape == pair.image1.shape == (64, 88)
    stretch = 90 / 50
    expected = [[1, 0, 0], [0, stretch, (stretch - 1) / 2], [0, 0, 1]]
    np.testing.assert_allclose(pair.homography, expected, atol=1e-9)
    full, = load_pairs(folder, Loading())
    assert (full.image0.shape, full.image1.shape) == ((90, 120, 3), (50, 120, 3))
    np.testing.assert_array_equal(full.homography, np.eye(3))


def test_kp2d_gives_colour_networks_blue_first(tmp_path, monkeypatch):
    from tiny_models import cells_metadata, cells_model, full_metadata, full_model

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    paths = {"rgb": cells_model(tmp_path / "rgb.onnx", cells_metadata()),
             "gray": full_model(tmp_path / "gray.onnx", full_metadata())}
    for color, path in paths.items():
        extractor = benchmark.cached_extractor(str(path), 3000)
        seen = []
        monkeypatch.setattr(extractor, "extract", lambda image, seen=seen: seen.append(image) or Features.empty(4))
        benchmark.side_of(image, str(path), choose_setting("kp2d"))
        np.testing.assert_array_equal(seen[0], image[..., ::-1] if color == "rgb" else image)


def test_d2net_leaves_eight_sequences_out(tmp_path):
    for name in ("i_dc", "i_fog", "v_talent", "v_wall"):
        _write_sequence(tmp_path / name, np.eye(3), *np.zeros((2, 64, 64), np.uint8))
    sequences = Sequences(tmp_path)
    kept = sequences.units(PRESETS["d2net"].left_out)
    assert [sequences.names[number] for number in kept] == ["i_fog", "v_wall"]
    assert sum(sequences.units(PRESETS["kp2d"].left_out).values()) == 4
    assert len(PRESETS["d2net"].left_out) == 8


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data (shared/data/homography) is not here")
def test_orb_agrees_with_the_reference_table():
    """data/README.md's row of ORB on ubc: Rep .95, MMA .85 .97, M.Score .78, corners 1 1 1."""
    rows = benchmark.evaluate(Sequences(SHARED / "ubc"), ["orb"], [choose_setting("shared")])["shared"]["orb"]
    means = summarize(rows)["ubc"]
    for name, value in {"Rep": 0.95, "MMA@1": 0.85, "MMA@3": 0.97, "M.Score": 0.78, "Cor-1": 1.0}.items():
        assert means[name][0] == pytest.approx(value, abs=0.015), name
