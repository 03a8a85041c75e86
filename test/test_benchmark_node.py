"""``benchmark node`` judges the node: not its first compilation, not the way back, not other threads than its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import pytest

pytest.importorskip("rclpy")

from kp_frontend.benchmarks import node
from kp_frontend.nodes import threads
from kp_frontend.replay.summary import Percentiles


class FourFrames:
    """Camera and node in one: of four frames the first three are processed, and the first two come back after 5 ms."""

    def __init__(self):
        self.received, self.settled = {}, []

    def send(self, count, rate):
        self.received.update({10: 5_000_010, 20: 5_000_020})
        return [10, 20, 30, 40]

    def settle(self, sent, patience=1.0):
        self.settled.append((list(sent), patience))

    def start_measuring(self):
        pass

    def usage(self):
        return 1.0, 2.0, 0.0

    def frames(self):
        return [{"stamp": 20, "timings": {}}, {"stamp": 30, "timings": {}}, {"stamp": 40, "error": "no image"}]


def test_what_the_node_dropped_is_told_from_what_was_lost_on_the_way_back():
    frames = FourFrames()
    tried = node._tried(frames, frames, (640, 480), 30.0, 1.0)
    assert (tried.sent, tried.dropped, tried.lost) == (4, 1, 1)
    assert (tried.latency.p50, tried.cpu) == (5.0, 50.0)
    assert len(frames.settled) == node._TRIES
    figures = node.NodeFigures("orb", Percentiles(10.0, 11.0, 12.0), (replace(tried, dropped=0),), ())
    assert figures.drop_free == 30.0


def test_warm_up_ends_with_the_newest_image():
    """However long the node compiles: the first frame of the first try finds it ready."""
    frames = FourFrames()
    node._warm_up(frames)
    assert frames.settled == [([40], node._COMPILES)]


def test_extraction_alone_has_the_threads_of_the_node(monkeypatch):
    seen = []
    extractor = SimpleNamespace(extract=lambda image: seen.append((cv2.getNumThreads(), image.shape)))
    monkeypatch.setattr(node, "load_extractor", lambda *arguments, **options: extractor)
    monkeypatch.setattr(node, "_EXTRACTED", 1)
    monkeypatch.setattr(node, "_IMAGES", 2)
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    before = cv2.getNumThreads()
    try:
        node.extraction_times("orb", 10, lambda *done: None)
    finally:
        cv2.setNumThreads(before)
    assert set(seen) == {(3, (480, 640))}
