"""How far long work is: bars on a terminal that go when it is done; elsewhere nothing, or a line a part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Progress = Callable[[int, int], None]
"""Told what is done, and of how many."""


@dataclass(frozen=True)
class ProgressBar:
    """A task of a rich ``Progress``."""

    bars: Any
    task: Any

    def advance(self, done: int = 1) -> None:
        """So many more are done."""
        self.bars.advance(self.task, done)

    def reach(self, done: int, total: int) -> None:
        """So many are done, of how many: a Progress."""
        self.bars.update(self.task, completed=done, total=total)


@contextmanager
def progress_bar(what: str, total: int | None = None, console: Any = None) -> Iterator[ProgressBar]:
    """One bar, called `what`, of `total` things (None: told by `reach`).  console: rich's; default: of stderr."""
    with _bars(console) as bars:
        yield ProgressBar(bars, bars.add_task(what, total=total))


@contextmanager
def progress_of_parts(what: str, total: int, console: Any = None) -> Iterator[Callable[[str], Progress]]:
    """Gives what to call with the name of each of `total` parts (`what`) for its own Progress.

    Bars of the parts and of the part in hand; not on a terminal, a line for each part as it begins.
    """
    with _bars(console) as bars:
        whole, part = bars.add_task(what, total=total), bars.add_task("")
        begun = 0

        def begin(name: str) -> Progress:
            nonlocal begun
            begun += 1
            if bars.disable:
                bars.console.out(f"{begun}/{total} {name}", highlight=False)
            bars.update(whole, completed=begun - 1)
            bars.reset(part, description=name)
            return ProgressBar(bars, part).reach

        yield begin


def _bars(console: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
