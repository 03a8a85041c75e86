"""What is shown is shown as it is: brackets are no markup, and colons no pictures."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("rich")

from rich.console import Console
from rich.table import Table

from kp_frontend.benchmarks.report import show_targets
from kp_frontend.progress import progress_bar
from kp_frontend.terminal import show_line, table_console

TEXT = "pip install 'kp_frontend[gpu]' [/tmp/x] :cat:"


def test_texts_and_tables_keep_their_brackets(capsys):
    console = table_console(100)
    console.print(TEXT, highlight=False)
    table = Table(TEXT, title=TEXT, caption=TEXT, title_justify="left")
    table.add_row(TEXT)
    console.print(table)
    show_line(console, "[note]", "yellow", TEXT)
    show_targets(console, {TEXT: True})
    shown = capsys.readouterr().out
    assert shown.count(TEXT) == 7
    assert f"[note] {TEXT}" in shown
    assert f"yes {TEXT}" in shown


def test_a_bar_keeps_its_brackets():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with progress_bar("[/tmp/x[1].onnx]", 5, console) as bar:
        bar.advance()
    assert "[/tmp/x[1].onnx]" in console.file.getvalue()
