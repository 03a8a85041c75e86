"""KP2D's outlier rejection: IO-Net learns which matches of keypoints are right, and the keypoints to be told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.sampling import sample_aligned, warp_points
from kp_training.losses.keypointnet import CODE, LossRules, cell_points, descriptor_distances
from kp_training.networks.keypointnet import CellMaps

POINTS = 300
INLIER_RADIUS = 4.0
LEAST_INLIERS = 10

PICKS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "lowest": lambda scores, count: scores.topk(count, largest=False).indices,
    "highest": lambda scores, count: scores.topk(count).indices,
    "random": lambda scores, count: torch.rand_like(scores).topk(count).indices,
}
"""Which cells of an image are matched, by their scores: B×M scores and a count → B×count indices."""


class Matches(NamedTuple):
    """features: B×5×N (x, y of the source, x, y of the target in [−1, 1], descriptor distance).  labels: B×N, ±1."""

    features: Tensor
    labels: Tensor


def match_cells(
    source: CellMaps, target: CellMaps, homography: Tensor, cell: int, cross_ratio: float, pick: str
) -> Matches:
    """The 300 points that `pick` takes of each view (fewer where there are fewer), each with its nearest descriptor.

    homography: B×3×3 target_from_source.  A match is an inlier, labelled 1, where it is less than 4 pixels off, else
    an outlier, −1 (the sign that the paper prints is reversed).  The code picks the lowest scores, among them the
    zeros of the border; METHODS.md section 1.
    """
    size = source.scores.shape[-2] * cell, source.scores.shape[-1] * cell
    points0, descriptors0 = _picked(source, cell, cross_ratio, pick, size)
    points1, descriptors1 = _picked(target, cell, cross_ratio, pick, size)
    distance, nearest = descriptor_distances(descriptors0, descriptors1).min(2)
    matched = points1.gather(1, nearest[..., None].expand(-1, -1, 2))
    with torch.no_grad():
        right = (matched - warp_points(homography, points0)).norm(dim=-1) < INLIER_RADIUS
    to_unit = torch.tensor([2 / (size[1] - 1), 2 / (size[0] - 1)], device=points0.device)
    features = torch.cat([points0 * to_unit - 1, matched * to_unit - 1, distance[..., None]], -1)
    return Matches(features.transpose(1, 2), torch.where(right, 1.0, -1.0))


def outlier_loss(predicted: Tensor, labels: Tensor, rules: LossRules = CODE) -> Tensor:
    """Mean squared error of B×N predictions; 0, with gradient 0, unless the batch has more than 10 inliers."""
    points = labels.shape[1] if rules.summed else 1
    # Not left out there, so that all processes of a distributed run have the same gradients to average.
    return points * F.mse_loss(predicted, labels) * ((labels > 0).sum() > LEAST_INLIERS)


def _picked(maps: CellMaps, cell: int, cross_ratio: float, pick: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Positions (B×N×2) and unit descriptors (B×N×D) of the picked cells; gradients reach offsets and descriptors."""
    scores = maps.scores.flatten(1)
    chosen = PICKS[pick](scores, min(POINTS, scores.shape[1]))
    points = cell_points(maps.offsets, cell, cross_ratio).gather(1, chosen[..., None].expand(-1, -1, 2))
    return points, F.normalize(sample_aligned(maps.descriptors, points, *size), dim=-1)
