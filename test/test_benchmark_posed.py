"""The benchmark of posed data does what it counts, and says what it could not; no time is judged here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from posed_scenes import plane_scene

from kp_frontend.errors import InputError
from kp_training.benchmarks import posed
from kp_training.benchmarks.posed import WORKS, PosedFigures
from kp_training.cli import benchmark as command


def test_each_work_counts_what_it_did(monkeypatch):
    """On a tiny scene; what is drawn ahead by other processes is in test_rooms."""
    scene = plane_scene(12, 96, 128)
    monkeypatch.setattr(posed, "open_scenes", lambda specs, height, width: [scene])
    monkeypatch.setattr(posed, "OVERLAPPING", 30)
    monkeypatch.setattr(posed, "VOXEL_FRAMES", 14)
    monkeypatch.setattr(posed, "PAIRS", 2)
    counted = {}
    for name in ("overlap", "pairs", "projective", "voxels"):
        figures = WORKS[name].measure("posed:x", "cpu", lambda done, total: None)
        assert min(figures.seconds, figures.cpu) > 0
        counted[name] = figures.count
    assert counted == {"overlap": 30, "pairs": 2, "projective": 12, "voxels": 14}


def test_repeated_scenes_have_their_own_identity():
    scene = plane_scene(3)
    longer = posed._repeated(scene, 7)
    assert (len(longer), longer.identity != scene.identity) == (7, True)
    np.testing.assert_array_equal(longer[5].image, scene[2].image)
    np.testing.assert_array_equal(longer[5].world_from_camera, scene.poses[2])


def _isolated(function, *arguments, progress):
    """What the processes would say: voxels end by the system's hand, pairs cannot be used."""
    if function is posed.prepare:
        return "kitchen"
    if function is WORKS["pairs"].measure:
        raise InputError("no two frames go together")
    if function is WORKS["voxels"].measure:
        raise MemoryError("full")
    return PosedFigures(function.__name__, "frames", 100, 10.0, 15.0, 50.0)


def test_whole_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kp_frontend.isolated.call_isolated", _isolated)
    file = tmp_path / "figures.json"
    assert command.main(["posed", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    for words in ("scene kitchen", "10.0 frames", "left out: pairs: no two frames", "left out: voxels: full",
                  "NO  at least 20 rendered frames", "yes overlap of 1000 frames"):
        assert words in shown
    written = json.loads(file.read_text())
    assert set(written["results"]) == {"rooms, one core", "rooms", "overlap", "projective"}
    assert written["results"]["rooms"]["rate"] == 10
    assert written["targets"] == {"at least 20 rendered frames of 320×240 a second": False,
                                  "overlap of 1000 frames in under a minute": True}


@pytest.mark.parametrize(("words", "said"), [(["--only", "flights"], "flights.*overlap"),
                                             (["--only", "pairs"], "nothing could be measured: pairs: no two frames")])
def test_bad_usage_is_one_line(words, said, monkeypatch):
    monkeypatch.setattr("kp_frontend.isolated.call_isolated", _isolated)
    with pytest.raises(InputError, match=said) as error:
        command.main(["posed", *words])
    assert "\n" not in str(error.value)
