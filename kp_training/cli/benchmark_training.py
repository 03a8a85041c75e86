"""``benchmark training``: images a second, memory and waiting for data of each method on this machine."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.progress import progress_of_parts
from kp_frontend.terminal import table_console
from kp_training.cli.benchmark_measured import WIDTH, measure_all
from kp_training.cli.image_size import read_size

if TYPE_CHECKING:
    from rich.table import Table

    from kp_training.benchmarks.training import Case, Figures

SMALL = "compact"
SHAPES = 300
SHAPES_GOAL = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark training``."""
    add = parser.add_argument
    add("--methods", nargs="+", metavar="M", default=[], help="default: every method")
    add("--network", metavar="N", help=f"only this network of each method; default: the paper's and {SMALL}")
    add("--data", action="append", metavar="SPEC", default=[],
        help="as of train; default: photographs of 640×480, and one procedural scene for methods that need poses")
    add("--steps", type=int, default=8, help="to measure, after two that are not (default %(default)s)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--size", metavar="HEIGHTxWIDTH",
        help="of the views in pixels, height first, as in 240x320; default: the paper's")
    add("--json", type=Path, metavar="FILE", help="write the figures there")


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure the methods; raises InputError for what cannot be used."""
    if options.steps < 2:
        raise InputError(f"--steps {options.steps}: expected 2 or more")
    from kp_frontend.isolated import call_isolated
    from kp_training.benchmarks.training import drawing_speed, measure_isolated
    from kp_training.training import check_device

    check_device(options.device)
    console = table_console(WIDTH)
    refused: list[str] = []
    cases = _cases(options, refused)
    works = {" ".join(filter(None, [case.method, case.settings.get("network"), case.stage])):
             functools.partial(measure_isolated, case) for case in cases}
    with progress_of_parts("rows", len(works) + 1, console) as begin:
        shapes = call_isolated(drawing_speed, SHAPES, progress=begin("synthetic shapes"))
        measured = measure_all(works, begin, refused)
    rows = list(measured.figures.values())
    written = {"results": [asdict(figures) for figures in rows], "synthetic_shapes": shapes}
    return measured.conclude(
        console, table(rows), rates(rows, shapes), judge(rows, shapes), argv, options.json, written)


def _cases(options: argparse.Namespace, refused: list[str]) -> list[Case]:
    """What there is to measure; what cannot be goes to `refused`, with the reason."""
    from kp_training.benchmarks.photographs import photographs
    from kp_training.benchmarks.training import Case, stages_of, takes
    from kp_training.methods import METHODS

    for method in options.methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    size = dict(zip(("height", "width"), read_size("--size", options.size))) if options.size else {}
    data = tuple(options.data) or (f"photos:{photographs()}", "rooms:1")
    cases = []
    for method in options.methods or METHODS:
        if not all(takes(method, name) for name in size):
            refused.append(f"{method}: has no height and width to set by --size")
            continue
        for network in _networks(method, options.network, refused):
            settings = size | network
            try:
                stages = stages_of(method, settings)
            except InputError as error:
                refused.append(f"{method} {network.get('network', '')}: {error}")
                continue
            cases += [Case(method, stage, settings, data, options.device, options.steps) for stage in stages]
    return cases


def _networks(method: str, wanted: str | None, refused: list[str]) -> list[dict[str, Any]]:
    """The `network` setting of each row of `method`."""
    from kp_training.benchmarks.training import takes

    if takes(method, "network"):
        return [{"network": wanted}] if wanted else [{}, {"network": SMALL}]
    if wanted:
        refused.append(f"{method}: has no choice of network")
        return []
    return [{}]


def table(measured: Sequence[Figures]) -> Table:
    """The figures as they are shown."""
    from rich import box
    from rich.table import Table

    device = ", ".join(dict.fromkeys(figures.device for figures in measured))
    on_device = any(row.augmenting > 0.01 for row in measured)
    shown = Table(title=f"Training on {device}, loading with {measured[0].workers} processes", box=box.SIMPLE,
                  title_justify="left", caption_justify="left", caption="waits: share of the time without data; "
                  + on_device * "lit: share in which the device warps and lights; " + "loader: its images/s alone")
    shown.add_column("method", no_wrap=True)
    shown.add_column("stage")
    for name in ("size", "batch", "images/s", "ms p50", "p90", "peak MB", "waits", *(["lit"] * on_device), "loader"):
        shown.add_column(name, justify="right")
    for row in measured:
        cells = [f"{row.images:.1f}", f"{row.step.p50:.0f}", f"{row.step.p90:.0f}", f"{row.memory:.0f}",
                 f"{row.waiting:.0%}", *([f"{row.augmenting:.0%}"] * on_device), f"{row.loader_images:.1f}"]
        batch = f"{row.batch}" if row.batch == row.own_batch else f"{row.batch} (memory; {row.own_batch})"
        shown.add_row(f"{row.method} {row.variant}", row.stage, f"{row.width}×{row.height}", batch, *cells)
    return shown


def rates(measured: Sequence[Figures], shapes: float) -> list[str]:
    """Speeds of what is made before training, a line each."""
    labels = [f"labels for {row.method} {row.variant} {row.stage}: {row.labelled_images:.2f} photos/s"
              for row in measured if row.labelled_images is not None]
    return [*labels, f"synthetic shapes of 160×120 in one process: {shapes:.0f} images/s"]


def judge(measured: Sequence[Figures], shapes: float) -> dict[str, bool]:
    """Whether each target is met, by sentence."""
    slow = [f"{row.method} {row.variant} {row.stage}" for row in measured if row.loader_images < row.images]
    return {
        "the loader alone is faster than training" + (f" (not: {', '.join(slow)})" if slow else ""): not slow,
        f"at least {SHAPES_GOAL} synthetic shapes a second": shapes >= SHAPES_GOAL,
    }
