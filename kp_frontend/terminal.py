"""The terminal that tables are shown on."""

from __future__ import annotations

from typing import Any


def table_console(width: int) -> Any:
    """Rich's console for stdout: as wide as the terminal, or, into a file or pipe, `width` characters."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)
