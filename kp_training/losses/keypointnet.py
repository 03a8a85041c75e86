"""KP2D's losses without IO-Net: association, location, descriptor triplet, score (its section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kp_training.geometry.sampling import inside, pixel_grid, sample_aligned, warp_points
from kp_training.losses.dual_softmax import masked_mean
from kp_training.networks.keypointnet import CellMaps, without_border

ASSOCIATION_RADIUS = 4.0
MARGIN = 0.2
LEAST_CELLS = 20


@dataclass(frozen=True)
class LossRules:
    """Where KP2D's code and its paper differ; the defaults are the code's.

    summed: losses are sums over an image's points (paper) and not means (code).
    safe_box: pixels to each side of the truth without negatives, 4 (code) or 8 (paper).
    score_share: of the score loss, 1 (code) or ½ (paper).  detach: whether the score loss takes distances as they are
    (paper) or also moves points (code).
    """

    summed: bool = False
    safe_box: float = 4.0
    score_share: float = 1.0
    detach: bool = False


CODE = LossRules()
PAPER = LossRules(True, 8.0, 0.5, True)


def cell_points(offsets: Tensor, cell: int, cross_ratio: float) -> Tensor:
    """B×(h·w)×2 pixel positions of the cells' points, row by row, none outside the image.

    Cell centre + ratio · half cell · offset (the code's; the equation that the paper prints scales the centre too).
    """
    rows, columns = offsets.shape[-2:]
    half = (cell - 1) / 2
    centres = pixel_grid(rows, columns, offsets.device) * cell + half
    points = (centres + cross_ratio * half * offsets.permute(0, 2, 3, 1)).flatten(1, 2)
    last = torch.tensor([columns * cell - 1, rows * cell - 1], device=offsets.device)
    return points.clamp_min(0).minimum(last)


def paper_losses(
    source: CellMaps, target: CellMaps, homography: Tensor, cell: int, cross_ratio: float, describe: bool = True,
    rules: LossRules = CODE,
) -> dict[str, Tensor]:
    """KP2D's losses by name, with their sum (weights 1) as ``loss``.

    homography: B×3×3 target_from_source.  describe: with the descriptor's loss; its weight of 2 is an extra factor in
    the code and β in the paper.
    """
    height, width = source.scores.shape[-2] * cell, source.scores.shape[-1] * cell
    points0 = cell_points(source.offsets, cell, cross_ratio)
    points1 = cell_points(target.offsets, cell, cross_ratio)
    warped = warp_points(homography, points0)
    usable = inside(warped, height, width) & (without_border(source.scores).flatten(1) > 0)

    distance, nearest = torch.cdist(warped, points1, compute_mode="donot_use_mm_for_euclid_dist").min(2)
    associated = usable & (distance < ASSOCIATION_RADIUS)
    score0, score1 = source.scores.flatten(1), target.scores.flatten(1).gather(1, nearest)
    error = distance.detach() if rules.detach else distance
    peaks = (score0 + score1) * (error - masked_mean(error, associated))
    sampled1 = sample_aligned(target.scores, warped.detach(), height, width)[..., 0]
    consistency = 2 * _over_points((sampled1 - score0).square(), usable, rules)
    parts = {"location": _over_points(distance, associated, rules),
             "score": rules.score_share * (_over_points(peaks, associated, rules) + consistency)}
    if describe:
        parts["descriptor"] = descriptor_loss(source.descriptors, target.descriptors, points0.detach(),
                                              warped.detach(), usable, height, width, rules)
    return {"loss": sum(parts.values()), **parts, "associated": associated.float().mean()}


def descriptor_loss(map0: Tensor, map1: Tensor, points0: Tensor, points1: Tensor, usable: Tensor,
                    height: int, width: int, rules: LossRules = CODE) -> Tensor:
    """2 × mean triplet loss of `usable` points (B×N bool) with the hardest negative of the other image.

    Negatives are farther from the truth than `rules.safe_box` in x or y.  A pair of images with fewer than 20 usable
    points counts 0.
    """
    first = F.normalize(sample_aligned(map0, points0, height, width), dim=-1)
    second = F.normalize(sample_aligned(map1, points1, height, width), dim=-1)
    distances = descriptor_distances(first, second)
    apart = (points1[:, :, None] - points1[:, None]).abs().amax(-1)
    hardest = distances.masked_fill((apart <= rules.safe_box) | ~usable[:, None], torch.inf).amin(2)
    triplet = F.relu(distances.diagonal(dim1=1, dim2=2) - hardest + MARGIN)
    count = usable.sum(1)
    losses = torch.where(usable, triplet, 0).sum(1) / (1 if rules.summed else count.clamp_min(1))
    return 2 * torch.where(count >= LEAST_CELLS, losses, 0).mean()


def _over_points(values: Tensor, mask: Tensor, rules: LossRules) -> Tensor:
    """Mean of B×N `values` over the points of the mask (B×N bool), or the images' mean sum over theirs."""
    return masked_mean(values, mask) * (mask.sum() / len(mask) if rules.summed else 1)


def descriptor_distances(first: Tensor, second: Tensor) -> Tensor:
    """B×N×M Euclidean distances of unit vectors B×N×D and B×M×D."""
    return (2 - 2 * first @ second.transpose(1, 2)).clamp_min(1e-6).sqrt()
