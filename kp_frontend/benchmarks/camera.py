"""A camera over DDS, as light as can be: ready-made bytes go out; of what comes back, stamp and time are read."""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from kp_frontend.messages import image_to_message
from kp_frontend.progress import Progress
from kp_frontend.replay.domain_node import DomainNode

WIDTH, HEIGHT = 640, 480
_STAMP = struct.Struct("<iI")
_STAMP_AT = 4  # after the encapsulation: the header comes first in all of these messages
_PERIOD = 300  # frames of the video after which it comes back to its start


def photograph_video(count: int, width: int = WIDTH, height: int = HEIGHT) -> list[np.ndarray]:
    """Grey views of a photograph under a camera that circles, turns and zooms gently; larger ones show it larger."""
    from skimage import data

    scale = max(width / WIDTH, height / HEIGHT)
    side = round(1024 * scale)
    gray = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2GRAY)
    photo = cv2.resize(gray, (side, side), interpolation=cv2.INTER_CUBIC)
    views = []
    for index in range(count):
        phase = 2 * np.pi * index / _PERIOD
        warp = cv2.getRotationMatrix2D((side / 2, side / 2), 8 * np.sin(phase), 1.1 + 0.1 * np.sin(2 * phase))
        shift = (width / 2 - side / 2 + 90 * scale * np.cos(phase), height / 2 - side / 2 + 60 * scale * np.sin(phase))
        warp[:, 2] += shift
        views.append(cv2.warpAffine(photo, warp, (width, height), borderMode=cv2.BORDER_REFLECT))
    return views


class Camera(DomainNode):
    """Publishes `image` from its own node on a DDS domain and notes when `features` come back; a context manager.

    received: stamp in ns → wall time in ns at which the features of that frame came.
    """

    def __init__(self, domain: int) -> None:
        super().__init__("camera", domain)
        self._messages: itertools.cycle[bytearray] = itertools.cycle([])
        self.received: dict[int, int] = {}

    def connect(self) -> None:
        """See DomainNode."""
        self._publisher = self.node.create_publisher(Image, "image", qos_profile_sensor_data)
        for topic, callback in (("features", self._on_features), ("matches", lambda content: None)):
            self.node.create_subscription(PointCloud2, topic, callback, QoSProfile(depth=100), raw=True)

    def _on_features(self, content: bytes) -> None:
        now = time.time_ns()
        seconds, nanoseconds = _STAMP.unpack_from(content, _STAMP_AT)
        self.received[seconds * 1_000_000_000 + nanoseconds] = now

    def wait_for_node(self, check: Callable[[], None]) -> None:
        """Return when the node listens and we hear it; `check` raises where that will never be."""
        self.wait_until(lambda: bool(self._publisher.get_subscription_count() and self.node.count_publishers("features")
                                     and self.node.count_publishers("matches")), check)

    def show(self, images: Sequence[np.ndarray]) -> None:
        """From now on send these, there and back, so that the picture never jumps."""
        ready = [bytearray(serialize_message(image_to_message(image, Header(frame_id="camera")))) for image in images]
        self._messages = itertools.cycle([*ready, *ready[-2:0:-1]])

    def send(self, count: int, rate: float, progress: Progress = lambda done, total: None) -> list[int]:
        """Send `count` images at `rate` Hz on a clock that does not drift; their stamps, the wall time in ns."""
        begin, pause, sent = time.monotonic(), threading.Event(), []
        for index in range(count):
            pause.wait(max(0.0, begin + index / rate - time.monotonic()))
            message, now = next(self._messages), time.time_ns()
            _STAMP.pack_into(message, _STAMP_AT, *divmod(now, 1_000_000_000))
            sent.append(now)
            self._publisher.publish(bytes(message))
            if index % max(1, round(rate)) == 0 or index == count - 1:
                progress(index + 1, count)
        return sent

    def settle(self, sent: Iterable[int], patience: float = 1.0) -> None:
        """Return when the features of all `sent` are here, or none has come for `patience` seconds."""
        missing, since, seen = set(sent), time.monotonic(), -1
        while missing - self.received.keys() and time.monotonic() - since < patience:
            if len(self.received) != seen:
                seen, since = len(self.received), time.monotonic()
            time.sleep(0.02)
