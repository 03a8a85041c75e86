"""Whether two frames are in work at a time, and OpenCV's threads.

Measured on 2 cores with 1000 points at 640×480, kp2d_compact (int8 in brackets), camera and receiver beside the node:
with two frames in work it keeps up with 57 (117) Hz, with one extracted at a time 52 (105), with one in all 53 (89);
at 20 Hz all take 19 (12) ms.  A network that has one thread takes 31 (15) ms there: so neither leaves a core to the
other, and engines do not spin while they wait.
"""

from __future__ import annotations

import cv2

from kp_frontend.cores import usable_cores

OVERLAPS = ("auto", "always", "never")  # `on` and `off` would be booleans: ROS reads parameters as YAML


def set_threads(overlap: str, opencv_threads: int, cores: int | None = None) -> bool:
    """Tell OpenCV its threads (0 = one a core); returns whether two frames shall be in work at a time.

    overlap: one of OVERLAPS; ``auto`` wants two cores.  cores: that may be used, None = those of this process.
    """
    cores = usable_cores() if cores is None else cores
    cv2.setNumThreads(opencv_threads or cores)
    return overlap == "always" or (overlap == "auto" and cores > 1)
