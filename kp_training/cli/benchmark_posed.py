"""``benchmark posed``: rendering, overlap, loading and labelling of posed views on this machine, beside their goals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.progress import Progress, progress_of_parts
from kp_frontend.terminal import table_console
from kp_training.cli.benchmark_measured import WIDTH, measure_all

if TYPE_CHECKING:
    from rich.table import Table

    from kp_training.benchmarks.posed import PosedFigures, Work


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark posed``."""
    add = parser.add_argument
    add("--data", metavar="SPEC", default="rooms:1",
        help="posed:PATH or rooms:1 (default); the first scene is taken; a room is rendered at 640×480 the first time")
    add("--only", nargs="+", metavar="WORK", default=[], help="some of: rooms, overlap, pairs, projective, voxels")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="of projective adaptation")
    add("--json", type=Path, metavar="FILE", help="write the figures there")


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure each kind of work in a process of its own; raises InputError for what cannot be used."""
    from kp_frontend.isolated import Ended, call_isolated
    from kp_training.benchmarks.posed import WORKS, prepare
    from kp_training.training import check_device

    check_device(options.device)
    for name in options.only:
        if name not in WORKS:
            raise unknown_name("work", name, WORKS)

    def isolated(work: Work) -> Callable[[Progress], PosedFigures]:
        return lambda progress: call_isolated(work.measure, options.data, options.device, progress=progress)

    works = {name: isolated(work) for name, work in WORKS.items() if not options.only or name in options.only}
    console = table_console(WIDTH)
    with progress_of_parts("rows", len(works) + 1, console) as begin:
        scene = call_isolated(prepare, options.data, progress=begin("the scene"))
        measured = measure_all(works, begin, errors=(InputError, MemoryError, Ended))
    rows = measured.figures
    written = {"results": {name: asdict(figures) | {"rate": figures.rate} for name, figures in rows.items()}}
    return measured.conclude(console, table(rows, scene), [], judge(rows), argv, options.json, written)


def table(measured: dict[str, PosedFigures], scene: str) -> Table:
    """The figures as they are shown."""
    from rich import box
    from rich.table import Table

    shown = Table(title=f"Posed data; scene {scene}", box=box.SIMPLE, title_justify="left", caption_justify="left",
                  caption="CPU s: of all cores together, less than seconds where others use them; "
                          "peak MB: above what the process had, without that of processes that render")
    shown.add_column("work", no_wrap=True)
    for name in ("a second", "seconds", "CPU s", "peak MB"):
        shown.add_column(name, justify="right")
    for row in measured.values():
        shown.add_row(row.work, f"{row.rate:.1f} {row.unit}", *(f"{value:.1f}" for value in (row.seconds, row.cpu)),
                      f"{row.memory:.0f}")
    return shown


def judge(measured: dict[str, PosedFigures]) -> dict[str, bool]:
    """Whether each goal of what was measured is met, by sentence."""
    from kp_training.benchmarks.posed import WORKS

    goals = ((WORKS[name].goal, figures) for name, figures in measured.items())
    return {goal[0]: goal[1](figures) for goal, figures in goals if goal is not None}
