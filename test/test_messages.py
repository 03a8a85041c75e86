"""Messages: layouts of DESIGN.md, exact round trips, what VINS reads."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from kp_frontend import messages
from kp_frontend.errors import InputError
from kp_frontend.features import Features, Matches, Tracks

STAMP = 1_700_000_000_123_456_789
HEADER = Header(stamp=messages.stamp_to_message(STAMP), frame_id="camera_left")


def make_features(count: int, size: int, metric: str = "l2", seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    if metric == "hamming":
        descriptors = rng.integers(0, 256, (count, size)).astype(np.uint8)
    else:
        descriptors = rng.normal(size=(count, size)).astype(np.float32)
        descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)
    scores, sizes, angles = rng.random((3, count)).astype(np.float32)
    keypoints = rng.random((count, 2)).astype(np.float32) * 600
    return Features(keypoints, scores, descriptors, metric, sizes, angles)


def make_tracks(count: int) -> Tracks:
    return Tracks(np.arange(1, count + 1, dtype=np.uint32) * 1_000_003, np.full(count, 3, np.uint32))


def test_stamp_keeps_every_nanosecond():
    assert messages.stamp_from_message(messages.stamp_to_message(STAMP)) == STAMP
    assert messages.stamp_to_message(STAMP).nanosec == 123_456_789


@pytest.mark.parametrize(("size", "metric"), [(32, "hamming"), (128, "l2"), (3, "l2"), (1, "hamming"), (0, "l2")])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_features_come_back_exactly(size, metric, count):
    features, tracks = make_features(count, size, metric), make_tracks(count)
    bearings = np.random.default_rng(1).random((count, 3)).astype(np.float32)
    message = messages.features_to_message(features, tracks, HEADER, bearings)
    found, found_tracks, found_bearings = messages.features_from_message(message)
    for name in ("keypoints", "scores", "descriptors", "sizes", "angles"):
        np.testing.assert_array_equal(getattr(found, name), getattr(features, name), err_msg=name)
    assert found.metric == metric
    np.testing.assert_array_equal(found_tracks.ids, tracks.ids)
    np.testing.assert_array_equal(found_tracks.ages, tracks.ages)
    np.testing.assert_array_equal(found_bearings, bearings)
    assert message.header == HEADER


def test_features_layout_is_the_designs():
    message = messages.features_to_message(make_features(5, 64), make_tracks(5), HEADER)
    layout = [(field.name, field.datatype, field.offset, field.count) for field in message.fields]
    names = ["x", "y", "z", "u", "v", "score", "size", "angle"]
    floats = [(name, PointField.FLOAT32, 4 * k, 1) for k, name in enumerate(names)]
    assert layout == [
        *floats, ("id", PointField.UINT32, 32, 1), ("age", PointField.UINT32, 36, 1),
        ("descriptor", PointField.FLOAT32, 40, 64),
    ]
    assert (message.height, message.width, message.point_step, message.row_step) == (1, 5, 296, 5 * 296)
    assert len(message.data) == message.row_step
    assert not messages.features_from_message(message)[2].any()  # uncalibrated: bearings 0 0 0


def test_uint8_descriptors_keep_the_direction():
    features = make_features(50, 64)
    message = messages.features_to_message(features, make_tracks(50), HEADER, descriptor_format="uint8")
    assert message.fields[-1].datatype == PointField.UINT8
    found = messages.features_from_message(message)[0]
    assert found.metric == "l2"
    cosines = (found.descriptors * features.descriptors).sum(axis=1)
    assert cosines.min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-6)


def test_quantize_by_hand():
    quantized = messages.quantize(np.array([[0.6, -0.8], [0, 0], [0, 1]], np.float32))
    assert quantized.tolist() == [[223, 1], [128, 128], [128, 255]]
    assert messages.dequantize(quantized[1:2]).tolist() == [[0, 0]]


def test_unknown_format_lists_the_valid_ones():
    with pytest.raises(InputError, match="float32, uint8"):
        messages.features_to_message(make_features(1, 4), make_tracks(1), HEADER, descriptor_format="float16")


def test_padded_rows_and_big_endian_are_read():
    points = np.array([(1, 2.5), (3, 4.5), (5, 6.5), (7, 8.5)], [("id", ">u4"), ("x", ">f4")])
    message = messages.cloud_to_message(*messages.new_points(4, np.dtype([("id", "<u4"), ("x", "<f4")])), HEADER)
    rows = np.zeros((2, 20), np.uint8)
    rows[:, :16] = points.view(np.uint8).reshape(2, 16)
    message.height, message.width, message.row_step, message.is_bigendian = 2, 2, 20, True
    message.data = messages.byte_array(rows)
    found = messages.cloud_from_message(message)
    assert found["id"].tolist() == [1, 3, 5, 7]
    assert found["x"].tolist() == [2.5, 4.5, 6.5, 8.5]


@pytest.mark.parametrize(("change", "words"), [
    ({"width": 9}, "bytes of data"),
    ({"row_step": 3}, "rows of 3"),
    ({"fields": [PointField(name="x", offset=0, datatype=77, count=1)]}, "datatype 77"),
    ({"fields": [PointField(name="x", offset=290, datatype=8, count=4)]}, "do not fit"),
    ({"fields": [PointField(name="x", offset=0, datatype=7, count=1)]}, "no field y, z"),
])
def test_foreign_clouds_are_refused_in_one_line(change, words):
    message = messages.features_to_message(make_features(5, 64), make_tracks(5), HEADER)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(InputError, match=words) as error:
        messages.features_from_message(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("metric", "field", "change", "words"), [
    ("l2", "descriptor", {"datatype": PointField.FLOAT64, "count": 4},
     "has 4 float64 a point, expected float32 or uint8"),
    ("hamming", "descriptor", {"datatype": PointField.INT8}, "has 8 int8 a point, expected uint8"),
    ("hamming", "descriptor", {"name": "bits"}, "no field descriptor"),
    ("l2", "u", {"count": 2}, "has 2 float32 a point, expected one number"),
    ("l2", "score", {"count": 0}, "has 0 float32 a point, expected one number"),
    ("l2", "id", {"count": 3}, "has 3 uint32 a point, expected one number"),
])
@pytest.mark.parametrize("count", [0, 5])
def test_fields_of_another_type_are_named(metric, field, change, words, count):
    message = messages.features_to_message(make_features(count, 8, metric), make_tracks(count), HEADER)
    message.fields = copy.deepcopy(message.fields)  # which messages of one layout share
    entry = next(entry for entry in message.fields if entry.name == field)
    for name, value in change.items():
        setattr(entry, name, value)
    with pytest.raises(InputError, match=words) as error:
        messages.features_from_message(message)
    assert field in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cloud_of_nothing_is_refused():
    with pytest.raises(InputError, match="point of 0 bytes"):
        messages.features_from_message(PointCloud2())


def test_matches_come_back_with_pixels_and_stamp():
    query, train = make_features(6, 4).keypoints, make_features(5, 4, seed=2).keypoints
    matches = Matches(np.array([0, 5, 2]), np.array([4, 0, 3]), np.array([0.5, 7, 0.25], np.float32))
    message = messages.matches_to_message(matches, query, train, HEADER, STAMP - 33_000_000)
    assert [field.name for field in message.fields] == \
        ["query_index", "train_index", "u0", "v0", "u1", "v1", "distance", "ref_sec", "ref_nanosec"]
    found = messages.matches_from_message(message)
    np.testing.assert_array_equal(found.matches.query, matches.query)
    np.testing.assert_array_equal(found.matches.train, matches.train)
    np.testing.assert_array_equal(found.matches.distances, matches.distances)
    np.testing.assert_array_equal(found.query_points, query[[0, 5, 2]])
    np.testing.assert_array_equal(found.train_points, train[[4, 0, 3]])
    assert found.train_stamp == STAMP - 33_000_000


def test_no_matches_is_a_message_too():
    empty = np.zeros((0, 2), np.float32)
    found = messages.matches_from_message(messages.matches_to_message(Matches.empty(), empty, empty, HEADER, STAMP))
    assert len(found.matches) == 0
    assert found.train_stamp == 0


@pytest.mark.parametrize(("profile", "names"), [
    ("mono", "id u v vx vy"), ("fusion", "id cam u v vx vy gx gy gz"),
])
def test_vins_channels(profile, names):
    features = make_features(3, 0)
    tracks = Tracks(np.array([7, 2**24 + 5, 9], np.uint32), np.array([2, 5, 1], np.uint32))  # the last one is new
    bearings = np.array([[0.1, 0.2, 1], [0.3, 0.4, 1], [0.5, 0.6, 1]], np.float32)
    velocities = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    message = messages.tracks_to_vins_message(features, tracks, bearings, velocities, HEADER, profile)
    assert [channel.name for channel in message.channels] == names.split()
    assert [(round(p.x, 5), round(p.y, 5), p.z) for p in message.points] == [(0.1, 0.2, 1.0), (0.3, 0.4, 1.0)]
    values = {channel.name: list(channel.values) for channel in message.channels}
    assert values["id"] == [7, 5]
    assert values["u"] == pytest.approx(features.keypoints[:2, 0])
    assert values["v"] == pytest.approx(features.keypoints[:2, 1])
    assert (values["vx"], values["vy"]) == ([1, 3], [2, 4])
    assert {len(channel.values) for channel in message.channels} == {2}
    assert message.header == HEADER


def test_vins_reads_nothing_that_is_not_a_number():
    features, tracks, nan = make_features(4, 0), make_tracks(4), np.nan
    bearings = np.array([[0.1, 0.2, 1], [nan, nan, nan], [0.5, 0.6, 1], [nan, nan, nan]], np.float32)
    velocities = np.array([[1, 2], [nan, nan], [nan, nan], [0, 0]], np.float32)  # the third had no ray before
    message = messages.tracks_to_vins_message(features, tracks, bearings, velocities, HEADER, "mono")
    assert [(round(p.x, 5), round(p.y, 5)) for p in message.points] == [(0.1, 0.2), (0.5, 0.6)]
    values = {channel.name: list(channel.values) for channel in message.channels}
    assert values["u"] == pytest.approx(features.keypoints[[0, 2], 0])
    assert (values["vx"], values["vy"]) == ([1, 0], [2, 0])


def test_unknown_vins_profile():
    with pytest.raises(InputError, match="fusion, mono"):
        messages.tracks_to_vins_message(
            make_features(0, 0), Tracks.empty(), np.zeros((0, 3)), np.zeros((0, 2)), HEADER, "stereo"
        )


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize("angle", [0, 1e-9, 0.3, 2, np.pi - 1e-9, np.pi])
def test_poses_come_back(angle):
    for axis in np.concatenate([np.eye(3), np.random.default_rng(3).normal(size=(5, 3))]):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation(axis, angle), (1, -2, 3)
        message = messages.pose_to_message(pose)
        np.testing.assert_allclose(messages.pose_from_message(message), pose, atol=1e-12)
        assert message.orientation.w >= 0


def test_quarter_turn_about_z_by_hand():
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    turn = messages.pose_to_message(pose).orientation
    assert (turn.x, turn.y, turn.z, turn.w) == pytest.approx((0, 0, 0.5**0.5, 0.5**0.5))


def test_zero_quaternion_is_refused():
    message = messages.pose_to_message(np.eye(4))
    message.orientation.w = 0.0
    with pytest.raises(InputError, match="quaternion"):
        messages.pose_from_message(message)


def test_odometry_says_where_it_knows_nothing():
    known = messages.odometry_to_message(np.eye(4), np.arange(36.0).reshape(6, 6), HEADER.stamp, "odom", "camera")
    assert list(known.pose.covariance) == list(range(36))
    assert (known.header.frame_id, known.child_frame_id, known.header.stamp) == ("odom", "camera", HEADER.stamp)
    assert known.twist.covariance[0] == -1
    for covariance in (None, np.full((6, 6), np.nan), np.diag([1, 1, 1, 1, 1, np.inf])):
        unknown = messages.odometry_to_message(np.eye(4), covariance, HEADER.stamp, "odom", "camera")
        assert list(unknown.pose.covariance) == [-1] + [0] * 35


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_images_are_sent_as_they_are(shape):
    image = np.random.default_rng(4).integers(0, 256, shape).astype(np.uint8)
    message = messages.image_to_message(image[:, ::-1], HEADER)  # not contiguous
    assert message.encoding == ("mono8" if len(shape) == 2 else "bgr8")
    assert message.step * 5 == len(message.data)
    np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(shape), image[:, ::-1])


def test_all_messages_pass_the_checks_of_older_releases():
    """Humble's setters look at every value; the wheels do when asked to, before they load."""
    tests = "features_come_back or matches_come_back or vins_channels or odometry or images_are or poses_come"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", tests],
        env={**os.environ, "ROS_PYTHON_CHECK_FIELDS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
