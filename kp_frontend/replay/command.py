"""``replay BAG --features A B C``: its options; what it does is in session.py, so that --help needs no package."""

from __future__ import annotations

import argparse
from pathlib import Path

from kp_frontend.errors import InputError
from kp_frontend.replay.topics import MODES


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    arguments = argparse.ArgumentParser(
        prog="kp_frontend replay",
        description="Run every frame of a recording through the front-end, once for each kind of features; print a "
        "table of trajectory error, tracks and cost, and write results.json, report.html, overlays and trajectories.",
    )
    add = arguments.add_argument
    add("bag", type=Path, help="ROS 2 bag folder, a lone .mcap or .db3, or a ROS 1 .bag")
    add("--features", nargs="+", required=True, metavar="SPEC", help="orb, sift, gftt_lk, a model, a .onnx …")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of report, figures and pictures")
    add("--ground-truth", metavar="TOPIC|FILE", help="poses: a topic, or a file of TUM, KITTI or EuRoC rows")
    add("--body-from-camera", type=float, nargs=7, metavar="V", help="tx ty tz qx qy qz qw of the camera on the body "
        "that the ground truth is of")
    for name, what in (("image", "images"), ("info", "camera_info"), ("depth", "depth"), ("right", "second images"),
                       ("right-info", "camera_info of the second images")):
        add(f"--{name}", metavar="TOPIC", help=f"{what} (default: found by type and name)")
    add("--calibration", type=Path, metavar="FILE", help="YAML in place of camera_info")
    add("--mode", choices=MODES, default="auto", help="auto: depth, else a rectified pair, else one camera")
    add("--top-k", type=int, default=1000, help="most keypoints an image (default %(default)s)")
    add("--backend", default="auto", help="of learned features (default %(default)s)")
    add("--max-frames", type=int, metavar="N", help="stop after N frames")
    add("--save-features", action="store_true", help="write features/SPEC.npz, every frame's keypoints and descriptors")
    add("--live", action="store_true", help="play through the real nodes over DDS; adds latency and drops")
    add("--rate", type=float, default=1.0, help="with --live: times the recorded speed (default %(default)s)")
    add("--compare", action="store_true", help="with --live: run offline too, and compare the features of each frame")
    add("--json", type=Path, metavar="FILE", help="write the figures there too (always in DIR/results.json)")
    return arguments


def main(argv: list[str]) -> int:
    """Run the command; returns 0, raises InputError, at the end where only some features could not be run."""
    options = parser().parse_args(argv)
    for name, least in (("top_k", 1), ("max_frames", 1)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least {least}")
    if not options.rate > 0:
        raise InputError(f"--rate is {options.rate}, expected more than 0")
    if options.compare and not options.live:
        raise InputError("--compare sets live runs against offline ones; give --live as well")
    from kp_frontend.replay.session import replay

    replay(options, argv)
    return 0
