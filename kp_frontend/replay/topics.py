"""Which topics of a bag hold the image, its calibration, depth, the second image and the ground truth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kp_frontend.errors import InputError

MODES = ("auto", "mono", "stereo", "rgbd")
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO_TYPE = "sensor_msgs/msg/CameraInfo"
POSE_TYPES = (
    "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped",
    "geometry_msgs/msg/TransformStamped", "nav_msgs/msg/Odometry", "geometry_msgs/msg/PointStamped",
)
_DEPTH = re.compile(r"depth", re.IGNORECASE)
_RIGHT = re.compile(r"right|cam1|camera1|camera_1|image_1|infra2", re.IGNORECASE)
_TRUTH = re.compile(r"ground_?truth|(^|[/_])gt([/_]|$)|vicon|mocap|optitrack|leica", re.IGNORECASE)
_TRANSPORT = re.compile(r"/(compressed|compressedDepth)$")


@dataclass(frozen=True)
class Topics:
    """Topic names by what they hold; None where the bag has none (or where there was no need)."""

    image: str
    info: str | None = None
    depth: str | None = None
    right: str | None = None
    right_info: str | None = None
    ground_truth: str | None = None


def choose_topics(types: Mapping[str, str], wanted: Mapping[str, str | None], mode: str = "auto") -> Topics:
    """Topics of a bag with the message `types` by name; `wanted` by field of Topics wins over guessing.

    mode: ``mono``, ``stereo`` or ``rgbd`` leaves out what it does not use.

    Raises InputError that lists the topics, where a wanted one is absent or of another type, where no image
    is found, or where several could be meant.
    """
    for field, topic in wanted.items():
        if topic is not None:
            _check(types, field, topic)
    images = [topic for topic, kind in types.items() if kind in IMAGE_TYPES]
    depths = [topic for topic in images if _DEPTH.search(topic)]
    rights = [topic for topic in images if _RIGHT.search(topic) and topic not in depths]
    colours = [topic for topic in images if topic not in depths and topic not in rights]
    image = wanted.get("image") or _only("image", colours or rights)
    if image is None:
        raise InputError(f"no image topic (sensor_msgs/Image or CompressedImage) in the bag; it has {_listing(types)}")
    depth = right = None
    if mode in ("auto", "rgbd"):
        depth = wanted.get("depth") or _only("depth", _registered([topic for topic in depths if topic != image]))
    if mode in ("auto", "stereo"):
        right = wanted.get("right") or _only("right", [topic for topic in rights if topic != image])
    return Topics(
        image, wanted.get("info") or _info_of(image, types), depth, right,
        wanted.get("right_info") or (_info_of(right, types) if right else None),
        wanted.get("ground_truth") or _truth(types),
    )


ALLOWED = {
    "image": IMAGE_TYPES, "depth": IMAGE_TYPES, "right": IMAGE_TYPES, "info": (INFO_TYPE,), "right_info": (INFO_TYPE,),
    "ground_truth": POSE_TYPES,
}


def _check(types: Mapping[str, str], field: str, topic: str) -> None:
    option = f"--{field.replace('_', '-')}"
    if topic not in types:
        raise InputError(f"no topic {topic} ({option}) in the bag; it has {_listing(types)}")
    if types[topic] not in ALLOWED[field]:
        raise InputError(f"{option} {topic} is {types[topic]}, expected {' or '.join(ALLOWED[field])}")


def _listing(types: Mapping[str, str]) -> str:
    return ", ".join(f"{topic} ({kind})" for topic, kind in sorted(types.items())) or "no topics"


def _only(field: str, topics: list[str]) -> str | None:
    """The one topic of `topics`, a raw one before its compressed twin; InputError where several remain."""
    raw = {_TRANSPORT.sub("", topic): topic for topic in sorted(topics, key=len, reverse=True)}
    if len(raw) > 1:
        several = ", ".join(sorted(raw.values()))
        raise InputError(f"several topics could be the {field}: {several}; choose one by --{field} TOPIC")
    return next(iter(raw.values()), None)


def _registered(depths: list[str]) -> list[str]:
    """Depth in the colour camera where there is such a topic: only that belongs to the image's pixels."""
    return [topic for topic in depths if re.search(r"aligned|registered", topic)] or depths


def _info_of(image: str, types: Mapping[str, str]) -> str | None:
    """The camera_info beside `image`; else the only one in the bag, where there is but one image as well."""
    infos = [topic for topic, kind in types.items() if kind == INFO_TYPE]
    folder = _TRANSPORT.sub("", image).rpartition("/")[0]
    if f"{folder}/camera_info" in infos:
        return f"{folder}/camera_info"
    images = {_TRANSPORT.sub("", topic) for topic, kind in types.items() if kind in IMAGE_TYPES}
    return infos[0] if len(infos) == len(images) == 1 else None


def _truth(types: Mapping[str, str]) -> str | None:
    """The topic of poses whose name says ground truth; of several, whole poses before positions."""
    named = [topic for topic, kind in types.items() if kind in POSE_TYPES and _TRUTH.search(topic)]
    return min(named, key=lambda topic: (types[topic] == POSE_TYPES[-1], topic), default=None)
