"""Node `odometry`: all of `extractor`, plus odometry, path and TF."""

from __future__ import annotations

from kp_frontend.nodes.frontend_node import FrontendNode
from kp_frontend.nodes.parameters import ODOMETRY, describe
from kp_frontend.nodes.run import run_node

HELP = f"""usage: kp_frontend odometry [--ros-args -p mode:=rgbd … -r image:=/camera/image_raw … --params-file FILE]

Follows the camera's motion from its images, alone (up to scale) or with depth or a rectified second image (metric).

in   image             sensor_msgs/Image, or CompressedImage on image/compressed
     camera_info       sensor_msgs/CameraInfo, or calibration_file: without either there are features but no poses
     depth             mode rgbd: sensor_msgs/Image 16UC1 (mm) or 32FC1 (m), registered to image
     right/image       mode stereo: sensor_msgs/Image, rectified with image
     right/camera_info mode stereo: its P[0,3] is -fx·baseline; or parameter baseline
out  odometry          nav_msgs/Odometry: pose of the camera (x right, y down, z forward) in world_frame
     path              nav_msgs/Path
     /tf               world_frame → the image's frame, where tf2_ros is installed
     features, matches, tracks_vins, overlay, /diagnostics as in `kp_frontend extractor --help`

parameters (name := default)
{describe(ODOMETRY)}
  qos_overrides.<topic>.<publisher|subscription>.<history|depth|reliability>, as in all of ROS 2
"""


def main(argv: list[str]) -> int:
    """Run the node until it is told to stop; returns the exit code."""
    return run_node(lambda: FrontendNode("odometry", odometry=True), argv, HELP)
