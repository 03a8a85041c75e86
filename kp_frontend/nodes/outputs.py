"""What a camera node publishes, and only what someone subscribes to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, PointCloud, PointCloud2
from std_msgs.msg import Header

from kp_frontend import messages
from kp_frontend.camera import CameraModel
from kp_frontend.errors import InputError
from kp_frontend.nodes.diagnostics import Diagnostics
from kp_frontend.nodes.parameters import Values
from kp_frontend.nodes.transforms import Transforms
from kp_frontend.overlay import draw_tracks
from kp_frontend.pipeline import FrontendOutput


def advertise(node: Node, kind: type, topic: str, depth: int = 10) -> Publisher:
    """Reliable publisher, whose QoS parameters ``qos_overrides.<topic>.publisher.…`` may change."""
    try:
        return node.create_publisher(
            kind, topic, QoSProfile(depth=depth), qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
    except RuntimeError as error:
        raise InputError(f"{topic}: {error}") from error


@dataclass(frozen=True, eq=False)
class Processed:
    """A frame after the pipeline; image: H×W or H×W×3 uint8, camera: None where it is not calibrated."""

    header: Header
    image: np.ndarray
    output: FrontendOutput
    camera: CameraModel | None

    @cached_property
    def bearings(self) -> np.ndarray | None:
        """N×3 float32 of the keypoints, for all messages that need them; None where it is not calibrated."""
        return None if self.camera is None else self.camera.bearings(self.output.features.keypoints)


class FeatureOutputs:
    """Topics `features`, `matches`, `tracks_vins`, `overlay`."""

    def __init__(self, node: Node, values: Values, diagnostics: Diagnostics) -> None:
        self._values = values
        self._diagnostics = diagnostics
        self._fill = {
            advertise(node, PointCloud2, "features"): self._features,
            advertise(node, PointCloud2, "matches"): self._matches,
            advertise(node, PointCloud, "tracks_vins"): self._tracks_vins,
            advertise(node, Image, "overlay"): self._overlay,
        }

    def wanted(self) -> bool:
        """Whether anyone subscribes to any of them."""
        return any(publisher.get_subscription_count() for publisher in self._fill)

    def publish(self, frame: Processed) -> None:
        """Fill and send the messages that someone waits for, `features` first."""
        for publisher, fill in self._fill.items():
            if publisher.get_subscription_count():
                message = fill(frame)
                if message is not None:
                    publisher.publish(message)

    def _features(self, frame: Processed) -> PointCloud2:
        bearings = frame.bearings
        if bearings is not None:
            bearings = np.nan_to_num(bearings)
            bearings[bearings[:, 2] != 1] = 0
        return messages.features_to_message(
            frame.output.features, frame.output.tracks, frame.header, bearings, self._values.descriptor_format
        )

    def _matches(self, frame: Processed) -> PointCloud2:
        output = frame.output
        train = np.zeros((0, 2), np.float32) if output.previous is None else output.previous.keypoints
        return messages.matches_to_message(
            output.matches, output.features.keypoints, train, frame.header, output.previous_stamp
        )

    def _tracks_vins(self, frame: Processed) -> PointCloud | None:
        bearings = frame.bearings
        if frame.camera is None or bearings is None:
            self._diagnostics.warning("tracks_vins needs a calibration: publish camera_info or set calibration_file")
            return None
        output = frame.output
        if output.previous is None:
            return None
        velocities = np.zeros((len(bearings), 2), np.float32)
        query, train = output.matches.query, output.matches.train
        before = frame.camera.bearings(output.previous.keypoints[train])
        velocities[query] = (bearings[query] - before)[:, :2] / ((output.stamp - output.previous_stamp) * 1e-9)
        return messages.tracks_to_vins_message(
            output.features, output.tracks, bearings, velocities, frame.header, self._values.vins_profile
        )

    def _overlay(self, frame: Processed) -> Image:
        output = frame.output
        drawn = draw_tracks(frame.image, output.features, output.tracks, output.matches, output.previous)
        return messages.image_to_message(drawn, frame.header)


class OdometryOutputs:
    """Topics `odometry` and `path`, and TF: the camera in the world frame, while the odometry has a pose."""

    def __init__(self, node: Node, values: Values) -> None:
        self._values = values
        self._world = values.world_frame
        self._odometry = advertise(node, Odometry, "odometry", depth=100)  # a map that starts brings poses at once
        self._path = advertise(node, Path, "path")
        self._poses: deque[PoseStamped] = deque(maxlen=values.path_length)
        self._transforms = Transforms(node)

    def reset(self) -> None:
        """Forget the path."""
        self._poses.clear()

    def publish(self, frame: Processed) -> None:
        """Send the pose of this frame, if it has one, after those of earlier frames that had to wait for it."""
        state = frame.output.state
        if state is None or state.world_from_camera is None:
            return
        stamp, camera = frame.header.stamp, frame.header.frame_id
        for earlier, pose in state.recovered:
            self._send(pose, None, messages.stamp_to_message(earlier), camera)
        self._send(state.world_from_camera, state.covariance, stamp, camera)
        if self._path.get_subscription_count():
            self._path.publish(messages.path_to_message(self._poses, self._poses[-1].header))
        if self._values.publish_tf:
            self._transforms.send(state.world_from_camera, stamp, self._world, frame.header.frame_id)

    def _send(self, pose: np.ndarray, covariance: np.ndarray | None, stamp: Time, camera: str) -> None:
        message = messages.odometry_to_message(pose, covariance, stamp, self._world, camera)
        self._odometry.publish(message)
        self._poses.append(PoseStamped(header=Header(stamp=stamp, frame_id=self._world), pose=message.pose.pose))
