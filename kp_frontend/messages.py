"""Features, matches, tracks and poses ↔ standard ROS messages; clouds are filled where they lie."""

from __future__ import annotations

import array
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Point32, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import ChannelFloat32, Image, PointCloud, PointCloud2, PointField
from std_msgs.msg import Header

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.quaternions import poses_from_quaternions, quaternions_from_poses

DESCRIPTOR_FORMATS = ("float32", "uint8")
_DESCRIPTOR_KINDS = {"l2": DESCRIPTOR_FORMATS, "hamming": ("uint8",)}
VINS_PROFILES = ("mono", "fusion")
_SCALARS = {
    PointField.INT8: "i1", PointField.UINT8: "u1", PointField.INT16: "i2", PointField.UINT16: "u2",
    PointField.INT32: "i4", PointField.UINT32: "u4", PointField.FLOAT32: "f4", PointField.FLOAT64: "f8",
}
_DATATYPES = {np.dtype(kind): number for number, kind in _SCALARS.items()}
_FEATURE_FIELDS = [
    *((name, "<f4") for name in ("x", "y", "z", "u", "v", "score", "size", "angle")), ("id", "<u4"), ("age", "<u4"),
]
_MATCH_FIELDS = [
    ("query_index", "<u4"), ("train_index", "<u4"), *((name, "<f4") for name in ("u0", "v0", "u1", "v1", "distance")),
    ("ref_sec", "<i4"), ("ref_nanosec", "<u4"),
]
# A float32 counts without gaps up to 2^24; VINS reads ids from one.
_FLOAT_IDS = 1 << 24


def stamp_from_message(stamp: Time) -> int:
    """Nanoseconds of a ``builtin_interfaces/Time``."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def stamp_to_message(nanoseconds: int) -> Time:
    """``builtin_interfaces/Time`` of int nanoseconds."""
    sec, nanosec = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


def byte_array(data: np.ndarray) -> array.array:
    """The bytes of `data` as the one type that rclpy's setters take without a look at each element."""
    filled = array.array("B")
    filled.frombytes(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    return filled


def _float_array(values: np.ndarray) -> array.array:
    filled = array.array("f")
    filled.frombytes(np.ascontiguousarray(values, np.float32).tobytes())
    return filled


def new_points(count: int, dtype: np.dtype) -> tuple[array.array, np.ndarray]:
    """Bytes of `count` points of a structured `dtype`, all zero, and the points that lie there, to be filled."""
    data = array.array("B", (0,)) * (count * dtype.itemsize)
    return data, np.ndarray(count, dtype, data)


def cloud_to_message(data: array.array, points: np.ndarray, header: Header) -> PointCloud2:
    """PointCloud2 (height 1) of what `new_points` gave; its fields are those of the points."""
    message = PointCloud2(
        header=header, height=1, width=len(points), fields=list(_fields(points.dtype)), is_bigendian=False,
        is_dense=True, point_step=points.dtype.itemsize, row_step=points.nbytes,
    )
    message.data = data  # the constructor would copy it twice
    return message


@functools.lru_cache
def _fields(dtype: np.dtype) -> tuple[PointField, ...]:
    return tuple(
        PointField(name=name, offset=offset, datatype=_DATATYPES[kind.base], count=int(np.prod(kind.shape, dtype=int)))
        for name, (kind, offset, *_) in (dtype.fields or {}).items()
    )


def _names(points: np.ndarray) -> tuple[str, ...]:
    return points.dtype.names or ()


def cloud_from_message(message: PointCloud2) -> np.ndarray:
    """Structured array over the points of a PointCloud2, a view where its rows have no padding.

    InputError where its fields do not fit its data.
    """
    order = ">" if message.is_bigendian else "<"
    names, formats, offsets = [], [], []
    for entry in message.fields:
        if entry.datatype not in _SCALARS:
            raise InputError(f"point cloud: field {entry.name!r} has datatype {entry.datatype}, expected 1 to 8")
        names.append(entry.name)
        formats.append((order + _SCALARS[entry.datatype], (entry.count,) if entry.count != 1 else ()))
        offsets.append(entry.offset)
    width, height, step = message.width, message.height, message.point_step
    stride = message.row_step or width * step
    data = np.frombuffer(message.data, np.uint8)
    if stride < width * step or len(data) < height * stride:
        raise InputError(
            f"point cloud: {len(data)} bytes of data and rows of {stride}, "
            f"expected {height} rows of {width} points of {step} bytes"
        )
    try:
        dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})
        rows = np.lib.stride_tricks.as_strided(data, (height, width * step), (stride, 1), writeable=False)
        return rows.reshape(-1).view(dtype)
    except ValueError as error:
        raise InputError(f"point cloud: fields do not fit a point of {step} bytes ({error})") from error


def quantize(descriptors: np.ndarray) -> np.ndarray:
    """N×D float32 unit vectors → N×D uint8: ``128 + round(127·d / max|d|)``, by row; zero stays 128.

    A unit vector is its direction, so the row's scale need not travel; `dequantize` is the inverse.
    """
    largest = np.abs(descriptors).max(axis=1, keepdims=True, initial=0)
    return (np.rint(descriptors * (127 / np.maximum(largest, 1e-12))) + 128).astype(np.uint8)


def dequantize(quantized: np.ndarray) -> np.ndarray:
    """N×D uint8 → N×D float32 of unit length (or zero)."""
    centred = quantized.astype(np.float32) - 128
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def features_to_message(
    features: Features, tracks: Tracks, header: Header, bearings: np.ndarray | None = None,
    descriptor_format: str = "float32",
) -> PointCloud2:
    """Features and their tracks as a PointCloud2, a point each (DESIGN.md, section 4).

    bearings: N×3, z = 1, undistorted; None (uncalibrated) writes 0 0 0.  descriptor_format ``uint8`` quantises
    float descriptors; bit strings (metric ``hamming``) are bytes in any case, and a second field named ``hamming``
    over the same bytes says so.
    """
    if descriptor_format not in DESCRIPTOR_FORMATS:
        raise unknown_name("descriptor_format", descriptor_format, DESCRIPTOR_FORMATS)
    descriptors = features.descriptors
    if descriptor_format == "uint8" and features.metric == "l2":
        descriptors = quantize(descriptors)
    data, points = new_points(len(features), _features_dtype(descriptors, features.metric))
    if bearings is not None:
        points["x"], points["y"], points["z"] = bearings.T
    points["u"], points["v"] = features.keypoints.T
    points["score"], points["size"], points["angle"] = features.scores, features.sizes, features.angles
    points["id"], points["age"] = tracks.ids, tracks.ages
    if descriptors.shape[1]:
        points["descriptor"] = descriptors
    return cloud_to_message(data, points, header)


def _features_dtype(descriptors: np.ndarray, metric: str) -> np.dtype:
    layout: list[tuple[str, object, int]] = [(name, kind, 4 * k) for k, (name, kind) in enumerate(_FEATURE_FIELDS)]
    size = 4 * len(layout)
    if descriptors.shape[1]:
        kind = (descriptors.dtype.str.replace(">", "<"), (descriptors.shape[1],))
        layout.append(("descriptor", kind, size))
        if metric == "hamming":
            layout.append(("hamming", kind, size))
        size += descriptors.shape[1] * descriptors.itemsize
    names, formats, offsets = zip(*layout)
    # Steps of whole words keep the floats of every point aligned for readers in C++.
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": -(-size // 4) * 4})


def features_from_message(message: PointCloud2) -> tuple[Features, Tracks, np.ndarray]:
    """Inverse of `features_to_message`: features, tracks and N×3 float32 bearings (0 0 0 = uncalibrated).

    uint8 descriptors come back as unit vectors. InputError where the cloud is not of our layout.
    """
    points = cloud_from_message(message)
    names = _names(points)
    metric = "hamming" if "hamming" in names else "l2"
    numbers = [name for name, _ in _FEATURE_FIELDS]
    missing = [name for name in (*numbers, *["descriptor"] * (metric == "hamming")) if name not in names]
    if missing:
        raise InputError(f"point cloud has no field {', '.join(missing)}: expected a `features` topic of this package")
    for name in numbers:
        if points.dtype[name].shape:
            raise _unread_field(name, points.dtype[name], "one number")
    if "descriptor" in names and points.dtype["descriptor"].base.name not in _DESCRIPTOR_KINDS[metric]:
        raise _unread_field("descriptor", points.dtype["descriptor"], " or ".join(_DESCRIPTOR_KINDS[metric]))
    descriptors = points["descriptor"] if "descriptor" in names else np.zeros((len(points), 0), np.float32)
    if descriptors.ndim == 1:  # a field of count 1 is a scalar
        descriptors = descriptors[:, None]
    if metric == "l2" and descriptors.dtype == np.uint8:
        descriptors = dequantize(descriptors)

    def floats(*fields: str) -> np.ndarray:
        return np.stack([points[name] for name in fields], axis=-1).astype(np.float32, copy=False)

    features = Features(
        floats("u", "v"), floats("score")[:, 0], np.ascontiguousarray(descriptors), metric,
        floats("size")[:, 0], floats("angle")[:, 0],
    )
    tracks = Tracks(points["id"].astype(np.uint32), points["age"].astype(np.uint32))
    return features, tracks, floats("x", "y", "z")


def _unread_field(name: str, kind: np.dtype, expected: str) -> InputError:
    count = kind.shape[0] if kind.shape else 1
    return InputError(
        f"point cloud: field {name!r} has {count} {kind.base.name} a point, expected {expected}: "
        "is it a `features` topic of this package?"
    )


@dataclass(frozen=True, eq=False)
class MatchedPoints:
    """What a `matches` message holds: pairs, their M×2 float32 pixels in both images, the train image's stamp (ns)."""

    matches: Matches
    query_points: np.ndarray
    train_points: np.ndarray
    train_stamp: int


def matches_to_message(
    matches: Matches, query: np.ndarray, train: np.ndarray, header: Header, train_stamp: int
) -> PointCloud2:
    """Matches as a PointCloud2, a point each; `header` is the query image's.

    query, train: N×2 keypoints of both images; u0 v0 are the query's, u1 v1 the train's.  train_stamp: nanoseconds.
    """
    data, points = new_points(len(matches), np.dtype(_MATCH_FIELDS))
    points["query_index"], points["train_index"] = matches.query, matches.train
    points["u0"], points["v0"] = query[matches.query].T
    points["u1"], points["v1"] = train[matches.train].T
    points["distance"] = matches.distances
    points["ref_sec"], points["ref_nanosec"] = divmod(train_stamp, 1_000_000_000)
    return cloud_to_message(data, points, header)


def matches_from_message(message: PointCloud2) -> MatchedPoints:
    """Inverse of `matches_to_message`; the stamp of an empty message reads as 0."""
    points = cloud_from_message(message)
    missing = [name for name, _ in _MATCH_FIELDS if name not in _names(points)]
    if missing:
        raise InputError(f"point cloud has no field {', '.join(missing)}: expected a `matches` topic of this package")
    matches = Matches(
        points["query_index"].astype(np.int64), points["train_index"].astype(np.int64),
        points["distance"].astype(np.float32),
    )
    stamp = int(points["ref_sec"][0]) * 1_000_000_000 + int(points["ref_nanosec"][0]) if len(points) else 0
    pairs = [np.stack([points[u], points[v]], axis=-1) for u, v in (("u0", "v0"), ("u1", "v1"))]
    return MatchedPoints(matches, pairs[0], pairs[1], stamp)


def tracks_to_vins_message(
    features: Features, tracks: Tracks, bearings: np.ndarray, velocities: np.ndarray, header: Header, profile: str
) -> PointCloud:
    """What VINS reads on ``/feature_tracker/feature``: points tracked since the frame before at least (age ≥ 2).

    bearings: N×3, z = 1, undistorted; what has none (nan) is left out.  velocities: N×2 of those per second, nan =
    unknown, which is sent as 0.  profile ``mono`` (VINS-Mono): channels id u v vx vy; ``fusion`` (VINS-Fusion): id
    cam u v vx vy gx gy gz, with cam 0 and the last three (a ground truth that it reads for plots alone) zero. Ids
    wrap at 2^24, where a float32 stops counting.
    """
    if profile not in VINS_PROFILES:
        raise unknown_name("vins_profile", profile, VINS_PROFILES)
    kept = np.flatnonzero((tracks.ages >= 2) & np.isfinite(bearings).all(axis=1))
    vx, vy = np.nan_to_num(velocities[kept]).T
    zeros = np.zeros(len(kept), np.float32)
    values = {
        "id": tracks.ids[kept] % _FLOAT_IDS, "cam": zeros,
        "u": features.keypoints[kept, 0], "v": features.keypoints[kept, 1],
        "vx": vx, "vy": vy, "gx": zeros, "gy": zeros, "gz": zeros,
    }
    names = tuple(values) if profile == "fusion" else ("id", "u", "v", "vx", "vy")
    return PointCloud(
        header=header,
        points=[Point32(x=x, y=y, z=1.0) for x, y in bearings[kept, :2].astype(float).tolist()],
        channels=[ChannelFloat32(name=name, values=_float_array(values[name])) for name in names],
    )


def pose_to_message(target_from_source: np.ndarray) -> Pose:
    """4×4 transform → ``geometry_msgs/Pose``."""
    x, y, z = map(float, target_from_source[:3, 3])
    qx, qy, qz, qw = map(float, quaternions_from_poses(target_from_source[None])[0])
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def pose_from_message(pose: Pose) -> np.ndarray:
    """``geometry_msgs/Pose`` → 4×4 float64 transform; InputError where the quaternion is zero."""
    position, q = pose.position, pose.orientation
    place, turn = np.array([[position.x, position.y, position.z]]), np.array([[q.x, q.y, q.z, q.w]])
    return poses_from_quaternions(place, turn)[0]


def odometry_to_message(
    world_from_camera: np.ndarray, covariance: np.ndarray | None, stamp: Time, world_frame: str, camera_frame: str
) -> Odometry:
    """Pose of the camera in the world. covariance: 6×6 (x, y, z, rotation about x, y, z) or None; twist is not known.

    An unknown covariance, or one that is not finite, has -1 at its first place, as elsewhere in ROS.
    """
    message = Odometry(header=Header(stamp=stamp, frame_id=world_frame), child_frame_id=camera_frame)
    message.pose.pose = pose_to_message(world_from_camera)
    unknown = np.zeros(36)
    unknown[0] = -1
    known = covariance is not None and np.isfinite(covariance).all()
    message.pose.covariance = np.asarray(covariance, float).reshape(36) if known else unknown
    message.twist.covariance = unknown
    return message


def path_to_message(poses: Sequence[PoseStamped], header: Header) -> Path:
    """Poses so far; `header` names the world frame."""
    return Path(header=header, poses=list(poses))


def image_to_message(image: np.ndarray, header: Header) -> Image:
    """H×W (mono8) or H×W×3 BGR (bgr8) uint8 image."""
    height, width = image.shape[:2]
    encoding = "mono8" if image.ndim == 2 else "bgr8"
    step = width * (1 if image.ndim == 2 else 3)
    message = Image(header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=step)
    message.data = byte_array(image)  # the constructor would copy it twice
    return message


def diagnostics_to_message(
    name: str, hardware: str, level: bytes, summary: str, values: Mapping[str, object], stamp: Time
) -> DiagnosticArray:
    """One component's status: `level` of DiagnosticStatus (OK, WARN, ERROR), a line, and named values."""
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    status = DiagnosticStatus(name=name, hardware_id=hardware, level=level, message=summary, values=pairs)
    return DiagnosticArray(header=Header(stamp=stamp), status=[status])
