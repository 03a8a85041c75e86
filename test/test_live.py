"""A bag through the real node in its own process: the same features and poses as offline, and what cannot be played."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("rosbags")

import rclpy
from rclpy.context import Context
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from skimage import data

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.features import Features, Tracks
from kp_frontend.messages import stamp_from_message
from kp_frontend.pipeline import Frontend
from kp_frontend.replay import live, node_process, player
from kp_frontend.replay.bag import open_bag
from kp_frontend.replay.bag_writer import BagWriter
from kp_frontend.replay.collector import Collector, Received
from kp_frontend.replay.live import compare, run_live
from kp_frontend.replay.node_process import NodeProcess, private_domain
from kp_frontend.replay.offline import RunOptions, odometry_config

CAMERA = CameraModel(320, 240, np.array([[300, 0, 160], [0, 300, 120], [0, 0, 1.0]]))
FRAMES = 12
PERIOD = 100_000_000
START = 5_000_000_000


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    """RGB-D of a photograph 2 m away that a camera passes by."""
    path = tmp_path_factory.mktemp("live") / "bag"
    photo = data.camera()
    with BagWriter(path, CAMERA) as writer:
        for k in range(FRAMES):
            image = np.ascontiguousarray(photo[120:360, 80 - 2 * k : 400 - 2 * k])
            pose = np.eye(4)
            pose[0, 3] = -2 * k * 2 / 300
            writer.write(START + k * PERIOD, image, np.full((240, 320), 2, np.float32), world_from_camera=pose)
    return path


def test_live_is_offline_over_dds(bag):
    with open_bag(bag) as sequence:
        result = run_live(sequence, "orb", RunOptions(top_k=300, overlays=2))
        frontend = Frontend("orb", top_k=300, camera=sequence.camera, odometry=odometry_config(sequence))
        outputs = {recorded.stamp: frontend.process(recorded.decode()) for recorded in sequence.frames()}
    run = result.run
    assert run.stamps.tolist() == [START + k * PERIOD for k in range(FRAMES)]
    assert set(result.received) | set(run.dropped) == set(run.stamps.tolist())
    compared = compare(result.features, {stamp: output.features for stamp, output in outputs.items()})
    assert compared.frames == len(result.received) >= FRAMES // 2
    assert (compared.same, compared.share, compared.worst) == (compared.frames, 1.0, 0.0)
    if not run.dropped:  # what was tracked depends on the frames before
        for stamp, pose in zip(run.trajectory.stamps.tolist(), run.trajectory.poses):
            np.testing.assert_allclose(pose, outputs[stamp].state.world_from_camera, atol=1e-6)
    assert (run.status[~np.isnan(run.latency)] == "tracking").all()
    assert len(run.trajectory) == len(result.received)
    assert (run.latency[~np.isnan(run.latency)] > 0).all()
    assert (run.counts["keypoints"] > 100).sum() == len(result.received)
    assert {"extract", "match", "odometry", "total"} <= set(run.timings)
    assert len(run.overlays) == 2
    assert run.cpu_seconds > 0
    assert run.memory_mb > 30


def test_a_frame_that_did_not_come_back_is_named(bag):
    with open_bag(bag) as sequence:
        stamps = sequence.stamps.tolist()[:3]
        collector = Collector(0)
        for stamp in (stamps[0], stamps[2]):
            collector.features[stamp] = Received(some_features((1, 1)), Tracks.empty(1), 7_000_000)
        log = {stamps[0]: {"stamp": stamps[0], "timings": {"total": 3.0}}, stamps[2]: {"error": "truncated"}}
        run = live.make_result(
            sequence, "orb", dict.fromkeys(stamps, 2_000_000), log, collector, (1.0, 2.0, 3.0), {}
        )
    assert run.stamps.tolist() == stamps
    assert run.dropped == (stamps[1],)
    assert run.status.tolist() == ["none", "dropped", "error"]
    assert run.errors == ((stamps[2], "truncated"),)
    np.testing.assert_array_equal(run.latency, [5, np.nan, 5])
    assert run.counts["keypoints"].tolist() == [1, 0, 0]
    assert (run.cpu_seconds, run.seconds, run.memory_mb) == (1, 2, 3)


def test_live_refuses_what_the_node_refuses(bag):
    with open_bag(bag) as sequence, pytest.raises(InputError, match="node ended: unknown features 'akaze'"):
        run_live(sequence, "akaze")


def test_without_shared_memory_images_are_asked_for_reliably(bag, monkeypatch):
    monkeypatch.setattr(node_process, "_NEEDED", 1 << 60)
    with open_bag(bag) as sequence:
        result = run_live(sequence, "gftt_lk", RunOptions(top_k=100, overlays=0, max_frames=4), rate=2.0)
    assert any("shared" in note or "/dev/shm" in note for note in result.run.notes)
    assert len(result.received) >= 2


def test_no_process_is_left(bag):
    import psutil

    with private_domain(), NodeProcess("extractor", {}, {}) as node:
        node.check()
        pid = node._process.pid
    assert not psutil.pid_exists(pid)


def play(bag, *words):
    return subprocess.run(
        [sys.executable, "-m", "kp_frontend.replay.player", str(bag), *words], capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF", "ROS_DOMAIN_ID": "97"},
    )


def test_player_keeps_the_bags_pace_and_writes_what_it_sent(bag, tmp_path):
    log = tmp_path / "sent.json"
    done = play(bag, "--rate", "2", "--images", "5", "--topics", "/camera/image_raw", "--log", str(log))
    assert done.returncode == 0, done.stderr
    sent = json.loads(log.read_text(encoding="utf-8"))["/camera/image_raw"]
    assert [int(stamp) for stamp in sent] == [START + k * PERIOD for k in range(5)]
    walls = list(sent.values())
    assert walls[-1] - walls[0] >= 4 * PERIOD / 2 * 0.99  # it may be late, never early


@pytest.mark.parametrize(("words", "said"), [
    (["--topics", "/camera/rgb"], "/camera/image_raw"),
    (["--wait-for", "/camera/image_raw", "--timeout", "0.1"], "nobody"),
])
def test_player_says_what_is_missing(bag, words, said):
    done = play(bag, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("recorded", "read"), [
    ("raw", "raw"), ("compressed", "compressed"), ("raw compressed", "raw"), ("raw compressed", "compressed"),
    ("raw", "compressed"), ("compressed", ""), ("", "raw"),
])
def test_player_waits_for_the_topic_or_its_compressed_twin(monkeypatch, recorded, read):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")
    kinds = {"raw": ("/image", Image), "compressed": ("/image/compressed", CompressedImage)}
    connections = [
        SimpleNamespace(topic=topic, msgtype=f"sensor_msgs/msg/{kind.__name__}")
        for topic, kind in (kinds[name] for name in recorded.split())
    ]
    context = Context()
    rclpy.init(context=context, domain_id=96)
    node = rclpy.create_node("player", context=context)
    try:
        if read:
            topic, kind = kinds[read]
            node.create_subscription(kind, topic, lambda _: None, 10)
        played = player.Player(node, SimpleNamespace(topics={}, connections=connections, is2=True))
        if read and read in recorded:
            played.wait_for_subscribers(["/image"], 10)
        else:
            with pytest.raises(InputError, match="nobody subscribed" if recorded else "/image is not played"):
                played.wait_for_subscribers(["/image"], 0.2)
    finally:
        node.destroy_node()
        context.try_shutdown()


@pytest.mark.parametrize("name", ["nothing.mcap", "broken.db3"])
def test_player_refuses_what_is_no_bag(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"SQLite format 3\0" + bytes(50))
    with pytest.raises(InputError, match=name), player.open_reader(tmp_path / name):
        pass


def test_ros1_bags_are_sent_as_ros2_messages(tmp_path):
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    header = types["std_msgs/msg/Header"](7, types["builtin_interfaces/msg/Time"](12, 345), "cam0")
    pixels = np.arange(12, dtype=np.uint8)
    region = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    contents = {
        "sensor_msgs/msg/Image": (header, 3, 4, "mono8", 0, 4, pixels),
        "sensor_msgs/msg/CameraInfo": (
            header, 3, 4, "plumb_bob", np.zeros(5), np.arange(9.0), np.zeros(9), np.arange(12.0), 0, 0, region,
        ),
    }
    with Writer(tmp_path / "ros1.bag") as writer:
        for kind, values in contents.items():
            connection = writer.add_connection(f"/{kind[-5:]}", kind, typestore=store)
            writer.write(connection, 10**9, store.serialize_ros1(types[kind](*values), kind))
    found = {}
    with player.open_reader(tmp_path / "ros1.bag") as reader:
        convert = player.cdr_converter(reader)
        for connection, _, raw in reader.messages():
            kind = player.message_class(connection.msgtype)
            found[kind] = deserialize_message(convert(raw, connection.msgtype), kind)
    image, info = found[Image], found[CameraInfo]
    assert (image.height, image.width, image.encoding, image.step) == (3, 4, "mono8", 4)
    assert bytes(image.data) == pixels.tobytes()
    assert image.header.frame_id == info.header.frame_id == "cam0"
    assert stamp_from_message(image.header.stamp) == 12_000_000_345
    assert list(info.k) == list(range(9))
    assert list(info.p) == list(range(12))


def some_features(*points) -> Features:
    keypoints = np.array(points, np.float32).reshape(-1, 2)
    return Features(keypoints, np.zeros(len(points), np.float32), np.zeros((len(points), 0), np.float32))


def test_comparison_by_hand():
    offline = {1: some_features((0, 0), (5, 5)), 2: some_features((1, 1), (9, 9)), 3: some_features((0, 0))}
    live = {1: some_features((0, 0), (5, 5.005)), 2: some_features((9, 9), (1, 2)), 4: some_features((0, 0))}
    compared = compare(live, offline, tolerance=0.01)
    assert (compared.frames, compared.same, compared.share) == (2, 1, 0.75)
    assert compared.worst == pytest.approx(0.005, abs=1e-6)


def test_comparison_of_nothing():
    assert compare({}, {}).frames == 0
    assert compare({1: some_features((1, 1))}, {1: some_features()}).share == 0
