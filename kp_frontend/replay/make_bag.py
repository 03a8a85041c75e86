"""``make_bag SOURCE --output BAG``: a data set folder becomes a ROS 2 bag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kp_frontend.errors import InputError

if TYPE_CHECKING:
    from kp_frontend.replay.bag_writer import BagWriter
    from kp_frontend.replay.scenes import Scene


def write_scene(scene: Scene, bag: BagWriter, count: int | None = None) -> int:
    """Write the first `count` frames (None: all) of `scene` with ground truth up to the last; returns how many."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    frames = scene.frames[:count]
    truth = scene.ground_truth
    poses = iter(zip(truth.stamps.tolist(), truth.poses)) if truth is not None else iter(())
    pose = next(poses, None)
    for frame in track(frames, "frames", console=console, transient=True, disable=not console.is_terminal):
        while pose is not None and pose[0] <= frame.stamp:
            bag.write_pose(*pose)
            pose = next(poses, None)
        image, depth, right = scene.load(frame)
        bag.write(frame.stamp, image, depth, right)
    return len(frames)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    arguments = argparse.ArgumentParser(
        prog="kp_frontend make_bag",
        description="Turn a data set folder into a ROS 2 bag with images, camera_info, depth or a second camera, "
        "and ground truth (geometry_msgs/PoseStamped, world_from_camera).",
    )
    arguments.add_argument("source", type=Path, help="folder of one sequence")
    arguments.add_argument("--output", type=Path, required=True, help="the bag to write, a folder")
    arguments.add_argument("--layout", help="scene, tum_rgbd, kitti, euroc or new_tsukuba (default: by its files)")
    arguments.add_argument("--intrinsics", type=Path, metavar="FILE", help="calibration that replaces the data set's")
    arguments.add_argument("--mono", action="store_true", help="leave the second camera and depth out")
    arguments.add_argument("--storage", default="sqlite3", help="sqlite3 or mcap (default: %(default)s)")
    arguments.add_argument("--version", type=int, default=9, help="of the bag: 9, or 8 for Humble and Iron")
    arguments.add_argument("--compressed", action="store_true", help="JPEG images, PNG depth")
    arguments.add_argument("--frames", type=int, metavar="N", help="write the first N frames only")
    arguments.add_argument("--overwrite", action="store_true", help="replace an existing bag")
    return arguments


def main(argv: list[str]) -> int:
    """Run the command; returns 0, raises InputError."""
    options = parser().parse_args(argv)
    if options.frames is not None and options.frames < 1:
        raise InputError(f"--frames is {options.frames}, expected at least 1")
    from kp_frontend.replay.bag_writer import BagWriter
    from kp_frontend.replay.scenes import SceneOptions, open_scene

    scene = open_scene(options.source, options.layout, SceneOptions(options.intrinsics, options.mono))
    bag = BagWriter(
        options.output, scene.camera, scene.baseline, storage=options.storage, version=options.version,
        compressed=options.compressed, overwrite=options.overwrite,
    )
    with bag:
        count = write_scene(scene, bag, options.frames)
    parts = [
        f"{count} frames", f"{scene.camera.width}×{scene.camera.height}",
        *(["depth"] if any(frame.depth for frame in scene.frames) else []),
        *([f"second camera at {scene.baseline:.3f} m"] if scene.baseline else []),
        f"ground truth {scene.ground_truth.length:.2f} m" if scene.ground_truth is not None else "no ground truth",
    ]
    print(f"{options.output} ({scene.layout}): {', '.join(parts)}")
    return 0
