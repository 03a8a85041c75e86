"""One of our nodes and a friend that talks to it, over DDS inside this process."""

from __future__ import annotations

import itertools
import os
import threading
import time

# Read when a context starts: nothing leaves this process.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "OFF")

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry, Path
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud, PointCloud2
from std_msgs.msg import Header

from kp_frontend import messages

TIMEOUT = 20.0
PERIOD = 50_000_000
OUTPUTS = {
    "features": PointCloud2, "matches": PointCloud2, "tracks_vins": PointCloud, "overlay": Image,
    "odometry": Odometry, "path": Path, "/diagnostics": DiagnosticArray,
}
_DOMAINS = itertools.cycle(range(1 + os.getpid() % 50, 101))


class Harness:
    """A running node with one subscription for each of `topics`, and publishers made on first use.

    received: messages by topic, in order of arrival.
    """

    def __init__(self, build, topics=("features",), **parameters):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=next(_DOMAINS))
        self.friend = rclpy.create_node("friend", context=self.context)
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = build(context=self.context, parameter_overrides=overrides)
        self.received = {topic: [] for topic in topics}
        for topic in topics:
            self.friend.create_subscription(OUTPUTS[topic], topic, self.received[topic].append, QoSProfile(depth=50))
        self._publishers = {}
        self._stamps = itertools.count(1_000_000_000, PERIOD)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._executor.add_node(self.friend)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()
        self.until(lambda: all(self.node.count_subscribers(topic) for topic in topics), "subscriptions")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._executor.shutdown(timeout_sec=5)
        self._thread.join(5)
        self.node.close()
        self.node.destroy_node()
        self.friend.destroy_node()
        self.context.try_shutdown()

    def until(self, condition, what):
        """Wait until `condition` holds; the test fails after a while."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, f"no {what} within {TIMEOUT} s; last error: {self.last_error()}"
            time.sleep(0.005)

    def publish(self, topic, message):
        """Send `message`, when someone has subscribed."""
        if topic not in self._publishers:
            self._publishers[topic] = self.friend.create_publisher(type(message), topic, QoSProfile(depth=50))
            self.until(lambda: self._publishers[topic].get_subscription_count(), f"subscriber on {topic}")
            time.sleep(0.05)
        self._publishers[topic].publish(message)

    def header(self, stamp=None):
        """Header of the next frame, or of `stamp` in ns."""
        stamp = next(self._stamps) if stamp is None else stamp
        return Header(stamp=messages.stamp_to_message(stamp), frame_id="camera")

    def send(self, image, header=None, topic="image"):
        """Send an image array; returns its stamp in ns."""
        header = header or self.header()
        self.publish(topic, messages.image_to_message(image, header))
        return messages.stamp_from_message(header.stamp)

    def calibrate(self, **changes):
        """Send camera_info of a 320×240 camera, with `changes`, and wait until it was seen."""
        self.publish("camera_info", camera_info(**changes))
        time.sleep(0.1)

    def wait(self, topic, stamp):
        """The message of `stamp` on `topic`."""
        found = []

        def arrived():
            found[:] = [m for m in list(self.received[topic]) if messages.stamp_from_message(m.header.stamp) == stamp]
            return found

        self.until(arrived, f"{topic} of stamp {stamp}")
        return found[0]

    def features(self, stamp):
        """Features, tracks and bearings of `stamp`."""
        return messages.features_from_message(self.wait("features", stamp))

    def status(self):
        """What the node's diagnostics would say now."""
        return self.node.diagnostics.values()

    def last_error(self):
        """The node's last error."""
        return self.status()["last_error"]

    def until_error(self, words):
        """Wait until the node has said `words`, in one line."""
        self.until(lambda: words in self.last_error(), f"error with {words!r}")
        assert "\n" not in self.last_error()


def camera_info(width=320, height=240, focal=300.0, shift=0.0, **changes):
    """CameraInfo without distortion; shift: P[0,3]."""
    cx, cy = width / 2, height / 2
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = np.array([focal, 0, cx, 0, focal, cy, 0, 0, 1])
    info.p = np.array([focal, 0, cx, shift, 0, focal, cy, 0, 0, 0, 1, 0])
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def depth_message(depth, header):
    """16UC1 Image of H×W metres."""
    millimetres = np.round(depth * 1000).astype(np.uint16)
    height, width = depth.shape
    return Image(
        header=header, height=height, width=width, encoding="16UC1", step=2 * width,
        data=messages.byte_array(millimetres),
    )
