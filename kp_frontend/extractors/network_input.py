"""A camera's image as a network's input."""

from __future__ import annotations

import cv2
import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.images import to_gray
from kp_frontend.model_file import ModelMetadata


def network_input(image: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """`image` as a network wants it: 1×C×H×W, padded right and below by the edge's pixels.

    image: H×W or H×W×3 BGR uint8.  Returns float32 in [0, 1] or uint8, as the model takes it; a grey uint8 image whose
    size fits is not copied.  Raises InputError where the model takes one size only, and not this one.
    """
    height, width = image.shape[:2]
    padded = metadata.padded(height, width)
    if metadata.height and padded != (metadata.height, metadata.width):
        raise InputError(
            f"image is {width}×{height}, but the model was exported for {metadata.width}×{metadata.height} only; "
            "resize the images or export it with dynamic size"
        )
    planes = _planes(image, metadata.color)
    if metadata.input_dtype == "uint8" and len(planes) == 1 and padded == (height, width):
        return np.ascontiguousarray(planes[0])[None, None]
    blob = np.empty((1, len(planes), *padded), metadata.input_dtype)
    for plane, channel in zip(planes, blob[0, :, :height, :width]):
        if metadata.input_dtype == "uint8":
            channel[:] = plane
        else:
            np.multiply(plane, np.float32(1 / 255), out=channel)
    blob[:, :, :height, width:] = blob[:, :, :height, width - 1 : width]
    blob[:, :, height:] = blob[:, :, height - 1 : height]
    return blob


def _planes(image: np.ndarray, color: str) -> list[np.ndarray]:
    """The channels of `image` in the order of the network's, H×W uint8 each."""
    if color == "gray":
        return [to_gray(image)]
    return [image] * 3 if image.ndim == 2 else list(cv2.split(image)[::-1])
