"""What labels are: the points where a detector's averaged scores peak, in each image's own pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kp_frontend.decoding import find_peaks

Detect = Callable[[Tensor], Sequence[Tensor]]
"""Grey B×1×H×W in [0, 1] → maps, of which the first are probabilities B×1×H×W."""


@dataclass(frozen=True)
class LabelConfig:
    """What of an image is labelled, and which peaks of its averaged scores are points.

    height, width: an image larger than height × width is shrunk to as many pixels, to sides of `multiple`.
    threshold: of the averaged probability.  nms_radius, border: pixels.
    fewest, points: so many of an image are kept at least, whatever their probability, and at most.  The public codes
    have no `fewest`; without it, a detector that learned little labels nearly nothing, and the next one learns to find
    nothing.
    """

    height: int = 240
    width: int = 320
    multiple: int = 8
    threshold: float = 0.015
    nms_radius: int = 4
    border: int = 4
    fewest: int = 100
    points: int = 600

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which an image of `height`×`width` is labelled."""
        factor = min(1.0, np.sqrt(self.height * self.width / (height * width)))
        return tuple(max(self.multiple, round(side * factor / self.multiple) * self.multiple)
                     for side in (height, width))

    def select(self, scores: np.ndarray, height: int, width: int) -> np.ndarray:
        """N×3 float32 (x, y, probability), best first: points of an image of `height`×`width` in its pixels.

        scores: H×W float32, of the size that it is labelled at.
        """
        peaks, values = find_peaks(scores, self.points, radius=self.nms_radius, border=self.border)
        kept = max((values > self.threshold).sum(), self.fewest)
        points = (peaks[:kept] + 0.5) * (np.array([width, height]) / scores.shape[::-1]) - 0.5
        return np.column_stack([points, values[:kept].clip(0, 1)]).astype(np.float32)


@dataclass(frozen=True)
class AdaptedLabels:
    """Points of labelled images, in the images' own pixels.

    indices: M, index of each image in its source.  starts: M + 1, where each one's points begin in `points`.
    points: N×3 float32 (x, y, probability).
    """

    indices: np.ndarray
    starts: np.ndarray
    points: np.ndarray

    def __call__(self, position: int) -> np.ndarray:
        """N×3 points of the image at `position` among the labelled ones."""
        return self.points[self.starts[position] : self.starts[position + 1]]


def half_precision(device: torch.device) -> torch.autocast:
    """Half precision where it is quick: it moves a mean over views by less than another draw of views does."""
    quick = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, enabled=quick)
