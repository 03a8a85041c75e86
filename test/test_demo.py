"""The demo: its bag is written once and complete, and its options reach `replay`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kp_frontend import demo
from kp_frontend.errors import InputError
from kp_frontend.replay import command, flight
from kp_frontend.replay.bag import BagSequence

SHORT = flight.Flight(frames=4)


def test_the_flight_becomes_a_bag_once(tmp_path: Path, monkeypatch):
    path = demo.render_flight(tmp_path / "flight", SHORT)
    with BagSequence(path) as bag:
        assert bag.mode == "rgbd"
        assert len(bag) == SHORT.frames
        assert bag.topics.right is not None
        truth = SHORT.view(2)
        frame = next(entry for entry in bag.frames() if entry.stamp == truth.stamp).decode()
        assert np.array_equal(frame.image, truth.image)
        assert np.abs(frame.depth - truth.depth).max() <= 0.0005 + 1e-6  # stored in millimetres
        assert np.allclose(bag.ground_truth.poses[2], truth.world_from_camera, atol=1e-9)
    monkeypatch.setattr(flight.Flight, "views", lambda self: pytest.fail("rendered again"))
    demo.render_flight(path, SHORT)


def test_an_interrupted_rendering_leaves_no_bag(tmp_path: Path, monkeypatch):
    def views(self):
        yield self.view(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(flight.Flight, "views", views)
    with pytest.raises(KeyboardInterrupt):
        demo.render_flight(tmp_path / "flight", SHORT)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_refused_before_the_rendering(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(flight.Flight, "view", lambda self, index: pytest.fail("rendered"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot make folder .*file"):
        demo.main(["--output", str(tmp_path / "file")])


def test_options_reach_replay(tmp_path: Path, monkeypatch):
    calls = []
    monkeypatch.setattr(command, "main", lambda argv: calls.append(argv) or 0)
    assert demo.main(["--bag", "mine", "--image", "/cam", "--output", str(tmp_path), "--features", "orb"]) == 0
    assert calls == [["mine", "--features", "orb", "--output", str(tmp_path), "--live", "--image", "/cam"]]
