"""Which topics of a bag hold the image, its calibration, depth, the second image and the ground truth."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
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
_INFRARED = re.compile(r"(^|[/_])(infra|ir|infrared)\d*([/_]|$)", re.IGNORECASE)
_COLOUR = re.compile(r"(^|[/_])(rgb|colou?r)\d*([/_]|$)", re.IGNORECASE)
_TRANSPORT = re.compile(r"/(compressed|compressedDepth|zstd)$")
_UNREAD = "/zstd"  # a transport beside a raw topic, of type CompressedImage but without a picture format


class SeveralTopics(InputError):
    """More than one topic could be meant.  args: what was seen, and what to do where there are options."""

    def __str__(self) -> str:
        return "; ".join(self.args)


@dataclass(frozen=True)
class Topics:
    """Topic names by what they hold; None where the bag has none (or where there was no need)."""

    image: str
    info: str | None = None
    depth: str | None = None
    right: str | None = None
    right_info: str | None = None
    ground_truth: str | None = None


def choose_topics(
    types: Mapping[str, str], wanted: Mapping[str, str | None], mode: str = "auto", empty: Collection[str] = (),
) -> Topics:
    """Topics of a bag with the message `types` by name; `wanted` by field of Topics wins over guessing.

    mode: ``mono``, ``stereo`` or ``rgbd`` leaves out what it does not use.
    empty: topics without a message, as a recording of all topics has them; no image and no truth is guessed there.

    Raises InputError that lists the topics, where a wanted one is absent or of another type, or where no image
    is found, and SeveralTopics.
    """
    for field, topic in wanted.items():
        if topic is not None:
            _check(types, field, topic)
    recorded = {topic: kind for topic, kind in types.items() if topic not in empty}
    images = [topic for topic, kind in recorded.items() if kind in IMAGE_TYPES and not topic.endswith(_UNREAD)]
    depths = [topic for topic in images if _DEPTH.search(_TRANSPORT.sub("", topic))]
    # The transport of depth is advertised for every image, and sent for infrared of 16 bits.
    views = [topic for topic in images if topic not in depths and not topic.endswith("/compressedDepth")]
    if not _INFRARED.search(wanted.get("image") or ""):
        views = _without_infrared(views)
    rights = [topic for topic in views if _RIGHT.search(topic)]
    image = wanted.get("image") or _only("image", [topic for topic in views if topic not in rights] or rights)
    if image is None:
        raise InputError("no image topic (sensor_msgs/Image or CompressedImage) with messages in the bag; it has "
                         f"{_listing(types, empty)}")
    depth = right = None
    if mode in ("auto", "rgbd"):
        depth = wanted.get("depth") or _only("depth", _registered([topic for topic in depths if topic != image]))
    if mode in ("auto", "stereo"):
        right = wanted.get("right") or _only("right", [topic for topic in rights if topic != image])
    return Topics(
        image, wanted.get("info") or _info_of(image, types), depth, right,
        wanted.get("right_info") or (_info_of(right, types) if right else None),
        wanted.get("ground_truth") or _truth(recorded),
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


def _listing(types: Mapping[str, str], empty: Collection[str] = ()) -> str:
    listed = (f"{topic} ({kind}{', no message' if topic in empty else ''})" for topic, kind in sorted(types.items()))
    return ", ".join(listed) or "no topics"


def _only(field: str, topics: list[str]) -> str | None:
    """The one topic of `topics`, a raw one before its compressed twin; SeveralTopics where several remain."""
    raw = {_TRANSPORT.sub("", topic): topic for topic in sorted(topics, key=len, reverse=True)}
    if len(raw) > 1:
        several = ", ".join(sorted(raw.values()))
        raise SeveralTopics(f"several topics could be the {field}: {several}", f"choose one by --{field} TOPIC")
    return next(iter(raw.values()), None)


def _without_infrared(images: list[str]) -> list[str]:
    """Without those of an RGB-D camera's infrared sensors, where one is named as its colour image."""
    others = [topic for topic in images if not _INFRARED.search(topic)]
    return others if any(map(_COLOUR.search, others)) else images


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
