"""The terminal that tables are shown on."""

from __future__ import annotations

from typing import Any


def table_console(width: int) -> Any:
    """Rich's console for stdout: as wide as the terminal, or, into a file or pipe, `width` characters.

    It shows every text as it is: ``pip install 'kp_frontend[gpu]'`` would lose its brackets as markup.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=width, markup=False, emoji=False)


def show_line(console: Any, mark: str, style: str, text: str) -> None:
    """A line on rich's `console`: `mark` in `style`, and `text`."""
    from rich.text import Text

    console.print(Text.assemble((mark, style), " ", text))
