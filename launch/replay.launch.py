"""Plays a bag, with /clock, through the nodes of extractor.launch.py, and ends with the bag.

ros2 launch kp_frontend replay.launch.py bag:=BAG odometry:=true mode:=rgbd features:=orb
"""

import sys
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

LAUNCH = Path(get_package_share_directory("kp_frontend")) / "launch"


def generate_launch_description() -> LaunchDescription:
    """Takes the arguments of extractor.launch.py as well."""
    nodes = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(LAUNCH / "extractor.launch.py")),
        launch_arguments={"use_sim_time": "true"}.items(),
    )
    player = ExecuteProcess(
        cmd=[
            sys.executable, "-m", "kp_frontend.replay.player", LaunchConfiguration("bag"),
            "--rate", LaunchConfiguration("rate"), "--wait-for", LaunchConfiguration("image"),
        ],
        output="screen",
        on_exit=[Shutdown(reason="the bag has ended")],
    )
    return LaunchDescription([
        DeclareLaunchArgument("bag", description="ROS 2 bag folder, .mcap, .db3, or ROS 1 .bag"),
        DeclareLaunchArgument("rate", default_value="1.0", description="times the bag's own speed"),
        nodes,
        player,
    ])
