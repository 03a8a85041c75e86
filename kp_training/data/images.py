"""What training data is made of: photographs by index."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np


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
