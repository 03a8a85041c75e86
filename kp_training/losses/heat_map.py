"""A map of probabilities against a map of points (SEDM, the M step)."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-6
"""Of 1 − p: where p is rounded to 1, its logarithm is still finite."""


def heat_map_loss(log_probabilities: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of each pixel with there being a point, summed over an image, mean over images.

    log_probabilities: B×1×H×W.  labels: B×1×H×W, a point where it is not 0.  mask: B×1×H×W bool, pixels that count.
    The sum over images that a batch of the paper's may have had would differ by a factor, which Adam does not see.
    """
    absent = torch.log(-torch.expm1(log_probabilities.clamp_max(-LEAST)))
    entropy = -torch.where(labels > 0, log_probabilities, absent)
    return (entropy * mask).sum() / len(labels)
