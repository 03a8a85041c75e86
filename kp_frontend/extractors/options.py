"""Options of extractors and trackers: declared as frozen dataclasses, given as ``orb:top_k=500,levels=4``."""

from __future__ import annotations

from dataclasses import dataclass

from kp_frontend.engines import Backend
from kp_frontend.errors import InputError

MOST = 1_000_000  # features an image: far more than there are; OpenCV overflows at 2³¹


@dataclass(frozen=True)
class Options:
    """What every extractor takes.

    top_k: at most so many features, the best by score.  backend: what runs a network; classical extractors need none.
    """

    top_k: int = 1000
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MOST:
            raise InputError(f"top_k is {self.top_k}, expected 1 to {MOST}")


@dataclass(frozen=True)
class EngineOptions(Options):
    """What every extractor with a network takes.  threads: of a CPU backend, 0 = one a core."""

    threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise InputError(f"threads is {self.threads}, expected at least 1, or 0 for one a core")


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``name:key=value,key=value`` into the name (or path) and its options, still as text.

    Raises InputError where an option is not ``key=value`` or comes twice.
    """
    name, _, text = str(spec).partition(":")
    options: dict[str, str] = {}
    for entry in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not key or not value or key in options:
            raise InputError(f"features {spec!r}: {entry!r} is not a new key=value; write NAME:key=value,key=value")
        options[key] = value
    if not name.strip():
        raise InputError(f"features {spec!r} names no extractor; write NAME or NAME:key=value,key=value")
    return name.strip(), options
