"""What ``benchmark training`` and ``benchmark posed`` share: measuring one thing after another, and the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kp_frontend.benchmarks.report import show_targets, write_figures
from kp_frontend.errors import InputError
from kp_frontend.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 140
STOPPED = 130


@dataclass(frozen=True)
class Measured:
    """figures: by name.  refused: what was left out, and why.  stopped: by Ctrl-C."""

    figures: dict[str, Any]
    refused: list[str]
    stopped: bool

    def conclude(
        self, console: Console, table: Table, lines: Iterable[str], targets: Mapping[str, bool], argv: Sequence[str],
        file: Path | None, written: Mapping[str, Any],
    ) -> int:
        """Show the table, lines, what was left out and whether targets are met, write `written`; the exit code."""
        console.print(table)
        for line in [*lines, *(f"left out: {reason}" for reason in self.refused)]:
            console.print(line, highlight=False)
        show_targets(console, targets)
        if file is not None:
            write_figures(file, ["kp_training", "benchmark", *argv],
                          {**written, "left_out": self.refused, "targets": targets})
        return STOPPED if self.stopped else 0


def measure_all(
    works: Mapping[str, Callable[[Progress], Any]], begin: Callable[[str], Progress], refused: Iterable[str] = (),
    errors: tuple[type[Exception], ...] = (InputError,),
) -> Measured:
    """Figures of all `works`, or of those before Ctrl-C.

    begin: of `progress_of_parts`.  refused: what is left out already.  errors: with which a work is left out.
    Raises InputError where nothing could be measured.
    """
    figures, refused, stopped = {}, list(refused), False
    for name, work in works.items():
        try:
            figures[name] = work(begin(name))
        except errors as error:
            refused.append(f"{name}: {error}")
        except KeyboardInterrupt:
            refused.append(f"{name} and what comes after it: stopped by Ctrl-C")
            stopped = True
            break
    if not figures:
        raise InputError(f"nothing could be measured: {'; '.join(refused)}")
    return Measured(figures, refused, stopped)
