"""``benchmark posed``: rendering, overlap, loading and labelling of posed views on this machine, beside their goals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.replay import provenance

if TYPE_CHECKING:
    from rich.table import Table

    from kp_training.posed_benchmark import PosedFigures

STOPPED = 130


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark posed``."""
    add = parser.add_argument
    add("--data", metavar="SPEC", default="rooms:1",
        help="posed:PATH or rooms:1 (default); the first scene is taken; a room is rendered at 480×640 the first time")
    add("--only", nargs="+", metavar="WORK", default=[], help="some of: rooms, overlap, pairs, projective, voxels")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="of projective adaptation")
    add("--json", type=Path, metavar="FILE", help="write the figures there")


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure each kind of work in a process of its own; raises InputError for what cannot be used."""
    from rich.console import Console

    from kp_training.cli.benchmark import WIDTH, progress_bar
    from kp_training.isolated import Ended, call_isolated
    from kp_training.posed_benchmark import WORKS, prepare
    from kp_training.training import check_device

    check_device(options.device)
    for name in options.only:
        if name not in WORKS:
            raise unknown_name("work", name, WORKS)
    works = {name: work for name, work in WORKS.items() if not options.only or name in options.only}
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    measured: dict[str, PosedFigures] = {}
    refused, stopped = [], False
    with progress_bar(console, len(works) + 1) as step:
        scene = call_isolated(prepare, options.data, progress=step("the scene"))
        for name, work in works.items():
            try:
                measured[name] = call_isolated(work.measure, options.data, options.device, progress=step(name))
            except (InputError, MemoryError, Ended) as error:
                refused.append(f"{name}: {error}")
            except KeyboardInterrupt:
                refused.append(f"{name} and what comes after it: stopped by Ctrl-C")
                stopped = True
                break
    if not measured:
        raise InputError(f"nothing could be measured: {'; '.join(refused)}")
    console.print(table(measured, scene))
    for reason in refused:
        console.print(f"left out: {reason}", highlight=False)
    targets = judge(measured)
    for sentence, met in targets.items():
        console.print(f"[{'green' if met else 'red'}]{'yes' if met else 'NO '}[/] {sentence}", highlight=False)
    if options.json is not None:
        _write(options.json, argv, measured, refused, targets)
    return STOPPED if stopped else 0


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
    from kp_training.posed_benchmark import WORKS

    goals = ((WORKS[name].goal, figures) for name, figures in measured.items())
    return {goal[0]: goal[1](figures) for goal, figures in goals if goal is not None}


def _write(
    file: Path, argv: Sequence[str], measured: dict[str, PosedFigures], refused: list[str], targets: dict[str, bool]
) -> None:
    content = {
        "command": ["kp_training", "benchmark", *argv], "revision": provenance.revision(),
        "versions": provenance.versions(), "machine": provenance.machine(),
        "results": {name: asdict(figures) | {"rate": figures.rate} for name, figures in measured.items()},
        "left_out": refused, "targets": targets,
    }
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
