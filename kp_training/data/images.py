"""What training data is made of: photographs by index."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kp_frontend.errors import InputError

log = logging.getLogger(__name__)


class Images(Protocol):
    """Where photographs come from: H×W×3 BGR uint8 by index.

    identity: changes whenever any photograph does; labels that are kept on disk are keyed by it.
    """

    @property
    def identity(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


class Chosen:
    """Those of `images` at `indices` (N int64), in that order."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices
        self.identity = f"{images.identity}[{hashlib.sha256(indices.tobytes()).hexdigest()[:16]}]"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> np.ndarray:
        return self.images[int(self.indices[position])]


class Readable:
    """`images`, where the next that can be read takes the place of one that cannot, which is said of the first.

    Raises InputError where none can be read.
    """

    def __init__(self, images: Images) -> None:
        self.images, self.identity, self.said = images, images.identity, False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        for step in range(len(self)):
            try:
                return self.images[(index + step) % len(self)]
            except InputError as error:
                if not self.said:
                    log.warning("%s; the next image takes its place (said once)", error)
                self.said, last = True, error
        raise InputError(f"not one of {len(self)} images can be read; the last: {last}")


class Joined:
    """Several sources as one by a running index, in order; each has a length and an identity."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources])
        self.identity = "+".join(source.identity for source in sources)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        source, own = self.locate(index)
        return self.sources[source][own]

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the source, and the index in it, of a running index."""
        source = int(np.searchsorted(self.ends, index, side="right"))
        return source, index - self.start(source)

    def start(self, source: int) -> int:
        """Running index of the first of a source."""
        return int(self.ends[source - 1]) if source else 0
