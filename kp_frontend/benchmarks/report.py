"""What every benchmark shows and writes beside its tables: targets, provenance, a plot, and an earlier run's times."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kp_frontend.atomic import written_whole
from kp_frontend.errors import InputError
from kp_frontend.replay import provenance
from kp_frontend.terminal import show_line

Draw = Callable[[Any], None]
"""Draws into matplotlib's axes."""
SLOWER, FASTER = 1.1, 1 / 1.1
"""Ratios to the earlier run beyond which a time is shown in colour."""


def _origin() -> dict[str, Any]:
    """Where figures come from."""
    return {"machine": provenance.machine(), "versions": provenance.versions(), "revision": provenance.revision()}


def show_targets(console: Any, targets: Mapping[str, bool]) -> None:
    """A line ``yes …`` or ``NO  …`` for each target (sentence → whether it is met) on rich's `console`."""
    for sentence, met in targets.items():
        show_line(console, "yes" if met else "NO ", "green" if met else "red", sentence)


def write_figures(file: Path, command: Sequence[str], figures: Mapping[str, Any]) -> None:
    """Write `figures` as JSON, with the command and the revision, versions and machine that they come from.

    Raises InputError where the file cannot be written.
    """
    content = {"command": list(command), **_origin(), **figures}
    try:
        with written_whole(file) as beside:
            beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); give another place") from error


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """``--json``, ``--plot`` and ``--compare``, which `Report` reads."""
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--plot", type=Path, metavar="FILE.png", help="draw them there (default: beside the --json)")
    add("--compare", type=Path, metavar="FILE", help="--json of an earlier run: show how much slower each time is now")


class Report:
    """Where the figures of a run go, and what they are compared with.

    Made before anything is measured: raises InputError where a folder is missing, or for an earlier run that is none.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.file: Path | None = options.json
        self.plot: Path | None = options.plot or (self.file and self.file.with_suffix(".png"))
        for option, file in (("--json", self.file), ("--plot", self.plot)):
            if file is not None and not file.absolute().parent.is_dir():
                raise InputError(f"{option} {file}: no folder {file.parent}; make it first")
        self.earlier = read_earlier(options.compare) if options.compare is not None else None

    def conclude(
        self, console: Any, command: Sequence[str], figures: Mapping[str, Any], medians: Mapping[str, float], draw: Draw
    ) -> None:
        """Compare, write and draw.

        figures: for the JSON.  medians: milliseconds by name, what later runs are compared by; less is better.
        """
        if self.earlier is not None:
            show_comparison(console, medians, self.earlier)
        if self.file is not None:
            write_figures(self.file, command, {**figures, "medians": dict(medians)})
        if self.plot is not None:
            draw_plot(self.plot, draw)
            console.print(f"plot: {self.plot}", highlight=False)


def read_earlier(file: Path) -> dict[str, Any]:
    """What `write_figures` wrote to `file` for a benchmark with medians; InputError for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--compare {file} cannot be read ({error}); give the --json of an earlier run") from error
    if not isinstance(content, dict) or not isinstance(content.get("medians"), dict):
        raise InputError(f"--compare {file} holds no medians; give the --json of an earlier run of this benchmark")
    return content


def compare(medians: Mapping[str, float], earlier: Mapping[str, float]) -> dict[str, float]:
    """Ratio now / then of each time (ms) that both runs have, by name."""
    return {name: now / earlier[name] for name, now in medians.items() if earlier.get(name)}


def show_comparison(console: Any, medians: Mapping[str, float], earlier: Mapping[str, Any]) -> None:
    """A table of both runs' times; what is slower now in red.  earlier: of `read_earlier`."""
    from rich import box
    from rich.table import Table

    ratios = compare(medians, earlier["medians"])
    shown = Table(title="Compared with the earlier run", title_justify="left", box=box.SIMPLE)
    shown.add_column("median, ms")
    for name in ("then", "now", "now / then"):
        shown.add_column(name, justify="right")
    for name, ratio in ratios.items():
        style = "red" if ratio > SLOWER else "green" if ratio < FASTER else ""
        shown.add_row(name, *(f"{value:.2f}" for value in (earlier["medians"][name], medians[name], ratio)),
                      style=style)
    console.print(shown)
    other = [name for name, value in _origin().items() if earlier.get(name) != value]
    missing = len(earlier["medians"].keys() - medians.keys())
    notes = [f"the earlier run has another {' and '.join(other)}"] * bool(other)
    notes += [f"not in this run: {missing} of its times"] * bool(missing)
    notes += ["the two runs have no time in common"] * (not ratios)
    for note in notes:
        console.print(note, highlight=False)


def draw_plot(file: Path, draw: Draw) -> None:
    """A PNG; InputError where matplotlib is missing or the file cannot be written."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'kp_frontend[replay]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                             "grid.alpha": 0.25, "axes.axisbelow": True}
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
        draw(axes)
        try:
            with written_whole(file) as beside:
                figure.savefig(beside, dpi=120)
        except (OSError, ValueError) as error:  # ValueError: a suffix that is no picture's
            raise InputError(f"{file} cannot be drawn ({error}); give a FILE.png that can be written") from error
        finally:
            pyplot.close(figure)


def draw_bars(axes: Any, rows: Mapping[str, Mapping[str, float]], title: str) -> None:
    """A horizontal bar for each of `rows`: its milliseconds by part, one after the other."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    left = dict.fromkeys(rows, 0.0)
    for part in parts:
        values = [row.get(part, 0.0) for row in rows.values()]
        axes.barh(list(rows), values, left=list(left.values()), label=part, height=0.7)
        left = {name: begin + value for (name, begin), value in zip(left.items(), values)}
    frame_rows(axes, len(rows), title)
    if len(parts) > 1:
        axes.legend(fontsize=8)


def frame_rows(axes: Any, count: int, title: str) -> None:
    """Title, axis in milliseconds and height of a picture with `count` rows, the first on top."""
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title(title, loc="left")
    axes.tick_params(axis="y", labelsize=7)
    axes.figure.set_size_inches(9, 2 + 0.22 * count)
