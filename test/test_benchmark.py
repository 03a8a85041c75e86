"""The benchmarks run, count what they say they count, and write it down; no time is judged here."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("rich")

from rich.console import Console

from kp_frontend.benchmarks import command, frontend, node, report
from kp_frontend.benchmarks.camera import photograph_video
from kp_frontend.errors import InputError
from kp_frontend.replay import provenance
from kp_frontend.replay.summary import Percentiles


def test_photograph_video_moves_smoothly():
    views = photograph_video(12)
    assert {view.shape for view in views} == {(480, 640)}
    steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(views)]
    assert 0.1 < min(steps) <= max(steps) < 20
    assert photograph_video(1, 192, 108)[0].shape == (108, 192)


def test_extraction_and_the_rest_add_up_to_all():
    seen = []
    figures = frontend.measure_stages("orb", 300, photograph_video(24), lambda *done: seen.append(done))
    assert seen[-1] == (24, 24)
    assert figures.numbers["keypoints"] == 300
    stages = figures.stages
    assert stages["extractor"] == stages["extract"]
    others = sum(stages[name].p50 for name in ("image conversion", "match", "message filling"))
    assert stages["everything else"].p50 == pytest.approx(others, rel=0.5)
    assert stages["whole"].p50 == pytest.approx(stages["extract"].p50 + others, rel=0.5)
    assert list(figures.targets.values()) == [stages["everything else"].p50 < stages["extractor"].p50]


def test_whole_command(tmp_path, capsys):
    file = tmp_path / "figures.json"
    words = ["frontend", "--features", "orb", "--seconds", "1", "--frames", "20", "--top-k", "200", "--json", str(file)]
    assert command.main(words) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [result["name"] for result in written["results"]] == ["stages", "camera", "odometry"]
    camera, odometry = written["results"][1]["numbers"], written["results"][2]["numbers"]
    assert camera["sent"] == 30
    assert camera["received"] + camera["dropped"] == 30
    assert camera["received"] > 10
    assert odometry["frames/s"] > 0
    assert odometry["tracked %"] > 90
    assert written["machine"]["cores"] >= 1
    assert written["medians"]["orb: stages: match"] == written["results"][0]["stages"]["match"]["p50"]
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "everything else" in shown
    assert "beyond extraction" in shown


def test_figures_say_the_versions_of_what_ran():
    engines = [name for name in ("openvino", "onnxruntime", "torch", "tensorrt-rtx") if _version(name)]
    assert {name: _version(name) for name in engines}.items() <= provenance.versions().items()


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def point(rate, dropped=0):
    return node.Point(640, 480, rate, 100, dropped, Percentiles(5.0, 6.0, 7.0), 50.0)


@pytest.mark.parametrize(("capacity", "best", "tried"), [
    (1000.0, 120.0, list(node.RATES)),
    (52.0, 51.5625, [10, 20, 30, 45, 60, 52.5, 48.75, 50.625, 51.5625]),
    (1.0, 0.625, [10, 5, 2.5, 1.25, 0.625]),
])
def test_the_sweep_closes_in_on_the_first_loss(capacity, best, tried):
    points = list(node.sweep_rates(lambda rate: point(rate, dropped=int(rate > capacity))))
    assert [each.rate for each in points] == tried
    assert node.NodeFigures("orb", Percentiles(10.0, 11.0, 12.0), tuple(points), ()).drop_free == best


def test_the_goal_is_a_share_of_what_extraction_allows():
    figures = node.NodeFigures("orb", Percentiles(10.0, 11.0, 12.0), (point(60.0), point(79.0)), (point(90.0, 3),))
    sentence, met = figures.target()
    assert not met
    for words in ("up to 79 Hz", "at least 80", "the 100 Hz", "79%"):
        assert words in sentence
    assert replace(figures, rates=(point(80.0),)).target()[1]
    fast = replace(figures, extraction=Percentiles(1.0, 1.0, 1.0))
    assert not replace(fast, rates=(point(119.0),)).target()[1]
    assert replace(fast, rates=(point(120.0),)).target()[1]
    assert figures.medians() == {
        "orb: extraction": 10.0, "orb: between frames, none lost": 1e3 / 79,
        "orb: latency at 640×480, 60 Hz": 5.0, "orb: latency at 640×480, 79 Hz": 5.0}


def test_node_over_dds(tmp_path, monkeypatch, capsys):
    """A slow and a fast rate, and two sizes; what was sent is counted, whatever came back."""
    monkeypatch.setattr(node, "RATES", (20.0, 30.0))
    monkeypatch.setattr(node, "SIZES", ((320, 240),))
    monkeypatch.setattr(node, "_EXTRACTED", 5)
    monkeypatch.setattr(node, "_IMAGES", 4)
    monkeypatch.setattr(node, "call_isolated", lambda function, *arguments, progress: function(*arguments, progress))
    file = tmp_path / "node.json"
    assert command.main(["node", "--features", "orb", "--seconds", "0.5", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    result = written["results"][0]
    rates = {each["rate"]: each for each in result["rates"]}
    assert rates[20.0]["sent"] == 10
    assert rates[20.0]["dropped"] < 10
    assert rates[20.0]["latency"]["p50"] > 0
    assert [(each["width"], each["height"], each["rate"]) for each in result["sizes"]] == [(320, 240, 30.0)]
    assert result["drop_free"] in (0.0, *rates)
    assert list(written["targets"].values()) == [result["drop_free"] >= min(0.8 * result["allowed"], 30)]
    assert "640×480" in capsys.readouterr().out


def test_comparison_says_what_is_slower(tmp_path, capsys):
    file = tmp_path / "then.json"
    report.write_figures(file, ["x"], {"medians": {"a": 10.0, "b": 10.0, "gone": 1.0, "zero": 0.0}})
    now = {"a": 12.0, "b": 5.0, "new": 3.0, "zero": 1.0}
    earlier = report.read_earlier(file)
    assert report.compare(now, earlier["medians"]) == {"a": 1.2, "b": 0.5}
    console = Console(force_terminal=True, width=100, color_system="standard")
    report.show_comparison(console, now, earlier)
    lines = capsys.readouterr().out.splitlines()
    assert any("\x1b[31ma " in line and "1.20" in line for line in lines)
    assert any("\x1b[32mb " in line and "0.50" in line for line in lines)
    assert lines[-1] == "not in this run: 1 of its times"
    report.show_comparison(console, now, {**earlier, "machine": "another"})
    assert "another machine" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["frontend", "--frames", "5"], "--frames"), (["frontend", "--bag", "/nowhere"], "nowhere"),
    (["frontend", "--features", "surf"], "surf"), (["node", "--features", "no_such"], "no_such"),
    (["node", "--rate", "0"], "--rate 0"), (["node", "--seconds", "0"], "--seconds"),
    (["frontend", "--seconds", "nan"], "--seconds"),
    (["node", "--compare", "/nowhere.json"], "--compare /nowhere.json"),
    (["node", "--json", "/no/such/folder.json"], "no folder"),
])
def test_bad_usage_is_one_line(words, said):
    with pytest.raises(InputError, match=said) as error:
        command.main(words)
    assert "\n" not in str(error.value)


def test_a_file_without_medians_is_no_earlier_run(tmp_path):
    file = tmp_path / "other.json"
    for content in ("[]", "{}", "no json"):
        file.write_text(content)
        with pytest.raises(InputError, match=r"--compare .*other\.json"):
            report.read_earlier(file)
