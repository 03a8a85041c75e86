"""The homography benchmark as a whole: pairs from photographs, processes, figures told from noise, the command."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from kp_frontend.errors import InputError
from kp_training.__main__ import main
from kp_training.data.photos import is_held_out
from kp_training.evaluation.figures import GREEN, RED
from kp_training.evaluation.homography import evaluate, open_pairs
from kp_training.evaluation.photo_pairs import GROUPS, PhotoPairs, render
from kp_training.evaluation.protocols import D2NET_LEFT_OUT, choose_setting
from kp_training.evaluation.published import HPATCHES, TABLES, published
from kp_training.evaluation.report import conclude, labels
from kp_training.evaluation.sequences import FULL, Loading, Size
from kp_training.evaluation.summary import differences, estimate, summarize
from kp_training.geometry.homography import view_corners, warp_points

HELD_OUT = [name for name in (f"{number}.jpg" for number in range(200)) if is_held_out(name)]


def _texture(seed: int, height: int = 160, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Six photographs that are kept from training and three that are not, upright and across."""
    folder = tmp_path_factory.mktemp("photos")
    used = [name for name in (f"{number}.jpg" for number in range(200)) if not is_held_out(name)]
    for seed, name in enumerate([*HELD_OUT[:6], *used[:3]]):
        shape = (200, 160) if seed % 2 else (160, 200)
        cv2.imwrite(str(folder / name), _texture(seed, *shape))
    return folder


@pytest.fixture(scope="module")
def sequences(tmp_path_factory) -> Path:
    """Two textured sequences of one pair each: the identity, and a shift by (16, 8) of 160×128 images."""
    data = tmp_path_factory.mktemp("data")
    texture = _texture(0)
    for name, (x, y) in (("still", (0, 0)), ("moved", (16, 8))):
        folder = data / name
        folder.mkdir()
        cv2.imwrite(str(folder / "1.png"), texture[:128, :160])
        cv2.imwrite(str(folder / "2.png"), texture[y : y + 128, x : x + 160])
        np.savetxt(folder / "H_1_2", np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]]))
    return data


def test_photo_pairs_are_a_function_of_seed_and_number(photos):
    first, again = (PhotoPairs(photos, 12, seed=3) for _ in range(2))
    other = PhotoPairs(photos, 12, seed=4)
    for number in (11, 5, 0):
        (one,), (two,) = (list(pairs.pairs(number, Loading())) for pairs in (first, again))
        assert (one.image1 == two.image1).all()
        assert (one.homography == two.homography).all()
        assert one.group == list(GROUPS)[number % len(GROUPS)]
        assert not np.allclose(one.homography, next(other.pairs(number, Loading())).homography)
    sources = {next(first.pairs(number, Loading())).source for number in range(12)}
    assert sources == set(HELD_OUT[:6]), "only photographs that training never sees, and all of them"


@pytest.mark.parametrize("size", [FULL, Size(96, 128), Size(short=120)])
def test_photo_pairs_fit_their_homography(photos, size):
    """Image 0, warped, is image 1 where both show the photograph; other homographies are not."""
    pairs = PhotoPairs(photos, 30)
    for number in range(30):
        pair, = pairs.pairs(number, Loading(size, gray=True))
        height, width = pair.image0.shape
        if size.width:
            assert (width, height) == (96, 128)
        if GROUPS[pair.group].style != "off":
            continue
        seen = cv2.warpPerspective(np.ones((height, width), np.uint8), pair.homography, (width, height)) > 0
        warped = cv2.warpPerspective(pair.image0, pair.homography, (width, height), flags=cv2.INTER_CUBIC)
        shifted = np.roll(warped, 3, axis=1)
        assert seen.sum() > 200
        alike, less = (np.corrcoef(view[seen], pair.image1[seen])[0, 1] for view in (warped, shifted))
        assert alike > 0.9, (pair.group, number)
        assert alike > less + 0.05, (pair.group, number)


def test_shrinking_keeps_places():
    """A dot in a view that shrinks the photograph four times and more lies where the homography says."""
    y, x = np.mgrid[:240, :320]
    photo = np.repeat(255 * np.exp(-((x - 203) ** 2 + (y - 97) ** 2) / 200)[..., None], 3, axis=2).astype(np.uint8)
    for factor in (1.3, 1.6, 3.0, 5.0):
        photo_from_view = np.array([[factor, 0, 1.2], [0, factor, -0.7], [0, 0, 1]])
        view = render(photo, photo_from_view, (240, 180))[..., 0].astype(float)
        yv, xv = np.mgrid[:180, :240]
        view[(xv > 320 / factor - 2) | (yv > 240 / factor - 2)] = 0  # mirrored beyond the photograph
        centre = np.array([(view * xv).sum(), (view * yv).sum()]) / view.sum()
        np.testing.assert_allclose(warp_points(photo_from_view, centre[None])[0], [203, 97], atol=0.3)


def test_groups_differ_in_what_changes(photos):
    """Rotation turns, zoom scales, hard views stretch more than easy ones, light leaves all nearly in place."""
    pairs, found = PhotoPairs(photos, 240), {group: [] for group in GROUPS}
    for number in range(240):
        pair, = pairs.pairs(number, Loading())
        corners = view_corners(*pair.image0.shape[:2])
        centre = corners.mean(0)
        steps = warp_points(pair.homography, centre + np.array([[0, 0], [1, 0], [0, 1]]))
        linear = (steps[1:] - steps[0]).T
        large, small = np.linalg.svd(linear)[1]
        turn = abs(math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
        found[pair.group].append((turn, abs(math.log2(large * small)) / 2, math.log2(large / small)))
    turn, zoom, stretch = ({group: np.mean(values, 0)[k] for group, values in found.items()} for k in range(3))
    assert turn["rotation"] > 1 > 5 * turn["view"]
    assert zoom["zoom"] > 0.4 > 2 * zoom["rotation"]
    assert stretch["view_hard"] > stretch["view"] + 0.2 > stretch["zoom"] + 0.2
    assert max(turn["light"], zoom["light"], stretch["light"]) < 0.1


def test_too_few_photographs(tmp_path, photos):
    for name in HELD_OUT[:3]:
        (tmp_path / name).write_bytes((photos / name).read_bytes())
    with pytest.raises(InputError, match=r"has 3 photographs in the tenth .* at least 4"):
        open_pairs(f"photos:{tmp_path}")


def test_standard_errors_by_hand():
    mean, error = estimate([1.0, 2.0, 3.0, 6.0], list("abcd"))
    assert (mean, error) == (3.0, pytest.approx(math.sqrt(14 / 3 / 4)))
    # Pairs of one photograph that are the same are worth one: σ of the two means 1 and 3 is √2.
    assert estimate([1.0, 1.0, 3.0, 3.0], list("aabb")) == (2.0, pytest.approx(math.sqrt(2 / 2)))
    assert estimate([1.0, 3.0], list("aa")) == (2.0, pytest.approx(1.0)), "one source: over its pairs"
    assert estimate([1.0, math.nan, 3.0], list("abc")) == (2.0, pytest.approx(1.0))
    assert math.isnan(estimate([math.nan], list("a"))[0])
    assert math.isnan(estimate([1.0], list("a"))[1])


def _rows(values, names=None):
    names = names or ["a"] * len(values)
    return [{"sequence": name, "pair": str(k), "source": f"{name}{k}", "Rep": value}
            for k, (name, value) in enumerate(zip(names, values))]


def test_differences_are_taken_pair_by_pair():
    """Hard and easy pairs scatter widely, but one is always 0.1 better."""
    rows, baseline = _rows([0.2, 0.6, 1.0]), _rows([0.1, 0.5, 0.9])
    assert summarize(rows)["mean"]["Rep"][1] > 0.2
    assert differences(rows, baseline)["mean"]["Rep"] == (pytest.approx(0.1), pytest.approx(0, abs=1e-9))


def test_hpatches_splits_are_groups():
    summary = summarize(_rows([0.2, 0.4, 0.9], ["i_a", "i_b", "v_c"]))
    assert list(summary) == ["i_a", "i_b", "v_c", "illumination", "viewpoint", "mean"]
    assert summary["illumination"]["Rep"][0] == pytest.approx(0.3)
    assert "viewpoint" not in summarize(_rows([0.2, 0.4], ["i_a", "graf"]))


def test_labels_are_told_apart():
    assert labels(["orb", "x/a.onnx", "y/b.onnx"]) == {"orb": "orb", "x/a.onnx": "a.onnx", "y/b.onnx": "b.onnx"}
    assert labels(["x/a.onnx", "y/a.onnx"])["y/a.onnx"] == "y/a.onnx"


def test_published_figures_only_beside_the_same_setting():
    whole = dict.fromkeys(HPATCHES, 5)
    most = {name: 5 for name in HPATCHES - D2NET_LEFT_OUT}
    assert len(HPATCHES) == 116
    assert sum(name.startswith("i_") for name in HPATCHES) == 57
    assert len(most) == 108

    def names(setting, pairs):
        return {name for table in published(setting, pairs) for name in table.groups["mean"]}

    small, large = choose_setting("kp2d"), choose_setting("kp2d", Size(640, 480))
    assert {"KP2D V0", "KP2D V4", "SIFT (KP2D)", "SIFT (Residual)"} <= names(small, whole)
    assert "KP2D V4" in names(large, whole)
    assert "KP2D V0" not in names(large, whole)
    assert "SuperPoint (PrP)" in names(choose_setting("silk"), whole)
    assert names(choose_setting("silk", None, 10000), whole) == {"SiLK", "SiLK-PrP", "Aug"}
    assert {"PoSFeat", "SEDM"} <= names(choose_setting("d2net"), most)
    for setting, pairs in (
        (choose_setting("kp2d", None, 500), whole), (choose_setting("kp2d", FULL), whole), (small, most),
        (small, {**whole, "i_dc": 4}), (choose_setting("d2net"), whole), (choose_setting("shared"), whole),
    ):
        assert not published(setting, pairs), setting


def test_published_tables_are_whole():
    for table in TABLES:
        setting = choose_setting(table.preset, table.size, table.top_k)
        assert not setting.changed, table.source
        assert set(table.columns) <= set(setting.protocol.columns), table.source
        for rows in table.groups.values():
            assert all(0 < len(figures) <= len(table.columns) for figures in rows.values())
            assert all(0 < figure < 1.1 for figures in rows.values() for figure in figures)





def test_rows_do_not_depend_on_the_number_of_processes(photos):
    source, settings = PhotoPairs(photos, 7), [choose_setting(name, Size(144, 112), 150) for name in ("kp2d", "silk")]
    one, two = (evaluate(source, ["orb", "sift"], settings, jobs) for jobs in (1, 2))
    assert json.dumps(one) == json.dumps(two)
    assert [row["pair"] for row in one["silk"]["sift"]] == [str(number) for number in range(7)]
    assert summarize(one["silk"]["sift"])["mean"]["MMA@3"][0] > 0.3


def test_command_end_to_end(sequences, tmp_path, capsys):
    arguments = ["evaluate", "homography", str(sequences), "--features", "orb", "sift", "--size", "full",
                 "--preset", "shared", "kp2d", "--top-k", "200", "--jobs", "1",
                 "--json", str(tmp_path / "figures.json"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "preset shared, full, 200 points (--size full, --top-k 200: not as published)" in table
    assert "preset kp2d" in table
    assert re.search(r"difference +│ sift − orb +│ +[+-]0\.", table)
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report == json.loads((tmp_path / "out" / "results.json").read_text())
    still = report["means"]["shared"]["orb"]["still"]
    assert (still["MMA@1"], still["M.Score"], still["LE"]) == (1.0, 1.0, 0.0)
    moved = report["pairs"]["shared"]["sift"][0]
    assert (moved["sequence"], moved["pair"]) == ("moved", "1-2")
    assert moved["MMA@1"] > 0.8
    assert report["differences"]["kp2d"]["baseline"] == "orb"
    assert report["published"] == {"shared": [], "kp2d": []}
    assert cv2.imread(str(tmp_path / "out" / "mma.png")) is not None
    worst = sorted(path.name for path in (tmp_path / "out" / "worst").iterdir())
    assert worst == [f"{preset}_{name}_worst{place}.png"
                     for preset in ("kp2d", "shared") for name in ("orb", "sift") for place in (1, 2)]
    picture = cv2.imread(str(tmp_path / "out" / "worst" / "shared_orb_worst2.png"))
    green, red = ((picture == color).all(-1).sum() for color in (GREEN, RED))
    assert green > 500, "the still pair's matches are right"
    assert red == 0


def test_command_on_a_tree_like_hpatches(tmp_path, capsys):
    """116 folders of tiny images: d2net scores 540 pairs by split, beside the published figures."""
    data = tmp_path / "hpatches-sequences-release"
    _, code = cv2.imencode(".ppm", _texture(1, 40, 48))
    for name in HPATCHES:
        (data / name).mkdir(parents=True)
        for number in range(1, 7):
            (data / name / f"{number}.ppm").write_bytes(code.tobytes())
            if number > 1:
                (data / name / f"H_1_{number}").write_text("1 0 0\n0 1 0\n0 0 1\n")
    figures = tmp_path / "figures.json"
    arguments = ["evaluate", "homography", "--data", str(data), "--features", "orb", "--preset", "d2net", "--jobs", "1"]
    assert main([*arguments, "--json", str(figures)]) == 0
    table = capsys.readouterr().out
    assert "published: PoSFeat" in table
    assert "published: SEDM" in table
    assert "i_fog" not in table, "a hundred sequences are in the JSON only"
    report = json.loads(figures.read_text())
    rows = report["pairs"]["d2net"]["orb"]
    assert len(rows) == 540
    assert sum(row["sequence"].startswith("i_") for row in rows) == 52 * 5
    assert {"illumination", "viewpoint", "mean"} < set(report["means"]["d2net"]["orb"])
    assert report["published"]["d2net"][0]["figures"]["viewpoint"]["PoSFeat"] == {"MMAscore": 0.728}


def test_command_on_photographs(photos, tmp_path, capsys):
    arguments = ["evaluate", "homography", str(photos), "--features", "orb", "--pairs", "6", "--seed", "1"]
    assert main([*arguments, "--size", "160x120", "--jobs", "1", "--json", str(tmp_path / "figures.json")]) == 0
    assert "6 pairs of 6 photographs kept from training, seed 1" in capsys.readouterr().out
    report = json.loads((tmp_path / "figures.json").read_text())
    assert list(report["means"]["shared"]["orb"]) == [*GROUPS, "mean"]


def test_ctrl_c_ends_all_processes(photos):
    """Sent to the whole group, as a terminal does: exit code 130, no trace, no process left."""
    command = [sys.executable, "-m", "kp_training", "evaluate", "homography", str(photos), "--features", "sift",
               "--pairs", "100000", "--jobs", "2"]
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    for _ in range(600):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if len(children) == 2:
            break
        time.sleep(0.1)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(("change", "message"), [
    (["nothing"], "unknown benchmark 'nothing'; choose one of: homography"),
    (["homography", "--features", "orb"], "give the data once"),
    (["homography", "{data}", "--data", "{data}", "--features", "orb"], "give the data once"),
    (["homography", "{data}/none", "--features", "orb"], "no folder"),
    (["homography", "{empty}", "--features", "orb"], "holds no sequence"),
    (["homography", "photos:{empty}", "--features", "orb"], "holds no held-out photograph"),
    (["homography", "{data}", "--features", "nope"], "unknown features 'nope'"),
    (["homography", "{data}", "--features", "gftt_lk"], "'gftt_lk' is a tracker"),
    (["homography", "{data}", "--features", "orb", "--preset", "best"], "unknown preset 'best'; choose one of: d2net"),
    (["homography", "{data}", "--features", "orb", "--size", "big"], "--size big: expected WIDTHxHEIGHT"),
    (["homography", "{data}", "--features", "orb", "--top-k", "0"], "--top-k 0: expected at least 1"),
    (["homography", "{data}", "--features", "orb", "--jobs", "0"], "--jobs 0: expected at least 1"),
    (["homography", "{data}", "--features", "orb", "--pairs", "9"], "--pairs and --seed are for photographs"),
    (["homography", "{photos}", "--features", "orb", "--pairs", "0"], "--pairs 0: expected at least 1"),
    (["homography", "{data}", "--features", "orb", "--output", "{data}/still/1.png"], "cannot make folder"),
])
def test_bad_input_is_one_line(sequences, photos, tmp_path, capsys, change, message):
    (tmp_path / "empty").mkdir()
    words = [word.format(data=sequences, photos=photos, empty=tmp_path / "empty") for word in change]
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("file", "content", "message"), [
    ("H_1_2", b"1 0 0\n0 1", "expected 3×3 numbers"),
    ("H_1_2", b"", "expected an invertible 3×3 matrix"),
    ("H_1_2", b"0 0 0\n0 0 0\n0 0 0\n", "expected an invertible 3×3 matrix"),
    ("2.png", b"no image", "no readable image 2.png"),
    ("1.png", None, "no readable image 1.png"),
    ("2.png", b"\x89PNG\r\n\x1a\n cut off", "2.png cannot be read as an image"),
])
def test_broken_sequences(tmp_path, capsys, file, content, message):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        cv2.imwrite(str(folder / name), _texture(0))
    np.savetxt(folder / "H_1_2", np.eye(3))
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    assert main(["evaluate", "homography", str(tmp_path), "--features", "orb", "--size", "full"]) == 2
    assert message in capsys.readouterr().err


def test_one_preset_may_have_no_pairs(tmp_path, capsys):
    folder = tmp_path / "i_dc"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        cv2.imwrite(str(folder / name), _texture(0))
    np.savetxt(folder / "H_1_2", np.eye(3))
    assert main(["evaluate", "homography", str(folder), "--features", "orb", "--preset", "d2net"]) == 2
    assert "only sequences that preset d2net leaves out" in capsys.readouterr().err


def test_conclusions_of_one_extractor_have_no_difference():
    setting = choose_setting("shared")
    outcome = conclude(setting, {"orb": _rows([0.2, 0.4])})
    assert outcome.differences == {}
    assert outcome.groups == ["a", "mean"]
