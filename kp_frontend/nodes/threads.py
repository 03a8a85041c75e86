"""Whether two frames are in work at a time, and OpenCV's threads.

Measured on 2 cores with 1000 points at 640×480, one frame after the other against two at a time: ORB 5.8 and 4.0 ms a
frame, kp2d_compact 23 and 22. There an engine with 2 threads and OpenCV with 1 or 2 differ by less than the noise, but
an engine with 1 takes 36 ms: so neither leaves a core to the other, and engines do not spin while they wait.
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
