"""Training data: where images come from (``SOURCES``) and how pairs are made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kp_frontend.errors import InputError, unknown_name
from kp_training.data.images import Images
from kp_training.data.photos import PhotoFolder
from kp_training.data.procedural import ProceduralImages

SOURCES = {
    "photos": lambda argument, held_out: PhotoFolder(argument, held_out),
    "procedural": lambda argument, held_out: ProceduralImages(_count(argument), held_out=held_out),
}


class Joined:
    """Several sources as one, in order."""

    def __init__(self, sources: Sequence[Images]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources])
        self.identity = "+".join(source.identity for source in sources)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which][index - (int(self.ends[which - 1]) if which else 0)]


def open_images(specs: Sequence[str], held_out: bool = False) -> Images:
    """Images of each ``KIND:ARGUMENT`` (``photos:FOLDER``, ``procedural`` or ``procedural:COUNT``), joined.

    No spec means ``procedural``.  Raises InputError for an unknown kind or an unusable folder.
    """
    sources = []
    for spec in specs or ["procedural"]:
        kind, _, argument = spec.partition(":")
        if kind not in SOURCES:
            raise unknown_name("data source", kind, SOURCES)
        sources.append(SOURCES[kind](argument, held_out))
    return sources[0] if len(sources) == 1 else Joined(sources)


def _count(argument: str) -> int:
    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise InputError(f"procedural:{argument}: expected a number of images, as in procedural:400")
    return int(argument or 400)
