"""Reading any bag as one sequence of frames: ROS 2 folders, lone .mcap and .db3 files, ROS 1 bags; without ROS."""

from __future__ import annotations

import re
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kp_frontend.camera import CameraModel, baseline_from_camera_info
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.images import depth_from_compressed, depth_from_message, image_from_compressed, image_from_message
from kp_frontend.pipeline import Frame
from kp_frontend.replay.association import nearest, period
from kp_frontend.replay.bag_recovery import recover
from kp_frontend.replay.topics import MODES, choose_topics
from kp_frontend.replay.trajectory import Trajectory, poses_from_rows, read_trajectory

DECODERS: dict[tuple[str, bool], Callable[[Any], np.ndarray]] = {
    ("sensor_msgs/msg/Image", False): image_from_message,
    ("sensor_msgs/msg/CompressedImage", False): image_from_compressed,
    ("sensor_msgs/msg/Image", True): depth_from_message,
    ("sensor_msgs/msg/CompressedImage", True): depth_from_compressed,
}
_PART = re.compile(r"(.*)_(0|[1-9]\d*)(\.\w+)")  # a file of a recording that rosbag2 split


@dataclass(frozen=True)
class BagOptions:
    """How to read a bag: topics by name (None: found by type and name), calibration and ground truth.

    calibration: YAML file instead of camera_info.  mode: ``auto`` takes depth, else a rectified pair, else one image.
    ground_truth: topic, or file of TUM, KITTI or EuRoC rows.
    body_from_camera: tx ty tz qx qy qz qw, where the ground truth is of a body that the camera is fixed to.
    """

    image: str | None = None
    info: str | None = None
    depth: str | None = None
    right: str | None = None
    right_info: str | None = None
    calibration: Path | None = None
    ground_truth: str | None = None
    body_from_camera: tuple[float, ...] | None = None
    mode: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        if self.body_from_camera is not None and not np.isfinite(self.body_from_camera).all():
            raise InputError(f"body_from_camera is {self.body_from_camera}, expected seven finite numbers: "
                             "tx ty tz qx qy qz qw")


@dataclass(frozen=True, eq=False)
class RecordedFrame:
    """The messages of one instant, still encoded; stamp in nanoseconds.  Good while its sequence is open."""

    stamp: int
    parts: dict[str, Callable[[], np.ndarray]]

    def decode(self) -> Frame:
        """The frame; InputError where a message is no image."""
        return Frame(self.stamp, **{role: decode() for role, decode in self.parts.items()})


class BagSequence:
    """One camera's frames of a bag, with calibration and ground truth; a context manager.

    stamps: int64 nanoseconds of the header, ascending, one for each frame.
    topics: what was taken for what.  camera: None where nothing calibrates it.  baseline: metres, for ``stereo``.
    mode: ``rgbd``, ``stereo``, ``mono``, or ``features`` where without calibration no pose can be had.
    ground_truth: Trajectory, or None.  warnings: what the user should know, a sentence each.

    Raises InputError where the bag or a topic is missing, or nothing can be read.
    """

    def __init__(self, path: str | Path, options: BagOptions | None = None) -> None:
        self.path = Path(path)
        self.options = options = options or BagOptions()
        self.warnings: list[str] = []
        self._stack = ExitStack()
        try:
            self._reader = self._open()
            types = {connection.topic: connection.msgtype for connection in self._reader.connections}
            self._empty = _empty_topics(self._reader.connections)
            truth_file = options.ground_truth if options.ground_truth and Path(options.ground_truth).is_file() else None
            roles = ("image", "info", "depth", "right", "right_info")
            wanted = {role: getattr(options, role) for role in roles}
            wanted["ground_truth"] = None if truth_file else options.ground_truth
            self.topics = choose_topics(types, wanted, options.mode, self._empty)
            self._types = types
            self.camera = self._calibrate()
            self.baseline = self._pair()
            self.mode = self._mode()
            self._index()
            self.ground_truth = self._read_truth(truth_file)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> BagSequence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def message_types(self) -> dict[str, str]:
        """Message type of every topic that holds a message."""
        return {topic: kind for topic, kind in self._types.items() if topic not in self._empty}

    def frames(self) -> Iterator[RecordedFrame]:
        """Every frame in order of its stamp; may be called again."""
        last_use = {part: k for k, (_, parts) in enumerate(self._plan) for part in parts.items()}
        pending: dict[tuple[str, int], bytes] = {}
        counts = dict.fromkeys(self._roles.values(), 0)
        position = 0
        for connection, _, raw in self._messages():
            role = self._roles[connection.topic]
            part = (role, counts[role])
            counts[role] += 1
            if part in last_use:
                pending[part] = raw
            while position < len(self._plan) and all(part in pending for part in self._plan[position][1].items()):
                stamp, parts = self._plan[position]
                yield RecordedFrame(stamp, {role: self._decoder(role, pending[role, k]) for role, k in parts.items()})
                for part in parts.items():
                    if last_use[part] == position:
                        del pending[part]
                position += 1
            if position == len(self._plan):
                return

    def _open(self) -> Any:
        """An open reader of the bag, or of what can be recovered of it."""
        if not self.path.exists():
            raise InputError(f"no bag {self.path}")
        paths = [self.path]
        if self.path.is_dir() and not (self.path / "metadata.yaml").is_file():
            paths = data_files(self.path)
            if not paths:
                raise InputError(f"{self.path} is no bag: it holds neither metadata.yaml nor a .mcap or .db3 file")
            if not of_one_recording(paths):
                raise InputError(f"{self.path} holds several bags, {', '.join(path.name for path in paths)}, and no "
                                 "metadata.yaml of them all; give one of them")
            self.warnings.append(f"{self.path} has no metadata.yaml (recording was cut off?); its data files are read")
        elif self.path.is_file() and self.path.suffix not in (".bag", ".mcap", ".db3"):
            raise InputError(f"{self.path} is no bag: expected a ROS 2 folder, a .mcap, .db3 or ROS 1 .bag file")
        try:
            return self._stack.enter_context(_reader(paths))
        except Exception as error:  # the readers raise whatever damaged bytes lead to
            damage = f"{self.path} is damaged ({error})"
        files = data_files(self.path) if self.path.is_dir() else paths
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kp_frontend_bag_")))
        try:
            reader = self._stack.enter_context(_reader([recover(path, folder) for path in files]))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{damage} and nothing could be recovered: {error}") from None
        if not reader.message_count:
            raise InputError(f"{damage} and holds no whole message")
        self.warnings.append(f"{damage}; evaluated is what could be recovered, {reader.message_count} messages")
        return reader

    def _first(self, topic: str) -> Any | None:
        connections = [entry for entry in self._reader.connections if entry.topic == topic]
        try:
            for connection, _, raw in self._reader.messages(connections=connections):
                return self._reader.deserialize(raw, connection.msgtype)
        except Exception as error:
            raise InputError(f"{self.path}: {topic} cannot be read: {error}") from None
        return None

    def _calibrate(self) -> CameraModel | None:
        if self.options.calibration is not None:
            return CameraModel.from_yaml(self.options.calibration, "rect" in self.topics.image)
        topic = self.topics.info
        info = self._first(topic) if topic else None
        try:
            if info is None:
                raise InputError(f"no camera_info for {self.topics.image}")
            return CameraModel.from_camera_info(info, "rect" in self.topics.image)
        except InputError as error:
            problem = f"camera_info on {topic} has {error}" if info is not None else str(error)
            if self.options.mode != "auto" or self.options.info is not None:
                raise InputError(f"{problem}; give --info TOPIC or --calibration FILE") from None
            self.warnings.append(
                f"{problem}: features are measured, but no trajectory; give --info TOPIC or --calibration FILE"
            )
            return None

    def _pair(self) -> float | None:
        """Baseline of the pair, None where there is no usable one."""
        if self.topics.right is None or self.camera is None:
            return None
        try:
            info = self._first(self.topics.right_info) if self.topics.right_info else None
            if info is None:
                raise InputError(f"no camera_info for {self.topics.right}")
            if not self.camera.undistorted:
                raise InputError(f"{self.topics.image} is not rectified (its calibration has distortion)")
            return baseline_from_camera_info(info)
        except InputError as error:
            if self.options.mode == "stereo":
                raise InputError(f"stereo needs a rectified pair with its baseline: {error}") from None
            self.warnings.append(f"the second image on {self.topics.right} is left out: {error}")
            return None

    def _mode(self) -> str:
        wanted = self.options.mode
        if wanted == "rgbd" and self.topics.depth is None:
            raise InputError("--mode rgbd, but no depth topic was found; give --depth TOPIC")
        if wanted == "stereo" and self.topics.right is None:
            raise InputError("--mode stereo, but no second image was found; give --right TOPIC")
        if self.camera is None:
            return "features"
        if wanted != "auto":
            return wanted
        return "rgbd" if self.topics.depth else "stereo" if self.baseline else "mono"

    def _index(self) -> None:
        """Read all stamps, and decide which messages make up which frame."""
        second = {"rgbd": "depth", "stereo": "right"}.get(self.mode)
        self._roles = {self.topics.image: "image"}
        if second is not None:
            self._roles[getattr(self.topics, second)] = second
        stamps: dict[str, list[tuple[int, int]]] = {role: [] for role in self._roles.values()}
        stamp_of = _stamp_cdr if self._reader.is2 else _stamp_ros1
        try:
            for connection, recorded, raw in self._messages():
                stamps[self._roles[connection.topic]].append((stamp_of(raw), recorded))
        except Exception as error:  # as in _open
            self.warnings.append(f"{self.path} is damaged: evaluated is what comes before ({error})")
        if not stamps["image"]:
            raise InputError(f"{self.path} holds no message on {self.topics.image}")
        clock = 0
        if not any(header for header, _ in stamps["image"]) and len(stamps["image"]) > 1:
            clock = 1
            self.warnings.append(f"all stamps on {self.topics.image} are 0: the time of recording is used")
        columns = {role: np.array(pairs, np.int64).reshape(-1, 2)[:, clock] for role, pairs in stamps.items()}
        self.stamps, first = np.unique(columns["image"], return_index=True)
        if len(first) < len(columns["image"]):
            repeated = len(columns["image"]) - len(first)
            self.warnings.append(f"{repeated} images on {self.topics.image} repeat an earlier stamp and are left out")
        parts: list[dict[str, int]] = [{"image": int(k)} for k in first]
        if second is not None:
            order = np.argsort(columns[second], kind="stable")
            found = nearest(columns[second][order], self.stamps, period(self.stamps) // 2)
            for k in np.flatnonzero(found >= 0):
                parts[k][second] = int(order[found[k]])
            if (missing := int((found < 0).sum())):
                self.warnings.append(f"{missing} of {len(found)} frames have no {second} within half a frame")
        self._plan = list(zip(self.stamps.tolist(), parts))

    def _messages(self) -> Iterator[tuple[Any, int, bytes]]:
        connections = [entry for entry in self._reader.connections if entry.topic in self._roles]
        return self._reader.messages(connections=connections)

    def _decoder(self, role: str, raw: bytes) -> Callable[[], np.ndarray]:
        kind = self._types[getattr(self.topics, role)]
        decode = DECODERS[kind, role == "depth"]

        def run() -> np.ndarray:
            try:
                message = self._reader.deserialize(raw, kind)
            except Exception as error:  # as in _open
                raise InputError(f"a {kind} message of {len(raw)} bytes cannot be read: {error}") from None
            return decode(message)

        return run

    def _read_truth(self, file: str | None) -> Trajectory | None:
        truth = None
        if file is not None:
            truth = read_trajectory(Path(file), self.stamps)
        elif self.topics.ground_truth is not None:
            truth = self._read_truth_topic(self.topics.ground_truth)
        if truth is None:
            return None
        finite = np.isfinite(truth.poses).all(axis=(1, 2))
        if not finite.all():
            self.warnings.append(f"{(~finite).sum()} of {len(truth)} poses of the ground truth are not finite and are "
                                 "left out")
            truth = truth.select(finite)
        if self.options.body_from_camera is not None:
            truth = truth.moved_by(poses_from_rows(np.array([self.options.body_from_camera], float))[0])
        return truth if len(truth) else None

    def _read_truth_topic(self, topic: str) -> Trajectory | None:
        connections = [entry for entry in self._reader.connections if entry.topic == topic]
        stamp_of = _stamp_cdr if self._reader.is2 else _stamp_ros1
        stamps, rows, kind = [], [], connections[0].msgtype
        try:
            for _, _, raw in self._reader.messages(connections=connections):
                stamps.append(stamp_of(raw))
                rows.append(POSES[kind](self._reader.deserialize(raw, kind)))
        except Exception as error:  # as in _open
            self.warnings.append(f"{topic} could be read in part only: {error}")
        if not rows:
            self.warnings.append(f"no ground truth: {topic} holds no message")
            return None
        oriented = kind != "geometry_msgs/msg/PointStamped"
        return Trajectory.from_samples(np.array(stamps[: len(rows)]), poses_from_rows(np.array(rows)), oriented)


def _row(position: Any, rotation: Any | None = None) -> tuple[float, ...]:
    quaternion = (0.0, 0.0, 0.0, 1.0) if rotation is None else (rotation.x, rotation.y, rotation.z, rotation.w)
    return (position.x, position.y, position.z, *quaternion)


# x y z qx qy qz qw of a message, by its type.
POSES: dict[str, Callable[[Any], tuple[float, ...]]] = {
    "geometry_msgs/msg/PoseStamped": lambda m: _row(m.pose.position, m.pose.orientation),
    "geometry_msgs/msg/PoseWithCovarianceStamped": lambda m: _row(m.pose.pose.position, m.pose.pose.orientation),
    "geometry_msgs/msg/TransformStamped": lambda m: _row(m.transform.translation, m.transform.rotation),
    "nav_msgs/msg/Odometry": lambda m: _row(m.pose.pose.position, m.pose.pose.orientation),
    "geometry_msgs/msg/PointStamped": lambda m: _row(m.point),
}


def data_files(folder: Path) -> list[Path]:
    """The .mcap and .db3 files of `folder`, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".mcap", ".db3"))


def of_one_recording(files: list[Path]) -> bool:
    """Whether `files` are one, or called NAME_0, NAME_1 … as rosbag2 calls the parts of what it splits."""
    parts = [part for path in files if (part := _PART.fullmatch(path.name))]
    if len(parts) < len(files) or len({part.group(1, 3) for part in parts}) != 1:
        return len(files) == 1
    numbers = [int(part[2]) for part in parts]
    return max(numbers) - min(numbers) == len(numbers) - 1  # the oldest parts may be gone, but none in between


def _empty_topics(connections: list[Any]) -> set[str]:
    """Topics without a message; none where the file, as MCAP allows, counts no topic's messages."""
    counts: Counter[str] = Counter()
    for connection in connections:
        counts[connection.topic] += connection.msgcount
    return {topic for topic, count in counts.items() if not count} if any(counts.values()) else set()


def _reader(paths: list[Path]) -> Any:
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    # Humble's sqlite3 bags hold no definitions; those of the standard messages have not changed since.
    return AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_HUMBLE))


def _stamp_cdr(raw: bytes) -> int:
    """Header stamp in nanoseconds of a CDR message that begins with a std_msgs/Header."""
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * 10**9 + nanoseconds


def _stamp_ros1(raw: bytes) -> int:
    """The same of a ROS 1 message, whose header begins with a sequence number."""
    seconds, nanoseconds = struct.unpack_from("<II", raw, 4)
    return seconds * 10**9 + nanoseconds


def open_bag(path: str | Path, **options: Any) -> BagSequence:
    """Open the bag `path`; keywords are those of BagOptions."""
    return BagSequence(path, BagOptions(**options))
