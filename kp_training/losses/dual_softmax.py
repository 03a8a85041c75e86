"""Descriptors by dual softmax over matching points, and a reliability that says where they can be trusted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(
    descriptors0: Tensor, descriptors1: Tensor, points1: Tensor, valid: Tensor, temperature: float, safe_radius: float
) -> Tensor:
    """B×N×N logits: cosine over temperature between N points of view 0 and the same N points as view 1 sees them.

    descriptors0, descriptors1: B×N×D, any length.  points1: B×N×2, where each point lies in view 1.
    Entries of points that are not `valid` (B×N bool), and of other points less than `safe_radius` pixels from
    the true one, which are no mistake, are −∞.
    """
    logits = F.normalize(descriptors0, dim=-1) / temperature @ F.normalize(descriptors1, dim=-1).mT
    excluded = torch.cdist(points1, points1) < safe_radius
    excluded |= ~valid[:, None, :]
    excluded |= ~valid[:, :, None]
    # The diagonal stays finite so that rows of points that are not valid give no nan; they are not counted.
    excluded.diagonal(dim1=1, dim2=2).fill_(False)
    return logits.masked_fill_(excluded, -torch.inf)


def dual_softmax_loss(logits: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid points of −log(row softmax · column softmax) on the diagonal of B×N×N `logits`."""
    rows, columns = (logits.log_softmax(dim).diagonal(dim1=1, dim2=2) for dim in (2, 1))
    return masked_mean(-rows - columns, valid)


def mutual_matches(logits: Tensor) -> Tensor:
    """B×N bool: the point's own counterpart is its best match in both directions."""
    own = logits.diagonal(dim1=1, dim2=2)
    return (own >= logits.amax(1)) & (own >= logits.amax(2))


def reliability_loss(reliability: Tensor, matched: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of B×N `reliability` logits with whether the point was `matched`, over valid points."""
    return masked_mean(F.binary_cross_entropy_with_logits(reliability, matched.float(), reduction="none"), valid)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` (bool, or weights) counts them; 0, with gradient 0, where none does."""
    weights = mask.to(values.dtype)
    return (torch.where(weights > 0, values, 0) * weights).sum() / weights.sum().clamp_min(1e-6)
