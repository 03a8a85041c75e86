"""A camera's image as a network's input."""

from __future__ import annotations

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.images import to_gray
from kp_frontend.model_file import ModelMetadata


def network_input(image: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """`image` as a network wants it: 1×C×H×W float32 in [0, 1], padded right and below by the edge's pixels.

    image: H×W or H×W×3 BGR uint8.  Raises InputError where the model takes one size only, and not this one.
    """
    height, width = image.shape[:2]
    down, right = (-height % metadata.size_multiple, -width % metadata.size_multiple)
    if metadata.height and (height + down, width + right) != (metadata.height, metadata.width):
        raise InputError(
            f"image is {width}×{height}, but the model was exported for {metadata.width}×{metadata.height} only; "
            "resize the images or export it with dynamic size"
        )
    if metadata.color == "gray":
        planes = [to_gray(image)]
    else:
        planes = [image] * 3 if image.ndim == 2 else list(cv2.split(image)[::-1])
    blob = np.empty((1, len(planes), height + down, width + right), np.float32)
    for plane, channel in zip(planes, blob[0]):
        if down or right:
            plane = cv2.copyMakeBorder(plane, 0, down, 0, right, cv2.BORDER_REPLICATE)
        np.multiply(plane, np.float32(1 / 255), out=channel)
    return blob
