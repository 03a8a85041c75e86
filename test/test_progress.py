"""Progress is bars on a terminal, and elsewhere a line for each part, or nothing."""

from __future__ import annotations

import io

from rich.console import Console

from kp_frontend.progress import progress_bar, progress_of_parts


def _shown(terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=80), stream


def test_parts_are_lines_where_there_is_no_terminal():
    console, stream = _shown(False)
    with progress_of_parts("scenes", 2, console) as begin:
        begin("[kitchen]")(1, 3)
        begin("a name that is far too long for one line " * 3)(3, 3)
    assert stream.getvalue().splitlines() == ["1/2 [kitchen]", "2/2 " + "a name that is far too long for one line " * 3]


def test_bars_count_on_a_terminal():
    console, stream = _shown(True)
    with progress_of_parts("scenes", 2, console) as begin:
        begin("kitchen")(1, 3)
    assert "1/3" in stream.getvalue()
    assert "0/2" in stream.getvalue()
    console, stream = _shown(True)
    with progress_bar("frames", 5, console) as bar:
        bar.advance()
        bar.advance(2)
    assert "3/5" in stream.getvalue()
    with progress_bar("frames", console=console) as bar:
        bar.reach(4, 7)
    assert "4/7" in stream.getvalue()


def test_one_bar_is_silent_where_there_is_no_terminal():
    console, stream = _shown(False)
    with progress_bar("frames", 5, console) as bar:
        bar.advance()
    assert stream.getvalue() == ""
