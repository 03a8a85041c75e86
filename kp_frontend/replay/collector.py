"""Subscribes to what a node of ours publishes, and keeps it by stamp."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2

from kp_frontend.features import Features, Matches, Tracks
from kp_frontend.messages import features_from_message, matches_from_message, pose_from_message, stamp_from_message
from kp_frontend.replay.domain_node import DomainNode

_SETTLE = 0.5


@dataclass(frozen=True, eq=False)
class Received:
    """Features of one frame, and the wall time in ns at which they came."""

    features: Features
    tracks: Tracks
    time: int


class Collector(DomainNode):
    """A context manager that listens on a DDS domain from its own thread.

    features, matches, poses: what came, by stamp in ns.
    descriptors: keep them too; without, features have descriptors of width 0.
    """

    def __init__(self, domain: int, *, descriptors: bool = False) -> None:
        super().__init__("collector", domain)
        self._descriptors = descriptors
        self.features: dict[int, Received] = {}
        self.matches: dict[int, Matches] = {}
        self.poses: dict[int, np.ndarray] = {}

    def connect(self) -> None:
        """See DomainNode."""
        for kind, topic, callback in (
            (PointCloud2, "features", self._on_features), (PointCloud2, "matches", self._on_matches),
            (Odometry, "odometry", self._on_odometry),
        ):
            self.node.create_subscription(kind, topic, callback, QoSProfile(depth=100))

    def _on_features(self, message: PointCloud2) -> None:
        now = time.time_ns()
        features, tracks, _ = features_from_message(message)
        if not self._descriptors:
            features = Features(
                features.keypoints, features.scores, np.zeros((len(features), 0), np.float32),
                sizes=features.sizes, angles=features.angles,
            )
        self.features[stamp_from_message(message.header.stamp)] = Received(features, tracks, now)

    def _on_matches(self, message: PointCloud2) -> None:
        self.matches[stamp_from_message(message.header.stamp)] = matches_from_message(message).matches

    def _on_odometry(self, message: Odometry) -> None:
        self.poses[stamp_from_message(message.header.stamp)] = pose_from_message(message.pose.pose)

    def wait_for_node(self, topics: Sequence[str], check: Callable[[], None]) -> None:
        """Return when `topics` have a publisher; `check` raises where that will never be."""
        self.wait_until(lambda: all(self.node.count_publishers(topic) for topic in topics), check)

    def wait_for_frames(self, count: int, patience: float) -> None:
        """Return when features of `count` frames are here, or none has come for `patience` seconds."""
        seen, since = -1, time.monotonic()
        while len(self.features) < count and time.monotonic() - since < patience:
            if len(self.features) != seen:
                seen, since = len(self.features), time.monotonic()
            time.sleep(0.05)
        time.sleep(_SETTLE)  # matches and pose of the last frame follow its features
