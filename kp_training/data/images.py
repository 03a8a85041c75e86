"""What training data is made of: photographs by index."""

from __future__ import annotations

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
