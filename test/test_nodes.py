"""The nodes over real rclpy: what they publish, what they refuse, and that they live on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

import yaml
from node_harness import OUTPUTS, PERIOD, Harness, camera_info, depth_message
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image, PointField
from skimage import data

from kp_frontend import messages
from kp_frontend.errors import InputError
from kp_frontend.extractors import load_extractor
from kp_frontend.nodes import matcher, parameters
from kp_frontend.nodes.frontend_node import FrontendNode
from kp_frontend.nodes.matcher import MatcherNode
from kp_frontend.nodes.slot import NewestSlot
from kp_frontend.nodes.synchronizer import StampSynchronizer

ROOT = Path(__file__).resolve().parents[1]
PHOTO = data.camera()
extractor = partial(FrontendNode, "extractor", odometry=False)
odometry = partial(FrontendNode, "odometry", odometry=True)


def view(shift: int = 0) -> np.ndarray:
    """320×240 cut of a photograph, which moves right by `shift` pixels."""
    return np.ascontiguousarray(PHOTO[120:360, 80 - shift : 400 - shift])


@pytest.fixture(scope="module")
def extractor_node():
    with Harness(extractor, ["features", "matches", "tracks_vins", "overlay", "/diagnostics"], top_k=300) as harness:
        harness.calibrate()
        yield harness


@pytest.fixture(scope="module")
def odometry_node():
    with Harness(odometry, ["features", "odometry", "path"], mode="rgbd", top_k=300) as harness:
        harness.calibrate()
        yield harness


def send_rgbd(harness: Harness, image: np.ndarray, depth: np.ndarray | None = None) -> int:
    header = harness.header()
    harness.publish("depth", depth_message(np.full(image.shape[:2], 2.0) if depth is None else depth, header))
    return harness.send(image, header)


def test_features_are_those_of_the_extractor(extractor_node):
    stamp = extractor_node.send(view())
    features, tracks, bearings = extractor_node.features(stamp)
    expected = load_extractor("orb", top_k=300).extract(view())
    np.testing.assert_array_equal(features.keypoints, expected.keypoints)
    np.testing.assert_array_equal(features.descriptors, expected.descriptors)
    assert features.metric == "hamming"
    assert (tracks.ids > 0).all()
    np.testing.assert_allclose(bearings[:, 0], (expected.keypoints[:, 0] - 160) / 300, atol=1e-6)
    assert (bearings[:, 2] == 1).all()
    assert extractor_node.wait("features", stamp).header.frame_id == "camera"


def test_a_moving_picture_gives_matches_tracks_and_velocities(extractor_node):
    first = extractor_node.send(view())
    extractor_node.features(first)
    second = extractor_node.send(view(3))
    found = messages.matches_from_message(extractor_node.wait("matches", second))
    assert found.train_stamp == first
    moved = found.query_points - found.train_points
    assert len(moved) > 100
    assert np.median(moved, axis=0) == pytest.approx((3, 0), abs=0.2)
    before, after = extractor_node.features(first)[1], extractor_node.features(second)[1]
    np.testing.assert_array_equal(after.ids[found.matches.query], before.ids[found.matches.train])
    vins = extractor_node.wait("tracks_vins", second)
    values = {channel.name: np.array(channel.values) for channel in vins.channels}
    assert list(values) == ["id", "u", "v", "vx", "vy"]
    assert np.median(values["vx"]) == pytest.approx(3 / 300 / (PERIOD * 1e-9), rel=0.05)
    assert set(values["id"].astype(int)) <= set(after.ids.tolist())


def test_overlay_is_the_image_with_keypoints(extractor_node):
    stamp = extractor_node.send(view())
    overlay = extractor_node.wait("overlay", stamp)
    assert (overlay.width, overlay.height, overlay.encoding) == (320, 240, "bgr8")
    drawn = np.frombuffer(overlay.data, np.uint8).reshape(240, 320, 3)
    assert 0.01 < (drawn != view()[..., None]).any(axis=2).mean() < 0.9


def test_diagnostics_once_a_second(extractor_node):
    stamp = extractor_node.send(view())
    extractor_node.features(stamp)
    count = len(extractor_node.received["/diagnostics"])
    extractor_node.until(lambda: len(extractor_node.received["/diagnostics"]) > count + 1, "diagnostics")
    status = extractor_node.received["/diagnostics"][-1].status[0]
    values = {pair.key: pair.value for pair in status.values}
    assert status.name == "/extractor"
    assert values["model"] == "orb"
    for stage in ("decode", "extract", "match", "publish", "total"):
        assert 0 < float(values[f"{stage}_ms_p50"]) <= float(values[f"{stage}_ms_p99"])
    assert int(values["keypoints"]) > 100
    assert int(values["processed"]) <= int(values["received"])


def image_message(harness: Harness, **changes) -> Image:
    message = messages.image_to_message(view(), harness.header())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(("changes", "words"), [
    ({"encoding": "nv61x"}, "nv61x"),
    ({"height": 480}, "480"),
    ({"step": 10}, "step"),
    ({"width": 0}, "0"),
    ({"height": 120}, "camera_info says 320×240"),
])
def test_bad_image_is_said_and_the_next_good_one_processed(extractor_node, changes, words):
    extractor_node.publish("image", image_message(extractor_node, **changes))
    extractor_node.until_error(words)
    assert len(extractor_node.features(extractor_node.send(view()))[0]) > 100


@pytest.mark.parametrize("image", [
    np.zeros((240, 320), np.uint8), np.full((240, 320), 255, np.uint8), cv2.GaussianBlur(view(), (0, 0), 25),
    cv2.circle(np.zeros((240, 320), np.uint8), (160, 120), 3, 255, -1),
], ids=["black", "white", "blurred", "one dot"])
def test_pictures_of_nothing_give_few_features_and_no_error(extractor_node, image):
    errors = extractor_node.status()["errors"]
    assert len(extractor_node.features(extractor_node.send(image))[0]) < 50
    assert len(extractor_node.features(extractor_node.send(view()))[0]) > 100
    assert extractor_node.status()["errors"] == errors


def test_repeated_stamp_is_skipped_and_counted(extractor_node):
    header = extractor_node.header()
    extractor_node.send(view(), header)
    extractor_node.wait("features", messages.stamp_from_message(header.stamp))
    repeated = extractor_node.status()["repeated"]
    extractor_node.send(view(), header)
    extractor_node.until(lambda: extractor_node.status()["repeated"] == repeated + 1, "repeat")
    extractor_node.features(extractor_node.send(view()))


def test_stamps_that_jump_back_start_anew(odometry_node):
    for shift in range(3):
        last = send_rgbd(odometry_node, view(shift))
        odometry_node.wait("odometry", last)
    assert len(odometry_node.wait("path", last).poses) >= 3
    old_ids = odometry_node.features(last)[1].ids
    for index, shift in enumerate((5, 6)):
        header = odometry_node.header(5_000_000 + index * PERIOD)
        odometry_node.publish("depth", depth_message(np.full((240, 320), 2.0), header))
        stamp = odometry_node.send(view(shift), header)
        assert len(odometry_node.wait("path", stamp).poses) == index + 1
    first = odometry_node.wait("odometry", 5_000_000)
    np.testing.assert_allclose(messages.pose_from_message(first.pose.pose), np.eye(4), atol=1e-9)
    assert not set(odometry_node.features(stamp)[1].ids) & set(old_ids)


def test_odometry_follows_the_camera(odometry_node):
    stamps = []
    for shift in (0, 4, 8, 12):
        stamps.append(send_rgbd(odometry_node, view(shift)))
        odometry_node.wait("odometry", stamps[-1])
    start, end = (messages.pose_from_message(odometry_node.wait("odometry", stamps[k]).pose.pose) for k in (0, -1))
    # The picture moves right by 12 px at 2 m and a focal length of 300 px: the camera went left by 8 cm.
    np.testing.assert_allclose((np.linalg.inv(start) @ end)[:3, 3], (-0.08, 0, 0), atol=0.01)
    message = odometry_node.wait("odometry", stamps[-1])
    assert (message.header.frame_id, message.child_frame_id) == ("odom", "camera")
    assert message.pose.covariance[0] > 0


@pytest.mark.parametrize(("depth", "words"), [
    (np.zeros((240, 320)), ""), (np.full((120, 160), 2.0), "depth is 160×120"),
], ids=["all zero", "wrong size"])
def test_bad_depth_and_the_next_good_frame_has_a_pose(odometry_node, depth, words):
    send_rgbd(odometry_node, view(), depth)
    odometry_node.until_error(words)
    for shift in (0, 2):
        stamp = send_rgbd(odometry_node, view(shift))
    odometry_node.wait("odometry", stamp)


def test_depth_of_an_unknown_encoding_leaves_the_image_usable(odometry_node):
    header = odometry_node.header()
    depth = depth_message(np.full((240, 320), 2.0), header)
    depth.encoding = "rgb8"
    odometry_node.publish("depth", depth)
    odometry_node.features(odometry_node.send(view(), header))
    odometry_node.until_error("rgb8")


def test_without_calibration_bearings_are_zero_and_poses_wait():
    with Harness(odometry, ["features", "odometry"], mode="mono", top_k=100) as harness:
        features, _, bearings = harness.features(harness.send(view()))
        assert len(features) > 50
        assert not bearings.any()
        harness.publish("camera_info", camera_info(k=np.zeros(9)))
        harness.until_error("K = 0")
        assert "/camera_info" in harness.last_error()
        assert not harness.features(harness.send(view()))[2].any()
        harness.calibrate()
        assert (harness.features(harness.send(view()))[2][:, 2] == 1).all()
        assert harness.status()["status"] == "initialising"
        assert not harness.received["odometry"]


def test_calibration_file_needs_no_camera_info(tmp_path):
    file = tmp_path / "intrinsics.yaml"
    file.write_text("fx: 300\nfy: 300\ncx: 160\ncy: 120\nwidth: 320\nheight: 240\n", encoding="utf-8")
    with Harness(extractor, top_k=100, calibration_file=str(file)) as harness:
        assert (harness.features(harness.send(view()))[2][:, 2] == 1).all()
        assert not harness.node.count_subscribers("camera_info")


def test_stereo_waits_for_the_baseline_and_then_is_metric():
    with Harness(odometry, ["features", "odometry"], mode="stereo", top_k=300) as harness:
        harness.calibrate()
        harness.publish("right/camera_info", camera_info(shift=0.0))
        harness.until_error("right/camera_info")
        harness.publish("right/camera_info", camera_info(shift=-30.0))  # 10 cm
        time.sleep(0.1)
        for shift in (0, 2):
            header = harness.header()
            harness.send(view(shift - 15), header, "right/image")  # disparity 15 px: 2 m
            stamp = harness.send(view(shift), header)
            harness.wait("odometry", stamp)
        assert harness.status()["metric"] is True


def test_compressed_images_and_a_truncated_one():
    with Harness(extractor, top_k=200, image_transport="compressed") as harness:
        jpeg = cv2.imencode(".jpg", view())[1].reshape(-1)
        for data_, bad in ((jpeg, False), (jpeg[: len(jpeg) // 2], True), (jpeg[:0], True), (jpeg, False)):
            header = harness.header()
            message = CompressedImage(header=header, format="jpeg", data=messages.byte_array(data_))
            errors = harness.status()["errors"]
            harness.publish("image/compressed", message)
            if bad:
                harness.until(lambda errors=errors: harness.status()["errors"] == errors + 1, "error")
            else:
                assert len(harness.features(messages.stamp_from_message(header.stamp))[0]) > 100


def test_nothing_is_done_for_no_one():
    with Harness(extractor, [], top_k=100) as harness:
        harness.send(view())
        harness.until(lambda: harness.status()["idle"] == 1, "idle frame")
        assert harness.status()["processed"] == 0


@pytest.mark.parametrize("half", ["extract", "follow"])
def test_a_surprise_inside_a_frame_does_not_end_the_node(extractor_node, monkeypatch, half):
    def explode(*_):
        raise RuntimeError("first line\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(extractor_node.node._tracker, half, explode)
        extractor_node.send(view())
        extractor_node.until_error("RuntimeError")
    extractor_node.features(extractor_node.send(view()))


def test_live_parameters_change_and_others_do_not(extractor_node):
    def change(name, value):
        return extractor_node.node.set_parameters([Parameter(name, value=value)])[0]

    assert not change("vins_profile", "stereo").successful
    assert "mono, fusion" in change("vins_profile", "stereo").reason
    assert not change("top_k", 10).successful
    assert change("vins_profile", "fusion").successful
    extractor_node.features(extractor_node.send(view()))
    vins = extractor_node.wait("tracks_vins", extractor_node.send(view()))
    assert len(vins.channels) == 9
    assert change("vins_profile", "mono").successful


@pytest.mark.parametrize(("given", "words"), [
    ({"features": "akaze"}, "unknown features 'akaze'"), ({"backend": "tpu"}, "choose one of: auto"),
    ({"top_k": 0}, "expected 1 to"), ({"top_k": "many"}, "whole number"), ({"rectified": 1}, "true or false"),
    ({"calibration_file": "/nowhere.yaml"}, "nowhere.yaml"), ({"frame_log": "/nowhere/log"}, "frame_log"),
    ({"qos_overrides./image.subscription.reliability": "perfect"}, "perfect"),
])
def test_bad_parameter_values_are_refused_at_start(given, words):
    with pytest.raises(InputError, match=words) as error, Harness(extractor, **given):
        pass
    assert "\n" not in str(error.value)


def test_qos_can_be_overridden():
    with Harness(extractor, **{"qos_overrides./features.publisher.reliability": "best_effort"}) as harness:
        info = harness.friend.get_publishers_info_by_topic("features")
        assert info[0].qos_profile.reliability.name == "BEST_EFFORT"
        image = harness.friend.get_subscriptions_info_by_topic("image")
        assert image[0].qos_profile.reliability.name == "BEST_EFFORT"  # sensor data


def test_misspelt_parameter_is_warned_of(capfd):
    with Harness(extractor, feature="orb"):
        pass
    assert "did you mean features?" in capfd.readouterr().err


def cloud(features, header, metric=None):
    tracks = messages.Tracks.empty(len(features))
    return messages.features_to_message(features, tracks, header)


def test_matcher_pairs_two_cameras():
    orb = load_extractor("orb", top_k=200)
    with Harness(MatcherNode, ["matches"]) as harness:
        left, right = orb.extract(view()), orb.extract(view(-10))
        header, late = harness.header(), None
        stamp = messages.stamp_from_message(header.stamp)
        late = harness.header(stamp + 20_000_000)
        harness.publish("features_b", cloud(right, late))
        harness.publish("features_a", cloud(left, header))
        found = messages.matches_from_message(harness.wait("matches", stamp))
        assert found.train_stamp == stamp + 20_000_000
        assert np.median(found.train_points - found.query_points, axis=0) == pytest.approx((-10, 0), abs=0.2)
        sift = load_extractor("sift", top_k=50).extract(view())
        header = harness.header(stamp + 500_000_000)
        harness.publish("features_b", cloud(sift, header))
        harness.publish("features_a", cloud(left, header))
        harness.until(lambda: harness.last_error(), "error about metrics")
        header = harness.header(stamp + 600_000_000)
        harness.publish("features_b", cloud(right, header))
        harness.publish("features_a", cloud(left, header))
        harness.wait("matches", stamp + 600_000_000)


@pytest.mark.parametrize("surprise", [False, True])
def test_a_foreign_cloud_does_not_end_the_matcher(monkeypatch, surprise):
    def explode(*_, **__):
        raise RuntimeError("first line\nsecond line")

    features = load_extractor("orb", top_k=50).extract(view())
    with Harness(MatcherNode, ["matches"]) as harness:
        header = harness.header()
        good, foreign = cloud(features, header), cloud(features, header)
        foreign.fields = [field for field in foreign.fields if field.name not in ("hamming", "descriptor")]
        foreign.fields.append(PointField(name="descriptor", offset=40, datatype=PointField.FLOAT64, count=4))
        with monkeypatch.context() as patch:
            if surprise:
                patch.setattr(matcher, "match", explode)
            harness.publish("features_b", good)
            harness.publish("features_a", good if surprise else foreign)
            harness.until_error("RuntimeError" if surprise else "has 4 float64 a point")
        assert harness.status()["errors"] == 1
        good.header = harness.header()
        harness.publish("features_b", good)
        harness.publish("features_a", good)
        harness.wait("matches", messages.stamp_from_message(good.header.stamp))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full, which takes nothing")
@pytest.mark.parametrize("first_bad", [False, True])
def test_a_full_disk_ends_the_frame_log_and_not_the_node(first_bad):
    with Harness(extractor, top_k=100, frame_log="/dev/full") as harness:
        if first_bad:
            harness.publish("image", image_message(harness, encoding="yuv99"))
        else:
            harness.send(view())
        harness.until_error("frame_log /dev/full: No space left on device")
        errors = harness.status()["errors"]
        assert errors == 1 + first_bad
        for _ in range(3):
            harness.features(harness.send(view()))
        assert harness.status()["errors"] == errors


def test_newest_frame_wins():
    gate, done, dropped = threading.Event(), [], []

    def work(item):
        gate.wait(5)
        done.append(item)

    slot = NewestSlot(work, dropped.append)
    for item in range(5):
        slot.put(item)
        time.sleep(0.05)
    gate.set()
    end = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    slot.close()
    assert done == [0, 4]
    assert dropped == [1, 2, 3]


def pairs(events, **options):
    """What a synchroniser emits for ("main"|"depth", stamp) events."""
    emitted = []
    sync = StampSynchronizer(["depth"], lambda main, others: emitted.append((main, others["depth"])), **options)
    for name, stamp in events:
        if name == "main":
            sync.add_main(stamp, stamp)
        else:
            sync.add(name, stamp, stamp)
    return emitted


def test_synchronizer_takes_the_nearest_within_tolerance():
    events = [("depth", 98), ("main", 100), ("depth", 101), ("main", 200), ("depth", 240), ("main", 300)]
    events.append(("depth", 300))
    assert pairs(events, tolerance=10) == [(100, 101), (200, None), (300, 300)]


def test_synchronizer_does_not_wait_for_ever():
    assert pairs([("main", 100), ("main", 200)], tolerance=10) == []
    assert pairs([("main", 100), ("main", 200), ("main", 300)], tolerance=10) == [(100, None)]


def test_synchronizer_measures_half_a_frame():
    events = [(name, stamp) for stamp in range(0, 1000, 100) for name in ("main", "depth")]
    late = [*events, ("main", 1000), ("depth", 1049), ("main", 1100), ("depth", 1151)]
    assert pairs(late)[-2:] == [(1000, 1049), (1100, 1049 if abs(1049 - 1100) <= 50 else None)]


def test_synchronizer_survives_a_loop():
    events = [("main", 1000), ("depth", 1000), ("depth", 1100)]
    again = [("main", 0), ("depth", 0), ("main", 100), ("depth", 100)]
    assert pairs(events + again, tolerance=10) == [(1000, 1000), (0, 0), (100, 100)]


def run_node(*words, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "kp_frontend", *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF", "ROS_DOMAIN_ID": "98", **environment},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_node_process_ends_cleanly(number):
    process = run_node("odometry", "--ros-args", "-p", "top_k:=100")
    line = process.stderr.readline()
    while line and "waiting for images" not in line:
        line = process.stderr.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("words", "said"), [
    (["extractor", "--ros-args", "-p", "backend:=tpu"], "unknown backend 'tpu'"),
    (["extractor", "--rate", "3"], "unexpected argument"),
    (["odometry", "--ros-args", "--params-file", "/nowhere.yaml"], "nowhere.yaml"),
    (["matcher", "--ros-args", "-p", "method:=magic"], "mutual_nn"),
])
def test_bad_command_lines_exit_with_2_and_one_line(words, said):
    process = run_node(*words)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said in errors
    assert "Traceback" not in errors
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1


@pytest.mark.parametrize("node", ["extractor", "odometry", "matcher"])
def test_help_teaches_topics_and_parameters(node):
    process = run_node(node, "--help")
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    for parameter in TABLES[node]:
        assert f"  {parameter.name} := " in text
    if node != "matcher":
        assert all(topic in text for topic in OUTPUTS if topic not in ("odometry", "path"))


TABLES = {"extractor": parameters.EXTRACTOR, "odometry": parameters.ODOMETRY, "matcher": parameters.MATCHER}


@pytest.mark.parametrize("node", TABLES)
def test_choices_are_strings_as_ros_reads_them(node):
    for parameter in TABLES[node]:
        if parameter.choices:
            assert parameter.problem(False).endswith(f"expected one of: {', '.join(parameter.choices)}")
        for choice in parameter.choices:
            assert yaml.safe_load(f"value: {choice}")["value"] == choice, f"{parameter.name}:={choice}"


@pytest.mark.parametrize("node", TABLES)
def test_config_files_hold_every_parameter_at_its_default(node):
    given = yaml.safe_load((ROOT / "config" / f"{node}.yaml").read_text(encoding="utf-8"))["/**"]["ros__parameters"]
    assert given == {parameter.name: parameter.default for parameter in TABLES[node]}
    assert all(type(given[parameter.name]) is type(parameter.default) for parameter in TABLES[node])
    assert all(not parameter.problem(parameter.default) for parameter in TABLES[node])
