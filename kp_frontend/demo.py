"""``demo``: a bag through the live nodes, with a table and a report at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kp_frontend.replay.flight import Flight

FEATURES = ("orb", "gftt_lk", "kp2d_compact")


def render_flight(path: Path, flight: Flight | None = None) -> Path:
    """`flight` (by default the whole one) as a bag at `path`; written once, an existing one is used again."""
    from rich.progress import track

    from kp_frontend.replay.bag_writer import BagWriter
    from kp_frontend.replay.flight import Flight, camera

    if not path.exists():
        flight = flight or Flight()
        with BagWriter(path, camera(), flight.baseline) as bag:
            for view in track(flight.views(), "rendering the flight", total=flight.frames):
                bag.write(view.stamp, view.image, view.depth, view.right, view.world_from_camera)
    return path


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    arguments = argparse.ArgumentParser(
        prog="kp_frontend demo",
        description="Play a bag through the real nodes, live over DDS, once for each kind of features; then write "
        "pictures, figures and a report. Without --bag: a rendered flight through a textured room with exact "
        "ground truth.",
    )
    arguments.add_argument("--output", type=Path, default=Path("output/demo"), help="folder of the report")
    arguments.add_argument("--features", nargs="+", default=FEATURES, metavar="NAME", help="default: %(default)s")
    arguments.add_argument("--bag", help="your recording: a ROS 2 bag folder, a lone .mcap or .db3, or a ROS 1 .bag")
    for name in ("image", "info", "depth", "right"):
        arguments.add_argument(f"--{name}", metavar="TOPIC", help="as in `replay`; by default found by type and name")
    return arguments


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code of `replay`."""
    options = parser().parse_args(argv)
    from kp_frontend.replay import command

    bag = options.bag or str(render_flight(options.output / "flight"))
    topics = [
        word for name in ("image", "info", "depth", "right") if getattr(options, name)
        for word in (f"--{name}", getattr(options, name))
    ]
    return command.main([bag, "--features", *options.features, "--output", str(options.output), "--live", *topics])
