"""What every extractor is, whatever finds its points."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.features import Features


class Extractor(Protocol):
    """Image → Features.

    name: how the user asked for it.  descriptor_size: D.  metric: ``l2`` or ``hamming``.
    concurrent: whether several threads may extract at once.
    """

    name: str
    descriptor_size: int
    metric: str

    @property
    def concurrent(self) -> bool: ...

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """Features of `image` (H×W or H×W×3 BGR uint8), best first; none where `mask` (H×W uint8) is 0.

        An image without texture gives no features; an array that is no image raises InputError.
        """
        ...


def check_image(image: np.ndarray, mask: np.ndarray | None = None) -> None:
    """InputError unless `image` is H×W or H×W×3 uint8 and `mask` None or H×W uint8."""
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size > 0
    if not fits or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        seen = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: expected H×W or H×W×3 uint8 and at least one pixel, got {seen}")
    if mask is not None and (mask.shape != image.shape[:2] or mask.dtype != np.uint8):
        raise InputError(f"mask: expected {image.shape[:2]} uint8 like the image, got {mask.shape} {mask.dtype}")
