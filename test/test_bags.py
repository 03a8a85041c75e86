"""Bags: what is written is what is read; topics are found or asked for; what is damaged is said, the rest is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")

from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from skimage import data

from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.replay.bag import _empty_topics, open_bag
from kp_frontend.replay.bag_writer import BagWriter
from kp_frontend.replay.make_bag import main as make_bag
from kp_frontend.replay.topics import choose_topics

PHOTO = data.coffee()[:120, :160, ::-1].copy()
CAMERA = CameraModel(160, 120, np.array([[150.0, 0, 80], [0, 151, 60], [0, 0, 1]]))
LENS = CameraModel(160, 120, CAMERA.matrix, np.array([-0.2, 0.05, 0.001, -0.001, 0]))
PERIOD = 100_000_000
STORE = get_typestore(Stores.ROS2_HUMBLE)
IMAGE, INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"


def pose(k: int) -> np.ndarray:
    made = np.eye(4)
    made[:3, 3] = (0.1 * k, 0, 1)
    made[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    return made


def write(path: Path, frames: int = 5, camera: CameraModel = CAMERA, baseline: float | None = None, **options) -> Path:
    with BagWriter(path, camera, baseline, **options) as bag:
        for k in range(frames):
            depth = np.full((120, 160), 1.5, np.float32)
            depth[0, :4] = (np.nan, 0, 70, 2.0004)
            right = np.roll(PHOTO, -k, axis=1) if baseline else None
            bag.write(10**9 + k * PERIOD, np.roll(PHOTO, k, axis=1), None if baseline else depth, right, pose(k))
    return path


@pytest.mark.parametrize("options", [
    {}, {"storage": "mcap"}, {"version": 8}, {"compressed": True},
    {"storage": "mcap", "compressed": True, "version": 8},
])
def test_what_is_written_is_read(tmp_path, options):
    with open_bag(write(tmp_path / "bag", **options)) as bag:
        frames = [recorded.decode() for recorded in bag.frames()]
        assert len(bag) == len(frames) == 5
        assert bag.mode == "rgbd"
        assert bag.warnings == []
        assert np.array_equal(bag.camera.matrix, CAMERA.matrix)
        assert np.allclose(bag.ground_truth.poses, [pose(k) for k in range(5)])
        assert bag.stamps.tolist() == bag.ground_truth.stamps.tolist() == [frame.stamp for frame in frames]
        for k, frame in enumerate(frames):
            difference = np.abs(frame.image.astype(int) - np.roll(PHOTO, k, axis=1))
            assert difference.mean() < (4 if options.get("compressed") else 1e-9)
            assert frame.depth[0, :4].tolist() == pytest.approx([0, 0, 0, 2.0])
            assert np.allclose(frame.depth[1:], 1.5)
        assert [recorded.stamp for recorded in bag.frames()] == bag.stamps.tolist()  # it can be read again


def test_stereo_and_lens(tmp_path):
    with open_bag(write(tmp_path / "pair", baseline=0.12)) as bag:
        assert bag.mode == "stereo"
        assert bag.baseline == pytest.approx(0.12)
        assert np.array_equal(list(bag.frames())[2].decode().right, np.roll(PHOTO, -2, axis=1))
    with open_bag(write(tmp_path / "lens", camera=LENS, baseline=0.12)) as bag:
        assert np.allclose(bag.camera.distortion, LENS.distortion)
        assert bag.mode == "mono"  # rows of a pair that is not rectified do not correspond
        assert "not rectified" in bag.warnings[0]
    with pytest.raises(InputError, match="rectified pair"):
        open_bag(tmp_path / "lens", mode="stereo")
    with open_bag(tmp_path / "pair", mode="mono") as bag:
        assert bag.mode == "mono"
        assert next(bag.frames()).decode().right is None


def test_a_bag_appears_whole_or_not_at_all(tmp_path):
    def fail() -> None:
        with BagWriter(tmp_path / "bag", CAMERA) as bag:
            bag.write(0, PHOTO)
            bag.write(1, PHOTO[:60])

    with pytest.raises(InputError, match="160×60"):
        fail()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "bag")
    with pytest.raises(InputError, match="--overwrite"):
        BagWriter(tmp_path / "bag", CAMERA)
    write(tmp_path / "bag", frames=2, overwrite=True)
    with open_bag(tmp_path / "bag") as bag:
        assert len(bag) == 2
    with pytest.raises(InputError, match=r"cannot make folder .*bag\.db3"), BagWriter(
        tmp_path / "bag" / "bag.db3" / "inner", CAMERA
    ):
        pass
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="no ROS 2 bag"):
        BagWriter(tmp_path / "thesis", CAMERA, overwrite=True)


def test_make_bag_turns_a_scene_folder_into_a_bag(tmp_path, capsys):
    scene = tmp_path / "scene"
    (scene / "rgb").mkdir(parents=True)
    for k in range(3):
        cv2.imwrite(str(scene / f"rgb/{k}.png"), PHOTO)
    (scene / "poses.txt").write_text("".join(f"{k}.5 {k} 0 0 0 0 0 1\n" for k in range(3)))
    (scene / "intrinsics.yaml").write_text("{fx: 150, fy: 151, cx: 80, cy: 60, width: 160, height: 120}")
    assert make_bag([str(scene), "--output", str(tmp_path / "bag"), "--frames", "2", "--storage", "mcap"]) == 0
    assert "2 frames, 160×120, ground truth 2.00 m" in capsys.readouterr().out
    with open_bag(tmp_path / "bag") as bag:
        assert bag.stamps.tolist() == [500_000_000, 1_500_000_000]
        assert bag.ground_truth.positions[:, 0].tolist() == [0, 1]
        assert bag.mode == "mono"
    with pytest.raises(InputError, match="at least 1"):
        make_bag([str(scene), "--output", str(tmp_path / "other"), "--frames", "0"])


def make(kind: str, *values):
    return STORE.types[kind](*values)


def header(stamp: int):
    seconds, nanoseconds = divmod(stamp, 10**9)
    return make("std_msgs/msg/Header", make("builtin_interfaces/msg/Time", seconds, nanoseconds), "camera")


def image(stamp: int, level: int = 0, encoding: str = "mono8"):
    return make(IMAGE, header(stamp), 4, 6, encoding, 0, 6, np.full(24, level, np.uint8))


def depth_image(stamp: int, millimetres: int):
    pixels = np.full(24, millimetres, np.uint16).view(np.uint8)
    return make(IMAGE, header(stamp), 4, 6, "16UC1", 0, 12, pixels)


def info(matrix=(5.0, 0, 3, 0, 5, 2, 0, 0, 1), shift: float = 0.0):
    k = np.array(matrix, float)
    p = np.c_[k.reshape(3, 3), (shift, 0, 0)].ravel()
    roi = make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    return make(INFO, header(0), 4, 6, "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), p, 0, 0, roi)


def write_raw(path: Path, messages, storage: str = "SQLITE3", empty: dict[str, str] | None = None) -> Path:
    """Write (topic, time of recording, message) as they are, and topics without a message, by their types."""
    connections = {}
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage]) as writer:
        for topic, kind in (empty or {}).items():
            writer.add_connection(topic, kind, typestore=STORE)
        for topic, recorded, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], recorded, STORE.serialize_cdr(message, kind))
    return path


def test_frames_come_in_order_of_their_stamps_whatever_was_recorded_first(tmp_path):
    order = [2, 0, 1, 4, 3]
    messages = [("/cam/image", 1000 + k, image(10**9 + order[k] * PERIOD, order[k])) for k in range(5)]
    messages += [("/cam/depth", 900 - k, depth_image(10**9 + k * PERIOD + 30_000_000, 1000 + k)) for k in range(5)]
    messages += [("/cam/camera_info", 0, info())]
    with open_bag(write_raw(tmp_path / "bag", messages)) as bag:
        frames = [recorded.decode() for recorded in bag.frames()]
    assert [frame.image[0, 0] for frame in frames] == [0, 1, 2, 3, 4]
    assert [round(float(frame.depth[0, 0]) * 1000) for frame in frames] == [1000, 1001, 1002, 1003, 1004]


def test_depth_belongs_to_the_nearest_image_within_half_a_frame(tmp_path):
    messages = [("/cam/image", k, image(10**9 + k * PERIOD, k)) for k in range(6)]
    messages += [("/cam/depth", k, depth_image(10**9 + k * PERIOD + 20_000_000, 1000 + k)) for k in (0, 1, 4)]
    messages += [("/cam/camera_info", 0, info())]
    with open_bag(write_raw(tmp_path / "bag", messages)) as bag:
        frames = [recorded.decode() for recorded in bag.frames()]
        assert [frame.depth is not None for frame in frames] == [True, True, False, False, True, False]
        assert "3 of 6 frames have no depth" in bag.warnings[0]


def test_a_depth_map_may_serve_two_images(tmp_path):
    offsets = (0, 40_000_000, PERIOD, 2 * PERIOD)
    messages = [("/cam/image", k, image(10**9 + offset, k)) for k, offset in enumerate(offsets)]
    messages += [("/cam/depth", 0, depth_image(10**9 + 20_000_000, 1500)), ("/cam/camera_info", 0, info())]
    with open_bag(write_raw(tmp_path / "bag", messages)) as bag:
        assert [recorded.decode().depth is not None for recorded in bag.frames()] == [True, True, False, False]


def test_repeated_and_missing_stamps(tmp_path):
    looped = [("/image", k, image(10**9 + (k % 3) * PERIOD, k)) for k in range(6)]
    with open_bag(write_raw(tmp_path / "looped", looped)) as bag:
        assert [recorded.decode().image[0, 0] for recorded in bag.frames()] == [0, 1, 2]
        assert any("3 images on /image repeat" in warning for warning in bag.warnings)
    unstamped = [("/image", 7 * (k + 1), image(0, k)) for k in range(3)]
    with open_bag(write_raw(tmp_path / "unstamped", unstamped)) as bag:
        assert bag.stamps.tolist() == [7, 14, 21]
        assert any("time of recording" in warning for warning in bag.warnings)


def test_without_calibration_there_is_no_trajectory_and_it_says_so(tmp_path):
    pictures = [("/cam/image", k, image(10**9 + k * PERIOD, k)) for k in range(3)]
    with open_bag(write_raw(tmp_path / "none", pictures)) as bag:
        assert bag.camera is None
        assert bag.mode == "features"
        assert "no camera_info for /cam/image: features are measured, but no trajectory" in bag.warnings[0]
    zeros = [*pictures, ("/cam/camera_info", 0, info((0,) * 9))]
    with open_bag(write_raw(tmp_path / "zeros", zeros)) as bag:
        assert "camera_info on /cam/camera_info has K = 0 (uncalibrated)" in bag.warnings[0]
    with pytest.raises(InputError, match=r"K = 0.*--calibration"):
        open_bag(tmp_path / "zeros", mode="mono")
    calibration = tmp_path / "camera.yaml"
    calibration.write_text("{fx: 5, fy: 5, cx: 3, cy: 2, width: 6, height: 4}")
    with open_bag(tmp_path / "none", calibration=calibration) as bag:
        assert bag.mode == "mono"
        assert bag.warnings == []


def test_ground_truth_from_every_kind_of_topic_and_file(tmp_path):
    point, turn = make("geometry_msgs/msg/Point", 1.0, 2.0, 3.0), make("geometry_msgs/msg/Quaternion", 0.0, 0, 1, 0)
    vector = make("geometry_msgs/msg/Vector3", 1.0, 2.0, 3.0)
    whole = make("geometry_msgs/msg/Pose", point, turn)
    uncertain = make("geometry_msgs/msg/PoseWithCovariance", whole, np.zeros(36))
    twist = make("geometry_msgs/msg/Twist", vector, vector)
    moving = make("geometry_msgs/msg/TwistWithCovariance", twist, np.zeros(36))
    poses = {
        "/pose": make("geometry_msgs/msg/PoseStamped", header(10**9), whole),
        "/uncertain": make("geometry_msgs/msg/PoseWithCovarianceStamped", header(10**9), uncertain),
        "/vicon/body": make("geometry_msgs/msg/TransformStamped", header(10**9), "body",
                            make("geometry_msgs/msg/Transform", vector, turn)),
        "/odometry": make("nav_msgs/msg/Odometry", header(10**9), "body", uncertain, moving),
        "/leica/position": make("geometry_msgs/msg/PointStamped", header(10**9), point),
    }
    messages = [("/image", 0, image(10**9)), *((topic, 0, message) for topic, message in poses.items())]
    path = write_raw(tmp_path / "bag", messages)
    for topic in poses:
        with open_bag(path, ground_truth=topic) as bag:
            assert bag.ground_truth.positions.tolist() == [[1, 2, 3]]
            assert bag.ground_truth.oriented == (topic != "/leica/position")
            if bag.ground_truth.oriented:
                assert np.allclose(bag.ground_truth.poses[0, :3, :3], np.diag([-1, -1, 1]))
    with open_bag(path) as bag:
        assert bag.topics.ground_truth == "/vicon/body"  # named like a truth, and whole
    (tmp_path / "truth.txt").write_text("1.0 4 5 6 0 0 0 1\n")
    with open_bag(path, ground_truth=str(tmp_path / "truth.txt"), body_from_camera=(0, 0, 1, 0, 0, 0, 1)) as bag:
        assert bag.ground_truth.positions.tolist() == [[4, 5, 7]]
    with pytest.raises(InputError, match=r"no topic /truth .*--ground-truth"):
        open_bag(path, ground_truth="/truth")
    with pytest.raises(InputError, match=r"body_from_camera is .*nan.* expected seven finite numbers"):
        open_bag(path, body_from_camera=(0, 0, np.nan, 0, 0, 0, 1))


@pytest.mark.parametrize("name", ["topic", "tum.txt", "kitti.txt", "euroc.csv"])
def test_poses_that_are_not_finite_are_left_out_and_counted(tmp_path, name):
    path, truth = tmp_path / "bag", None
    with BagWriter(path, CAMERA) as bag:
        for k in range(5):
            made = pose(k)
            made[0, 3] += {1: np.nan, 3: np.inf}.get(k, 0)
            bag.write(k * PERIOD, PHOTO, world_from_camera=made)
    if name != "topic":
        rows = {"tum.txt": "{t} {k} 0 0 0 0 0 {w}", "kitti.txt": "1 0 0 {k} 0 {w} 0 0 0 0 1 0",
                "euroc.csv": "{n},{k},0,0,{w},0,0,0"}
        values = [{"t": k / 10, "n": k * PERIOD, "k": "inf" if k == 3 else k, "w": "nan" if k == 1 else 1}
                  for k in range(5)]
        truth = str(tmp_path / name)
        Path(truth).write_text("\n".join(rows[name].format(**value) for value in values))
    with open_bag(path, ground_truth=truth) as bag:
        assert bag.ground_truth.stamps.tolist() == [0, 2 * PERIOD, 4 * PERIOD]
        assert np.isfinite(bag.ground_truth.poses).all()
        assert bag.warnings == ["2 of 5 poses of the ground truth are not finite and are left out"]
    with BagWriter(tmp_path / "none", CAMERA) as bag:
        made[2, 3] = np.nan
        bag.write(0, PHOTO, world_from_camera=made)
    with open_bag(tmp_path / "none") as bag:
        assert bag.ground_truth is None
        assert bag.warnings[0].startswith("1 of 1 poses of the ground truth")


RAW = "sensor_msgs/msg/Image"
JPEG = "sensor_msgs/msg/CompressedImage"


def test_topics_are_found_by_type_and_name():
    found = choose_topics({
        "/camera/color/image_raw": RAW, "/camera/color/image_raw/compressed": JPEG, "/camera/color/camera_info": INFO,
        "/camera/depth/image_rect_raw": RAW, "/camera/aligned_depth_to_color/image_raw": RAW,
        "/camera/depth/camera_info": INFO, "/imu": "sensor_msgs/msg/Imu",
        "/mocap/pose": "geometry_msgs/msg/PoseStamped",
    }, {})
    assert found.image == "/camera/color/image_raw"
    assert found.info == "/camera/color/camera_info"
    assert found.depth == "/camera/aligned_depth_to_color/image_raw"
    assert found.right is None
    assert found.ground_truth == "/mocap/pose"
    euroc = choose_topics({"/cam0/image_raw": RAW, "/cam1/image_raw": RAW, "/leica/position": INFO}, {})
    assert (euroc.image, euroc.right, euroc.info) == ("/cam0/image_raw", "/cam1/image_raw", None)
    lone = choose_topics({"/usb_cam/image_raw": RAW, "/calibration": INFO}, {})
    assert lone.info == "/calibration"


def test_transports_of_an_image_are_no_other_images_and_no_depth():
    every = {f"/{camera}/image_raw{transport}": kind for camera in ("camera", "depth") for transport, kind in
             {"": RAW, "/compressed": JPEG, "/compressedDepth": JPEG, "/zstd": JPEG}.items()}
    found = choose_topics({**every, "/camera_info": INFO}, {})
    assert (found.image, found.depth) == ("/camera/image_raw", "/depth/image_raw")
    mono = choose_topics({topic: kind for topic, kind in every.items() if "/depth/" not in topic}, {})
    assert (mono.image, mono.depth) == ("/camera/image_raw", None)
    assert choose_topics({"/ir/image/compressedDepth": JPEG, "/mono/image": RAW}, {}).image == "/mono/image"
    with pytest.raises(InputError, match="no image topic"):
        choose_topics({"/image_raw/zstd": JPEG}, {})


def test_infrared_gives_way_to_what_is_called_colour():
    infrared = {"/camera/infra1/image_rect_raw": RAW, "/camera/infra2/image_rect_raw": RAW}
    every = {"/camera/color/image_raw": RAW, **infrared}
    found = choose_topics(every, {})
    assert (found.image, found.right) == ("/camera/color/image_raw", None)
    for types, wanted in ((infrared, {}), (every, {"image": "/camera/infra1/image_rect_raw"})):
        pair = choose_topics(types, wanted)
        assert [pair.image, pair.right] == list(infrared)
    with pytest.raises(InputError, match="several topics could be the image: /infra1/image, /mono/image"):
        choose_topics({"/infra1/image": RAW, "/mono/image": RAW}, {})


@pytest.mark.parametrize("storage", ["SQLITE3", "MCAP"])
def test_topics_without_a_message_are_not_guessed(tmp_path, storage):
    empty = {"/other/image": RAW, "/cam/depth": RAW, "/cam/image/compressedDepth": JPEG,
             "/ground_truth": "geometry_msgs/msg/PoseStamped"}
    messages = [("/cam/image", 0, image(10**9)), ("/cam/camera_info", 0, info())]
    path = write_raw(tmp_path / "bag", messages, storage, empty)
    for source in (path, next(path.glob("bag.*"))):
        with open_bag(source) as bag:
            assert bag.topics.image == "/cam/image"
            assert bag.mode == "mono"
            assert bag.warnings == []
            assert set(bag.message_types) == {"/cam/image", "/cam/camera_info"}
    with pytest.raises(InputError, match="holds no message on /other/image"):
        open_bag(path, image="/other/image")
    with pytest.raises(InputError, match=r"no topic /b \(--image\) in the bag; it has .*/other/image"):
        open_bag(path, image="/b")
    bare = write_raw(tmp_path / "bare", messages[1:], storage, {"/cam/image": RAW})
    with pytest.raises(InputError, match=r"with messages .*/cam/image \(sensor_msgs/msg/Image, no message\)"):
        open_bag(bare)


def test_where_a_file_counts_no_messages_no_topic_is_empty():
    counts = [SimpleNamespace(topic=topic, msgcount=0) for topic in ("/a", "/b")]
    assert _empty_topics(counts) == set()
    assert _empty_topics([*counts, SimpleNamespace(topic="/a", msgcount=2)]) == {"/b"}


@pytest.mark.parametrize(("types", "wanted", "message"), [
    ({"/a": RAW, "/b": RAW}, {}, "several topics could be the image: /a, /b; choose one by --image"),
    ({"/imu": "sensor_msgs/msg/Imu"}, {}, r"no image topic .*/imu \(sensor_msgs/msg/Imu\)"),
    ({"/a": RAW}, {"image": "/b"}, r"no topic /b \(--image\) in the bag; it has /a"),
    ({"/a": RAW, "/i": INFO}, {"image": "/i"}, "--image /i is sensor_msgs/msg/CameraInfo, expected"),
    ({"/a": RAW, "/depth1": RAW, "/depth2": RAW}, {}, "could be the depth"),
])
def test_topics_that_cannot_be_chosen(types, wanted, message):
    with pytest.raises(InputError, match=message):
        choose_topics(types, wanted)


def test_a_mode_needs_its_topic(tmp_path):
    messages = [("/image", 0, image(10**9)), ("/camera_info", 0, info())]
    path = write_raw(tmp_path / "bag", messages)
    with pytest.raises(InputError, match="--depth TOPIC"):
        open_bag(path, mode="rgbd")
    with pytest.raises(InputError, match="--right TOPIC"):
        open_bag(path, mode="stereo")
    with pytest.raises(InputError, match="unknown mode 'lidar'"):
        open_bag(path, mode="lidar")


@pytest.mark.parametrize("storage", ["sqlite3", "mcap"])
def test_of_a_truncated_bag_the_beginning_is_read(tmp_path, storage):
    path = write(tmp_path / "bag", frames=40, storage=storage)
    file = next(path.glob("bag.*"))
    os.truncate(file, file.stat().st_size * 6 // 10)
    for source in (path, file):
        with open_bag(source) as bag:
            frames = [recorded.decode() for recorded in bag.frames()]
            assert 10 <= len(frames) == len(bag) < 40
            assert np.array_equal(frames[2].image, np.roll(PHOTO, 2, axis=1))
            assert "damaged" in bag.warnings[0]
    os.truncate(file, 10)
    with pytest.raises(InputError, match="bag"):
        open_bag(path)


def test_a_bag_without_metadata_is_read_from_its_data_file(tmp_path):
    path = write(tmp_path / "bag")
    (path / "metadata.yaml").unlink()
    with open_bag(path) as bag:
        assert len(bag) == 5
        assert "no metadata.yaml" in bag.warnings[0]


@pytest.mark.parametrize(("names", "together"), [
    (("a", "b"), False), (("a_0", "b_1"), False), (("run_00", "run_01"), False), (("run_3", "run_5"), False),
    (("run_0", "run_1"), True), (("run_9", "run_10"), True),
])
def test_files_of_several_recordings_are_not_read_as_one(tmp_path, names, together):
    (tmp_path / "all").mkdir()
    for k, name in enumerate(names):
        path = write_raw(tmp_path / name, [("/image", k, image(10**9 + k * PERIOD, k))], "MCAP")
        shutil.copy(path / f"{name}.mcap", tmp_path / "all")
    if together:
        with open_bag(tmp_path / "all") as bag:
            assert [recorded.decode().image[0, 0] for recorded in bag.frames()] == [0, 1]
    else:
        with pytest.raises(InputError, match=rf"several bags, {names[0]}\.mcap, {names[1]}\.mcap, .*give one of them"):
            open_bag(tmp_path / "all")


def test_what_is_no_bag_says_so(tmp_path):
    with pytest.raises(InputError, match="no bag"):
        open_bag(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither metadata\.yaml nor"):
        open_bag(tmp_path)
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match="expected a ROS 2 folder"):
        open_bag(tmp_path / "film.mp4")
    (tmp_path / "broken.bag").write_bytes(b"#ROSBAG V2.0\n" + bytes(500))
    with pytest.raises(InputError, match="rosbag reindex"):
        open_bag(tmp_path / "broken.bag")
    shutil.copy(tmp_path / "film.mp4", tmp_path / "film.mcap")
    with pytest.raises(InputError, match="no MCAP file"):
        open_bag(tmp_path / "film.mcap")


def test_one_bad_image_does_not_end_the_reading(tmp_path):
    jpeg = cv2.imencode(".jpg", PHOTO)[1].ravel()
    messages = [
        ("/image/compressed", k, make(JPEG, header(10**9 + k * PERIOD), "jpeg", jpeg[: 900 if k == 1 else None]))
        for k in range(3)
    ]
    with open_bag(write_raw(tmp_path / "bag", messages)) as bag:
        first, second, third = bag.frames()
        assert first.decode().image.shape == third.decode().image.shape == PHOTO.shape
        with pytest.raises(InputError, match="truncated"):
            second.decode()


def test_ros_1_bags_are_read(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    path = tmp_path / "euroc.bag"

    def head(k: int):
        return types["std_msgs/msg/Header"](k, types["builtin_interfaces/msg/Time"](1403636579, k * PERIOD), "cam0")

    with Writer1(path) as writer:
        pictures = writer.add_connection("/cam0/image_raw", IMAGE, typestore=store)
        calibrations = writer.add_connection("/cam0/camera_info", INFO, typestore=store)
        truths = writer.add_connection("/vicon/body", "geometry_msgs/msg/TransformStamped", typestore=store)
        roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        matrix = np.array([5.0, 0, 3, 0, 5, 2, 0, 0, 1])
        for k in range(4):
            picture = types[IMAGE](head(k), 4, 6, "mono8", 0, 6, np.full(24, k, np.uint8))
            calibration = types[INFO](head(k), 4, 6, "plumb_bob", np.zeros(5), matrix, np.eye(3).ravel(),
                                      np.zeros(12), 0, 0, roi)
            transform = types["geometry_msgs/msg/Transform"](
                types["geometry_msgs/msg/Vector3"](float(k), 0, 0), types["geometry_msgs/msg/Quaternion"](0.0, 0, 0, 1)
            )
            truth = types["geometry_msgs/msg/TransformStamped"](head(k), "body", transform)
            for connection, message in ((pictures, picture), (calibrations, calibration), (truths, truth)):
                raw = store.serialize_ros1(message, connection.msgtype)
                writer.write(connection, 10**9 + k, raw)
    with open_bag(path) as bag:
        assert bag.mode == "mono"
        assert bag.camera.matrix[0, 0] == 5
        assert bag.stamps.tolist() == [1403636579 * 10**9 + k * PERIOD for k in range(4)]
        assert [recorded.decode().image[0, 0] for recorded in bag.frames()] == [0, 1, 2, 3]
        assert bag.ground_truth.positions[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--layout", "colmap"], "unknown layout 'colmap'; choose one of: euroc, kitti, new_tsukuba, scene, tum_rgbd"),
    (["--storage", "tape"], "unknown storage 'tape'; choose one of: mcap, sqlite3"),
    (["--version", "7"], "unknown bag version 7; choose one of: 8, 9"),
])
def test_make_bag_lists_what_it_knows(tmp_path, arguments, message):
    (tmp_path / "rgb").mkdir()
    cv2.imwrite(str(tmp_path / "rgb/0.png"), PHOTO)
    (tmp_path / "poses.txt").write_text("0 0 0 0 0 0 0 1\n")
    (tmp_path / "intrinsics.yaml").write_text("{fx: 150, fy: 151, cx: 80, cy: 60, width: 160, height: 120}")
    with pytest.raises(InputError, match=message):
        make_bag([str(tmp_path), "--output", str(tmp_path / "bag"), *arguments])
