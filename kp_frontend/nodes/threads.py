"""Whether two frames are in work at a time, and OpenCV's threads.

Measured on 2 cores with 1000 points at 640×480, kp2d_compact at 56 Hz (int8 at 112 to 119 Hz), camera and receiver
beside the node: with one frame extracted at a time 4 to 16 % of the frames were lost (5 to 24 %), with two 1 to 3 %
(2 to 5 %); at 20 Hz both take 19 (12) ms.  A network that has one thread takes 31 (15) ms there: so neither leaves a
core to the other, and engines do not spin while they wait.
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
