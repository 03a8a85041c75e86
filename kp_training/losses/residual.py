"""The triplet loss of "Residual learning for image point descriptors" on points that a detector found."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.losses.dual_softmax import masked_mean


def triplet_loss(
    anchors: Tensor, others: Tensor, points: Tensor, partners: Tensor, valid: Tensor, margin: float, safe_radius: float
) -> dict[str, Tensor]:
    """Sum over matched anchors of max(0, positive − hardest negative + margin), as ``loss``.

    anchors: B×N×D of unit length, one view's.  others, points: B×M×D and B×M×2 (pixels), the other view's.
    partners: B×N int64, the anchor's match among the others, −1 = none.  valid: B×M bool, others that exist.
    The hardest negative is the nearest descriptor of the other view farther than `safe_radius` pixels from the match;
    an anchor without one is left out.  With the paper's margin of 2, the largest distance there is, the hinge never
    closes and every anchor keeps pulling.
    Watched: ``positive`` and ``negative``, mean distances; ``accuracy``, share of anchors with positive < negative.
    """
    distances = (2 - 2 * anchors @ others.transpose(1, 2)).clamp_min(1e-6).sqrt()
    partner = partners.clamp_min(0)
    positive = distances.gather(2, partner[..., None])[..., 0]
    truth = points.gather(1, partner[..., None].expand(-1, -1, 2))
    near = torch.cdist(truth, points, compute_mode="donot_use_mm_for_euclid_dist") <= safe_radius
    negative = distances.masked_fill(near | ~valid[:, None], torch.inf).amin(2)
    counted = (partners >= 0) & negative.isfinite()
    hinge = F.relu(positive - torch.where(counted, negative, 0) + margin)
    return {
        "loss": torch.where(counted, hinge, 0).sum(),
        "positive": masked_mean(positive.detach(), counted),
        "negative": masked_mean(negative.detach(), counted),
        "accuracy": masked_mean((positive < negative).float(), counted),
    }
