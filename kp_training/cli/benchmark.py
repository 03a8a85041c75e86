"""``benchmark training``: images a second, memory and waiting for data of each method on this machine.

``benchmark posed`` is in ``benchmark_posed.py``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.replay import provenance
from kp_training.cli import benchmark_posed

if TYPE_CHECKING:
    from rich.table import Table

    from kp_training.benchmark import Case, Figures

SMALL = "compact"
SHAPES = 300
SHAPES_GOAL = 100
WIDTH = 140
STOPPED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command; raises InputError for what cannot be used."""
    options = _parser().parse_args(argv)
    if sys.platform != "linux":
        raise InputError(f"on {sys.platform} the peak of memory cannot be read; measure on Linux")
    return options.run(options, argv)


def run_training(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure the methods; raises InputError for what cannot be used."""
    if options.steps < 2:
        raise InputError(f"--steps {options.steps}: expected 2 or more")
    from rich.console import Console

    from kp_training.benchmark import drawing_speed
    from kp_training.isolated import call_isolated
    from kp_training.training import check_device

    check_device(options.device)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    refused: list[str] = []
    cases = _cases(options, refused)
    with progress_bar(console, len(cases) + 1) as step:
        shapes = call_isolated(drawing_speed, SHAPES, progress=step("synthetic shapes"))
        measured, stopped = _measure(cases, refused, step)
    if not measured:
        raise InputError(f"nothing could be measured: {'; '.join(refused)}")
    console.print(table(measured))
    for line in [*rates(measured, shapes), *(f"left out: {reason}" for reason in refused)]:
        console.print(line, highlight=False)
    targets = judge(measured, shapes)
    for sentence, met in targets.items():
        console.print(f"[{'green' if met else 'red'}]{'yes' if met else 'NO '}[/] {sentence}", highlight=False)
    if options.json is not None:
        _write(options.json, argv, measured, refused, shapes, targets)
    return STOPPED if stopped else 0


def _measure(
    cases: Sequence[Case], refused: list[str], step: Callable[[str], Callable[[int, int], None]]
) -> tuple[list[Figures], bool]:
    """Figures of all cases, or of those before Ctrl-C, and whether that was; reasons go to `refused`."""
    from kp_training.benchmark import measure_isolated

    measured = []
    for case in cases:
        name = " ".join(filter(None, [case.method, case.settings.get("network"), case.stage]))
        try:
            measured.append(measure_isolated(case, step(name)))
        except InputError as error:
            refused.append(f"{name}: {error}")
        except KeyboardInterrupt:
            refused.append(f"{name} and what comes after it: stopped by Ctrl-C")
            return measured, True
    return measured, False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmark", description="Measure training on this machine.")
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    training = kinds.add_parser(
        "training", help="images a second, memory and waiting for data of each method",
        description="A few steps of each method in its own process, at the paper's image size and batch.")
    add_options(training)
    training.set_defaults(run=run_training)
    posed = kinds.add_parser("posed", help="rendering, overlap, loading and labelling of posed views",
                             description="Each kind of work in its own process, beside its goal.")
    benchmark_posed.add_options(posed)
    posed.set_defaults(run=benchmark_posed.run)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``benchmark training``."""
    add = parser.add_argument
    add("--methods", nargs="+", metavar="M", default=[], help="default: every method")
    add("--network", metavar="N", help=f"only this network of each method; default: the paper's and {SMALL}")
    add("--data", action="append", metavar="SPEC", default=[],
        help="as of train; default: photographs of 640×480, and one procedural scene for methods that need poses")
    add("--steps", type=int, default=8, help="to measure, after two that are not (default %(default)s)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--size", metavar="HxW", help="of the views in pixels; default: the paper's")
    add("--json", type=Path, metavar="FILE", help="write the figures there")


def _cases(options: argparse.Namespace, refused: list[str]) -> list[Case]:
    """What there is to measure; what cannot be goes to `refused`, with the reason."""
    from kp_training.benchmark import Case, photographs, stages_of, takes
    from kp_training.methods import METHODS

    for method in options.methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    size = _size(options.size)
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
    from kp_training.benchmark import takes

    if takes(method, "network"):
        return [{"network": wanted}] if wanted else [{}, {"network": SMALL}]
    if wanted:
        refused.append(f"{method}: has no choice of network")
        return []
    return [{}]


def _size(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise InputError(f"--size {text}: expected HEIGHTxWIDTH, as in 240x320")
    return {"height": int(found[1]), "width": int(found[2])}


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
        shown.add_row(f"{row.method} {row.variant}", row.stage, f"{row.height}×{row.width}", batch, *cells)
    return shown


def rates(measured: Sequence[Figures], shapes: float) -> list[str]:
    """Speeds of what is made before training, a line each."""
    labels = [f"labels for {row.method} {row.variant} {row.stage}: {row.labelled_images:.2f} photos/s"
              for row in measured if row.labelled_images is not None]
    return [*labels, f"synthetic shapes of 120×160 in one process: {shapes:.0f} images/s"]


def judge(measured: Sequence[Figures], shapes: float) -> dict[str, bool]:
    """Whether each target is met, by sentence."""
    slow = [f"{row.method} {row.variant} {row.stage}" for row in measured if row.loader_images < row.images]
    return {
        "the loader alone is faster than training" + (f" (not: {', '.join(slow)})" if slow else ""): not slow,
        f"at least {SHAPES_GOAL} synthetic shapes a second": shapes >= SHAPES_GOAL,
    }


def _write(
    file: Path, argv: Sequence[str], measured: Sequence[Figures], refused: list[str], shapes: float,
    targets: dict[str, bool],
) -> None:
    import torch

    content = {
        "command": ["kp_training", "benchmark", *argv], "revision": provenance.revision(),
        "versions": provenance.versions() | {"torch": torch.__version__}, "machine": provenance.machine(),
        "results": [asdict(figures) for figures in measured], "left_out": refused,
        "synthetic_shapes": shapes, "targets": targets,
    }
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


@contextmanager
def progress_bar(console: Any, total: int) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Gives what to call with each row's name for its progress: a bar on a terminal, a line elsewhere."""
    from rich.progress import Progress as Bar

    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        whole, part = bar.add_task("rows", total=total), bar.add_task("")
        begun = 0

        def step(name: str) -> Callable[[int, int], None]:
            nonlocal begun
            begun += 1
            if not console.is_terminal:
                print(f"{begun}/{total} {name}", flush=True)
            bar.update(whole, completed=begun - 1)
            bar.reset(part, description=name)
            return lambda done, count: bar.update(part, completed=done, total=count)

        yield step
