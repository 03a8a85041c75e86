"""``python -m kp_frontend COMMAND …``, the same as ``ros2 run kp_frontend COMMAND …``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kp_frontend import command_line

# Before numpy loads: a second thread gains 2 ms of a 6 ms match on idle cores, and costs 100 ms in one of a hundred
# where another process wants the core (measured with 1000 × 1000 ORB on 2 cores).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COMMANDS = {
    "extractor": ("kp_frontend.nodes.extractor", "node: camera topic → features, matches, tracks, overlay"),
    "matcher": ("kp_frontend.nodes.matcher", "node: two features topics → matches"),
    "odometry": ("kp_frontend.nodes.odometry", "node: all of extractor, plus odometry, path and TF"),
    "make_bag": ("kp_frontend.replay.make_bag", "turn a data set folder into a ROS 2 bag"),
    "replay": ("kp_frontend.replay.command", "evaluate extractors on a bag: trajectory error, timings, report"),
    "benchmark": ("kp_frontend.benchmarks.command", "medians and percentiles of the front-end on this machine"),
    "demo": ("kp_frontend.demo", "play a bag through the live nodes and write a report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see ``--help``."""
    return command_line.run(
        "kp_frontend", "Keypoint front-end for visual SLAM: ROS 2 nodes, rosbag replay, benchmarks.",
        COMMANDS, sys.argv[1:] if argv is None else argv,
    )


if __name__ == "__main__":
    sys.exit(main())
