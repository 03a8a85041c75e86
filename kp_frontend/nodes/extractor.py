"""Node `extractor`: camera topic → features, matches, tracks, overlay."""

from __future__ import annotations

from kp_frontend.nodes.frontend_node import FrontendNode
from kp_frontend.nodes.parameters import EXTRACTOR, describe
from kp_frontend.nodes.run import run_node

HELP = f"""usage: kp_frontend extractor [--ros-args -p NAME:=VALUE … -r image:=/camera/image_raw … --params-file FILE]

Finds and follows keypoints in a camera's images. The newest frame wins; nothing is done while nobody subscribes.

in   image             sensor_msgs/Image, or CompressedImage on image/compressed
     camera_info       sensor_msgs/CameraInfo; without it bearings are 0 0 0
out  features          sensor_msgs/PointCloud2: x y z u v score size angle id age descriptor
     matches           sensor_msgs/PointCloud2: this frame (query) with the frame before (train)
     tracks_vins       sensor_msgs/PointCloud as VINS-Mono and VINS-Fusion read it
     overlay           sensor_msgs/Image: keypoints coloured by age
     /diagnostics      rate, latency by stage, drops, counts, last error

parameters (name := default)
{describe(EXTRACTOR)}
  qos_overrides.<topic>.<publisher|subscription>.<history|depth|reliability>, as in all of ROS 2
"""


def main(argv: list[str]) -> int:
    """Run the node until it is told to stop; returns the exit code."""
    return run_node(lambda: FrontendNode("extractor", odometry=False), argv, HELP)
