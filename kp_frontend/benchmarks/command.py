"""``benchmark``: what the front-end costs on this machine, in one process and as a node over DDS."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kp_frontend.benchmarks.frontend import (
    LEAST_FRAMES,
    Figures,
    bag_frames,
    flight_frames,
    measure_camera,
    measure_odometry,
    measure_stages,
    table,
)
from kp_frontend.benchmarks.node import RATES, draw, measure_node
from kp_frontend.benchmarks.node import table as node_table
from kp_frontend.benchmarks.report import Report, add_report_options, draw_bars, show_targets
from kp_frontend.errors import InputError
from kp_frontend.extractors import EXTRACTORS, TRACKERS, parse_spec
from kp_frontend.extractors import load_extractor as check_features
from kp_frontend.progress import progress_bar, progress_of_parts
from kp_frontend.terminal import table_console

FEATURES = ("orb", "kp2d_compact")
_TABLE_WIDTH = 100


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    arguments = argparse.ArgumentParser("kp_frontend benchmark", description="Measure the front-end on this machine.")
    kinds = arguments.add_subparsers(dest="what", required=True, metavar="WHAT")
    frontend = kinds.add_parser(
        "frontend", help="the whole pipeline by stage", description="Stages in one process, a 30 Hz camera over DDS, "
        "and RGB-D odometry: medians and percentiles in milliseconds.")
    node = kinds.add_parser(
        "node", help="the node over DDS: rates and sizes until drops begin", description="A camera in this process, "
        f"the extractor node in another: {RATES[0]:g} to {RATES[-1]:g} Hz at 640×480, then sizes up to 1920×1080, "
        "until frames are lost, beside the rate that extraction alone allows.")
    for add in (frontend.add_argument, node.add_argument):
        add("--features", nargs="+", default=list(FEATURES), metavar="SPEC", help=f"default: {' '.join(FEATURES)}")
        add("--top-k", type=int, default=1000, help="most keypoints an image (default %(default)s)")
    add = frontend.add_argument
    add("--seconds", type=float, default=20.0, help="of the camera over DDS (default %(default)s)")
    add("--frames", type=int, default=150, help="of the other two (default %(default)s)")
    add("--bag", type=Path, help="take images from this recording (with depth, for odometry), not a photograph")
    add = node.add_argument
    add("--seconds", type=float, default=4.0, help="of each rate and size (default %(default)s)")
    add("--rate", type=float, default=30.0, help="Hz, of the sweep over sizes (default %(default)s)")
    for kind in (frontend, node):
        add_report_options(kind)
    return arguments


def main(argv: list[str]) -> int:
    """Run the command; returns 0, raises InputError."""
    options = parser().parse_args(argv)
    report = Report(options)
    if not 0.2 <= options.seconds < math.inf or options.top_k < 1:
        raise InputError("expected --seconds of 0.2 or more and --top-k of 1 or more")
    return KINDS[options.what](options, report, ["kp_frontend", "benchmark", *argv])


def run_frontend(options: argparse.Namespace, report: Report, command: list[str]) -> int:
    """``benchmark frontend``."""
    if options.frames < LEAST_FRAMES or options.seconds < 1:
        raise InputError(f"expected --frames of {LEAST_FRAMES} or more and --seconds of 1 or more")
    console = table_console(_TABLE_WIDTH)
    results: dict[tuple[str, str], Figures] = {}
    for features, figures in _tables(options, console):
        results[features, figures.name] = figures
        console.print(table(figures))
        console.print("   ".join(f"{name}: {value:.4g}" for name, value in figures.numbers.items()), highlight=False)
        show_targets(console, figures.targets)
        console.print()
    written = {"results": [{"features": features, **asdict(figures)} for (features, _), figures in results.items()]}
    medians = {f"{features}: {name}: {stage}": values.p50 for (features, name), figures in results.items()
               for stage, values in figures.stages.items()}
    report.conclude(console, command, written, medians, lambda axes: _draw_stages(axes, results))
    return 0


def _tables(options: argparse.Namespace, console: Any) -> Iterator[tuple[str, Figures]]:
    """Features and each of their three tables, one after the other, each with a progress bar."""
    from kp_frontend.benchmarks.camera import photograph_video

    if options.bag is not None:
        frames, camera = bag_frames(options.bag, options.frames)
        images = [frame.image for frame in frames]
    else:
        images, frames = photograph_video(options.frames), []
    for features in options.features:
        with progress_bar(f"{features}: stages", console=console) as bar:
            figures = measure_stages(features, options.top_k, images, bar.reach)
        yield features, figures
        with progress_bar(f"{features}: camera over DDS", console=console) as bar:
            figures = measure_camera(features, options.top_k, images, options.seconds, bar.reach)
        yield features, figures
        if not frames:
            with console.status("rendering RGB-D frames"):
                frames, camera = flight_frames(options.frames)
        if camera is None or frames[0].depth is None:
            raise InputError(f"{options.bag} has no calibrated depth: odometry is not measured")
        with progress_bar(f"{features}: odometry", console=console) as bar:
            figures = measure_odometry(features, options.top_k, frames, camera, bar.reach)
        yield features, figures


def _draw_stages(axes: Any, results: dict[tuple[str, str], Figures]) -> None:
    """The stages of one process and of odometry, without what sums them up."""
    sums = ("extractor", "everything else", "whole", "total")
    rows = {f"{features}\n{name}": {stage: values.p50 for stage, values in figures.stages.items() if stage not in sums}
            for (features, name), figures in results.items() if name != "camera"}
    draw_bars(axes, rows, "A frame by stage, median ms")


def run_node(options: argparse.Namespace, report: Report, command: list[str]) -> int:
    """``benchmark node``."""
    if not 1 <= options.rate <= 1000:
        raise InputError(f"--rate {options.rate:g}: expected 1 to 1000 Hz")
    for features in options.features:
        if parse_spec(features)[0] not in (*EXTRACTORS, *TRACKERS):
            check_features(features)  # before a minute has gone by
    console = table_console(_TABLE_WIDTH)
    with progress_of_parts("features", len(options.features), console) as begin:
        measured = [measure_node(features, options.top_k, options.seconds, options.rate, begin(features))
                    for features in options.features]
    console.print(node_table(measured))
    targets = dict(figures.target() for figures in measured)
    show_targets(console, targets)
    medians = {name: value for figures in measured for name, value in figures.medians().items()}
    written = {"results": [figures.written() for figures in measured], "targets": targets}
    report.conclude(console, command, written, medians, lambda axes: draw(axes, measured))
    return 0


KINDS = {"frontend": run_frontend, "node": run_node}
