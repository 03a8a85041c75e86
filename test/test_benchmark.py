"""The benchmark runs, counts what it says it counts, and writes it down; no time is judged here."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("rich")

from kp_frontend import benchmark
from kp_frontend.errors import InputError


def test_photograph_video_moves_smoothly():
    views = benchmark.photograph_video(12)
    assert {view.shape for view in views} == {(480, 640)}
    steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(views)]
    assert 0.1 < min(steps) <= max(steps) < 20


def test_extraction_and_the_rest_add_up_to_all():
    seen = []
    figures = benchmark.measure_stages("orb", 300, benchmark.photograph_video(14), lambda *done: seen.append(done))
    assert seen[-1] == (14, 14)
    assert figures.numbers["keypoints"] == 300
    stages = figures.stages
    assert stages["extractor"] == stages["extract"]
    others = sum(stages[name].p50 for name in ("image conversion", "match", "message filling"))
    assert stages["everything else"].p50 == pytest.approx(others, rel=0.5)
    assert list(figures.targets.values()) == [stages["everything else"].p50 < stages["extractor"].p50]


def test_whole_command(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert benchmark.main(["frontend", "--seconds", "1", "--frames", "20", "--top-k", "200", "--json", str(file)]) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    titles = [result["title"] for result in written["results"]]
    assert [title[:2] for title in titles] == ["1.", "2.", "3."]
    camera, odometry = written["results"][1]["numbers"], written["results"][2]["numbers"]
    assert camera["sent"] == 30
    assert camera["received"] + camera["dropped"] == 30
    assert camera["received"] > 10
    assert odometry["frames/s"] > 0
    assert odometry["tracked %"] > 90
    assert written["machine"]["cores"] >= 1
    shown = capsys.readouterr().out
    assert "everything else" in shown
    assert "beyond extraction" in shown


@pytest.mark.parametrize(("words", "said"), [
    (["--frames", "5"], "--frames"), (["--bag", "/nowhere"], "nowhere"), (["--features", "surf"], "surf"),
])
def test_bad_usage_is_one_line(words, said):
    with pytest.raises(InputError, match=said) as error:
        benchmark.main(["frontend", *words])
    assert "\n" not in str(error.value)
