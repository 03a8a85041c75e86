"""Files that are whole: readers see the old one or the new one, never a half, whatever ends the writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside `path`, of the same suffix, to write to; in the end it takes the place of `path`.

    Where the writing fails, what was there stays, and nothing is left beside it.
    """
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
