"""Two frames in work at a time: the same results as one after the other, in order, none lost."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest

pytest.importorskip("rclpy")

import cv2
from node_harness import PERIOD, Harness, depth_message
from skimage import data
from waiting import until

from kp_frontend import messages
from kp_frontend.camera import CameraModel
from kp_frontend.extractors.classical import ClassicalExtractor
from kp_frontend.nodes.frontend_node import FrontendNode
from kp_frontend.nodes.slot import NewestSlot
from kp_frontend.nodes.threads import set_threads
from kp_frontend.odometry import OdometryConfig
from kp_frontend.pipeline import Frame, Frontend

extractor = partial(FrontendNode, "extractor", odometry=False)
odometry = partial(FrontendNode, "odometry", odometry=True)
CAMERA = CameraModel(320, 240, np.array([[300, 0, 160], [0, 300, 120], [0, 0, 1.0]]))
BASELINE = 0.1


def view(shift: int) -> np.ndarray:
    return np.ascontiguousarray(data.camera()[120:360, 80 - shift : 400 - shift])


def frames(sensor: str, count: int = 6) -> list[Frame]:
    """A camera that moves to the left, 2 m before a wall; the first stamp is the harness's."""
    depth, right = np.full((240, 320), 2, np.float32), BASELINE * 300 / 2
    return [
        Frame(10**9 + k * PERIOD, view(3 * k), depth=depth if sensor == "depth" else None,
              right=view(3 * k - round(right)) if sensor == "right" else None)
        for k in range(count)
    ]


def frontend(features: str) -> Frontend:
    return Frontend(features, top_k=300, camera=CAMERA, baseline=BASELINE, odometry=OdometryConfig())


def assert_same(one, other) -> None:
    np.testing.assert_array_equal(one.features.keypoints, other.features.keypoints)
    np.testing.assert_array_equal(one.tracks.ids, other.tracks.ids)
    for name in ("query", "train", "distances"):
        np.testing.assert_array_equal(getattr(one.matches, name), getattr(other.matches, name))
    assert one.previous_stamp == other.previous_stamp
    np.testing.assert_array_equal(one.state.world_from_camera, other.state.world_from_camera)


@pytest.mark.parametrize("sensor", ["depth", "right"])
@pytest.mark.parametrize("features", ["orb", "gftt_lk"])
def test_extraction_ahead_changes_nothing(features, sensor):
    whole, halves = frontend(features), frontend(features)
    recorded = frames(sensor)
    ahead = [halves.extract(frame) for frame in recorded]
    for frame, extracted in zip(recorded, ahead):
        output = halves.follow(extracted)
        assert_same(output, whole.process(frame))
    assert output.state.status == "tracking"
    assert output.state.metric


@pytest.mark.parametrize(("overlap", "said"), [("always", "on"), ("never", "off")])
def test_the_node_gives_what_the_pipeline_gives(overlap, said):
    offline, recorded = frontend("orb"), frames("depth")
    expected = {frame.stamp: offline.process(frame) for frame in recorded}
    topics = ["features", "matches", "odometry"]
    with Harness(odometry, topics, mode="rgbd", top_k=300, overlap=overlap, opencv_threads=2) as harness:
        harness.calibrate()
        for frame in recorded:
            header = harness.header(frame.stamp)
            harness.publish("depth", depth_message(frame.depth, header))
            harness.send(frame.image, header)
            time.sleep(0.1)
        for stamp, output in expected.items():
            features, tracks, _ = harness.features(stamp)
            np.testing.assert_array_equal(features.keypoints, output.features.keypoints)
            np.testing.assert_array_equal(tracks.ids, output.tracks.ids)
            found = messages.matches_from_message(harness.wait("matches", stamp))
            np.testing.assert_array_equal(found.matches.train, output.matches.train)
            pose = messages.pose_from_message(harness.wait("odometry", stamp).pose.pose)
            np.testing.assert_allclose(pose, output.state.world_from_camera, atol=1e-9)
        order = [messages.stamp_from_message(message.header.stamp) for message in harness.received["features"]]
        assert order == list(expected)
        assert harness.status()["overlap"] == said
        assert harness.status()["dropped"] == 0


def hold(monkeypatch, node, half: str) -> threading.Event:
    """The node's tracker stops in `half` until the event is set."""
    gate, whole = threading.Event(), getattr(node._tracker, half)

    def held(*arguments):
        gate.wait(10)
        return whole(*arguments)

    monkeypatch.setattr(node._tracker, half, held)
    return gate


def test_a_frame_is_extracted_while_the_one_before_is_followed(monkeypatch):
    with Harness(extractor, top_k=100, overlap="always") as harness:
        extracted, extract = [], harness.node._tracker.extract

        def counted(*arguments):
            extracted.append(arguments)
            return extract(*arguments)

        monkeypatch.setattr(harness.node._tracker, "extract", counted)
        gate = hold(monkeypatch, harness.node, "follow")
        stamps = [harness.send(view(0))]
        harness.until(lambda: len(extracted) == 1, "first extraction")
        for shift in (2, 4, 6):
            stamps.append(harness.send(view(shift)))
            time.sleep(0.1)
        assert len(extracted) == 2  # the first is being followed, the second waits for that, and the newest for both
        gate.set()
        for stamp in (stamps[0], stamps[1], stamps[3]):
            harness.wait("features", stamp)
        order = [messages.stamp_from_message(message.header.stamp) for message in harness.received["features"]]
        assert order == [stamps[0], stamps[1], stamps[3]]
        assert harness.status()["dropped"] == 1


@pytest.mark.parametrize(("concurrent", "overlap", "at_once"), [(True, "always", 2), (False, "always", 1),
                                                                (True, "never", 1)])
def test_frames_are_extracted_at_once_where_the_tracker_can(monkeypatch, concurrent, overlap, at_once):
    monkeypatch.setattr(ClassicalExtractor, "concurrent", concurrent)
    with Harness(extractor, top_k=100, overlap=overlap) as harness:
        within, tracker = [], harness.node._tracker
        gate, extract = threading.Event(), tracker.extract

        def held(*arguments):
            within.append(arguments)
            assert gate.wait(10)
            return extract(*arguments)

        monkeypatch.setattr(tracker, "extract", held)
        stamps = [harness.send(view(0))]
        harness.until(lambda: len(within) == 1, "first extraction")
        stamps.append(harness.send(view(2)))
        time.sleep(0.2)
        assert len(within) == at_once
        gate.set()
        for stamp in stamps:
            harness.wait("features", stamp)
        order = [messages.stamp_from_message(message.header.stamp) for message in harness.received["features"]]
        assert order == stamps


def test_a_jump_back_starts_anew_after_the_frame_in_work(monkeypatch):
    with Harness(extractor, ["features", "matches"], top_k=100, overlap="always") as harness:
        first = harness.send(view(0))
        harness.wait("features", first)
        gate = hold(monkeypatch, harness.node, "follow")
        second = harness.send(view(2))
        time.sleep(0.1)
        back = harness.send(view(4), harness.header(5))
        time.sleep(0.1)
        gate.set()
        after = messages.matches_from_message(harness.wait("matches", second))
        assert after.train_stamp == first
        assert len(after.matches) > 50
        assert len(messages.matches_from_message(harness.wait("matches", back)).matches) == 0
        ids = [harness.features(stamp)[1].ids for stamp in (first, second, back)]
        assert not set(ids[2]) & {*ids[0], *ids[1]}


class Steps:
    """What a slot was given to do: `work` of an item waits for its own gate, and gives its tenfold."""

    def __init__(self, count: int) -> None:
        self.gates = [threading.Event() for _ in range(count)]
        self.begun, self.ended, self.dropped = [], [], []

    def work(self, item):
        self.begun.append(item)
        assert self.gates[item].wait(10)
        return 10 * item

    def slot(self, **sizes) -> NewestSlot:
        return NewestSlot(self.work, self.dropped.append, self.ended.append, **sizes)


def test_two_in_work_end_in_order():
    steps = Steps(4)
    slot = steps.slot(threads=2, at_once=2)
    for item in range(2):
        slot.put(item)
        until(lambda item=item: steps.begun == [*range(item + 1)])
    slot.put(2)
    slot.put(3)
    assert steps.dropped == [2]
    steps.gates[1].set()
    time.sleep(0.05)
    assert not steps.ended
    steps.gates[0].set()
    until(lambda: steps.ended == [0, 10])
    steps.gates[3].set()
    until(lambda: steps.ended == [0, 10, 30])
    slot.close()


def test_one_at_once_while_the_one_before_ends():
    steps, gate = Steps(4), threading.Event()
    slot = NewestSlot(steps.work, steps.dropped.append, lambda result: gate.wait(10), threads=2, at_once=1)
    slot.put(0)
    until(lambda: steps.begun == [0])
    slot.put(1)
    time.sleep(0.05)
    assert steps.begun == [0]
    steps.gates[0].set()
    until(lambda: steps.begun == [0, 1])
    steps.gates[1].set()
    for item in (2, 3):
        slot.put(item)
    time.sleep(0.05)
    assert steps.begun == [0, 1]  # the first is not ended, and the second waits for that
    assert steps.dropped == [2]
    gate.set()
    steps.gates[3].set()
    until(lambda: steps.begun == [0, 1, 3])
    slot.close()


def test_what_makes_nothing_holds_nobody_up():
    ended = []
    slot = NewestSlot(lambda item: None if item == 0 else item, lambda item: None, ended.append, threads=2)
    for item in range(3):
        slot.put(item)
        time.sleep(0.02)
    until(lambda: ended == [1, 2])
    slot.close()


def test_closing_frees_who_waits():
    steps = Steps(2)
    slot = steps.slot(threads=2, at_once=2)
    for item in range(2):
        slot.put(item)
        until(lambda item=item: item in steps.begun)
    steps.gates[1].set()
    slot.close(timeout=0.05)
    until(lambda: sum(thread.is_alive() for thread in slot._threads) == 1)
    steps.gates[0].set()
    until(lambda: not any(thread.is_alive() for thread in slot._threads))
    assert not steps.ended


@pytest.mark.parametrize(("overlap", "cores", "expected"), [
    ("auto", 1, False), ("auto", 2, True), ("always", 1, True), ("never", 8, False),
])
def test_two_frames_at_a_time_want_two_cores(overlap, cores, expected):
    assert set_threads(overlap, 0, cores) is expected
    assert cv2.getNumThreads() == cores


def test_the_node_sets_opencv_threads():
    with Harness(extractor, top_k=100, opencv_threads=1, threads=1):
        assert cv2.getNumThreads() == 1
