"""What a camera node subscribes to: images with their companions, and the calibration."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from kp_frontend import images
from kp_frontend.camera import CameraModel, baseline_from_camera_info
from kp_frontend.errors import InputError
from kp_frontend.messages import stamp_from_message
from kp_frontend.nodes.diagnostics import Diagnostics
from kp_frontend.nodes.parameters import Values
from kp_frontend.nodes.synchronizer import StampSynchronizer

# image_transport's names: parameter value → (message type, suffix of an image topic, suffix of a depth topic).
TRANSPORTS = {"raw": (Image, "", ""), "compressed": (CompressedImage, "/compressed", "/compressedDepth")}
# Companion of each mode, and its topic.
COMPANIONS = {"mono": {}, "rgbd": {"depth": "depth"}, "stereo": {"right": "right/image"}}


@dataclass(frozen=True, eq=False)
class Arrival:
    """An image message with the depth or right image that belongs to it; arrived: wall time in ns."""

    stamp: int
    image: Image | CompressedImage
    depth: Image | CompressedImage | None
    right: Image | CompressedImage | None
    arrived: int


def subscribe(node: Node, kind: type, topic: str, callback: Callable[..., None]) -> None:
    """Subscribe with sensor-data QoS, which parameters ``qos_overrides.<topic>.subscription.…`` may change."""
    try:
        node.create_subscription(
            kind, topic, callback, qos_profile_sensor_data,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
    except RuntimeError as error:
        raise InputError(f"{topic}: {error}") from error


def decode(message: Image | CompressedImage) -> Any:
    """H×W or H×W×3 (BGR) uint8 of either message; InputError where it cannot be read."""
    if isinstance(message, CompressedImage):
        return images.image_from_compressed(message)
    return images.image_from_message(message)


def decode_depth(message: Image | CompressedImage) -> Any:
    """H×W float32 metres of either message; InputError where it cannot be read."""
    if isinstance(message, CompressedImage):
        return images.depth_from_compressed(message)
    return images.depth_from_message(message)


class ImageInputs:
    """Images, with depth or right image as `mode` says, put together by stamp and handed to `emit`."""

    def __init__(
        self, node: Node, values: Values, mode: str, emit: Callable[[Arrival], None], diagnostics: Diagnostics
    ) -> None:
        self._diagnostics = diagnostics
        companions = COMPANIONS[mode]
        seconds = values.sync_tolerance if companions else 0.0
        self._sync = StampSynchronizer(companions, self._together, round(seconds * 1e9) or None)
        self._emit = emit
        kind, suffix, _ = TRANSPORTS[values.image_transport]
        self.topic = node.resolve_topic_name("image") + suffix
        subscribe(node, kind, self.topic, self._image)
        self.companions = {}
        for name, topic in companions.items():
            kind, *suffixes = TRANSPORTS[values.depth_transport if name == "depth" else values.image_transport]
            self.companions[name] = node.resolve_topic_name(topic) + suffixes[name == "depth"]
            subscribe(node, kind, self.companions[name], self._companion(name))

    def _image(self, message: Image | CompressedImage, info: Any) -> None:
        self._diagnostics.count("received")
        arrived = info.get("received_timestamp") or time.time_ns()
        self._sync.add_main(stamp_from_message(message.header.stamp), (message, arrived))

    def _companion(self, name: str) -> Callable[[Image | CompressedImage], None]:
        return lambda message: self._sync.add(name, stamp_from_message(message.header.stamp), message)

    def _together(self, main: tuple[Image | CompressedImage, int], others: dict[str, Any]) -> None:
        message, arrived = main
        for name, found in others.items():
            if found is None:
                self._diagnostics.warning(f"nothing on {self.companions[name]} belongs to an image: it is used alone")
        stamp = stamp_from_message(message.header.stamp)
        self._emit(Arrival(stamp, message, others.get("depth"), others.get("right"), arrived))


class Calibration:
    """The camera, from `calibration_file` or from `camera_info` as it arrives; None until one is usable.

    In mode ``stereo`` also the baseline, from the parameter or from `right/camera_info`.
    """

    def __init__(self, node: Node, values: Values, mode: str, diagnostics: Diagnostics) -> None:
        self._diagnostics = diagnostics
        self._rectified = values.rectified
        self.camera: CameraModel | None = None
        self.baseline: float | None = None
        self.stereo = mode == "stereo"
        self.topic = node.resolve_topic_name("camera_info")
        self.right_topic = node.resolve_topic_name("right/camera_info")
        self._seen: dict[str, tuple] = {}
        if values.calibration_file:
            self.camera = CameraModel.from_yaml(values.calibration_file, rectified=values.rectified)
        else:
            subscribe(node, CameraInfo, self.topic, self._left)
        if self.stereo:
            self.baseline = values.baseline or None
            if self.baseline is None:
                subscribe(node, CameraInfo, self.right_topic, self._right)

    @property
    def missing(self) -> str:
        """The topic that is still waited for, "" where all is known."""
        if self.camera is None:
            return self.topic
        return self.right_topic if self.stereo and self.baseline is None else ""

    def _left(self, message: CameraInfo) -> None:
        if self._changed("left", message):
            try:
                self.camera = CameraModel.from_camera_info(message, rectified=self._rectified)
            except InputError as error:
                self._reject(self.topic, "left", error, self.camera)

    def _right(self, message: CameraInfo) -> None:
        if self._changed("right", message):
            try:
                self.baseline = baseline_from_camera_info(message)
            except InputError as error:
                self._reject(self.right_topic, "right", error, self.baseline)

    def _changed(self, side: str, message: CameraInfo) -> bool:
        roi = message.roi
        seen = (
            message.width, message.height, message.distortion_model, tuple(message.d), tuple(message.k),
            tuple(message.p), message.binning_x, message.binning_y, roi.x_offset, roi.y_offset, roi.width, roi.height,
        )
        changed = self._seen.get(side) != seen
        self._seen[side] = seen
        return changed

    def _reject(self, topic: str, side: str, error: InputError, kept: object) -> None:
        del self._seen[side]  # so that it is said again for as long as it is published
        suffix = "; the calibration before stays in use" if kept is not None else ""
        self._diagnostics.error(f"camera_info on {topic}: {error}{suffix}")
