"""The one place that knows tf2_ros: a full ROS 2 has it, the wheels do not."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped, Vector3
from rclpy.node import Node
from std_msgs.msg import Header

from kp_frontend.messages import pose_to_message

try:
    from tf2_ros import TransformBroadcaster
except ImportError:
    TransformBroadcaster = None


class Transforms:
    """Broadcasts poses on /tf; without tf2_ros it says so once and does nothing."""

    def __init__(self, node: Node) -> None:
        self._broadcaster = TransformBroadcaster(node) if TransformBroadcaster is not None else None
        if self._broadcaster is None:
            node.get_logger().info("tf2_ros is not installed: poses go out on `odometry` and `path`, not on /tf")

    def send(self, parent_from_child: np.ndarray, stamp: Time, parent: str, child: str) -> None:
        """Broadcast a 4×4 transform between two frames."""
        if self._broadcaster is None:
            return
        pose = pose_to_message(parent_from_child)
        message = TransformStamped(header=Header(stamp=stamp, frame_id=parent), child_frame_id=child)
        message.transform.translation = Vector3(x=pose.position.x, y=pose.position.y, z=pose.position.z)
        message.transform.rotation = pose.orientation
        self._broadcaster.sendTransform(message)
