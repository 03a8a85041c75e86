"""Starts `extractor`, or `odometry`, on a camera's topics; the nodes set the Fast DDS profile that carries images.

ros2 launch kp_frontend extractor.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info features:=orb
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("kp_frontend"))
CONFIG = SHARE / "config"

# Arguments that become parameters; empty leaves what params_file says.
PARAMETERS = {
    "features": "orb, sift, rootsift, gftt_lk, a model name, or a path to .onnx",
    "model": "another name for features, for a learned model",
    "backend": "auto, tensorrt, cuda, openvino, onnxruntime or pytorch",
    "image_transport": "raw or compressed",
    "calibration_file": "camera calibration YAML used instead of camera_info",
    "rectified": "true where the images are rectified",
    "mode": "of odometry: mono, stereo or rgbd",
}
# Arguments that become remappings, with the node's own names for the topics.
TOPICS = {
    "image": ("image", "/camera/image_raw"),
    "camera_info": ("camera_info", "/camera/camera_info"),
    "depth": ("depth", "/camera/depth/image_raw"),
    "right_image": ("right/image", "/camera/right/image_raw"),
    "right_camera_info": ("right/camera_info", "/camera/right/camera_info"),
}
# Parameters that are not strings.
TYPES = {"rectified": lambda text: text.lower() in ("true", "1")}


def generate_launch_description() -> LaunchDescription:
    """All arguments are shown by `ros2 launch kp_frontend extractor.launch.py --show-args`."""
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value="", description=text) for name, text in PARAMETERS.items()),
        *(DeclareLaunchArgument(name, default_value=topic, description=f"topic of {own}")
          for name, (own, topic) in TOPICS.items()),
        DeclareLaunchArgument("odometry", default_value="false", choices=["true", "false"],
                              description="true: also odometry, path and TF"),
        DeclareLaunchArgument("namespace", default_value="", description="of the node and its output topics"),
        DeclareLaunchArgument("params_file", default_value="", description="YAML; empty: the shipped one"),
        DeclareLaunchArgument("use_sim_time", default_value="false", choices=["true", "false"],
                              description="true: follow /clock"),
        OpaqueFunction(function=start_node),
    ])


def start_node(context: LaunchContext) -> list[Node]:
    """The one node that the arguments ask for."""
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    given = {name: argument(name) for name in PARAMETERS if argument(name)}
    if "model" in given:
        given["features"] = given.pop("model")
    odometry = argument("odometry") == "true"
    if not odometry:
        given.pop("mode", None)
    overrides = {name: TYPES.get(name, str)(text) for name, text in given.items()}
    overrides["use_sim_time"] = argument("use_sim_time") == "true"
    common = {
        "package": "kp_frontend",
        "namespace": argument("namespace"),
        "remappings": [(own, argument(name)) for name, (own, _) in TOPICS.items()],
        "output": "screen",
        "emulate_tty": True,
    }
    if odometry:
        shipped = str(CONFIG / "odometry.yaml")
        return [Node(executable="odometry", parameters=[argument("params_file") or shipped, overrides], **common)]
    shipped = str(CONFIG / "extractor.yaml")
    return [Node(executable="extractor", parameters=[argument("params_file") or shipped, overrides], **common)]
